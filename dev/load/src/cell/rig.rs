//! A policy store, the agent of one cell that watches it, and the files of the CNI
//! plugin: processes of our binaries.
//!
//! The agent's own log says when a change was in the kernel. The agent and this tool
//! use the same clock, so the agent need not be observed meanwhile.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cni::metadata::{Entry, Store};
use jiff::Timestamp;
use model::group::SecurityGroup;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::plane::Plane;
use crate::server::{Ends, Server, Site};
use crate::store::data::Data;
use crate::store::writer::{Identity, Writer};

/// Timeout of every operation of the agent.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Interval of log reads; the time of an event comes from its log line.
const GLANCE: Duration = Duration::from_millis(5);

/// The store with its groups.
#[derive(Debug)]
pub(super) struct Rig {
    site: Site,
    store: Server,
    ends: Ends,
    writer: Writer,
    data: Data,
    revision: u32,
    directory: tempfile::TempDir,
}

/// A change that the store confirmed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirmed {
    pub(super) generation: u64,
    pub(super) at: Timestamp,
}

/// A change that the agent logged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied {
    /// When the change was in the kernel.
    pub(super) at: Timestamp,
    /// The agent's processing time, in milliseconds.
    pub(super) milliseconds: u64,
}

/// A running agent.
#[derive(Debug)]
pub(super) struct Agent {
    server: Server,
    log: File,
    unread: String,
    store: Store,
    http: reqwest::Client,
    /// Time before its process was started.
    pub(super) began: Timestamp,
}

impl Rig {
    /// Starts a store with these groups.
    pub(super) async fn new(
        binaries: Option<PathBuf>,
        groups: Vec<SecurityGroup>,
    ) -> anyhow::Result<(Self, Confirmed)> {
        let mut site = Site::new(binaries)?;
        let (store, ends) = site.policy_store().await?;
        let writer = Writer::new(ends.writer.channels(1)?.remove(0), Identity::default());
        let directory = tempfile::tempdir().context("making a directory for the cell")?;
        let data = Data::of(groups);
        let mut rig = Self { site, store, ends, writer, data, revision: 0, directory };
        let confirmed = rig.replace().await?;
        Ok((rig, confirmed))
    }

    /// Replaces all groups.
    pub(super) async fn set(&mut self, groups: Vec<SecurityGroup>) -> anyhow::Result<Confirmed> {
        self.data = Data::of(groups);
        self.replace().await
    }

    /// Changes one rule of the first group.
    pub(super) async fn change(&mut self) -> anyhow::Result<Confirmed> {
        self.revision += 1;
        self.data.change(self.revision);
        self.replace().await
    }

    async fn replace(&mut self) -> anyhow::Result<Confirmed> {
        let replaced = self.writer.replace(&self.data).await?;
        Ok(Confirmed { generation: replaced.generation, at: Timestamp::now() })
    }

    /// Starts the agent of a cell with these containers.
    pub(super) async fn agent(
        &mut self,
        plane: Plane,
        containers: Vec<Entry>,
    ) -> anyhow::Result<Agent> {
        let path = self.directory.path().join("store.json");
        let lock = self.directory.path().join("iptables.lock").display().to_string();
        let store = Store::at(path.clone());
        plane.prepare(&containers)?;
        store.fill(containers)?;
        let mut keys = plane.keys(&lock);
        keys.insert("cni_datastore_path".to_owned(), json!(path));
        keys.insert("overlay_network".to_owned(), json!("10.255.0.0/16"));
        keys.insert("force_timeout".to_owned(), json!("60s"));
        let began = Timestamp::now();
        let server = self.site.cell_agent(&self.ends.cell, keys).await?;
        let log = File::open(server.log()).context("reading the agent's log")?;
        let http = reqwest::Client::builder().build().context("making an HTTP client")?;
        Ok(Agent { server, log, unread: String::new(), store, http, began })
    }

    /// Stops the store.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        self.store.end().await
    }
}

impl Agent {
    /// Its process ID.
    pub(super) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Waits until the agent logs that a generation is in the kernel.
    pub(super) async fn applied(&mut self, generation: u64) -> anyhow::Result<Applied> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            while let Some(line) = self.line()? {
                let (at, data) = match applied_by_log(&line) {
                    Some(applied) => applied,
                    None => continue,
                };
                if data["generation"].as_u64() >= Some(generation) {
                    let milliseconds = data["milliseconds"].as_u64();
                    let milliseconds = milliseconds.context("rules-applied has no milliseconds")?;
                    return Ok(Applied { at, milliseconds });
                }
            }
            ensure!(Instant::now() < deadline, "{}", self.complaint(generation));
            sleep(GLANCE).await;
        }
    }

    fn complaint(&self, generation: u64) -> String {
        let log = std::fs::read_to_string(self.server.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        format!("generation {generation} is not applied; the agent reported {last:?}")
    }

    /// The next complete line of the log, if there is one.
    fn line(&mut self) -> anyhow::Result<Option<String>> {
        if !self.unread.contains('\n') {
            self.log.read_to_string(&mut self.unread).context("reading the agent's log")?;
        }
        let Some((line, rest)) = self.unread.split_once('\n') else { return Ok(None) };
        let line = line.to_owned();
        self.unread = rest.to_owned();
        Ok(Some(line))
    }

    /// Skips the log up to now.
    pub(super) fn skip_log(&mut self) -> anyhow::Result<()> {
        self.log.seek(SeekFrom::End(0)).context("reading the agent's log")?;
        self.unread.clear();
        Ok(())
    }

    /// Adds a container as the CNI plugin does; the time is from the metadata entry to
    /// the agent's response.
    pub(super) async fn add(&self, entry: Entry) -> anyhow::Result<Duration> {
        let handle = entry.handle.clone();
        let address = self.server.address();
        let url = format!("http://{address}/force-asgs-for-container?container={handle}");
        let began = Instant::now();
        self.store.add(entry)?;
        let answer = self.http.get(url).send().await;
        let answer = answer.context("asking for the rules of a container")?;
        let took = began.elapsed();
        if !answer.status().is_success() {
            bail!("the agent refuses the container: {}", answer.text().await?);
        }
        Ok(took)
    }

    /// Stops the agent; the kernel keeps the rules.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        self.server.end().await
    }
}

/// Time and data of the log line, if it reports applied rules.
fn applied_by_log(line: &str) -> Option<(Timestamp, Value)> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    if !line["message"].as_str()?.ends_with(".rules-applied") {
        return None;
    }
    let at = line["timestamp"].as_str()?.parse().ok()?;
    Some((at, line["data"].take()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_log_says_when_rules_were_applied() {
        let line = r#"{"timestamp":"2026-01-02T03:04:05.5Z","message":"cfnetworking.vxlan-policy-agent.rules-applied","data":{"generation":7,"milliseconds":9}}"#;
        let (at, data) = applied_by_log(line).unwrap();
        assert_eq!(
            (at.to_string().as_str(), data["generation"].as_u64()),
            ("2026-01-02T03:04:05.5Z", Some(7))
        );
        assert!(applied_by_log(&line.replace("rules-applied", "started")).is_none());
        assert!(applied_by_log("thread panicked").is_none());
    }
}
