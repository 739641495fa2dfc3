//! Which crate may depend on which: docs/architecture.md's table, enforced.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::MetadataCommand;

const SERVICES: [&str; 4] = ["lock-server", "syncer", "policy-store", "cell-agent"];

/// What each crate may depend on; what is not listed is forbidden.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("model", vec![]),
        ("runtime", vec![]),
        ("storage", vec![]),
        ("proto", vec!["model"]),
        ("lock-server", vec!["model", "proto", "runtime", "storage"]),
        ("policy-store", vec!["model", "proto", "runtime", "storage"]),
        ("syncer", vec!["model", "proto", "runtime"]),
        ("cell-agent", vec!["model", "proto", "runtime"]),
        ("ctl", vec!["model", "proto", "runtime"]),
        ("dev", vec!["model", "proto", "runtime"]),
    ])
}

/// The edges between our crates, of every kind: normal, build and dev.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    let ours: BTreeSet<_> =
        metadata.packages.iter().map(|package| package.name.to_string()).collect();
    metadata
        .packages
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
