//! Readiness of a leader: whether it keeps up, for `/readyz`.
//!
//! A leader is not ready when no poll has succeeded for longer than the bound after the
//! poll was due. A poll in progress counts as successful while the Cloud Controller
//! responds: a long list takes longer than the bound. After a failed poll only the next
//! successful one counts. The time also runs while a call hangs, so
//! [`Freshness::watch`] runs beside the polls.

use std::{convert::Infallible, future::pending, time::Duration};

use runtime::server::Component;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Reports whether the leader keeps up.
#[derive(Debug)]
pub(super) struct Freshness {
    component: Component,
    bound: Duration,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
struct State {
    /// Due time of the poll in progress, or of the next one.
    due: Instant,
    /// Error of the last failed poll since then.
    failed: Option<String>,
}

impl Freshness {
    /// For a standby, which is ready: it does not poll.
    pub(super) fn new(component: Component, bound: Duration) -> Self {
        component.ready();
        let state = watch::Sender::new(State { due: Instant::now(), failed: None });
        Self { component, bound, state }
    }

    /// A poll succeeded; the next one is due at `next`.
    pub(super) fn good(&self, next: Instant) {
        self.state.send_replace(State { due: next, failed: None });
        self.component.ready();
    }

    /// A poll failed, with this error.
    pub(super) fn failed(&self, error: String) {
        self.state.send_modify(|state| state.failed = Some(error));
    }

    /// Not ready at once, regardless of the bound.
    pub(super) fn stale(&self, reason: String) {
        self.component.not_ready(reason);
    }

    /// Watches a term. `answers`: time of the Cloud Controller's last response.
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

/// Guard of a term; on drop this process becomes a standby, which is ready.
pub(super) struct Leading<'a>(pub(super) [&'a Component; 2]);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|component| component.ready());
    }
}

impl Freshness {
    /// The component that [`Leading`] resets to ready.
    pub(super) fn component(&self) -> &Component {
        &self.component
    }
}
