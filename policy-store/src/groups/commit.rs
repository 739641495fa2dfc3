//! The one task that writes.
//!
//! Replaces are written one after the other, and each is published before the
//! next begins, so snapshots follow each other as generations do. A Replace that
//! was handed over is written and published also if its writer has gone.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::generation::{Generation, Watermark};
use runtime::error::chain;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    decide::{Decision, Refusal, Replacement, State},
    snapshot::Snapshot,
};
use crate::store::{Error, Store};

/// How many Replaces may wait.
const WAITING: usize = 4;

/// What a Replace did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The generation afterwards.
    pub generation: Generation,
    /// New groups.
    pub added: usize,
    /// Groups with new content.
    pub changed: usize,
    /// Groups that went.
    pub removed: usize,
    /// Groups that stayed as they were.
    pub unchanged: usize,
}

/// Why a Replace was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// See [`Error`].
    #[error(transparent)]
    Store(#[from] Error),
    /// The process is about to end.
    #[error("the store is shutting down")]
    ShuttingDown,
}

struct Job {
    write: Arc<Replacement>,
    reply: oneshot::Sender<Result<Committed, Error>>,
}

/// Hands Replaces to the [`Committer`].
#[derive(Debug, Clone)]
pub struct Commits(mpsc::Sender<Job>);

impl Commits {
    /// Writes it, and answers after every reader sees it.
    ///
    /// # Errors
    /// Refused, or not written.
    pub async fn commit(&self, write: Replacement) -> Result<Committed, Failure> {
        let (reply, answer) = oneshot::channel();
        let job = Job { write: Arc::new(write), reply };
        self.0.send(job).await.map_err(|_| Failure::ShuttingDown)?;
        Ok(answer.await.map_err(|_| Failure::ShuttingDown)??)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Receiver<Job>,
    store: Arc<dyn Store>,
    board: Arc<Board>,
}

/// A committer and the way to it.
#[must_use]
pub fn committer(store: Arc<dyn Store>, board: Arc<Board>) -> (Commits, Committer) {
    let (sender, jobs) = mpsc::channel(WAITING);
    (Commits(sender), Committer { jobs, store, board })
}

impl Committer {
    /// Writes what comes until `stop`, and then what waits still.
    ///
    /// # Errors
    /// Never; the result lets it be a supervised task.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let job = tokio::select! {
                biased;
                job = self.jobs.recv() => job,
                () = stop.cancelled() => {
                    self.jobs.close();
                    self.jobs.recv().await
                }
            };
            let Some(Job { write, reply }) = job else { return Ok(()) };
            let outcome = self.commit(write).await;
            // A writer that has gone asks the status when it is back.
            let _gone = reply.send(outcome);
        }
    }

    async fn commit(&self, write: Arc<Replacement>) -> Result<Committed, Error> {
        let began = Instant::now();
        let outcome = self.store.replace(Arc::clone(&write)).await;
        match outcome {
            Ok(decision) => {
                self.publish(&decision).await?;
                let took = began.elapsed();
                self.board.confirm(Instant::now());
                tell(&write, &decision, took);
                Ok(Committed {
                    generation: decision.state.generation,
                    added: decision.added(),
                    changed: decision.changed(),
                    removed: decision.removed.len(),
                    unchanged: decision.unchanged,
                })
            }
            Err(Error::Refused(refused)) => {
                tell_refusal(&write, &refused.refusal);
                if let Some(seen) = &refused.seen {
                    self.publish_seen(seen).await;
                }
                Err(refused.into())
            }
            Err(error) => {
                tell_failure(&write, &error);
                self.reload().await;
                Err(error)
            }
        }
    }

    async fn publish(&self, decision: &Decision) -> Result<(), Error> {
        let current = self.board.current();
        if current.state.generation == decision.before {
            self.board.publish(current.after(decision));
            Ok(())
        } else {
            // Somebody else wrote in between: only the store knows what.
            self.board.publish(self.store.load().await?.into());
            Ok(())
        }
    }

    /// The status names the newest token that was seen, as the fence does.
    async fn publish_seen(&self, seen: &State) {
        if !self.publish_writer(seen) {
            self.reload().await;
        }
    }

    /// False when the groups of `state` are others than those that are served.
    fn publish_writer(&self, state: &State) -> bool {
        let current = self.board.current();
        let is_same = current.state.generation == state.generation;
        if is_same && current.state.token < state.token {
            let (token, writer) = (state.token, state.writer.clone());
            self.board.publish(current.with(State { token, writer, ..current.state.clone() }));
        }
        is_same
    }

    /// A write that failed in the middle may have happened all the same.
    async fn reload(&self) {
        let current = self.board.current();
        match self.store.load().await {
            Ok(contents) if contents.state.generation > current.state.generation => {
                self.board.publish(Snapshot::from(contents));
            }
            Ok(contents) => _ = self.publish_writer(&contents.state),
            Err(error) => tracing::error!(error = chain(&error), "failed-to-reload"),
        }
    }
}

fn tell(write: &Replacement, decision: &Decision, took: Duration) {
    let outcome = match decision.state.generation == decision.before {
        true => "unchanged",
        false => "changed",
    };
    metrics::counter!("policy_store_replaces_total", "outcome" => outcome).increment(1);
    metrics::histogram!("policy_store_commit_seconds").record(took.as_secs_f64());
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        added = decision.added(),
        changed = decision.changed(),
        removed = decision.removed.len(),
        unchanged = decision.unchanged,
        generation = decision.state.generation.0,
        "fencing-token" = write.token.map_or(0, |token| token.0),
        writer = %write.owner,
        milliseconds,
        "replaced-security-groups"
    );
    if decision.watermark_went_back {
        let stored = decision.state.watermark.map(printed);
        tracing::info!(
            given = printed(write.watermark),
            stored = stored.unwrap_or_default(),
            "watermark-went-back"
        );
    }
}

fn tell_refusal(write: &Replacement, refusal: &Refusal) {
    let outcome = match refusal {
        Refusal::OldToken { .. } | Refusal::TokenOfAnother { .. } => "fenced",
        Refusal::MassRemoval { .. } => "mass-removal",
        Refusal::Overtaken { .. } => "overtaken",
    };
    metrics::counter!("policy_store_replaces_total", "outcome" => outcome).increment(1);
    tracing::error!(
        error = %refusal,
        reason = outcome,
        "fencing-token" = write.token.map_or(0, |token| token.0),
        writer = %write.owner,
        "refused-replace"
    );
}

fn tell_failure(write: &Replacement, error: &Error) {
    metrics::counter!("policy_store_replaces_total", "outcome" => "failed").increment(1);
    tracing::error!(
        error = chain(error),
        "fencing-token" = write.token.map_or(0, |token| token.0),
        writer = %write.owner,
        "failed-to-replace"
    );
}

fn printed(watermark: Watermark) -> String {
    let fraction = i32::try_from(watermark.nanoseconds()).expect("less than a second");
    match Timestamp::new(watermark.seconds(), fraction) {
        Ok(at) => at.to_string(),
        Err(_) => format!("{} seconds after 1970", watermark.seconds()),
    }
}
