//! Whether a leader keeps up, for `/readyz`.
//!
//! A leader is not ready when no poll has gone well for longer than the bound
//! after it was due. A poll that is still under way counts as good while the Cloud
//! Controller goes on answering: a long list takes longer than the bound. After a
//! poll that failed only the next good one counts. The clock runs also while a
//! call hangs, so [`Freshness::watch`] runs beside the polls.

use std::{convert::Infallible, future::pending, time::Duration};

use runtime::server::Component;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Tells the world whether the leader keeps up.
#[derive(Debug)]
pub(super) struct Freshness {
    component: Component,
    bound: Duration,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
struct State {
    /// When the poll was due that is under way or comes next.
    due: Instant,
    /// Why the polls since then failed.
    failed: Option<String>,
}

impl Freshness {
    /// Of a standby, which is ready: it does not poll.
    pub(super) fn new(component: Component, bound: Duration) -> Self {
        component.ready();
        let state = watch::Sender::new(State { due: Instant::now(), failed: None });
        Self { component, bound, state }
    }

    /// A poll went well; the next one is due at `next`.
    pub(super) fn good(&self, next: Instant) {
        self.state.send_replace(State { due: next, failed: None });
        self.component.ready();
    }

    /// A poll failed, with this error.
    pub(super) fn failed(&self, error: String) {
        self.state.send_modify(|state| state.failed = Some(error));
    }

    /// Not ready at once, whatever the bound.
    pub(super) fn stale(&self, reason: String) {
        self.component.not_ready(reason);
    }

    /// Watches a term. `answers`: when the Cloud Controller last answered.
    pub(super) async fn watch(&self, mut answers: watch::Receiver<Instant>) -> Infallible {
        self.good(Instant::now());
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            let since = match state.failed {
                Some(_) => state.due,
                None => state.due.max(*answers.borrow_and_update()),
            };
            tokio::select! {
                () = sleep_until(since + self.bound) => {
                    self.component.not_ready(self.reason(&state));
                    self.changed(&mut states, &mut answers).await;
                }
                () = self.changed(&mut states, &mut answers) => {}
            }
        }
    }

    async fn changed(
        &self,
        states: &mut watch::Receiver<State>,
        answers: &mut watch::Receiver<Instant>,
    ) {
        tokio::select! {
            Ok(()) = states.changed() => {}
            Ok(()) = answers.changed() => {}
            else => pending().await,
        }
    }

    fn reason(&self, state: &State) -> String {
        let Self { bound, .. } = self;
        match &state.failed {
            Some(error) => format!("no good poll for {bound:?}: {error}"),
            None => format!("no good poll for {bound:?}: the Cloud Controller does not answer"),
        }
    }
}

/// Until it is dropped a term runs; then this process is a standby, which is
/// ready.
pub(super) struct Leading<'a>(pub(super) [&'a Component; 2]);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|component| component.ready());
    }
}

impl Freshness {
    /// What [`Leading`] makes ready again.
    pub(super) fn component(&self) -> &Component {
        &self.component
    }
}
