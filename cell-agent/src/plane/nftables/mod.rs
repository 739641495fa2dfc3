//! The nftables data plane: a table of our own.
//!
//! Only the agent writes the table, so its view of the kernel is:
//! - known: the table that its last transaction left, as long as no other process has
//!   changed anything; or
//! - foreign, after a start or a change by another process: then everything is written
//!   again, in place.
//!
//! A crash at any point leaves a whole old or a whole new table in the kernel. The
//! state file says which, with a fingerprint of nft's listing; if they do not agree,
//! the table is written again.

mod counting;
pub mod diff;
pub mod intervals;
pub mod listing;
pub mod netlink;
pub mod nft;
pub mod render;
mod segment;
pub mod table;
mod uses;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use self::{
    counting::Counting,
    diff::{Change, Sweep, diff, remove, replace, suspect, trials},
    listing::{Outline, fingerprint},
    netlink::{KernelGeneration, NetlinkConnection, NftOp},
    nft::Nft,
    render::{Renderer, UNATTRIBUTED_SETS, render},
    table::Table,
};
use super::{Error, Plane, Status, Transaction, drift::Drift};
use crate::{plan::Ruleset, state::StateDirectory};

pub use self::counting::Uses;

/// Name of the state file.
const FILE: &str = "applied";

/// Minimum delay between a transaction and a sweep: a packet in flight, on a CPU that
/// was preempted, may still be in chains that nothing refers to any more.
const QUIET: Duration = Duration::from_millis(50);
/// Maximum number of packet sources in one log line.
const UNATTRIBUTED_LOGGED: usize = 10;

/// What a transaction covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The whole table: correct afterwards in any case.
    Everything,
    /// Only the difference: correct afterwards if the table was correct before.
    Difference,
}

/// Our table in the kernel.
#[derive(Debug)]
pub struct NftablesPlane {
    nft: Nft,
    /// For changes that need no nft.
    line: NetlinkConnection,
    state: StateDirectory,
    belief: Belief,
    renderer: Renderer,
    /// The desired table, without leftovers that are still in the kernel.
    wanted: Table,
    /// Salt of content-named chains; a new salt gives new names when the existing
    /// chains cannot be relied on.
    salt: String,
    /// nf_tables generation after the last transaction, if no other process changed
    /// anything since the transaction before.
    generation: Option<KernelGeneration>,
    settled: Option<Settled>,
    committed_at: Instant,
    /// Counters of rules, if they are counted.
    counting: Option<Counting>,
}

/// The known or foreign state of the kernel.
#[derive(Debug)]
enum Belief {
    /// The result of our last transaction.
    Known(Table),
    /// Another process changed the table; this is nft's listing.
    Foreign(String),
}

/// The kernel's state when nothing was left to do.
#[derive(Debug)]
struct Settled {
    fingerprint: String,
    outline: Outline,
    generation: Option<KernelGeneration>,
}

/// Content of the state file.
#[derive(Debug, Serialize, Deserialize)]
struct Applied {
    fingerprint: String,
    salt: String,
    table: Table,
}

impl NftablesPlane {
    /// Reads the table of an earlier process, and trusts the state file if the kernel's
    /// state still matches it.
    ///
    /// # Errors
    /// nft cannot be used.
    pub async fn open(nft: Nft, state: StateDirectory) -> Result<Self, Error> {
        let mut kernel = Self {
            nft,
            line: NetlinkConnection::default(),
            state,
            belief: Belief::Foreign(String::new()),
            renderer: Renderer::default(),
            wanted: Table::default(),
            salt: String::new(),
            generation: None,
            settled: None,
            committed_at: Instant::now(),
            counting: None,
        };
        kernel.read().await?;
        Ok(kernel)
    }

