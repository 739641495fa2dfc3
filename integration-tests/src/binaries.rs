//! The workspace's binaries, built once per test run, or those in the directory
//! `PORTCULLIS_BINARIES` (for measurements with a release build).

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

/// The path of a binary.
///
/// # Panics
/// The workspace does not build; cargo has printed the error.
pub fn path(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        if let Some(given) = env::var_os("PORTCULLIS_BINARIES") {
            return given.into();
        }
        // .../target/debug/deps/main-1234 -> .../target/debug
        let test = env::current_exe().expect("a process knows its own file");
        let directory = test.ancestors().nth(2).expect("tests lie two levels below the profile");
        let profile = directory.ends_with("release").then_some("--release");
        let built = Command::new(env!("CARGO"))
            // The selection of `cargo test --workspace`, so that nothing is built twice.
            .args(["build", "--quiet", "--workspace", "--all-targets", "--locked"])
            .args(profile)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .expect("cargo can be run");
        assert!(built.success(), "the binaries do not build");
        directory.to_owned()
    });
    let path = directory.join(name);
    assert!(path.exists(), "there is no {}", path.display());
    path
}
