//! The chains that belong to no container: the guard chains, which send IPv6 packets to the
//! containers' chains, and the chain that records denied packets
//! ([`crate::plane::iptables::guard`]).

use std::collections::HashSet;

use model::ids::ContainerHandle;

use super::{Batch, Saved, Step};
use crate::plane::iptables::{
    chains::Family,
    guard::{GUARD, RECORD, STRAY},
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

    /// Adds the chain that records denied packets to the batch.
    pub(super) fn record(
        &self,
        batch: &mut Batch,
        wanted: &Filter,
        spellings: &Spellings,
        step: &mut Step,
    ) {
        if let Some(rules) = &wanted.record {
            self.fixed(batch, RECORD, rules.clone(), spellings, step);
        }
    }

    /// Adds a chain that belongs to no container, if it differs.
    fn fixed(
        &self,
        batch: &mut Batch,
        name: &'static str,
        rules: Vec<String>,
        spellings: &Spellings,
        step: &mut Step,
    ) {
        let same = self.rules(name).count() == rules.len()
            && self.rules(name).zip(&rules).all(|(there, rule)| spellings.same(there, rule));
        if !same || !self.declared.contains(name) {
            batch.names.insert(name.to_owned());
            batch.guards.push((name, rules));
        }
        step.placed.insert(name.to_owned());
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
            self.fixed(batch, name, rules, spellings, step);
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
