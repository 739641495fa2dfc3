//! The local cluster of `scripts/up`: every printed command works as printed, and the
//! cluster survives the end of its processes. Needs root.

use std::{path::Path, process::Command};

use integration_tests::{process::Process, wait};
use nix::sys::signal::Signal;

/// A running cluster with a state directory of its own.
pub(super) struct Cluster {
    launcher: Process,
    directory: tempfile::TempDir,
    name: String,
}

impl Cluster {
    /// Starts a cluster and waits until it prints its commands.
    pub(super) fn start(purpose: &str, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let name = format!("i{}-{purpose}", std::process::id());
        let state = directory.path().join("state");
        let state = state.to_str().expect("paths of tests are text");
        let arguments = ["cluster", "--ports", "auto", "--name", &name, "--state-dir", state];
        let launcher = Process::start("portcullis-dev", &[&arguments, more].concat());
        let cluster = Self { launcher, directory, name };
        cluster.wait_for("Ctrl-C ends the cluster");
        cluster
    }

    fn wait_for(&self, text: &str) {
        wait::until(&format!("{text:?} of the launcher"), || {
            let lines = self.launcher.lines();
            let found = lines.iter().any(|line| line.contains(text));
            found.then_some(()).ok_or_else(|| lines.join("\n"))
        });
    }

    pub(super) fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// The printed commands, in order, without their comments.
    fn commands(&self) -> Vec<String> {
        let lines = self.launcher.lines();
        let first = lines.iter().position(|line| line.starts_with("In another shell"));
        let commands = lines[first.expect("commands are printed")..].iter();
        let commands = commands.filter_map(|line| line.strip_prefix("  "));
        commands.map(|line| line.split("   #").next().unwrap_or(line).trim().to_owned()).collect()
    }

