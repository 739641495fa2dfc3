//! Replays the recorded cases of the original: the same inputs, and the same verdict
//! for every probe packet (accept, accept and log, reject, blocked).
//!
//! On the iptables plane every snapshot of the original's tables is compared as well,
//! our chains and their parents, with both programs that are called iptables. On the
//! nftables plane a case's own use of iptables has no counterpart: a flush of chains
//! flushes our table. Log texts are skipped, and faults of the original's policy server
//! become a store that is down.

use std::{net::Ipv4Addr, time::Duration};

use proto::policy_v1::{Rule, SecurityGroup};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    agent::Cell,
    lab::{Lab, lab, sh},
    packets::{Fate, Kind, Prober},
    recorded::{self, section},
    silk::{BACKENDS, Silk},
};

/// Intended differences from the original, with our verdicts
/// (docs/compatibility/vxlan-policy-agent.md#differences). By case and number of the
/// operation.
const DIFFERENCES: &[(&str, usize, &str, &str)] = &[
    (
        "21-bad-destination-first-sync",
        5,
        "a destination that does not parse costs nothing but itself",
        "accept",
    ),
    (
        "22-bad-destination-while-running",
        11,
        "a destination that does not parse costs nothing but itself",
        "accept",
    ),
    ("22-bad-destination-while-running", 17, "nothing has to be mended by a restart", "accept"),
    (
        "23-ipv6-destination",
        8,
        "an IPv6 destination does not cost the change it came with",
        "accept accept",
    ),
    ("33-cleanup-endpoint-live", 6, "cleaning up a live container does not cut it off", "accept"),
    ("34-outside-flush", 8, "what others flush is put back", "accept"),
];

#[test]
fn every_recorded_packet_is_treated_as_by_the_original() {
    let Outcome { verdicts, tables: _ } = play_all(None);
    assert!(verdicts >= 149, "only {verdicts} verdicts were compared");
}

#[test]
fn every_recorded_table_of_iptables_legacy_comes_out() {
    let Outcome { verdicts, tables } = play_all(Some(BACKENDS[0]));
    assert!(verdicts >= 149 && tables >= 40, "only {verdicts} verdicts, {tables} tables");
}

#[test]
fn every_recorded_table_of_iptables_nft_comes_out() {
    let Outcome { verdicts, tables } = play_all(Some(BACKENDS[1]));
    assert!(verdicts >= 149 && tables >= 40, "only {verdicts} verdicts, {tables} tables");
}

/// Number of comparisons.
#[derive(Default)]
struct Outcome {
    verdicts: usize,
    tables: usize,
}

