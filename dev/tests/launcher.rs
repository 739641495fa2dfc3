//! The launcher as a process, with stand-ins for the services: however it ends, the
//! next launcher removes all leftovers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cluster::state::{Made, Mark};
use cluster::topology::{Cell, Name};
use cni::namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A state directory, a directory of stand-ins, and a name for one cluster.
struct Fixture {
    directory: tempfile::TempDir,
    name: Name,
}

impl Fixture {
    fn new(purpose: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("bin")).unwrap();
        let name = Name::parse(&format!("t{}-{purpose}", std::process::id())).unwrap();
        Self { directory, name }
    }

    /// Replaces a service by a shell script.
    fn stand_in(&self, service: &str, script: &str) -> &Self {
        let path = self.directory.path().join("bin").join(service);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        self
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-dev"));
        command.args(["cluster", "--ports", "auto", "--name", self.name.as_str()]);
        command.arg("--state-dir").arg(self.state());
        command.arg("--bin-dir").arg(self.directory.path().join("bin"));
        command.args(more).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// Starts the launcher, and waits until it waits for the stand-ins.
    fn start(&self) -> (Child, Made) {
        let launcher = self.command(&[]).spawn().unwrap();
        let made = until("the policy store is started", || {
            made(&self.state()).filter(|made| made.processes.iter().any(is_policy_store))
        });
        (launcher, made)
    }

    fn namespaces(&self) -> Vec<String> {
        let name = &self.name;
        let cells = Cell::all(2).map(|cell| name.cell(cell));
        [name.router(), name.outside()].into_iter().chain(cells).collect()
    }

    fn nothing_is_left(&self) {
        let left: Vec<String> = self.namespaces();
        let left: Vec<String> = left.into_iter().filter(|name| namespace::exists(name)).collect();
        assert_eq!(left, Vec::<String>::new());
        let made = made(&self.state()).unwrap();
        assert_eq!((made.processes, made.namespaces), (Vec::new(), Vec::new()));
    }
}

fn is_policy_store(mark: &Mark) -> bool {
    mark.name == "policy-store"
}

fn made(state: &Path) -> Option<Made> {
    serde_json::from_str(&std::fs::read_to_string(state.join("state.json")).ok()?).ok()
}

#[expect(clippy::disallowed_methods, reason = "a test without a runtime waits for a process")]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(launcher: &Child, signal: Signal) {
    kill(Pid::from_raw(launcher.id().try_into().unwrap()), signal).unwrap();
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_missing_service_is_named_and_nothing_is_left() {
    let fixture = Fixture::new("missing");
    let output = fixture.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let expected = "bin/lock-server is not there; build it first, or name its directory\n";
    assert!(errors(&output).ends_with(expected), "{}", errors(&output));
    fixture.nothing_is_left();
}

#[test]
fn a_service_that_dies_ends_the_cluster_with_its_last_words() {
    let fixture = Fixture::new("dies");
    fixture.stand_in("lock-server", "exec sleep 1000");
    fixture.stand_in("policy-store", "echo no database >&2; exit 3");
    let output = fixture.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let text = errors(&output);
    assert!(text.contains("policy-store ended unexpectedly: exit status: 3\n"), "{text}");
    assert!(text.ends_with("policy-store.log ends with\n    no database\n"), "{text}");
    fixture.nothing_is_left();
}

#[test]
fn a_signal_takes_everything_down() {
    for (purpose, how) in
        [("int", Signal::SIGINT), ("term", Signal::SIGTERM), ("hup", Signal::SIGHUP)]
    {
        let fixture = Fixture::new(purpose);
        fixture.stand_in("lock-server", "exec sleep 1000");
        fixture.stand_in("policy-store", "exec sleep 1000");
        let (launcher, made) = fixture.start();
        signal(&launcher, how);
        let output = launcher.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert!(made.processes.iter().all(|mark| !mark.runs()), "{made:?}");
        fixture.nothing_is_left();
    }
}

#[test]
fn after_a_kill_the_processes_are_gone_and_the_next_launcher_removes_the_rest() {
    let fixture = Fixture::new("kill");
    fixture.stand_in("lock-server", "exec sleep 1000");
    fixture.stand_in("policy-store", "exec sleep 1000");
    let (launcher, made) = fixture.start();
    assert_eq!(made.processes.len(), 3, "{made:?}");

    let second = fixture.command(&["--clean"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let running = format!("this cluster is already running (process {})", launcher.id());
    assert!(errors(&second).contains(&running), "{}", errors(&second));
    assert!(made.processes.iter().all(Mark::runs), "{made:?}");

    signal(&launcher, Signal::SIGKILL);
    launcher.wait_with_output().unwrap();
    until("the kernel has ended the processes", || {
        made.processes.iter().all(|mark| !mark.runs()).then_some(())
    });

    let third = fixture.command(&["--clean"]).output().unwrap();
    assert_eq!(third.status.code(), Some(0), "{}", errors(&third));
    fixture.nothing_is_left();
}

#[test]
fn a_name_that_cannot_be_part_of_a_namespaces_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-dev"));
    let output = command.args(["cluster", "--clean", "--name", "../x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("a name is 1 to 32 lower-case letters"));
}
