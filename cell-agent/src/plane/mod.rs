//! The two data planes, and the reconcile loop's interface to them.

pub mod drift;
pub mod iptables;
pub mod nftables;
mod program;

use std::collections::{BTreeMap, BTreeSet};

use model::ids::ContainerHandle;

use self::{drift::Drift, iptables::Chains, nftables::Kernel};
use crate::plan::Ruleset;

pub use program::Error;

/// Writing to a `String` cannot fail.
pub(crate) const TO_STRING: &str = "a String takes everything";

/// A transaction of a dry run: how it would be applied, and its text.
pub type Rehearsed = (String, String);

/// The data plane.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Plane {
    /// A table of our own.
    Nftables(Kernel),
    /// Chains among those of silk-cni.
    Iptables(Chains),
}

impl Plane {
    /// Reads the rules of an earlier process; for a table of our own this was done on
    /// opening.
    pub(crate) async fn recover(&mut self) -> Result<(), Error> {
        match self {
            Self::Nftables(_) => Ok(()),
            Self::Iptables(chains) => chains.recover().await,
        }
    }

    /// Whether the kernel may hold any of our rules.
    pub(crate) fn holds_rules(&self) -> bool {
        match self {
            Self::Nftables(table) => table.holds_rules(),
            Self::Iptables(chains) => chains.holds_rules(),
        }
    }

    /// The recorded transactions, if this is a dry run.
    pub(crate) fn rehearsed(&self) -> Option<Vec<Rehearsed>> {
        match self {
            Self::Nftables(table) => table.rehearsed(),
            Self::Iptables(chains) => chains.rehearsed(),
        }
    }

    /// Applies the ruleset; unused chains may remain. Returns whether anything changed.
    pub(crate) async fn apply_ruleset(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.apply_ruleset(ruleset).await,
            Self::Iptables(chains) => chains.apply_ruleset(ruleset).await,
        }
    }

    /// Restores the rules from before a foreign change. False if those are unknown.
    pub(crate) async fn restore(&mut self) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.restore().await,
            Self::Iptables(chains) => chains.restore().await,
        }
    }

    /// Whether the kernel accepts this ruleset.
    pub(crate) async fn check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        match self {
            Self::Nftables(table) => table.check(ruleset).await,
            Self::Iptables(chains) => chains.check(ruleset).await,
        }
    }

    /// Sweeps unused chains; those of iptables are deleted in the batch that makes them
    /// unused.
    pub(crate) async fn sweep(&mut self, ruleset: &Ruleset) -> Result<(), Error> {
        match self {
            Self::Nftables(table) => table.sweep(ruleset).await,
            Self::Iptables(_) => Ok(()),
        }
    }

    /// Records the kernel's state, if needed. False if other processes changed
    /// something again.
    pub(crate) async fn settle(&mut self) -> Result<bool, Error> {
        match self {
            Self::Nftables(table) => table.settle().await,
            Self::Iptables(_) => Ok(true),
        }
    }

    /// Foreign changes of our rules. Unless `thoroughly`, compares only if there may
    /// have been a change.
    pub(crate) async fn drifted(&mut self, thoroughly: bool) -> Result<Option<Drift>, Error> {
        match self {
            Self::Nftables(table) => table.drifted(thoroughly).await,
            Self::Iptables(chains) => chains.drifted(thoroughly).await,
        }
    }

    /// Whether the last read found work without a foreign change: a missing chain
    /// exists now, or a chain became unused.
    pub(crate) fn has_work(&self) -> bool {
        match self {
            Self::Nftables(_) => false,
            Self::Iptables(chains) => chains.has_work(),
        }
    }

    /// Number of our rules that should be in the kernel.
    pub(crate) fn rules(&self) -> u64 {
        match self {
            Self::Nftables(table) => table.rules(),
            Self::Iptables(chains) => chains.rules(),
        }
    }

    /// Counters of packets that no rule decided, if available.
    pub(crate) async fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        match self {
            Self::Nftables(table) => table.counters(),
            Self::Iptables(chains) => chains.counters().await,
        }
    }

    /// Sources of the latest packets that belong to no known container.
    pub(crate) async fn strangers(&self) -> String {
        match self {
            Self::Nftables(table) => table.strangers().await,
            Self::Iptables(_) => String::new(),
        }
    }

    /// Containers whose groups are unknown and that keep the rules of an earlier
    /// process. Always empty for a table of our own.
    pub(crate) fn kept(&self) -> BTreeSet<ContainerHandle> {
        match self {
            Self::Nftables(_) => BTreeSet::new(),
            Self::Iptables(chains) => chains.kept().clone(),
        }
    }

    /// Containers whose rules cannot be in the kernel yet, with the reason.
    pub(crate) fn waiting(&self) -> BTreeMap<ContainerHandle, String> {
        match self {
            Self::Nftables(_) => BTreeMap::new(),
            Self::Iptables(chains) => chains.waiting().clone(),
        }
    }
}
