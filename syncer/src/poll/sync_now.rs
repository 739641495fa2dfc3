//! "Sync now", asked from outside the poll loop.
//!
//! What holds: whoever asks is told what came of a poll that began after the
//! question, or that this process does not lead, or that it ceased to.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Applied;

/// Questions on their way; who asks when there are more waits.
const QUEUE: usize = 16;

/// What came of a sync that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The store has confirmed it.
    Applied(Applied),
    /// It failed; the loop goes on trying.
    Failed {
        /// Why.
        error: String,
        /// When the next poll is, unless somebody asks again.
        retry_in_ms: u64,
    },
    /// Another process leads, or none.
    NotLeading,
    /// The leadership ended before there was an answer.
    LeadershipEnded,
}

type Question = oneshot::Sender<Outcome>;

/// Lets others ask for a sync now. Clones ask the same loop.
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
    /// Asks, and waits for the answer.
    pub async fn ask(&self) -> Outcome {
        let Some(leader) = self.leader.borrow().clone() else { return Outcome::NotLeading };
        let (question, answer) = oneshot::channel();
        if leader.send(question).await.is_err() {
            return Outcome::LeadershipEnded;
        }
        answer.await.unwrap_or(Outcome::LeadershipEnded)
    }

    /// The questions of a term, until it is dropped.
    pub(super) fn lead(&self) -> Asked {
        let (questions, asked) = mpsc::channel(QUEUE);
        self.leader.send_replace(Some(questions));
        Asked { asked, waiting: Vec::new(), leader: Arc::clone(&self.leader) }
    }
}

/// The leader's side.
#[derive(Debug)]
pub(super) struct Asked {
    asked: mpsc::Receiver<Question>,
    waiting: Vec<Question>,
    leader: Arc<watch::Sender<Option<mpsc::Sender<Question>>>>,
}

impl Asked {
    /// Waits until somebody asks.
    pub(super) async fn asked(&mut self) {
        // This side holds a sender too, so the queue never ends.
        self.waiting.extend(self.asked.recv().await);
    }

    /// Whether the poll that begins now is to read the list for somebody.
    pub(super) fn begin_poll(&mut self) -> bool {
        while let Ok(question) = self.asked.try_recv() {
            self.waiting.push(question);
        }
        !self.waiting.is_empty()
    }

    /// Answers all who had asked when the poll began.
    pub(super) fn answer(&mut self, outcome: &Outcome) {
        for question in self.waiting.drain(..) {
            // Who went away does not want to know.
            _ = question.send(outcome.clone());
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.leader.send_replace(None);
    }
}
