//! Task groups; every task is awaited.
//!
//! Invariants:
//! - A task that ends before shutdown, with success, an error or a panic, shuts the others down at
//!   once, even before [`Tasks::join`] is called. `join` returns this end as an error with the
//!   task's name.
//! - After shutdown all tasks have one common deadline. A task that misses the deadline is aborted
//!   and named.
//! - Dropping [`Tasks`] aborts the remaining tasks: no task outlives its owner.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Error, anyhow};
use futures_util::FutureExt;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A group of tasks with a common lifetime.
#[derive(Debug)]
pub struct Tasks {
    shutdown: CancellationToken,
    running: JoinSet<Ended>,
    names: BTreeMap<Id, &'static str>,
}

/// How a task ended.
struct Ended {
    name: &'static str,
    /// Whether the task ended before shutdown.
    early: bool,
    outcome: Result<(), Error>,
}

impl Tasks {
    /// Creates an empty group that ends when `shutdown` is cancelled, and cancels `shutdown` when
    /// one of its tasks ends early.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, running: JoinSet::new(), names: BTreeMap::new() }
    }

    /// Starts a task. The task must watch the group's shutdown token.
    pub fn add(
        &mut self,
        name: &'static str,
        future: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        let handle = self.running.spawn(async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            let early = !shutdown.is_cancelled();
            shutdown.cancel();
            let outcome = outcome.unwrap_or_else(|panic| {
                let text = panic_text(panic.as_ref());
                Err(anyhow!("panicked: {text}"))
            });
            Ended { name, early, outcome }
        });
        self.names.insert(handle.id(), name);
    }

    /// Waits until all tasks have ended.
    ///
    /// # Errors
    /// The first of: a task that ended before shutdown, a task that failed after
    /// it, tasks that did not end within `deadline` after shutdown. The others
    /// are logged as `task-failed`.
    pub async fn join(mut self, deadline: Duration) -> anyhow::Result<()> {
        let mut first = None;
        while !self.shutdown.is_cancelled() {
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                Some(ended) = self.running.join_next_with_id() => self.note(ended, &mut first),
            }
        }
        let deadline_at = Instant::now() + deadline;
        loop {
            match tokio::time::timeout_at(deadline_at, self.running.join_next_with_id()).await {
                Ok(Some(ended)) => self.note(ended, &mut first),
                Ok(None) => break,
                Err(_elapsed) => {
                    self.abort(deadline, &mut first).await;
                    break;
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn note(&mut self, ended: Result<(Id, Ended), JoinError>, first: &mut Option<Error>) {
        let ended = match ended {
            Ok((id, ended)) => {
                self.names.remove(&id);
                ended
            }
            Err(error) => Ended {
                name: self.names.remove(&error.id()).unwrap_or("unnamed"),
                early: false,
                outcome: Err(error.into()),
            },
        };
        let name = ended.name;
        let error = match (ended.outcome, ended.early) {
            (Ok(()), false) => return,
            (Ok(()), true) => anyhow!("{name} ended unexpectedly"),
            (Err(error), true) => error.context(format!("{name} failed")),
            (Err(error), false) => error.context(format!("{name} failed during shutdown")),
        };
        keep_first(first, error);
    }

    async fn abort(&mut self, deadline: Duration, first: &mut Option<Error>) {
        let names: Vec<&str> = self.names.values().copied().collect();
        let names = names.join(", ");
        let error = anyhow!("did not end within {deadline:?} and were aborted: {names}");
        keep_first(first, error);
        self.running.shutdown().await;
    }
}

/// Keeps the error that ended the group, and logs later ones.
fn keep_first(first: &mut Option<Error>, error: Error) {
    if first.is_none() {
        *first = Some(error);
    } else {
        tracing::error!(error = format_args!("{error:#}"), "task-failed");
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a text")
}
