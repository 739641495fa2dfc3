//! Clients with a valid certificate that send incomplete messages: memory stays within the
//! documented bounds, other clients are served, and the memory is freed.

use std::net::TcpStream;

use bytes::Bytes;
use integration_tests::{
    grpcurl::{self, Target},
    hostile::{Answers, Hostile, unfinished},
    process::Process,
    services::{ControlPlane, LockServer, Site},
    wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const MIB: u64 = 1 << 20;
/// Twice the budget of a server (64 MiB, policy store 128 MiB): growing buffers are copied,
/// and allocators keep freed memory for some time.
const LOCK_SERVER_MOST: u64 = 128 * MIB;
const POLICY_STORE_MOST: u64 = 256 * MIB;

const CALLS: usize = 500;
/// One byte less than the largest accepted message, 4.19 MB.
const LARGE: u32 = 4 << 20;

const LOCKET: [&str; 5] = [
    "/models.Locket/Lock",
    "/models.Locket/Fetch",
    "/models.Locket/FetchAll",
    "/models.Locket/Release",
    "/portcullis.lock.v1.LockWatch/Watch",
];
const STORE: [&str; 4] = [
    "/portcullis.policy.v1.PolicyStore/Replace",
    "/portcullis.policy.v1.PolicyStore/List",
    "/portcullis.policy.v1.PolicyStore/Watch",
    "/portcullis.policy.v1.PolicyStore/Status",
];
const EVERY_SERVER: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// `grpc-status` of RESOURCE_EXHAUSTED and of PERMISSION_DENIED.
const EXHAUSTED: &str = "8";
const DENIED: &str = "7";

/// The reflection of tonic ends its stream with OK when a request is bad.
fn refusal(path: &str) -> &'static str {
    if path.ends_with("ServerReflectionInfo") { "0" } else { EXHAUSTED }
}

/// Waits until `enough` holds; fails when the process uses more than `most` bytes.
fn watch(process: &Process, most: u64, what: &str, mut enough: impl FnMut() -> Result<(), String>) {
    let mut peak = 0;
    wait::until(what, || {
        peak = peak.max(process.memory());
        assert!(peak <= most, "{what}: {} MiB, at most {} expected", peak / MIB, most / MIB);
        enough().map_err(|seen| format!("{seen}, peak {} MiB", peak / MIB))
    });
}

fn refused(answers: &Answers, status: &str, calls: usize) -> Result<(), String> {
    let count = answers.get(status).copied().unwrap_or(0);
    if count >= calls { Ok(()) } else { Err(format!("{answers:?}, not {calls} of {status}")) }
}

/// Memory of unfinished messages is available to later messages.
fn unfinished_bytes(address: &str) -> Result<(), String> {
    let text = reqwest::blocking::get(format!("http://{address}/metrics"))
        .and_then(reqwest::blocking::Response::text)
        .map_err(|error| error.to_string())?;
    let lines = text.lines().filter(|line| line.starts_with("runtime_server_unfinished_bytes{"));
    let lines: Vec<&str> = lines.collect();
    if lines.iter().all(|line| line.ends_with(" 0")) { Ok(()) } else { Err(format!("{lines:?}")) }
}

#[test]
fn unfinished_messages_do_not_fill_the_lock_server() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let debug = server.debug_address();
    let before = server.process.memory();
    let most = before + LOCK_SERVER_MOST;
    let body = unfinished(LARGE, LARGE as usize - 1);
    for path in LOCKET.iter().chain(&EVERY_SERVER) {
        let mut client = Hostile::connect(&server.address, &site.certificate("nobody"));
        client.begin(path, CALLS, &body);
        // The budget of the connection holds seven or eight calls.
        let enough = || refused(&client.answers(), refusal(path), CALLS - 10);
        watch(&server.process, most, path, enough);
        // Small calls of other clients are answered meanwhile.
        server.lock("k", "o");
        drop(client);
        wait::until("the budget is free", || unfinished_bytes(&debug));
    }
    // jemalloc returns memory to the kernel 10 s after it was freed.
    let again = || match server.process.memory() {
        memory if memory < before + LOCK_SERVER_MOST / 4 => Ok(()),
        memory => Err(format!("{} MiB, {} before", memory / MIB, before / MIB)),
    };
    wait::until("the memory is given back", again);
}

