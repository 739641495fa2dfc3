//! The only task that writes and publishes.
//!
//! Replaces are written sequentially, and each is published before the next begins, so
//! snapshots have the order of their generations. A queued Replace is written and
//! published even if its writer disconnects.
//!
//! Changes that other instances write to the same store are read and published between
//! two Replaces. When the store went back, as after a restored backup, the process
//! exits: its cells have to start again.

mod health;
mod log;

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use jiff::Timestamp;
use model::generation::{Generation, Point};
use runtime::{error::chain, server::Component};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

use self::health::DatabaseHealth;
pub(crate) use self::log::tell_refusal;
use self::log::{log_change, tell_failure};
use crate::{
    feed::{cells::Cells, changes::Changes, ring::committed},
    groups::{
        current::SnapshotPublisher,
        decide::{Decision, Known, Named, Origin, Refusal, Replacement, decide},
        held::{Hold, Order},
        released::Released,
        rollout::Plan,
        snapshot::Snapshot,
    },
    release,
    removals::{RefusedRemoval, Removals},
    store::{Error, Mended, News, Store},
};

/// Queue size for Replaces.
const WAITING: usize = 4;

/// Interval of the check for lost tables and rows.
const MEND: Duration = Duration::from_secs(5);

/// Pause after a freeze could not be ended.
const RETRY: Duration = Duration::from_secs(1);

/// Result of a Replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The generation afterwards.
    pub generation: Generation,
    /// New groups.
    pub added: usize,
    /// Groups with new content.
    pub changed: usize,
    /// Removed groups.
    pub removed: usize,
    /// Unchanged groups.
    pub unchanged: usize,
    /// The first groups of each kind.
    pub named: Named,
}

/// Reason why a Replace was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// See [`Error`].
    #[error(transparent)]
    Store(#[from] Error),
    /// The process is shutting down.
    #[error("the store is shutting down")]
    ShuttingDown,
}

enum Job {
    Hold { change: Hold, reply: oneshot::Sender<Result<(), Error>> },
    Replace { write: Arc<Replacement>, reply: oneshot::Sender<Result<Committed, Error>> },
    CatchUp { reply: oneshot::Sender<Result<(), Error>> },
}

/// Sends jobs to the [`Committer`].
#[derive(Debug, Clone)]
pub struct Commits {
    jobs: mpsc::Sender<Job>,
    removals: Removals,
}

impl Commits {
    /// The last refused mass removal.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        &self.removals
    }

    /// Writes the set; returns after it is visible to every reader.
    ///
    /// # Errors
    /// The Replace was refused or not written.
    pub async fn commit(&self, write: Replacement) -> Result<Committed, Failure> {
        let write = Arc::new(write);
        self.ask(|reply| Job::Replace { write, reply }).await
    }

    /// Changes what cells get; returns after the watches of this instance obey it.
    ///
    /// # Errors
    /// The change was not stored.
    pub async fn hold(&self, change: Hold) -> Result<(), Failure> {
        self.ask(|reply| Job::Hold { change, reply }).await
    }

    /// Returns after everything in the store at the time of the call is visible to every
    /// reader.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn catch_up(&self) -> Result<(), Failure> {
        self.ask(|reply| Job::CatchUp { reply }).await
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Job,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| Failure::ShuttingDown)?;
        Ok(answer.await.map_err(|_| Failure::ShuttingDown)??)
    }
}

/// Background task that writes and publishes; see the module.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Receiver<Job>,
    store: Arc<dyn Store>,
    board: Arc<SnapshotPublisher>,
    health: DatabaseHealth,
    record: Option<(Changes, Cells)>,
    removals: Removals,
    plan: Option<Arc<Plan>>,
}

/// Creates a committer and its handle.
#[must_use]
pub fn committer(store: Arc<dyn Store>, board: Arc<SnapshotPublisher>) -> (Commits, Committer) {
    let (sender, jobs) = mpsc::channel(WAITING);
    let removals = Removals::default();
    let commits = Commits { jobs: sender, removals: removals.clone() };
    let (health, record, plan) = (DatabaseHealth::default(), None, None);
    (commits, Committer { jobs, store, board, health, record, removals, plan })
}

impl Committer {
    /// Reports whether the database answers, and whether it stores Replaces.
    #[must_use]
    pub fn telling(mut self, reads: Component, writes: Component) -> Self {
        self.health = DatabaseHealth::of(reads, writes);
        self
    }

    /// Records each generation, with the cells that are connected at its publication.
    #[must_use]
    pub fn recording(mut self, changes: Changes, cells: Cells) -> Self {
        self.record = Some((changes, cells));
        self
    }

