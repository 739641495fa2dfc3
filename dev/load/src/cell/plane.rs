//! The two data planes and their programs: the CNI plugin's preparations, and reference
//! figures without an agent.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use cni::metadata::Entry;
use cni::namespace::Resident;
use cni::tools;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::lab::UNDERLAY;

/// Writing to a text does not fail.
const TO_TEXT: &str = "writing to a text does not fail";

/// The data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plane {
    /// A table of the agent's own.
    Nftables,
    /// The original's chains, through the programs that production uses.
    Legacy,
    /// The original's chains, written through nftables.
    IptablesNft,
}

impl FromStr for Plane {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "iptables-legacy" => Ok(Self::Legacy),
            "iptables-nft" => Ok(Self::IptablesNft),
            _ => Err(format!("{text:?} is none of nftables, iptables-legacy, iptables-nft")),
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Legacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
        })
    }
}

/// Names of the iptables programs.
#[derive(Debug, Clone, Copy)]
struct Programs {
    one: &'static str,
    save: &'static str,
    restore: &'static str,
}

/// Durations of writing the same rules without an agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw {
    /// Writing into an empty table.
    pub(super) first: Duration,
    /// Writing one element, or all rules again with iptables, which has no smaller
    /// write.
    pub(super) again: Duration,
}

impl Plane {
    fn programs(self) -> Option<Programs> {
        match self {
            Self::Nftables => None,
            Self::Legacy => Some(Programs {
                one: "iptables-legacy",
                save: "iptables-legacy-save",
                restore: "iptables-legacy-restore",
            }),
            Self::IptablesNft => Some(Programs {
                one: "iptables-nft",
                save: "iptables-nft-save",
                restore: "iptables-nft-restore",
            }),
        }
    }

    /// The agent's configuration for this plane.
    pub(super) fn keys(self, lock: &str) -> Map<String, Value> {
        let keys = match self.programs() {
            None => json!({ "data_plane": "nftables" }),
            Some(Programs { one, .. }) => json!({
                "data_plane": "iptables", "iptables_path": one, "iptables_lock_file": lock,
            }),
        };
        keys.as_object().cloned().unwrap_or_default()
    }

    /// The agent's default interval of checks for foreign changes.
    pub(super) fn look_interval(self) -> Duration {
        Duration::from_secs(if self == Self::Nftables { 2 } else { 5 })
    }

    /// Creates the CNI plugin's chains for the containers.
    pub(super) fn prepare(self, containers: &[Entry]) -> anyhow::Result<()> {
        let Some(Programs { restore, .. }) = self.programs() else { return Ok(()) };
        tools::run_with_input(restore, ["--noflush", "-w"], &plugin(containers))?;
        Ok(())
    }

    /// Deletes all rules from the kernel.
    pub(super) fn clear(self) -> anyhow::Result<()> {
        match self.programs() {
            None => {
                tools::run_with_input(
                    "nft",
                    ["-f", "-"],
                    "table inet portcullis\ndelete table inet portcullis\n",
                )?;
            }
            Some(Programs { restore, .. }) => {
                // Without --noflush the table is replaced.
                let empty = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
                tools::run_with_input(restore, ["-w"], empty)?;
            }
        }
        Ok(())
    }

    /// Writes the kernel's current rules again in another place, without the agent.
    pub(super) async fn raw(self, containers: &[Entry], rounds: u32) -> anyhow::Result<Raw> {
        let (mut first, mut again) = (Duration::MAX, Duration::MAX);
        for _ in 0..rounds {
            let elsewhere = Resident::apart("elsewhere")?;
            let raw = match self.programs() {
                None => {
                    let table = tools::run("nft", ["-s", "list", "table", "inet", "portcullis"])?;
                    elsewhere.run(move || raw_nft(&table)).await?
                }
                Some(programs) => {
                    let saved = tools::run(programs.save, ["-t", "filter"])?;
                    let plugin = plugin(containers);
                    elsewhere.run(move || raw_iptables(programs, &plugin, &batch(&saved))).await?
                }
            };
            let raw = raw.context("the same rules without an agent")?;
            (first, again) = (first.min(raw.first), again.min(raw.again));
        }
        Ok(Raw { first, again })
    }
}

fn plugin(containers: &[Entry]) -> String {
    let mut text = "*filter\n".to_owned();
    for Entry { handle, ip, .. } in containers {
        let chain: String = format!("netout--{handle}").chars().take(28).collect();
        write!(
            text,
            ":{chain} - [0:0]\n-A FORWARD -s {ip} -o {UNDERLAY} -j {chain}\n\
             -A {chain} -j REJECT --reject-with icmp-port-unreachable\n"
        )
        .expect(TO_TEXT);
    }
    text + "COMMIT\n"
}

/// One batch that creates and links the agent's chains as iptables-save prints them.
fn batch(saved: &str) -> String {
    let (mut names, mut rules) = (String::new(), String::new());
    let is_parent = |name: &str| name.starts_with("netout--");
    for line in saved.lines() {
        let declared = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
        let chain = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next());
        if let Some(name) = declared.filter(|name| name.starts_with("asg-") || is_parent(name)) {
            writeln!(names, ":{name} - [0:0]").expect(TO_TEXT);
        } else if chain.is_some_and(|name| name.starts_with("asg-") || is_parent(name)) {
            writeln!(rules, "{line}").expect(TO_TEXT);
        }
    }
    format!("*filter\n{names}{rules}COMMIT\n")
}

fn timed(tool: &'static str, arguments: &[&str], input: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    tools::run_with_input(tool, arguments, input)?;
    Ok(began.elapsed())
}

fn raw_nft(table: &str) -> anyhow::Result<Raw> {
    let first = timed("nft", &["-f", "-"], table)?;
    tools::run_with_input("nft", ["-f", "-"], "add set inet portcullis raw { type ipv4_addr; }\n")?;
    let element = "add element inet portcullis raw { 192.0.2.1 }\n";
    Ok(Raw { first, again: timed("nft", &["-f", "-"], element)? })
}

fn raw_iptables(programs: Programs, plugin: &str, batch: &str) -> anyhow::Result<Raw> {
    let arguments = ["--noflush", "-w"];
    tools::run_with_input(programs.restore, arguments, plugin)?;
    let first = timed(programs.restore, &arguments, batch)?;
    Ok(Raw { first, again: timed(programs.restore, &arguments, batch)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_has_the_agents_chains_and_their_parents_alone() {
        let saved = "*filter\n:FORWARD ACCEPT [0:0]\n:asg-a - [0:0]\n:netout--a - [0:0]\n\
                     -A FORWARD -s 10.255.1.1/32 -j netout--a\n-A asg-a -j ACCEPT\n\
                     -A netout--a -j asg-a\nCOMMIT\n";
        assert_eq!(
            batch(saved),
            "*filter\n:asg-a - [0:0]\n:netout--a - [0:0]\n-A asg-a -j ACCEPT\n\
             -A netout--a -j asg-a\nCOMMIT\n"
        );
    }

    #[test]
    fn planes_are_named_as_their_programs() {
        for plane in [Plane::Nftables, Plane::Legacy, Plane::IptablesNft] {
            assert_eq!(plane.to_string().parse(), Ok(plane));
        }
        assert!("iptables".parse::<Plane>().unwrap_err().contains("\"iptables\""));
    }
}
