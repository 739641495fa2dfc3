//! The Foundation service, with cells that report containers. One store serves all checks
//! of a test: starting one is what costs time.

use std::time::Duration;

use proto::{
    cell_v1::{self, Container, IsolatedRule, RuleSource},
    policy_v1::{
        CellsRequest, CellsResponse, Connection, ContainersRequest, ContainersResponse,
        ExplainRequest, ExplainResponse, IsolatedRules, Lifecycle, ReachRequest, Rule,
        WatchRequest,
        watch_request::{Counters, Hello, Inventory, Report, Step},
    },
};
use tonic::{Code, Status};

use crate::{
    grpc::assert_status,
    support::{
        client::{Cell, replace},
        sets::{bound, fenced, global, set},
        site::{Foundation, Served},
        until,
    },
};

fn container(handle: &str, app: &str, space: &str, ip: &str) -> Container {
    Container {
        handle: handle.to_owned(),
        ip: ip.to_owned(),
        space_guid: space.to_owned(),
        app_guid: app.to_owned(),
        workload: "app".to_owned(),
        lifecycle: cell_v1::Lifecycle::Running.into(),
        enforcement: cell_v1::Enforcement::Enforced.into(),
        rules: 3,
        ..Container::default()
    }
}

fn staging(handle: &str, app: &str, space: &str, ip: &str) -> Container {
    Container {
        workload: "staging".to_owned(),
        lifecycle: cell_v1::Lifecycle::Staging.into(),
        ..container(handle, app, space, ip)
    }
}

fn first(containers: Vec<Container>) -> Step {
    Step::Inventory(Inventory { reset: true, upserted: containers, ..Inventory::default() })
}

/// A cell of a current agent that has sent its first inventory.
async fn cell(served: &Served, id: &str, containers: Vec<Container>) -> Cell {
    let hello = Hello {
        cell_id: id.to_owned(),
        version: "1.2.3".to_owned(),
        plane: "nftables".to_owned(),
        answers_questions: true,
        ..Hello::default()
    };
    let cell = Cell::open(&served.cell(id), Some(Step::Hello(hello))).await;
    cell.say(first(containers)).await;
    cell
}

async fn containers(client: &Foundation, request: ContainersRequest) -> ContainersResponse {
    client.clone().containers(request).await.unwrap().into_inner()
}

async fn cells(client: &Foundation) -> CellsResponse {
    client.clone().cells(CellsRequest::default()).await.unwrap().into_inner()
}

fn connection(port: u32) -> Option<Connection> {
    let (protocol, destination) = ("tcp".to_owned(), "10.0.0.1".to_owned());
    Some(Connection { protocol, destination, port, ..Connection::default() })
}

fn of_app(app: &str) -> ExplainRequest {
    let app_guid = app.to_owned();
    ExplainRequest { app_guid, connection: connection(443), ..ExplainRequest::default() }
}

fn of_handle(handle: &str) -> ExplainRequest {
    let handle = handle.to_owned();
    ExplainRequest { handle, connection: connection(443), ..ExplainRequest::default() }
}

async fn explain(client: &Foundation, request: ExplainRequest) -> Result<ExplainResponse, Status> {
    client.clone().explain(request).await.map(tonic::Response::into_inner)
}

fn places(found: &ContainersResponse) -> Vec<String> {
    let name = |placed: &proto::policy_v1::PlacedContainer| {
        format!("{}/{}", placed.cell_id, placed.container.as_ref().unwrap().handle)
    };
    found.containers.iter().map(name).collect()
}

/// `web` runs in s1 on both cells, `build` stages in s1; `odd` has no space.
async fn two_cells(served: &Served) -> (Cell, Cell) {
    let groups = [global("all", "all"), bound("db", "db", &["s1"]), bound("other", "x", &["s2"])];
    replace(&served.writer(), &fenced(&set(groups), "syncer-a", 1)).await.unwrap();
    let odd = Container {
        workload: "other".to_owned(),
        lifecycle: cell_v1::Lifecycle::Unspecified.into(),
        enforcement: cell_v1::Enforcement::DeniedNoGroups.into(),
        reason: "it has no space".to_owned(),
        ..container("odd-1", "odd", "", "")
    };
    let one = vec![container("aa-1", "web", "s1", "10.0.0.1"), odd];
    let two = vec![
        container("aa-2", "web", "s1", "10.0.1.1"),
        staging("bb-1", "build", "s1", "fd00::1"),
        container("cc-1", "api", "s2", "10.0.1.3"),
    ];
    (cell(served, "cell-1", one).await, cell(served, "cell-2", two).await)
}

async fn until_known(operator: &Foundation, total: u64) {
    until("the containers are known", async || {
        containers(operator, ContainersRequest::default()).await.total == total
    })
    .await;
}

