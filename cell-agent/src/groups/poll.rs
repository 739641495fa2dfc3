//! Polls a genuine policy-server-internal for the groups, periodically and when a
//! container needs them.
//!
//! - The stamp of the last change is requested first, if the server has one. It counts
//!   as seen only after the list that was requested after it.
//! - A state is published when all of its pages have arrived, never a part of it.
//! - After any failure the last known groups stay (law 5).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use model::{generation::Generation, ids::SpaceGuid};
use runtime::{backoff::Backoff, error::chain, tls::ClientTls};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Connectivity,
    api::{Api, Error},
    page::{self, Entry},
    publish,
    spaces::Spaces,
};
use crate::{
    containers::Containers,
    metrics::{Step, Times},
    plan::Known,
};

/// Initial retry delay; it doubles up to the poll interval.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Maximum number of consecutive polls without the list while the stamp is unchanged:
/// the genuine server does not change its stamp when it loses all groups.
const UNCHANGED_MOST: u32 = 10;
/// Maximum number of requests for a multi-page list that changes meanwhile; after that
/// the next poll corrects the state.
const ATTEMPTS: u32 = 3;

type Answer = oneshot::Sender<Result<(), String>>;

/// Requests a poll now.
#[derive(Debug, Clone)]
pub struct Refresh(Option<mpsc::Sender<Answer>>);

impl Refresh {
    /// For a source that pushes each change.
    #[must_use]
    pub fn pushed() -> Self {
        Self(None)
    }

    /// Returns after a poll, started after this call, of the groups of all spaces with
    /// containers.
    ///
    /// # Errors
    /// Why the groups are not known, as a sentence.
    pub async fn now(&self) -> Result<(), String> {
        let Some(ask) = &self.0 else { return Ok(()) };
        let gone = || "the agent is shutting down".to_owned();
        let (answer, answered) = oneshot::channel();
        ask.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Address and timing of the polled server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Scheme, host and port.
    pub url: String,
    /// Timeout of one request, body included.
    pub timeout: Duration,
    /// Delay from the end of a poll to the next one.
    pub interval: Duration,
}

/// The polling task.
#[derive(Debug)]
pub struct Poller {
    api: Api,
    interval: Duration,
    times: Times,
    containers: watch::Receiver<Containers>,
    known: watch::Sender<Option<Arc<Known>>>,
    link: watch::Sender<Connectivity>,
    asked: mpsc::Receiver<Answer>,
    spaces: Spaces,
    /// The last fetched list; `None` before the first one.
    fetched: Option<Fetched>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Fetched {
    stamp: Option<u64>,
    spaces: BTreeSet<SpaceGuid>,
    /// Number of polls since then.
    polls: u32,
}

impl Poller {
    /// A task that is not running yet. `known` holds the last good groups.
    pub fn new(
        server: Server,
        tls: ClientTls,
        containers: watch::Receiver<Containers>,
        known: watch::Sender<Option<Arc<Known>>>,
        times: Times,
    ) -> (Self, watch::Receiver<Connectivity>, Refresh) {
        let Server { url, timeout, interval } = server;
        let (link, linked) = watch::channel(Connectivity::begin());
        let (ask, asked) = mpsc::channel(64);
        let spaces = known.borrow().as_ref().map(|known| known.spaces.clone()).unwrap_or_default();
        let poller = Self {
            api: Api::new(&url, tls, timeout),
            interval,
            times,
            containers,
            known,
            link,
            asked,
            spaces: Spaces::new(spaces, Instant::now()),
            fetched: None,
            backoff: Backoff::new(RETRY_FIRST, interval),
        };
        (poller, linked, Refresh(Some(ask)))
    }

