//! The load tools measure real servers.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use certificates::Files;
use integration_tests::{
    binaries,
    services::{LockServer, Site},
    wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

fn load(arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::path("portcullis-dev"));
    command.arg("load").args(arguments).output().expect("portcullis-dev can be run")
}

/// What a tool printed as JSON.
fn json(arguments: &[&str]) -> Value {
    let output = load(&[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// Flags with the server's address and process ID.
fn target<'a>(address: &'a str, files: &'a Files, pid: &'a str) -> [&'a str; 10] {
    let Files { ca, cert, key } = files;
    let (ca, cert, key) = (text(ca), text(cert), text(key));
    ["--address", address, "--ca", ca, "--cert", cert, "--key", key, "--server-pid", pid]
}

const SHORT: [&str; 6] = ["--duration", "300ms", "--warm-up", "50ms", "--concurrency", "4"];

#[test]
fn every_operation_of_a_locket_is_measured() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let pid = server.process.id().to_string();
    let target = target(&server.address, &server.files, &pid);
    for operation in ["lock-new", "lock-refresh", "fetch", "fetch-all", "release"] {
        let run = [&["locket", "--operation", operation][..], &target, &SHORT].concat();
        let report = json(&[&run[..], &["--presences", "2000", "--connections", "2"]].concat());
        let calls = &report["calls"];
        assert!(calls["operations"].as_u64() > Some(0), "{report}");
        assert!(calls["p50_ms"].as_f64() <= calls["max_ms"].as_f64(), "{report}");
        assert_eq!(calls["failures"], serde_json::json!({}), "{report}");
        assert!(report["cost"]["server_peak"].as_u64() > Some(1 << 20), "{report}");
        let answers = calls["bytes"].as_u64();
        assert_eq!(answers > Some(0), operation == "fetch-all", "{report}");
    }
    // The tool released all its locks; a missing lock has status NOT_FOUND.
    let run = [&["locket", "--operation", "empty"][..], &target, &SHORT].concat();
    let report = json(&run);
    assert_eq!(report["calls"]["operations"], 0, "{report}");
    assert!(report["calls"]["failures"]["Unimplemented"].as_u64() > Some(0), "{report}");
    let run = [&["locket", "--operation", "fetch-all", "--presences", "1"][..], &target, &SHORT];
    let report = json(&run.concat());
    let (bytes, calls) = (&report["calls"]["bytes"], &report["calls"]["operations"]);
    let each = bytes.as_u64().zip(calls.as_u64()).map(|(bytes, calls)| bytes / calls);
    assert!(each < Some(1_000), "only one presence is left: {report}");
}

#[test]
fn held_presences_are_not_lost_and_the_memory_is_plotted() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let pid = server.process.id().to_string();
    let target = target(&server.address, &server.files, &pid);
    let plot = site.path("memory.png");
    let more = ["--presences", "200", "--ttl", "2", "--duration", "3s", "--concurrency", "4"];
    let run = [&["hold"][..], &target, &more, &["--plot", text(&plot)]].concat();
    let report = json(&run);
    assert_eq!(
        (&report["lost"], &report["refreshes"]["failures"]),
        (&0.into(), &serde_json::json!({}))
    );
    // Each presence is refreshed once a second.
    let refreshes = report["refreshes"]["operations"].as_u64().expect("a number");
    assert!((550..=600).contains(&refreshes), "{report}");
    assert!(report["memory"]["second_half_mean"].as_f64() > Some(1.0), "{report}");
    let drawn = std::fs::read(&plot).expect("the plot is there");
    assert!(drawn.starts_with(b"\x89PNG"));
}

#[test]
fn the_suite_measures_against_an_empty_call() {
    let directory = binaries::path("lock-server");
    let directory = directory.parent().expect("a binary lies in a directory");
    let run = ["locket-suite", "--rounds", "1", "--duration", "1s", "--warm-up", "100ms"];
    let rows = json(&[&run[..], &["--bin-dir", text(directory)]].concat());
    let rows = rows.as_array().expect("a list");
    let names: Vec<_> = rows.iter().map(|row| row["operation"].as_str().unwrap_or("")).collect();
    assert_eq!(names, ["empty", "lock-new", "lock-refresh", "fetch", "fetch-all", "tls"]);
    for row in rows {
        assert!(row["per_second"].as_f64() > Some(0.0) && row["failed"] == 0, "{row}");
    }
}

#[test]
fn changes_are_timed_to_every_cell() {
    let site = Site::new();
    let plot = site.path("propagation.png");
    let directory = binaries::path("policy-store");
    let directory = directory.parent().expect("a binary lies in a directory");
    let data = ["--groups", "50", "--rules", "2", "--spaces", "100", "--global", "1"];
    let cells = ["--watchers", "3,6", "--cell-spaces", "20", "--changes", "4", "--pause", "10ms"];
    let files = ["--bin-dir", text(directory), "--plot", text(&plot)];
    let report = json(&[&["store"][..], &data, &cells, &files].concat());
    let stages = report["stages"].as_array().expect("a list");
    for (stage, count) in stages.iter().zip([3, 6]) {
        assert_eq!(stage["watchers"], count, "{report}");
        assert_eq!(stage["replace"]["operations"], 4, "{report}");
        assert_eq!(stage["propagation"]["operations"], 4 * count, "each change to each cell");
        assert!(stage["everywhere"]["bytes"].as_u64() > Some(0), "{report}");
        assert!(stage["cost"]["server_peak"].as_u64() > Some(1 << 20), "{report}");
    }
    assert_eq!((report["groups"].as_u64(), stages.len()), (Some(50), 2));
    let drawn = std::fs::read(&plot).expect("the plot is there");
    assert!(drawn.starts_with(b"\x89PNG"));
}