    async fn read(&mut self) -> Result<(), Error> {
        let generation = self.line.generation();
        let Some(listing) = self.nft.list().await? else {
            self.belief = Belief::Known(Table::default());
            self.generation = generation;
            return Ok(());
        };
        let (fingerprint, outline) = (fingerprint(&listing), Outline::of(&listing));
        let applied = self.remembered().filter(|applied| applied.fingerprint == fingerprint);
        match applied {
            Some(Applied { table, salt, .. }) => {
                tracing::info!(chains = table.chains.len(), "table-unchanged-since-last-run");
                self.belief = Belief::Known(table.clone());
                self.wanted = table;
                self.salt = salt;
                self.generation = generation;
                self.settled = Some(Settled { fingerprint, outline, generation });
            }
            None => {
                tracing::info!("table-modified-since-last-run");
                self.belief = Belief::Foreign(listing);
                // Detects a foreign change before our first transaction.
                self.settled = Some(Settled { fingerprint, outline, generation });
            }
        }
        Ok(())
    }

    fn remembered(&self) -> Option<Applied> {
        runtime::json::from_slice(&self.state.load(FILE)?).ok()
    }

    /// Writes the whole table again, in place if possible.
    async fn write_again(&mut self, listing: &str, ruleset: &Ruleset) -> Result<(), Error> {
        let salt = self.new_salt();
        let wanted = self.renderer.render(ruleset, &salt);
        self.expect(ruleset, &salt);
        let in_place = diff(&suspect(listing, &wanted), &wanted, Sweep::Later);
        match self.commit(in_place, Scope::Everything).await {
            Err(Error::Refused(_)) => {
                self.commit(vec![replace(&wanted)], Scope::Everything).await?;
                tracing::info!("table-replaced");
            }
            committed => {
                committed?;
                tracing::debug!("table-rewritten");
            }
        }
        (self.salt, self.wanted) = (salt, wanted);
        Ok(())
    }

    fn new_salt(&mut self) -> String {
        self.line.generation().map(KernelGeneration::salt).unwrap_or_default()
    }

    /// Commits the transactions in order.
    async fn commit(&mut self, changes: Vec<Change>, scope: Scope) -> Result<(), Error> {
        let mut right = scope == Scope::Everything || self.alone();
        for Change { script, orders, parts, after } in changes {
            if script.starts_with(&remove()) {
                self.lose();
            }
            let before = self.line.generation();
            right &= scope == Scope::Everything || before == self.generation;
            let mut step = if self.order(orders, before).await {
                self.follows(before)
            } else {
                self.apply_script(&script, before).await
            };
            if let Err(Error::TooLong) = step
                && !parts.is_empty()
            {
                step = self.apply_in_parts(&parts, before).await;
            }
            let (now, follows) = step?;
            right &= follows;
            self.generation = now.filter(|_| right);
            self.belief = Belief::Known(after);
            self.settled = None;
            self.committed_at = Instant::now();
        }
        Ok(())
    }

    /// The nf_tables generation after a script, and whether no other process changed
    /// anything since `before`. The kernel rejects netlink operations when it is no longer at
    /// `before`: read again here, the generation would hide the foreign change that caused that.
    async fn apply_script(
        &mut self,
        script: &str,
        before: Option<KernelGeneration>,
    ) -> Result<(Option<KernelGeneration>, bool), Error> {
        if let Err(error) = self.nft.apply(script).await {
            // The script may have been applied nevertheless: assume nothing.
            if let Error::Hangs | Error::Run { .. } = error {
                self.generation = None;
            }
            return Err(error);
        }
        self.follows(before)
    }

    /// Applies a change of chains without traffic, in transactions that each fit into
    /// one netlink message.
    async fn apply_in_parts(
        &mut self,
        parts: &[String],
        before: Option<KernelGeneration>,
    ) -> Result<(Option<KernelGeneration>, bool), Error> {
        tracing::debug!(parts = parts.len(), "change-split");
        let (mut now, mut right) = (before, true);
        for (index, part) in parts.iter().enumerate() {
            let step = self.apply_script(part, now).await;
            if step.is_err() && index > 0 {
                // The change is partly applied: assume nothing.
                self.belief = Belief::Foreign(self.nft.list().await?.unwrap_or_default());
                self.generation = None;
            }
            let follows;
            (now, follows) = step?;
            right &= follows;
        }
        Ok((now, right))
    }

