//! Fuzz test of the requests of operators, on the cell and through the store.

use std::path::PathBuf;

use fuzz::{Bounds, Fuzz, Language, grpc};
use model::{
    effective::ReadGroup,
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    ids::{CellId, GroupGuid, SpaceGuid},
    rule::RuleSpec,
};
use prost::Message as _;
use proto::{cell_v1::cell_server::CellServer, policy_v1::CellRequest};
use runtime::tls::{ClientTls, Files, Role};
use tokio::sync::{mpsc, watch};
use tonic::Code;

use super::*;
use crate::{
    containers::Snapshot,
    denied::Denials,
    groups::Connectivity,
    plan::{Known, Refused, plan, test_settings},
    reconcile::Enforced,
};

const METHODS: [&str; 8] = [
    "/portcullis.cell.v1.Cell/ListContainers",
    "/portcullis.cell.v1.Cell/EffectiveRules",
    "/portcullis.cell.v1.Cell/Explain",
    "/portcullis.cell.v1.Cell/Reconcile",
    "/portcullis.cell.v1.Cell/Status",
    "/portcullis.cell.v1.Cell/Denied",
    "/portcullis.cell.v1.Cell/Steal",
    // The first frame as a question of the store.
    "question",
];
/// Codes that operators may get for any input.
const EXPECTED: [Code; 7] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    // The reconcile loop has ended.
    Code::Unavailable,
    Code::Unimplemented,
    // A body that is not protobuf, or ends in the middle of a message.
    Code::Internal,
    Code::OutOfRange,
];

fn known() -> Known {
    let rule = |protocol: &str, destination: &str, ports: &str| RuleSpec {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        log: true,
        ..RuleSpec::default()
    };
    let guid = GroupGuid::parse("g1").unwrap();
    let group = SecurityGroup {
        guid: guid.clone(),
        name: "one".to_owned(),
        rules: vec![
            rule("tcp", "10.1.0.0/16", "80,90-99"),
            rule("icmp", "::/0", ""),
            rule("x", "", ""),
        ],
        running: Scope { everywhere: true, ..Scope::default() },
        staging: Scope::default(),
    };
    let read = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
    let spaces = [SpaceGuid::parse("s1").unwrap()].into();
    Known { revision: 1, spaces, groups: [(guid, Arc::new(read))].into(), ..Known::default() }
}

fn inspector() -> Inspector {
    let store = br#"{"c1":{"ip":"10.255.0.1","metadata":{"policy_group_id":"p","space_id":"s1"}},
        "c2":{"ip":"10.255.0.2","metadata":{"policy_group_id":"p","space_id":"s2"}},"c3":{}}"#;
    let snapshot = Snapshot::parse(store).unwrap();
    let known = Arc::new(known());
    let ruleset = plan(&test_settings(), &snapshot, &known, &Refused::default());
    let mut enforced = Enforced::nothing(Arc::new(ruleset));
    (enforced.snapshot, enforced.known) = (Arc::new(snapshot), Arc::clone(&known));
    enforced.at = Some(std::time::SystemTime::UNIX_EPOCH);
    let none = PathBuf::from("/nonexistent");
    let files = Files { ca: none.clone(), cert: none.clone(), key: none };
    Inspector {
        cell: CellId::parse("cell-1").unwrap(),
        enforced: watch::channel(Arc::new(enforced)).1,
        known: watch::channel(Some(known)).1,
        link: watch::channel(Connectivity::Up).1,
        certificate: ClientTls::follow(Role { service: "cell_agent", name: "fuzz" }, &files),
        nudge: mpsc::channel(1).0,
        denials: Ok(Denials::new()),
    }
}

/// An error is one of the expected codes, and an invalid argument names its field.
#[test]
fn fuzz_cell_requests() {
    let runtime = grpc::runtime();
    let _entered = runtime.enter();
    let inspector = Arc::new(inspector());
    let mut server = CellServer::new(Service(Arc::clone(&inspector)));
    // tonic allocates a message of up to 4 MiB when it reads the prefix.
    let bounds = Bounds { allocations: (5_000, 20), bytes: (6 << 20, 200), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "cell_grpc", Language::Grpc).bounds(bounds);
    let fuzz = fuzz.tokens(&["c1", "c2", "c3", "c", "tcp", "udp", "icmp", "10.1.0.1", "::1", "s1"]);
    let fuzz = fuzz.expects(&[
        "/portcullis.cell.v1.Cell/ListContainers Ok",
        "/portcullis.cell.v1.Cell/EffectiveRules Ok",
        "/portcullis.cell.v1.Cell/EffectiveRules NotFound",
        "/portcullis.cell.v1.Cell/Explain Ok",
        "/portcullis.cell.v1.Cell/Explain InvalidArgument",
        "/portcullis.cell.v1.Cell/Reconcile Unavailable",
        "/portcullis.cell.v1.Cell/Status Ok",
        "/portcullis.cell.v1.Cell/Denied Ok",
        "/portcullis.cell.v1.Cell/Steal Unimplemented",
        "question Ok",
    ]);
    const FIELDS: [&str; 7] =
        ["handle", "protocol", "destination", "port", "icmp_", "limit", "request"];
    fuzz.run(|input| {
        let (first, body) = input.split_first().unwrap_or((&0, &[]));
        let path = METHODS[usize::from(*first) % METHODS.len()];
        let status = runtime.block_on(async {
            if path == "question" {
                let Ok(request) = CellRequest::decode(body.get(5..).unwrap_or_default()) else {
                    return Some(Status::internal("not a message"));
                };
                let answer = inspector.answer(request).await;
                return Some(answer.err().unwrap_or_else(|| Status::new(Code::Ok, "")));
            }
            let request = grpc::request(path, body);
            let Ok(response) = tower::Service::call(&mut server, request).await;
            let (status, body) = grpc::answer(response).await;
            let _whole = grpc::messages(&body);
            status
        });
        if let Some(status) = status.as_ref().filter(|it| it.code() == Code::InvalidArgument) {
            let text = status.message();
            assert!(FIELDS.iter().any(|field| text.starts_with(field)), "{path}: {text}");
        }
        grpc::outcome(path, status.as_ref(), &EXPECTED)
    });
}
