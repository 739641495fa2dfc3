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
use model::lock::{Claim, FencingToken, Ttl};
use runtime::server::Component;
use tokio::{
    task::JoinError,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use super::term::{Fenced, Term};
use super::{
    Granted, Lease, Times,
    locket::{Failure, Locket, Watched},
    log::{Failed, Log},
    term::Work,
};
use crate::metrics::{FENCING_TOKEN, LEASE_HELD, LOCK_FAILURES, LOST_LOCKS, TERMS};

/// Timeout of calls at the end of a term: Release, or Fetch of the owner.
const COURTESY: Duration = Duration::from_secs(2);

/// Settings of the keeper.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lock to claim.
    pub claim: Claim,
    /// Whether losing the lock ends the process, as in the original.
    pub exit_on_loss: bool,
}

/// How often and how the lock is renewed at one kind of lock server.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Time to live in requests.
    pub ttl: Ttl,
    /// Interval and timeouts.
    pub times: Times,
    /// Client whose keepalive fits these times.
    pub locket: Locket,
}

/// Claims and renews the lock.
pub struct Keeper {
    settings: Settings,
    lease: Lease,
    pace: Pace,
    /// The pace for lock servers of the other kind, and whether that kind gives fencing tokens.
    other: Option<(bool, Pace)>,
    log: Log,
    /// Time of the next attempt, unless one is in flight.
    due: Instant,
    attempt: Option<Attempt>,
    free: Option<BoxFuture<Watched>>,
    watchable: bool,
    /// The process has made an attempt before.
    tried: bool,
    /// Last failed attempt since the last granted one.
    last_failure: Option<Failed>,
    work: Work,
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
    /// Creates a keeper without the lock. `with_tokens`: another pace for a lock server that
    /// gives fencing tokens. `lock_server` is ready while the lock server has responded within
    /// the lock's time to live.
    #[must_use]
    pub fn new(
        settings: Settings,
        pace: Pace,
        with_tokens: Option<Pace>,
        lock_server: Component,
    ) -> Self {
        let log = Log::new(&settings.claim);
        Self {
            lease: Lease::new(pace.times),
            settings,
            pace,
            other: with_tokens.map(|pace| (true, pace)),
            log,
            due: Instant::now(),
            attempt: None,
            free: None,
            watchable: true,
            tried: false,
            last_failure: None,
            work: Work::default(),
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
        self.log.started();
        self.due = Instant::now();
        self.reach.until = Some(self.due + self.pace.times.ttl);
        let outcome = loop {
            let event = self.next(&shutdown).await;
            if matches!(event, Event::Shutdown) {
                self.log.signalled();
                break Ok(());
            }
            if let Err(err) = self.handle(event, &work).await {
                break Err(err);
            }
        };
        self.leave().await;
        self.log.completed();
        outcome
    }

    /// Branches are in order of priority: the end of the lease is handled before any work
    /// that depends on the lease.
    async fn next(&mut self, shutdown: &CancellationToken) -> Event {
        let Self { lease, attempt, free, work, due, reach, .. } = self;
        let ends = lease.ends().map(Instant::from_std);
        let idle = attempt.is_none();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            () = at(ends) => Event::Ended,
            ended = work.ended() => Event::Work(ended),
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
        self.reach.until = Some(sent + self.pace.times.ttl);
        self.reach.component.ready();
    }

    fn out_of_reach(&mut self) {
        self.reach.until = None;
        let ttl = self.pace.times.ttl;
        let failed = self.last_failure.as_ref().map(|failed| &failed.failure);
        // A collision is an answer, so it is not the cause.
        let cause = match failed.filter(|failure| !failure.is_collision()) {
            Some(failure) => failure.to_string(),
            None => "the last request has no answer yet".to_owned(),
        };
        self.reach
            .component
            .not_ready(format!("no answer of the lock server for {ttl:?}: {cause}"));
    }

    fn ask(&mut self) {
        let sent = Instant::now();
        let patience = self.lease.patience(sent.into_std());
        if let Some(ends) = self.lease.asked(sent.into_std()) {
            self.work.set_end(Instant::from_std(ends));
        }
        let mut locket = self.pace.locket.clone();
        let claim = Claim { ttl: self.pace.ttl, ..self.settings.claim.clone() };
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
        let failure = answer.as_ref().err();
        self.last_failure =
            failure.map(|failure| Failed { failure: failure.clone(), duration, tried });
        let granted = answer.as_ref().ok().copied();
        let outcome = match answer {
            Ok(token) => match self.lease.granted(sent.into_std(), now, token) {
                Granted::Kept { ends } => {
                    self.work.set_end(Instant::from_std(ends));
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
                    self.collided(&Failed { failure, duration, tried }).await;
                    Ok(())
                }
            },
            Err(failure) => {
                self.failed(&Failed { failure, duration, tried });
                Ok(())
            }
        };
        self.due = Instant::from_std(self.lease.next_attempt(sent.into_std(), now, failed));
        if granted.is_some_and(|token| self.adapt(token)) {
            self.due = Instant::now();
        }
        outcome
    }

    /// Changes the pace if the lock was granted by a lock server of the other kind. Returns
    /// whether it did: the lock then has the old time to live until the next request.
    fn adapt(&mut self, token: FencingToken) -> bool {
        let gives_tokens = token != FencingToken(0);
        let Some((for_tokens, other)) =
            self.other.as_mut().filter(|(for_tokens, _)| *for_tokens == gives_tokens)
        else {
            return false;
        };
        *for_tokens = !gives_tokens;
        std::mem::swap(&mut self.pace, other);
        self.lease.set_times(self.pace.times);
        true
    }

    fn begin<F>(&mut self, token: FencingToken, ends: std::time::Instant, work: &impl Fn(Term) -> F)
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        self.watchable = true;
        self.free = None;
        self.log.acquired(token);
        LEASE_HELD.gauge().set(1.0);
        FENCING_TOKEN.gauge().set(token.0 as f64);
        TERMS.counter().increment(1);
        self.work.start(token, Instant::from_std(ends), work);
    }

