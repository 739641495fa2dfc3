//! History and Difference over gRPC, and their records across a restart.

use proto::policy_v1::{
    DifferenceRequest, DifferenceResponse, HistoryEntry, HistoryRequest, SecurityGroup,
    history_entry::Entry,
};
use serde_json::json;
use tonic::Code;

use crate::{
    grpc::assert_status,
    support::{
        client::{Cell, replace},
        sets::{Set, bound, fenced, group, named, set},
        site::{Foundation, Served, Site},
        until,
    },
};

async fn history(client: &Foundation, request: HistoryRequest) -> Vec<HistoryEntry> {
    client.clone().history(request).await.unwrap().into_inner().entries
}

async fn all(client: &Foundation) -> Vec<HistoryEntry> {
    history(client, HistoryRequest::default()).await
}

fn change(entry: &HistoryEntry) -> &proto::policy_v1::Change {
    match entry.entry.as_ref().unwrap() {
        Entry::Change(change) => change,
        Entry::Decision(decision) => panic!("{decision:?}"),
    }
}

fn generations(entries: &[HistoryEntry]) -> Vec<u64> {
    entries.iter().map(|entry| change(entry).generation).collect()
}

fn between(from_generation: u64, to_generation: u64) -> DifferenceRequest {
    DifferenceRequest { from_generation, to_generation, page_size: 0, page_token: 0 }
}

/// Names before and after; empty where the group did not exist.
fn names(answer: &DifferenceResponse) -> Vec<(u64, String, String)> {
    let name = |encoded: &Vec<u8>| match encoded.is_empty() {
        true => String::new(),
        false => {
            let group = proto::decode_group(encoded.clone().into()).unwrap();
            let SecurityGroup { name, .. } = group;
            name
        }
    };
    let groups = answer.groups.iter();
    groups.map(|group| (group.id, name(&group.before), name(&group.after))).collect()
}

fn row(id: u64, before: &str, after: &str) -> (u64, String, String) {
    (id, before.to_owned(), after.to_owned())
}

/// Four generations; a cell enforces the second at once, and nothing else.
async fn written(served: &Served) {
    let writer = served.writer();
    let write = async |set: &Set| replace(&writer, &fenced(set, "syncer-a", 1)).await.unwrap();
    write(&set([bound("a", "a1", &["s1"]), group("b", "b1")])).await;
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &["s1"]).await;
    cell.until(1).await;
    write(&set([bound("a", "a2", &["s1"]), group("b", "b1"), group("c", "c1")])).await;
    cell.until(2).await;
    cell.report(2).await;
    write(&set([bound("a", "a3", &["s1"]), group("c", "c1")])).await;
    write(&set([bound("a", "a2", &["s1"]), group("c", "c1"), group("b", "b2")])).await;
}

