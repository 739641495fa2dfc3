//! Log lines and metrics for an operator's alarms: dead and frozen cells, and the groups of
//! a change.

use std::collections::BTreeMap;

use integration_tests::{process::Process, services::ControlPlane, wait};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    cell_agent::{apart, watching},
    metrics::{address, scrape},
};

/// A frozen client is disconnected after 5 s of silence and a ping timeout of 4 s; the rest
/// is a margin for a busy machine.
const FROZEN: SignedDuration = SignedDuration::from_secs(12);

/// Numbers of cells.
#[derive(Debug, PartialEq, Eq)]
struct Cells {
    known: u64,
    connected: u64,
    disconnected: u64,
    behind: u64,
}

fn cells(store: &Process) -> (Cells, f64) {
    let text = scrape(&address(store, "policy-server-internal.started", "admin-address"));
    let values: BTreeMap<_, _> = text.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let value = |name: &str| -> f64 {
        let name = format!("policy_store_cells_{name}");
        let value = values.get(&*name).unwrap_or_else(|| panic!("no {name} in {text}"));
        value.parse().expect("a number")
    };
    let number = |name| value(name) as u64;
    let cells = Cells {
        known: number("known"),
        connected: number("connected"),
        disconnected: number("disconnected"),
        behind: number("behind"),
    };
    (cells, value("behind_seconds_max"))
}

fn wait_for(store: &Process, [known, connected, disconnected, behind]: [u64; 4]) -> f64 {
    let wanted = Cells { known, connected, disconnected, behind };
    wait::until(&format!("{wanted:?}"), || match cells(store) {
        (cells, longest) if cells == wanted => Ok(longest),
        (cells, _) => Err(format!("{cells:?}")),
    })
}

/// The metrics agree with the cells of the Status response.
fn in_step(plane: &ControlPlane) {
    wait::until("metrics in step with Status", || {
        let status = plane.store_status();
        let (counted, _) = cells(&plane.policy_store);
        let listed = status["cells"].as_array().cloned().unwrap_or_default();
        let count = |is: &dyn Fn(&serde_json::Value) -> bool| {
            listed.iter().filter(|cell| is(cell)).count() as u64
        };
        let connected = count(&|cell| cell["connected"] == true);
        let told = Cells {
            known: count(&|_| true),
            connected,
            disconnected: count(&|_| true) - connected,
            behind: count(&|cell| cell["enforcedGeneration"] != status["generation"]),
        };
        if told == counted { Ok(()) } else { Err(format!("{told:?}, {counted:?}")) }
    });
}

#[test]
fn a_frozen_cell_is_disconnected_and_counted_as_behind() {
    apart(|| {
        let plane = ControlPlane::start();
        let _syncer = plane.syncer("syncer-1");
        let store = &plane.policy_store;
        let group = plane.cloud.create_group("first", "10.1.0.0/16");
        plane.wait_until_synced();
        let mut agent = watching(&plane);
        store.wait_for_line("cell-connected", |data| data["cell"] == "cell-1");
        wait_for(store, [1, 1, 0, 0]);
        in_step(&plane);

        let began = Timestamp::now();
        agent.signal(Signal::SIGSTOP);
        wait_for(store, [1, 0, 1, 0]);
        let took = Timestamp::now().duration_since(began);
        assert!(took < FROZEN, "disconnected after {took}");
        let gone = store.wait_for("cell-disconnected");
        assert_eq!(gone["level"], "info", "{gone}");

        plane.cloud.change_group(&group, "10.2.0.0/16");
        wait_for(store, [1, 0, 1, 1]);
        in_step(&plane);
        let behind = store.wait_for("cell-behind");
        let data = &behind["data"];
        assert_eq!((&data["cell"], &data["connected"]), (&json!("cell-1"), &json!(false)));
        assert!(data["seconds"].as_u64() >= Some(10), "{behind}");
        assert!(wait_for(store, [1, 0, 1, 1]) >= 10.0);

        agent.signal(Signal::SIGCONT);
        assert_eq!(wait_for(store, [1, 1, 0, 0]), 0.0);
        store.wait_for_line("cell-caught-up", |data| data["cell"] == "cell-1");
        in_step(&plane);

        // A killed cell stays known.
        agent.kill();
        wait_for(store, [1, 0, 1, 0]);
        plane.cloud.change_group(&group, "10.3.0.0/16");
        wait_for(store, [1, 0, 1, 1]);
    });
}

/// The log lines of a change name its groups, in the syncer and in the policy store.
#[test]
fn the_lines_of_a_change_name_its_groups() {
    let plane = ControlPlane::start();
    let syncer = plane.syncer("syncer-1");
    let group = plane.cloud.create_group("first", "10.1.0.0/16");
    plane.wait_until_synced();
    let told = |key: &str| {
        let named = |data: &serde_json::Value| {
            data[key].as_array().is_some_and(|guids| guids.contains(&json!(group)))
        };
        plane.policy_store.wait_for_line("replaced-security-groups", named);
        syncer.wait_for_line("applied-security-groups", named);
    };
    told("added-guids");
    plane.cloud.change_group(&group, "10.2.0.0/16");
    told("changed-guids");
    plane.cloud.delete_group(&group);
    told("removed-guids");
}

/// An agent that never reached its store reports the error in its status and metrics.
#[test]
fn an_agent_without_a_store_shows_it() {
    apart(|| {
        let mut plane = ControlPlane::start();
        plane.policy_store.kill();
        let agent = watching(&plane);
        let debug = address(&agent, "vxlan-policy-agent.started", "debug");
        let shows = |line: &str| {
            wait::until(line, || match scrape(&debug) {
                text if text.lines().any(|found| found == line) => Ok(()),
                text => Err(text),
            });
        };
        shows("cell_agent_store_connected 0");
        plane.restart_store();
        let _syncer = plane.syncer("syncer-1");
        shows("cell_agent_store_connected 1");
    });
}
