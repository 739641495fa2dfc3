//! The cell-agent's Unix socket, used with grpcurl and portcullisctl. Without a policy
//! store, containers of an unknown space are denied everything.

use std::{
    fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use integration_tests::{
    binaries,
    grpcurl::{self, Target},
    process::Process,
    services::{ControlPlane, Site},
    wait,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

pub(crate) const HANDLE: &str = "1d1e63ae-302f-49d3-8c33-d79363f46c9c";

/// An app GUID with terminal control characters.
pub(crate) const APP: &str = "app\u{1b}[31m\u{202e}\n\u{9b}1";

/// Writes the agent's configuration and a metadata store with one container.
pub(crate) fn configure(site: &Site) -> PathBuf {
    let files = site.cell_certificate("cell-1");
    let store = site.path("store.json");
    let metadata = json!({
        "policy_group_id": "app-1", "app_id": APP, "space_id": "s1", "container_workload": "app",
    });
    let entry = json!({ HANDLE: { "handle": HANDLE, "ip": "10.255.1.5", "metadata": metadata } });
    fs::write(&store, entry.to_string()).expect("the metadata store can be written");
    let config = json!({
        "cell_id": "cell-1",
        "policy_store_address": "127.0.0.1:1",
        "ca_cert_file": files.ca, "client_cert_file": files.cert, "client_key_file": files.key,
        "cni_datastore_path": store,
        "overlay_network": "10.255.0.0/16",
        "state_directory": site.path("state"),
        "control_socket": site.path("control.sock"),
        "force_policy_poll_cycle_port": 0, "debug_server_port": 0,
    });
    site.config("cell-agent", &config)
}

pub(crate) fn start(site: &Site) -> Process {
    let config = configure(site).display().to_string();
    let agent = Process::start_apart("cell-agent", &["-config-file", &config]);
    agent.wait_for("vxlan-policy-agent.started");
    agent.wait_for("vxlan-policy-agent.rules-applied");
    agent
}

#[test]
fn grpcurl_lists_describes_and_calls() {
    let site = Site::new();
    let _agent = start(&site);
    let socket = site.path("control.sock");
    let target = Target::Unix(&socket);

    let list = grpcurl::run(&target, None, &["list"]);
    for service in ["portcullis.cell.v1.Cell", "grpc.health.v1.Health"] {
        assert!(list.stdout.contains(service), "{list:?}");
    }
    let service = grpcurl::run(&target, None, &["describe", "portcullis.cell.v1.Cell"]);
    for method in ["ListContainers", "EffectiveRules", "Explain", "Reconcile", "Status"] {
        assert!(service.stdout.contains(method), "{service:?}");
    }
    let call = |method: &str, request: &str| {
        let method = format!("portcullis.cell.v1.Cell/{method}");
        grpcurl::run(&target, Some(request), &[&method])
    };
    let containers = call("ListContainers", "{}");
    assert!(containers.stdout.contains("DENIED_UNTIL_KNOWN"), "{containers:?}");
    let request =
        format!(r#"{{"handle":"{HANDLE}","protocol":"tcp","destination":"1.2.3.4","port":80}}"#);
    let explained = call("Explain", &request);
    assert!(explained.stdout.contains("DENIED"), "{explained:?}");
    let rules = call("EffectiveRules", r#"{"handle":"nobody"}"#);
    assert!(rules.stderr.contains("NotFound"), "{rules:?}");
    assert!(call("Reconcile", "{}").success);
    let status = call("Status", "{}").stdout;
    assert!(status.contains("cell-1"), "{status}");
    // The response names the missing policy store.
    assert!(status.contains("the policy store is not reached: "), "{status}");
    assert!(status.contains("127.0.0.1:1"), "{status}");
}

fn ctl(socket: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(binaries::path("portcullisctl"));
    let output = command.arg("--cell-socket").arg(socket).args(args).output();
    let output = output.expect("portcullisctl can be run");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn portcullisctl_names_why_a_container_is_denied() {
    let site = Site::new();
    let mut agent = start(&site);
    let socket = site.path("control.sock");

    let (done, text) = ctl(&socket, &["containers"]);
    assert!(done && text.contains(HANDLE), "{text}");
    assert!(text.contains("denied: not in force yet"), "{text}");
    assert!(text.contains("has not sent the security groups of space"), "{text}");
    let (done, text) = ctl(&socket, &["--json", "explain", HANDLE, "tcp", "1.2.3.4:80"]);
    assert!(done && text.contains(r#""verdict":"denied""#), "{text}");
    let (done, text) = ctl(&socket, &["rules", "nobody"]);
    assert!(!done && text.contains("nobody"), "{text}");

    assert_eq!(agent.terminate().code(), Some(0));
    let (done, text) = ctl(&socket, &["containers"]);
    assert!(!done && text.contains("portcullisctl: list containers"), "{text}");
}

/// Runs a test and its processes in a new network namespace: the agent changes the packet
/// filter there, and connects to the other processes on loopback.
pub(crate) fn apart(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces can be made: run as root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip is installed (iproute2)").success());
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Starts the agent of a cell with one container; the agent watches this store.
pub(crate) fn watching(plane: &ControlPlane) -> Process {
    let site = &plane.site;
    let files = site.cell_certificate("cell-1");
    let metadata =
        json!({ "policy_group_id": "app-1", "space_id": "s1", "container_workload": "app" });
    let entry = json!({ HANDLE: { "handle": HANDLE, "ip": "10.255.1.5", "metadata": metadata } });
    fs::write(site.path("store.json"), entry.to_string()).expect("the store can be written");
    let config = json!({
        "cell_id": "cell-1",
        "policy_store_address": plane.store_address,
        "ca_cert_file": files.ca, "client_cert_file": files.cert, "client_key_file": files.key,
        "cni_datastore_path": site.path("store.json"),
        "state_directory": site.path("state"),
        "force_policy_poll_cycle_port": 0, "debug_server_port": 0,
        "log_level": "debug",
    });
    Process::serve("cell-agent", "-config-file", &site.config("cell-agent", &config))
}

/// The agent's n-th complete state: whether it was a reset, and its number of groups.
fn told(agent: &Process, nth: usize) -> (bool, u64) {
    wait::until(&format!("whole state {nth}"), || {
        let log = agent.log().into_iter();
        let mut states = log.filter(|line| {
            line["message"].as_str().is_some_and(|text| text.ends_with(".groups-received"))
        });
        let state = states.nth(nth).ok_or_else(|| agent.lines().join("\n"))?;
        let upserted = state["data"]["upserted"].as_u64().expect("a number");
        Ok::<_, String>((state["data"]["reset"] == true, upserted))
    })
}

fn rules_of_the_kernel() -> String {
    let mut command = Command::new("nft");
    let output = command.args(["list", "table", "inet", "portcullis"]).output();
    String::from_utf8_lossy(&output.expect("nft is installed").stdout).into_owned()
}

/// All cells reconnect at once after a restart of the store, so a reconnected cell must not
/// cost a transfer of all its groups.
#[test]
fn a_reconnected_cell_gets_only_the_missed_changes() {
    apart(|| {
        let mut plane = ControlPlane::start();
        let _syncer = plane.syncer("syncer-1");
        plane.cloud.create_group("first", "10.1.0.0/16");
        plane.cloud.create_group("second", "10.2.0.0/16");
        plane.wait_until_synced();
        let groups = plane.stored_names().len() as u64;

        let mut agent = watching(&plane);
        assert_eq!(told(&agent, 0), (true, groups), "everything, for a cell that has nothing");
        agent.wait_for("rules-applied");
        assert!(agent.terminate().success());

        // A group is created while the agent is stopped.
        plane.cloud.create_group("third", "10.3.0.0/16");
        plane.wait_until_synced();
        let mut agent = watching(&plane);
        assert_eq!(told(&agent, 0), (false, 1), "what came while it was away");
        wait::until("the new rule", || {
            let rules = rules_of_the_kernel();
            if rules.contains("10.3.0.0/16") { Ok(()) } else { Err(rules) }
        });
        assert!(rules_of_the_kernel().contains("10.1.0.0/16"), "what it had");

        // The store restarts without a change; then a group changes.
        plane.policy_store.kill();
        agent.wait_for("policy-store-watch-ended.keeping-last-good-groups");
        plane.restart_store();
        assert_eq!(told(&agent, 1), (false, 0), "nothing new after a restart of the store");
        plane.cloud.create_group("fourth", "10.4.0.0/16");
        plane.wait_until_synced();
        assert_eq!(told(&agent, 2), (false, 1));
        assert!(agent.terminate().success());

        // Without its saved state the agent gets all groups.
        fs::remove_dir_all(plane.site.path("state")).expect("the state can be removed");
        let mut agent = watching(&plane);
        assert_eq!(told(&agent, 0), (true, groups + 2));
        assert!(agent.terminate().success());
    });
}
