//! The two data planes, and the reconcile loop's interface to them.
//!
//! [`nftables`] has a table of its own, [`iptables`] has chains among those of the CNI
//! plugin. What one plane needs is in its folder: rendering, comparing, applying, and
//! detecting changes by other processes. Plans, groups and the search for refused rules
//! know no plane.
//!
//! Invariants of every plane:
//! - A change is atomic: a packet meets the old or the new rules (law 8).
//! - A result says that rules are in force only if the kernel has them (law 4).
//! - Rules of an earlier process stay until [`Plane::apply`] replaces them (law 5).

pub mod drift;
pub mod iptables;
pub mod nftables;
mod program;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use async_trait::async_trait;
use model::ids::ContainerHandle;

use self::drift::Drift;
use crate::plan::Ruleset;

pub use nftables::Uses;
pub use nftables::render::{CONNECTIONS, DENIED, UNATTRIBUTED, full};
pub use program::Error;

/// Prefix of counters of denied packets that may be recorded.
pub const RECORDABLE: &str = "recordable ";

/// Writing to a `String` cannot fail.
pub(crate) const TO_STRING: &str = "a String takes everything";

/// A transaction as its program takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The program with its arguments.
    pub command: String,
    /// Its standard input.
    pub text: String,
}

impl Transaction {
    /// A script of nft.
    #[must_use]
    pub fn of_nft(script: String) -> Self {
        Self { command: "nft -f -".to_owned(), text: script }
    }
}

/// Brings rulesets into the kernel.
#[async_trait]
pub trait Plane: Debug + Send + Sync {
    /// Reads the rules of an earlier process, unless this was done on opening.
    async fn recover(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Applies the ruleset; unused chains may remain. Returns whether anything changed.
    async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, Error>;

    /// Restores the rules from before a foreign change, while the desired rules are
    /// unknown. False if the rules from before are unknown, too.
    async fn restore(&mut self) -> Result<bool, Error>;

    /// Whether the kernel accepts this ruleset; changes no rule that packets meet.
    async fn check(&self, ruleset: &Ruleset) -> Result<(), Error>;

    /// The transactions of [`Plane::apply`] and [`Plane::sweep`], in order. Reads the
    /// kernel and checks whether it accepts them, but changes nothing.
    async fn dry_run(&mut self, ruleset: &Ruleset) -> Result<Vec<Transaction>, Error>;

    /// [`Plane::check`] as far as it is possible without changing anything.
    async fn dry_check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        self.check(ruleset).await
    }

    /// Foreign changes of our rules. Unless `thoroughly`, compares only if there may
    /// have been a change.
    async fn drifted(&mut self, thoroughly: bool) -> Result<Option<Drift>, Error>;

    /// Deletes unused chains that [`Plane::apply`] left.
    async fn sweep(&mut self, _ruleset: &Ruleset) -> Result<(), Error> {
        Ok(())
    }

    /// Records the kernel's state, if needed. False if other processes changed
    /// something again. Cancel-safe.
    async fn settle(&mut self) -> Result<bool, Error> {
        Ok(true)
    }

    /// The state after the last call.
    fn status(&self) -> Status;

    /// Counters of packets, if available: [`UNATTRIBUTED`], [`full`] of each container, and
    /// [`DENIED`] and [`CONNECTIONS`] if the plane counts those. A plane that counts only the
    /// denied packets that may be recorded has counters whose name begins with [`RECORDABLE`].
    async fn counters(&mut self) -> Option<BTreeMap<String, u64>>;

    /// Permits that new connections used since the last call. `None`: this plane does not count
    /// uses, or the counters cannot be read now; then the next call has them.
    async fn uses(&mut self) -> Option<Uses> {
        None
    }

    /// Sources of the latest packets that belong to no known container.
    async fn unattributed_sources(&self) -> String {
        String::new()
    }
}

/// The state of a data plane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Number of our rules that should be in the kernel.
    pub rules: u64,
    /// Whether the kernel may hold any of our rules.
    pub holds_rules: bool,
    /// Whether the last read found work without a foreign change: a missing chain
    /// exists now, or a chain became unused.
    pub has_work: bool,
    /// Containers whose rules cannot be in the kernel yet, with the reason.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// Containers whose groups are unknown and that keep the rules of an earlier
    /// process.
    pub kept: BTreeSet<ContainerHandle>,
}
