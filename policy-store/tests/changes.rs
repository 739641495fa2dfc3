//! Changes, and questions to cells, over gRPC.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use model::trace::TraceContext;
use policy_store::{
    committer::committer,
    feed::{
        cells::Cells,
        changes::Changes,
        ring::{
            Committed, Filter,
            Kind::{Added, Removed},
        },
    },
    groups::{
        current::SnapshotPublisher,
        decide::{Origin, Replacement},
        snapshot::Snapshot,
    },
    store::{Contents, testing::Memory},
};
use proto::{
    cell_v1,
    policy_v1::{
        AskCellRequest, AskCellResponse, CellError, CellRequest, CellResponse, CellsRequest,
        Change, ChangesRequest, ChangesResponse, WatchResponse, cell_request, cell_response,
        change::Kind,
        replace_request::{Begin, Manifest, Step as Write},
        watch_request::{Answer, Hello, Step, answer::Result as Given},
    },
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    grpc::assert_status,
    support::{
        PATIENCE,
        client::{Cell, Talk, begin, entries},
        sets::{Set, fenced, global, set},
        site::{Foundation, Served},
        until,
    },
};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn changes(client: &Foundation, request: ChangesRequest) -> Streaming<ChangesResponse> {
    client.clone().changes(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<ChangesResponse>) -> Change {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    next.expect("a change comes").unwrap().expect("the stream goes on").change.unwrap()
}

async fn all(client: &Foundation, request: ChangesRequest) -> Vec<u64> {
    let stream = changes(client, request).await;
    stream.map(|answer| answer.unwrap().change.unwrap().generation).collect().await
}

/// A Replace of a syncer that knows when it noticed and read the change.
async fn traced(served: &Served, write: &Replacement, traceparent: &str) {
    let mut talk = Talk::open(&served.writer()).await.unwrap();
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let (noticed_at, read_at, traceparent) = (at(2), at(3), traceparent.to_owned());
    let begin = Begin { noticed_at, read_at, traceparent, ..begin(write) };
    talk.say(Write::Begin(begin)).await;
    talk.say(Write::Manifest(Manifest { entries: entries(write), last: true })).await;
    let missing = talk.missing().await.unwrap();
    talk.deliver(write, &missing).await;
    talk.commit().await.unwrap();
}

fn named(names: &[(&str, &str)]) -> Set {
    set(names.iter().map(|(guid, name)| global(guid, name)))
}

#[tokio::test]
async fn changes_are_followed_from_the_sync_to_the_cells() {
    let served = Served::start().await;
    let operator = served.foundation("operator", None);
    let follow = ChangesRequest { follow: true, ..ChangesRequest::default() };
    let mut followed = changes(&operator, follow).await;
    let mut one = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    let two = Cell::hello(&served.cell("cell-2"), "cell-2", &[]).await;
    until("both cells watch", async || {
        let cells = operator.clone().cells(CellsRequest::default()).await.unwrap();
        cells.into_inner().cells.len() == 2
    })
    .await;

    let first = named(&[("g1", "one"), ("g2", "two")]);
    traced(&served, &fenced(&first, "syncer-a", 1), TRACE).await;
    let change = next(&mut followed).await;
    assert_eq!((change.generation, &*change.owner, &*change.traceparent), (1, "syncer-a", TRACE));
    assert_eq!((change.noticed_at.unwrap().seconds, change.read_at.unwrap().seconds), (2, 3));
    assert_eq!(change.watermark.unwrap().seconds, 1);
    assert_eq!((change.added, change.changed, change.removed), (2, 0, 0));
    assert_eq!((change.cells, change.cells_enforced), (2, 0));
    assert_eq!((change.median, change.slowest_cells.len()), (None, 2));

    // The trace goes out with the complete state, to each cell.
    let complete = loop {
        let answer: WatchResponse = one.answers.message().await.unwrap().unwrap();
        if answer.complete {
            break answer;
        }
        assert_eq!(answer.traceparent, "");
    };
    assert_eq!((complete.generation, &*complete.traceparent), (1, TRACE));

    one.report(1).await;
    let update = next(&mut followed).await;
    assert_eq!((update.generation, update.cells_enforced), (1, 1));
    assert!(update.median.is_some());
    assert_eq!(update.slowest_cells[0].cell_id, "cell-2");
    assert_eq!(
        (update.slowest_cells[0].after_commit, update.slowest_cells[0].connected),
        (None, true)
    );
    two.report(1).await;
    assert_eq!(next(&mut followed).await.cells_enforced, 2, "the last update comes");
    let known = operator.clone().cells(CellsRequest::default()).await.unwrap().into_inner();
    assert!(known.cells.iter().all(|cell| cell.lag.is_some()));

    // An invalid context is no reason to refuse a change.
    let second = named(&[("g2", "renamed"), ("g3", "three")]);
    traced(&served, &fenced(&second, "syncer-a", 1), "bad").await;
    let change = next(&mut followed).await;
    assert_eq!((change.generation, &*change.traceparent), (2, ""));
    let groups: Vec<_> =
        change.groups.iter().map(|group| (&*group.guid, &*group.name, group.kind())).collect();
    assert_eq!(
        groups,
        [
            ("g1", "one", Kind::Removed),
            ("g2", "renamed", Kind::Changed),
            ("g3", "three", Kind::Added)
        ]
    );
    queries(&operator).await;
    drop((one, two));
    // A follower does not hold up the end of the store.
    let site = served.stop().await;
    assert!(followed.message().await.is_err());
    drop(site);
}

async fn queries(operator: &Foundation) {
    let none = ChangesRequest::default;
    assert_eq!(all(operator, none()).await, [1, 2]);
    assert_eq!(all(operator, ChangesRequest { last: 1, ..none() }).await, [2]);
    assert_eq!(all(operator, ChangesRequest { generation: 1, ..none() }).await, [1]);
    assert_eq!(all(operator, ChangesRequest { generation: 9, ..none() }).await, [0; 0]);
    let of = |text: &str| ChangesRequest { group: text.to_owned(), ..none() };
    assert_eq!(all(operator, of("g1")).await, [1, 2]);
    assert_eq!(all(operator, of("three")).await, [2]);
}

/// Another instance with the same database has the change, without the times of the sync.
#[tokio::test]
async fn a_change_of_another_instance_appears_without_times() {
    let store = Memory::default();
    let cells = Cells::default();
    let mut tasks = JoinSet::new();
    let mut instance = || {
        let snapshot = Snapshot::from(Contents::default());
        let board = Arc::new(SnapshotPublisher::new(snapshot, Instant::now()));
        let (commits, committer) = committer(Arc::new(store.clone()), board);
        let changes = Changes::default();
        let committer = committer.recording(changes.clone(), cells.clone());
        tasks.spawn(committer.run(CancellationToken::new()));
        (commits, changes)
    };
    let ((one, of_one), (two, of_two)) = (instance(), instance());
    let trace = TraceContext::parse(TRACE);
    let origin = Origin { noticed_at: Some(Timestamp::UNIX_EPOCH), read_at: None, trace };
    let write = fenced(&named(&[("g1", "one")]), "syncer-a", 1);
    one.commit(Replacement { origin, ..write }).await.unwrap();
    two.catch_up().await.unwrap();
    one.commit(fenced(&named(&[("g2", "two")]), "syncer-a", 1)).await.unwrap();
    two.catch_up().await.unwrap();
    let read = async |changes: &Changes| {
        let mut follower = changes.follow(Filter::default(), 9, false);
        [follower.next().await.unwrap().change, follower.next().await.unwrap().change]
    };
    let [first, second] = read(&of_one).await;
    assert_eq!((first.origin, second.origin), (origin, Origin::default()));
    assert_eq!(of_one.trace(first.generation), None, "it is not the newest");
    let [elsewhere, newer] = read(&of_two).await;
    assert_eq!((elsewhere.generation.0, newer.generation.0), (1, 2));
    assert_eq!((elsewhere.origin, &elsewhere.owner), (Origin::default(), &first.owner));
    let kinds = |change: &Committed| {
        let groups = change.groups.iter();
        groups.map(|group| (group.guid.to_string(), group.kind)).collect::<Vec<_>>()
    };
    assert_eq!((kinds(&elsewhere), kinds(&newer)), (kinds(&first), kinds(&second)));
    assert_eq!(kinds(&newer), [("g1".to_owned(), Removed), ("g2".to_owned(), Added)]);
}

fn request(kind: cell_request::Request) -> Option<CellRequest> {
    Some(CellRequest { request: Some(kind) })
}

fn status_of(cell: &str) -> AskCellRequest {
    let status = cell_request::Request::Status(cell_v1::StatusRequest {});
    AskCellRequest { cell_id: cell.to_owned(), request: request(status) }
}

async fn ask(client: &Foundation, request: AskCellRequest) -> Result<AskCellResponse, Status> {
    client.clone().ask_cell(request).await.map(tonic::Response::into_inner)
}

async fn agent(served: &Served, id: &str) -> Cell {
    let hello = Hello { cell_id: id.to_owned(), answers_questions: true, ..Hello::default() };
    Cell::open(&served.cell(id), Some(Step::Hello(hello))).await
}

/// The id of the next question; passes over groups.
async fn question(cell: &mut Cell) -> u64 {
    loop {
        let answer = tokio::time::timeout(PATIENCE, cell.answers.message()).await;
        let answer = answer.expect("a question comes").unwrap().unwrap();
        if let Some(question) = answer.question {
            assert!(question.request.unwrap().request.is_some());
            return question.id;
        }
    }
}

async fn reply(cell: &Cell, id: u64, result: Given) {
    cell.say(Step::Answer(Answer { id, result: Some(result) })).await;
}

fn status_response(cell: &str) -> CellResponse {
    let cell_id = cell.to_owned();
    let status = cell_v1::StatusResponse { cell_id, ..cell_v1::StatusResponse::default() };
    CellResponse { response: Some(cell_response::Response::Status(status)) }
}

#[tokio::test]
async fn operators_ask_cells_through_the_store() {
    let served = Served::start().await;
    let operator = served.foundation("operator", None);
    let error = ask(&operator, status_of("cell-1")).await.unwrap_err();
    assert_status(&error, Code::NotFound, "no cell cell-1 is known");
    let empty = AskCellRequest { cell_id: "cell-1".to_owned(), request: None };
    let error = ask(&operator, empty).await.unwrap_err();
    assert_status(&error, Code::InvalidArgument, "request: is missing");
    let cell = served.foundation("cell-1", Some("cell"));
    let error = ask(&cell, status_of("cell-1")).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);

    let mut cell = agent(&served, "cell-1").await;
    let older = Cell::hello(&served.cell("cell-2"), "cell-2", &[]).await;
    until("both cells watch", async || {
        let cells = operator.clone().cells(CellsRequest::default()).await.unwrap();
        cells.into_inner().cells.len() == 2
    })
    .await;
    let error = ask(&operator, status_of("cell-2")).await.unwrap_err();
    assert_status(&error, Code::Unimplemented, "the agent of cell cell-2 answers no requests");

    // An unknown answer is ignored.
    reply(&cell, 99, Given::Response(status_response("nobody"))).await;
    let (answer, ()) = tokio::join!(ask(&operator, status_of("cell-1")), async {
        let id = question(&mut cell).await;
        reply(&cell, id, Given::Response(status_response("cell-1"))).await;
    });
    assert_eq!(answer.unwrap().response, Some(status_response("cell-1")));

    let (answer, ()) = tokio::join!(ask(&operator, status_of("cell-1")), async {
        let id = question(&mut cell).await;
        let (code, message) = (Code::NotFound.into(), "no such container".to_owned());
        reply(&cell, id, Given::Error(CellError { code, message })).await;
    });
    assert_status(&answer.unwrap_err(), Code::NotFound, "no such container");

    let silent = agent(&served, "cell-3").await;
    until("the silent cell watches", async || {
        let mut late = Request::new(status_of("cell-3"));
        late.set_timeout(Duration::from_millis(50));
        let error = operator.clone().ask_cell(late).await.unwrap_err();
        // The client's own timer may be the first.
        matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled)
    })
    .await;

    limits_and_the_end(&operator, cell).await;
    drop((older, silent));
    served.stop().await;
}

async fn limits_and_the_end(operator: &Foundation, cell: Cell) {
    let asked = (0..33).map(|_| ask(operator, status_of("cell-1")));
    let mut asked: FuturesUnordered<_> = asked.collect();
    let refused = asked.next().await.unwrap().unwrap_err();
    assert_status(&refused, Code::ResourceExhausted, "cell cell-1 has 32 open requests");
    drop(cell);
    while let Some(answer) = asked.next().await {
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    }
    until("the cell has gone", async || {
        let error = ask(operator, status_of("cell-1")).await.unwrap_err();
        error.code() == Code::Unavailable
            && error.message() == "cell cell-1 does not watch this instance"
    })
    .await;
}
