//! `--once` and `--dry-run`, as processes in the cell's namespace.

use std::{
    fs,
    process::{Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    agent::{Cell, all, app, bound, eventually, global, listing},
    faults::REFUSES,
    lab::{Lab, lab, sh},
    planes::{Plane, Programs, on_every_plane},
    silk::BACKENDS,
};

const HANDLE: &str = "00000001-aaaa-bbbb-cccc-0123456789ab";
const NOTHING: &str = "# nothing to change\n";

/// Runs the program on the cell's configuration; returns its output and its log.
async fn run(cell: &Cell, flag: &str) -> (Option<i32>, String, String) {
    let config = cell.directory.path().join("agent.json");
    fs::write(&config, cell.config_text()).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cell-agent"));
    let command = command.arg("--config-file").arg(config).arg(flag);
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match flag {
        "--once" => (status.code(), String::new(), text(&stdout)),
        _ => (status.code(), text(&stdout), text(&stderr)),
    }
}

/// Runs the program; must succeed.
pub(crate) async fn done(cell: &Cell, flag: &str) -> String {
    let (code, printed, log) = run(cell, flag).await;
    assert_eq!(code, Some(0), "{flag}: {printed} {log}");
    printed
}

/// Runs the program; must fail with a reason.
pub(crate) async fn fails(cell: &Cell, flag: &str) -> String {
    let (code, _, log) = run(cell, flag).await;
    assert_eq!(code, Some(1), "{flag}: {log}");
    let line = log.lines().find(|line| line.contains("exited-with-failure"));
    line.unwrap_or_else(|| panic!("{log}")).to_owned()
}

fn fill(cell: &mut Cell) {
    let groups = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"].iter().enumerate();
    let groups = groups.map(|(index, to)| global(&format!("g{index}"), vec![all(to)]));
    let groups = groups.chain([bound("other", "elsewhere", vec![all("10.4.0.0/16")])]);
    cell.store.set(groups.collect());
    cell.add_entry(HANDLE, "10.255.1.1", &app("s1"));
}

#[test]
fn once_applies_what_a_dry_run_prints() {
    lab(async |lab| {
        let mut cell = Cell::new(json!({})).await;
        fill(&mut cell);
        let printed = done(&cell, "--dry-run").await;
        assert!(printed.starts_with("# transaction 1 of "), "{printed}");
        assert_eq!(listing(), "", "a rehearsal changes nothing");
        assert!(!cell.directory.path().join("state").exists(), "nor does it write anything");
        done(&cell, "--once").await;
        let once = listing();
        assert!(once.contains("10.3.0.0/16") && !once.contains("10.4.0.0/16"), "{once}");
        // The printed script has the same effect elsewhere.
        let file = cell.directory.path().join("printed.nft");
        fs::write(&file, printed).unwrap();
        let load = format!("nft -f {}", file.display());
        let elsewhere = lab.outside.run(move || {
            sh(&load);
            listing()
        });
        assert_eq!(elsewhere, once);
        assert_eq!(done(&cell, "--dry-run").await, NOTHING);
        done(&cell, "--once").await;
        assert_eq!(listing(), once);
    });
}

#[test]
fn a_dry_run_compares_with_the_kernel() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({})).await;
        fill(&mut cell);
        done(&cell, "--once").await;
        let once = listing();
        cell.add_entry("c2", "10.255.1.2", &app("s2"));
        let printed = done(&cell, "--dry-run").await;
        assert!(printed.contains("add element") && printed.contains("10.255.1.2"), "{printed}");
        assert!(!printed.contains("10.255.1.1"), "only what differs: {printed}");
        assert_eq!(listing(), once);
        cell.delete_entry("c2");
        // After an edit of the table, the next run repairs it.
        sh("nft flush chain inet portcullis egress");
        let edited = listing();
        assert_ne!(done(&cell, "--dry-run").await, NOTHING);
        assert_eq!(listing(), edited);
        done(&cell, "--once").await;
        assert!(listing().contains("vmap @policies") && !listing().contains("10.255.1.2"));
        // With enforcement disabled, our table is deleted.
        cell.configure(json!({"enable_asg_syncing": false}).as_object().unwrap());
        let printed = done(&cell, "--dry-run").await;
        assert!(printed.contains("delete table inet portcullis"), "{printed}");
        assert_ne!(listing(), "");
        done(&cell, "--once").await;
        assert_eq!((listing().as_str(), &*done(&cell, "--dry-run").await), ("", NOTHING));
    });
}

