//! Properties of database servers only.

use std::sync::Arc;

use jiff::Timestamp;
use model::{generation::Generation, ids::CellId};
use policy_store::{
    groups::decide::Refusal,
    reports::{Report, Unsaved},
    store::Error,
};
use storage::{server::Dialect, testing::TestServer};

use crate::{
    store::{Place, groups, load, refusal, replace},
    support::sets::{fenced, group, named, replacement, set},
};

/// An older report that is written later is ignored.
#[tokio::test]
async fn the_later_word_of_a_cell_counts() {
    for place in Place::servers() {
        let store = place.open().await;
        let cell = CellId::parse("c1").unwrap();
        let report = |enforced, second: i64| Report {
            enforced: Generation(enforced),
            containers: 1,
            isolated_rules: 0,
            at: Timestamp::from_second(second).unwrap(),
        };
        for (enforced, second) in [(4, 20), (3, 10)] {
            let reports = vec![(cell.clone(), report(enforced, second))];
            let unsaved = Arc::new(Unsaved { reports, forgotten: Vec::new() });
            store.save_reports(unsaved).await.unwrap();
        }
        assert_eq!(load(&*store).await.reports, [(cell, report(4, 20))]);
    }
}

/// MariaDB limits statements to 16 MiB: the error names a group that exceeds them.
#[tokio::test]
async fn a_group_that_is_too_large_for_the_database_is_named() {
    let place = Place::Server(TestServer::shared(Dialect::MySql).database());
    let store = place.open().await;
    let large = |bytes: usize| {
        let mut one = group("large", "1");
        one.rules[0].description = "x".repeat(bytes);
        set([one, group("small", "1")])
    };
    let fits = large(15 << 20);
    replace(&*store, replacement(&fits)).await.unwrap();
    assert_eq!(groups(&load(&*store).await), fits);
    let error = replace(&*store, replacement(&large(16 << 20))).await.unwrap_err();
    let Error::TooLarge { guid, bytes, most } = &error else { panic!("{error:?}") };
    assert_eq!(guid.as_str(), "large");
    assert!(bytes > most, "{error}");
    assert_eq!(groups(&load(&*store).await), fits, "nothing is changed");
}

/// The database restarts: confirmed changes are durable, and clients need not reopen
/// the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_killed_comes_back_whole() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let server = TestServer::start(dialect);
        let place = Place::Server(server.database());
        let store = place.open().await;
        replace(&*store, fenced(&named(100, "1"), "a", 5)).await.unwrap();
        let before = load(&*store).await;
        server.kill();
        tokio::task::block_in_place(|| server.restart());
        assert_eq!(load(&*store).await, before, "{dialect:?}");
        let late = refusal(replace(&*store, fenced(&named(100, "2"), "b", 4)).await);
        assert!(matches!(late, Refusal::OldToken { .. }), "{late}");
        replace(&*store, fenced(&named(100, "2"), "a", 5)).await.unwrap();
        assert_eq!(groups(&load(&*store).await), named(100, "2"));
    }
}