#[tokio::test]
async fn operators_find_containers_of_all_cells() {
    let served = Served::start().await;
    let operator = served.foundation("operator", None);
    let none = tokio_stream::empty::<WatchRequest>();
    let answer = served.cell("cell-1").watch(none).await.unwrap();
    assert_eq!(answer.metadata().get("portcullis-watch-accepts").unwrap(), "inventory, rule-uses");
    let (one, two) = two_cells(&served).await;
    let older = Cell::hello(&served.cell("cell-3"), "cell-3", &[]).await;
    until_known(&operator, 5).await;
    until("the older agent is there", async || cells(&operator).await.cells.len() == 3).await;

    let all = containers(&operator, ContainersRequest::default()).await;
    assert_eq!(
        places(&all),
        ["cell-1/aa-1", "cell-1/odd-1", "cell-2/aa-2", "cell-2/bb-1", "cell-2/cc-1"]
    );
    assert_eq!((&*all.unknown_cells, all.unknown_cells_total), (&["cell-3".to_owned()][..], 1));
    let sent = container("aa-1", "web", "s1", "10.0.0.1");
    assert_eq!(
        (all.containers[0].container.clone(), all.containers[0].connected),
        (Some(sent), true)
    );

    let web = ContainersRequest { app_guid: "web".to_owned(), ..Default::default() };
    assert_eq!(places(&containers(&operator, web).await), ["cell-1/aa-1", "cell-2/aa-2"]);
    let at = ContainersRequest { address: "fd00:0::1".to_owned(), ..Default::default() };
    assert_eq!(places(&containers(&operator, at).await), ["cell-2/bb-1"]);
    pages(&operator).await;
    bad_requests(&operator).await;
    explanations(&operator).await;
    reach(&operator).await;
    changes_of_an_inventory(&operator, &one, two).await;
    drop((one, older));
    served.stop().await;
}

async fn pages(operator: &Foundation) {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ContainersRequest { page_size: 2, page_token, ..Default::default() };
        let page = containers(operator, request).await;
        assert_eq!(page.total, 5);
        found.extend(places(&page));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found.len(), 5, "{found:?}");
    let request = CellsRequest { page_size: 2, ..CellsRequest::default() };
    let page = operator.clone().cells(request).await.unwrap().into_inner();
    assert_eq!((page.cells.len(), &*page.next_page_token), (2, "cell-3"));
    let request = CellsRequest { page_token: page.next_page_token, ..CellsRequest::default() };
    let page = operator.clone().cells(request).await.unwrap().into_inner();
    assert_eq!((page.cells.len(), &*page.next_page_token), (1, ""));
    assert!(page.cells[0].detailed && !page.cells[0].answers_questions);
    let request = CellsRequest { cell_id: "cell-2".to_owned(), ..CellsRequest::default() };
    let one = operator.clone().cells(request).await.unwrap().into_inner();
    assert_eq!(one.cells.len(), 1);
    assert_eq!((&*one.cells[0].version, &*one.cells[0].plane), ("1.2.3", "nftables"));
}

async fn bad_requests(operator: &Foundation) {
    for (request, problem) in [
        (ContainersRequest { address: "x".to_owned(), ..Default::default() }, "address: \"x\""),
        (ContainersRequest { page_size: 5001, ..Default::default() }, "page_size: 5001"),
        (ContainersRequest { page_token: "x".to_owned(), ..Default::default() }, "page_token: "),
        (
            ContainersRequest { app_guid: "x".repeat(256), ..Default::default() },
            "app_guid: has 256 characters",
        ),
    ] {
        let error = operator.clone().containers(request).await.unwrap_err();
        assert_status(&error, Code::InvalidArgument, problem);
    }
    let both = ExplainRequest { app_guid: "web".to_owned(), ..of_handle("aa-1") };
    let text = "one of space_guid, app_guid and handle must be set, 2 are";
    assert_status(&explain(operator, both).await.unwrap_err(), Code::InvalidArgument, text);
}

async fn explanations(operator: &Foundation) {
    let web = explain(operator, of_app("web")).await.unwrap();
    assert!(web.allowed);
    assert_eq!(web.decisive.unwrap().group_name, "all");
    assert_eq!((&*web.space_guid, web.lifecycle, web.containers_total), ("s1", 1, 2));
    assert!(web.containers.iter().all(|placed| placed.connected));

    let build = explain(operator, of_app("build")).await.unwrap();
    assert!(!build.allowed, "the groups are for running apps only");
    assert_eq!((build.lifecycle(), build.containers_total), (Lifecycle::Staging, 1));

    let space = ExplainRequest { space_guid: "s1".to_owned(), ..of_app("") };
    let space = explain(operator, space).await.unwrap();
    assert_eq!((space.lifecycle(), space.containers_total), (Lifecycle::Running, 2));

    let handle = explain(operator, of_handle("cc")).await.unwrap();
    assert_eq!((&*handle.space_guid, handle.containers_total), ("s2", 1));
    let odd = explain(operator, of_app("odd")).await.unwrap();
    assert!(!odd.allowed);
    assert_eq!(
        odd.reason,
        "no security group applies to container odd-1 on cell cell-1: it has no space"
    );

    let error = explain(operator, of_app("nothing")).await.unwrap_err();
    let text = "no cell reported a container of app \"nothing\"; 1 of 3 known cells have not \
                reported containers to this instance: cell-3";
    assert_status(&error, Code::NotFound, text);
    let error = explain(operator, of_handle("aa")).await.unwrap_err();
    let text = "handle: 2 containers' handles begin with \"aa\": aa-1 on cell-1, aa-2 on cell-2";
    assert_status(&error, Code::InvalidArgument, text);
}

