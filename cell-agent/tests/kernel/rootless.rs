//! Without privileges in the initial user namespace.

use std::process::Command;

use serde_json::json;

use crate::{
    agent::{all, bound, rule},
    lab::lab,
    stage::cell,
};

const NETWORKS: usize = 10_000;

/// nft cannot raise the send buffer of its socket there, and the kernel accepts at most
/// 212,992 bytes as one message.
#[test]
fn a_group_of_ten_thousand_networks_fits() {
    lab(async |lab| {
        let (mut cell, _prober) = cell(&lab, json!({"nft_path": "nft"})).await;
        let network = |n| rule("tcp", &format!("10.{}.{}.0/25", n / 250, n % 250), "443");
        let many = bound("g2", "s1", (0..NETWORKS).map(network).collect());
        cell.store.set(vec![bound("g1", "s1", vec![all("10.255.255.1")]), many]);
        cell.caught_up().await;
        cell.settled().await;
        cell.stop().await;
        let config = cell.directory.path().join("agent.json");
        std::fs::write(&config, cell.config_text()).unwrap();
        // The store is unreachable there: the agent uses its saved groups.
        let script = format!(
            "ip link set lo up; {agent} --config-file {config} --once >&2; nft -s list table inet portcullis",
            agent = env!("CARGO_BIN_EXE_cell-agent"),
            config = config.display()
        );
        let output = Command::new("unshare").args(["-Urn", "sh", "-c", &script]).output().unwrap();
        let (listing, log) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!log.contains("-isolated"), "{log}");
        assert!(!log.contains("too long"), "{log}");
        assert!(listing.contains("10.255.255.1 accept"), "{log}");
        for n in [0, NETWORKS / 2, NETWORKS - 1] {
            let network = format!("10.{}.{}.0/25", n / 250, n % 250);
            assert!(listing.contains(&network), "{network} is not in the kernel; {log}");
        }
        assert_eq!(listing.matches("/25").count(), NETWORKS, "each network once");
    });
}
