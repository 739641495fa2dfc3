//! Lists that are incomplete, endless, or redirected.

use std::{sync::Arc, time::Duration};

use model::ids::GroupGuid;
use runtime::lager::{self, Level};
use serde_json::{Value, json};
use syncer::{
    cloud_controller::listing::Moved,
    manifest::{ListSnapshot, StoreHashes},
};
use tokio::time::sleep;

use crate::support::{
    cloud::{ANY_PAGE, Cloud, EARLY, LATE, Reply, STAMP, counted, group, page, stamp},
    data_of,
    leader::Leader,
    log_options,
    store::PolicyStoreTwin,
    until,
};

fn many(count: usize) -> Vec<Value> {
    (0..count).map(|number| group(&format!("g{number:05}"), "10.0.0.1")).collect()
}

/// Two pages; the first one is full.
fn two_pages(cloud: &Cloud, list: &[Value]) {
    let (first, second) = list.split_at(5_000);
    cloud.on(&page(1), [counted(first, true, list.len(), 2)]);
    cloud.on(&page(2), [counted(second, false, list.len(), 2)]);
}

async fn first_error(log: &lager::Capture, store: &PolicyStoreTwin) -> String {
    let failed = || data_of(log, "asg-sync-cycle");
    until("an error, or a write", || !failed().is_empty() || store.writes().len() > 1).await;
    match failed().first() {
        Some(line) => line["error"].as_str().unwrap().to_owned(),
        None => {
            let kept = store.with(|state| state.groups.len());
            panic!("no error; the store holds {kept} groups")
        }
    }
}

