//! The loop that a leader runs: look at the stamp, sync when it is time.
//!
//! It knows only its own term: a new one begins from nothing, since another
//! leader may have written in between, and its first sync comes at once. Errors
//! never end it; they are logged, counted and answered with a pause. It ends
//! when the store has seen a newer leader, or with its term, by being dropped.

pub mod schedule;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{counter, gauge, histogram};
use runtime::{backoff::Backoff, error::chain, server::Component};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{debug, error, info};

use self::schedule::{Intervals, Reason, Schedule};
use crate::{
    cloud_controller::CloudController,
    cycle::{self, Synced},
    lease::keeper::{Fenced, Term},
    reading::Held,
    stamp::Stamp,
    store::{self, Store},
};

/// The first pause after a failure, at most; a server may ask for a longer one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of our own.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How to poll.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often.
    pub intervals: Intervals,
    /// After how long without a good poll the leader is no longer healthy, and
    /// an unstable list is an error.
    pub retry_deadline: Duration,
}

/// What every term of this process has in common.
pub struct Poller {
    settings: Settings,
    cloud_controller: CloudController,
    store: Store,
    freshness: Component,
    nudge: Nudge,
}

/// Lets others ask for a sync now.
#[derive(Debug, Clone, Default)]
pub struct Nudge(Arc<(Notify, AtomicBool)>);

impl Nudge {
    /// Asks. A standby forgets it when it becomes leader, since it syncs then.
    pub fn request(&self) {
        let (notify, asked) = &*self.0;
        asked.store(true, Ordering::Release);
        notify.notify_one();
    }

    fn take(&self) -> bool {
        self.0.1.swap(false, Ordering::AcqRel)
    }
}

impl Poller {
    /// `freshness` tells the world whether the leader keeps up.
    #[must_use]
    pub fn new(
        settings: Settings,
        cloud_controller: CloudController,
        store: Store,
        freshness: Component,
        nudge: Nudge,
    ) -> Self {
        freshness.ready();
        Self { settings, cloud_controller, store, freshness, nudge }
    }

    /// Polls in `term` until the store refuses it.
    pub async fn lead(self: Arc<Self>, term: Term) -> Fenced {
        let _standby_is_healthy = OnDrop(&self.freshness);
        self.nudge.take();
        let mut leadership = Leadership {
            poller: &self,
            term,
            schedule: Schedule::new(self.settings.intervals),
            held: None,
            fresh: true,
            last_good: Instant::now(),
            backoff: Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        loop {
            let next = match leadership.poll().await {
                Ok(()) => Instant::from_std(leadership.schedule.next(Instant::now().into_std())),
                Err(cycle::Error::Store(store::Error::Fenced(message))) => {
                    counter!("syncer_failures_total", "cause" => "fenced").increment(1);
                    error!(error = message, "fenced-by-policy-store");
                    return Fenced;
                }
                Err(err) => Instant::now() + leadership.failed(&err),
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.nudge.0.0.notified() => {}
            }
        }
    }
}

/// A standby does not poll, so it cannot be out of date.
struct OnDrop<'a>(&'a Component);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.ready();
    }
}

/// One term.
struct Leadership<'a> {
    poller: &'a Poller,
    term: Term,
    schedule: Schedule,
    /// What the store is known to hold.
    held: Option<Arc<Held>>,
    /// Nothing was polled yet.
    fresh: bool,
    last_good: Instant,
    backoff: Backoff,
}

