//! Drives the [`Lease`]: claims the lock at the lock server, runs the leader's work while
//! the lock is held, and logs transitions as the original does.
//!
//! A single loop owns all state, so events have one order. At most one attempt is in
//! flight, and the work runs in a separate task, so that a long computation never delays
//! a renewal. When a term ends, for whatever reason, the work is aborted and awaited
//! before anything else happens.
//!
//! Differences from the original: the process continues after it loses the lock (unless
//! configured to exit), a single failed renewal is not a loss, and a standby that can
//! watch the lock claims it as soon as it is free.

use std::{future::pending, pin::Pin, time::Duration};

use anyhow::{Context as _, anyhow};
use model::lock::{Claim, FencingToken};
use runtime::{lager, server::Component};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, debug, error, error_span, info};

use super::{
    Granted, Lease, Times,
    locket::{Failure, Locket, LoggedLock, Watched},
};
use crate::metrics::{FENCING_TOKEN, LEASE_HELD, LOCK_FAILURES, LOST_LOCKS, TERMS};

/// Timeout of calls at the end of a term: Release, or Fetch of the owner.
const COURTESY: Duration = Duration::from_secs(2);
/// SIGTERM, as the original logs an external stop.
const SIGNAL: u32 = 15;

/// A term of leadership, passed to the work.
#[derive(Debug, Clone)]
pub struct Term {
    token: FencingToken,
    ends: watch::Receiver<Instant>,
}

impl Term {
    /// A term with a fixed end; for tests of the work.
    #[must_use]
    pub fn new(token: FencingToken, ends: watch::Receiver<Instant>) -> Self {
        Self { token, ends }
    }

    /// The fencing token of this term; 0 from a server without fencing tokens.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Whether this process still holds the lock, as far as known.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        now < *self.ends.borrow()
    }
}

/// The only way for the work to end by itself: the store has seen a newer leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// Settings of the keeper.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lock to claim.
    pub claim: Claim,
    /// Interval and timeouts.
    pub times: Times,
    /// Whether losing the lock ends the process, as in the original.
    pub exit_on_loss: bool,
}

/// Claims and renews the lock.
pub struct Keeper {
    settings: Settings,
    lease: Lease,
    locket: Locket,
    span: Span,
    /// Time of the next attempt, unless one is in flight.
    due: Instant,
    attempt: Option<Attempt>,
    free: Option<BoxFuture<Watched>>,
    watchable: bool,
    /// A collision was logged since this process last held the lock.
    told: bool,
    tokenless_told: bool,
    /// The process has made an attempt before.
    tried: bool,
    /// Last failed attempt since the last granted one.
    last_failure: Option<Failed>,
    running: Option<Running>,
    reach: Reach,
}

/// Whether the lock server is reachable, for `/readyz` of leaders and standbys.
struct Reach {
    component: Component,
    /// When this process stops being ready; `None` after that was reported.
    until: Option<Instant>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Attempt {
    sent: Instant,
    answer: BoxFuture<Result<FencingToken, Failure>>,
}

/// A failed attempt.
#[derive(Debug, Clone)]
struct Failed {
    failure: Failure,
    /// Nanoseconds until the response.
    duration: u64,
}

struct Running {
    ends: watch::Sender<Instant>,
    work: JoinSet<Fenced>,
}

enum Event {
    Shutdown,
    Ended,
    Work(Result<Fenced, JoinError>),
    Answer(Instant, Result<FencingToken, Failure>),
    Watched(Watched),
    Due,
    OutOfReach,
}

impl Keeper {
    /// Creates a keeper without the lock. `lock_server` is ready while the lock server has
    /// responded within the lock's time to live.
    #[must_use]
    pub fn new(settings: Settings, locket: Locket, lock_server: Component) -> Self {
        let span = error_span!(
            parent: None,
            "locket-lock",
            lock = lager::json(&LoggedLock::from(&settings.claim)),
            ttl_in_seconds = settings.claim.ttl.seconds(),
        );
        Self {
            lease: Lease::new(settings.times),
            settings,
            locket,
            span,
            due: Instant::now(),
            attempt: None,
            free: None,
            watchable: true,
            told: false,
            tokenless_told: false,
            tried: false,
            last_failure: None,
            running: None,
            reach: Reach { component: lock_server, until: Some(Instant::now()) },
        }
    }

    /// Runs `work` in every term, until `shutdown`; then releases the lock.
    ///
    /// # Errors
    /// The work panicked, or the lock was lost and `exit_on_loss` is set.
    pub async fn run<F>(
        mut self,
        shutdown: CancellationToken,
        work: impl Fn(Term) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        LEASE_HELD.gauge().set(0.0);
        self.span.in_scope(|| info!("started"));
        self.due = Instant::now();
        self.reach.until = Some(self.due + self.settings.times.ttl);
        let outcome = loop {
            let event = self.next(&shutdown).await;
            if matches!(event, Event::Shutdown) {
                self.span.in_scope(|| info!(signal = SIGNAL, "signalled"));
                break Ok(());
            }
            if let Err(err) = self.handle(event, &work).await {
                break Err(err);
            }
        };
        self.leave().await;
        self.span.in_scope(|| info!("completed"));
        outcome
    }

