//! The gRPC service over loopback with mutual TLS.

use bytes::Bytes;
use model::{group::ContentHash, lock::FencingToken};
use prost::Message as _;
use proto::policy_v1::{
    ListRequest, SecurityGroup, StatusRequest, StatusResponse,
    replace_request::{Begin, Commit, Groups, Manifest, Step},
};
use tonic::{Code, Status};

use crate::support::{
    client::{Cell, Talk, begin, decoded, entries, entry, list, list_all, replace},
    process::Program,
    sets::{Set, bound, fenced, global, group, named, replacement, set},
    site::{Client, Served, Site},
    until,
};

pub(crate) async fn status(client: &Client) -> StatusResponse {
    client.clone().status(StatusRequest {}).await.unwrap().into_inner()
}

/// Fails with this code and a message with this prefix.
#[track_caller]
pub(crate) fn assert_status(status: &Status, code: Code, start: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().starts_with(start), "{start} <- {}", status.message());
}

fn guids(groups: &[proto::policy_v1::StoredGroup]) -> Vec<(u64, String)> {
    groups.iter().map(|stored| (stored.id, decoded(stored).guid)).collect()
}

#[tokio::test]
async fn a_set_goes_in_and_comes_out() {
    let served = Served::start().await;
    let (writer, operator) = (served.writer(), served.operator());
    let empty = status(&operator).await;
    assert_eq!((empty.generation, empty.groups, empty.synced_at), (0, 0, None));

    let one = set([global("a", "1"), bound("b", "1", &["s1"]), bound("c", "1", &["s2"])]);
    let write = fenced(&one, "syncer-a", 7);
    let committed = replace(&writer, &write).await.unwrap();
    assert_eq!((committed.generation, committed.added), (1, 3));

    let (generation, groups) = list_all(&operator).await;
    assert_eq!(generation, 1);
    let expected: Vec<SecurityGroup> = one.values().map(|group| (**group).clone().into()).collect();
    let listed: Vec<_> = groups.iter().map(decoded).collect();
    assert_eq!(listed, expected);
    assert_eq!(guids(&groups), [(1, "a".to_owned()), (2, "b".to_owned()), (3, "c".to_owned())]);

    let request = ListRequest {
        space_guids: vec!["s2".to_owned(), "nobody".to_owned()],
        page_size: 1,
        ..ListRequest::default()
    };
    let (_, groups) = list(&operator, request).await.unwrap();
    assert_eq!(guids(&groups), [(1, "a".to_owned()), (3, "c".to_owned())]);

    let full = status(&operator).await;
    assert_eq!((full.generation, full.groups), (1, 3));
    assert_eq!(full.watermark, Some(proto::timestamp(write.watermark)));
    let writer = full.writer.unwrap();
    assert_eq!((writer.owner.as_str(), writer.fencing_token), ("syncer-a", 7));
    assert!(full.synced_at.unwrap().seconds > 1_700_000_000);
    served.stop().await;
}

#[tokio::test]
async fn only_what_changed_travels() {
    let served = Served::start().await;
    let writer = served.writer();
    let mut groups = named(12_000, "1");
    let mut talk = Talk::open(&writer).await.unwrap();
    let missing = talk.promise(&replacement(&groups)).await.unwrap();
    assert_eq!(missing.len(), 12_000, "in several parts");
    talk.deliver(&replacement(&groups), &missing).await;
    assert_eq!(talk.commit().await.unwrap().added, 12_000);

    groups.extend(set([group("g00500", "2")]));
    let write = replacement(&groups);
    let mut talk = Talk::open(&writer).await.unwrap();
    let missing = talk.promise(&write).await.unwrap();
    assert_eq!(missing, ["g00500"]);
    talk.deliver(&write, &missing).await;
    let committed = talk.commit().await.unwrap();
    assert_eq!((committed.changed, committed.unchanged, committed.generation), (1, 11_999, 2));

    let mut talk = Talk::open(&writer).await.unwrap();
    assert_eq!(talk.promise(&write).await.unwrap(), Vec::<String>::new());
    let committed = talk.commit().await.unwrap();
    assert_eq!((committed.unchanged, committed.generation), (12_000, 2));
    served.stop().await;
}

