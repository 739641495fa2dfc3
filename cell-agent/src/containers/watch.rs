//! Follows the metadata store with inotify, and with a poll as a fallback.
//!
//! The last good state stays until the store can be read again (law 5). Each reading
//! has a number, so that a caller that wrote to the store can request a reading that
//! starts after the write, and wait until that reading is in the kernel.

use std::{pin::pin, sync::Arc, time::Duration};

use inotify::{Inotify, WatchMask};
use runtime::error::chain;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{Error, Snapshot, StoreFile, file::Stamp};
use crate::metrics::{Step, Times};

/// Interval of polls, in case inotify misses an event; same as the original.
const POLL: Duration = Duration::from_secs(5);
/// Retry delay after a failed read.
const RETRY: Duration = Duration::from_millis(200);

/// The containers as last read.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    /// Increases with each successful reading that found a change.
    pub reading: u64,
    /// The parsed store.
    pub snapshot: Arc<Snapshot>,
}

/// Handle to the follower.
#[derive(Debug, Clone)]
pub struct Feed {
    latest: watch::Receiver<Containers>,
    ask: mpsc::Sender<oneshot::Sender<Result<Containers, String>>>,
}

impl Feed {
    /// The containers as last read; notifies on changes.
    #[must_use]
    pub fn latest(&self) -> watch::Receiver<Containers> {
        self.latest.clone()
    }

    /// Reads the store now, if it was written since the last reading.
    ///
    /// # Errors
    /// Why the store cannot be read, as a sentence.
    pub async fn reload(&self) -> Result<Containers, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the agent is shutting down".to_owned();
        self.ask.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// The task that follows the store.
#[derive(Debug)]
pub struct Follower {
    file: StoreFile,
    times: Times,
    /// State of the files at the last good reading.
    stamp: Option<Stamp>,
    /// The error of the last attempt, so that it is reported once.
    failing: Option<String>,
    latest: watch::Sender<Containers>,
    asked: mpsc::Receiver<oneshot::Sender<Result<Containers, String>>>,
}

impl Feed {
    /// Reads the store for the first time. A failure is reported, and the follower
    /// retries; until then there are no containers, and every address is denied.
    pub async fn open(file: StoreFile, times: Times) -> (Self, Follower) {
        let (latest, receiver) = watch::channel(Containers::default());
        let (ask, asked) = mpsc::channel(16);
        let mut follower = Follower { file, times, stamp: None, failing: None, latest, asked };
        let _told = follower.read().await;
        (Self { latest: receiver, ask }, follower)
    }
}

impl Follower {
    /// Why the store cannot be read, or `None`.
    #[must_use]
    pub fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Follows the store until shutdown.
    ///
    /// # Errors
    /// The directory of the store cannot be watched.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let inotify = Inotify::init()?;
        let changes = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::DELETE;
        inotify.watches().add(self.file.directory(), changes)?;
        let name = self.file.path().file_name().map(ToOwned::to_owned);
        let mut buffer = [0; 4096];
        let mut events = pin!(inotify.into_event_stream(&mut buffer)?.filter(move |event| {
            // Every reader opens and closes the lock file, this process included.
            let Ok(event) = event else { return true };
            let lock = name.as_ref().zip(event.name.as_ref());
            lock.is_none_or(|(data, name)| {
                name.as_encoded_bytes().starts_with(data.as_encoded_bytes())
                    && !name.as_encoded_bytes().ends_with(b"_lock")
            })
        }));
        let mut poll = tokio::time::interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = tokio::time::sleep(RETRY);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(answer) = self.asked.recv() => {
                    // Usually an inotify event came first, and the change is read
                    // already.
                    let read = self.read_if_changed().await;
                    let _gave_up = answer.send(read);
                }
                Some(_) = events.next() => { let _told = self.read_if_changed().await; }
                _ = poll.tick() => { let _told = self.read_if_changed().await; }
                () = retry, if self.failing.is_some() => { let _told = self.read().await; }
            }
        }
    }

    async fn read_if_changed(&mut self) -> Result<Containers, String> {
        match self.file.stamp() {
            Ok(stamp) if self.failing.is_none() && Some(&stamp) == self.stamp.as_ref() => {
                Ok(self.latest.borrow().clone())
            }
            Ok(_) | Err(_) => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Containers, String> {
        let file = self.file.clone();
        let inhabited = !self.latest.borrow().snapshot.containers.is_empty();
        let before = self.stamp.clone().filter(|_| inhabited);
        let began = Instant::now();
        let read = tokio::task::spawn_blocking(move || file.read(before.as_ref())).await;
        self.times.took(Step::Containers, began.elapsed());
        match read.expect("reading the store does not panic") {
            Ok((stamp, snapshot)) => Ok(self.accept(stamp, snapshot)),
            Err(error) => Err(self.refuse(&error)),
        }
    }

    fn accept(&mut self, stamp: Stamp, snapshot: Snapshot) -> Containers {
        if self.failing.take().is_some() {
            tracing::info!("container-store-readable-again");
        }
        self.stamp = Some(stamp);
        self.latest.send_if_modified(|latest| {
            if latest.reading > 0 && *latest.snapshot == snapshot {
                return false;
            }
            tell_problems(&latest.snapshot, &snapshot);
            latest.reading += 1;
            latest.snapshot = Arc::new(snapshot);
            true
        });
        self.latest.borrow().clone()
    }

    fn refuse(&mut self, error: &Error) -> String {
        let text = chain(error);
        if self.failing.as_ref() != Some(&text) {
            let containers = self.latest.borrow().snapshot.containers.len();
            tracing::error!(
                error = text,
                containers,
                "container-store-unreadable.keeping-last-good-state"
            );
        }
        crate::metrics::count(crate::metrics::STORE_FAILURES);
        self.failing = Some(text.clone());
        text
    }
}

/// Reports each problem once, when it appears.
fn tell_problems(before: &Snapshot, after: &Snapshot) {
    for problem in after.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::error!(error = problem, "container-isolated");
    }
    for (handle, container) in &after.containers {
        let old = before.containers.get(handle);
        if let Err(problem) = &container.address
            && old.is_none_or(|old| old.address != container.address)
        {
            tracing::error!(container = %handle, error = problem, "container-isolated");
        }
        if let Some(problem) = &container.shared
            && old.is_none_or(|old| old.shared != container.shared)
        {
            tracing::error!(container = %handle, error = problem, "address-claimed-twice");
        }
    }
}
