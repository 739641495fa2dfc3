//! Poll loop of a leader: polls the stamp and syncs when due.
//!
//! The loop has no state from earlier terms: another leader may have written in between,
//! so the first sync of a term comes at once. Errors never end the loop; they are logged,
//! counted and followed by a pause. It ends when the store has seen a newer leader, or
//! is dropped at the end of its term.

mod freshness;
pub mod schedule;
mod store_watch;
pub mod sync_now;

use std::{sync::Arc, time::Duration};

use model::trace::{TraceContext, TraceId};
use runtime::{
    backoff::Backoff,
    error::chain,
    lager,
    otlp::{self, Span},
    server::{Component, Health},
};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info};
use uuid::Uuid;

use self::{
    freshness::{Freshness, Leading},
    schedule::{Confirmed, Intervals, Reason, Schedule},
    sync_now::{Outcome, SyncNow},
};
use crate::{
    cloud_controller::{CloudController, listing::Moved},
    cycle::{self, Cause, Synced},
    lease::keeper::{Fenced, Term},
    manifest::StoreHashes,
    metrics::{
        FAILURES, GENERATION, GROUPS, LAST_SUCCESS, MALFORMED, POLLS, WATERMARK, WATERMARK_AGE,
    },
    report::Report,
    stamp::Stamp,
    store::{self, Store},
};

/// Upper bound of the first pause after a failure; a server may request a longer one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause, unless a server requests a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Default interval of stamp polls.
pub const FASTEST_POLL: Duration = Duration::from_millis(250);
/// By default, stamp polls take at most 1/100 of the Cloud Controller's time.
pub const POLL_SHARE: u32 = 100;
/// Time until the next read of the list after one with malformed groups.
pub const REPAIR: Duration = Duration::from_secs(15);

/// Settings of the poll loop.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Intervals.
    pub intervals: Intervals,
    /// Time without a successful poll after which an unstable list is an error, and the leader
    /// not ready.
    pub retry_deadline: Duration,
    /// How long a due poll may be without success, or the store without a response, before
    /// the leader is not ready. After this time a list counts that changes while it is read.
    pub max_staleness: Duration,
}

/// State shared by all terms of this process.
pub struct Poller {
    settings: Settings,
    cloud_controller: CloudController,
    store: Store,
    report: Report,
    freshness: Freshness,
    store_is_there: Component,
    sync_now: SyncNow,
}

impl Poller {
    /// `health` gets the components `sync` and `policy-store`: whether the leader keeps up,
    /// and whether its store is reachable.
    #[must_use]
    pub fn new(
        settings: Settings,
        cloud_controller: CloudController,
        store: Store,
        report: Report,
        health: &Health,
        sync_now: SyncNow,
    ) -> Self {
        let bound = settings.max_staleness.min(settings.retry_deadline);
        let freshness = Freshness::new(health.component("sync"), bound);
        let store_is_there = health.component("policy-store");
        store_is_there.ready();
        Self { settings, cloud_controller, store, report, freshness, store_is_there, sync_now }
    }

    /// Polls in `term` until the store refuses it.
    pub async fn lead(self: Arc<Self>, term: Term) -> Fenced {
        let _standby_is_ready = Leading([self.freshness.component(), &self.store_is_there]);
        let answers = self.cloud_controller.answers();
        let bound = self.settings.max_staleness;
        tokio::select! {
            fenced = self.polls(term) => fenced,
            never = self.freshness.watch(answers) => match never {},
            never = store_watch::watch(&self.store, &self.store_is_there, bound) => match never {},
        }
    }

    async fn polls(&self, term: Term) -> Fenced {
        let mut asked = self.sync_now.lead();
        let mut leadership = Leadership {
            poller: self,
            term,
            schedule: Schedule::new(self.settings.intervals),
            held: None,
            fresh: true,
            last_good: Instant::now(),
            unstable_since: None,
            backoff: Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        loop {
            if asked.begin_poll() {
                leadership.schedule.request();
            }
            let next = match leadership.poll().await {
                Ok(applied) => {
                    if let Some(applied) = applied {
                        asked.answer(&Outcome::Applied(applied));
                    }
                    let next = leadership.schedule.next(Instant::now().into_std());
                    let next = Instant::from_std(next);
                    self.freshness.good(next);
                    next
                }
                Err(cycle::Error::Store(store::Error::Fenced(message))) => {
                    FAILURES.counter_by([("cause", "fenced")]).increment(1);
                    error!(error = message, "fenced-by-policy-store");
                    return Fenced;
                }
                Err(err) => {
                    let pause = leadership.failed(&err);
                    let (error, retry_in_ms) = (chain(&err), millis(pause));
                    asked.answer(&Outcome::Failed { error, retry_in_ms });
                    Instant::now() + pause
                }
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = asked.asked() => {}
            }
        }
    }
}

/// State of one term.
struct Leadership<'a> {
    poller: &'a Poller,
    term: Term,
    schedule: Schedule,
    /// Known hashes in the store.
    held: Option<Arc<StoreHashes>>,
    /// No poll was made yet.
    fresh: bool,
    last_good: Instant,
    /// When the list began to change during each read.
    unstable_since: Option<Instant>,
    backoff: Backoff,
}

