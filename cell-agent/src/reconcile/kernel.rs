//! What the kernel is believed to hold, and the steps that change it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    apply::{Error, Nft},
    diff::{Change, Sweep, diff, objects, replace, rewrite},
    drift::{KernelGeneration, fingerprint},
    render::table::Table,
    state::StateDirectory,
};

/// The state file that says what the kernel holds.
const FILE: &str = "applied";

/// Our table in the kernel.
#[derive(Debug)]
pub struct Kernel {
    nft: Nft,
    state: StateDirectory,
    belief: Belief,
    /// What is wanted, without leftovers that are still in the kernel.
    wanted: Table,
    /// After the last transaction, if nobody else was at work since the one
    /// before.
    generation: Option<KernelGeneration>,
    settled: Option<Settled>,
}

/// What we know of the kernel.
#[derive(Debug)]
enum Belief {
    /// Our last transaction left this.
    Known(Table),
    /// There may be anything; at least things of these kinds and names.
    Strange(BTreeSet<(String, String)>),
}

/// How the kernel looked when nothing was left to do.
#[derive(Debug)]
struct Settled {
    fingerprint: String,
    generation: Option<KernelGeneration>,
}

/// What the state file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Applied {
    fingerprint: String,
    table: Table,
}

impl Kernel {
    /// Nothing is known of the kernel until [`Self::recover`].
    #[must_use]
    pub fn new(nft: Nft, state: StateDirectory) -> Self {
        Self {
            nft,
            state,
            belief: Belief::Strange(BTreeSet::new()),
            wanted: Table::default(),
            generation: None,
            settled: None,
        }
    }

    /// Finds out what an earlier process left, and believes the state file if the
    /// kernel still looks as it did then.
    pub(super) async fn recover(&mut self) -> Result<(), Error> {
        let generation = KernelGeneration::now().ok();
        let Some(listing) = self.nft.list().await? else {
            self.belief = Belief::Known(Table::default());
            self.generation = generation;
            return Ok(());
        };
        let fingerprint = fingerprint(&listing);
        let applied = self.remembered().filter(|applied| applied.fingerprint == fingerprint);
        match applied {
            Some(Applied { table, .. }) => {
                tracing::info!(chains = table.chains.len(), "own-table-recognised");
                self.belief = Belief::Known(table.clone());
                self.wanted = table;
                self.generation = generation;
                self.settled = Some(Settled { fingerprint, generation });
            }
            None => {
                tracing::info!("own-table-not-as-left");
                self.belief = Belief::Strange(objects(&listing));
            }
        }
        Ok(())
    }

    fn remembered(&self) -> Option<Applied> {
        match self.state.read(FILE) {
            Ok(content) => content.and_then(|content| serde_json::from_slice(&content).ok()),
            Err(error) => {
                tracing::error!(error = %error, file = FILE, "state-unreadable");
                None
            }
        }
    }

    /// Whether any rule of ours may be in the kernel.
    pub(super) fn holds_rules(&self) -> bool {
        match &self.belief {
            Belief::Known(table) => !table.chains.is_empty(),
            Belief::Strange(found) => !found.is_empty(),
        }
    }

    /// Makes the kernel hold `wanted`; unused chains may be left in it. Whether
    /// there was anything to do.
    pub(super) async fn bring(&mut self, wanted: Table) -> Result<bool, Error> {
        let change = match &self.belief {
            Belief::Known(applied) => match diff(applied, &wanted, Sweep::Later) {
                Some(change) => change,
                None => {
                    self.wanted = wanted;
                    return Ok(false);
                }
            },
            Belief::Strange(found) => rewrite(found, &wanted),
        };
        match self.commit(change).await {
            Err(Error::Refused(_)) => self.bring_anyhow(&wanted).await?,
            committed => committed?,
        }
        self.wanted = wanted;
        Ok(true)
    }

    /// The kernel may be other than it was believed to be, or the table be of
    /// another shape.
    async fn bring_anyhow(&mut self, wanted: &Table) -> Result<(), Error> {
        let listing = self.nft.list().await?.unwrap_or_default();
        match self.commit(rewrite(&objects(&listing), wanted)).await {
            Err(Error::Refused(_)) => self.commit(replace(wanted)).await,
            committed => committed,
        }
    }

    async fn commit(&mut self, change: Change) -> Result<(), Error> {
        let Change { script, after } = change;
        let before = KernelGeneration::now().ok();
        self.nft.apply(&script).await?;
        let alone = match &self.belief {
            Belief::Known(_) => before == self.generation,
            Belief::Strange(_) => true,
        };
        self.generation = KernelGeneration::now()
            .ok()
            .filter(|now| alone && before.is_some_and(|before| now.follows(before)));
        self.belief = Belief::Known(after);
        self.settled = None;
        Ok(())
    }

    /// Whether the kernel would take this table, if there were none.
    pub(super) async fn check(&self, table: &Table) -> Result<(), Error> {
        self.nft.check(&replace(table).script).await
    }

    /// Sweeps unused chains, and writes down how the kernel looks now. If others
    /// were at work in between, everything is written again first, so that what
    /// is written down is right.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        let Belief::Known(applied) = &self.belief else { return Ok(()) };
        let alone = self.generation.is_some() && self.generation == KernelGeneration::now().ok();
        let change = if alone {
            diff(applied, &self.wanted, Sweep::Now)
        } else {
            let listing = self.nft.list().await?.unwrap_or_default();
            Some(rewrite(&objects(&listing), &self.wanted))
        };
        if let Some(change) = change {
            self.commit(change).await?;
        }
        let generation = KernelGeneration::now().ok();
        let fingerprint = fingerprint(&self.nft.list().await?.unwrap_or_default());
        self.remember(&fingerprint).await;
        self.generation = generation;
        self.settled = Some(Settled { fingerprint, generation });
        Ok(())
    }

    async fn remember(&self, fingerprint: &str) {
        let applied = Applied { fingerprint: fingerprint.to_owned(), table: self.wanted.clone() };
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || {
            let content = serde_json::to_vec(&applied).expect("a table of texts");
            state.write(FILE, &content)
        });
        if let Err(error) = written.await.expect("writing does not panic") {
            tracing::error!(error = %error, file = FILE, "state-not-written");
        }
    }

    /// Whether somebody else changed our table since it settled; it is strange
    /// from then on. Not thoroughly means only if anybody changed anything.
    pub(super) async fn has_strayed(&mut self, thoroughly: bool) -> Result<bool, Error> {
        let Some(settled) = &mut self.settled else { return Ok(false) };
        let generation = KernelGeneration::now().ok();
        if !thoroughly && generation.is_some() && generation == settled.generation {
            return Ok(false);
        }
        let listing = self.nft.list().await?.unwrap_or_default();
        if fingerprint(&listing) == settled.fingerprint {
            settled.generation = generation;
            self.generation = generation;
            return Ok(false);
        }
        self.belief = Belief::Strange(objects(&listing));
        self.settled = None;
        Ok(true)
    }
}
