//! The real cells: an agent in each namespace, as a process, with the metadata store that the
//! CNI plugin writes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use cni::metadata::{Entry, Store};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::ground::{self, Place};
use crate::connect::Target;
use crate::server::{Program, Server, Site};
use crate::store::data::guid;
use crate::store::watchers::Cell;

/// Interval of log reads; the time of an event comes from its log line.
const GLANCE: Duration = Duration::from_millis(100);
/// First part of the GUIDs of apps.
const APP: u32 = 4;

/// An agent that can be started.
#[derive(Debug)]
pub(super) struct Plan {
    program: Program,
}

impl Plan {
    /// Writes the metadata store and the configuration of a cell.
    pub(super) fn write(
        site: &mut Site,
        store: &Target,
        cell: &Cell,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let path = directory.join(cell.id()).join("store.json");
        Store::at(path.clone()).fill(containers(cell)?)?;
        let keys = json!({
            "cell_id": cell.id(),
            "cni_datastore_path": path,
            "overlay_network": ground::OVERLAY,
            "data_plane": "nftables",
            // Probing packets are denied until a change is in force: to record them would be
            // work of the measurement, not of the cell.
            "denied_connections": { "record": false },
        });
        let keys = keys.as_object().cloned().unwrap_or_default();
        Ok(Self { program: site.agent_program(store, keys)? })
    }

    /// Starts the agent in its cell.
    pub(super) async fn start(&self, site: &mut Site, place: &Place) -> anyhow::Result<Agent> {
        let server = site.start_in(&place.cell, &self.program).await?;
        let log = File::open(server.log()).context("reading an agent's log")?;
        Ok(Agent { server, log, unread: String::new() })
    }
}

/// The containers of a cell take turns in its spaces.
fn containers(cell: &Cell) -> anyhow::Result<Vec<Entry>> {
    let number = u32::try_from(cell.number)?;
    (0..cell.containers)
        .map(|index| {
            let space = cell.spaces.get(index as usize % cell.spaces.len().max(1));
            let space = space.context("a cell has no space")?;
            let app = u64::from(number) * u64::from(cell.containers) + u64::from(index);
            let handle = format!("{app:08x}-0000-4000-8000-00000000cafe");
            let address = ground::address(number, index);
            Ok(Entry::app(&handle, address, &guid(APP, app), space))
        })
        .collect()
}

/// A running agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) server: Server,
    log: File,
    unread: String,
}

impl Agent {
    /// Skips the log up to now.
    pub(super) fn skip_log(&mut self) -> anyhow::Result<()> {
        self.log.seek(SeekFrom::End(0)).context("reading an agent's log")?;
        self.unread.clear();
        Ok(())
    }

    /// The time of the next log line whose message has this suffix, if there is one.
    fn logged(&mut self, message: &str) -> anyhow::Result<Option<Timestamp>> {
        self.log.read_to_string(&mut self.unread).context("reading an agent's log")?;
        while let Some((line, rest)) = self.unread.split_once('\n') {
            let at = time_of(line, message);
            self.unread = rest.to_owned();
            if at.is_some() {
                return Ok(at);
            }
        }
        Ok(None)
    }
}

/// Waits until all agents have logged this message; returns its times.
pub(super) async fn all_logged(
    agents: &mut [Agent],
    message: &str,
    wait: Duration,
) -> anyhow::Result<Vec<Timestamp>> {
    let deadline = Instant::now() + wait;
    let mut times = vec![None; agents.len()];
    loop {
        for (agent, time) in agents.iter_mut().zip(&mut times) {
            if time.is_none() {
                *time = agent.logged(message)?;
            }
        }
        if let Some(times) = times.iter().copied().collect() {
            return Ok(times);
        }
        if Instant::now() > deadline {
            let missing = times.iter().position(Option::is_none).unwrap_or_default();
            let count = times.iter().filter(|time| time.is_none()).count();
            let log = std::fs::read_to_string(agents[missing].server.log()).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!("{count} agents do not log {message}; cell-{missing} logged {last:?}");
        }
        sleep(GLANCE).await;
    }
}

/// The time of a log line, if its message has this suffix.
fn time_of(line: &str, message: &str) -> Option<Timestamp> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_it = line["message"].as_str()?.ends_with(message);
    is_it.then(|| line["timestamp"].as_str()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_a_cell_are_in_its_spaces() {
        let spaces = vec!["s1".to_owned(), "s2".to_owned()];
        let containers = containers(&Cell { number: 3, spaces, containers: 5 }).unwrap();
        let of = |entry: &Entry| entry.metadata.as_ref().unwrap()["space_id"].clone();
        let spaces: Vec<String> = containers.iter().map(of).collect();
        assert_eq!(spaces, ["s1", "s2", "s1", "s2", "s1"]);
        assert_eq!(containers[0].ip, ground::address(3, 0).to_string());
    }

    #[test]
    fn the_log_has_the_time_of_an_event() {
        let line = r#"{"timestamp":"2026-01-02T03:04:05.5Z","message":"a.b.policy-store-watched"}"#;
        let at = time_of(line, ".policy-store-watched").unwrap();
        assert_eq!(at.to_string(), "2026-01-02T03:04:05.5Z");
        assert!(time_of(line, ".rules-applied").is_none());
        assert!(time_of("thread panicked", ".rules-applied").is_none());
    }
}