    /// The nf_tables generation, and whether it is the successor of `before`.
    ///
    /// # Errors
    /// The kernel has not changed at all.
    fn follows(
        &mut self,
        before: Option<KernelGeneration>,
    ) -> Result<(Option<KernelGeneration>, bool), Error> {
        let now = self.line.generation();
        let pair = now.zip(before);
        if pair.is_some_and(|(now, before)| now == before) {
            self.generation = None;
            let (program, state) = (self.nft.name(), "has not changed".to_owned());
            return Err(Error::NotSeen { program, state });
        }
        Ok((now, pair.is_some_and(|(now, before)| now.follows(before))))
    }

    /// Whether netlink operations were applied; if not, nft has to try them and report
    /// the error.
    async fn order(&mut self, orders: Vec<NftOp>, before: Option<KernelGeneration>) -> bool {
        let Some(before) = before else { return false };
        if orders.is_empty() {
            return false;
        }
        let Err(error) = self.line.commit(orders, before).await else { return true };
        tracing::info!(error = %error, "netlink-commit-rejected.falling-back-to-nft");
        false
    }

    /// Whether no other process changed anything since our last transaction.
    fn alone(&mut self) -> bool {
        self.generation.is_some() && self.generation == self.line.generation()
    }

    async fn remember(&self, fingerprint: &str) {
        let applied = Applied {
            fingerprint: fingerprint.to_owned(),
            salt: self.salt.clone(),
            table: self.wanted.clone(),
        };
        let content = move || serde_json::to_vec(&applied).expect("a table of texts");
        self.state.save(FILE, content).await;
    }
}