#[tokio::test]
async fn a_truncated_list_removes_nothing() {
    let list = many(7_500);
    let (first, second) = list.split_at(5_000);
    type Script<'a> = &'a dyn Fn(&Cloud);
    let cut: [(&str, Script<'_>); 3] = [
        ("page 1 without next", &|cloud| cloud.on(&page(1), [counted(first, false, 7_500, 2)])),
        ("an empty page 2", &|cloud| cloud.on(&page(2), [counted(&[], false, 7_500, 2)])),
        ("page 2 without one", &|cloud| {
            cloud.on(&page(2), [counted(&second[1..], false, 7_500, 2)]);
        }),
    ];
    for (name, cut) in cut {
        let (log, _control, _guard) = lager::capture(log_options(Level::Info));
        let cloud = Cloud::start().await;
        let store = PolicyStoreTwin::start().await;
        two_pages(&cloud, &list);
        cloud.on(STAMP, [stamp(EARLY)]);
        let _leader = Leader::start(cloud.client(), store.client("me"), 1);
        until("the first write", || store.writes().len() == 1).await;
        cut(&cloud);
        cloud.on(STAMP, [stamp(LATE)]);
        let error = first_error(&log, &store).await;
        assert!(error.contains("pagination.total_results says 7500"), "{name}: {error}");
        assert_eq!(store.with(|state| state.groups.len()), 7_500, "{name}");
        // The watermark is unchanged, so the next complete list is applied.
        two_pages(&cloud, &list);
        until("a whole list", || store.writes().len() == 2).await;
    }
}

/// A group deleted between two pages without a new stamp (API v2) moves another group
/// from the second page to the first.
#[tokio::test]
async fn a_total_that_changes_between_two_pages_is_another_list() {
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    let list = many(4);
    cloud.on(STAMP, [stamp(EARLY)]);
    let second = [counted(&list[3..], false, 3, 2), counted(&list[2..], false, 4, 2)];
    cloud.on(&page(1), [counted(&list[..2], true, 4, 2)]);
    cloud.on(&page(2), second);
    let _leader = Leader::start(cloud.client(), store.client("me"), 1);
    until("a write", || !store.writes().is_empty()).await;
    assert_eq!(store.writes()[0].guids.len(), 4);
    assert_eq!(cloud.count(&page(1)), 2, "read again");
}

/// The number of requests in two seconds is bounded, and the cause is logged.
#[tokio::test]
async fn a_next_without_end_is_an_error() {
    let one = many(1);
    let endless = [
        ("as many pages as it says", counted(&one, true, 1, 1), "pagination.total_pages is 1"),
        (
            "no new group",
            Reply::json(&json!({"pagination": {"next": {"href": "x"}}, "resources": one})),
            "page 2 has no other security group",
        ),
    ];
    for (name, reply, expected) in endless {
        let (log, _control, _guard) = lager::capture(log_options(Level::Info));
        let cloud = Cloud::start().await;
        let store = PolicyStoreTwin::start().await;
        cloud.on(STAMP, [stamp(EARLY)]);
        cloud.on(ANY_PAGE, [reply]);
        let _leader = Leader::start(cloud.client(), store.client("me"), 1);
        sleep(Duration::from_secs(2)).await;
        let pages = cloud.lines().iter().filter(|line| line.starts_with(ANY_PAGE)).count();
        assert!(pages <= 30, "{name}: {pages} pages");
        let error = first_error(&log, &store).await;
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(store.writes(), []);
    }
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_host_only() {
    let cloud = Cloud::start().await;
    let elsewhere = Cloud::start().await;
    cloud.on(STAMP, [stamp(EARLY)]);
    let moved = |to: &str| Reply::text(302, "").header("location", to);
    for to in ["/moved", &format!("{}/moved", cloud.url)] {
        cloud.on(&page(1), [moved(to)]);
        cloud.on("GET /moved", [counted(&many(2), false, 2, 1)]);
        let reading = cloud.client().list(&Default::default(), Moved::Refused).await;
        assert_eq!(reading.map(|reading| reading.count()).map_err(|err| chain(&err)), Ok(2));
        let last = cloud.calls().into_iter().rfind(|call| call.line == "GET /moved").unwrap();
        assert_eq!(last.headers["authorization"], "bearer t1");
    }
    cloud.on(&page(1), [moved(&format!("{}/moved", elsewhere.url))]);
    let error = chain(&cloud.client().list(&Default::default(), Moved::Refused).await.unwrap_err());
    let sentence = format!("http status 302: redirects to {}", elsewhere.url);
    assert!(error.contains(&sentence), "{error}");
    assert_eq!(elsewhere.lines(), [""; 0], "no call, and so no token");

    cloud.on("GET /moved", [moved("/moved")]);
    cloud.on(&page(1), [moved("/moved")]);
    let error = chain(&cloud.client().list(&Default::default(), Moved::Refused).await.unwrap_err());
    assert!(error.contains("more than 5 redirects"), "{error}");
}

/// Nothing is removed because the Cloud Controller ignores the guids of a request.
#[tokio::test]
async fn a_list_is_completed_only_with_the_requested_groups() {
    let cloud = Cloud::start().await;
    let list = many(2);
    cloud.on(STAMP, [EARLY, LATE].map(stamp));
    cloud.on(&page(1), [counted(&list[..1], false, 1, 1)]);
    let mut held = ListSnapshot::new(false);
    let all = json!({ "resources": list });
    held.page(all.to_string().as_bytes(), &StoreHashes::new()).unwrap();
    let held = Arc::new(held.into_manifest(&StoreHashes::new()).into_held());
    let client = cloud.client();
    let listed = async || client.list(&held, Moved::Accepted).await.unwrap();
    cloud.on(ANY_PAGE, [counted(&list[..1], false, 1, 1)]);
    let error = client.complete(listed().await, &held).await.unwrap_err();
    assert_eq!(
        chain(&error),
        "getting the security groups: the list is incomplete: pagination.total_results says 1, \
         the pages had 0"
    );
    cloud.on(ANY_PAGE, [counted(&list[1..], false, 1, 1)]);
    assert_eq!(client.complete(listed().await, &held).await.unwrap().count(), 2);
    cloud.on(ANY_PAGE, [counted(&[], false, 0, 1)]);
    assert_eq!(client.complete(listed().await, &held).await.unwrap().count(), 1);
    // A comma in a guid does not separate two guids.
    let mut held = StoreHashes::clone(&held);
    let hash = held[&GroupGuid::parse("g00000").unwrap()];
    held.insert(GroupGuid::parse("g,1").unwrap(), hash);
    client.complete(listed().await, &Arc::new(held)).await.unwrap();
    let asked = "GET /v3/security_groups?per_page=2&guids=g%252C1%2Cg00001";
    assert_eq!(cloud.lines().last().map(String::as_str), Some(asked));
}

fn chain(error: &syncer::cloud_controller::Error) -> String {
    runtime::error::chain(error)
}
