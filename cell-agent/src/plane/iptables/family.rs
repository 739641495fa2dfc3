//! What the plane knows of the filter table of one address family.

use std::{collections::BTreeSet, fs};

use model::ids::ContainerHandle;

use super::{
    batch::{Batch, Saved, Step},
    chains::Family,
    guard::{GUARD, RECORD},
    programs::Iptables,
    render::Filter,
    spelling::Spellings,
};
use crate::{
    metrics,
    plane::{Error, drift::Drift},
};

/// Whether the kernel forwards IPv6 packets.
pub(super) fn forwards_ipv6() -> bool {
    let setting = "/proc/sys/net/ipv6/conf/all/forwarding";
    fs::read_to_string(setting).is_ok_and(|value| value.trim() == "1")
}

/// State of one address family.
#[derive(Debug)]
pub(super) struct FamilyState {
    pub(super) spellings: Spellings,
    pub(super) wanted: Filter,
    /// Our chains that were right after the last batch.
    pub(super) placed: BTreeSet<String>,
    /// Those of them with the rules that this process wants.
    pub(super) written: BTreeSet<String>,
    /// ip6tables refused rules that no packet of this cell needs.
    pub(super) given_up: bool,
}

impl FamilyState {
    pub(super) fn new(family: Family) -> Self {
        Self {
            spellings: Spellings::of(family),
            wanted: Filter::default(),
            placed: BTreeSet::new(),
            written: BTreeSet::new(),
            given_up: false,
        }
    }

    pub(super) fn family(&self) -> Family {
        self.spellings.family()
    }

    /// Reads the table; `None` for an unreadable IPv6 table that no container needs.
    pub(super) async fn look(&self, iptables: &Iptables) -> Result<Option<Saved>, Error> {
        if self.given_up && self.is_idle() {
            return Ok(None);
        }
        match iptables.save(self.family()).await {
            Ok(saved) => Ok(Some(saved)),
            Err(Error::Unreadable { .. }) if self.is_unused() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether no packet can need the table: no container has an address of this
    /// family, and the cell does not forward the family.
    pub(super) fn is_idle(&self) -> bool {
        self.is_unused() && !forwards_ipv6()
    }

    fn is_unused(&self) -> bool {
        let needed = self.wanted.chains.iter().chain(&self.wanted.unknown);
        self.family() == Family::V6
            && self.placed.is_empty()
            && !needed.into_iter().any(|chain| chain.expected)
    }

    /// Learns the printed form of written rules that are not recognised.
    pub(super) async fn learn(
        &mut self,
        iptables: &Iptables,
        saved: &Saved,
        (batch, again): (&Batch, &Batch),
    ) -> Result<(), Error> {
        let rules = saved.unrecognised(batch, again, &self.spellings);
        if rules.is_empty() {
            return Ok(());
        }
        let printed = iptables.spell(self.family(), &rules).await?;
        if printed.len() != rules.len() {
            return Ok(());
        }
        let odd: Vec<_> =
            rules.iter().zip(&printed).filter(|(rule, printed)| rule != printed).collect();
        if let Some((rule, printed)) = odd.first() {
            metrics::count(metrics::UNKNOWN_SPELLINGS);
            let (family, rules) = (self.family(), odd.len());
            tracing::warn!(%family, rules, rule, printed, "unknown-rule-format-learned");
        }
        odd.into_iter().for_each(|(rule, printed)| self.spellings.learn(rule, printed));
        Ok(())
    }

    /// Differences in chains that were right before.
    pub(super) fn drifted(&self, saved: &Saved, step: &Step) -> Option<Drift> {
        let batch = step.batch.as_ref()?;
        let placed = |handle: &ContainerHandle| {
            let chain = self.wanted.chains.iter().find(|chain| chain.handle == *handle);
            chain.is_some_and(|chain| self.placed.contains(&chain.names.asg))
        };
        let mut drift = Drift::default();
        saved.compare(batch, placed, &self.spellings, &mut drift);
        if self.placed.contains(GUARD) || self.placed.contains(RECORD) {
            saved.compare_guards(batch, &self.spellings, &mut drift);
        }
        (drift.differences > 0).then_some(drift)
    }
}