    /// Rolls new generations out in steps.
    #[must_use]
    pub fn rolling_out(mut self, plan: Option<Arc<Plan>>) -> Self {
        self.plan = plan;
        self
    }

    /// Serves jobs until `stop`, then those that are queued.
    ///
    /// # Errors
    /// The store ended, or went back.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut mends = interval_at(Instant::now() + MEND, MEND);
        mends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let until = self.board.current().state.held.as_ref().and_then(|held| held.until);
            let job = tokio::select! {
                biased;
                job = self.jobs.recv() => job,
                () = stop.cancelled() => {
                    self.jobs.close();
                    self.jobs.recv().await
                }
                _ = mends.tick() => {
                    self.mend().await;
                    continue;
                }
                () = release::ends(until) => {
                    self.expire().await?;
                    continue;
                }
                news = self.store.news() => match news {
                    News::Closed => bail!("the writer of the database has ended"),
                    News::Written => {
                        self.follow().await?;
                        continue;
                    }
                }
            };
            // A disconnected caller retries after it reconnects.
            match job {
                None => return Ok(()),
                Some(Job::CatchUp { reply }) => _ = reply.send(self.catch_up(None).await?),
                Some(Job::Hold { change, reply }) => _ = reply.send(self.hold(change).await?),
                Some(Job::Replace { write, reply }) => {
                    let outcome = self.commit(write).await?;
                    let _gone = reply.send(outcome);
                }
            }
        }
    }

    /// Recreates lost tables and rows from the served snapshot.
    async fn mend(&self) {
        let served = self.board.current();
        match mend(&*self.store, Arc::clone(&served)).await {
            Ok(_) => {}
            Err(error) => {
                self.health.failed(&error);
                tracing::error!(error = chain(&error), "failed-making-tables");
            }
        }
    }

    /// Ends a freeze whose time has passed; a failure is retried.
    async fn expire(&self) -> Result<(), WentBack> {
        let change = Hold::Expire { at: Timestamp::now() };
        if let Err(error) = self.hold(change).await? {
            tracing::error!(error = chain(&error), "failed-to-unfreeze");
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    async fn hold(&self, change: Hold) -> Result<Result<(), Error>, WentBack> {
        let order = Order { change, plan: self.plan.clone() };
        match self.store.hold(Arc::new(order)).await {
            Ok(_) => self.catch_up(None).await,
            Err(error) => {
                self.health.failed(&error);
                // A failed commit may have taken effect.
                self.follow().await?;
                Ok(Err(error))
            }
        }
    }

    async fn commit(
        &self,
        mut write: Arc<Replacement>,
    ) -> Result<Result<Committed, Error>, WentBack> {
        let began = Instant::now();
        let current = self.board.current();
        if let Some(accepted) = self.removals.accepted(write.at) {
            Arc::make_mut(&mut write).accepted_removal = Some(accepted);
        }
        if self.plan.is_some() {
            Arc::make_mut(&mut write).rollout.clone_from(&self.plan);
        }
        let speculative_snapshot = made({
            let (current, write) = (Arc::clone(&current), Arc::clone(&write));
            move || speculative_snapshot(&current, &write)
        });
        let (outcome, speculative_snapshot) =
            tokio::join!(self.store.replace(Arc::clone(&write)), speculative_snapshot);
        match outcome {
            Ok(decision) => {
                self.health.written();
                self.removals.committed();
                if let Err(error) =
                    self.publish(&write, &decision, current, speculative_snapshot).await?
                {
                    return Ok(Err(error));
                }
                let took = began.elapsed();
                self.board.confirm(Instant::now());
                let named = decision.named();
                log_change(&write, &decision, &named, took);
                Ok(Ok(Committed {
                    generation: decision.state.generation,
                    added: decision.added(),
                    changed: decision.changed(),
                    removed: decision.removed.len(),
                    unchanged: decision.unchanged,
                    named,
                }))
            }
            Err(Error::Refused(refused)) => {
                self.health.written();
                tell_refusal(&write.owner, write.token, &refused.refusal);
                if let Refusal::MassRemoval { .. } = refused.refusal {
                    self.removals.refused(RefusedRemoval::of(&current, &write));
                }
                if refused.seen.is_some() {
                    // The status has to name the newest token that was seen.
                    self.follow().await?;
                }
                Ok(Err(refused.into()))
            }
            Err(error) => {
                self.health.not_written(&error);
                tell_failure(&write, &error);
                // A failed commit may have taken effect.
                self.follow().await?;
                Ok(Err(error))
            }
        }
    }

    async fn publish(
        &self,
        write: &Replacement,
        decision: &Decision,
        current: Arc<Snapshot>,
        speculative_snapshot: Option<Snapshot>,
    ) -> Result<Result<(), Error>, WentBack> {
        // Same input and same decision: the snapshot equals the content of the store.
        let is_right = |speculative_snapshot: &Snapshot| {
            decision.before == current.point() && decision.state == speculative_snapshot.state
        };
        let origin = Some((decision.state.generation, write.origin));
        match speculative_snapshot.filter(is_right) {
            Some(snapshot) => {
                self.record_and_publish(current, snapshot, origin).await;
                Ok(Ok(()))
            }
            // Another instance wrote in between: read the store.
            None => self.catch_up(origin).await,
        }
    }

    /// Publishes a snapshot. `origin` is that of the generation that this instance committed.
    async fn record_and_publish(
        &self,
        before: Arc<Snapshot>,
        after: Snapshot,
        origin: Option<(Generation, Origin)>,
    ) {
        let after = Arc::new(after);
        release::log_change(&before.state, &after.state);
        let served = self.board.released();
        let known: Vec<_> = served.snapshots().chain([&before]).cloned().collect();
        let released = release::released(&*self.store, &after, &known).await;
        let released = released.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "failed-reading-the-frozen-generation");
            // Cells keep what they have.
            Released::clone(&served)
        });
        if let Some((changes, cells)) = &self.record {
            // A first set has thousands of names.
            let now_served = Arc::clone(&after);
            let generations =
                made(move || committed(&before, &now_served, origin, Timestamp::now())).await;
            changes.record(generations, cells);
        }
        self.board.publish(after, released);
    }

    /// As [`Self::catch_up`]; a failed read is retried at the next notification.
    async fn follow(&self) -> Result<(), WentBack> {
        if let Err(error) = self.catch_up(None).await? {
            tracing::error!(error = chain(&error), "failed-to-reload");
        }
        Ok(())
    }

    /// Publishes the content of the store, if it is new.
    async fn catch_up(
        &self,
        origin: Option<(Generation, Origin)>,
    ) -> Result<Result<(), Error>, WentBack> {
        let current = self.board.current();
        let served = current.point();
        let contents = match self.store.load(Some(served)).await {
            Ok(contents) => contents,
            Err(error) => {
                self.health.failed(&error);
                return Ok(Err(error));
            }
        };
        self.health.answered();
        if current.state.is_whole() && !contents.state.is_whole() {
            // The served snapshot stays and replaces the lost rows.
            self.mend().await;
            return Ok(Ok(()));
        }
        let stored = contents.state.point();
        if stored.generation < served.generation
            || (stored.generation == served.generation && stored.stamp != served.stamp)
        {
            return Err(WentBack { served, stored });
        }
        if contents.state == current.state {
            return Ok(Ok(()));
        }
        let is_confirmed = contents.state.synced_at != current.state.synced_at;
        let before = Arc::clone(&current);
        let snapshot = made(move || match contents.since {
            Some(_) => current.followed_by(contents),
            None => Snapshot::from(contents),
        });
        self.record_and_publish(before, snapshot.await, origin).await;
        if is_confirmed {
            self.removals.committed();
            self.board.confirm(Instant::now());
        }
        Ok(Ok(()))
    }
}