impl Leadership<'_> {
    /// Returns the applied sync, if the list was read.
    async fn poll(&mut self) -> Result<Option<Applied>, cycle::Error> {
        let began = Instant::now();
        debug!("asg-sync-started");
        if std::mem::take(&mut self.fresh) {
            debug!("initializing-lastSyncTime");
        }
        let stamp = self.poller.cloud_controller.last_update().await?;
        self.schedule.polled(began.elapsed());
        let local = self.schedule.watermark().unwrap_or(Stamp::Unknown);
        let applied = match self.schedule.decide(stamp, Instant::now().into_std()) {
            None => {
                debug!(
                    "cc-latest-update-time" = %stamp, "local-latest-update-time" = %local,
                    "skipping-update"
                );
                POLLS.counter_by([("outcome", "unchanged")]).increment(1);
                None
            }
            Some(reason) => {
                debug!(
                    "cc-latest-update-time" = %stamp, "local-latest-update-time" = %local,
                    reason = reason.as_str(), "performing-update"
                );
                let applied = self.sync(stamp, local, reason, began).await?;
                POLLS.counter_by([("outcome", "synced")]).increment(1);
                Some(applied)
            }
        };
        self.good();
        debug!("asg-sync-complete");
        Ok(applied)
    }

    async fn sync(
        &mut self,
        stamp: Stamp,
        local: Stamp,
        reason: Reason,
        began: Instant,
    ) -> Result<Applied, cycle::Error> {
        let Poller { cloud_controller, store, report, .. } = self.poller;
        // Until the store has confirmed, its content is unknown.
        let held = self.held.take();
        let known = held.clone();
        let (trace, span) = (Uuid::new_v4().as_u128(), Uuid::new_v4().as_u64_pair().1);
        let trace = TraceContext::from_random(trace, span);
        let moved = match self.unstable_for() >= Some(self.poller.settings.max_staleness) {
            true => Moved::Accepted,
            false => Moved::Refused,
        };
        let cause = Cause { stamp, noticed_at: jiff::Timestamp::now(), trace, moved };
        let outcome = cycle::run(cloud_controller, store, &self.term, cause, known, report).await;
        if !matches!(outcome, Err(cycle::Error::CloudController(_))) {
            report.synced(began.elapsed());
        }
        let synced = match outcome {
            Ok(synced) => synced,
            Err(err) => {
                otlp::record(|| {
                    Span::root(trace.ids(), "sync", began.elapsed()).failed(chain(&err))
                });
                if matches!(err, cycle::Error::CloudController(_)) {
                    self.held = held;
                }
                return Err(err);
            }
        };
        let Synced { stamp, began: reading_began, malformed, read_time, .. } = synced;
        let confirmed = Confirmed { stamp, began: reading_began, took: read_time, malformed };
        self.schedule.synced(confirmed, fastrand::f64());
        if synced.moved {
            self.schedule.request();
        } else {
            self.unstable_since = None;
        }
        debug!(
            "old-local-latest-update-time" = %local,
            "new-local-latest-update-time" = %synced.stamp,
            "updating-local-latest-update-time"
        );
        debug!("new-last-sync-time" = %jiff::Timestamp::now(), "updating-last-sync-time");
        let applied = Applied::new(&synced, reason, &self.term, trace.trace_id());
        applied.tell();
        otlp::record(|| {
            let span =
                Span::root(trace.ids(), "sync", began.elapsed()).with("reason", reason.as_str());
            span.with("generation", applied.generation.cast_signed())
        });
        record(&synced);
        self.held = Some(synced.held);
        Ok(applied)
    }

    fn unstable_for(&self) -> Option<Duration> {
        self.unstable_since.map(|since| since.elapsed())
    }

    fn good(&mut self) {
        self.backoff.reset();
        self.last_good = Instant::now();
        LAST_SUCCESS.gauge().set(seconds_now());
        self.show_watermark();
    }

    /// Also after failures: the age of the cells' rules increases.
    fn show_watermark(&self) {
        if let Some(Stamp::At(watermark)) = self.schedule.watermark() {
            let stamp = watermark.seconds() as f64 + f64::from(watermark.nanoseconds()) / 1e9;
            WATERMARK.gauge().set(stamp);
            WATERMARK_AGE.gauge().set(seconds_now() - stamp);
        }
    }

    /// Logs a failed poll. Returns the length of the pause.
    fn failed(&mut self, err: &cycle::Error) -> Duration {
        POLLS.counter_by([("outcome", "failed")]).increment(1);
        FAILURES.counter_by([("cause", err.cause())]).increment(1);
        self.show_watermark();
        let mut pause = self.backoff.pause().max(err.retry_after().unwrap_or_default());
        let Settings { retry_deadline: deadline, max_staleness, .. } = self.poller.settings;
        let stale = self.last_good.elapsed() > deadline;
        let unstable = err.is_unstable();
        if unstable {
            let since = *self.unstable_since.get_or_insert_with(Instant::now);
            let accepted = max_staleness.saturating_sub(since.elapsed());
            pause = pause.min(accepted.max(SHORTEST_PAUSE));
        }
        let mut text = chain(err);
        if unstable && stale {
            text = format!(
                "unable to retrieve a consistent listing of security groups from CAPI after \
                 '{deadline:?}': {text}"
            );
        }
        let retry_in_ms = millis(pause);
        if unstable && !stale {
            info!(error = text, retry_in_ms, "security-groups-list-unstable");
        } else {
            error!(error = text, retry_in_ms, "asg-sync-cycle");
        }
        if stale {
            let reason = format!("no good poll for {deadline:?}: {text}");
            self.poller.freshness.stale(reason);
        } else if !unstable {
            self.poller.freshness.failed(text);
        }
        pause
    }
}