    /// Branches are in order of priority: the end of the lease is handled before any work
    /// that depends on the lease.
    async fn next(&mut self, shutdown: &CancellationToken) -> Event {
        let Self { lease, attempt, free, running, due, reach, .. } = self;
        let ends = lease.ends().map(Instant::from_std);
        let idle = attempt.is_none();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            () = at(ends) => Event::Ended,
            ended = ended(running) => Event::Work(ended),
            (sent, answer) = answered(attempt) => Event::Answer(sent, answer),
            watched = freed(free) => Event::Watched(watched),
            () = sleep_until(*due), if idle => Event::Due,
            () = at(reach.until) => Event::OutOfReach,
        }
    }

    async fn handle<F>(&mut self, event: Event, work: &impl Fn(Term) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        match event {
            Event::Shutdown => Ok(()),
            Event::Due => {
                self.ask();
                Ok(())
            }
            Event::Ended => match self.lease.expire(now()) {
                true => self.on_lock_lost("no renewal in time").await,
                false => Ok(()),
            },
            Event::Work(ended) => {
                let Fenced = ended.context("the leader's work failed")?;
                self.exit_on_loss().await
            }
            Event::Answer(sent, answer) => {
                self.attempt = None;
                self.answered(sent, answer, work).await
            }
            Event::Watched(watched) => {
                self.free = None;
                self.watched(&watched);
                Ok(())
            }
            Event::OutOfReach => {
                self.out_of_reach();
                Ok(())
            }
        }
    }

    /// A collision counts as a response, too.
    fn reached(&mut self, sent: Instant) {
        self.reach.until = Some(sent + self.settings.times.ttl);
        self.reach.component.ready();
    }

    fn out_of_reach(&mut self) {
        self.reach.until = None;
        let ttl = self.settings.times.ttl;
        let cause = self.last_failure.as_ref().map(|failed| format!(": {}", failed.failure));
        let cause = cause.unwrap_or_default();
        self.reach.component.not_ready(format!("no answer of the lock server for {ttl:?}{cause}"));
    }

    fn ask(&mut self) {
        let sent = Instant::now();
        let patience = self.lease.patience(sent.into_std());
        let mut locket = self.locket.clone();
        let claim = self.settings.claim.clone();
        let answer = async move { locket.lock(&claim, patience).await };
        self.attempt = Some(Attempt { sent, answer: Box::pin(answer) });
    }

    async fn answered<F>(
        &mut self,
        sent: Instant,
        answer: Result<FencingToken, Failure>,
        work: &impl Fn(Term) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        let now = now();
        let duration = nanoseconds(sent);
        let failed = answer.is_err();
        if answer.as_ref().err().is_none_or(Failure::is_collision) {
            self.reached(sent);
        }
        let tried = std::mem::replace(&mut self.tried, true);
        self.last_failure =
            answer.as_ref().err().map(|failure| Failed { failure: failure.clone(), duration });
        let outcome = match answer {
            Ok(token) => match self.lease.granted(sent.into_std(), now, token) {
                Granted::Kept { ends } => {
                    self.prolong(ends);
                    Ok(())
                }
                Granted::Began { token, ends, broke } => {
                    self.broken(broke).await?;
                    self.begin(token, ends, work);
                    Ok(())
                }
                Granted::TooLate { broke } => self.broken(broke).await,
            },
            Err(failure) if failure.is_collision() => match self.lease.end() {
                true => self.on_lock_lost("request failed").await,
                false => {
                    self.collided(&failure, duration, tried).await;
                    Ok(())
                }
            },
            Err(failure) => {
                self.failed(&failure, duration, tried);
                Ok(())
            }
        };
        self.due = Instant::from_std(self.lease.next_attempt(sent.into_std(), now, failed));
        outcome
    }

