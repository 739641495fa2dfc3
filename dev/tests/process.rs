//! The Cloud Controller as a process: listeners, certificates, restarts, invalid
//! configurations.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use certificates::Authority;
use dev::cloud_controller::json::Json;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;

use crate::support::{Controller, foreign_identity, send};

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
fn start(command: &mut Command) -> (Child, BufReader<ChildStdout>, Json) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let started = Json::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}"));
    let message = started.at(&["message"]).and_then(Json::as_str);
    assert_eq!(message, Some("cloud-controller.started"), "{line}");
    (child, log, started.at(&["data"]).unwrap().clone())
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
    let ca = started.at(&["ca"]).and_then(Json::as_str).unwrap().to_owned();
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

#[tokio::test]
async fn a_state_file_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.json");
    let config = format!(r#""state_file":"{}""#, file.display());
    let first = Controller::start(&config).await;
    let admin = first.admin().await;
    let (_, space) = admin.place("o", "s").await;
    let rules = r#"[{"protocol":"tcp","ports":"1","destination":"1.1.1.1"}]"#;
    let made =
        admin.post("/v3/security_groups", &format!(r#"{{"name":"g","rules":{rules}}}"#)).await;
    let bind = format!("/v3/security_groups/{}/relationships/running_spaces", made.guid());
    admin.post(&bind, &format!(r#"{{"data":[{{"guid":"{space}"}}]}}"#)).await;
    let token = admin.token.clone();
    let stamp = first.last_update().await;
    first.stop().await;

    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds passwords");
    let second = Controller::start(&config).await;
    assert_eq!(second.last_update().await, stamp);
    let request = second.api(Method::GET, "/v3/security_groups?names=g").bearer_auth(&token);
    let group = send(request).await;
    assert_eq!(group.status, 200, "the signing key is kept, too");
    let group = group.json().at(&["resources"]).and_then(Json::as_array).unwrap()[0].clone();
    assert_eq!(group.at(&["rules"]).unwrap().to_text(), rules);
    let bound = group.at(&["relationships", "running_spaces", "data"]).unwrap().to_text();
    assert_eq!(bound, format!(r#"[{{"guid":"{space}"}}]"#));
    let admin = second.admin().await;
    let names = admin.get("/v3/security_groups").await.listed("name");
    assert_eq!(names, ["public_networks", "dns", "g"], "not seeded twice");
    second.stop().await;

    std::fs::write(&file, "{").unwrap();
    let output = run(&format!("{{{config}}}"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("state.json"), "{log}");
}

#[tokio::test]
async fn the_internal_listener_wants_a_certificate_of_its_authority() {
    let controller = Controller::start("").await;
    let url = format!("{}/internal/v4/asg_latest_update", controller.addresses.internal);
    let ca = std::fs::read(&controller.addresses.certificates.ca).unwrap();
    let builder = || {
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        reqwest::Client::builder().tls_certs_only([ca])
    };
    let none = builder().build().unwrap();
    assert!(none.get(&url).send().await.is_err());
    let foreign = builder().identity(foreign_identity()).build().unwrap();
    assert!(foreign.get(&url).send().await.is_err());
    assert_eq!(controller.last_update().await, "1970-01-01T00:00:00.000000000+00:00");
    for path in ["/internal/v4/asg_latest_update", "/internal/v4/apps/x", "/internal/v4/"] {
        let public = send(controller.api(Method::GET, path)).await;
        assert_eq!((public.status, public.text.as_str()), (403, "Forbidden"), "{path}");
    }
}

#[tokio::test]
async fn with_a_certificate_the_public_listeners_speak_https() {
    runtime::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let files = Authority::create(directory.path()).unwrap().issue("api", &["127.0.0.1"]).unwrap();
    let (_config, mut command) = with_config(&format!(
        r#"{{{FREE_PORTS},"tls":{{"cert_file":"{}","key_file":"{}"}}}}"#,
        files.cert.display(),
        files.key.display()
    ));
    let (child, log, started) = start(&mut command);
    let url = |key: &str| started.at(&[key]).and_then(Json::as_str).unwrap().to_owned();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&files.ca).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let root = send(client.get(url("api"))).await;
    assert_eq!(root.at(&["links", "login", "href"]), url("uaa"));
    assert!(url("uaa").starts_with("https://"));
    assert_eq!(send(client.get(format!("{}/login", url("uaa")))).await.status, 200);
    terminate(child, log);
}
