//! Fuzz test of the metadata store.

use std::sync::Arc;

use fuzz::{Fuzz, Language};

use super::*;
use crate::plan::{Known, Refused, plan, test_settings};

/// Each entry is a container, or a problem that names it; a container that is added with an
/// address of its own is the same beside any other entries.
#[test]
fn fuzz_metadata_store() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "metadata", Language::Json).longest(8_192);
    let fuzz = fuzz.tokens(&[
        "handle",
        "ip",
        "metadata",
        "policy_group_id",
        "space_id",
        "app_id",
        "container_workload",
        "app",
        "staging",
        "task",
        "log_config",
        "10.255.0.1",
        "10.255.0.1/24",
        "::ffff:10.0.0.1",
        "fd00::1",
        "127.0.0.1",
        "0.0.0.0",
        "c1",
        "c2",
        "s1",
        "ipv6",
    ]);
    let own = r#"{"ip":"10.254.7.7","metadata":{"policy_group_id":"p","space_id":"s"}}"#;
    let own: Value = serde_json::from_str(own).unwrap();
    let handle = ContainerHandle::parse("own-handle").unwrap();
    fuzz.expects(&["ok", "error"]).run(|input| {
        let snapshot = match Snapshot::parse(input) {
            Ok(snapshot) => snapshot,
            Err(error) => return format!("error: {error}"),
        };
        let known = Known::default();
        let ruleset = plan(&test_settings(), &snapshot, &known, &Refused::default());
        assert_eq!(ruleset.containers.len(), snapshot.containers.len());
        let mut values = serde_json::Deserializer::from_slice(input).into_iter::<Value>();
        let mut entries = match values.next() {
            Some(Ok(Value::Object(entries))) => entries,
            _ => Map::new(),
        };
        assert!(entries.len() <= snapshot.containers.len() + snapshot.problems.len());
        for container in snapshot.containers.values() {
            let address = container.address.as_ref().ok();
            assert!(address.is_none_or(|address| snapshot.claimed.contains(address)));
        }
        let address: IpAddr = "10.254.7.7".parse().unwrap();
        if !snapshot.claimed.contains(&address) && !snapshot.containers.contains_key(&handle) {
            entries.insert(handle.as_str().to_owned(), own.clone());
            let text = Value::Object(entries).to_string();
            let with = Snapshot::parse(text.as_bytes()).unwrap();
            assert_eq!(
                with.containers[&handle],
                Container::read(handle.clone(), own.as_object().unwrap())
            );
            assert_eq!(with.containers.len(), snapshot.containers.len() + 1);
        }
        let problem = snapshot.problems.first().cloned().unwrap_or_default();
        let _shared = Arc::new(ruleset);
        format!("ok, {} containers {problem}", snapshot.containers.len())
    });
}