#[test]
fn a_syncer_is_measured_in_time_and_memory() {
    let directory = binaries::path("syncer");
    let directory = directory.parent().expect("a binary lies in a directory");
    let data = ["--groups", "30", "--rules", "2", "--bindings", "3", "--spaces", "20"];
    let run = ["--rounds", "2", "--idle", "2s", "--bin-dir", text(directory)];
    let rounds = json(&[&["sync"][..], &data, &run].concat());
    let rounds = rounds.as_array().expect("a list");
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        let (first, change) = (&round["first"], &round["change"]);
        // The development Cloud Controller starts with two groups.
        assert_eq!(first["applied"]["added"], 32, "{round}");
        assert_eq!(
            (&change["applied"]["changed"], &change["applied"]["unchanged"]),
            (&1.into(), &31.into())
        );
        assert!(first["peak"].as_u64() > Some(1 << 20), "{round}");
        assert!(round["change_seen_ms"].as_f64() > Some(0.0), "{round}");
        assert!(round["idle_poll_cpu_ms"].as_f64() < Some(1_000.0), "{round}");
    }
}

/// A small foundation, with all its services.
fn foundation() -> Vec<String> {
    let directory = binaries::path("policy-store");
    let directory = directory.parent().expect("a binary lies in a directory");
    let size = ["--cells", "5", "--real", "2", "--containers", "3", "--cell-spaces", "3"];
    let data = ["--groups", "20", "--rules", "2", "--bindings", "2", "--spaces", "15"];
    let files = ["foundation", "--bin-dir", text(directory)];
    [&files[..], &size, &data].concat().into_iter().map(str::to_owned).collect()
}

#[test]
fn changes_and_restarts_are_timed_on_real_and_simulated_cells() {
    let site = Site::new();
    let plot = site.path("foundation.png");
    let foundation = foundation();
    let foundation: Vec<&str> = foundation.iter().map(String::as_str).collect();
    let run = ["--changes", "3", "--idle", "1s", "--plot", text(&plot)];
    let report = json(&[&foundation[..], &run].concat());
    let changes = &report["changes"];
    assert_eq!(changes["packet_ms"]["count"], 3 * 2, "each change on each real cell: {report}");
    assert_eq!(changes["reported_ms"]["count"], 3, "{report}");
    for none in ["early_packets", "missing_packets", "unreported"] {
        assert_eq!(changes[none], 0, "{none}: {report}");
    }
    for herd in [&report["start"], &report["restart"]] {
        assert_eq!((&herd["cells"], &herd["real_ms"]["count"]), (&5.into(), &2.into()), "{report}");
    }
    assert_eq!(report["after_restart"]["packet_ms"]["count"], 2, "{report}");
    let parts = changes["costs"]["parts"].as_array().expect("a list");
    assert_eq!(parts.len(), 5, "store, syncer, lock server, Cloud Controller, agents: {report}");
    for part in parts {
        assert!(part["peak_mib"]["max"].as_f64() > Some(1.0), "{part}");
    }
    assert!(std::fs::read(&plot).expect("the plot is there").starts_with(b"\x89PNG"));
}

#[test]
fn a_stopped_foundation_leaves_no_process() {
    let mut command = Command::new(binaries::path("portcullis-dev"));
    command.arg("load").args(foundation()).args(["--idle", "1h"]);
    let mut tool = command.stderr(Stdio::piped()).spawn().expect("portcullis-dev can be run");
    let errors = BufReader::new(tool.stderr.take().expect("it is piped"));
    let idle = errors.lines().map_while(Result::ok).any(|line| line.ends_with("idle"));
    assert!(idle, "it starts all cells");
    let children = children(tool.id());
    assert!(children.len() >= 6, "{children:?}");
    let pid = Pid::from_raw(i32::try_from(tool.id()).expect("the kernel's process ids fit"));
    kill(pid, Signal::SIGINT).expect("it runs");
    assert!(!tool.wait().expect("it ends").success());
    wait::until("the end of all processes", || {
        let left = children.iter().filter(|child| Path::new(child).exists()).collect::<Vec<_>>();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// The directories of the processes that this process started.
fn children(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let lists = tasks.map(|task| task.expect("it runs").path().join("children"));
    let texts: Vec<String> = lists.filter_map(|list| std::fs::read_to_string(list).ok()).collect();
    let children = texts.iter().flat_map(|text| text.split_ascii_whitespace());
    children.map(|child| format!("/proc/{child}")).collect()
}

#[test]
fn a_load_tool_names_why_it_cannot_measure() {
    let site = Site::new();
    let files = site.certificate("load");
    let nobody = std::process::id().to_string();
    let target = target("127.0.0.1:1", &files, &nobody);
    let run = [&["locket", "--operation", "fetch"][..], &target].concat();
    for (run, expected) in [
        (run, "127.0.0.1:1"),
        ([&["hold"][..], &target[..8]].concat(), "--server-pid"),
        ([&["locket", "--operation", "fetch", "--duration", "0s"][..], &target].concat(), "0s"),
        (vec!["locket-suite", "--database", "locks.db"], "locks.db"),
    ] {
        let output = load(&run);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(expected), "{run:?}: {errors}");
    }
}