#[tokio::test]
async fn a_manifest_may_come_in_parts() {
    let served = Served::start().await;
    let write = replacement(&named(10, "1"));
    let mut talk = Talk::open(&served.writer()).await.unwrap();
    talk.say(Step::Begin(begin(&write))).await;
    for part in entries(&write).chunks(3) {
        talk.say(Step::Manifest(Manifest { entries: part.to_vec(), last: false })).await;
    }
    talk.say(Step::Manifest(Manifest { entries: Vec::new(), last: true })).await;
    let missing = talk.missing().await.unwrap();
    talk.deliver(&write, &missing).await;
    assert_eq!(talk.commit().await.unwrap().added, 10);
    served.stop().await;
}

#[tokio::test]
async fn a_writer_that_breaks_the_rules_changes_nothing() {
    let served = Served::start().await;
    let writer = served.writer();
    let (one, write) = (group("a", "1"), replacement(&set([group("a", "1")])));
    let begin = || Step::Begin(begin(&write));
    let manifest = |entries| Step::Manifest(Manifest { entries, last: true });
    let good = || manifest(entries(&write));
    let send = |groups: Vec<Bytes>| Step::Groups(Groups { groups });
    let groups = |groups: Vec<SecurityGroup>| {
        send(groups.iter().map(|group| group.encode_to_vec().into()).collect())
    };
    let wire = || SecurityGroup::from(one.clone());
    let hash = one.content_hash();
    let with = |change: fn(&mut Begin)| {
        let mut begin = crate::support::client::begin(&write);
        change(&mut begin);
        Step::Begin(begin)
    };
    let commit = || Step::Commit(Commit {});
    let mut other = wire();
    other.name.push('x');
    let mut nameless = wire();
    nameless.guid.clear();
    let short = ContentHash([0; 32]);
    let mut cut = entry("a", short);
    cut.content_hash.truncate(31);
    for (steps, problem) in [
        (vec![good()], "Manifest came where Begin belongs"),
        (vec![begin(), begin()], "Begin came where Manifest belongs"),
        (vec![begin(), commit()], "Commit came where Manifest belongs"),
        (vec![with(|begin| begin.owner.clear())], "owner: invalid-owner"),
        (vec![with(|begin| begin.watermark = None)], "watermark is missing"),
        (vec![with(|begin| begin.fencing_token = 1 << 63)], "fencing_token: 92233720368547758"),
        (vec![begin(), manifest(vec![cut])], "manifest entry a: content_hash: has 31 bytes, not"),
        (vec![begin(), manifest(vec![entry("", hash)])], "manifest entry: guid: "),
        (
            vec![begin(), manifest(vec![entry("a", hash), entry("a", hash)])],
            "the manifest names group a twice",
        ),
        (vec![begin(), good(), groups(vec![wire(), wire()])], "group a was not asked for"),
        (vec![begin(), good(), groups(vec![other])], "group a has content "),
        (vec![begin(), good(), groups(vec![nameless])], "guid: security group guid is empty"),
        (vec![begin(), good(), send(vec![Bytes::from_static(b"\x0a\x05a")])], "group: failed to"),
        (vec![begin(), good(), good()], "Manifest came where Groups or Commit belongs"),
        (vec![begin(), good(), commit()], "commit before 1 of the missing groups came, such as a"),
    ] {
        let mut talk = Talk::open(&writer).await.unwrap();
        for step in steps {
            talk.say(step).await;
        }
        let error = loop {
            match talk.next_answer().await {
                Ok(_missing) => {}
                Err(error) => break error,
            }
        };
        assert_status(&error, Code::InvalidArgument, problem);
    }
    assert_eq!(list_all(&writer).await, (0, Vec::new()));
    served.stop().await;
}

#[tokio::test]
async fn a_stream_that_breaks_before_commit_changes_nothing() {
    let served = Served::start().await;
    let writer = served.writer();
    replace(&writer, &fenced(&named(3, "1"), "syncer-a", 1)).await.unwrap();
    let before = list_all(&writer).await;
    let write = fenced(&named(3, "2"), "syncer-a", 1);
    // Four may run concurrently; aborted ones released their permits.
    for _ in 0..8 {
        let mut talk = Talk::open(&writer).await.unwrap();
        let missing = talk.promise(&write).await.unwrap();
        talk.deliver(&write, &missing).await;
        drop(talk);
        until("there is room for another", async || {
            let answer = Talk::open(&writer).await;
            answer.is_ok()
        })
        .await;
    }
    assert_eq!(list_all(&writer).await, before);
    replace(&writer, &write).await.unwrap();
    assert_eq!(list_all(&writer).await.0, 2);
    served.stop().await;
}