#[tokio::test]
async fn operators_read_what_changed_when() {
    let served = Served::start().await;
    written(&served).await;
    let operator = served.foundation("operator", None);
    until("the cell's time is stored", async || {
        history(&operator, HistoryRequest { generation: 2, ..HistoryRequest::default() }).await[0]
            .progress
            .len()
            == 1
    })
    .await;
    let found = all(&operator).await;
    assert_eq!(generations(&found), [4, 3, 2, 1]);
    let second = change(&found[2]);
    assert_eq!((second.added, second.changed, second.removed), (1, 1, 0));
    assert_eq!((second.owner.as_str(), second.cells, second.cells_enforced), ("syncer-a", 1, 1));
    assert!(second.slowest.is_some() && second.committed_at.is_some());
    assert_eq!(second.groups.len(), 2);
    assert_eq!((change(&found[3]).added, change(&found[3]).groups.len()), (2, 0));
    let of_b = HistoryRequest { group: "b".to_owned(), ..HistoryRequest::default() };
    assert_eq!(generations(&history(&operator, of_b).await), [4, 3]);

    let mut request = HistoryRequest { page_size: 3, ..HistoryRequest::default() };
    let first = operator.clone().history(request.clone()).await.unwrap().into_inner();
    assert_eq!(generations(&first.entries), [4, 3, 2]);
    request.page_token = first.next_page_token;
    let last = operator.clone().history(request.clone()).await.unwrap().into_inner();
    assert_eq!((generations(&last.entries), last.next_page_token), (vec![1], 0));

    request.page_size = 1_001;
    let refused = operator.clone().history(request).await.unwrap_err();
    assert_status(&refused, Code::InvalidArgument, "page_size: 1001 is more than 1000");
    let denied = served.foundation("cell-1", Some("cell"));
    let refused = denied.clone().history(HistoryRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    differences(&operator).await;

    // A graceful stop stores what is known of unfinished generations; the rest is there anyway.
    let site = served.stop().await;
    let served = Served::start_at(site).await;
    let operator = served.foundation("operator", None);
    let again = all(&operator).await;
    assert_eq!(generations(&again), [4, 3, 2, 1]);
    assert_eq!(again[2], found[2]);
    assert_eq!((change(&again[0]).cells, change(&again[0]).cells_enforced), (1, 0));
    differences(&operator).await;
    served.stop().await;
}

async fn differences(operator: &Foundation) {
    let ask = async |request| operator.clone().difference(request).await;
    let found = ask(between(1, 4)).await.unwrap().into_inner();
    let expected = [row(1, "a1", "a2"), row(2, "b1", ""), row(3, "", "c1"), row(4, "", "b2")];
    assert_eq!(names(&found), expected);
    let found = ask(between(4, 1)).await.unwrap().into_inner();
    assert_eq!(names(&found)[0], row(1, "a2", "a1"), "also backwards");
    let found = ask(between(2, 3)).await.unwrap().into_inner();
    assert_eq!(names(&found), [row(1, "a2", "a3"), row(2, "b1", "")]);
    // What changed and changed back is no difference.
    let found = ask(between(2, 4)).await.unwrap().into_inner();
    assert_eq!(names(&found), [row(2, "b1", ""), row(4, "", "b2")]);
    assert_eq!(ask(between(3, 3)).await.unwrap().into_inner().groups, []);
    let (mut paged, mut request) =
        (Vec::new(), DifferenceRequest { page_size: 3, ..between(1, 4) });
    loop {
        let page = ask(request).await.unwrap().into_inner();
        paged.extend(names(&page));
        match page.next_page_token {
            0 => break,
            next => request.page_token = next,
        }
    }
    assert_eq!(paged, expected);
    for (request, code, problem) in [
        (between(0, 1), Code::InvalidArgument, "from_generation: missing"),
        (between(1, 5), Code::NotFound, "to_generation: the store does not remember"),
    ] {
        assert_status(&ask(request).await.unwrap_err(), code, problem);
    }
}

/// The limits of the configuration apply while the store runs, beside Replaces.
#[tokio::test(start_paused = true)]
async fn old_entries_are_dropped_while_the_store_runs() {
    use std::{sync::Arc, time::Duration};

    use jiff::Timestamp;
    use model::generation::{Generation, Point, Stamp};
    use policy_store::{
        config::History,
        feed::changes::Changes,
        groups::{archive::Query, current::SnapshotPublisher, decide::Held, snapshot::Snapshot},
        store::{Contents, Store as _, testing::Memory},
        upkeep::Upkeep,
    };
    use tokio_util::sync::CancellationToken;

    let store = Memory::default();
    for round in 0..5 {
        let write = crate::support::sets::replacement(&named(2, &round.to_string()));
        store.replace(Arc::new(write)).await.unwrap();
    }
    let point = Point { generation: Generation(3), stamp: Stamp(0) };
    let held = Held {
        point,
        reason: "release".into(),
        by: "cn=ann".into(),
        since: Timestamp::UNIX_EPOCH,
        until: None,
    };
    let mut contents = Contents::default();
    contents.state.held = Some(held);
    let frozen = Snapshot::from(contents);
    let board = SnapshotPublisher::new(frozen, tokio::time::Instant::now());
    let stop = CancellationToken::new();
    let upkeep = Upkeep {
        store: Arc::new(store.clone()),
        board: Arc::new(board),
        changes: Changes::default(),
        limits: History { time: Duration::MAX, size: 1 },
    };
    let left = async || {
        let all = Query { before: None, generation: None, group: None, size: 100 };
        store.history().entries(all).await.unwrap().len()
    };
    let running = upkeep.run(stop.clone());
    let look = async {
        assert_eq!(left().await, 5);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(left().await, 3, "the kept generation and later ones");
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, look);
    ended.unwrap();
}

#[test]
fn the_limits_are_configured() {
    let site = Site::new();
    let parse = |key: &str, value: serde_json::Value| {
        let mut config = site.config();
        config[key] = value;
        let parsed = runtime::config::parse::<policy_store::config::Config>(&config.to_string());
        parsed.map(|parsed| parsed.config.history)
    };
    let history = parse("history_days", json!(7)).unwrap();
    assert_eq!((history.time.as_secs(), history.size), (7 * 86_400, 1 << 30));
    assert_eq!(parse("history_size", json!(1000)).unwrap().size, 1000);
    for key in ["history_days", "history_size"] {
        let problem = parse(key, json!(0)).unwrap_err();
        assert!(format!("{problem:?}").contains(key), "{problem:?}");
    }
}
