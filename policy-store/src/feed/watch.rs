//! Stream of one watcher.
//!
//! There is no task and no queue: when the connection can send, it polls the stream for
//! the next message, which derives from the newest snapshot. A watcher that does not
//! read costs at most one message and the rest of one update.

use std::{collections::HashSet, fmt::Display, sync::Arc, time::Duration};

use jiff::Timestamp;
use model::{
    generation::{Point, Stamp},
    ids::{CellId, SpaceGuid},
};
use runtime::error::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    cells::{Cells, Connection, Count, Progress},
    changes::Changes,
    cursor::{self, Cursor},
    inventory::{self, Update},
    parts::{Part, Parts},
    questions::{Answer, Question, Questions, desk},
};
use crate::{
    groups::{current::SnapshotPublisher, released::ReleaseId, snapshot::Snapshot},
    metrics::{
        CELL_LAG, CELLS_BEHIND, CELLS_BEHIND_SECONDS, CELLS_CONNECTED, CELLS_DISCONNECTED,
        CELLS_KNOWN, CONTAINERS, WATCHERS,
    },
    reports::{Agent, Details, Report},
    store::Store,
    uses::{Reported, Uses},
};

/// First message of a cell.
#[derive(Debug, PartialEq, Eq)]
pub struct Hello {
    /// Id of the cell.
    pub cell: CellId,
    /// Spaces of its containers.
    pub spaces: HashSet<SpaceGuid>,
    /// Generation whose groups of these spaces the cell already has.
    pub known: Option<Point>,
    /// The agent.
    pub agent: Agent,
}

/// Later message of a cell.
#[derive(Debug, PartialEq)]
pub enum ClientMessage {
    /// The watched spaces change.
    Subscribe {
        /// Sequence number; rises from 1.
        sequence: u64,
        /// Added spaces.
        add: Vec<SpaceGuid>,
        /// Dropped spaces.
        drop: Vec<SpaceGuid>,
    },
    /// Generation in force and counts.
    Report(Report, Box<Details>),
    /// Containers and isolated rules.
    Inventory(Box<Update>),
    /// Answer to the question with this id.
    Answer(u64, Box<Answer>),
    /// Uses of rules.
    Uses(Reported),
}

/// Message to a cell.
#[derive(Debug)]
pub enum Message {
    /// Part of an update.
    Part(Part),
    /// Question to the agent; can come between the parts of an update.
    Question(Box<Question>),
}

/// A message that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Invalid subscription.
    #[error(transparent)]
    Subscription(#[from] cursor::Error),
    /// Invalid inventory.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
}

/// Messages of a cell after Hello.
pub trait ClientMessages: Send {
    /// Error that ends the messages.
    type Error: Display + From<Violation> + Send;

    /// The next message; `None` when the cell half-closes the stream. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<ClientMessage>, Self::Error>> + Send;
}

/// Reason why a stream ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End<E> {
    /// The process is shutting down: the cell should reconnect to another instance.
    Draining,
    /// The cell violated the protocol, or its connection failed.
    Broken(E),
}

/// State shared by all watchers.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The newest snapshot.
    pub board: Arc<SnapshotPublisher>,
    /// Registry of cells.
    pub cells: Cells,
    /// The last changes.
    pub changes: Changes,
    /// Uses of rules that are not written yet.
    pub uses: Uses,
    /// Ends streams: those of one connection, or all remaining ones.
    pub drain: CancellationToken,
}

/// Stream of one watcher; see the module.
#[derive(Debug)]
pub struct Watcher<W> {
    feed: Feed,
    /// Counts the cell as connected while it exists.
    connection: Connection,
    releases: watch::Receiver<ReleaseId>,
    cursor: Cursor,
    parts: Option<Parts>,
    questions: Questions,
    /// Absent after the cell has half-closed the stream; it still receives updates.
    words: Option<W>,
}

impl<W: ClientMessages> Watcher<W> {
    /// Starts a watch.
    ///
    /// # Errors
    /// Too many spaces.
    pub fn new(feed: Feed, hello: Hello, words: W) -> Result<Self, cursor::Error> {
        let Hello { cell, spaces, known, agent } = hello;
        let snapshot = feed.board.current();
        let spaces = spaces.into_iter().map(|space| snapshot.shared(space)).collect();
        let cursor = Cursor::new(spaces, known)?;
        WATCHERS.gauge().increment(1);
        let (desk, questions) = desk();
        Ok(Self {
            connection: feed.cells.connect(cell, agent, desk, Timestamp::now()),
            releases: feed.board.releases(),
            feed,
            cursor,
            parts: None,
            questions,
            words: Some(words),
        })
    }

    /// Id of the watching cell.
    #[must_use]
    pub fn cell(&self) -> &CellId {
        self.connection.cell()
    }

    /// The next message; waits until there is an update or a question to send.
    ///
    /// # Errors
    /// The stream ends.
    pub async fn next(&mut self) -> Result<Message, End<W::Error>> {
        loop {
            if self.feed.drain.is_cancelled() {
                return Err(End::Draining);
            }
            // An operator waits for it, and it is small.
            if let Some(question) = self.questions.try_next() {
                return Ok(Message::Question(Box::new(question)));
            }
            if let Some(part) = self.parts.as_mut().and_then(Iterator::next) {
                return Ok(Message::Part(part));
            }
            // Mark before reading, so that a later change is not missed.
            self.releases.mark_unchanged();
            let snapshot = self.released();
            self.parts = self.cursor.advance(&snapshot).map(Parts::from);
            if self.parts.is_none() {
                drop(snapshot);
                if let Some(question) = self.wait().await? {
                    return Ok(Message::Question(Box::new(question)));
                }
            }
        }
    }