#[tokio::test]
async fn too_many_at_the_same_time_are_told_so() {
    let served = Served::start().await;
    let writer = served.writer();
    let mut talks = Vec::new();
    for _ in 0..4 {
        talks.push(Talk::open(&writer).await.unwrap());
    }
    let error = Talk::open(&writer).await.err().expect("refused");
    assert_status(&error, Code::ResourceExhausted, "too many Replaces");
    drop(talks);
    served.stop().await;
}

/// Missing groups of 4 MiB fill the window of a stream twice over, so the store blocks
/// on sending its responses, not on waiting for the writer.
#[tokio::test]
async fn writers_that_do_not_read_hold_their_places_for_a_while_only() {
    let site = Site::new();
    let mut config = site.config();
    config["replace_timeout_seconds"] = 2.into();
    let served = Served::start_with(site, &config).await;
    let hash = group("g", "1").content_hash();
    let entries: Vec<_> = (0..100_000).map(|n| entry(&format!("{n:036}"), hash)).collect();
    let stalled = served.writer();
    let mut talks = Vec::new();
    for _ in 0..4 {
        let talk = Talk::open(&stalled).await.unwrap();
        talk.say(Step::Begin(begin(&replacement(&Set::new())))).await;
        talk.say(Step::Manifest(Manifest { entries: entries.clone(), last: true })).await;
        talks.push(talk);
    }
    let write = replacement(&named(3, "1"));
    let prompt = served.writer();
    until("a place among the Replaces", async || replace(&prompt, &write).await.is_ok()).await;
    // The others may still complete in time, now that the responses are read.
    let error = talks[0].missing().await.expect_err("not all of them were told");
    assert_status(&error, Code::DeadlineExceeded, "the Replace took longer than 2 seconds");
    served.stop().await;
}

#[tokio::test]
async fn the_guard_holds_until_it_is_told_otherwise() {
    let served = Served::start().await;
    let writer = served.writer();
    replace(&writer, &replacement(&named(60, "1"))).await.unwrap();
    let mut write = replacement(&Set::new());
    let error = replace(&writer, &write).await.unwrap_err();
    let text = "this would remove 60 of 60 security groups at once, more than half: refused unless";
    assert_status(&error, Code::FailedPrecondition, text);
    assert_eq!(list_all(&writer).await.1.len(), 60);
    write.allow_mass_removal = true;
    assert_eq!(replace(&writer, &write).await.unwrap().removed, 60);
    served.stop().await;
}

/// A syncer reads the status to detect whether it was fenced: the same token and owner
/// mean that it was not.
#[tokio::test]
async fn the_status_names_a_writer_that_the_guard_refused() {
    let served = Served::start().await;
    let (writer, mut operator) = (served.writer(), served.operator());
    replace(&writer, &fenced(&named(60, "1"), "syncer-a", 4)).await.unwrap();
    let before = operator.status(StatusRequest {}).await.unwrap().into_inner();
    let error = replace(&writer, &fenced(&Set::new(), "syncer-b", 5)).await.unwrap_err();
    assert_status(&error, Code::FailedPrecondition, "this would remove 60 of 60");
    let status = operator.status(StatusRequest {}).await.unwrap().into_inner();
    let named_writer = status.writer.clone().unwrap();
    assert_eq!((&*named_writer.owner, named_writer.fencing_token), ("syncer-b", 5));
    let (writer_now, now) = (status.writer.clone(), status.now);
    let refused_removal = status.refused_removal.clone();
    assert_eq!(refused_removal.as_ref().map(|refused| refused.removed), Some(60));
    let expected = StatusResponse { writer: writer_now, now, refused_removal, ..before };
    assert_eq!(status, expected);
    let error = replace(&writer, &fenced(&named(60, "1"), "syncer-a", 4)).await.unwrap_err();
    let text = "fencing token 4 of syncer-a is older than 5 of syncer-b";
    assert_status(&error, Code::FailedPrecondition, text);
    assert_eq!(
        replace(&writer, &fenced(&named(60, "2"), "syncer-b", 5)).await.unwrap().changed,
        60
    );
    served.stop().await;
}