/// Replays all cases; without a plugin on the nftables plane.
fn play_all(silk: Option<Silk>) -> Outcome {
    let (mut total, mut wrong) = (Outcome::default(), Vec::new());
    for name in recorded::names() {
        let (case, recorded) = recorded::case(&name, silk.map_or("legacy", |silk| silk.backend));
        let (sender, receiver) = std::sync::mpsc::channel();
        let case_name = name.clone();
        lab(async move |lab| {
            let play = Play::new(lab, &case_name, &case, silk).await;
            sender.send(play.play(&case, &recorded).await).unwrap();
        });
        let (outcome, differences) = receiver.recv().unwrap();
        total.verdicts += outcome.verdicts;
        total.tables += outcome.tables;
        wrong.extend(differences);
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    total
}

/// The replay of one case.
struct Play {
    name: String,
    lab: Lab,
    prober: Prober,
    cell: Cell,
    silk: Option<Silk>,
    config: Value,
}

impl Play {
    async fn new(lab: Lab, name: &str, case: &Value, silk: Option<Silk>) -> Self {
        let prober = Prober::new(&lab);
        let config = case["agent_config"].clone();
        let overrides = config.clone();
        let overrides = silk.map_or(overrides.clone(), |silk| silk.config(overrides));
        let cell = Cell::running(overrides).await;
        Self { name: name.to_owned(), lab, prober, cell, silk, config }
    }

    async fn play(mut self, case: &Value, recorded: &str) -> (Outcome, Vec<String>) {
        let (mut outcome, mut wrong) = (Outcome::default(), Vec::new());
        for (index, op) in case["ops"].as_array().unwrap().iter().enumerate() {
            let number = index + 1;
            if op["op"] == "probe" {
                let verdicts = self.probe(op).await;
                let expected = self.expected(number, recorded);
                assert_eq!(verdicts.len(), expected.len(), "{} {number}", self.name);
                outcome.verdicts += verdicts.len();
                for ((found, expected), probe) in
                    verdicts.iter().zip(expected).zip(op["probes"].as_array().unwrap())
                {
                    if *found != expected {
                        let name = &self.name;
                        wrong.push(format!(
                            "{name} {number}: {expected} expected, {found} found: {probe}"
                        ));
                    }
                }
            } else if op["op"] == "snapshot" && self.silk.is_some() && self.cell.enforces() {
                wrong.extend(self.compare_tables(number, recorded).await);
                outcome.tables += 1;
            } else {
                self.act(op).await;
            }
        }
        self.cell.stop().await;
        (outcome, wrong)
    }

    /// The differences from the recorded table after the agent has settled.
    async fn compare_tables(&mut self, number: usize, recorded: &str) -> Option<String> {
        self.settle().await;
        let silk = self.silk?;
        let expected = recorded::table(&self.name, number, recorded);
        // Longer than two reads of the kernel.
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let found = silk.ours();
            if found == expected {
                return None;
            }
            if Instant::now() > deadline {
                let (expected, found) = (expected.join("\n"), found.join("\n"));
                return Some(format!(
                    "{} {number}: expected\n{expected}\nfound\n{found}",
                    self.name
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The verdicts of an operation, as recorded or from the list of differences.
    fn expected(&self, number: usize, recorded: &str) -> Vec<String> {
        let listed = DIFFERENCES.iter().find(|(name, op, ..)| *name == self.name && *op == number);
        if let Some((.., ours)) = listed {
            return ours.split(' ').map(str::to_owned).collect();
        }
        let lines = section(recorded, number, "probe");
        lines.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    async fn act(&mut self, op: &Value) {
        let handle = op["handle"].as_str().unwrap_or_default().to_owned();
        match op["op"].as_str().unwrap() {
            "asgs" => self.cell.store.set(groups(&op["value"])),
            "cni_add" => {
                let ip = op["ip"].as_str().unwrap();
                self.lab.container(ip.parse().unwrap());
                if let Some(silk) = self.silk {
                    silk.add(&handle, ip, &self.config);
                }
                self.cell.add_entry(&handle, ip, &op["metadata"]);
                let (status, _) = self.cell.get("/force-policy-poll-cycle").await;
                assert_eq!(status, 200);
                self.force(&handle).await;
            }
            "cni_del" => {
                self.cell.delete_entry(&handle);
                if let Some(silk) = self.silk {
                    silk.delete(&handle, op["ip"].as_str().unwrap());
                }
                self.clean_up(&handle).await;
            }
            "store_delete" => self.cell.delete_entry(&handle),
            "force" => self.force(&handle).await,
            "cleanup" => self.clean_up(&handle).await,
            "get" => {
                let (status, _) = self.cell.get(op["path"].as_str().unwrap()).await;
                assert_eq!(status, 400);
            }
            "control" if op["value"] == Value::Object(serde_json::Map::new()) => {
                self.cell.store.up().await;
            }
            "control" => self.cell.store.down().await,
            "poll" => self.settle().await,
            "iptables" if let Some(silk) = self.silk => {
                let words =
                    op["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
                let (command, before) = (words.collect::<Vec<_>>().join(" "), silk.ours());
                silk.run(&command);
                // The agent restores the deleted rules at its next check.
                let deadline = Instant::now() + Duration::from_secs(15);
                while command.starts_with("-F asg-") && silk.ours() != before {
                    assert!(Instant::now() < deadline, "{}: {command} was not healed", self.name);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            "iptables" => {
                self.cell.settled().await;
                sh("nft flush table inet portcullis");
                self.cell.settled().await;
            }
            "restart_agent" => {
                self.cell.stop().await;
                if let Some(overrides) = op["agent_config"].as_object() {
                    self.cell.configure(overrides);
                }
                self.cell.start().await;
            }
            // Operations on parts of the original that have no counterpart, and
            // read-only ones.
            "snapshot" | "logs" | "requests" | "policies" | "hold_lock" | "sleep" | "put"
            | "stop_agent" => {}
            other => panic!("{}: nobody knows the operation {other}", self.name),
        }
    }

    /// Like the CNI plugin: 405 means that enforcement is disabled here.
    async fn force(&mut self, handle: &str) {
        self.settle().await;
        let (status, body) = self.cell.force(handle).await;
        assert!(status == 200 || status == 405 || status == 500, "{status} {body}");
    }

    async fn clean_up(&mut self, handle: &str) {
        let path = format!("/force-orphaned-asgs-cleanup?container={handle}");
        let (status, body) = self.cell.get(&path).await;
        assert!(status == 200 || status == 405 || status == 500, "{status} {body}");
    }

    fn logged(&self) -> u64 {
        self.silk.map_or_else(logged, Silk::logged)
    }

    async fn settle(&mut self) {
        if self.cell.enforces() && self.cell.store.is_up() {
            self.cell.caught_up().await;
        }
    }

    async fn probe(&mut self, op: &Value) -> Vec<String> {
        self.settle().await;
        let from: Ipv4Addr = op["ip"].as_str().unwrap().parse().unwrap();
        let mut verdicts = Vec::new();
        for probe in op["probes"].as_array().unwrap() {
            let to: Ipv4Addr = probe["dst"].as_str().unwrap().parse().unwrap();
            let before = self.logged();
            let fate = self.prober.probe(from, to, kind(probe)).await;
            let log = if self.logged() > before { "+log" } else { "" };
            verdicts.push(match fate {
                Fate::Accept => format!("accept{log}"),
                Fate::Reject => format!("reject{log}"),
                Fate::Blocked => format!("blocked{log}"),
            });
        }
        verdicts
    }
}

/// Packet count of the log rules for allowed connections.
fn logged() -> u64 {
    let listing = sh("nft list table inet portcullis 2>/dev/null || true");
    let counters = listing.lines().filter(|line| line.contains("log prefix \"OK_"));
    counters
        .filter_map(|line| {
            line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

fn kind(probe: &Value) -> Kind {
    let number = |key: &str, default: u64| probe[key].as_u64().unwrap_or(default);
    let port = |key: &str, default: u64| u16::try_from(number(key, default)).unwrap();
    let byte = |key: &str, default: u64| u8::try_from(number(key, default)).unwrap();
    // Each packet is a separate connection unless the case says otherwise.
    let source = port("sport", u64::from(20_000 + rand_port()));
    match probe["proto"].as_str().unwrap() {
        "tcp" => Kind::Tcp { port: port("port", 0), source, flags: byte("flags", 2) },
        "udp" => Kind::Udp { port: port("port", 0), source },
        "icmp" => Kind::Icmp { icmp_type: byte("type", 8), code: byte("code", 0) },
        "sctp" => Kind::Other(132),
        "esp" => Kind::Other(50),
        "gre" => Kind::Other(47),
        other => panic!("nobody knows the protocol {other}"),
    }
}

fn rand_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) % 20_000
}

fn groups(value: &Value) -> Vec<SecurityGroup> {
    let texts = |value: &Value| {
        let texts = value.as_array().map(Vec::as_slice).unwrap_or_default();
        texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let groups = value.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    groups
        .map(|group| SecurityGroup {
            guid: group["guid"].as_str().unwrap().to_owned(),
            name: group["name"].as_str().unwrap().to_owned(),
            rules: group["rules"].as_array().unwrap().iter().map(rule).collect(),
            running_default: group["running_default"].as_bool().unwrap_or_default(),
            staging_default: group["staging_default"].as_bool().unwrap_or_default(),
            running_space_guids: texts(&group["running_space_guids"]),
            staging_space_guids: texts(&group["staging_space_guids"]),
        })
        .collect()
}

fn rule(rule: &Value) -> Rule {
    let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| i32::try_from(rule[key].as_i64().unwrap_or_default()).unwrap();
    Rule {
        protocol: text("protocol"),
        destination: text("destination"),
        ports: text("ports"),
        r#type: number("type"),
        code: number("code"),
        description: text("description"),
        log: rule["log"].as_bool().unwrap_or_default(),
    }
}