    async fn stop(&mut self) {
        self.work.stop().await;
        LEASE_HELD.gauge().set(0.0);
    }

    async fn broken(&mut self, broke: bool) -> anyhow::Result<()> {
        match broke {
            true => self.on_lock_lost("somebody else may have held the lock in between").await,
            false => Ok(()),
        }
    }

    async fn on_lock_lost(&mut self, why: &'static str) -> anyhow::Result<()> {
        self.stop().await;
        self.log.lost(self.last_failure.take().as_ref(), why);
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
        self.due = Instant::now() + self.pace.times.retry_interval;
        outcome
    }

    async fn collided(&mut self, failed: &Failed) {
        if self.log.is_first_collision() {
            let owner = self.owner().await;
            self.log.not_acquired(failed, &owner);
        }
        if self.watchable && self.free.is_none() {
            let key = self.settings.claim.key.clone();
            self.free = Some(Box::pin(self.pace.locket.clone().until_free(key)));
        }
    }

    fn failed(&self, failed: &Failed) {
        LOCK_FAILURES.counter().increment(1);
        match self.work.is_running() {
            true => self.log.not_renewed(failed),
            false => self.log.not_acquired(failed, ""),
        }
    }

    async fn owner(&mut self) -> String {
        let owner = self.pace.locket.owner(&self.settings.claim, COURTESY).await;
        owner.inspect_err(|failure| self.log.no_owner(failure)).unwrap_or_default()
    }

    fn watched(&mut self, watched: &Watched) {
        self.log.watched(watched);
        match watched {
            Watched::Free => self.due = Instant::now(),
            Watched::Unsupported => self.watchable = false,
            Watched::Failed(_) => {}
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
        let released = self.pace.locket.release(&self.settings.claim, COURTESY).await;
        self.log.released(&released);
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
