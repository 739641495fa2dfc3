//! Whether a process can do its work.
//!
//! A process is ready when each of its components is. Health feeds the gRPC
//! health service and `/readyz`; being alive is not asked here.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Why each component that is not ready is not, or `None` for those that are.
type Components = BTreeMap<&'static str, Option<String>>;

/// The health of a process, shared by its servers. Without components it is ready.
#[derive(Debug, Clone)]
pub struct Health {
    components: Arc<watch::Sender<Components>>,
}

/// A part of a process that may not be ready.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    health: Health,
}

impl Health {
    /// A health without components.
    #[expect(
        clippy::new_without_default,
        reason = "a second health in a process is a mistake that Default invites"
    )]
    pub fn new() -> Self {
        Self { components: Arc::new(watch::Sender::new(Components::new())) }
    }

    /// Adds a component, which is not ready until it says so.
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component { name, health: self.clone() };
        component.not_ready("starting");
        component
    }

    /// Whether all components are ready.
    pub fn is_ready(&self) -> bool {
        self.components.borrow().values().all(Option::is_none)
    }

    /// Each component that is not ready, and why.
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
    /// The component can do its work.
    pub fn ready(&self) {
        self.set(None);
    }

    /// The component cannot do its work, with the reason that operators see.
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