    /// Runs `portcullis-dev cluster` with these arguments.
    fn request(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(integration_tests::binaries::path("portcullis-dev"));
        command.arg("cluster").arg("--state-dir").arg(self.state()).args(arguments);
        let output = command.output().expect("portcullis-dev can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The state of a process, as `list` prints it.
    fn process_state(&self, process: &str) -> String {
        let list = self.request(&["list"]).expect("the launcher answers");
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(process));
        let line = line.unwrap_or_else(|| panic!("no {process} in\n{list}"));
        line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
    }

    /// Stops the cluster, and checks that no process is left.
    pub(super) fn end(mut self) {
        self.launcher.signal(Signal::SIGTERM);
        let status = self.launcher.wait();
        assert!(status.success(), "{status}: {}", self.launcher.lines().join("\n"));
        let left = Command::new("ip").args(["netns", "list"]).output().expect("ip can be run");
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(!left.contains(&self.name), "{left}");
    }
}

/// Runs commands in one shell, in order; returns the exit status and output of each.
pub(super) fn run_in_shell(directory: &Path, commands: &[String]) -> Vec<(String, String)> {
    let script: String = commands
        .iter()
        .enumerate()
        .map(|(number, command)| {
            format!("{{ {command}\n}} >{number}.out 2>&1 </dev/null; echo $? >{number}.status\n")
        })
        .collect();
    let file = directory.join("commands.sh");
    std::fs::write(&file, script).expect("a script can be written");
    let mut shell = Command::new("bash");
    // The printed environment must not change the caller's compiler.
    shell.arg(&file).current_dir(directory).env("CC", "cc");
    let status = shell.status().expect("bash can be run");
    assert!(status.success(), "{status}");
    let read = |name: String| {
        let text = std::fs::read_to_string(directory.join(name)).expect("the script wrote it");
        text.trim().to_owned()
    };
    (0..commands.len()).map(|n| (read(format!("{n}.status")), read(format!("{n}.out")))).collect()
}

#[test]
fn every_printed_command_works_and_the_cluster_survives_kills() {
    let cluster = Cluster::start("cmds", &["--apps", "3"]);
    let mut commands = cluster.commands();
    assert!(commands.len() > 25, "{commands:?}");
    commands.push("echo $CC".to_owned());
    let shell = tempfile::tempdir().expect("a temporary directory can be made");
    let results = run_in_shell(shell.path(), &commands);
    for (command, (status, printed)) in commands.iter().zip(&results) {
        assert_eq!(status, "0", "{command}\n{printed}");
        assert!(!printed.contains("command not found"), "{command}\n{printed}");
    }
    let printed_by = |start: &str| -> &str {
        let found = commands.iter().position(|command| command.starts_with(start));
        &results[found.unwrap_or_else(|| panic!("{start} in {commands:?}"))].1
    };
    let explained = printed_by("portcullisctl explain --container");
    assert!(explained.starts_with("verdict "), "{explained}");
    assert!(explained.contains("asked for 1 containers: 1 agree"), "{explained}");
    let traced = printed_by("portcullisctl trace try-me");
    assert!(traced.contains("enforced, slowest cell"), "{traced}");
    let connections: Vec<&str> = commands
        .iter()
        .zip(&results)
        .filter(|(command, _)| command.starts_with("connect "))
        .map(|(_, (_, printed))| printed.as_str())
        .collect();
    assert_eq!(connections, ["closed", "open", "closed"]);
    assert_eq!(results.last().map(|(_, printed)| printed.as_str()), Some("cc"));
    cluster.wait_for("ended: signal: 9 (SIGKILL)");
    cluster.wait_for("The cluster goes on; start it again: ");
    cluster.end();
}

#[test]
fn processes_apps_and_cells_come_and_go() {
    let cluster = Cluster::start("come", &["--cells", "1"]);
    assert_eq!(cluster.process_state("policy-store"), "running");
    cluster.request(&["stop", "policy-store"]).expect("a process can be frozen");
    wait::until("the policy store is frozen", || match cluster.process_state("policy-store") {
        state if state == "frozen" => Ok(()),
        state => Err(state),
    });
    cluster.request(&["cont", "policy-store"]).expect("a process can go on");

    // Operators send SIGHUP for a reload; a service must survive it.
    for process in ["lock-server", "policy-store", "syncer-1", "cell-agent-1"] {
        cluster.request(&["kill", "--signal", "HUP", process]).expect("a signal can be sent");
        let log = cluster.state().join("logs").join(format!("{process}.log"));
        wait::until(&format!("{process} logs the ignored signal"), || {
            let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if text.contains("signal-ignored") { Ok(()) } else { Err(text) }
        });
        assert_eq!(cluster.process_state(process), "running");
    }

    cluster.request(&["kill", "lock-server"]).expect("a process can be killed");
    cluster.wait_for("lock-server ended: signal: 9 (SIGKILL)");
    assert_eq!(cluster.process_state("lock-server"), "signal: 9 (SIGKILL)");
    cluster.request(&["start", "lock-server"]).expect("a process can be started again");
    cluster.request(&["restart", "cell-agent-1"]).expect("an agent can be restarted");

    assert_eq!(cluster.request(&["add-cell"]).expect("a cell fits"), "cell-2 answers");
    let added = cluster.request(&["add-app", "late"]).expect("an app can be added");
    assert!(added.starts_with("late runs on cell-2 at 10.255.2.2, handle "), "{added}");
    let again = cluster.request(&["add-app", "late"]).expect_err("names are unique");
    assert!(again.contains("there is a container late already"), "{again}");
    cluster.request(&["remove-cell", "cell-2"]).expect("a cell can be removed with its apps");
    assert_eq!(cluster.request(&["add-cell"]).expect("its number is free"), "cell-2 answers");
    cluster.request(&["add-app", "late"]).expect("its name is free");
    cluster.request(&["remove-app", "late"]).expect("an app can be removed");

    for (arguments, expected) in [
        (&["kill", "nope"][..], "no process nope runs"),
        (&["start", "lock-server"], "lock-server is already running"),
        (&["start", "nope"], "there is no process nope"),
        (&["remove-app", "nope"], "there is no container nope"),
        (&["remove-cell", "cell-9"], "there is no cell-9"),
        (&["kill", "lock-server", "--signal", "WINCH"], "unknown signal \"WINCH\""),
    ] {
        let error = cluster.request(arguments).expect_err("it cannot be done");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    cluster.end();
}
