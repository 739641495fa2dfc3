//! One-shot modes: `--once` makes the kernel match the inputs and exits, `--dry-run`
//! prints the transactions that this would take.
//!
//! - Both use the agent's own reconcile loop, once; a dry run passes its transactions
//!   to a data plane that checks and records them, so the printed transactions are
//!   those that would be applied.
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
        Plane, Rehearsed,
        iptables::{IptablesPlane, programs::Iptables},
        nftables::{NftablesPlane, diff, nft::Nft},
    },
    reconcile::{Outcome, Reconciler},
    state::StateDirectory,
};

/// The flag for one reconcile cycle.
pub const ONCE: Flag = Flag {
    name: "once",
    help: "Bring the rules in force once and exit: 0 if the newest are in force for every container",
    prints: false,
};

/// The flag for a dry run.
pub const DRY_RUN: Flag = Flag {
    name: "dry-run",
    help: "Print the transactions that would change the kernel now, and change nothing",
    prints: true,
};

/// A one-shot run, bound.
pub struct OneShot {
    config: Config,
    tls: ClientTls,
    state: StateDirectory,
    rehearses: bool,
    /// Held during the run.
    _sockets: Vec<Listener>,
}

impl OneShot {
    /// The requested one-shot run, if any.
    pub(crate) async fn bind(config: &Config, process: &Process) -> anyhow::Result<Option<Self>> {
        let rehearses = process.has(DRY_RUN.name);
        if !rehearses && !process.has(ONCE.name) {
            return Ok(None);
        }
        let config = config.clone();
        let tls = ClientTls::follow(assemble::CERTIFICATE, &config.tls);
        let mut sockets = Vec::new();
        let state = if rehearses {
            StateDirectory::only_read(&config.state_directory)
        } else {
            let one = "only one agent may work on a cell";
            sockets.push(Listener::tcp("control", &config.control_address).await.context(one)?);
            sockets.push(Listener::unix("cell", &config.control_socket).await.context(one)?);
            assemble::open_state(&config)?
        };
        Ok(Some(Self { config, tls, state, rehearses, _sockets: sockets }))
    }

    /// Runs the cycle.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if !self.config.enabled {
            return self.take_away().await;
        }
        let config = &self.config;
        // A starting agent does this before its first cycle.
        let mut before = Vec::new();
        let plane = match self.rehearses {
            true => rehearsing(config, self.state.clone(), &mut before).await?,
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
        let parts =
            Groups { containers: containers.latest(), enforced, known, times: Times::default() };
        let (learner, _link, _refresh) = assemble::learner(config, &self.tls, parts)?;
        let asked = tokio::time::timeout(config.force_timeout, learner.fetch()).await;
        let asked =
            asked.unwrap_or_else(|_| Err(format!("no answer in {:?}", config.force_timeout)));
        let outcome = reconciler.once().await?;
        if self.rehearses {
            print(&[before, outcome.rehearsed.clone()].concat())?;
        } else if asked.is_ok() {
            let known = groups.borrow().clone();
            let _told = groups::save(&self.state, known).await;
        }
        judge(asked, &outcome)
    }

    /// Deletes our table; nothing else is left to do while enforcement is disabled.
    async fn take_away(self) -> anyhow::Result<()> {
        let DataPlane::Nftables = self.config.plane else { return Ok(()) };
        let mut nft = Nft::new(&self.config.nft);
        match (self.rehearses, nft.list().await?) {
            (true, None) => print(&[]),
            (true, Some(_)) => print(&[removal()]),
            (false, _) => assemble::take_away(&mut nft).await,
        }
    }
}

/// The data plane in dry-run mode.
async fn rehearsing(
    config: &Config,
    state: StateDirectory,
    before: &mut Vec<Rehearsed>,
) -> anyhow::Result<Box<dyn Plane>> {
    let nft = Nft::new(&config.nft).rehearsing();
    Ok(match &config.plane {
        DataPlane::Nftables => Box::new(NftablesPlane::open(nft, state).await?),
        DataPlane::Iptables { path, lock } => {
            if let Ok(Some(_)) = nft.list().await {
                before.push(removal());
            }
            Box::new(IptablesPlane::open(Iptables::new(path, lock).rehearsing()).await?)
        }
    })
}

fn removal() -> Rehearsed {
    ("nft -f -".to_owned(), diff::remove())
}

fn print(rehearsed: &[Rehearsed]) -> anyhow::Result<()> {
    let text = transactions(rehearsed);
    io::stdout().lock().write_all(text.as_bytes()).context("standard output")
}

/// Each transaction below a comment that says how it would be applied.
fn transactions(rehearsed: &[Rehearsed]) -> String {
    if rehearsed.is_empty() {
        return "# nothing to change\n".to_owned();
    }
    let count = rehearsed.len();
    let numbered = (1..).zip(rehearsed);
    let text = numbered.map(|(number, (command, text))| {
        format!("# transaction {number} of {count}: {command}\n{text}")
    });
    text.collect()
}

/// Fails unless the newest rules are, or would be, in force for every container.
fn judge(asked: Result<(), String>, outcome: &Outcome) -> anyhow::Result<()> {
    let Outcome { enforced, holding, rehearsed: _ } = outcome;
    let mut problems = Vec::new();
    if let Err(reason) = asked {
        problems.push(format!("the security groups cannot be asked for: {reason}"));
    }
    if *holding {
        problems.push("no groups are known, so the kernel keeps what it has".to_owned());
    }
    problems.extend(enforced.error.clone());
    let waiting = enforced.waiting.iter();
    problems.extend(waiting.map(|(handle, reason)| format!("container {handle} waits: {reason}")));
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(())
}