#[async_trait]
impl Plane for NftablesPlane {
    async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        if let Belief::Known(applied) = &self.belief {
            let wanted = self.renderer.render(ruleset, &self.salt);
            let changes = diff(applied, &wanted, Sweep::Later);
            let salt = self.salt.clone();
            self.expect(ruleset, &salt);
            let changed = !changes.is_empty();
            let as_left = self.alone();
            match self.commit(changes, Scope::Difference).await {
                Ok(()) => {
                    self.wanted = wanted;
                    return Ok(changed);
                }
                Err(Error::Refused(_)) if !as_left => {}
                Err(error) => return Err(error),
            }
        }
        // The kernel's state is foreign or unknown.
        let listing = match &mut self.belief {
            Belief::Foreign(listing) => std::mem::take(listing),
            Belief::Known(_) => self.nft.list().await?.unwrap_or_default(),
        };
        let written = self.write_again(&listing, ruleset).await;
        if written.is_err() {
            self.belief = Belief::Foreign(listing);
        }
        written.map(|()| true)
    }

    async fn restore(&mut self) -> Result<bool, Error> {
        if self.wanted == Table::default() {
            return Ok(false);
        }
        self.commit(vec![replace(&self.wanted)], Scope::Everything).await?;
        tracing::info!("table-replaced");
        Ok(true)
    }

    async fn check(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let table = render(ruleset, "");
        match self.nft.check(&replace(&table).script).await {
            Err(Error::TooLong) => {}
            checked => return checked,
        }
        for trial in trials(&table) {
            self.nft.check(&trial).await?;
        }
        Ok(())
    }

    async fn dry_run(&mut self, ruleset: &Ruleset) -> Result<Vec<Transaction>, Error> {
        let new_salt = self.new_salt();
        let (applied, wanted, is_known) = match &self.belief {
            Belief::Known(applied) => (applied.clone(), render(ruleset, &self.salt), true),
            Belief::Foreign(listing) => {
                let wanted = render(ruleset, &new_salt);
                (suspect(listing, &wanted), wanted, false)
            }
        };
        let mut changes: Vec<Change> = Vec::new();
        for sweep in [Sweep::Later, Sweep::Now] {
            let from = changes.last().map_or(&applied, |change| &change.after);
            let more = diff(from, &wanted, sweep);
            let may_replace = !more.is_empty() && (sweep == Sweep::Now || !is_known);
            let all = [changes.as_slice(), &more].concat();
            let script: String = all.iter().map(|change| change.script.as_str()).collect();
            match self.nft.check(&script).await {
                Err(Error::Refused(_)) if may_replace => changes.push(replace(&wanted)),
                accepted => {
                    accepted?;
                    changes = all;
                }
            }
        }
        Ok(changes.into_iter().map(|change| Transaction::of_nft(change.script)).collect())
    }

    async fn drifted(&mut self, thoroughly: bool) -> Result<Option<Drift>, Error> {
        let Some(settled) = &mut self.settled else { return Ok(None) };
        let generation = self.line.generation();
        if !thoroughly && generation.is_some() && generation == settled.generation {
            return Ok(None);
        }
        let listing = self.nft.list().await?.unwrap_or_default();
        if fingerprint(&listing) == settled.fingerprint {
            settled.generation = generation;
            self.generation = generation;
            return Ok(None);
        }
        let drift = settled.outline.drift(&listing, &self.wanted);
        if let Some(counting) = &mut self.counting {
            counting.lose();
        }
        self.belief = Belief::Foreign(listing);
        self.settled = None;
        Ok(Some(drift))
    }

    async fn sweep(&mut self, ruleset: &Ruleset) -> Result<(), Error> {
        if !self.alone() {
            let listing = self.nft.list().await?.unwrap_or_default();
            self.write_again(&listing, ruleset).await?;
        }
        let Belief::Known(applied) = &self.belief else { return Ok(()) };
        let changes = diff(applied, &self.wanted, Sweep::Now);
        if changes.is_empty() {
            return Ok(());
        }
        let gone = applied.chains.keys().filter(|name| !self.wanted.chains.contains_key(*name));
        let gone: Vec<String> = gone.cloned().collect();
        sleep_until(self.committed_at + QUIET).await;
        self.count_last(gone).await;
        match self.commit(changes, Scope::Difference).await {
            // Others may have added references to leftovers.
            Err(Error::Refused(_)) => {
                self.commit(vec![replace(&self.wanted)], Scope::Everything).await?;
                tracing::info!("table-replaced");
                Ok(())
            }
            committed => committed,
        }
    }

    async fn settle(&mut self) -> Result<bool, Error> {
        let listing = self.nft.list().await?.unwrap_or_default();
        let (fingerprint, outline) = (fingerprint(&listing), Outline::of(&listing));
        if !self.alone() {
            return Ok(false);
        }
        self.remember(&fingerprint).await;
        self.settled = Some(Settled { fingerprint, outline, generation: self.generation });
        Ok(true)
    }

    fn status(&self) -> Status {
        let holds_rules = match &self.belief {
            Belief::Known(table) => !table.chains.is_empty(),
            Belief::Foreign(listing) => !listing.is_empty(),
        };
        let rules = self.wanted.chains.values().map(|chain| chain.rules.len() as u64).sum();
        Status { rules, holds_rules, ..Status::default() }
    }

    async fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        self.line.counters()
    }

    async fn uses(&mut self) -> Option<Uses> {
        self.read_uses().await
    }

    async fn unattributed_sources(&self) -> String {
        let mut found = Vec::new();
        for set in UNATTRIBUTED_SETS {
            found.extend(self.nft.elements(set).await.unwrap_or_default());
        }
        found.truncate(UNATTRIBUTED_LOGGED);
        let found: Vec<String> = found.iter().map(|source| source.replace(" . ", " ")).collect();
        found.join(", ")
    }
}
