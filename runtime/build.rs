//! Lists the third-party crates for the log layer: the packages to which Cargo.lock gives a source.

use std::{collections::BTreeSet, env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let lock = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(&lock)
        .map_err(|error| format!("reading {}: {error}", lock.display()))?;
    let packages = text.split("[[package]]").filter(|package| package.contains("\nsource = "));
    let names: BTreeSet<String> = packages
        .filter_map(|package| package.lines().find_map(|line| line.strip_prefix("name = ")))
        .map(|name| name.trim_matches('"').replace('-', "_"))
        .collect();
    let out = PathBuf::from(env::var("OUT_DIR")?).join("third_party.rs");
    Ok(fs::write(out, format!("&{names:?}").replace('{', "[").replace('}', "]"))?)
}
