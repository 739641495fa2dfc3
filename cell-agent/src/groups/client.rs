//! Keeps a watch of the policy store open.
//!
//! Groups never wait: neither for a store that does not read what the cell reports, nor
//! for the answer to a question.
//!
//! While there is no watch, the last known groups stay (law 5).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use model::{
    generation::Generation,
    ids::{CellId, SpaceGuid},
};
use proto::policy_v1::{
    CellError, Question, WatchRequest, WatchResponse,
    policy_store_client::PolicyStoreClient,
    watch_request::{Answer, Hello, Step, answer},
};
use runtime::{backoff::Backoff, client::describe};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    Connectivity, WatchSession, inventory::Inventories, publish, report::Reports, spaces::Spaces,
};
use crate::{
    containers::Containers,
    plan::Known,
    reconcile::Enforced,
    uses::{RuleUse, Session},
};

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

/// This agent, for the store.
#[derive(Debug)]
pub struct About {
    /// The cell's name.
    pub cell: CellId,
    /// The data plane.
    pub plane: &'static str,
    /// Where the store's questions go; `None` if none are answered.
    pub questions: Option<mpsc::Sender<Asked>>,
    /// Uses of rules for the store, if they are counted.
    pub uses: Option<RuleUse>,
}

/// A question of the store.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Where the answer goes.
    pub answers: mpsc::Sender<WatchRequest>,
}

