//! One cycle of the loop, for real or as a dry run.

use std::sync::Arc;

use tokio::time::sleep_until;

use super::{Enforced, Reconciler};
use crate::plane::{Error, Rehearsed};

/// Maximum number of attempts against foreign changes.
const SETTLE_ATTEMPTS: usize = 5;

/// Result of one cycle.
#[derive(Debug)]
pub struct Outcome {
    /// The state in force after the cycle, or in a dry run the state that would be.
    pub enforced: Arc<Enforced>,
    /// Whether the kernel keeps its rules because the desired state is unknown.
    pub holding: bool,
    /// The transactions of a dry run, in order.
    pub rehearsed: Vec<Rehearsed>,
}

impl Reconciler {
    /// Makes the kernel match the current inputs, sweeps unused chains, and returns.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub async fn once(mut self) -> Result<Outcome, Error> {
        self.plane.recover().await?;
        self.recovered = true;
        self.reconcile().await;
        for _ in 0..SETTLE_ATTEMPTS {
            let Some(at) = self.settle_at else { break };
            sleep_until(at).await;
            self.settle().await;
        }
        let enforced = self.published.borrow().clone();
        let rehearsed = self.plane.rehearsed().unwrap_or_default();
        Ok(Outcome { enforced, holding: self.holding, rehearsed })
    }
}
