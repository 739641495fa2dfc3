//! Lifecycle of a whole process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde_json::Value as Json;
use tempfile::NamedTempFile;

const PROBE: &str = env!("CARGO_BIN_EXE_runtime-probe");

fn config(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Runs a probe that exits by itself.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROBE);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let _watchdog = watch(&child);
    child.wait_with_output().unwrap()
}

/// Kills the child after a timeout unless the returned value is dropped first, so that a process
/// that hangs fails its test.
fn watch(child: &Child) -> Sender<()> {
    const LONGEST: Duration = Duration::from_secs(30);
    let (alive, watched) = mpsc::channel();
    let id = child.id().to_string();
    thread::spawn(move || {
        if watched.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
            let _already_gone = Command::new("kill").args(["-s", "KILL", &id]).status();
        }
    });
    alive
}

fn run_with(text: &str) -> Output {
    let file = config(text);
    run(&["-config", file.path().to_str().unwrap()])
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The last log line, parsed.
fn last(output: &Output) -> Json {
    let line = text(&output.stdout).lines().last().expect("a log line");
    serde_json::from_str(line).expect(line)
}

/// A running probe.
struct Running {
    child: Child,
    /// `None` once the log is no longer read.
    log: Option<BufReader<ChildStdout>>,
    admin: String,
    _watchdog: Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Running {
    /// Starts a probe and waits until the probe logs that it has started.
    fn start(more_config: &str) -> Self {
        let file = config(&format!(r#"{{"admin_address":"127.0.0.1:0"{more_config}}}"#));
        let mut command = Command::new(PROBE);
        command.arg("--config").arg(file.path()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = child.stdout.take().map(BufReader::new);
        let _watchdog = watch(&child);
        let mut running = Self { child, log, admin: String::new(), _watchdog };
        let bound = running.wait_for("probe.bound");
        running.admin = bound["data"]["admin"].as_str().unwrap().to_owned();
        running.wait_for("probe.started");
        running
    }

    /// Waits for the next line with this message. The log ends with the process.
    fn wait_for(&mut self, message: &str) -> Json {
        let log = self.log.as_mut().unwrap();
        let mut line = String::new();
        while log.read_line(&mut line).unwrap() > 0 {
            let parsed: Json = serde_json::from_str(&line).expect(&line);
            if parsed["message"] == message {
                return parsed;
            }
            line.clear();
        }
        panic!("the process ended without {message}");
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns the exit code and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.take().unwrap().read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }

    fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn a_signal_ends_it_in_order() {
    for signal in ["TERM", "INT"] {
        let running = Running::start("");
        running.signal(signal);
        let (code, log) = running.end();
        assert_eq!(code, Some(0), "{log}");
        let number = if signal == "TERM" { 15 } else { 2 };
        assert!(
            log.contains(&format!(r#""message":"probe.signalled","data":{{"signal":{number}}}"#))
        );
        assert!(log.trim_end().ends_with(r#""message":"probe.exited","data":{}}"#), "{log}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut running = Running::start(r#","fault":"hang","drain_seconds":3600"#);
    running.signal("TERM");
    running.wait_for("probe.signalled");
    running.signal("INT");
    let (code, log) = running.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("signal 2 arrived while draining"), "{log}");
}

/// A supervisor signals the process and then its process group.
#[test]
fn the_same_signal_twice_at_once_is_one() {
    let mut running = Running::start(r#","fault":"hang","drain_seconds":1"#);
    running.signal("TERM");
    running.wait_for("probe.signalled");
    running.signal("TERM");
    let (_, log) = running.end();
    assert!(log.contains("aborted: "), "it drained to the end: {log}");
    assert!(!log.contains("arrived while draining"), "{log}");
}

#[test]
fn a_task_that_does_not_end_is_named() {
    let running = Running::start(r#","fault":"hang","drain_seconds":0"#);
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("probe.exited-with-failure"), "{log}");
    assert!(log.contains("aborted: ") && log.contains("worker"), "{log}");
}

#[test]
fn sigusr1_and_sighup_are_ignored() {
    let mut running = Running::start("");
    running.signal("USR1");
    running.signal("HUP");
    running.wait_for("probe.signal-ignored");
    assert!(running.http("GET /healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn the_admin_server_has_metrics_and_a_log_level() {
    let mut running = Running::start("");
    let metrics = running.http("GET /metrics");
    assert!(metrics.contains("probe_starts_total 1\n"), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes "), "{metrics}");
    assert!(metrics.contains("service=\"runtime-probe\""), "{metrics}");
    let mut stream = TcpStream::connect(&running.admin).unwrap();
    let body = "POST /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\ndebug";
    stream.write_all(body.as_bytes()).unwrap();
    let changed = running.wait_for("probe.log-level-changed");
    assert_eq!(changed["data"]["level"], "debug");
}

#[test]
fn a_closed_standard_output_does_not_end_it() {
    let mut running = Running::start("");
    running.log = None;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&running.admin).unwrap();
        let body = "POST /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\ni";
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    running.signal("TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_start_failure_is_one_line_with_the_whole_chain() {
    let output = run_with(r#"{"admin_address":"127.0.0.1:0","fault":"bind"}"#);
    assert_eq!(output.status.code(), Some(1));
    let line = last(&output);
    assert_eq!(line["message"], "probe.exited-with-failure");
    assert_eq!(line["level"], "error");
    assert_eq!(line["data"]["error"], "opening the store: it is not there");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run_with(&format!(r#"{{"admin_address":"{address}"}}"#));
    assert_eq!(output.status.code(), Some(1));
    let error = last(&output)["data"]["error"].as_str().unwrap().to_owned();
    let start = format!("admin: listening on {address}: Address already in use");
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn a_task_that_fails_ends_the_process() {
    let output = run_with(r#"{"admin_address":"127.0.0.1:0","fault":"task"}"#);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last(&output)["data"]["error"], "worker failed: out of paper");
}

#[test]
fn a_panic_is_in_the_log_and_ends_the_process() {
    let output = run_with(r#"{"admin_address":"127.0.0.1:0","fault":"panic"}"#);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last(&output)["data"]["error"], "worker failed: panicked: out of luck");
    let log = text(&output.stdout);
    assert!(
        log.contains(r#""message":"probe.panicked","data":{"error":"out of luck","location":"#)
    );
    assert!(text(&output.stderr).contains("out of luck"));
}

#[test]
fn a_bad_configuration_is_reported_on_standard_error() {
    let output = run_with(r#"{"admin_address":"nowhere","drain_seconds":"1"}"#);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].starts_with("invalid-config-file: /"), "{stderr}");
    assert!(lines[0].contains(": admin_address: expects host:port, and has no port"), "{stderr}");
    assert!(lines[1].contains(": drain_seconds: expects a whole number of seconds"), "{stderr}");

    let missing = run(&["--config=/nonexistent.json"]);
    assert_eq!(missing.status.code(), Some(7));
    let stderr = text(&missing.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("/nonexistent.json: cannot be read: No such file"), "{stderr}");
}

#[test]
fn unknown_keys_are_named_and_do_not_matter() {
    let output = run_with(r#"{"admin_address":"127.0.0.1:0","fault":"task","x":1}"#);
    let log = text(&output.stdout);
    let expected = r#""level":"info","source":"probe","message":"probe.unknown-config-keys","data":{"keys":["x"]}}"#;
    assert!(log.lines().next().unwrap().ends_with(expected), "{log}");
}

#[test]
fn a_configuration_can_be_checked_without_serving() {
    let good = config(r#"{"admin_address":"127.0.0.1:1","odd":1}"#);
    let path = good.path().to_str().unwrap();
    let output = run(&["--check-config", "-config", path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "configuration is valid\nunknown key, ignored: odd\n");
    let bad = config("{}");
    let output = run(&["-check-config", "-config", bad.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output.stderr).contains("admin_address: missing"));
}

#[test]
fn the_command_line_is_explained() {
    let output = run(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("Usage: runtime-probe"));
    assert_eq!(text(&output.stdout), "");
    let output = run(&["-version"]);
    assert_eq!(text(&output.stdout), format!("runtime-probe {}\n", env!("CARGO_PKG_VERSION")));
    let output = run(&["-unknown"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage: runtime-probe"));
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(7));
    let expected =
        "invalid-config-file: no configuration file is named: run runtime-probe -config=FILE\n";
    assert_eq!(text(&output.stderr), expected);
}
