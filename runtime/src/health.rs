//! Readiness of a process.
//!
//! A process is ready when all of its components are. Health feeds the gRPC health service and
//! `/readyz`; it does not cover liveness.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Components with the reason why they are not ready; `None` for ready components.
type Components = BTreeMap<&'static str, Option<String>>;

/// The health of a process, shared by its servers. A process without components is ready.
#[derive(Debug, Clone)]
pub struct Health {
    components: Arc<watch::Sender<Components>>,
}

/// A part of a process that reports its readiness.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Creates a health without components.
    #[expect(
        clippy::new_without_default,
        reason = "a second health in a process is a mistake that Default invites"
    )]
    pub fn new() -> Self {
        Self { components: Arc::new(watch::Sender::new(Components::new())) }
    }

    /// Adds a component, which is not ready until it reports so.
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component { name, health: self.clone() };
        component.not_ready("starting");
        component
    }

    /// Whether all components are ready.
    pub fn is_ready(&self) -> bool {
        self.components.borrow().values().all(Option::is_none)
    }

    /// The components that are not ready, with their reasons.
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let components = self.components.borrow();
        let reasons = components.iter();
        reasons.filter_map(|(name, reason)| Some((*name, reason.clone()?))).collect()
    }

    /// Waits until [`Self::is_ready`] is `ready`.
    pub async fn wait_for(&self, ready: bool) {
        let mut changes = self.components.subscribe();
        let is = |components: &Components| components.values().all(Option::is_none) == ready;
        changes.wait_for(is).await.expect("self holds the sender, so it is not closed");
    }
}

impl Component {
    /// Marks the component as ready.
    pub fn ready(&self) {
        self.set(None);
    }

    /// Marks the component as not ready; operators see the reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let Self { name, health } = self;
        health.components.send_if_modified(|components| {
            let known = components.get(name) == Some(&reason);
            components.insert(name, reason);
            !known
        });
    }
}