/// Recreates lost tables and rows from `served`, and logs the result.
///
/// # Errors
/// The store does not answer.
pub async fn mend(store: &dyn Store, served: Arc<Snapshot>) -> Result<Mended, Error> {
    let (generation, groups) = (served.state.generation.0, served.entries().len());
    let mended = store.mend(served).await?;
    match mended {
        Mended::Nothing => {}
        Mended::Restored => {
            tracing::error!(generation, groups, "security-groups-were-lost-and-restored");
        }
        Mended::Forgotten => tracing::error!("security-groups-were-lost"),
    }
    Ok(mended)
}

/// The store contains an older state than was read from it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the database went back from generation {} ({}) to {} ({}), as after a restored backup",
    served.generation, served.stamp.0, stored.generation, stored.stamp.0
)]
pub struct WentBack {
    /// Served generation.
    pub served: Point,
    /// Stored generation.
    pub stored: Point,
}

/// The content of the store after this write, if no other instance writes: encoded
/// concurrently with the database write. `None`: the Replace will be refused.
fn speculative_snapshot(current: &Snapshot, write: &Replacement) -> Option<Snapshot> {
    let known = current.entries().iter();
    let known = known.map(|entry| (entry.guid.clone(), Known { id: entry.id, hash: entry.hash }));
    let decision = decide(&current.state, &known.collect(), write).ok()?;
    Some(current.after(&decision))
}

/// Encoding thousands of groups blocks a thread: use a blocking-pool thread.
async fn made<T: Send + 'static>(snapshot: impl FnOnce() -> T + Send + 'static) -> T {
    let made = tokio::task::spawn_blocking(snapshot).await;
    made.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
