//! Background task of the shared store: receives notifications of other instances, sends
//! those of this one, and runs the pass over the table.

use std::{future::pending, time::Duration};

use runtime::{error::chain, server::Component};
use storage::{
    Kind,
    server::{Listener, Notice as Heard, Value},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    PASS, Shared, WATCHED_PASS,
    claim_batcher::{self, PendingClaim},
    gather,
    notification::{self, CHANNEL, Notification},
    reads::{AllOf, OneOf},
};

/// Retry interval after a database refused the change counters.
const REFUSED: Duration = Duration::from_secs(60);
/// Limit of notifications per batch.
const TOGETHER: usize = 256;

/// Follows changes by other instances; executes claims and reads.
#[derive(Debug)]
pub struct Follower {
    shared: Shared,
    /// Sender name of this instance's notifications.
    instance: String,
    queues: Queues,
    listener: Option<Listener>,
}

/// Queues that the follower serves.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) to_tell: mpsc::Receiver<Notification>,
    pub(super) to_claim: mpsc::Receiver<PendingClaim>,
    pub(super) to_fetch: mpsc::Receiver<OneOf>,
    pub(super) to_fetch_all: mpsc::Receiver<AllOf>,
}

impl Follower {
    pub(super) fn new(shared: Shared, queues: Queues) -> Self {
        let listener = shared.server.listen(CHANNEL);
        Self { shared, instance: Uuid::new_v4().to_string(), queues, listener }
    }

    /// Follows until `stop`; the store is closed after that.
    ///
    /// # Errors
    /// A claim or a read panicked. Database errors are reported to `health` and retried.
    pub async fn run(
        self,
        stop: CancellationToken,
        health: Component,
    ) -> Result<(), storage::Error> {
        let Self { shared, instance, queues, mut listener } = self;
        let Queues { mut to_tell, to_claim, to_fetch, to_fetch_all } = queues;
        // Separate tasks: a pass over a large table must not delay them.
        let mut calls = JoinSet::new();
        calls.spawn(claim_batcher::run(shared.server.clone(), to_claim, stop.clone()));
        calls.spawn(gather::run(to_fetch, stop.clone(), {
            let shared = shared.clone();
            move |asks| shared.clone().look_at_keys(asks)
        }));
        calls.spawn(gather::run(to_fetch_all, stop.clone(), {
            let shared = shared.clone();
            move |asks| shared.clone().look_at_kinds(asks)
        }));
        let calls = async {
            while let Some(ended) = calls.join_next().await {
                ended.map_err(|_| storage::Error::Panicked)??;
            }
            Ok::<_, storage::Error>(())
        };
        let follow = async {
            follow(&shared, &instance, &mut to_tell, &mut listener, &stop, &health).await;
            Ok(())
        };
        tokio::try_join!(calls, follow)?;
        let mut batch = Vec::new();
        while let Ok(notice) = to_tell.try_recv() {
            batch.push(notice);
        }
        publish(&shared, &instance, listener.is_some(), batch.drain(..)).await;
        if let Some(listener) = &mut listener {
            listener.close().await;
        }
        shared.server.close().await;
        Ok(())
    }
}

async fn follow(
    shared: &Shared,
    instance: &str,
    to_tell: &mut mpsc::Receiver<Notification>,
    listener: &mut Option<Listener>,
    stop: &CancellationToken,
    health: &Component,
) {
    let is_told = listener.is_some();
    let mut last = Instant::now();
    let mut count_at = last;
    let mut mends = interval_at(last + PASS, PASS);
    mends.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answers = true;
    let mut batch = Vec::with_capacity(TOGETHER);
    loop {
        let is_polled = !is_told && shared.feed.has_watchers();
        let next = last + if is_polled { WATCHED_PASS } else { PASS };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = to_tell.recv_many(&mut batch, TOGETHER) => {
                publish(shared, instance, is_told, batch.drain(..)).await;
            }
            heard = next_notice(listener) => match heard {
                Heard::Told(payload) => look(shared, notification::parse(&payload, instance)).await,
                Heard::Listening => {
                    last = Instant::now();
                    answers = pass(shared, health, &mut count_at).await;
                }
            },
            // The pass detects whether the database is reachable.
            _ = mends.tick(), if answers => mend(shared).await,
            () = sleep_until(next) => {
                last = Instant::now();
                answers = pass(shared, health, &mut count_at).await;
            }
        }
    }
}

async fn mend(shared: &Shared) {
    if let Err(error) = shared.mend().await {
        tracing::error!(error = chain(&error), "failed-making-tables");
    }
}

/// Whether the database answers, even if a table is missing.
async fn pass(shared: &Shared, health: &Component, count_at: &mut Instant) -> bool {
    let passed = async {
        shared.pass().await?;
        if *count_at <= Instant::now() {
            let pause = if shared.count_changes(false).await? { PASS } else { REFUSED };
            *count_at = Instant::now() + pause;
        }
        Ok::<_, storage::Error>(())
    };
    match passed.await {
        Ok(()) => {
            health.ready();
            true
        }
        Err(error) => {
            let text = chain(&error);
            tracing::error!(error = text, "failed-fetching-locks");
            health.not_ready(text);
            error.kind() == Kind::Schema
        }
    }
}

async fn publish(
    shared: &Shared,
    instance: &str,
    is_told: bool,
    notices: impl Iterator<Item = Notification>,
) {
    if !is_told {
        return;
    }
    for payload in notification::payloads(instance, notices) {
        let values = [Value::from(CHANNEL), Value::from(payload)];
        if let Err(error) = shared.server.query("SELECT 1 FROM pg_notify(?, ?)", &values).await {
            // Other instances find the change in their next pass.
            tracing::debug!(error = chain(&error), "failed-publishing-lock-changes");
        }
    }
}

async fn look(shared: &Shared, notices: Vec<Notification>) {
    for Notification { key, token, end } in notices {
        match end {
            Some(end) => shared.view().end(&key, token, end, Instant::now()),
            None => {
                if let Err(error) = shared.look(&key).await {
                    tracing::debug!(error = chain(&error), "failed-fetching-locks");
                }
            }
        }
    }
}

async fn next_notice(listener: &mut Option<Listener>) -> Heard {
    match listener {
        Some(listener) => listener.next().await,
        None => pending().await,
    }
}
