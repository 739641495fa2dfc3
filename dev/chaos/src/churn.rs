//! Containers that come and go, and their packets.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::control;
use cni::namespace::Resident;
use swap::packets::{self, Plan, Senders};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::changes::{Groups, WIDTH};
use crate::foundation::Foundation;
use crate::history::{Event, Fate, Goal, Phase};
use crate::record::Record;

/// Pause between two packets of a container.
const PACKETS: Duration = Duration::from_millis(200);
/// How long the packets of a container are at most kept in memory.
const DRAIN: Duration = Duration::from_millis(500);
/// How long the CNI plugin waits for the agent here; the original waits forever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that adds and removes containers.
#[derive(Clone)]
pub(crate) struct Churn {
    pub(crate) foundation: Arc<Mutex<Foundation>>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) senders: Arc<Mutex<Senders>>,
    /// The name of each sender's container.
    pub(crate) names: Arc<std::sync::Mutex<Vec<String>>>,
    pub(crate) record: Record,
    pub(crate) shutdown: CancellationToken,
}

/// A running container of a cell.
struct Running {
    name: String,
    sender: usize,
}

impl Churn {
    /// Keeps between half of `most` and `most` containers on a cell. Its seed is that of the run.
    pub(crate) async fn on_cell(
        self,
        cell: u8,
        inside: Resident,
        most: usize,
        seed: u64,
    ) -> anyhow::Result<()> {
        let mut random = fastrand::Rng::with_seed(seed ^ u64::from(cell));
        let mut running: Vec<Running> = Vec::new();
        let (mut number, least) = (0_u32, most / 2);
        while !self.shutdown.is_cancelled() {
            if running.len() < least || (running.len() < most && random.bool()) {
                number += 1;
                let name = format!("c{cell}-{number}");
                let space = random.usize(..self.groups.spaces.len());
                running.extend(self.add(cell, &inside, name, space).await?);
            } else {
                let gone = running.swap_remove(random.usize(..running.len()));
                self.remove(cell, &inside, gone).await?;
            }
            let pause = if running.len() < least { 200 } else { random.u64(500..6_000) };
            self.shutdown.run_until_cancelled(sleep(Duration::from_millis(pause))).await;
        }
        Ok(())
    }

    /// Adds a container as the CNI plugin does: it starts only if the agent confirms its rules.
    /// Its packets begin before.
    async fn add(
        &self,
        cell: u8,
        inside: &Resident,
        name: String,
        space: usize,
    ) -> anyhow::Result<Option<Running>> {
        let details = &self.groups.spaces[space];
        let group = u32::try_from(space)?;
        let handle = self.foundation.lock().await.attach(cell, &name, &details.guid).await?;
        let note = |phase| {
            let (name, cell) = (name.clone(), format!("cell-{cell}"));
            self.record.note(Event::Container { name, cell, group, phase });
        };
        note(Phase::Added);
        let sender = {
            let mut names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            names.push(name.clone());
            names.len() - 1
        };
        let newest = Arc::clone(&details.newest);
        let plan = Plan { newest, width: WIDTH, pause: PACKETS };
        {
            let foundation = self.foundation.lock().await;
            let resident = foundation.container(&name)?.resident();
            self.senders.lock().await.add(resident, sender, plan).await?;
        }
        let running = Running { name: name.clone(), sender };
        let forced = timeout(PATIENCE, control::force_asgs(inside, &handle)).await;
        if matches!(forced, Ok(Ok(()))) {
            note(Phase::Ready);
            return Ok(Some(running));
        }
        self.remove(cell, inside, running).await?;
        Ok(None)
    }

    async fn remove(&self, cell: u8, inside: &Resident, gone: Running) -> anyhow::Result<()> {
        let Running { name, sender } = gone;
        let (cell, group, phase) = (format!("cell-{cell}"), 0, Phase::Gone);
        self.record.note(Event::Container { name: name.clone(), cell, group, phase });
        self.senders.lock().await.stop(sender);
        let handle = self.foundation.lock().await.detach(&name)?;
        // The agent may be down; it removes the container's rules later.
        let _late = timeout(PATIENCE, control::force_cleanup(inside, &handle)).await;
        Ok(())
    }

    /// Writes the packets into the history.
    pub(crate) async fn drain(self) -> anyhow::Result<()> {
        while self.shutdown.run_until_cancelled(sleep(DRAIN)).await.is_some() {
            let packets = self.senders.lock().await.take();
            self.note(&packets)?;
        }
        Ok(())
    }

    pub(crate) fn note(&self, packets: &[packets::Packet]) -> anyhow::Result<()> {
        let names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for packet in packets {
            let container = names.get(packet.container).context("a sender without a name")?.clone();
            let goal = match packet.goal {
                packets::Goal::Always => Goal::Always,
                packets::Goal::Never => Goal::Never,
                packets::Goal::Port(number) => Goal::Port(u32::try_from(number)?),
            };
            let fate = match packet.fate {
                packets::Fate::Passed => Fate::Passed,
                packets::Fate::Rejected => Fate::Rejected,
                packets::Fate::Silent => Fate::Silent,
            };
            let (sent, done) = (self.record.moment(packet.sent), self.record.moment(packet.done));
            self.record.note_at(done, Event::Packet { container, goal, sent, fate });
        }
        Ok(())
    }
}
