//! Reads the counters of rules at the moments when they would be lost.

use super::{
    Belief, NftablesPlane,
    counting::{Counting, Uses},
};
use crate::plan::Ruleset;

impl NftablesPlane {
    /// The renderer has rendered this ruleset, and the table is about to change.
    pub(super) fn expect(&mut self, ruleset: &Ruleset, salt: &str) {
        if !ruleset.settings.count_use {
            return;
        }
        let counting = self.counting.get_or_insert_with(Counting::new);
        counting.expect(self.renderer.segments(), ruleset.policies.values(), salt);
    }

    /// Uses may have been lost.
    pub(super) fn lose(&mut self) {
        if let Some(counting) = &mut self.counting {
            counting.lose();
        }
    }

    /// Reads the counters of chains that no packet reaches any more, before they are deleted.
    pub(super) async fn count_last(&mut self, gone: Vec<String>) {
        let (Belief::Known(applied), Some(counting)) = (&self.belief, &self.counting) else {
            return;
        };
        let counted = counting.of(gone.iter());
        let is_ours = |name: &&String| name.starts_with("rules-");
        let all_known = counted.len() == gone.iter().filter(is_ours).count();
        let due = counting.is_due();
        let chains = if due { counting.of(applied.chains.keys()) } else { counted };
        let read = self.line.counters_of(chains).await;
        let Some(counting) = &mut self.counting else { return };
        match read {
            Ok(counters) => {
                counting.read(counters);
                if due {
                    counting.narrow();
                }
                if !all_known {
                    // Chains of an earlier process.
                    counting.lose();
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "rule-counters-unreadable");
                counting.lose();
            }
        }
        counting.forget(&gone);
    }

    /// [`Plane::uses`](crate::plane::Plane::uses).
    pub(super) async fn read_uses(&mut self) -> Option<Uses> {
        let Belief::Known(applied) = &self.belief else { return None };
        let chains = self.counting.as_ref()?.of(applied.chains.keys());
        let counters = match self.line.counters_of(chains).await {
            Ok(counters) => counters,
            Err(error) => {
                tracing::error!(error = %error, "rule-counters-unreadable");
                return None;
            }
        };
        let counting = self.counting.as_mut()?;
        counting.read(counters);
        Some(counting.take(|chain| applied.chains.contains_key(chain)))
    }
}
