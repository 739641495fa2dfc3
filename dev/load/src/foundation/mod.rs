//! A whole foundation under load: a development Cloud Controller, a syncer, a lock server and
//! policy stores, many real cell agents in network namespaces of their own, and simulated
//! cells. Measures changes until packets pass, the start of all cells, and what happens when
//! the stores are killed and all cells come back.
//!
//! Invariants:
//! - The tool is in a network namespace of its own, which has no name, and so is each cell: the
//!   kernel removes everything when the tool ends, for whatever reason. The processes die with
//!   the tool.
//! - All times are taken on one machine; everything shares its processors.

mod agents;
mod changes;
mod costs;
mod ground;
mod herd;
mod limits;
mod probes;
mod report;
mod simulated;
mod system;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::sleep;

use self::agents::Plan;
use self::changes::{Changes, Measured};
use self::ground::Place;
use self::probes::Probes;
use self::report::Report;
use self::simulated::Simulated;
use self::system::System;
use super::empty::stopped;
use super::store::data::Shape;
use super::{length, positive_length, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the binaries [default: directory of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Number of cells
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    cells: u32,
    /// Number of real cells among them: each with an agent in a network namespace
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=i64::from(ground::MOST)))]
    real: u32,
    /// Number of containers on each cell
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=250))]
    containers: u32,
    #[command(flatten)]
    shape: Shape,
    /// Number of spaces of the containers of a cell
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    cell_spaces: u32,
    /// Number of changes of a global group
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..i64::from(probes::MOST)))]
    changes: u32,
    /// Time from one change to the next one
    #[arg(long, default_value = "1s", value_parser = positive_length)]
    interval: Duration,
    /// Time without changes in which the idle foundation is measured
    #[arg(long, default_value = "20s", value_parser = positive_length)]
    idle: Duration,
    /// Time within which all simulated cells connect
    #[arg(long, default_value = "1s", value_parser = length)]
    connect_within: Duration,
    /// Interval of packets from each real cell until a change is in force there
    #[arg(long, default_value = "10ms", value_parser = positive_length)]
    probe_interval: Duration,
    /// Database of the policy stores; a server is started for it
    #[arg(long, default_value = "sqlite")]
    database: Database,
    /// Number of policy stores; several need a database server
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    stores: u32,
    /// Who changes the groups
    #[arg(long, default_value = "cloud-controller")]
    writer: Kind,
    /// PNG file for a plot of the times of the changes
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Where policy stores keep the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Database {
    /// A file
    Sqlite,
    /// PostgreSQL
    Postgres,
    /// MariaDB
    Mysql,
}

/// The writer of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A development Cloud Controller, a syncer and a lock server
    CloudController,
    /// This tool replaces the groups in the store: no Cloud Controller, syncer and lock server
    Replace,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MariaDB",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloudController => "development Cloud Controller and syncer",
            Self::Replace => "Replace of this tool, without Cloud Controller and syncer",
        })
    }
}

impl Arguments {
    /// Raises limits of the machine, in the machine's own network namespace.
    pub(super) fn raise_limits(&self) -> anyhow::Result<()> {
        limits::raise(self.real)
    }

    /// The first group, which changes, is a global one.
    fn shape(&self) -> Shape {
        Shape { global: self.shape.global.max(1), ..self.shape }
    }
}

/// Prints a line on standard error.
fn progress(text: &str) {
    // If standard error is closed, the line cannot be printed.
    let _ = writeln!(std::io::stderr(), "{}: {text}", jiff::Zoned::now().strftime("%H:%M:%S"));
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { cells, real, stores, database, .. } = &arguments;
    ensure!(real <= cells, "there cannot be more real cells than cells");
    ensure!(*stores == 1 || *database != Database::Sqlite, "SQLite has one store only");
    let stop = stopped()?;
    let (report, measured) = tokio::select! {
        measured = measure(&arguments) => measured?,
        () = stop => bail!("stopped by a signal; all processes end with this tool"),
    };
    if let Some(path) = &arguments.plot {
        report.chart(&measured.packets, &measured.reported).write(path)?;
    }
    match arguments.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
        false => say(&report.text()),
    }
}

/// The report, and the changes in it.
struct Times {
    packets: Vec<Duration>,
    reported: Vec<Duration>,
}

async fn measure(arguments: &Arguments) -> anyhow::Result<(Report, Times)> {
    ground::raise_hub()?;
    progress("building the cells");
    let mut places = Vec::new();
    let mut sockets = Vec::new();
    for number in 0..arguments.real {
        let place = ground::raise_cell(number).await;
        let place = place.with_context(|| format!("building cell {number}"))?;
        sockets.push(place.container.try_clone().context("a socket")?);
        places.push(place);
    }
    progress("starting the services");
    let mut system = System::start(arguments).await?;
    let directory = tempfile::tempdir().context("making a directory for the cells")?;
    let mut cells = system.cells(arguments);
    let others = cells.split_off(arguments.real as usize);
    let mut stores = system.stores();
    let mut plans = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let store = &stores[number % stores.len()];
        plans.push(Plan::write(&mut system.site, store, cell, directory.path())?);
    }
    let mut simulated = Simulated::start(others, &stores)?;
    stores.clear();
    let probes = Probes::start(sockets, arguments.changes + 1, arguments.probe_interval)?;
    let mut run = Run { arguments, system, simulated: &mut simulated, probes: &probes };
    let outcome = run.phases(&plans, &places).await?;
    let system = run.system;
    progress("ending");
    probes.end()?;
    system.end().await?;
    Ok(outcome)
}

/// The phases of the measurement.
struct Run<'a> {
    arguments: &'a Arguments,
    system: System,
    simulated: &'a mut Simulated,
    probes: &'a Probes,
}

impl Run<'_> {
    async fn phases(
        &mut self,
        plans: &[Plan],
        places: &[Place],
    ) -> anyhow::Result<(Report, Times)> {
        let arguments = self.arguments;
        progress(&format!("starting all {} cells", arguments.cells));
        let within = arguments.connect_within;
        let start = herd::start(&mut self.system, self.simulated, plans, places, within).await;
        let start = start.context("the start of all cells")?;
        progress("idle");
        let before = self.system.snapshot()?;
        sleep(arguments.idle).await;
        let idle = self.system.snapshot()?.since(&before);
        progress("changes");
        let Measured { changed, packets, reported } = self.changes(1..=arguments.changes).await?;
        progress("killing the policy stores");
        let restart = herd::restart(&mut self.system, self.simulated, within).await;
        let restart = restart.context("the restart of the stores")?;
        let last = arguments.changes + 1;
        let after_restart = self.changes(last..=last).await?.changed;
        let report = Report {
            cells: arguments.cells,
            real: arguments.real,
            containers: arguments.containers,
            groups: arguments.shape.groups,
            stores: arguments.stores,
            database: arguments.database.to_string(),
            writer: arguments.writer.to_string(),
            start,
            idle,
            changes: changed,
            restart,
            after_restart,
        };
        Ok((report, Times { packets, reported }))
    }

    async fn changes(
        &mut self,
        numbers: std::ops::RangeInclusive<u32>,
    ) -> anyhow::Result<Measured> {
        let Self { arguments, system, simulated, probes } = self;
        Changes { system, simulated, probes }.make(numbers, arguments.interval).await
    }
}
