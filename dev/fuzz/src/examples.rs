//! Inputs in files: the corpus, new ones, and the one that failed.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::hash;

/// The inputs of a directory, in the order of their names.
pub(crate) fn load(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the corpus is readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{directory:?} is empty");
    paths.iter().map(|path| fs::read(path).expect("the corpus is readable")).collect()
}

/// Writes inputs to the directory of `PORTCULLIS_FUZZ_KEEP`; returns their number.
pub(crate) fn keep(target: &str, inputs: impl Iterator<Item = Vec<u8>>) -> usize {
    let Some(directory) = env::var_os("PORTCULLIS_FUZZ_KEEP") else { return 0 };
    let directory = Path::new(&directory).join(target);
    fs::create_dir_all(&directory).expect("PORTCULLIS_FUZZ_KEEP is writable");
    let write = |input: Vec<u8>| {
        let name = format!("{:016x}", hash(&input));
        fs::write(directory.join(name), input).expect("PORTCULLIS_FUZZ_KEEP is writable");
    };
    inputs.map(write).count()
}

/// Writes the input to a file if the thread panics.
pub(crate) struct Guard<'a> {
    pub(crate) name: &'a str,
    pub(crate) seed: u64,
    pub(crate) input: &'a [u8],
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Self { name, seed, input } = *self;
        let path = env::temp_dir().join(format!("fuzz-{name}-{:016x}", hash(&input)));
        let written = fs::write(&path, input);
        let shown = input[..input.len().min(1_000)].escape_ascii();
        println!("fuzz {name}: seed {seed}, input {path:?} ({written:?}): \"{shown}\"");
    }
}
