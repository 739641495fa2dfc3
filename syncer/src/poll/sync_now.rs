//! "Sync now" requests from outside the poll loop.
//!
//! Invariant: a caller gets the result of a poll that began after its request, or learns
//! that this process does not lead or has stopped leading.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Applied;

/// Queue size for requests; callers wait while it is full.
const QUEUE: usize = 16;

/// Result of a requested sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The store has confirmed it.
    Applied(Applied),
    /// The sync failed; the loop retries.
    Failed {
        /// Reason.
        error: String,
        /// Time until the next poll, unless there is another request.
        retry_in_ms: u64,
    },
    /// Another process leads, or none.
    NotLeading,
    /// The leadership ended before the result.
    LeadershipEnded,
}

type Question = oneshot::Sender<Outcome>;

/// Handle for requests. Clones use the same loop.
#[derive(Debug, Clone)]
pub struct SyncNow {
    leader: Arc<watch::Sender<Option<mpsc::Sender<Question>>>>,
}

impl Default for SyncNow {
    fn default() -> Self {
        Self { leader: Arc::new(watch::Sender::new(None)) }
    }
}

impl SyncNow {
    /// Requests a sync and waits for the result.
    pub async fn ask(&self) -> Outcome {
        let Some(leader) = self.leader.borrow().clone() else { return Outcome::NotLeading };
        let (question, answer) = oneshot::channel();
        if leader.send(question).await.is_err() {
            return Outcome::LeadershipEnded;
        }
        answer.await.unwrap_or(Outcome::LeadershipEnded)
    }

    /// Receiver of the requests of a term, until it is dropped.
    pub(super) fn lead(&self) -> Asked {
        let (questions, asked) = mpsc::channel(QUEUE);
        self.leader.send_replace(Some(questions));
        Asked { asked, waiting: Vec::new(), leader: Arc::clone(&self.leader) }
    }
}

/// Receiving side, used by the leader.
#[derive(Debug)]
pub(super) struct Asked {
    asked: mpsc::Receiver<Question>,
    waiting: Vec<Question>,
    leader: Arc<watch::Sender<Option<mpsc::Sender<Question>>>>,
}

impl Asked {
    /// Waits for a request.
    pub(super) async fn asked(&mut self) {
        // `self` holds a sender too, so the queue is never closed.
        self.waiting.extend(self.asked.recv().await);
    }

    /// Whether the poll that begins now has to read the list for a request.
    pub(super) fn begin_poll(&mut self) -> bool {
        while let Ok(question) = self.asked.try_recv() {
            self.waiting.push(question);
        }
        !self.waiting.is_empty()
    }

    /// Answers all requests made before the poll began.
    pub(super) fn answer(&mut self, outcome: &Outcome) {
        for question in self.waiting.drain(..) {
            // The caller may have been cancelled.
            _ = question.send(outcome.clone());
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.leader.send_replace(None);
    }
}