    fn begin<F>(&mut self, token: FencingToken, ends: std::time::Instant, work: &impl Fn(Term) -> F)
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        self.told = false;
        self.watchable = true;
        self.free = None;
        let (ends, end) = watch::channel(Instant::from_std(ends));
        let mut tasks = JoinSet::new();
        self.span.in_scope(|| {
            info!(fencing_token = token.0, "acquired-lock");
            if token.0 == 0 && !self.tokenless_told {
                info!("lock-server-gives-no-fencing-tokens");
            }
        });
        self.tokenless_told |= token.0 == 0;
        LEASE_HELD.gauge().set(1.0);
        FENCING_TOKEN.gauge().set(token.0 as f64);
        TERMS.counter().increment(1);
        tasks.spawn(work(Term::new(token, end)));
        self.running = Some(Running { ends, work: tasks });
    }

    fn prolong(&self, ends: std::time::Instant) {
        if let Some(running) = &self.running {
            running.ends.send_replace(Instant::from_std(ends));
        }
    }

    /// Aborts the work and waits for its end.
    async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.ends.send_replace(Instant::now());
            running.work.shutdown().await;
        }
        LEASE_HELD.gauge().set(0.0);
    }

    async fn broken(&mut self, broke: bool) -> anyhow::Result<()> {
        match broke {
            true => self.on_lock_lost("somebody else may have held the lock in between").await,
            false => Ok(()),
        }
    }

    /// The log line names the attempt that lost the lock, if there is one, as the original's.
    async fn on_lock_lost(&mut self, why: &'static str) -> anyhow::Result<()> {
        self.stop().await;
        let request = self.last_failure.take();
        self.span.in_scope(|| match &request {
            Some(Failed { failure, duration }) => error!(
                error = %failure,
                "request-uuid" = %failure.request_uuid,
                duration,
                "lost-lock"
            ),
            None => error!(error = why, "lost-lock"),
        });
        LOST_LOCKS.counter().increment(1);
        match self.settings.exit_on_loss {
            true => Err(anyhow!("lost lock ({why})")),
            false => Ok(()),
        }
    }

    /// The store refused this term: releases the lock, if it is held, and lets standbys claim
    /// first.
    async fn exit_on_loss(&mut self) -> anyhow::Result<()> {
        self.lease.end();
        self.attempt = None;
        self.last_failure = None;
        let outcome = self.on_lock_lost("the policy store has seen a newer leader").await;
        self.release().await;
        self.due = Instant::now() + self.settings.times.retry_interval;
        outcome
    }

    /// The original logs the first collision, with the owner, and none of the following ones;
    /// it logs the duration only if it was not the first attempt.
    async fn collided(&mut self, failure: &Failure, duration: u64, tried: bool) {
        if !self.told {
            self.told = true;
            let owner = self.owner().await;
            self.span.in_scope(|| {
                error!(
                    error = %failure,
                    "lock-owner" = owner,
                    "request-uuid" = %failure.request_uuid,
                    duration = tried.then_some(duration),
                    "failed-to-acquire-lock"
                );
            });
        }
        if self.watchable && self.free.is_none() {
            let key = self.settings.claim.key.clone();
            self.free = Some(Box::pin(self.locket.clone().until_free(key)));
        }
    }

    fn failed(&self, failure: &Failure, duration: u64, tried: bool) {
        LOCK_FAILURES.counter().increment(1);
        self.span.in_scope(|| {
            if self.running.is_some() {
                error!(
                    error = %failure, "request-uuid" = %failure.request_uuid, duration,
                    "failed-to-renew-lock"
                );
            } else {
                error!(
                    error = %failure, "lock-owner" = "", "request-uuid" = %failure.request_uuid,
                    duration = tried.then_some(duration), "failed-to-acquire-lock"
                );
            }
        });
    }

    async fn owner(&mut self) -> String {
        match self.locket.owner(&self.settings.claim, COURTESY).await {
            Ok(owner) => owner,
            Err(failure) => {
                self.span.in_scope(|| error!(error = %failure, "failed-fetching-lock-owner"));
                String::new()
            }
        }
    }

    fn watched(&mut self, watched: &Watched) {
        match watched {
            Watched::Free => self.due = Instant::now(),
            Watched::Unsupported => {
                self.watchable = false;
                self.span.in_scope(|| debug!("lock-server-has-no-watch"));
            }
            Watched::Failed(status) => {
                self.span.in_scope(|| debug!(error = %status, "lock-watch-ended"));
            }
        }
    }

    /// Stops the work and releases the lock, so that a standby takes over at once. Releases
    /// also when the lock may not be held: an attempt may be in flight.
    async fn leave(&mut self) {
        let asked = self.attempt.take().is_some();
        self.free = None;
        self.stop().await;
        if self.lease.end() || asked {
            self.release().await;
        }
    }

    async fn release(&mut self) {
        let span = self.span.clone();
        let released = self.locket.release(&self.settings.claim, COURTESY).await;
        async {
            match released {
                Ok(()) => info!("released-lock"),
                Err(failure) if failure.is_collision() => debug!("lock-is-not-ours"),
                Err(failure) => error!(error = %failure, "failed-to-release-lock"),
            }
        }
        .instrument(span)
        .await;
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

async fn ended(running: &mut Option<Running>) -> Result<Fenced, JoinError> {
    match running {
        Some(running) => match running.work.join_next().await {
            Some(ended) => ended,
            None => pending().await,
        },
        None => pending().await,
    }
}

async fn answered(attempt: &mut Option<Attempt>) -> (Instant, Result<FencingToken, Failure>) {
    match attempt {
        Some(attempt) => (attempt.sent, attempt.answer.as_mut().await),
        None => pending().await,
    }
}

async fn freed(free: &mut Option<BoxFuture<Watched>>) -> Watched {
    match free {
        Some(free) => free.as_mut().await,
        None => pending().await,
    }
}
