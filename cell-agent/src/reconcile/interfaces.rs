//! Which interfaces the containers are behind, from pass to pass.

use runtime::error::chain;

use super::Reconciler;
use crate::interfaces::Routes;

impl Reconciler {
    /// Looks which interfaces the containers are behind. Whether others than before.
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
