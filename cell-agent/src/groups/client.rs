//! Keeps a watch of the policy store open.
//!
//! While there is no watch, the last known groups stay (law 5).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use model::{
    generation::Generation,
    ids::{CellId, SpaceGuid},
};
use proto::policy_v1::{
    WatchRequest, WatchResponse,
    policy_store_client::PolicyStoreClient,
    watch_request::{Hello, Report, Step},
};
use runtime::{backoff::Backoff, client::describe};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

use super::{Connectivity, WatchSession, publish, spaces::Spaces};
use crate::{containers::Containers, plan::Known, reconcile::Enforced};

const LINGER_CHECK: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// After a watch of at least this length, the next one starts without backoff.
const GOOD: Duration = Duration::from_secs(10);
/// Timeout of a one-time fetch for a store that accepts the watch and sends nothing,
/// like a store that was never filled.
const SILENCE: Duration = Duration::from_secs(3);
/// Maximum message size: the Cloud Controller allows 16 MiB of rules in one group.
const LARGEST_MESSAGE: usize = 64 << 20;

/// The task that keeps the watch.
#[derive(Debug)]
pub struct Client {
    cell: CellId,
    store: PolicyStoreClient<Channel>,
    containers: watch::Receiver<Containers>,
    enforced: watch::Receiver<Arc<Enforced>>,
    known: watch::Sender<Option<Arc<Known>>>,
    link: watch::Sender<Connectivity>,
    spaces: Spaces,
    backoff: Backoff,
}

