//! The agent together with the CNI plugin, and with the original's agent for
//! container-to-container policies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, routing::any};
use runtime::server::{Http, Listener};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::StatusCode;

use crate::{
    agent::{Cell, all, app, eventually, global},
    lab::lab,
    packets::{Fate, connection},
    silk::BACKENDS,
    stage::{C1, CLOSED, OPEN, cell},
};

/// In the order of the CNI plugin
/// (docs/compatibility/vxlan-policy-agent.md#cni-chains): the metadata entry, which the
/// agent sees at once, then the chains, then the call that must not return before the
/// rules are in force; and the reverse.
#[test]
fn a_container_comes_and_goes_in_the_plugins_order() {
    const HANDLE: &str = "00000001-aaaa-bbbb-cccc-0123456789ab";
    for silk in BACKENDS {
        lab(async move |_lab| {
            let mut config = silk.config(json!({}));
            // Only the calls trigger a read of the kernel.
            config["drift_interval"] = json!("1h");
            let mut cell = Cell::running(config).await;
            cell.store.set(vec![global("g1", vec![all("10.1.0.0/16")])]);
            cell.caught_up().await;
            for _ in 0..3 {
                cell.add_entry(HANDLE, "10.255.1.1", &app("s1"));
                eventually("the agent has seen the entry", async || {
                    cell.status().await.containers == 1
                })
                .await;
                let (status, body) = cell.force(HANDLE).await;
                assert_eq!(status, 500, "there are no chains yet: {body}");
                silk.add(HANDLE, "10.255.1.1", &json!({}));
                let (status, body) = cell.force(HANDLE).await;
                assert_eq!((status, body), (200, format!("updated container {HANDLE}")));
                let rules = silk.ours();
                assert!(
                    rules.iter().any(|rule| rule.contains("10.1.0.0-10.1.255.255")),
                    "{rules:?}"
                );
                cell.delete_entry(HANDLE);
                eventually("the agent has seen it go", async || {
                    cell.status().await.containers == 0
                })
                .await;
                silk.delete(HANDLE, "10.255.1.1");
                let path = format!("/force-orphaned-asgs-cleanup?container={HANDLE}");
                let (status, body) = cell.get(&path).await;
                assert_eq!(
                    (status, body),
                    (200, format!("cleaned up ASGs for container {HANDLE}"))
                );
                assert_eq!(silk.ours(), Vec::<String>::new(), "nothing of it is left");
            }
            cell.stop().await;
        });
    }
}

/// Leftovers of an interrupted agent, ours or the original (contract 2.7, cases 29, 31,
/// 44), created in the chains of c1 while no agent runs.
const LEFT: [&[&str]; 6] = [
    // A candidate chain beside the chain, empty and filled.
    &["-N casg-c1", "-I netout--c1 1 -j casg-c1"],
    &["-N casg-c1", "-I netout--c1 1 -j casg-c1", "-A casg-c1 -j REJECT"],
    // Only the candidate chain.
    &[
        "-D netout--c1 -j asg-c1",
        "-F asg-c1",
        "-X asg-c1",
        "-N casg-c1",
        "-I netout--c1 1 -j casg-c1",
        "-A casg-c1 -j ACCEPT",
    ],
    // A chain without its jump, and a jump to an empty chain.
    &["-D netout--c1 -j asg-c1"],
    &["-F asg-c1"],
    // Rules of the CNI plugin from a time when enforcement was disabled, and a foreign
    // chain.
    &[
        "-D netout--c1 -j asg-c1",
        "-F asg-c1",
        "-X asg-c1",
        "-I netout--c1 1 -j ACCEPT",
        "-N netout--gone--log",
        "-N asg-gone",
        "-A asg-gone -g netout--gone--log",
    ],
];

#[test]
fn whatever_an_agent_left_the_next_one_makes_it_right() {
    for silk in BACKENDS {
        lab(async move |lab| {
            let (mut cell, prober) = cell(&lab, silk.config(json!({}))).await;
            let whole = silk.ours();
            for left in LEFT {
                cell.stop().await;
                left.iter().for_each(|command| _ = silk.run(command));
                assert_ne!(silk.ours(), whole, "{left:?}");
                cell.start().await;
                eventually(&format!("{left:?} is made right"), async || silk.ours() == whole).await;
                assert!(!silk.save().contains("gone"), "{left:?}");
                assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{left:?}");
                assert_eq!(
                    prober.probe(C1, CLOSED, connection(80)).await,
                    Fate::Reject,
                    "{left:?}"
                );
            }
            cell.stop().await;
        });
    }
}

/// Fails every second call.
async fn cycle(State(calls): State<Arc<AtomicUsize>>) -> (StatusCode, &'static str) {
    match calls.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => (StatusCode::OK, ""),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "failed to force policy poll cycle: no server"),
    }
}

#[test]
fn the_agent_for_container_policies_is_asked_in_the_plugins_place() {
    lab(async |_lab| {
        let calls = Arc::new(AtomicUsize::new(0));
        let listener = Listener::tcp("the other agent", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let routes = Router::new()
            .route("/force-policy-poll-cycle", any(cycle))
            .with_state(Arc::clone(&calls));
        let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
        let token = shutdown.clone();
        tasks.spawn(async move {
            Http::new(listener, None).serve(routes, token, Duration::ZERO).await;
        });
        for enabled in [true, false] {
            let config = json!({"policy_agent_address": address, "enable_asg_syncing": enabled});
            let mut cell = Cell::running(config).await;
            let force = async |cell: &Cell| cell.get("/force-policy-poll-cycle").await;
            assert_eq!(force(&cell).await, (200, String::new()));
            let failed = "failed to force policy poll cycle: no server";
            assert_eq!(force(&cell).await, (500, failed.to_owned()));
            cell.stop().await;
        }
        assert_eq!(calls.load(Ordering::Relaxed), 4);
        shutdown.cancel();
        while tasks.join_next().await.is_some() {}
        let mut cell = Cell::running(json!({"policy_agent_address": address})).await;
        let (status, body) = cell.get("/force-policy-poll-cycle").await;
        assert_eq!(status, 500);
        assert!(body.starts_with("failed to force policy poll cycle: "), "{body}");
        cell.stop().await;
        let mut alone = Cell::running(json!({})).await;
        assert_eq!(alone.get("/force-policy-poll-cycle").await, (200, String::new()));
        alone.stop().await;
    });
}
