//! The output of `cell-agent render` matches the rules that the agent applies.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    agent::{Cell, app, bound, global, listing, rule},
    lab::{lab, sh},
    recorded::chains,
    silk::{BACKENDS, Silk},
};

const SETTINGS: &str = r#"{"iptables_asg_logging": false, "iptables_denied_logs_per_sec": 3,
    "deny_networks": {"always": ["10.9.0.0/16"], "running": ["10.8.0.0/16"], "staging": []},
    "outbound_connections": {"limit": true, "logging": true, "burst": 9, "rate_per_sec": 2}}"#;

/// Renders the files of a cell and the groups of its store.
fn render(cell: &Cell, plane: &str) -> String {
    let file = |name: &str| cell.directory.path().join(name);
    fs::write(file("agent.json"), cell.config_text()).unwrap();
    fs::write(file("groups.json"), groups().to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cell-agent"))
        .args(["render", "--plane", plane, "--config-file"])
        .arg(file("agent.json"))
        .arg("--store")
        .arg(cell.store_path())
        .arg("--security-groups")
        .arg(file("groups.json"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const NEAR: &str = "10.1.0.0/16,10.1.9.0-10.1.12.4";

fn groups() -> Value {
    json!([
        {"guid": "g1", "name": "g1", "running_default": true,
         "rules": [{"protocol": "tcp", "destination": NEAR, "ports": "80,443"},
                   {"protocol": "udp", "destination": "10.2.0.1", "ports": "53", "log": true}]},
        {"guid": "g2", "name": "g2", "running_space_guids": ["s2"],
         "rules": [{"protocol": "all", "destination": "10.3.0.0/24"}]},
    ])
}

async fn fill(cell: &mut Cell) {
    let mut logged = rule("udp", "10.2.0.1", "53");
    logged.log = true;
    let near = rule("tcp", NEAR, "80,443");
    let far = rule("all", "10.3.0.0/24", "");
    cell.store.set(vec![global("g1", vec![near, logged]), bound("g2", "s2", vec![far])]);
    for (index, space) in (1..).zip(["s1", "s2", "s1"]) {
        let handle = format!("0000000{index}-aaaa-bbbb-cccc-0123456789ab");
        cell.add_entry(&handle, &format!("10.255.1.{index}"), &app(space));
    }
    cell.caught_up().await;
}

/// nft lists chains in creation order.
fn blocks(listing: &str) -> Vec<&str> {
    let listing = listing.strip_prefix("table inet portcullis {\n").unwrap_or(listing);
    let mut blocks: Vec<&str> =
        listing.split("\n\t}\n").map(|block| block.trim_start_matches('\n')).collect();
    blocks.sort_unstable();
    blocks
}

#[test]
fn the_table_that_is_printed_is_the_one_in_the_kernel() {
    lab(async |lab| {
        let mut cell = Cell::running(serde_json::from_str(SETTINGS).unwrap()).await;
        fill(&mut cell).await;
        cell.settled().await;
        let text = render(&cell, "nftables");
        let file = cell.directory.path().join("table.nft");
        fs::write(&file, text).unwrap();
        let load = format!("nft -f {}", file.display());
        let printed = lab.outside.run(move || {
            sh(&load);
            listing()
        });
        // Only the agent knows the interfaces of its containers.
        let learned = |line: &&str| !line.contains("iifname \"containers\"");
        let there: Vec<String> =
            listing().lines().filter(learned).map(|line| format!("{line}\n")).collect();
        assert_eq!(blocks(&printed), blocks(&there.concat()));
        assert!(printed.contains("10.3.0.0"), "{printed}");
        cell.stop().await;
    });
}

#[test]
fn the_chains_that_are_printed_are_those_in_the_kernel() {
    for silk in BACKENDS {
        lab(async move |_lab| {
            let settings: Value = serde_json::from_str(SETTINGS).unwrap();
            let mut cell = Cell::new(silk.config(settings.clone())).await;
            for index in 1..=3 {
                let handle = format!("0000000{index}-aaaa-bbbb-cccc-0123456789ab");
                silk.add(&handle, &format!("10.255.1.{index}"), &settings);
            }
            cell.start().await;
            fill(&mut cell).await;
            let printed = chains(render(&cell, "iptables").lines().map(str::to_owned));
            assert_eq!(printed.iter().filter(|line| line.starts_with(':')).count(), 3);
            crate::agent::eventually("the chains are as printed", async || silk.ours() == printed)
                .await;
            cell.stop().await;
        });
    }
}

/// Settings whose rules iptables prints in another form than its input.
fn settings() -> Vec<Value> {
    let mut settings = vec![
        json!({"disable_container_network_policy": true, "overlay_network": "10.255.7.7/16"}),
        json!({"disable_container_network_policy": true, "overlay_network": "0.0.0.0/0"}),
        json!({"deny_networks": {"always": ["10.9.8.7/12", "fd00::1/7"], "staging": [],
               "running": ["0.0.0.0/0", "1.2.3.4/32", "10.9.8.7/12", "::/0", "::1/128"]}}),
    ];
    settings.extend(
        [1, 2, 3, 5, 7, 60, 100, 300, 999, 5000, 10_000].map(
            |rate| json!({"iptables_asg_logging": true, "iptables_denied_logs_per_sec": rate}),
        ),
    );
    let limits = [(1, 1), (1, 3), (99, 100), (100, 100), (101, 100), (1000, 7), (10_000, 9999)];
    settings.extend(limits.map(|(burst, rate)| {
        json!({"outbound_connections":
            {"limit": true, "logging": rate == 100, "burst": burst, "rate_per_sec": rate}})
    }));
    settings
}

/// Every kind of rule, in both families.
fn rules() -> Value {
    let everywhere = "0.0.0.0/0,10.1.2.3,10.1.0.9-10.1.2.0,2001:db8::/33,::/0,fd00::1";
    let mut rules = Vec::new();
    for log in [false, true] {
        for ports in ["0-65535", "0", "1-65535", "65535", "80,8080-8090"] {
            for protocol in ["tcp", "udp"] {
                rules.push(json!({"protocol": protocol, "destination": everywhere, "ports": ports,
                                  "log": log}));
            }
        }
        rules.push(json!({"protocol": "all", "destination": everywhere, "log": log}));
        for (kind, code) in
            [(-1, -1), (-1, 0), (255, 7), (0, 0), (8, 0), (8, -1), (3, 4), (254, 254)]
        {
            for protocol in ["icmp", "icmpv6"] {
                rules.push(json!({"protocol": protocol, "destination": everywhere, "type": kind,
                                  "code": code, "log": log}));
            }
        }
    }
    json!(rules)
}

/// The agent compares its rules with the output of iptables, so each rule must be
/// printed as written; otherwise it would be rewritten forever.
#[test]
fn every_rule_is_printed_as_it_is_written() {
    for silk in BACKENDS {
        lab(async move |_lab| as_written(silk));
    }
}

fn as_written(silk: Silk) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let group = json!([{"guid": "g", "name": "g", "running_default": true, "rules": rules()}]);
    let store = json!({"c1": {"handle": "c1", "ip": "10.255.1.1", "metadata": app("s1")}});
    fs::write(file("groups.json"), group.to_string()).unwrap();
    fs::write(file("store.json"), store.to_string()).unwrap();
    for settings in settings() {
        fs::write(file("agent.json"), settings.to_string()).unwrap();
        for (family, programs) in [("ipv4", "iptables"), ("ipv6", "ip6tables")] {
            let printed = sh(&format!(
                "cd {} && {} render --plane iptables --family {family} --config-file agent.json \
                 --store store.json --security-groups groups.json 2>notes",
                directory.path().display(),
                env!("CARGO_BIN_EXE_cell-agent"),
            ));
            let plugged = "*filter\n:netout--c1--log - [0:0]\n:netout--c1--rl-log - [0:0]\n";
            fs::write(file("table"), printed.replace("*filter\n", plugged)).unwrap();
            let programs = format!("{programs}-{}", silk.backend);
            let restore = format!("{programs}-restore < {} && {programs}-save", file("table"));
            let kernel = chains(sh(&restore).lines().map(str::to_owned));
            let ours = chains(printed.lines().map(str::to_owned));
            assert!(ours.len() > 60, "{printed}");
            assert_eq!(kernel, ours, "{programs} {settings}");
        }
    }
}
