//! A term of leadership and the work that runs in it.

use std::future::pending;

use model::lock::FencingToken;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::Instant,
};

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

/// The work of the current term, in a task of its own: a long computation never delays a
/// renewal.
#[derive(Debug, Default)]
pub(super) struct Work(Option<Running>);

#[derive(Debug)]
struct Running {
    ends: watch::Sender<Instant>,
    task: JoinSet<Fenced>,
}

impl Work {
    /// Starts the work of a new term.
    pub(super) fn start<F>(&mut self, token: FencingToken, ends: Instant, work: impl Fn(Term) -> F)
    where
        F: Future<Output = Fenced> + Send + 'static,
    {
        let (ends, end) = watch::channel(ends);
        let mut task = JoinSet::new();
        task.spawn(work(Term::new(token, end)));
        self.0 = Some(Running { ends, task });
    }

    /// Whether a term is running.
    pub(super) fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// Moves the end of the term.
    pub(super) fn set_end(&self, ends: Instant) {
        if let Some(running) = &self.0 {
            running.ends.send_replace(ends);
        }
    }

    /// Ends the term: aborts the work and waits for its end.
    pub(super) async fn stop(&mut self) {
        if let Some(mut running) = self.0.take() {
            running.ends.send_replace(Instant::now());
            running.task.shutdown().await;
        }
    }

    /// The end of the work by itself. Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Fenced, JoinError> {
        if let Some(running) = &mut self.0
            && let Some(ended) = running.task.join_next().await
        {
            return ended;
        }
        pending().await
    }
}
