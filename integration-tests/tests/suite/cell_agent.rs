//! A cell's agent as an operator on the cell meets it: the Unix socket, with
//! grpcurl and portcullisctl. The policy store is away, so the containers of an
//! unknown space are closed.

use std::{fs, path::Path, process::Command};

use integration_tests::{
    binaries,
    grpcurl::{self, Target},
    process::Process,
    services::Site,
};
use serde_json::json;

const HANDLE: &str = "1d1e63ae-302f-49d3-8c33-d79363f46c9c";

fn start(site: &Site) -> Process {
    let files = site.cell_certificate("cell-1");
    let store = site.path("store.json");
    let metadata =
        json!({ "policy_group_id": "app-1", "space_id": "s1", "container_workload": "app" });
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
    let config = site.config("cell-agent", &config).display().to_string();
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
    assert!(call("Status", "{}").stdout.contains("cell-1"));
}

fn ctl(socket: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(binaries::path("portcullisctl"));
    let output = command.arg("--cell-socket").arg(socket).args(args).output();
    let output = output.expect("portcullisctl can be run");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn portcullisctl_tells_why_a_container_is_closed() {
    let site = Site::new();
    let mut agent = start(&site);
    let socket = site.path("control.sock");

    let (done, text) = ctl(&socket, &["containers"]);
    assert!(done && text.contains(HANDLE) && text.contains("not known yet"), "{text}");
    let (done, text) = ctl(&socket, &["--json", "explain", HANDLE, "tcp", "1.2.3.4:80"]);
    assert!(done && text.contains(r#""verdict":"denied""#), "{text}");
    let (done, text) = ctl(&socket, &["rules", "nobody"]);
    assert!(!done && text.contains("nobody"), "{text}");

    assert_eq!(agent.terminate().code(), Some(0));
    let (done, text) = ctl(&socket, &["containers"]);
    assert!(!done && text.contains("portcullisctl: list containers"), "{text}");
}
