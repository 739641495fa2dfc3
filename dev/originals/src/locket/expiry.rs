//! Expiry, docs/compatibility/locket.md#expiry: each instance measures the time to live of
//! a generation from the moment at which it first sees it, by its own clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::rows::{Lock, Rows};
use crate::log::Log;

/// Interval at which the burglar reads all rows.
const BURGLAR: Duration = Duration::from_secs(5);

/// Key and `modified_id` of a lock.
type Life = (String, String);

/// The timers of all locks that this instance knows.
#[derive(Debug)]
pub(super) struct LockPick {
    rows: Arc<Rows>,
    log: Log,
    timers: Mutex<HashMap<Life, Timer>>,
    running: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Timer {
    index: i64,
    cancelled: CancellationToken,
}

impl LockPick {
    pub(super) fn new(rows: Arc<Rows>, log: Log) -> Self {
        Self { rows, log, timers: Mutex::default(), running: Mutex::default() }
    }

    fn timers(&self) -> MutexGuard<'_, HashMap<Life, Timer>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the timer of a generation, in place of that of an older one. A generation
    /// that is registered already, or older, keeps its timer.
    pub(super) fn register(self: &Arc<Self>, key: &str, lock: &Lock) {
        let life = (key.to_owned(), lock.id.clone());
        let mut timers = self.timers();
        if timers.get(&life).is_some_and(|timer| timer.index >= lock.index) {
            return;
        }
        let (this, generation) = (Arc::clone(self), lock.clone());
        let key = key.to_owned();
        let cancelled = CancellationToken::new();
        let timer = Timer { index: lock.index, cancelled: cancelled.clone() };
        if let Some(older) = timers.insert(life, timer) {
            older.cancelled.cancel();
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            let ttl = Duration::from_secs(generation.ttl.unsigned_abs());
            // A timer that has fired is not cancelled any more.
            if cancelled.run_until_cancelled(sleep(ttl)).await.is_some() {
                this.expire(&key, &generation).await;
            }
        });
    }

    async fn expire(&self, key: &str, generation: &Lock) {
        let outcome = self.rows.expire(key, generation).await;
        // Whatever the outcome: the burglar registers a row that is still there again.
        self.forget(key, generation);
        match outcome {
            Ok(Some(lock)) => {
                let data = json!({ "key": key, "modified-index": lock.index, "type": lock.kind });
                self.log.info("lock.register-ttl.lock-expired", &data);
            }
            Ok(None) => {}
            Err(failure) => {
                let error = anyhow!("{key}: {failure:?}");
                self.log.error("lock.register-ttl.failed-to-expire", &error);
            }
        }
    }

    fn forget(&self, key: &str, generation: &Lock) {
        let life = (key.to_owned(), generation.id.clone());
        let mut timers = self.timers();
        // A newer generation may have replaced the entry meanwhile.
        if timers.get(&life).is_some_and(|timer| timer.index == generation.index) {
            timers.remove(&life);
        }
    }

    /// Registers all rows, of whichever instance.
    pub(super) async fn register_all(self: &Arc<Self>) {
        match self.rows.all().await {
            Ok(rows) => rows.iter().for_each(|(key, lock)| self.register(key, lock)),
            Err(error) => self.log.error("burglar.failed-to-fetch-locks", &error.into()),
        }
    }

    /// Registers all rows at each interval.
    pub(super) async fn burgle(self: Arc<Self>) {
        let mut ticks = interval(BURGLAR);
        // The first tick is immediate, and the first pass was part of the start.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.register_all().await;
        }
    }
}
