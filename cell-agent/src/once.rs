//! One-shot modes: `--once` makes the kernel match the inputs and exits, `--dry-run`
//! prints the transactions that this would take.
//!
//! - Both make the same plan and compute the same differences. `--once` applies them; a
//!   dry run prints them, and asks the kernel only whether it accepts them.
//! - The groups are fetched once. If the source does not respond, the last good groups
//!   are used, and the run fails nevertheless: a caller must not take an old state for
//!   a new one.
//! - Only one agent works on a cell: `--once` holds the agent's sockets. A dry run may
//!   run beside an agent, and writes nothing, neither to the kernel nor to disk.

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use runtime::{
    process::{Flag, Process},
    server::Listener,
    tls::ClientTls,
};
use tokio::sync::watch;

use crate::{
    assemble::{self, Groups},
    config::{Config, DataPlane},
    containers::{Feed, StoreFile},
    groups,
    metrics::Times,
    plane::{
        Transaction,
        nftables::{diff, nft::Nft},
    },
    reconcile::{Outcome, Reconciler},
    state::StateDirectory,
};

/// The flag for one reconcile cycle.
pub const ONCE: Flag = Flag {
    name: "once",
    help: "Apply the rules once and exit: 0 if the newest groups are in force for all containers, \
           otherwise 1",
    prints: false,
};

/// The flag for a dry run.
pub const DRY_RUN: Flag = Flag {
    name: "dry-run",
    help: "Print the transactions that --once would apply, without changing the kernel, and exit",
    prints: true,
};

/// A one-shot run, bound.
pub struct OneShot {
    config: Config,
    tls: ClientTls,
    state: StateDirectory,
    is_dry_run: bool,
    /// Held during the run.
    _sockets: Vec<Listener>,
}

impl OneShot {
    /// The requested one-shot run, if any.
    pub(crate) async fn bind(config: &Config, process: &Process) -> anyhow::Result<Option<Self>> {
        let is_dry_run = process.has(DRY_RUN.name);
        if !is_dry_run && !process.has(ONCE.name) {
            return Ok(None);
        }
        let mut config = config.clone();
        assemble::only_with_nflog(&mut config.settings);
        let tls = ClientTls::follow(assemble::CERTIFICATE, &config.tls);
        let mut sockets = Vec::new();
        let state = if is_dry_run {
            StateDirectory::only_read(&config.state_directory)
        } else {
            let one = "only one agent may work on a cell";
            sockets.push(Listener::tcp("control", &config.control_address).await.context(one)?);
            sockets.push(Listener::unix("cell", &config.control_socket).await.context(one)?);
            assemble::open_state(&config)?
        };
        Ok(Some(Self { config, tls, state, is_dry_run, _sockets: sockets }))
    }

    /// Runs the cycle.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if !self.config.enabled {
            return self.take_away().await;
        }
        let config = &self.config;
        let plane = match self.is_dry_run {
            true => assemble::open_plane(config, self.state.clone()).await?,
            false => assemble::plane(config, self.state.clone()).await?,
        };
        let (containers, follower) = Feed::open(
            StoreFile::new(&config.container_store, assemble::LOCK_TIMEOUT),
            Times::default(),
        )
        .await;
        if let Some(reason) = follower.failing() {
            bail!("the container metadata store cannot be read: {reason}");
        }
        let (known, groups) = watch::channel(groups::load(&self.state));
        let inputs =
            assemble::inputs(config, containers.latest(), groups.clone(), Times::default());
        let (reconciler, enforced, _nudge) = Reconciler::new(inputs, plane);
        let parts = Groups {
            containers: containers.latest(),
            enforced,
            known,
            times: Times::default(),
            questions: None,
            uses: None,
        };
        let (learner, _link, _refresh) = assemble::learner(config, &self.tls, parts)?;
        let asked = tokio::time::timeout(config.force_timeout, learner.fetch()).await;
        let asked =
            asked.unwrap_or_else(|_| Err(format!("no answer in {:?}", config.force_timeout)));
        if self.is_dry_run {
            let (transactions, outcome) = reconciler.dry_run().await?;
            print(&[self.before().await, transactions].concat())?;
            return judge(asked, &outcome);
        }
        let outcome = reconciler.once().await?;
        if asked.is_ok() {
            let known = groups.borrow().clone();
            let _told = groups::save(&self.state, known).await;
        }
        judge(asked, &outcome)
    }

    /// The transactions of [`assemble::plane`].
    async fn before(&self) -> Vec<Transaction> {
        let DataPlane::Iptables { .. } = self.config.plane else { return Vec::new() };
        let listing = Nft::new(&self.config.nft).list().await;
        listing.ok().flatten().map(|_| removal()).into_iter().collect()
    }

    /// Deletes our table; nothing else is left to do while enforcement is disabled.
    async fn take_away(self) -> anyhow::Result<()> {
        let DataPlane::Nftables = self.config.plane else { return Ok(()) };
        let mut nft = Nft::new(&self.config.nft);
        match (self.is_dry_run, nft.list().await?) {
            (true, None) => print(&[]),
            (true, Some(_)) => print(&[removal()]),
            (false, _) => assemble::take_away(&mut nft).await,
        }
    }
}

fn removal() -> Transaction {
    Transaction::of_nft(diff::remove())
}

fn print(transactions: &[Transaction]) -> anyhow::Result<()> {
    io::stdout().lock().write_all(text(transactions).as_bytes()).context("standard output")
}

/// Each transaction below a comment that says how it would be applied.
fn text(transactions: &[Transaction]) -> String {
    if transactions.is_empty() {
        return "# nothing to change\n".to_owned();
    }
    let count = transactions.len();
    let numbered = (1..).zip(transactions);
    let text = numbered.map(|(number, Transaction { command, text })| {
        format!("# transaction {number} of {count}: {command}\n{text}")
    });
    text.collect()
}

/// Fails unless the newest rules are, or would be, in force for every container.
fn judge(asked: Result<(), String>, outcome: &Outcome) -> anyhow::Result<()> {
    let Outcome { error, waiting, holding } = outcome;
    let mut problems = Vec::new();
    if let Err(reason) = asked {
        problems.push(format!("the security groups cannot be asked for: {reason}"));
    }
    if *holding {
        problems.push("no groups are known, so the kernel keeps what it has".to_owned());
    }
    problems.extend(error.clone());
    problems.extend(
        waiting.iter().map(|(handle, reason)| format!("container {handle} waits: {reason}")),
    );
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(())
}