impl Client {
    /// A client that is not running yet. `known` holds the last good groups.
    #[must_use]
    pub fn new(
        cell: CellId,
        channel: Channel,
        containers: watch::Receiver<Containers>,
        enforced: watch::Receiver<Arc<Enforced>>,
        known: watch::Sender<Option<Arc<Known>>>,
    ) -> (Self, watch::Receiver<Connectivity>) {
        let (link, linked) = watch::channel(Connectivity::begin());
        let spaces = known.borrow().as_ref().map(|known| known.spaces.clone()).unwrap_or_default();
        let client = Self {
            cell,
            store: PolicyStoreClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE),
            containers,
            enforced,
            known,
            link,
            spaces: Spaces::new(spaces, Instant::now()),
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
        };
        (client, linked)
    }

    /// Watches until shutdown.
    ///
    /// # Errors
    /// Never; a failed watch is reported and retried.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ended = self.watch() => ended,
            };
            let error = ended.err().map(|status| describe(&status));
            let error = error.as_deref().unwrap_or("the store ended the watch");
            self.link.send_replace(Connectivity::Down(error.into()));
            if began.elapsed() > GOOD {
                self.backoff.reset();
            }
            let wait = self.backoff.pause();
            crate::metrics::count(crate::metrics::WATCH_FAILURES);
            tracing::error!(
                error,
                "retry-milliseconds" = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "policy-store-watch-ended.keeping-last-good-groups"
            );
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Watches until the groups of all current spaces have arrived once.
    ///
    /// # Errors
    /// The store does not respond, or refuses, or has no state.
    pub async fn fetch(mut self) -> Result<(), Status> {
        let (mut follow, requests, mut answers) = self.open().await?;
        let wanted = self.spaces();
        self.subscribe(&mut follow, &requests).await?;
        let first = tokio::time::timeout(SILENCE, answers.message()).await;
        let mut next = first.map_err(|_elapsed| {
            let problem = "the store accepted the watch and sent no groups: it was never filled";
            Status::failed_precondition(problem)
        })??;
        while let Some(answer) = next {
            let update = self.receive(&mut follow, answer);
            if update.is_some_and(|known| wanted.is_subset(&known.spaces)) {
                return Ok(());
            }
            next = answers.message().await?;
        }
        Err(Status::unavailable("the store ended the watch"))
    }

    /// One watch, until it ends.
    async fn watch(&mut self) -> Result<(), Status> {
        let (mut follow, requests, answers) = self.open().await?;
        self.follow(&mut follow, &requests, answers).await
    }

    async fn open(
        &mut self,
    ) -> Result<(WatchSession, mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
        let (follow, mut hello) = self.begin();
        self.cell.as_str().clone_into(&mut hello.cell_id);
        let (requests, outgoing) = mpsc::channel(32);
        send(&requests, Step::Hello(hello)).await?;
        let answers = self.store.watch(ReceiverStream::new(outgoing)).await?;
        Ok((follow, requests, answers.into_inner()))
    }

    /// A watch that resumes from the known state, or a new one.
    fn begin(&mut self) -> (WatchSession, Hello) {
        let known = self.known.borrow().clone();
        if let Some(resumed) = known.and_then(|known| WatchSession::resume(&known)) {
            return resumed;
        }
        let spaces = self.spaces();
        let space_guids = spaces.iter().map(|space| space.as_str().to_owned()).collect();
        (WatchSession::hello(spaces), Hello { space_guids, ..Hello::default() })
    }

    async fn follow(
        &mut self,
        follow: &mut WatchSession,
        requests: &mpsc::Sender<WatchRequest>,
        mut answers: Streaming<WatchResponse>,
    ) -> Result<(), Status> {
        let mut reported = Report::default();
        let mut linger = tokio::time::interval(LINGER_CHECK);
        let mut containers = self.containers.clone();
        let mut enforced = self.enforced.clone();
        containers.mark_changed();
        enforced.mark_changed();
        loop {
            tokio::select! {
                answer = answers.message() => match answer? {
                    Some(answer) => _ = self.receive(follow, answer),
                    None => return Ok(()),
                },
                Ok(()) = containers.changed() => self.subscribe(follow, requests).await?,
                _ = linger.tick() => self.subscribe(follow, requests).await?,
                Ok(()) = enforced.changed(), if *self.link.borrow() == Connectivity::Up => {
                    let report = report(&enforced.borrow_and_update());
                    if report != reported {
                        reported = report.clone();
                        send(requests, Step::Report(report)).await?;
                    }
                }
            }
        }
    }

    /// The spaces to watch now.
    fn spaces(&mut self) -> BTreeSet<SpaceGuid> {
        let snapshot = Arc::clone(&self.containers.borrow_and_update().snapshot);
        self.spaces.of(&snapshot, Instant::now())
    }

    async fn subscribe(
        &mut self,
        follow: &mut WatchSession,
        requests: &mpsc::Sender<WatchRequest>,
    ) -> Result<(), Status> {
        let spaces = self.spaces();
        match follow.subscribe(&spaces) {
            Some(request) => send(requests, Step::Subscribe(request)).await,
            None => Ok(()),
        }
    }

    /// Applies a response; returns the new state if it is complete.
    fn receive(&mut self, follow: &mut WatchSession, answer: WatchResponse) -> Option<Arc<Known>> {
        let (reset, upserted, removed) =
            (answer.reset, answer.upserted.len(), answer.removed.len());
        let update = follow.receive(answer);
        for problem in &update.problems {
            tracing::error!(error = problem, "group-isolated");
        }
        let known = update.known?;
        let before = self.known.borrow().as_ref().map_or(Generation(0), |known| known.generation);
        if known.generation == Generation(0) && before > Generation(0) {
            // The empty state of a store that was never filled is not a valid state.
            tracing::error!(
                generation = before.0,
                "policy-store-is-empty.keeping-last-good-groups"
            );
            return None;
        }
        if known.generation < before {
            let (from, to) = (before.0, known.generation.0);
            tracing::error!(from, to, "policy-store-generation-regressed");
        }
        tracing::debug!(
            generation = known.generation.0,
            groups = known.groups.len(),
            spaces = known.spaces.len(),
            reset,
            upserted,
            removed,
            "groups-received"
        );
        let known = publish(&self.known, known);
        if self.link.send_replace(Connectivity::Up) != Connectivity::Up {
            tracing::info!("policy-store-watched");
            self.backoff.reset();
        }
        Some(known)
    }
}

fn report(enforced: &Enforced) -> Report {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Report {
        enforced_generation: enforced.generation().0,
        containers: count(enforced.ruleset.containers.len()),
        isolated_rules: count(enforced.ruleset.isolated_rules()),
        ..Report::default()
    }
}

async fn send(requests: &mpsc::Sender<WatchRequest>, step: Step) -> Result<(), Status> {
    let gone = |_| Status::unavailable("the store does not take requests any more");
    requests.send(WatchRequest { step: Some(step) }).await.map_err(gone)
}
