//! Tokens from UAA that the Cloud Controller rejects, or accepts for only a part of the
//! list.

use runtime::lager::{self, Level};
use serde_json::{Value, json};

use crate::support::{
    cloud::{Cloud, EARLY, LATE, Reply, STAMP, TOKEN, counted, group, page, stamp, token},
    data_of,
    leader::Leader,
    log_options,
    store::PolicyStoreTwin,
    until,
};

fn list(count: usize) -> Reply {
    let groups: Vec<Value> =
        (0..count).map(|number| group(&format!("g{number:03}"), "10.0.0.1")).collect();
    counted(&groups, false, count, 1)
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced() {
    for code in [401, 403] {
        let cloud = Cloud::start().await;
        let store = PolicyStoreTwin::start().await;
        cloud.on(TOKEN, [token("bad"), token("good")]);
        cloud.on(STAMP, [stamp(EARLY)]);
        cloud.on(&page(1), [Reply::text(code, "{}"), list(3)]);
        let _leader = Leader::start(cloud.client(), store.client("me"), 1);
        until("a write", || !store.writes().is_empty()).await;
        assert_eq!(cloud.count(TOKEN), 2, "{code}");
        let with = |call: &&crate::support::cloud::Call| call.line == page(1);
        let last = cloud.calls().iter().rfind(with).unwrap().headers["authorization"].clone();
        assert_eq!(last, "bearer good", "{code}");
    }
}

#[tokio::test]
async fn a_token_that_no_header_can_have_is_an_error_and_not_kept() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Debug));
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    cloud.on(TOKEN, [token("se\r\ncret"), token("good")]);
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [list(3)]);
    let _leader = Leader::start(cloud.client(), store.client("me"), 1);
    until("a write", || !store.writes().is_empty()).await;
    assert_eq!(
        data_of(&log, "asg-sync-cycle")[0]["error"],
        "getting a token from uaa: the access_token of uaa has byte 0x0d at position 3, \
         which is not allowed in a header"
    );
    assert_eq!(cloud.count(TOKEN), 2);
    assert!(!log.text().contains("cret"), "{}", log.text());
}

/// A token with fewer authorities gets a part of the list, with a matching total.
#[tokio::test]
async fn a_list_that_shrank_is_read_again_with_a_new_token() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    cloud.on(TOKEN, [token("t1"), token("t2")]);
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [list(20)]);
    let mut leader = Leader::start(cloud.client(), store.client("me"), 1);
    until("a write", || store.writes().len() == 1).await;
    cloud.on(&page(1), [list(4), list(20)]);
    cloud.on(STAMP, [stamp(LATE)]);
    until("another write", || store.writes().len() == 2).await;
    assert_eq!(store.with(|state| state.groups.len()), 20);
    assert_eq!(cloud.count(TOKEN), 2);
    assert_eq!(data_of(&log, "reading-shorter-list-again"), [json!({"count": 4, "before": 20})]);
    // A new term does not know the content of the store, and reads the number of groups.
    cloud.on(&page(1), [list(4), list(20)]);
    leader.begin_term(2);
    until("another write", || store.writes().len() == 3).await;
    assert_eq!(store.with(|state| state.groups.len()), 20);
    // A list that is read twice with the same result is accepted.
    cloud.on(&page(1), [list(12)]);
    cloud.on(STAMP, [stamp(EARLY)]);
    until("another write", || store.writes().len() == 4).await;
    assert_eq!(store.with(|state| state.groups.len()), 12);
}
