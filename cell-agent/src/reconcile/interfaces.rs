//! Tracks the interfaces of the containers from cycle to cycle.

use runtime::error::chain;

use super::Reconciler;
use crate::interfaces::Routes;

impl Reconciler {
    /// Finds the interfaces of the containers. Returns whether they changed.
    pub(super) fn finds_interfaces(&mut self) -> bool {
        let claimed = self.inputs.containers.borrow().snapshot.claimed.clone();
        let interfaces = match Routes::read() {
            Ok(routes) => routes.behind(claimed, &self.interfaces, &self.inputs.settings.underlay),
            Err(error) => {
                tracing::error!(error = chain(&error), "interfaces-unreadable");
                return false;
            }
        };
        let others = self.interfaces != interfaces;
        if others {
            tracing::info!(interfaces = ?interfaces, "container-interfaces");
        }
        self.interfaces = interfaces;
        others
    }
}