    /// Polls until shutdown; the first poll starts at once.
    ///
    /// # Errors
    /// Never; failures are reported and retried.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut next = Instant::now();
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep_until(next) => {}
                Some(answer) = self.asked.recv() => waiting.push(answer),
                Ok(()) = self.containers.changed() => {
                    if !self.lacks_a_space() {
                        continue;
                    }
                }
            }
            // A poll answers all requests that arrived before it started.
            while let Ok(answer) = self.asked.try_recv() {
                waiting.push(answer);
            }
            let Some(outcome) = shutdown.run_until_cancelled(self.cycle()).await else {
                return Ok(());
            };
            next = Instant::now() + self.record(&outcome);
            let outcome = outcome.map_err(|error| chain(&error));
            for answer in waiting {
                let _gave_up = answer.send(outcome.clone());
            }
        }
    }

    /// Polls once.
    ///
    /// # Errors
    /// Why the groups are not known, as a sentence.
    pub async fn fetch(mut self) -> Result<(), String> {
        self.cycle().await.map_err(|error| chain(&error))
    }

    fn wanted(&mut self) -> BTreeSet<SpaceGuid> {
        let snapshot = Arc::clone(&self.containers.borrow_and_update().snapshot);
        self.spaces.of(&snapshot, Instant::now())
    }

    fn lacks_a_space(&mut self) -> bool {
        let wanted = self.wanted();
        self.fetched.as_ref().is_none_or(|fetched| !wanted.is_subset(&fetched.spaces))
    }

    async fn cycle(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let spaces = self.wanted();
        let mut stamp = self.api.last_updated().await?;
        if let Some(fetched) = &mut self.fetched
            && stamp.is_some()
            && fetched.stamp == stamp
            && spaces.is_subset(&fetched.spaces)
            && fetched.polls < UNCHANGED_MOST
        {
            fetched.polls += 1;
            return Ok(());
        }
        let mut attempts = 0;
        let entries = loop {
            attempts += 1;
            let (entries, pages) = self.api.groups(&spaces).await?;
            if pages == 1 || stamp.is_none() || attempts == ATTEMPTS {
                break entries;
            }
            let after = self.api.last_updated().await?;
            if after == stamp {
                break entries;
            }
            stamp = after;
        };
        self.times.took(Step::Poll, began.elapsed());
        self.receive(entries, stamp, &spaces);
        self.fetched = Some(Fetched { stamp, spaces, polls: 0 });
        Ok(())
    }

    fn receive(&mut self, entries: Vec<Entry>, stamp: Option<u64>, spaces: &BTreeSet<SpaceGuid>) {
        let before = self.known.borrow().clone();
        let Known { generation, spaces: old_spaces, groups: old, .. } =
            before.as_deref().cloned().unwrap_or_default();
        if stamp == Some(0) && entries.is_empty() && !old.is_empty() {
            // The empty list of a server that was never filled is not a valid state.
            tracing::error!("policy-server-is-empty.keeping-last-good-groups");
            return;
        }
        let (groups, problems) = page::collect(entries, &old);
        for problem in problems {
            tracing::error!(error = problem, "group-isolated");
        }
        let same = before.is_some() && groups == old && old_spaces == *spaces;
        let generation = match stamp {
            Some(stamp) => Generation(stamp),
            None if same => generation,
            None => Generation(generation.0 + 1),
        };
        tracing::debug!(
            generation = generation.0,
            groups = groups.len(),
            spaces = spaces.len(),
            "groups-received"
        );
        if !same || before.is_none_or(|before| before.generation != generation) {
            let known = Known { generation, spaces: spaces.clone(), groups, ..Known::default() };
            publish(&self.known, Arc::new(known));
        }
    }

    /// Reports the result of a poll; returns the delay before the next one.
    fn record(&mut self, outcome: &Result<(), Error>) -> Duration {
        let Err(error) = outcome else {
            self.backoff.reset();
            if self.link.send_replace(Connectivity::Up) != Connectivity::Up {
                tracing::info!("policy-server-polled");
            }
            // Jitter: cells that started together must not poll together.
            return Backoff::new(self.interval, self.interval).pause();
        };
        let error = chain(error);
        self.link.send_replace(Connectivity::Down(error.as_str().into()));
        let wait = self.backoff.pause();
        crate::metrics::count(crate::metrics::POLL_FAILURES);
        tracing::error!(
            error = format_args!("get-asg-rules: {error}"),
            "retry-milliseconds" = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "poll-cycle"
        );
        wait
    }
}
