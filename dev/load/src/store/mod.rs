//! Measures a policy store with its cells: a writer changes a group repeatedly, and
//! each change is timed from the response to the writer until every cell has received
//! it. Then agents of the original poll over HTTP, if requested.

mod containers;
pub mod data;
mod pollers;
pub(super) mod watchers;
pub mod writer;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use self::data::{Data, Shape};
use self::pollers::{Habits, Polled};
use self::watchers::{Cells, Watchers};
use self::writer::{Identity, Writer};
use super::connect::Target;
use super::histogram::{Summary, Tally};
use super::meter::{Cost, Reading, usage};
use super::plot::{Chart, Line, Scale};
use super::report::{costs, mebibytes};
use super::server::{Ends, Site};
use super::{length, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    existing: Existing,
    /// Directory of the binary `policy-store`, which is started if no address is given [default:
    /// directory of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    identity: Identity,
    /// Numbers of simulated cells, separated by commas; measured one after another
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    watchers: Vec<usize>,
    /// Number of spaces per cell
    #[arg(long, default_value_t = 200)]
    cell_spaces: u32,
    /// Number of containers that each simulated cell reports. With 0 a cell reports nothing
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=5000))]
    containers: u32,
    /// Number of changes for each number of cells
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Pause after each change
    #[arg(long, default_value = "200ms", value_parser = length)]
    pause: Duration,
    #[command(flatten)]
    habits: Habits,
    /// PNG file for a plot of propagation over the number of cells
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A store that runs already. Its `cell_id_from` has to be `any`: all simulated
/// cells have the same certificate.
#[derive(Debug, Clone, clap::Args)]
struct Existing {
    /// gRPC address of a running store, host:port [default: a store is started]
    #[arg(long, requires_all = ["ca", "writer_cert", "writer_key", "cell_cert", "cell_key"])]
    address: Option<String>,
    /// PEM file of the CA of all certificates
    #[arg(long)]
    ca: Option<PathBuf>,
    /// PEM file of a writer's certificate
    #[arg(long)]
    writer_cert: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long)]
    writer_key: Option<PathBuf>,
    /// PEM file of the certificate of all cells
    #[arg(long)]
    cell_cert: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long)]
    cell_key: Option<PathBuf>,
    /// Address of the store's HTTP API (policy-server-internal), host:port
    #[arg(long, requires = "address")]
    http_address: Option<String>,
    /// Process id of the store, if it runs on this machine
    #[arg(long)]
    server_pid: Option<u32>,
}

impl Existing {
    fn ends(&self) -> Option<Ends> {
        let Self {
            address,
            ca,
            writer_cert,
            writer_key,
            cell_cert,
            cell_key,
            http_address: http,
            server_pid,
        } = self.clone();
        let (address, ca) = (address?, ca?);
        let (cert, key) = (writer_cert?, writer_key?);
        let writer = Target { address, ca, cert, key, server_pid };
        let cell = Target { cert: cell_cert?, key: cell_key?, ..writer.clone() };
        Some(Ends { writer, cell, http })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    groups: usize,
    /// Milliseconds until an empty store had all groups.
    first_replace_ms: f64,
    /// Milliseconds of a Replace without changes.
    unchanged_replace_ms: f64,
    /// The store's memory afterwards, in bytes.
    resident: Option<u64>,
    stages: Vec<Stage>,
    polled: Option<Polled>,
    /// Cost while the agents polled.
    polling_cost: Option<Cost>,
}

/// Results for one number of cells.
#[derive(Debug, Serialize)]
struct Stage {
    watchers: usize,
    /// Milliseconds until the new cells had their first state, and its size in bytes.
    first_state_ms: f64,
    first_state_bytes: u64,
    /// Duration of a Replace with one changed group.
    replace: Summary,
    /// Delay of each change to each cell, from the response to the writer.
    propagation: Summary,
    /// Delay of each change to the last cell.
    everywhere: Summary,
    cost: Cost,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut site;
    let mut server = None;
    let ends = match arguments.existing.ends() {
        Some(ends) => ends,
        None => {
            site = Site::new(arguments.bin_dir.clone())?;
            let (started, ends) = site.policy_store().await?;
            server = Some(started);
            ends
        }
    };
    let report = measure(&arguments, &ends).await?;
    if let Some(server) = server {
        server.end().await?;
    }
    if let Some(path) = &arguments.plot {
        chart(&report.stages).write(path)?;
    }
    if arguments.json {
        return say(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    say(&text(&report))
}

async fn measure(arguments: &Arguments, ends: &Ends) -> anyhow::Result<Report> {
    let mut data = Data::new(&arguments.shape);
    let channel = ends.writer.channels(1)?.remove(0);
    let mut writer = Writer::new(channel, arguments.identity.clone());
    let first = writer.replace(&data).await.context("the first Replace")?;
    let again = writer.replace(&data).await.context("the second Replace")?;
    let resident = ends.cell.server_pid.map(|pid| usage(&pid.to_string())).transpose()?;
    let mut watchers = Watchers::new();
    let (mut stages, mut revision) = (Vec::new(), 0);
    for &count in arguments.watchers.iter().filter(|count| **count > 0) {
        let began = Instant::now();
        let cells = Cells { spaces: arguments.cell_spaces, containers: arguments.containers };
        let arrived = watchers.grow(count, &ends.cell, &arguments.shape, cells).await?;
        let first_state = (began.elapsed(), arrived.bytes);
        let mut stage = Changes { arguments, ends, writer: &mut writer, watchers: &mut watchers };
        stages.push(stage.measure(count, first_state, &mut data, &mut revision).await?);
    }
    let polling = poll(arguments, ends).await?;
    let (polled, polling_cost) = polling.unzip();
    Ok(Report {
        groups: data.len(),
        first_replace_ms: millis(first.confirmed - first.began),
        unchanged_replace_ms: millis(again.confirmed - again.began),
        resident: resident.map(|usage| usage.resident),
        stages,
        polled,
        polling_cost,
    })
}

async fn poll(arguments: &Arguments, ends: &Ends) -> anyhow::Result<Option<(Polled, Cost)>> {
    if arguments.habits.pollers == 0 {
        return Ok(None);
    }
    let address = ends.http.as_deref().context("--http-address is needed to poll")?;
    let before = Reading::take(ends.cell.server_pid)?;
    let begin = Instant::now();
    let polled = pollers::poll(&arguments.habits, address, &ends.cell, &arguments.shape).await?;
    let after = Reading::take(ends.cell.server_pid)?;
    let cost = after.since(&before, begin.elapsed(), polled.polls.operations);
    Ok(Some((polled, cost)))
}

fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1e3
}

/// The changes with one number of cells.
struct Changes<'a> {
    arguments: &'a Arguments,
    ends: &'a Ends,
    writer: &'a mut Writer,
    watchers: &'a mut Watchers,
}

impl Changes<'_> {
    async fn measure(
        &mut self,
        count: usize,
        (first_state, first_state_bytes): (Duration, u64),
        data: &mut Data,
        revision: &mut u32,
    ) -> anyhow::Result<Stage> {
        let (mut replace, mut propagation, mut everywhere) =
            (Tally::default(), Tally::default(), Tally::default());
        let begin = Instant::now();
        let before = Reading::take(self.ends.cell.server_pid)?;
        for _ in 0..self.arguments.changes {
            *revision += 1;
            data.change(*revision);
            let replaced = self.writer.replace(data).await?;
            replace.success(replaced.confirmed - replaced.began, 0);
            let arrived = self.watchers.all(replaced.generation).await?;
            // A cell may receive the change before the writer receives its response.
            let after =
                arrived.at.iter().map(|at| at.saturating_duration_since(replaced.confirmed));
            everywhere.success(after.clone().max().unwrap_or_default(), 0);
            for took in after {
                propagation.success(took, 0);
            }
            everywhere.add_bytes(arrived.bytes);
            sleep(self.arguments.pause).await;
        }
        let elapsed = begin.elapsed();
        let after = Reading::take(self.ends.cell.server_pid)?;
        Ok(Stage {
            watchers: count,
            first_state_ms: millis(first_state),
            first_state_bytes,
            replace: replace.summary(elapsed),
            propagation: propagation.summary(elapsed),
            everywhere: everywhere.summary(elapsed),
            cost: after.since(&before, elapsed, self.arguments.changes.into()),
        })
    }
}

