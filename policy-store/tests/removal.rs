//! A refused mass removal that an operator accepts.

use proto::policy_v1::{AcceptRemovalRequest, HistoryRequest, history_entry::Entry};
use tonic::Code;

use crate::{
    grpc::{assert_status, status},
    support::{
        client::replace,
        sets::{named, replacement},
        site::Served,
    },
};

#[tokio::test]
async fn an_operator_lets_a_refused_removal_pass_once() {
    let served = Served::start().await;
    let (writer, operator) = (served.writer(), served.operator());
    let foundation = served.foundation("operator", None);
    let accept = async |removed| {
        let request = AcceptRemovalRequest { removed };
        foundation.clone().accept_removal(request).await.map(tonic::Response::into_inner)
    };
    let remove = async |kept: usize| replace(&writer, &replacement(&named(kept, "1"))).await;
    replace(&writer, &replacement(&named(60, "1"))).await.unwrap();
    assert_eq!(status(&operator).await.refused_removal, None);
    let error = accept(50).await.unwrap_err();
    assert_status(&error, Code::FailedPrecondition, "this instance refused no removal");

    remove(10).await.unwrap_err();
    let refused = status(&operator).await.refused_removal.unwrap();
    assert_eq!((refused.removed, refused.stored, refused.groups.len()), (50, 60, 20));
    assert_eq!((&*refused.owner, refused.accepted_until), ("syncer-a", None));
    let first = &refused.groups[0];
    assert_eq!((&*first.guid, &*first.name, first.kind), ("g00010", "1", 3));
    let error = accept(49).await.unwrap_err();
    let text = "removed: 49 groups, but the refused Replace would remove 50";
    assert_status(&error, Code::FailedPrecondition, text);
    remove(10).await.unwrap_err();

    let accepted = accept(50).await.unwrap().refused_removal.unwrap();
    let until = accepted.accepted_until.unwrap().seconds;
    let page = foundation.clone().history(HistoryRequest::default()).await.unwrap().into_inner();
    let Some(Entry::Decision(decision)) = &page.entries[0].entry else { panic!("{page:?}") };
    assert_eq!((&*decision.action, &*decision.reason), ("accept-removal", "50 of 60 groups"));
    assert!(decision.by.contains("operator"), "{decision:?}");
    let now = status(&operator).await.now.unwrap().seconds;
    assert!((now + 590..=now + 600).contains(&until), "ten minutes");
    remove(11).await.unwrap_err();
    remove(10).await.expect_err("other groups were refused since");
    accept(50).await.unwrap();
    assert_eq!(remove(10).await.unwrap().removed, 50);
    assert_eq!(status(&operator).await.refused_removal, None);

    // Once: as many groups again are refused.
    replace(&writer, &replacement(&named(60, "1"))).await.unwrap();
    remove(10).await.unwrap_err();
    let cell = served.foundation("cell-1", Some("cell"));
    let error = cell.clone().accept_removal(AcceptRemovalRequest { removed: 50 }).await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    served.stop().await;
}