/// The last good groups are in force, but they may be outdated, so the run fails.
#[test]
fn once_without_the_store_fails_and_uses_the_last_groups() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({})).await;
        fill(&mut cell);
        cell.store.down().await;
        let told = fails(&cell, "--once").await;
        assert!(told.contains("cannot be asked for"), "{told}");
        let closed = listing();
        assert!(
            closed.contains("10.255.0.0/16 reject") && !closed.contains("10.1.0.0"),
            "{closed}"
        );
        cell.store.up().await;
        done(&cell, "--once").await;
        cell.store.down().await;
        cell.add_entry("c2", "10.255.1.2", &app("s1"));
        fails(&cell, "--once").await;
        let known = listing();
        assert!(known.contains("10.1.0.0/16") && known.contains("10.255.1.2"), "{known}");
        fs::write(cell.store_path(), "{torn").unwrap();
        let told = fails(&cell, "--dry-run").await;
        assert!(told.contains("the container metadata store cannot be read"), "{told}");
    });
}

/// A store that was never filled accepts the watch and sends nothing.
#[test]
fn once_does_not_wait_long_for_a_silent_store() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({"force_timeout": "10m"})).await;
        fill(&mut cell);
        cell.store.say_nothing();
        let told = fails(&cell, "--once").await;
        assert!(told.contains("sent no groups: it was never filled"), "{told}");
        assert!(listing().contains("10.255.0.0/16 reject"), "closed all the same");
    });
}

#[test]
fn once_fails_when_it_is_terminated() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({"force_timeout": "10m"})).await;
        fill(&mut cell);
        cell.store.say_nothing();
        let config = cell.directory.path().join("agent.json");
        fs::write(&config, cell.config_text()).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cell-agent"));
        command.arg("--config-file").arg(config).arg("--once").stdout(Stdio::piped());
        let child = command.kill_on_drop(true).spawn().unwrap();
        eventually("the pass has begun", async || cell.store.is_watched()).await;
        let id = i32::try_from(child.id().unwrap()).unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        let Output { status, stdout, .. } = child.wait_with_output().await.unwrap();
        let log = String::from_utf8_lossy(&stdout);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("stopped before the pass was complete"), "{log}");
        assert_eq!(listing(), "");
    });
}

#[test]
fn a_pass_is_not_made_beside_an_agent_and_a_rehearsal_is() {
    lab(async |_lab| {
        let mut cell = Cell::running(json!({})).await;
        fill(&mut cell);
        cell.caught_up().await;
        let (status, body) = cell.force(HANDLE).await;
        assert_eq!(status, 200, "{body}");
        cell.settled().await;
        let told = fails(&cell, "--once").await;
        assert!(told.contains("only one agent may work on a cell"), "{told}");
        assert_eq!(done(&cell, "--dry-run").await, NOTHING);
        cell.stop().await;
    });
}

#[test]
fn once_applies_what_a_dry_run_prints_beside_silk() {
    for silk in BACKENDS {
        lab(async move |_lab| {
            let mut cell = Cell::new(silk.config(json!({}))).await;
            fill(&mut cell);
            let told = fails(&cell, "--once").await;
            assert!(
                told.contains(&format!("container {HANDLE} waits: its chain netout--")),
                "{told}"
            );
            silk.add(HANDLE, "10.255.1.1", &json!({}));
            let before = silk.ours();
            let printed = done(&cell, "--dry-run").await;
            let head = "# transaction 1 of 1: iptables-restore --noflush\n*filter\n";
            assert!(printed.starts_with(head), "{printed}");
            assert_eq!(silk.ours(), before, "a rehearsal changes nothing");
            done(&cell, "--once").await;
            let ours = silk.ours();
            let rules: Vec<&String> = ours.iter().filter(|line| line.starts_with("-A ")).collect();
            assert!(rules.len() >= 8, "{rules:?}");
            for rule in rules {
                assert!(printed.contains(rule), "{rule} in {printed}");
            }
            assert_eq!(done(&cell, "--dry-run").await, NOTHING);
        });
    }
}

#[test]
fn a_dry_run_leaves_out_what_the_kernel_refuses() {
    on_every_plane(without_refused);
}

async fn without_refused(plane: Plane, _lab: Lab) {
    let programs = Programs::new(plane, REFUSES, "");
    let mut cell = Cell::new(programs.config(json!({}))).await;
    cell.store.set(vec![global("g1", vec![all("10.1.0.0/16"), all("10.66.6.6")])]);
    cell.add_entry(HANDLE, "10.255.1.1", &app("s1"));
    if let Plane::Iptables(silk) = plane {
        silk.add(HANDLE, "10.255.1.1", &json!({}));
    }
    let before = plane.ours();
    let (code, printed, log) = run(&cell, "--dry-run").await;
    assert_eq!(code, Some(0), "{printed} {log}");
    assert!(printed.contains("10.1.0.0") && !printed.contains("10.66.6.6"), "{printed}");
    assert!(log.contains("rule-isolated"), "{log}");
    assert_eq!(plane.ours(), before, "a dry run changes nothing");
}
