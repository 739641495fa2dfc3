//! One pass of the loop, for real or as a rehearsal.

use std::sync::Arc;

use tokio::time::sleep_until;

use super::{Enforced, Reconciler};
use crate::apply::Error;

/// A transaction that was not made: how it would be handed over, and its text.
pub type Rehearsed = (String, String);

/// How often the pass comes back to what others keep changing.
const SETTLE_ATTEMPTS: usize = 5;

/// How one pass went.
#[derive(Debug)]
pub struct Outcome {
    /// What is in force after it, or would be.
    pub enforced: Arc<Enforced>,
    /// Whether the kernel keeps what it has, since nobody told what should be there.
    pub holding: bool,
    /// The transactions of a rehearsal, in their order.
    pub rehearsed: Vec<Rehearsed>,
}

impl Reconciler {
    /// Makes the kernel hold what the inputs say now, sweeps what is unused, and
    /// ends.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub async fn once(mut self) -> Result<Outcome, Error> {
        self.kernel.recover().await?;
        self.recovered = true;
        self.reconcile().await;
        for _ in 0..SETTLE_ATTEMPTS {
            let Some(at) = self.settle_at else { break };
            sleep_until(at).await;
            self.settle().await;
        }
        let enforced = self.published.borrow().clone();
        let rehearsed = self.kernel.rehearsed().unwrap_or_default();
        Ok(Outcome { enforced, holding: self.holding, rehearsed })
    }
}