impl Leadership<'_> {
    async fn poll(&mut self) -> Result<(), cycle::Error> {
        debug!("asg-sync-started");
        if std::mem::take(&mut self.fresh) {
            debug!("initializing-lastSyncTime");
        }
        if self.poller.nudge.take() {
            self.schedule.request();
        }
        let stamp = self.poller.cloud_controller.last_update().await?;
        let local = self.schedule.watermark().unwrap_or(Stamp::Unknown);
        match self.schedule.decide(stamp, Instant::now().into_std()) {
            None => {
                debug!(
                    "cc-latest-update-time" = %stamp, "local-latest-update-time" = %local,
                    "skipping-update"
                );
                counter!("syncer_polls_total", "outcome" => "unchanged").increment(1);
            }
            Some(reason) => {
                debug!(
                    "cc-latest-update-time" = %stamp, "local-latest-update-time" = %local,
                    reason = reason.as_str(), "performing-update"
                );
                self.sync(stamp, local, reason).await?;
                counter!("syncer_polls_total", "outcome" => "synced").increment(1);
            }
        }
        self.good();
        debug!("asg-sync-complete");
        Ok(())
    }

    async fn sync(
        &mut self,
        stamp: Stamp,
        local: Stamp,
        reason: Reason,
    ) -> Result<(), cycle::Error> {
        let Poller { cloud_controller, store, .. } = self.poller;
        // Until the store has confirmed, nobody knows what it holds.
        let held = self.held.take();
        let outcome = cycle::run(cloud_controller, store, &self.term, stamp, held.clone()).await;
        let synced = match outcome {
            Ok(synced) => synced,
            Err(err) => {
                if matches!(err, cycle::Error::CloudController(_)) {
                    self.held = held;
                }
                return Err(err);
            }
        };
        self.schedule.synced(synced.stamp, synced.began, fastrand::f64());
        debug!(
            "old-local-latest-update-time" = %local,
            "new-local-latest-update-time" = %synced.stamp,
            "updating-local-latest-update-time"
        );
        debug!("new-last-sync-time" = %jiff::Timestamp::now(), "updating-last-sync-time");
        tell(&synced, reason, &self.term);
        self.held = Some(synced.held);
        Ok(())
    }

    fn good(&mut self) {
        self.backoff.reset();
        self.last_good = Instant::now();
        self.poller.freshness.ready();
        let now = seconds_now();
        gauge!("syncer_last_success_timestamp_seconds").set(now);
        if let Some(Stamp::At(watermark)) = self.schedule.watermark() {
            let stamp = watermark.seconds() as f64 + f64::from(watermark.nanoseconds()) / 1e9;
            gauge!("syncer_watermark_timestamp_seconds").set(stamp);
            gauge!("syncer_watermark_age_seconds").set(now - stamp);
        }
    }

    /// Tells of a poll that failed. Returns how long to pause.
    fn failed(&mut self, err: &cycle::Error) -> Duration {
        counter!("syncer_polls_total", "outcome" => "failed").increment(1);
        counter!("syncer_failures_total", "cause" => err.cause()).increment(1);
        let pause = self.backoff.pause().max(err.retry_after().unwrap_or_default());
        let deadline = self.poller.settings.retry_deadline;
        let stale = self.last_good.elapsed() > deadline;
        let unstable = err.is_unstable();
        let mut text = chain(err);
        if unstable && stale {
            text = format!(
                "unable to retrieve a consistent listing of security groups from CAPI after \
                 '{deadline:?}': {text}"
            );
        }
        let retry_in_ms = millis(pause);
        if unstable && !stale {
            info!(error = text, retry_in_ms, "security-groups-did-not-stand-still");
        } else {
            error!(error = text, retry_in_ms, "asg-sync-cycle");
        }
        if stale {
            self.poller.freshness.not_ready(format!("no good poll for {deadline:?}"));
        }
        pause
    }
}

fn tell(synced: &Synced, reason: Reason, term: &Term) {
    let store::Committed { generation, added, changed, removed, unchanged } = synced.committed;
    info!(
        reason = reason.as_str(),
        added,
        changed,
        removed,
        unchanged,
        malformed = synced.malformed,
        kept = synced.kept,
        generation = generation.0,
        "fencing-token" = term.token().0,
        watermark = %synced.stamp,
        "read-ms" = millis(synced.read_time),
        "store-ms" = millis(synced.store_time),
        "applied-security-groups"
    );
    histogram!("syncer_cycle_duration_seconds", "step" => "read").record(synced.read_time);
    histogram!("syncer_cycle_duration_seconds", "step" => "store").record(synced.store_time);
    gauge!("syncer_groups").set((added + changed + unchanged) as f64);
    gauge!("syncer_malformed_groups").set(synced.malformed as f64);
    gauge!("syncer_generation").set(generation.0 as f64);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock, where a time stamp leaves the process.
fn seconds_now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1e3
}