#[tokio::test]
async fn a_list_that_makes_no_sense_says_why() {
    let served = Served::start().await;
    let operator = served.operator();
    let spaces = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    for (request, problem) in [
        (
            ListRequest { all: true, space_guids: spaces(&["s"]), ..ListRequest::default() },
            "space_guids: must be empty when all is set",
        ),
        (
            ListRequest { space_guids: spaces(&["s", ""]), ..ListRequest::default() },
            "space_guids[1]: space guid is empty",
        ),
        (
            ListRequest { page_size: 5001, ..ListRequest::default() },
            "page_size: 5001 is more than 5000",
        ),
        (
            ListRequest { space_guids: vec!["s".to_owned(); 10_001], ..ListRequest::default() },
            "space_guids: has 10001 entries, at most 10000 are allowed",
        ),
    ] {
        let error = list(&operator, request).await.unwrap_err();
        assert_status(&error, Code::InvalidArgument, problem);
    }
    served.stop().await;
}

#[tokio::test]
async fn who_may_not_is_refused() {
    let served = Served::start().await;
    let (writer, operator, cell) = (served.writer(), served.operator(), served.cell("cell-1"));
    let stranger = served.site.client(&served.address, "stranger", None);
    for client in [&operator, &cell, &stranger] {
        let error = Talk::open(client).await.err().expect("may not write");
        assert_status(&error, Code::PermissionDenied, "the peer cn=");
    }
    for client in [&cell, &stranger] {
        let error = client.clone().status(StatusRequest {}).await.unwrap_err();
        assert_status(&error, Code::PermissionDenied, "the peer cn=");
    }
    for (client, name) in [(&stranger, "cn=stranger"), (&cell, "cn=cell-1,ou=cell")] {
        let error = list(client, ListRequest::default()).await.unwrap_err();
        let text = format!("the peer {name} may not list security groups");
        assert_status(&error, Code::PermissionDenied, &text);
    }
    for (client, id) in
        [(&writer, "syncer"), (&operator, "operator"), (&cell, "cell-2"), (&stranger, "stranger")]
    {
        let status = match Cell::try_hello(client, id).await {
            Ok(mut watch) => watch.end().await,
            Err(status) => status,
        };
        assert_status(&status, Code::PermissionDenied, "the peer cn=");
    }
    assert!(status(&operator).await.cells.is_empty(), "a refused cell is none");
    served.stop().await;
}

#[tokio::test]
async fn a_drain_sends_everybody_away_and_keeps_what_was_confirmed() {
    let served = Served::start().await;
    let writer = served.writer();
    replace(&writer, &fenced(&named(3, "1"), "syncer-a", 4)).await.unwrap();
    let mut cells = Vec::new();
    for index in 0..20 {
        let id = format!("cell-{index}");
        let mut cell = Cell::hello(&served.cell(&id), &id, &[]).await;
        cell.until(1).await;
        cells.push(cell);
    }
    let mut talk = Talk::open(&writer).await.unwrap();
    let write = fenced(&named(3, "2"), "syncer-a", 4);
    talk.promise(&write).await.unwrap();
    served.shutdown.cancel();
    for cell in &mut cells {
        assert_status(&cell.end().await, Code::Unavailable, "the store is shutting down");
    }
    let error = talk.next_answer().await.unwrap_err();
    assert_status(&error, Code::Unavailable, "the store is shutting down");
    let site = served.stop().await;
    let served = Served::start_at(site).await;
    let status = status(&served.operator()).await;
    assert_eq!((status.generation, status.groups), (1, 3));
    assert_eq!(status.writer.unwrap().fencing_token, FencingToken(4).0);
    served.stop().await;
}

#[tokio::test]
async fn without_a_certificate_there_is_no_conversation() {
    let site = Site::new();
    let program = Program::start(&site);
    let stranger = Site::new().client(&program.address, "syncer", None);
    let error = stranger.clone().status(StatusRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
}
