//! Finds differences between a table and the rules that a batch writes, for the log.

use model::ids::ContainerHandle;

use super::{Batch, FORWARD, Saved, Written};
use crate::plane::{
    drift::Drift,
    iptables::{guard::GUARD, spelling::Spellings},
};

impl Saved {
    /// Records how the chains of these containers differ from the batch.
    pub fn compare(
        &self,
        batch: &Batch,
        concerned: impl Fn(&ContainerHandle) -> bool,
        spellings: &Spellings,
        drift: &mut Drift,
    ) {
        for Written { chain, handle, rules } in &batch.written {
            if concerned(handle) {
                let expected: Vec<_> = rules.rules().collect();
                self.compare_chain(chain, &expected, spellings, drift);
            }
        }
    }

    /// Records how the chains without a container differ from the batch.
    pub fn compare_guards(&self, batch: &Batch, spellings: &Spellings, drift: &mut Drift) {
        for (chain, rules) in &batch.guards {
            let expected: Vec<_> = rules.iter().map(String::as_str).collect();
            self.compare_chain(chain, &expected, spellings, drift);
        }
        if batch.relink.is_some() {
            let jump = format!("-j {GUARD}, once and first");
            drift.note(&format!("{} {FORWARD}", spellings.family()), Some(&jump), None);
        }
    }

    fn compare_chain(
        &self,
        chain: &str,
        expected: &[&str],
        spellings: &Spellings,
        drift: &mut Drift,
    ) {
        let place = format!("{} {chain}", spellings.family());
        if !self.declared.contains(chain) {
            drift.note(&place, Some("the chain"), None);
            return;
        }
        let found: Vec<_> = self.rules(chain).collect();
        drift
            .compare(&place, expected, &found, |printed, written| spellings.same(printed, written));
    }
}
