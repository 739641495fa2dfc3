//! The guard chains, which send IPv6 packets to the containers' chains
//! ([`crate::plane::iptables::guard`]).

use std::collections::HashSet;

use model::ids::ContainerHandle;

use super::{Batch, Saved, Step};
use crate::plane::iptables::{
    chains::Family,
    guard::{GUARD, STRAY},
    render::{Body, Chain, Filter},
    spelling::Spellings,
};

impl Saved {
    /// The rules of a container's chain: without log lines if the log chains do not
    /// exist.
    pub(super) fn body<'w>(&self, chain: &'w Chain) -> &'w Body {
        let there = chain.targets.iter().all(|name| self.declared.contains(name));
        chain.silent.as_ref().filter(|_| !there).unwrap_or(&chain.body)
    }

    /// Adds the guard chains to the batch.
    pub(super) fn guard<'w>(
        &self,
        batch: &mut Batch,
        wanted: &'w Filter,
        mut owners: HashSet<&'w ContainerHandle>,
        spellings: &Spellings,
        step: &mut Step,
    ) {
        let Some(guard) = &wanted.guard else { return };
        let kept = wanted.unknown.iter().filter(|chain| !self.is_empty(&chain.names.asg));
        owners.extend(kept.map(|chain| &chain.handle));
        let rules = guard.rules(|handle| owners.contains(handle));
        let stray = vec![Family::V6.reject().to_owned()];
        for (name, rules) in [(GUARD, rules), (STRAY, stray)] {
            let same = self.rules(name).count() == rules.len()
                && self.rules(name).zip(&rules).all(|(there, rule)| spellings.same(there, rule));
            if !same || !self.declared.contains(name) {
                batch.names.insert(name.to_owned());
                batch.guards.push((name, rules));
            }
            step.placed.insert(name.to_owned());
        }
        if self.guarded != [0] {
            batch.relink = Some(self.guarded.len());
        }
    }
}

impl Batch {
    /// Whether the batch repairs the guard chains.
    #[must_use]
    pub fn guards(&self) -> bool {
        !self.guards.is_empty() || self.relink.is_some()
    }
}
