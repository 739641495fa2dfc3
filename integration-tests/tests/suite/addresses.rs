//! Dead addresses and frozen processes. A host name has three addresses; some of them drop
//! every packet, before a connection or during one.
//!
//! All addresses lead to the same processes, which to a client look like several instances
//! on a shared database.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

use integration_tests::{
    process::Process,
    services::{ControlPlane, Surroundings},
    wait,
};
use net::testing::{ADDRESSES, drop_from, drop_only, resolved, with_three_addresses};
use nix::sys::signal::Signal;
use serde_json::json;

const HANDLE: &str = "1d1e63ae-302f-49d3-8c33-d79363f46c9c";
/// Time to live of the lock: the default in docs/config/syncer.md.
const LOCK_TTL: Duration = Duration::from_secs(15);

/// The remote address of the established connection to this port.
fn connected_to(port: &str) -> IpAddr {
    let port: u16 = port.parse().expect("a port");
    wait::until("a connection by name", || {
        let table = fs::read_to_string("/proc/thread-self/net/tcp").map_err(|e| e.to_string())?;
        let remote = table.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(2);
            let (address, at) = fields.next()?.split_once(':')?;
            let is_established = fields.next()? == "01";
            let address = u32::from_str_radix(address, 16).ok()?;
            let address = IpAddr::V4(Ipv4Addr::from(address.to_le_bytes()));
            let is_named = ADDRESSES.contains(&address.to_string().as_str());
            let is_port = u16::from_str_radix(at, 16).ok()? == port;
            (is_established && is_named && is_port).then_some(address)
        });
        remote.ok_or(table)
    })
}

/// The same port at the host name.
fn by_name(address: &str) -> String {
    format!("localhost:{}", port_of(address))
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').expect("host:port").1
}

#[expect(clippy::disallowed_methods, reason = "what is tested is real time")]
fn now() -> Instant {
    Instant::now()
}

fn syncer(plane: &ControlPlane, name: &str) -> Process {
    let surroundings = Surroundings {
        lock_server: by_name(&plane.lock_server.address),
        policy_store: by_name(&plane.store_address),
        lock_ttl: Some(LOCK_TTL.as_secs()),
        ..plane.surroundings()
    };
    plane.syncer_among(name, &surroundings)
}

fn cell_agent(plane: &ControlPlane) -> Process {
    let site = &plane.site;
    let files = site.cell_certificate("cell-1");
    let metadata =
        json!({ "policy_group_id": "app-1", "space_id": "s1", "container_workload": "app" });
    let entry = json!({ HANDLE: { "handle": HANDLE, "ip": "10.255.1.5", "metadata": metadata } });
    fs::write(site.path("store.json"), entry.to_string()).expect("the store can be written");
    let config = json!({
        "cell_id": "cell-1",
        "policy_store_address": by_name(&plane.store_address),
        "ca_cert_file": files.ca, "client_cert_file": files.cert, "client_key_file": files.key,
        "cni_datastore_path": site.path("store.json"),
        "state_directory": site.path("state"),
        "force_policy_poll_cycle_port": 0, "debug_server_port": 0,
        "log_level": "debug",
    });
    Process::serve("cell-agent", "-config-file", &site.config("cell-agent", &config))
}

fn wait_for_rule(agent: &Process, network: &str) {
    wait::until(&format!("the rule for {network}"), || {
        let rules = Command::new("nft").args(["list", "table", "inet", "portcullis"]).output();
        let rules = rules.expect("nft is installed (nftables)").stdout;
        let rules = String::from_utf8_lossy(&rules).into_owned();
        if rules.contains(network) { Ok(()) } else { Err(agent.lines().join("\n")) }
    });
}

/// A lock owner keeps its lock as long as one address works.
#[test]
fn no_lock_is_lost_to_a_dead_address() {
    with_three_addresses(|| {
        let plane = ControlPlane::start_on(Ipv4Addr::UNSPECIFIED);
        let addresses = resolved();

        // Two addresses are dead before the first connection.
        drop_only(&addresses[..2]);
        let began = now();
        let syncer = syncer(&plane, "syncer-1");
        wait::until("a leader", || plane.leader().ok_or_else(|| syncer.lines().join("\n")));
        println!("led after {:?} with two of three addresses dead", began.elapsed());
        let port = port_of(&plane.lock_server.address);
        assert_eq!(connected_to(port), addresses[2]);

        // The address in use dies during the connection: in both directions, then in one.
        for cut in [drop_only, drop_from] {
            let used = connected_to(port);
            cut(&[used]);
            let (began, mut went_on) = (now(), None);
            while began.elapsed() < 2 * LOCK_TTL {
                assert_eq!(plane.leader().as_deref(), Some("syncer-1"), "{:?}", syncer.lines());
                if went_on.is_none() && connected_to(port) != used {
                    went_on = Some(began.elapsed());
                }
                wait::let_pass(Duration::from_millis(200));
            }
            println!("another address is in use after {went_on:?}");
            assert_eq!(syncer.count("lost-lock"), 0, "{:?}", syncer.lines());
            assert_ne!(connected_to(port), used);
        }
    });
}

/// A watch continues on another address within 6 s.
#[test]
fn a_watch_goes_on_when_its_address_dies() {
    with_three_addresses(|| {
        let plane = ControlPlane::start_on(Ipv4Addr::UNSPECIFIED);
        let _syncer = plane.syncer("syncer-1");
        plane.cloud.create_group("first", "10.1.0.0/16");
        plane.wait_until_synced();
        let addresses = resolved();
        drop_only(&addresses[..1]);
        let began = now();
        let agent = cell_agent(&plane);
        wait_for_rule(&agent, "10.1.0.0/16");
        println!("first groups after {:?} with one of three addresses dead", began.elapsed());

        let used = connected_to(port_of(&plane.store_address));
        drop_only(&[used]);
        let began = now();
        plane.cloud.create_group("second", "10.2.0.0/16");
        wait_for_rule(&agent, "10.2.0.0/16");
        let took = began.elapsed();
        println!("the change arrived {took:?} after the address in use died");
        // The ping timeout of 5 s, and 1 s to reconnect.
        assert!(took < Duration::from_secs(6), "{took:?}");
    });
}

/// The kernel acknowledges packets for a stopped process, so TCP does not detect it.
#[test]
fn a_frozen_agent_is_disconnected() {
    with_three_addresses(|| {
        let plane = ControlPlane::start_on(Ipv4Addr::UNSPECIFIED);
        let _syncer = plane.syncer("syncer-1");
        plane.cloud.create_group("first", "10.1.0.0/16");
        plane.wait_until_synced();
        let agent = cell_agent(&plane);
        wait_for_rule(&agent, "10.1.0.0/16");
        let connected = || {
            let answer = plane.store("Status", "{}");
            let cells: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
            cells["cells"][0]["connected"] == true
        };
        assert!(connected(), "{:?}", plane.store("Status", "{}"));
        agent.signal(Signal::SIGSTOP);
        let began = now();
        wait::until("the cell to be away", || {
            if connected() { Err("it is there") } else { Ok(()) }.map_err(str::to_owned)
        });
        let took = began.elapsed();
        agent.signal(Signal::SIGCONT);
        println!("a frozen agent was disconnected after {took:?}");
        // A ping after 5 s of silence, and its timeout of 4 s.
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}
