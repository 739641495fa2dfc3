//! The reconcile loop: makes the kernel match the ruleset.
//!
//! Level-triggered: it compares the desired with the actual state when an input
//! changes, when another process changed the kernel, and periodically. Only this loop
//! writes our rules, through its [`Plane`].
//!
//! The kernel keeps the rules of an earlier process until containers and groups are
//! known (law 5). A crash at any point leaves the whole old or the whole new rules in
//! the kernel; the plane finds out which.

mod enforce;
mod enforced;
mod isolate;
mod once;
mod tally;
mod uses;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use model::{generation::Generation, trace::TraceContext};
use runtime::{
    backoff::Backoff,
    error::chain,
    lager,
    otlp::{self, Span},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use enforced::{Enforced, Packets};
pub use once::Outcome;

use enforce::{Attempt, Call, Enforcer};
use enforced::difference;
use isolate::log_unreadable;
use tally::Tally;

use crate::{
    containers::Containers,
    metrics::{self, Step, Times, number},
    plan::{Known, Ruleset, Settings},
    plane::{Error, Plane, Status, drift::Drift},
    uses::RuleUse,
};

/// Debounce of a single change.
const GATHER: Duration = Duration::from_millis(2);
/// Debounce of group changes during a burst; changes of containers wait less, since the
/// CNI plugin waits for them.
const GATHER_BURST: Duration = Duration::from_millis(15);
/// Changes closer together than this are a burst.
const BURST: Duration = Duration::from_millis(100);
/// Bounds of the first and of the longest retry delay.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// Delay after the last change before unused chains are swept and the kernel's listing
/// is recorded; under steady change, [`SETTLE_MOST`] after the first one.
const SETTLE: Duration = Duration::from_millis(200);
const SETTLE_MOST: Duration = Duration::from_secs(1);

/// Inputs of the loop.
#[derive(Debug)]
pub struct Inputs {
    /// Cell-wide settings.
    pub settings: Arc<Settings>,
    /// The containers of the cell.
    pub containers: watch::Receiver<Containers>,
    /// Groups from the policy store; `None` until the first response.
    pub groups: watch::Receiver<Option<Arc<Known>>>,
    /// Interval of drift checks.
    pub drift_interval: Duration,
    /// Interval of full comparisons.
    pub full_interval: Duration,
    /// Records durations.
    pub times: Times,
}

/// Requests a reconcile cycle now.
#[derive(Debug)]
pub struct Trigger {
    /// Compare the kernel even if no change was detected.
    pub thoroughly: bool,
    /// Receives whether anything was repaired, or the error.
    pub answer: oneshot::Sender<Result<bool, String>>,
}

/// The reconcile loop.
#[derive(Debug)]
pub struct Reconciler {
    inputs: Inputs,
    enforcer: Enforcer,
    plane: Box<dyn Plane>,
    nudges: mpsc::Receiver<Trigger>,
    published: watch::Sender<Arc<Enforced>>,
    failures: u32,
    backoff: Backoff,
    retry_at: Option<Instant>,
    settle_at: Option<Instant>,
    changing_since: Option<Instant>,
    changed_at: Option<Instant>,
    /// The generation in force, and its start.
    generation_since: Option<(Generation, Instant)>,
    /// The kernel's rules are kept until the inputs are known.
    holding: bool,
    /// Another process removed the kept rules, and they cannot be restored.
    lost: bool,
    /// The rules of an earlier process have been read.
    recovered: bool,
    /// Why the last read of the kernel failed.
    unread: Option<String>,
    tally: Tally,
    /// Where the uses of rules go, and how often, if they are counted.
    uses: Option<(RuleUse, Duration)>,
}

impl Reconciler {
    /// A loop that is not running yet, with its published state and its trigger.
    #[must_use]
    pub fn new(
        inputs: Inputs,
        plane: Box<dyn Plane>,
    ) -> (Self, watch::Receiver<Arc<Enforced>>, mpsc::Sender<Trigger>) {
        let ruleset = Arc::new(Ruleset::empty(Arc::clone(&inputs.settings)));
        let (published, enforced) = watch::channel(Arc::new(Enforced::nothing(ruleset)));
        let (nudge, nudges) = mpsc::channel(4);
        let reconciler = Self {
            enforcer: Enforcer::new(Arc::clone(&inputs.settings)),
            inputs,
            plane,
            nudges,
            published,
            failures: 0,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
            retry_at: None,
            settle_at: None,
            changing_since: None,
            changed_at: None,
            generation_since: None,
            holding: false,
            lost: false,
            recovered: false,
            unread: None,
            tally: Tally::default(),
            uses: None,
        };
        (reconciler, enforced, nudge)
    }

    /// Counts packets from these values of the kernel's counters: those of an earlier process.
    #[must_use]
    pub fn counting_from(mut self, counted: BTreeMap<String, u64>) -> Self {
        self.tally = Tally::from(counted);
        self
    }

    /// Runs until shutdown; a transaction in progress is finished first. The kernel
    /// keeps its rules.
    ///
    /// # Errors
    /// Never; failures are published and retried.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        self.reconcile().await;
        let every = |interval| {
            let mut every = tokio::time::interval_at(Instant::now() + interval, interval);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            every
        };
        let mut drift = every(self.inputs.drift_interval);
        let mut full = every(self.inputs.full_interval);
        let mut uses = self.uses_due();
        loop {
            let (retry_at, settle_at) = (self.retry_at, self.settle_at);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(nudge) = self.nudges.recv() => self.nudged(nudge).await,
                Ok(()) = self.inputs.containers.changed() => self.gather(GATHER).await,
                Ok(()) = self.inputs.groups.changed() => self.gather(self.debounce()).await,
                () = at(retry_at) => self.reconcile().await,
                () = at(settle_at) => self.settle().await,
                _ = drift.tick() => {
                    self.measure_age();
                    let snapshot = Arc::clone(&self.inputs.containers.borrow().snapshot);
                    if self.enforcer.finds_interfaces(&snapshot) {
                        self.reconcile().await;
                    }
                    self.check(false).await;
                    self.observe().await;
                }
                _ = full.tick() => self.compare_all().await,
                _ = uses.tick() => self.read_uses().await,
            }
        }
    }

    /// Periodic full comparison; does nothing when nothing has changed.
    async fn compare_all(&mut self) {
        let retries = self.enforcer.retries_refused();
        if !self.check(false).await && (retries || !self.is_current()) {
            self.reconcile().await;
        }
    }

    /// Whether the current inputs are in force.
    fn is_current(&self) -> bool {
        let enforced = self.published.borrow();
        let known = self.inputs.groups.borrow();
        enforced.error.is_none()
            && Arc::ptr_eq(&enforced.snapshot, &self.inputs.containers.borrow().snapshot)
            && known.as_ref().is_some_and(|known| Arc::ptr_eq(&enforced.known, known))
    }

    fn measure_age(&self) {
        if let Some((_, since)) = self.generation_since {
            metrics::GENERATION_AGE.gauge().set(since.elapsed());
        }
    }

    async fn nudged(&mut self, Trigger { thoroughly, answer: asked }: Trigger) {
        let mut healed = false;
        if thoroughly {
            if self.settle_at.is_some() {
                self.settle().await;
            }
            healed = self.check(true).await;
        }
        self.reconcile().await;
        let answer = self.published.borrow().error.clone().map_or(Ok(healed), Err);
        let _gave_up = asked.send(answer);
    }

    /// Debounce of group changes; the short one for the first groups, since containers
    /// are denied until then.
    fn debounce(&self) -> Duration {
        let first = self.published.borrow().generation() == Generation::default();
        let burst = self.changed_at.is_some_and(|at| at.elapsed() < BURST);
        if burst && !first { GATHER_BURST } else { GATHER }
    }

    /// Collects changes that arrive together.
    async fn gather(&mut self, length: Duration) {
        tokio::time::sleep(length).await;
        self.reconcile().await;
    }

    /// One attempt with the current inputs.
    async fn reconcile(&mut self) {
        self.retry_at = None;
        if !self.recover().await {
            return;
        }
        let Some(attempt) = self.attempt() else { return };
        let started = Instant::now();
        let before = Arc::clone(&self.published.borrow().ruleset);
        let apply: Call<bool> = |plane, ruleset| plane.apply(ruleset);
        let check: Call<()> = |plane, ruleset| plane.check(ruleset);
        let enforced = self.enforcer.enforce(&mut *self.plane, (apply, check), &attempt).await;
        self.inputs.times.took(Step::Enforce, started.elapsed());
        match enforced {
            Ok((ruleset, changed, searched)) => {
                self.failures = 0;
                self.backoff.reset();
                log_unreadable(&before, &ruleset);
                if changed || searched {
                    self.changed(started, &before, &ruleset, &attempt);
                }
                self.succeeded(&attempt, ruleset);
            }
            Err(error) => self.failed(attempt.reading, &error),
        }
        self.inputs.times.took(Step::Total, started.elapsed());
    }

    /// Whether the rules of an earlier process have been read. Before that nothing is
    /// changed: the kernel may hold the only copy of the rules.
    async fn recover(&mut self) -> bool {
        if self.recovered {
            return true;
        }
        match self.plane.recover().await {
            Ok(()) => self.recovered = true,
            Err(error) => {
                let reading = self.inputs.containers.borrow_and_update().reading;
                self.failed(reading, &error);
            }
        }
        self.recovered
    }

    fn attempt(&mut self) -> Option<Attempt> {
        let attempt = Attempt::of(&mut self.inputs);
        // Containers or rules are not known yet, but the kernel has rules: keep them.
        let unknown = !attempt.knows_groups || attempt.reading == 0;
        self.holding &= unknown;
        if unknown && self.plane.status().holds_rules && !self.lost {
            if !std::mem::replace(&mut self.holding, true) {
                tracing::info!(
                    groups = attempt.knows_groups,
                    containers = attempt.reading > 0,
                    "keeping-last-rules-until-groups-are-known"
                );
            }
            return None;
        }
        self.enforcer.finds_interfaces(&attempt.snapshot);
        Some(attempt)
    }

    fn changed(&mut self, started: Instant, before: &Ruleset, after: &Ruleset, attempt: &Attempt) {
        let now = Instant::now();
        let took = now - started;
        self.changed_at = Some(now);
        let since = *self.changing_since.get_or_insert(now);
        self.settle_at = Some((now + SETTLE).min(since + SETTLE_MOST));
        let (added, removed) = difference(before, after);
        let trace_id = attempt.known.trace.as_ref().map(TraceContext::trace_id);
        tracing::info!(
            containers = after.containers.len(),
            added,
            removed,
            milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            generation = attempt.known.generation.0,
            isolated = after.isolated_rules(),
            trace_id = trace_id.map(tracing::field::display),
            "rules-applied"
        );
        metrics::APPLY_SECONDS.histogram().record(took);
        let generation = attempt.known.generation;
        let is_new = self.generation_since.is_none_or(|(in_force, _)| in_force != generation);
        if let Some(trace) = attempt.known.trace.as_ref().filter(|_| is_new) {
            otlp::record(|| {
                let span = Span::below(trace.ids(), "apply-rules", took);
                span.with("generation", generation.0.cast_signed())
            });
        }
    }

    fn failed(&mut self, reading: u64, error: &Error) {
        let text = chain(error);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + self.backoff.pause());
        tracing::error!(error = text, attempts = self.failures, "apply-failed");
        metrics::count(metrics::APPLY_FAILURES);
        self.publish(reading, |enforced| enforced.error = Some(text));
    }

    fn succeeded(&mut self, attempt: &Attempt, ruleset: Ruleset) {
        let unread = self.unread.clone();
        let in_force = Instant::now().into_std();
        self.publish(attempt.reading, |enforced| {
            if enforced.known.revision != attempt.known.revision {
                let arrived = attempt.known.arrived;
                enforced.apply_time = arrived.map(|at| in_force.saturating_duration_since(at));
            }
            enforced.reading = attempt.reading;
            enforced.snapshot = Arc::clone(&attempt.snapshot);
            enforced.known = Arc::clone(&attempt.known);
            enforced.ruleset = Arc::new(ruleset);
            enforced.at = Some(now());
            enforced.error = unread;
        });
    }

    /// Publishes the result of an attempt, with the sequence number of the containers
    /// that it used.
    fn publish(&mut self, reading: u64, outcome: impl FnOnce(&mut Enforced)) {
        let Status { rules, waiting, kept, holds_rules: _, has_work: _ } = self.plane.status();
        self.published.send_modify(|published| {
            let enforced = Arc::make_mut(published);
            enforced.attempted = reading;
            enforced.waiting = waiting;
            enforced.kept = kept;
            outcome(enforced);
        });
        let enforced = self.published.borrow();
        enforced.measure();
        number(metrics::KERNEL_RULES, rules);
        let generation = enforced.generation();
        if self.generation_since.is_none_or(|(in_force, _)| in_force != generation) {
            self.generation_since = Some((generation, Instant::now()));
        }
    }

    /// Sweeps unused chains and records the kernel's state; stops when changes arrive.
    async fn settle(&mut self) {
        let since = self.changing_since.take();
        self.settle_at = Some(Instant::now() + SETTLE);
        let ruleset = Arc::clone(&self.published.borrow().ruleset);
        let started = Instant::now();
        let swept = self.plane.sweep(&ruleset).await;
        self.inputs.times.took(Step::Cleanup, started.elapsed());
        let settled = match swept {
            Ok(()) => tokio::select! {
                biased;
                Ok(()) = self.inputs.containers.changed() => {
                    self.inputs.containers.mark_changed();
                    self.changing_since = since;
                    Ok(false)
                }
                settled = self.plane.settle() => settled,
            },
            Err(error) => Err(error),
        };
        self.looked(settled.as_ref().err().map(|error| chain(error)));
        match settled {
            Ok(true) => self.settle_at = None,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = chain(&error), "settle-failed");
                self.settle_at = Some(Instant::now() + SETTLE_MOST);
            }
        }
    }

    /// Checks for changes of our table by others, and repairs them. Returns whether
    /// there were any.
    async fn check(&mut self, thoroughly: bool) -> bool {
        if self.settle_at.is_some() && !thoroughly {
            return false;
        }
        let drifted = self.plane.drifted(thoroughly).await;
        if let Err(error) = &drifted {
            tracing::error!(error = chain(error), "drift-check-failed");
        }
        self.looked(drifted.as_ref().err().map(|error| chain(error)));
        let drifted = drifted.unwrap_or(None);
        if let Some(Drift { differences, shown }) = &drifted {
            tracing::error!(differences, changes = lager::json(shown), "drift-found");
            if self.repair().await {
                self.published.send_modify(|published| Arc::make_mut(published).drift_healed += 1);
                metrics::count(metrics::DRIFT_HEALED);
                tracing::info!("drift-healed");
            }
        } else if self.plane.status().has_work {
            self.reconcile().await;
        }
        drifted.is_some()
    }

    /// Records the result of the last read: if the kernel cannot be read, its rules are
    /// not known to be in force.
    fn looked(&mut self, problem: Option<String>) {
        let before = std::mem::replace(&mut self.unread, problem);
        if before != self.unread {
            self.published.send_modify(|published| {
                if published.error == before || published.error.is_none() {
                    Arc::make_mut(published).error.clone_from(&self.unread);
                }
            });
        }
    }

    /// Whether the kernel is repaired.
    async fn repair(&mut self) -> bool {
        self.reconcile().await;
        if !self.holding {
            return self.published.borrow().error.is_none();
        }
        // The desired state is unknown, so the previous rules are restored; if those
        // are unknown too, all egress is denied (law 7).
        match self.plane.restore().await {
            Ok(true) => self.settle_at = Some(Instant::now() + SETTLE),
            Ok(false) => {
                self.lost = true;
                self.reconcile().await;
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "restore-failed");
                return false;
            }
        }
        self.published.borrow().error.is_none()
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "the time stamp is shown to people")]
fn now() -> SystemTime {
    SystemTime::now()
}
