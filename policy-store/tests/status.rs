//! The mapping from errors to statuses.

use model::ids::CellId;
use policy_store::{
    access::{Action, Denied},
    committer::Failure,
    feed::{cursor, inventory},
    groups::{
        decide::{Refusal, Refused},
        manifest,
    },
    grpc::status::{Error, Unasked, status},
    store,
};
use tonic::{Code, Status};

use crate::support::sets::{guid, owner};

fn cell() -> CellId {
    CellId::parse("c1").unwrap()
}

fn refused(refusal: Refusal) -> Error {
    Error::Replace(Failure::Store(store::Error::Refused(Refused { refusal, seen: None })))
}

#[test]
fn each_error_has_its_status() {
    let token = model::lock::FencingToken;
    let old = Refusal::OldToken {
        owner: owner("b"),
        given: Some(token(1)),
        newest: token(2),
        writer: owner("a"),
    };
    let of_another =
        Refusal::TokenOfAnother { owner: owner("b"), token: token(2), writer: owner("a") };
    let too_far = Refusal::TokenTooFar {
        owner: owner("b"),
        given: token(9),
        newest: Some(token(2)),
        most: 5,
    };
    let denied = Denied { peer: "the peer cn=x".to_owned(), action: Action::Replace };
    let corrupt = store::Error::CorruptRow { field: "a.b", problem: "secret".to_owned() };
    let closed = store::Error::Database(storage::Error::Closed);
    for (error, code, text) in [
        (Error::Denied(denied), Code::PermissionDenied, "the peer cn=x may not replace security"),
        (Error::Field(proto::Error::Missing("watermark")), Code::InvalidArgument, "watermark is"),
        (Error::Protocol("out of turn".to_owned()), Code::InvalidArgument, "out of turn"),
        (
            Error::Manifest(manifest::Error::Duplicate(guid("g"))),
            Code::InvalidArgument,
            "the manifest names group g twice",
        ),
        (
            Error::Subscription(cursor::Error::TooManySpaces),
            Code::InvalidArgument,
            "more than 10000 spaces",
        ),
        (
            Error::Violation(inventory::Error::TooManyContainers.into()),
            Code::InvalidArgument,
            "inventory.upserted: the cell has more than 5000 containers",
        ),
        (Error::NotFound("no such app".to_owned()), Code::NotFound, "no such app"),
        (Unasked::Unknown(cell()).into(), Code::NotFound, "no cell c1 is known"),
        (Unasked::NotConnected(cell()).into(), Code::Unavailable, "cell c1 does not watch"),
        (Unasked::Ended(cell()).into(), Code::Unavailable, "the watch of cell c1 ended"),
        (
            Unasked::AnswersNone { cell: cell(), version: "0.1".into() }.into(),
            Code::Unimplemented,
            "the agent of cell c1 answers no requests: its version is \"0.1\"",
        ),
        (Unasked::TooMany(cell()).into(), Code::ResourceExhausted, "cell c1 has 32 open requests"),
        (Unasked::Late(cell()).into(), Code::DeadlineExceeded, "cell c1 did not answer in time"),
        (Unasked::Agent(Box::new(Status::aborted("its own"))).into(), Code::Aborted, "its own"),
        (refused(old), Code::FailedPrecondition, "fencing token 1 of b is older than 2 of a"),
        (refused(too_far), Code::FailedPrecondition, "fencing token 9 of b is more than 5 above"),
        (refused(of_another), Code::FailedPrecondition, "fencing token 2 is the one of a"),
        (
            refused(Refusal::MassRemoval { removed: 30, stored: 50 }),
            Code::FailedPrecondition,
            "this would remove 30 of 50",
        ),
        (refused(Refusal::Overtaken { lacking: 2 }), Code::Aborted, "another Replace came first"),
        (Error::Replace(Failure::Store(closed)), Code::Internal, "the database failed"),
        (Error::Replace(Failure::Store(corrupt)), Code::Internal, "the database failed"),
        (Error::Replace(Failure::ShuttingDown), Code::Unavailable, "the store is shutting down"),
        (
            Error::Unread(store::Error::CorruptRow { field: "f", problem: "p".to_owned() }),
            Code::Internal,
            "the database failed",
        ),
        (Error::Busy, Code::ResourceExhausted, "too many Replaces"),
        (Error::Silent(60), Code::DeadlineExceeded, "the writer sent nothing for 60 seconds"),
        (Error::Draining, Code::Unavailable, "the store is shutting down"),
        (Status::data_loss("its own").into(), Code::DataLoss, "its own"),
    ] {
        let status = status(&error);
        assert_eq!(status.code(), code, "{error:?}");
        assert!(status.message().starts_with(text), "{error:?}: {}", status.message());
        assert!(!status.message().contains("secret"), "{error:?}");
    }
}
