//! Enforces the table of crate dependencies in docs/architecture.md.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{MetadataCommand, Package};

const SERVICES: [&str; 4] = ["lock-server", "syncer", "policy-store", "cell-agent"];

/// The allowed dependencies of each crate.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("model", vec![]),
        ("net", vec![]),
        ("trust", vec![]),
        ("runtime", vec!["fuzz", "net", "trust"]),
        ("storage", vec!["net", "trust"]),
        ("proto", vec!["model"]),
        ("lock-server", vec!["fuzz", "model", "proto", "runtime", "storage"]),
        ("policy-store", vec!["fuzz", "model", "proto", "runtime", "storage"]),
        ("syncer", vec!["fuzz", "model", "proto", "runtime"]),
        ("cell-agent", vec!["fuzz", "model", "proto", "runtime"]),
        ("ctl", vec!["model", "proto", "runtime"]),
        ("attack", vec!["certificates", "cni", "load", "proto", "runtime"]),
        ("certificates", vec!["runtime"]),
        ("cni", vec!["runtime"]),
        ("cloud-controller", vec!["certificates", "model", "runtime"]),
        ("chaos", vec!["certificates", "cluster", "cni", "proto", "runtime", "storage", "swap"]),
        ("cluster", vec!["certificates", "cni", "runtime"]),
        ("load", vec!["certificates", "cni", "model", "proto", "runtime", "storage"]),
        ("originals", vec!["proto", "runtime"]),
        (
            "swap",
            vec!["certificates", "cluster", "cni", "originals", "proto", "runtime", "storage"],
        ),
        ("fuzz", vec![]),
        (
            "dev",
            vec![
                "attack",
                "chaos",
                "cloud-controller",
                "cluster",
                "cni",
                "load",
                "originals",
                "swap",
            ],
        ),
    ])
}

/// Our crates.
pub(crate) fn packages() -> Vec<Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec();
    metadata.expect("cargo metadata runs").packages
}

/// The edges between our crates, of every kind: normal, build and dev.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let packages = packages();
    let ours: BTreeSet<_> = packages.iter().map(|package| package.name.to_string()).collect();
    packages
        .iter()
        .map(|package| {
            let dependencies = package
                .dependencies
                .iter()
                .map(|dependency| dependency.name.clone())
                // A crate may ask for its own testing feature.
                .filter(|name| ours.contains(name) && **name != **package.name)
                .collect();
            (package.name.to_string(), dependencies)
        })
        .collect()
}

#[test]
fn every_edge_between_our_crates_is_listed() {
    let allowed = allowed();
    let edges = edges();
    for (from, dependencies) in edges.iter().filter(|(from, _)| *from != "integration-tests") {
        let may = allowed.get(from.as_str()).unwrap_or_else(|| panic!("{from} is in no rule"));
        for to in dependencies {
            assert!(may.contains(&to.as_str()), "{from} must not depend on {to}");
        }
    }
    for name in allowed.keys() {
        assert!(edges.contains_key(*name), "there is a rule for {name}, which is no crate");
    }
}

#[test]
fn no_service_depends_on_a_service() {
    for (from, dependencies) in edges() {
        let services = SERVICES.iter().filter(|service| dependencies.contains(**service));
        assert!(from == "integration-tests" || services.count() == 0, "{from} uses a service");
    }
}

/// External JSON is parsed with `runtime::json`, which rejects a list where a struct is
/// expected; serde_json accepts it.
#[test]
fn services_read_json_by_runtime_json() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    let mut folders: Vec<_> = SERVICES.iter().map(|name| root.join(name).join("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                if code.contains("serde_json::from_") {
                    found.push(name);
                }
            }
        }
    }
    assert_eq!(found, [""; 0], "use runtime::json instead of serde_json::from_*");
}
