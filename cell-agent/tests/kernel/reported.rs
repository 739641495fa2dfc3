//! What the cell reports to the store, and the answers to the store's questions.

use proto::{
    cell_v1::{
        Enforcement, ExplainRequest, ListContainersRequest, ReconcileRequest, StatusRequest,
        explain_response::Verdict,
    },
    policy_v1::{
        CellError, CellResponse, cell_request::Request, cell_response, watch_request::answer,
    },
};
use serde_json::json;
use tonic::Code;

use crate::{
    agent::{Cell, all, bound, eventually},
    lab::Lab,
    packets::{Fate, connection},
    planes::{Plane, on_all_planes_at_once},
    stage::{C1, CLOSED, OPEN, cell},
};

#[test]
fn the_store_learns_what_the_cell_enforces_and_asks() {
    on_all_planes_at_once(reported);
}

async fn reported(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    let name = if let Plane::Nftables = plane { "nftables" } else { "iptables" };
    let hello = cell.store.told(|told| told.hello.clone());
    assert_eq!((hello.plane.as_str(), hello.answers_questions), (name, true));
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));
    containers(&mut cell).await;
    isolated_rules(&cell).await;

    // Packets come with the next report.
    assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject);
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    let report = async || {
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
        cell.caught_up().await;
        cell.store.last_report().unwrap()
    };
    let counters = async || report().await.counters.unwrap();
    match plane {
        Plane::Nftables => {
            let counted = async || {
                let counters = counters().await;
                counters.denied >= Some(1) && counters.allowed >= Some(1)
            };
            eventually("both packets are counted", counted).await;
        }
        Plane::Iptables(_) => {
            let counters = counters().await;
            assert_eq!((counters.allowed, counters.denied), (None, None));
        }
    }
    let last = report().await;
    assert!(last.enforced_at.is_some() && last.apply_time.is_some(), "{last:?}");
    assert_eq!((last.last_error.as_str(), last.isolated_rules), ("", 0));

    questions(&cell).await;
    older_store(&mut cell).await;
    cell.stop().await;
}

async fn containers(cell: &mut Cell) {
    let has = |cell: &Cell, handle: &str, enforcement| {
        cell.store.told(|told| {
            told.containers.get(handle).is_some_and(|found| found.enforcement() == enforcement)
        })
    };
    eventually("the store knows c1", async || has(cell, "c1", Enforcement::Enforced)).await;
    let c1 = cell.store.told(|told| told.containers["c1"].clone());
    assert_eq!((c1.ip.as_str(), c1.space_guid.as_str(), c1.rules), ("10.255.1.1", "s1", 1));
    assert_eq!((c1.app_guid.as_str(), c1.workload.as_str()), ("app", "app"));
    cell.add_app("c2", "10.255.1.2", "s2").await;
    eventually("the store knows c2", async || has(cell, "c2", Enforcement::Enforced)).await;
    let last = cell.store.told(|told| told.inventory.clone());
    assert_eq!((last.reset, last.upserted.len()), (false, 1), "only what changed: {last:?}");
    cell.delete_entry("c2");
    eventually("c2 is gone", async || cell.store.told(|told| told.containers.len() == 1)).await;
    // Nothing is sent while nothing changes.
    let sent = |cell: &Cell| cell.store.told(|told| told.inventories);
    let before = sent(cell);
    assert_eq!(cell.get("/force-policy-poll-cycle").await.0, 200);
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    cell.caught_up().await;
    assert_eq!(sent(cell), before);
}

async fn isolated_rules(cell: &Cell) {
    let total = || cell.store.told(|told| told.isolated.total);
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16"), all("nowhere")])]);
    eventually("the store knows the isolated rule", async || total() == 1).await;
    let rule = cell.store.told(|told| told.isolated.rules[0].clone());
    assert_eq!(rule.rule.unwrap().destination, "nowhere");
    assert_eq!(rule.source.unwrap().rule_index, 1);
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    eventually("the rule is gone", async || total() == 0).await;
}

async fn asked(cell: &Cell, request: Request) -> Result<cell_response::Response, CellError> {
    let id = cell.store.ask(request);
    answered(cell, id).await
}

async fn answered(cell: &Cell, id: u64) -> Result<cell_response::Response, CellError> {
    let answer = || cell.store.told(|told| told.answers.get(&id).cloned());
    eventually("the agent answers", async || answer().is_some()).await;
    match answer().unwrap() {
        answer::Result::Response(CellResponse { response }) => Ok(response.unwrap()),
        answer::Result::Error(error) => Err(error),
    }
}

async fn questions(cell: &Cell) {
    use cell_response::Response;
    let explain = |handle: &str| {
        Request::Explain(ExplainRequest {
            handle: handle.to_owned(),
            protocol: "tcp".to_owned(),
            destination: "10.1.0.1".to_owned(),
            port: 80,
            ..ExplainRequest::default()
        })
    };
    let Ok(Response::Explain(explained)) = asked(cell, explain("c")).await else { panic!() };
    assert_eq!(explained.verdict(), Verdict::Allowed);
    let error = asked(cell, explain("nobody")).await.unwrap_err();
    assert_eq!(error.code, i32::from(Code::NotFound), "{error:?}");
    let listed = asked(cell, Request::ListContainers(ListContainersRequest {})).await;
    let Ok(Response::ListContainers(listed)) = listed else { panic!() };
    assert_eq!(listed.containers.len(), 1);
    let reconciled = asked(cell, Request::Reconcile(ReconcileRequest {})).await;
    let Ok(Response::Reconcile(reconciled)) = reconciled else { panic!("{reconciled:?}") };
    assert_eq!(reconciled.generation, cell.store.generation());
    assert!(cell.log.text().contains("reconcile-requested-through-policy-store"));
    // A question between the parts of a state.
    let other = bound("g2", "s1", vec![all("10.2.0.0/16")]);
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")]), other]);
    let id = cell.store.ask(Request::Status(StatusRequest {}));
    cell.caught_up().await;
    let Ok(Response::Status(status)) = answered(cell, id).await else { panic!() };
    assert_eq!(status.cell_id, "cell-1");
    let rules = async || cell.store.told(|told| told.containers["c1"].rules) == 2;
    eventually("both groups are in force", rules).await;
    let trace = format!("\"trace_id\":\"{:032x}\"", cell.store.generation());
    assert!(cell.log.text().contains(&trace), "{trace} in {}", cell.log.text());
}

async fn older_store(cell: &mut Cell) {
    cell.store.down().await;
    cell.store.become_older();
    let before = cell.store.told(|told| (told.reports, told.inventories));
    cell.store.up().await;
    let reported = async || cell.store.told(|told| told.reports > before.0);
    eventually("the agent watches the older store", reported).await;
    cell.add_app("c2", "10.255.1.2", "s1").await;
    eventually("and reports", async || cell.store.last_report().unwrap().containers == 2).await;
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    cell.caught_up().await;
    assert_eq!(cell.store.told(|told| told.inventories), before.1, "no Inventory");
}