async fn reach(operator: &Foundation) {
    let request = ReachRequest { connection: connection(443) };
    let found = operator.clone().reach(request).await.unwrap().into_inner();
    let apps: Vec<_> = found
        .groups
        .iter()
        .map(|group| {
            let apps = group.apps.iter().map(|app| format!("{} {}", app.app_guid, app.containers));
            (&*group.guid, apps.collect::<Vec<_>>().join(","), group.apps_total)
        })
        .collect();
    let expected = [("all", "web 2,api 1", 2), ("db", "web 2", 1), ("other", "api 1", 1)]
        .map(|(group, apps, total)| (group, apps.to_owned(), total));
    assert_eq!(apps, expected);
}

async fn changes_of_an_inventory(operator: &Foundation, one: &Cell, two: Cell) {
    let rule = IsolatedRule {
        rule: Some(Rule::default()),
        source: Some(RuleSource { group_guid: "db".to_owned(), ..RuleSource::default() }),
        reason: "bad mask".to_owned(),
    };
    let isolated = IsolatedRules { rules: vec![rule], total: 7 };
    one.say(Step::Inventory(Inventory {
        removed_handles: vec!["odd-1".to_owned()],
        isolated: Some(isolated.clone()),
        ..Inventory::default()
    }))
    .await;
    let counters = Counters { allowed: Some(5), denied: None, unattributed: 2 };
    one.say(Step::Report(Report {
        enforced_generation: 1,
        containers: 1,
        apply_time: Some(Duration::from_millis(12).try_into().unwrap()),
        drift_healed: 3,
        last_error: "x".repeat(2000),
        counters: Some(counters),
        ..Report::default()
    }))
    .await;
    until("the report is known", async || cells(operator).await.cells[0].drift_healed == 3).await;
    let known = cells(operator).await;
    let cell = &known.cells[0];
    assert_eq!((cell.isolated.as_ref(), cell.counters), (Some(&isolated), Some(counters)));
    assert_eq!(cell.apply_time.unwrap().nanos, 12_000_000);
    assert_eq!(cell.last_error.len(), 1000, "it is cut");
    assert_eq!(cell.status.as_ref().unwrap().enforced_generation, 1);
    until_known(operator, 4).await;

    // A dead cell keeps its containers, marked; its next stream replaces them.
    drop(two);
    until("the cell has gone", async || {
        !cells(operator).await.cells[1].status.as_ref().unwrap().connected
    })
    .await;
    let api = explain(operator, of_app("api")).await.unwrap();
    assert!(!api.containers[0].connected);
}

#[tokio::test]
async fn a_new_stream_replaces_the_inventory_and_bad_ones_end_the_watch() {
    let served = Served::start().await;
    let operator = served.foundation("operator", None);
    let old = cell(&served, "cell-1", vec![container("a", "web", "s1", "10.0.0.1")]).await;
    until_known(&operator, 1).await;
    let pair = vec![container("b", "web", "s1", ""), container("c", "web", "s1", "")];
    let new = cell(&served, "cell-1", pair).await;
    until_known(&operator, 2).await;
    // A late word of the old stream does not count.
    old.say(first(Vec::new())).await;
    new.say(Step::Inventory(Inventory {
        upserted: vec![container("d", "web", "s1", "")],
        ..Inventory::default()
    }))
    .await;
    until_known(&operator, 3).await;
    drop((old, new));

    for (inventory, problem) in [
        (Inventory::default(), "inventory.reset: must be true in the first"),
        (
            Inventory { reset: true, upserted: vec![Container::default()], ..Default::default() },
            "inventory.upserted[0].handle: container handle is empty",
        ),
    ] {
        let mut cell = Cell::hello(&served.cell("cell-2"), "cell-2", &[]).await;
        cell.say(Step::Inventory(inventory)).await;
        assert_status(&cell.end().await, Code::InvalidArgument, problem);
    }
    let cell = served.foundation("cell-1", Some("cell"));
    let error = cell.clone().containers(ContainersRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let error = cell.clone().cells(CellsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    served.stop().await;
}
