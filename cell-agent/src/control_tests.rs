use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    containers::StoreFile,
    metrics::Times,
    plan::{Planned, Ruleset},
};

#[test]
fn the_handle_is_the_first_parameter_of_that_name() {
    for (query, handle) in [
        ("container=c1", Some("c1")),
        ("a=b&container=c1&container=c2", Some("c1")),
        ("container=check-%31%2Ba+b", Some("check-1+a b")),
        ("container=%zz&container=c1", Some("c1")),
        ("%63ontainer=c1", Some("c1")),
        ("container=c1;a", None),
        ("container=%+1", None),
        ("container=&container=c1", None),
        ("", None),
        ("container", None),
        ("container=", None),
        ("containers=c1", None),
        ("container=%zz", None),
        ("container=%e", None),
        ("container=%ff", None),
    ] {
        assert_eq!(container(query).as_deref(), handle, "{query}");
    }
}

/// A failure from before the container's entry does not end the wait: the next attempt
/// decides.
#[tokio::test]
async fn an_older_failure_is_not_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store.json");
    let (containers, follower) =
        Feed::open(StoreFile::new(&store, Duration::from_secs(2)), Times::default()).await;
    let config = runtime::config::parse::<crate::config::Config>(
        r#"{"policy_server_url": "https://127.0.0.1:4003", "cni_datastore_path": "store.json",
            "ca_cert_file": "a", "client_cert_file": "b", "client_key_file": "c"}"#,
    );
    let settings = Arc::new(config.unwrap().config.settings);
    let mut first = Enforced::nothing(Arc::new(Ruleset::empty(settings)));
    first.attempted = containers.latest().borrow().reading;
    first.error = Some("somebody held the lock".to_owned());
    let (published, enforced) = watch::channel(Arc::new(first.clone()));
    let (_known, groups) = watch::channel(None);
    let (nudge, _nudges) = mpsc::channel(1);
    let cell = Cell {
        containers: containers.clone(),
        groups,
        refresh: Refresh::pushed(),
        enforced,
        nudge,
        beside_plugin: false,
        timeout: Duration::from_secs(20),
    };
    let shutdown = CancellationToken::new();
    let following = follower.run(shutdown.clone());
    let attempting = async {
        let entry = r#"{"c1": {"handle": "c1", "ip": "10.255.1.1"}}"#;
        std::fs::write(&store, entry).unwrap();
        let answer = cell.update("c1");
        let attempt = async {
            let mut latest = containers.latest();
            let reading =
                latest.wait_for(|read| !read.snapshot.containers.is_empty()).await.unwrap().reading;
            let handle = ContainerHandle::parse("c1").unwrap();
            let assignment = Assignment::Ungrouped("it says nothing".to_owned());
            let mut ruleset = (*first.ruleset).clone();
            ruleset.containers.insert(
                handle,
                Planned { address: None, more: std::collections::BTreeSet::new(), assignment },
            );
            let ruleset = Arc::new(ruleset);
            let mended = Enforced { attempted: reading, reading, ruleset, error: None, ..first };
            tokio::task::yield_now().await;
            published.send_replace(Arc::new(mended));
        };
        let (answer, ()) = tokio::join!(answer, attempt);
        shutdown.cancel();
        answer
    };
    let (followed, answer) = tokio::join!(following, attempting);
    followed.unwrap();
    assert_eq!(answer, Ok(()));
}
