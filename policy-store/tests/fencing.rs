//! Fencing tokens of writers (law 3).

use std::sync::Arc;

use tonic::Code;

use crate::{
    grpc::{assert_status, status},
    support::{
        client::{Cell, Talk, decoded, list_all, replace},
        sets::{fenced, named, replacement},
        site::{Served, Site},
    },
};

#[tokio::test]
async fn an_old_leader_is_refused() {
    let served = Served::start().await;
    let writer = served.writer();
    // The old leader is paused in the middle of its Replace.
    let old = fenced(&named(3, "old"), "syncer-a", 1);
    let mut paused = Talk::open(&writer).await.unwrap();
    let missing = paused.promise(&old).await.unwrap();
    paused.deliver(&old, &missing).await;
    replace(&writer, &fenced(&named(3, "new"), "syncer-b", 2)).await.unwrap();
    let before = list_all(&writer).await;
    let error = paused.commit().await.unwrap_err();
    let text = "fencing token 1 of syncer-a is older than 2 of syncer-b";
    assert_status(&error, Code::FailedPrecondition, text);
    let error = replace(&writer, &fenced(&named(3, "x"), "syncer-c", 2)).await.unwrap_err();
    let text = "fencing token 2 is the one of syncer-b, not of syncer-c";
    assert_status(&error, Code::FailedPrecondition, text);
    assert_eq!(list_all(&writer).await, before);
    served.stop().await;
}

#[tokio::test]
async fn a_replace_that_was_overtaken_starts_again() {
    let served = Served::start().await;
    let writer = served.writer();
    replace(&writer, &replacement(&named(3, "1"))).await.unwrap();
    let again = replacement(&named(3, "1"));
    let mut slow = Talk::open(&writer).await.unwrap();
    assert!(slow.promise(&again).await.unwrap().is_empty());
    replace(&writer, &replacement(&named(3, "2"))).await.unwrap();
    let error = slow.commit().await.unwrap_err();
    assert_status(&error, Code::Aborted, "another Replace came first: 3 groups are missing now");
    assert_eq!(replace(&writer, &again).await.unwrap().changed, 3);
    served.stop().await;
}

/// Concurrent writers over gRPC: the set of the newest token wins, and no reader sees an
/// older writer's set after a newer one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_are_fenced() {
    let served = Served::start().await;
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    let mut racing = tokio::task::JoinSet::new();
    for token in 1..=4u64 {
        let writer = served.writer();
        racing.spawn(async move {
            for round in 0..10u64 {
                let name = format!("{token:03}-{round:03}");
                let mut write = fenced(&named(5, &name), &format!("w{token}"), token);
                let manifest = &mut write.supplied;
                let everybody = named(5, &name).into_iter().map(|(guid, mut group)| {
                    Arc::make_mut(&mut group).running.everywhere = true;
                    (guid, group)
                });
                *manifest = replacement(&everybody.collect()).supplied;
                match replace(&writer, &write).await {
                    Ok(_) => {}
                    Err(status) if status.code() == Code::FailedPrecondition => {}
                    Err(status) if status.code() == Code::Aborted => {}
                    Err(status) => panic!("{status:?}"),
                }
            }
        });
    }
    racing.join_all().await;
    let (generation, groups) = list_all(&served.writer()).await;
    let newest = "004-009";
    assert!(groups.iter().all(|stored| decoded(stored).name == newest));
    let mut last = String::new();
    while cell.mirror.generation < generation {
        cell.whole().await.unwrap();
        let names: Vec<_> =
            cell.mirror.groups.values().map(|stored| decoded(stored).name.clone()).collect();
        assert_eq!(names.len(), 5);
        assert!(names.iter().all(|name| *name == names[0]), "a torn set: {names:?}");
        assert!(names[0] > last, "{} after {last}", names[0]);
        last.clone_from(&names[0]);
    }
    assert_eq!(last, newest);
    served.stop().await;
}

/// A misbehaving writer sends a token that no lock server issued. It would fence all
/// others forever.
#[tokio::test]
async fn a_token_that_no_lock_server_gave_is_refused() {
    let served = Served::start().await;
    let (writer, operator) = (served.writer(), served.operator());
    let last = u64::try_from(i64::MAX).unwrap();
    let start = format!("fencing token {last} of syncer-b is more than 1000000 above the newest");
    let refused = async |from: u64| {
        let write = fenced(&named(3, "b"), "syncer-b", from);
        let error = replace(&writer, &write).await.expect_err("refused");
        assert_status(&error, Code::FailedPrecondition, "fencing token ");
        error
    };
    assert_status(&refused(last).await, Code::FailedPrecondition, &start);
    refused(1_000_001).await;
    // The first token may be that of an old lock server, and a step may be large.
    for token in [1_000_000, 2_000_000] {
        replace(&writer, &fenced(&named(3, "a"), "syncer-a", token)).await.unwrap();
    }
    refused(3_000_001).await;
    refused(last).await;
    // The refused requests have no effect.
    let token = status(&operator).await.writer.unwrap().fencing_token;
    assert_eq!(token, 2_000_000);
    replace(&writer, &fenced(&named(3, "c"), "syncer-c", 2_000_001)).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn the_step_between_tokens_can_be_set() {
    let site = Site::new();
    let mut config = site.config();
    config["max_fencing_token_step"] = 5.into();
    let served = Served::start_with(site, &config).await;
    let writer = served.writer();
    replace(&writer, &fenced(&named(3, "a"), "syncer-a", 5)).await.unwrap();
    let error = replace(&writer, &fenced(&named(3, "b"), "syncer-b", 11)).await.unwrap_err();
    let text = "fencing token 11 of syncer-b is more than 5 above the newest that was seen, 5";
    assert_status(&error, Code::FailedPrecondition, text);
    let site = served.stop().await;
    config["max_fencing_token_step"] = 0.into();
    let served = Served::start_with(site, &config).await;
    let last = u64::try_from(i64::MAX).unwrap();
    replace(&served.writer(), &fenced(&named(3, "b"), "syncer-b", last)).await.unwrap();
    served.stop().await;
}