/// The task that keeps the watch.
#[derive(Debug)]
pub struct Client {
    about: About,
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
        about: About,
        channel: Channel,
        containers: watch::Receiver<Containers>,
        enforced: watch::Receiver<Arc<Enforced>>,
        known: watch::Sender<Option<Arc<Known>>>,
    ) -> (Self, watch::Receiver<Connectivity>) {
        let (link, linked) = watch::channel(Connectivity::begin());
        let spaces = known.borrow().as_ref().map(|known| known.spaces.clone()).unwrap_or_default();
        let client = Self {
            about,
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
        let Opened { mut follow, requests, mut answers, .. } = self.open().await?;
        let wanted = self.spaces();
        if let Some(subscribe) = self.subscribe(&mut follow) {
            send(&requests, subscribe).await?;
        }
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
        let opened = self.open().await?;
        self.follow(opened).await
    }

    async fn open(&mut self) -> Result<Opened, Status> {
        let (follow, hello) = self.begin();
        let hello = Hello {
            cell_id: self.about.cell.as_str().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plane: self.about.plane.to_owned(),
            answers_questions: self.about.questions.is_some(),
            ..hello
        };
        let (requests, outgoing) = mpsc::channel(32);
        send(&requests, Step::Hello(hello)).await?;
        let answers = self.store.watch(ReceiverStream::new(outgoing)).await?;
        let accepted = answers.metadata().get(proto::WATCH_ACCEPTS);
        let accepted = accepted.and_then(|steps| steps.to_str().ok()).unwrap_or_default();
        let takes = |wanted: &str| accepted.split(',').any(|step| step.trim() == wanted);
        let (takes_inventory, takes_uses) = (takes(proto::INVENTORY), takes(proto::RULE_USES));
        let answers = answers.into_inner();
        Ok(Opened { follow, requests, answers, takes_inventory, takes_uses })
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

    async fn follow(&mut self, opened: Opened) -> Result<(), Status> {
        let Opened { mut follow, requests, mut answers, takes_inventory, takes_uses } = opened;
        let mut reports = Reports::default();
        let mut inventories = takes_inventory.then(Inventories::default);
        let uses = self.about.uses.clone().filter(|_| takes_uses);
        let mut session = Session::default();
        let mut used = uses.as_ref().map(RuleUse::changes);
        if let Some(used) = &mut used {
            used.mark_changed();
        }
        let mut outbox = VecDeque::new();
        let mut linger = tokio::time::interval(LINGER_CHECK);
        let mut containers = self.containers.clone();
        let mut enforced = self.enforced.clone();
        containers.mark_changed();
        enforced.mark_changed();
        loop {
            // More is computed only after the store has taken the last messages.
            let idle = outbox.is_empty();
            let reporting = idle && *self.link.borrow() == Connectivity::Up;
            tokio::select! {
                answer = answers.message() => match answer? {
                    Some(WatchResponse { question: Some(question), .. }) => {
                        outbox.extend(self.ask(question, &requests));
                    }
                    Some(answer) => _ = self.receive(&mut follow, answer),
                    None => return Ok(()),
                },
                permit = requests.reserve(), if !idle => {
                    let step = outbox.pop_front();
                    permit.map_err(|_| gone())?.send(WatchRequest { step });
                }
                Ok(()) = containers.changed(), if idle => {
                    outbox.extend(self.subscribe(&mut follow));
                }
                _ = linger.tick(), if idle => outbox.extend(self.subscribe(&mut follow)),
                Ok(()) = enforced.changed(), if reporting => {
                    let enforced = enforced.borrow_and_update().clone();
                    let report = reports.next(&enforced, Instant::now().into_std());
                    outbox.extend(report.map(Step::Report));
                    if let Some(inventories) = &mut inventories {
                        let changes = inventories.changes(&enforced);
                        outbox.extend(changes.into_iter().map(Step::Inventory));
                    }
                }
                () = until(reports.due), if reporting => enforced.mark_changed(),
                () = changed(&mut used), if reporting => {
                    let now = Instant::now().into_std();
                    let messages = uses.as_ref().map(|uses| uses.messages(&mut session, now));
                    outbox.extend(messages.unwrap_or_default().into_iter().map(Step::RuleUses));
                }
            }
        }
    }

    /// Passes a question on; returns the answer if there is no room.
    fn ask(&self, question: Question, requests: &mpsc::Sender<WatchRequest>) -> Option<Step> {
        let id = question.id;
        let asked = Asked { question, answers: requests.clone() };
        let refusal = match self.about.questions.as_ref().map(|queue| queue.try_send(asked)) {
            Some(Ok(())) => return None,
            Some(Err(TrySendError::Full(_))) => {
                Status::resource_exhausted("too many questions to this cell at a time")
            }
            Some(Err(TrySendError::Closed(_))) => Status::unavailable("the agent is shutting down"),
            None => Status::unimplemented("this agent answers no questions"),
        };
        let error =
            CellError { code: refusal.code().into(), message: refusal.message().to_owned() };
        Some(Step::Answer(Answer { id, result: Some(answer::Result::Error(error)) }))
    }

    /// The spaces to watch now.
    fn spaces(&mut self) -> BTreeSet<SpaceGuid> {
        let snapshot = Arc::clone(&self.containers.borrow_and_update().snapshot);
        self.spaces.of(&snapshot, Instant::now())
    }

    /// The request for the spaces to watch now, if they changed.
    fn subscribe(&mut self, follow: &mut WatchSession) -> Option<Step> {
        let spaces = self.spaces();
        follow.subscribe(&spaces).map(Step::Subscribe)
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

/// A watch that the store has accepted.
struct Opened {
    follow: WatchSession,
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    /// An older store ends the watch at an Inventory.
    takes_inventory: bool,
    /// The same for RuleUses.
    takes_uses: bool,
}

fn gone() -> Status {
    Status::unavailable("the store does not take requests any more")
}

/// The next change; none without a sender.
async fn changed(used: &mut Option<watch::Receiver<()>>) {
    if let Some(used) = used
        && used.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

async fn until(due: Option<std::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(Instant::from_std(due)).await,
        None => std::future::pending().await,
    }
}

async fn send(requests: &mpsc::Sender<WatchRequest>, step: Step) -> Result<(), Status> {
    requests.send(WatchRequest { step: Some(step) }).await.map_err(|_| gone())
}
