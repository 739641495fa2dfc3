//! The two data planes, as the loop sees them.

use std::collections::{BTreeMap, BTreeSet};

use model::ids::ContainerHandle;

use super::{Chains, Kernel, Rehearsed};
use crate::{apply::Error, drift::Drift, plan::Ruleset};

/// What holds the rules.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Plane {
    /// A table of our own.
    Nftables(Kernel),
    /// Chains among those of silk-cni.
    Iptables(Chains),
}

impl Plane {
    /// Finds out what an earlier process left; of a table of our own that is known
    /// since it was opened.
    pub(super) async fn recover(&mut self) -> Result<(), Error> {
        match self {
            Self::Nftables(_) => Ok(()),
            Self::Iptables(chains) => chains.recover().await,
        }
    }

    /// Whether any rule of ours may be in the kernel.
    pub(super) fn holds_rules(&self) -> bool {
        match self {
            Self::Nftables(table) => table.holds_rules(),
            Self::Iptables(chains) => chains.holds_rules(),
        }
    }

    /// The transactions that would have been made, if this is a rehearsal.
    pub(super) fn rehearsed(&self) -> Option<Vec<Rehearsed>> {
        match self {
            Self::Nftables(table) => table.rehearsed(),
            Self::Iptables(chains) => chains.rehearsed(),
        }
    }

    /// Makes the kernel hold the ruleset; what is unused may be left in it.
    /// Whether there was anything to do.
    pub(super) async fn apply_ruleset(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.apply_ruleset(ruleset).await,
            Self::Iptables(chains) => chains.apply_ruleset(ruleset).await,
        }
    }

    /// Puts back what was there before somebody changed it. False if that is not
    /// known.
    pub(super) async fn restore(&mut self) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.restore().await,
            Self::Iptables(chains) => chains.restore().await,
        }
    }

    /// Whether the kernel would take this ruleset.
    pub(super) async fn check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        match self {
            Self::Nftables(table) => table.check(ruleset).await,
            Self::Iptables(chains) => chains.check(ruleset).await,
        }
    }

    /// Sweeps what is unused; the chains of iptables go in the batch that no
    /// longer needs them.
    pub(super) async fn sweep(&mut self, ruleset: &Ruleset) -> Result<(), Error> {
        match self {
            Self::Nftables(table) => table.sweep(ruleset).await,
            Self::Iptables(_) => Ok(()),
        }
    }

    /// Writes down how the kernel looks, if that is needed. False if others were
    /// at work again.
    pub(super) async fn settle(&mut self) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.settle().await,
            Self::Iptables(_) => Ok(true),
        }
    }

    /// What others changed in what is ours. Not thoroughly means only if anybody changed
    /// anything.
    pub(super) async fn drifted(&mut self, thoroughly: bool) -> Result<Option<Drift>, Error> {
        match self {
            Self::Nftables(table) => table.drifted(thoroughly).await,
            Self::Iptables(chains) => chains.drifted(thoroughly).await,
        }
    }

    /// Whether the last look found something to do though nothing of ours was
    /// changed: what was waited for is there, or what was in use is not.
    pub(super) fn has_work(&self) -> bool {
        match self {
            Self::Nftables(_) => false,
            Self::Iptables(chains) => chains.has_work(),
        }
    }

    /// How many rules of ours the kernel is to hold.
    pub(super) fn rules(&self) -> u64 {
        match self {
            Self::Nftables(table) => table.rules(),
            Self::Iptables(chains) => chains.rules(),
        }
    }

    /// What the kernel counted of packets that no rule decided, if it tells.
    pub(super) async fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        match self {
            Self::Nftables(table) => table.counters(),
            Self::Iptables(chains) => chains.counters().await,
        }
    }

    /// Where the latest packets came from that are no known container's.
    pub(super) async fn strangers(&self) -> String {
        match self {
            Self::Nftables(table) => table.strangers().await,
            Self::Iptables(_) => String::new(),
        }
    }

    /// Containers whose groups are unknown and that keep what an earlier process
    /// left. A table of our own cannot be relied on without knowing it.
    pub(super) fn kept(&self) -> BTreeSet<ContainerHandle> {
        match self {
            Self::Nftables(_) => BTreeSet::new(),
            Self::Iptables(chains) => chains.kept().clone(),
        }
    }

    /// Containers whose rules cannot be in the kernel yet, with the reason.
    pub(super) fn waiting(&self) -> BTreeMap<ContainerHandle, String> {
        match self {
            Self::Nftables(_) => BTreeMap::new(),
            Self::Iptables(chains) => chains.waiting().clone(),
        }
    }
}
