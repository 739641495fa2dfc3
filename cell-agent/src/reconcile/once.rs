//! One cycle of the loop, for real or as a dry run.

use std::collections::BTreeMap;

use model::ids::ContainerHandle;
use runtime::error::chain;
use tokio::time::sleep_until;

use super::{Reconciler, enforce::Call, isolate::log_unreadable};
use crate::plane::{Error, Transaction};

/// Maximum number of attempts against foreign changes.
const SETTLE_ATTEMPTS: usize = 5;

/// Result of one cycle.
#[derive(Debug)]
pub struct Outcome {
    /// Why the rules are not in force, or in a dry run would not be.
    pub error: Option<String>,
    /// Containers whose rules cannot be in the kernel yet, with the reason.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// Whether the kernel keeps its rules because the desired state is unknown.
    pub holding: bool,
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
        let enforced = self.published.borrow();
        let (error, waiting) = (enforced.error.clone(), enforced.waiting.clone());
        Ok(Outcome { error, waiting, holding: self.holding })
    }

    /// The transactions that [`Reconciler::once`] would apply, in order; the kernel is
    /// only read and asked whether it accepts them.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub async fn dry_run(mut self) -> Result<(Vec<Transaction>, Outcome), Error> {
        self.plane.recover().await?;
        let mut transactions = Vec::new();
        let mut error = None;
        if let Some(attempt) = self.attempt() {
            let apply: Call<Vec<_>> = |plane, ruleset| plane.dry_run(ruleset);
            let check: Call<()> = |plane, ruleset| plane.dry_check(ruleset);
            match self.enforcer.enforce(&mut *self.plane, (apply, check), &attempt).await {
                Ok((ruleset, planned, _searched)) => {
                    log_unreadable(&self.published.borrow().ruleset, &ruleset);
                    transactions = planned;
                }
                Err(failed) => error = Some(chain(&failed)),
            }
        }
        let waiting = self.plane.status().waiting;
        Ok((transactions, Outcome { error, waiting, holding: self.holding }))
    }
}