fn chart(stages: &[Stage]) -> Chart<'static> {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let line = |name: &str, of: &dyn Fn(&Stage) -> f64| Line {
        name: name.to_owned(),
        points: stages.iter().map(|stage| (stage.watchers as f64, of(stage))).collect(),
    };
    let lines = vec![
        line("p50", &|stage| stage.propagation.p50_ms),
        line("p99", &|stage| stage.propagation.p99_ms),
        line("the last cell", &|stage| stage.everywhere.max_ms),
    ];
    Chart {
        title: "From the answer to the writer until cells have the change",
        x: "cells that watch",
        y: "ms",
        lines,
        marks: true,
        scale: Scale::Linear,
    }
}

fn text(report: &Report) -> String {
    let Report { groups, first_replace_ms, unchanged_replace_ms, resident, .. } = report;
    let Report { stages, polled, polling_cost, .. } = report;
    let mut text = format!(
        "Replace of {groups} groups: {first_replace_ms:.0} ms, of the same again: \
         {unchanged_replace_ms:.0} ms\n"
    );
    if let Some(resident) = resident {
        text += &format!("memory of the store after that: {:.0} MiB\n", mebibytes(*resident));
    }
    for stage in stages {
        let Stage { watchers, first_state_ms, first_state_bytes, .. } = stage;
        let Stage { replace, propagation, everywhere, cost, .. } = stage;
        let first_state_bytes = mebibytes(*first_state_bytes);
        let Summary { operations: changes, bytes, p50_ms, max_ms, .. } = everywhere;
        text += &format!(
            "\n{watchers} cells: first state after {first_state_ms:.0} ms, \
             {first_state_bytes:.1} MiB\n\
             Replace of one changed group  p50 {:.1} ms  max {:.1} ms\n\
             propagation to each cell      p50 {:.1} ms  p99 {:.1} ms  max {:.1} ms\n\
             until the last cell has it    p50 {p50_ms:.1} ms  max {max_ms:.1} ms\n\
             {changes} changes, {} bytes each to all cells together\n{}",
            replace.p50_ms,
            replace.max_ms,
            propagation.p50_ms,
            propagation.p99_ms,
            propagation.max_ms,
            bytes / (*changes).max(1),
            costs(cost),
        );
    }
    if let Some(Polled { pollers, seconds, polls }) = polled {
        let Summary { operations, per_second, p50_ms, p99_ms, max_ms, bytes, failures } = polls;
        let each = bytes / (*operations).max(1);
        text += &format!(
            "\n{pollers} agents over HTTP, {seconds:.0} s\n\
             polls    {per_second:.1}/s ({operations}), {each} bytes each\n\
             latency  p50 {p50_ms:.1} ms  p99 {p99_ms:.1} ms  max {max_ms:.1} ms\n"
        );
        for (code, count) in failures {
            text += &format!("failed   {code} {count}\n");
        }
    }
    text + &polling_cost.as_ref().map(costs).unwrap_or_default()
}
