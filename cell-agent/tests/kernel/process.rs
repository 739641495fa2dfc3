//! The agent as a separate process: killed between any two of its steps, and idle.

use std::{fs, path::Path, process::Stdio, time::Duration};

use proto::policy_v1::SecurityGroup;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    agent::{Cell, all, app, bound, eventually, rule},
    lab::Lab,
    packets::{Fate, Prober, connection},
    planes::{Plane, Programs, on_all_planes_at_once},
    stage::{C1, CLOSED, OPEN, OTHER},
};

/// Started in the namespace of this thread; killed when it is dropped.
fn start(cell: &Cell, lock: &Path) -> Child {
    let config = cell.directory.path().join("agent.json");
    fs::write(&config, cell.config_text()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_cell-agent"))
        .arg("-config-file")
        .arg(config)
        // Parallel tests use the default lock of the iptables programs.
        .env("XTABLES_LOCKFILE", lock)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the agent's binary is built with the tests")
}

/// A cell whose agent is not running, and a container in its store.
async fn cell(lab: &Lab, programs: &Programs) -> (Cell, Prober) {
    lab.container(C1);
    let mut cell = Cell::new(programs.config(json!({}))).await;
    cell.plug("c1", "10.255.1.1");
    cell.add_entry("c1", "10.255.1.1", &app("s1"));
    (cell, Prober::new(lab))
}

/// Each round a different rule allows `OPEN`, among others; only some rounds allow
/// `OTHER`.
fn groups(round: u8) -> Vec<SecurityGroup> {
    let opens = ["10.1.0.0/16", "10.1.0.1", "10.0.0.0-10.1.255.255"][usize::from(round) % 3];
    let more = (0..=round % 4).map(|n| rule("udp", &format!("10.3.{round}.{n}"), "53"));
    let other = round.is_multiple_of(2).then(|| all("10.2.0.0/16"));
    vec![bound("g1", "s1", more.chain([all(opens)]).chain(other).collect())]
}

/// Kills the agent at the wanted step; the program that it started goes on.
const BEFORE: &str = "echo \"$*\" >> steps
at() { [ \"$(cat kill 2>/dev/null)\" = \"$1 $(wc -l < steps)\" ]; }
at before && { kill -9 $PPID; exit 1; }";
const AFTER: &str = "at after && kill -9 $PPID";

/// Laws 5 to 8: an agent that is killed before or after any program that it starts,
/// from its start to the end of a change, leaves the old or the new rules, and the next
/// agent applies the new ones.
#[test]
fn a_kill_between_any_two_steps_is_repaired() {
    on_all_planes_at_once(killed);
}

async fn killed(plane: Plane, lab: Lab) {
    let programs = Programs::new(plane, BEFORE, AFTER);
    let (cell, prober) = cell(&lab, &programs).await;
    let lock = cell.directory.path().join("xtables.lock");
    let rules_stand = async |what: &str| {
        let fate = prober.probe(C1, OPEN, connection(80)).await;
        assert_eq!(fate, Fate::Accept, "{what}: {:#?}", plane.ours());
        assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject, "{what}");
    };
    let in_force = async |round: u8| {
        cell.store.set(groups(round));
        cell.caught_up().await;
        cell.settled().await;
    };
    let mut agent = start(&cell, &lock);
    in_force(0).await;
    agent.kill().await.unwrap();
    let mut deaths = 0;
    for round in 1.. {
        let (step, when) =
            (usize::from(round).div_ceil(2), ["after", "before"][usize::from(round % 2)]);
        let what = format!("{plane:?}, killed {when} step {step}");
        programs.write("steps", "");
        programs.write("kill", &format!("{when} {step}"));
        let mut agent = start(&cell, &lock);
        let died = tokio::select! {
            biased;
            died = agent.wait() => { died.unwrap(); true }
            () = in_force(round) => false,
        };
        rules_stand(&what).await;
        agent.kill().await.unwrap();
        if !died {
            break;
        }
        deaths += 1;
        programs.remove("kill");
        let mut next = start(&cell, &lock);
        cell.store.set(groups(round));
        cell.caught_up().await;
        rules_stand(&format!("after the one that was {what}")).await;
        let other = if round.is_multiple_of(2) { Fate::Accept } else { Fate::Reject };
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, other, "{what}");
        next.kill().await.unwrap();
    }
    println!("{plane:?}: killed {deaths} times");
    // Netlink operations are no steps that this test sees.
    let least = if matches!(plane, Plane::Nftables) { 6 } else { 8 };
    assert!(deaths >= least, "{deaths} deaths are not all steps");
}

/// The agent reads the kernel only after a change by another process.
#[test]
fn an_idle_agent_starts_no_process() {
    on_all_planes_at_once(idle);
}

async fn idle(plane: Plane, lab: Lab) {
    let programs = Programs::new(plane, "echo \"$0 $*\" >> starts", "");
    let (mut cell, _prober) = cell(&lab, &programs).await;
    cell.configure(json!({"drift_interval": "20ms"}).as_object().unwrap());
    let mut agent = start(&cell, &cell.directory.path().join("xtables.lock"));
    cell.store.set(groups(0));
    cell.caught_up().await;
    cell.settled().await;
    // The last write causes one more read.
    let quiet = async || {
        let before = programs.lines("starts");
        tokio::time::sleep(Duration::from_millis(400)).await;
        programs.lines("starts") == before
    };
    eventually("twenty looks start nothing", quiet).await;
    agent.kill().await.unwrap();
}