    /// What the cell gets. A cell that has a later generation, as from a step of a stopped roll-out
    /// or from before a freeze was known here, does not go back.
    fn released(&self) -> Arc<Snapshot> {
        let released = self.feed.board.released();
        let due = released.of(self.cell());
        match self.cursor.sent() {
            Some(sent) if sent.generation > due.state.generation => {
                let newest = self.feed.board.current();
                let ahead = released.ahead.as_ref().map(|ahead| &ahead.snapshot);
                let later = ahead.into_iter().chain([&newest]).find(|later| {
                    let is_later = sent.generation <= later.state.generation;
                    is_later && later.history().steps_since(sent).is_some()
                });
                Arc::clone(later.unwrap_or(due))
            }
            _ => Arc::clone(due),
        }
    }

    /// Waits for a new generation, a message from the cell, or a question, which it returns.
    async fn wait(&mut self) -> Result<Option<Question>, End<W::Error>> {
        let word = tokio::select! {
            () = self.feed.drain.cancelled() => return Err(End::Draining),
            // The feed keeps the board alive.
            _changed = self.releases.changed() => return Ok(None),
            question = self.questions.next() => return Ok(Some(question)),
            word = next_word(&mut self.words) => word.map_err(End::Broken)?,
        };
        match word {
            None => {
                self.words = None;
                self.questions.close();
            }
            Some(word) => self.on_message(word).map_err(|error| End::Broken(error.into()))?,
        }
        Ok(None)
    }

    fn on_message(&mut self, word: ClientMessage) -> Result<(), Violation> {
        let snapshot: Arc<Snapshot> = self.feed.board.current();
        match word {
            ClientMessage::Subscribe { sequence, add, drop } => {
                let add = add.into_iter().map(|space| snapshot.shared(space)).collect();
                self.cursor.subscribe(sequence, add, &drop)?;
            }
            ClientMessage::Report(report, details) => {
                let progress = self.connection.report(report, snapshot.state.generation);
                self.connection.details(*details);
                if let Some(progress) = progress {
                    self.on_progress(progress, &snapshot, report.at);
                }
            }
            ClientMessage::Answer(id, answer) => {
                if !self.questions.answer(id, *answer) {
                    tracing::debug!(cell = %self.cell(), id, "unexpected-answer");
                }
            }
            ClientMessage::Uses(reported) => self.feed.uses.add(self.connection.cell(), reported),
            ClientMessage::Inventory(mut update) => {
                for (_, container) in &mut update.upserted {
                    container.space = container.space.take().map(|space| snapshot.shared(space));
                }
                self.connection.update(*update)?;
            }
        }
        Ok(())
    }
}

impl<W> Watcher<W> {
    fn on_progress(&self, progress: Progress, snapshot: &Snapshot, now: Timestamp) {
        let Progress { before, enforced } = progress;
        let (cell, changes) = (self.connection.cell(), &self.feed.changes);
        self.connection.lag(changes.enforced(cell, before.unwrap_or_default(), enforced, now));
        let behind = before.filter(|_| enforced == snapshot.state.generation);
        let since = behind.and_then(|before| snapshot.history().first_after(before));
        if let Some(since) = since {
            CELL_LAG.histogram().record(seconds(since, now));
        }
    }
}

async fn next_word<W: ClientMessages>(
    words: &mut Option<W>,
) -> Result<Option<ClientMessage>, W::Error> {
    match words {
        Some(words) => words.next().await,
        None => std::future::pending().await,
    }
}

impl<W> Drop for Watcher<W> {
    fn drop(&mut self) {
        self.connection.ends(Timestamp::now());
        WATCHERS.gauge().decrement(1);
    }
}

/// Stores cell reports periodically, and once more after `stop`; merges the reports
/// stored by other instances.
///
/// # Errors
/// Never: a failed write is retried; a lost report only leaves a gap after a restart.
pub async fn save_reports(
    store: Arc<dyn Store>,
    feed: Feed,
    every: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let is_last = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(every) => false,
        };
        let unsaved = Arc::new(feed.cells.unsaved(Timestamp::now()));
        for (cell, _) in &unsaved.forgotten {
            tracing::info!(%cell, "cell-forgotten");
        }
        match store.save_reports(Arc::clone(&unsaved)).await {
            Ok(elsewhere) => feed.cells.merge(elsewhere),
            Err(error) => {
                feed.cells.not_saved(&unsaved);
                tracing::error!(error = chain(&error), "failed-to-save-reports");
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Sets the metrics of the known cells; called for each scrape, so that the metrics
/// agree with Status.
#[expect(clippy::cast_precision_loss, reason = "no foundation has 2^52 cells")]
pub fn gauge(board: &SnapshotPublisher, cells: &Cells, now: Timestamp) {
    let snapshot = board.released_base();
    let Count { known, connected, behind, behind_since } =
        cells.count(snapshot.state.generation, snapshot.history());
    CONTAINERS.gauge().set(cells.containers() as f64);
    CELLS_KNOWN.gauge().set(known as f64);
    CELLS_CONNECTED.gauge().set(connected as f64);
    CELLS_DISCONNECTED.gauge().set((known - connected) as f64);
    CELLS_BEHIND.gauge().set(behind as f64);
    CELLS_BEHIND_SECONDS.gauge().set(behind_since.map_or(0.0, |since| seconds(since, now)));
}

/// The time from `since` to `now`.
#[expect(clippy::cast_precision_loss, reason = "microseconds do not matter")]
fn seconds(since: Stamp, now: Timestamp) -> f64 {
    (now.as_nanosecond() - i128::from(since.0)).max(0) as f64 / 1e9
}