/// An applied sync, as logged and returned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Applied {
    /// Reason for reading the list.
    pub reason: &'static str,
    /// Number of new groups.
    pub added: u64,
    /// Number of groups with new content.
    pub changed: u64,
    /// Number of removed groups.
    pub removed: u64,
    /// Number of unchanged groups.
    pub unchanged: u64,
    /// The first groups of each kind.
    #[serde(flatten)]
    pub named: store::Named,
    /// Number of malformed groups.
    pub malformed: usize,
    /// Number of groups whose stored version was kept.
    pub kept: usize,
    /// Generation of the set in the store.
    pub generation: u64,
    /// Fencing token of the write; 0 for none.
    pub fencing_token: u64,
    /// The Cloud Controller's stamp of the list.
    pub watermark: String,
    /// Duration of the read in milliseconds.
    pub read_ms: u64,
    /// Duration of the Replace in milliseconds.
    pub store_ms: u64,
    /// Names the sync in the logs of the store and of the cells.
    #[serde(rename = "trace_id")]
    pub trace_id: String,
}

impl Applied {
    fn new(synced: &Synced, reason: Reason, term: &Term, trace_id: TraceId) -> Self {
        let store::Committed { generation, added, changed, removed, unchanged, named } =
            synced.committed.clone();
        Self {
            reason: reason.as_str(),
            added,
            changed,
            removed,
            unchanged,
            named,
            malformed: synced.malformed,
            kept: synced.kept,
            generation: generation.0,
            fencing_token: term.token().0,
            watermark: synced.stamp.to_string(),
            read_ms: millis(synced.read_time),
            store_ms: millis(synced.store_time),
            trace_id: trace_id.to_string(),
        }
    }

    fn tell(&self) {
        info!(
            reason = self.reason,
            added = self.added,
            changed = self.changed,
            removed = self.removed,
            unchanged = self.unchanged,
            "added-guids" = guids(&self.named.added_guids),
            "changed-guids" = guids(&self.named.changed_guids),
            "removed-guids" = guids(&self.named.removed_guids),
            malformed = self.malformed,
            kept = self.kept,
            generation = self.generation,
            "fencing-token" = self.fencing_token,
            watermark = self.watermark,
            "read-ms" = self.read_ms,
            "store-ms" = self.store_ms,
            trace_id = self.trace_id,
            "applied-security-groups"
        );
    }
}

/// Log field with a list of guids; absent if the list is empty.
fn guids(guids: &[String]) -> Option<impl tracing::Value> {
    (!guids.is_empty()).then(|| lager::json(guids))
}

fn record(synced: &Synced) {
    let store::Committed { generation, added, changed, removed: _, unchanged, named: _ } =
        synced.committed;
    GROUPS.gauge().set((added + changed + unchanged) as f64);
    MALFORMED.gauge().set(synced.malformed as f64);
    GENERATION.gauge().set(generation.0 as f64);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Wall clock, for timestamps that leave the process.
fn seconds_now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1e3
}