/// A certificate without a role is refused before its message is read.
#[test]
fn unfinished_messages_do_not_fill_the_policy_store() {
    let plane = ControlPlane::start();
    let store = &plane.policy_store;
    let before = store.memory();
    let most = before + POLICY_STORE_MOST;
    let body = unfinished(LARGE, LARGE as usize - 1);
    for path in STORE.iter().chain(&EVERY_SERVER) {
        let mut client = Hostile::connect(&plane.store_address, &plane.site.certificate("nobody"));
        client.begin(path, CALLS, &body);
        let status = if STORE.contains(path) { DENIED } else { refusal(path) };
        watch(store, most, path, || refused(&client.answers(), status, CALLS - 10));
        assert!(plane.store_status().is_object());
        drop(client);
    }
    let again = || match store.memory() {
        memory if memory < before + POLICY_STORE_MOST / 2 => Ok(()),
        memory => Err(format!("{} MiB", memory / MIB)),
    };
    wait::until("the memory is given back", again);
}

/// The message prefix alone reserves no memory. The HTTP/2 library closes a connection with
/// thousands of frames of less than 256 bytes.
#[test]
fn announced_messages_cost_nothing_before_they_arrive() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let most = server.process.memory() + LOCK_SERVER_MOST;
    let prefix: Bytes = unfinished(LARGE, 300);
    let mut clients: Vec<Hostile> =
        (0..4).map(|_| Hostile::connect(&server.address, &site.certificate("nobody"))).collect();
    for client in &mut clients {
        client.begin("/models.Locket/Lock", 4_000, &prefix);
    }
    // The budget of the server holds 8,192 calls.
    let enough = || {
        let refused = clients.iter().map(|client| client.answers().values().sum::<usize>());
        let count: usize = refused.sum();
        if count >= 7_000 { Ok(()) } else { Err(format!("{count} refused")) }
    };
    watch(&server.process, most, "4 x 4,000 prefixes", enough);
    server.lock("k", "o");
}

fn all_stopped(pid: Pid) -> Result<(), String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    for task in tasks.map_while(Result::ok) {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State:"));
        if state.is_some_and(|state| !state.contains("stopped")) {
            return Err(status);
        }
    }
    Ok(())
}

/// A stopped client, which neither answers nor closes its connection, does not delay the
/// exit of the lock server beyond the drain time of 10 s.
#[test]
fn a_stopped_client_does_not_hold_up_the_end_of_the_lock_server() {
    runtime::tls::install_provider();
    let site = Site::new();
    let mut server = LockServer::start(&site);
    server.lock("k", "o");
    let target = Target::Tls(&server.address, &server.files);
    let watch = ["portcullis.lock.v1.LockWatch/Watch"];
    let begin = || grpcurl::begin(&target, Some(r#"{"key":"k"}"#), &watch);
    let (mut stopped, mut healthy) = (begin(), begin());
    let connections = r#"runtime_server_connections{server="grpc"} 2"#;
    let debug = server.debug_address();
    wait::until("both clients are connected", || {
        let text = reqwest::blocking::get(format!("http://{debug}/metrics"))
            .and_then(reqwest::blocking::Response::text)
            .map_err(|error| error.to_string())?;
        if text.contains(connections) { Ok(()) } else { Err(text) }
    });
    // A watch has begun when a change of its lock arrives.
    wait::until("both watch", || match server.process.count("locket.watch.complete") {
        2 => Ok(()),
        count => Err(format!("{count} watch")),
    });
    let pid = Pid::from_raw(stopped.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGSTOP).expect("our own process");
    // Each thread stops when it is scheduled next.
    wait::until("all threads are stopped", || all_stopped(pid));

    let began = jiff::Timestamp::now();
    server.process.signal(Signal::SIGTERM);
    wait::until("new clients go elsewhere", || match TcpStream::connect(&server.address) {
        Err(_refused) => Ok(()),
        Ok(_) => Err("connected".to_owned()),
    });
    healthy.wait().expect("our own process");
    server.process.wait();
    let took = jiff::Timestamp::now().duration_since(began);
    stopped.kill().expect("our own process");
    stopped.wait().expect("our own process");
    assert!(took.as_secs() < 7, "the end took {took:?}");
    let cut = server.process.log().into_iter().any(|line| {
        line["message"].as_str().is_some_and(|message| message.ends_with(".frozen-client-cut-off"))
    });
    assert!(cut, "the log names the client");
    server.restart();
    server.lock("k", "o");
}
