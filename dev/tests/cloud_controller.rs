//! The development Cloud Controller as a process: log, exit code, invalid
//! configurations.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-dev"));
    command.arg("cloud-controller").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_config(config: &str) -> (tempfile::TempDir, Command) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    command.arg("--config-file").arg(path);
    (directory, command)
}

fn run(config: &str, more: &[&str]) -> Output {
    let (_directory, mut command) = with_config(config);
    command.args(more).output().unwrap()
}

/// A process, the rest of its log, and the data of its `started` line.
fn start(command: &mut Command) -> (Child, BufReader<ChildStdout>, Value) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let mut started: Value =
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(started["message"], "cloud-controller.started", "{line}");
    (child, log, started["data"].take())
}

/// Terminates the process; returns the rest of its log.
fn terminate(mut child: Child, mut log: BufReader<ChildStdout>) -> String {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    rest
}

const FREE_PORTS: &str =
    r#""api_address":"127.0.0.1:0","uaa_address":"127.0.0.1:0","internal_address":"127.0.0.1:0""#;

#[test]
fn it_makes_certificates_when_none_are_given_and_ends_on_sigterm() {
    let (_directory, mut command) = with_config(&format!("{{{FREE_PORTS}}}"));
    let (child, log, started) = start(&mut command);
    let ca = started["ca"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&ca).exists());
    let rest = terminate(child, log);
    assert!(rest.contains("cloud-controller.exited"), "{rest}");
    assert!(!std::path::Path::new(&ca).exists(), "they go with the process");
}

#[test]
fn each_bad_configuration_has_a_one_line_error() {
    let output = run(r#"{"tls":{},"log_level":"loud"}"#, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    for key in ["tls.cert_file", "tls.key_file", "log_level"] {
        assert!(text.contains(key), "{text}");
    }
    let good = run("{}", &["--check-config"]);
    assert_eq!(good.status.code(), Some(0));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = run(&format!(r#"{{"api_address":"{address}"}}"#), &[]);
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("exited-with-failure") && log.contains(&address.to_string()), "{log}");
}

#[test]
fn a_torn_state_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.json");
    std::fs::write(&file, "{").unwrap();
    let output = run(&format!(r#"{{{FREE_PORTS},"state_file":"{}"}}"#, file.display()), &[]);
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("state.json"), "{log}");
}
