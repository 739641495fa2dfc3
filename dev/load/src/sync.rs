//! Measures a syncer with a large foundation: time until the store has all groups,
//! memory and CPU time.
//!
//! All parts are separate processes: the development Cloud Controller, behind TLS, is
//! filled through its API; then each round has its own lock server, policy store and
//! syncer. Figures of an applied sync are taken from the syncer's log, its resource
//! usage from the kernel.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::cloud::{Api, Changing, fill};
use super::meter::Reading;
use super::report::mebibytes;
use super::server::{Cloud, Server, Site};
use super::store::data::{Data, Shape};
use super::{positive_length, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the binaries [default: directory of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Bind the groups to the same spaces for staging as well
    #[arg(long)]
    staging: bool,
    /// Number of rounds, each with a new syncer and a new store
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Time without changes in which the idle syncer is measured
    #[arg(long, default_value = "10s", value_parser = positive_length)]
    idle: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// One syncer, from its start to its end.
#[derive(Debug, Serialize)]
struct Round {
    /// The first sync, into an empty store.
    first: Sync,
    /// After one rule of one group was changed.
    change: Sync,
    /// Milliseconds from the Cloud Controller's response to the change until the change
    /// was applied.
    change_seen_ms: f64,
    /// CPU milliseconds of a poll without a change.
    idle_poll_cpu_ms: f64,
    /// Cores used by all other processes meanwhile, including those of this
    /// measurement.
    other_cores: f64,
}

#[derive(Debug, Serialize)]
struct Sync {
    /// The data of the syncer's log line.
    applied: Value,
    /// CPU milliseconds of the syncer; for the first sync since its start.
    cpu_ms: f64,
    /// Peak memory of the syncer until then, in bytes.
    peak: u64,
}

const APPLIED: &str = "applied-security-groups";
/// Upper bound of the syncer's default poll interval with the development Cloud Controller.
const POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut site = Site::new(arguments.bin_dir.clone())?;
    let cloud = site.cloud_controller().await?;
    let api = Api::login(&cloud).await?;
    let data = Data::new(&arguments.shape);
    let changing = fill(&api, &data, arguments.staging).await?.changing;
    let mut rounds = Vec::new();
    for number in 0..arguments.rounds {
        let round = round(&mut site, &cloud, &api, &changing, number, arguments.idle).await;
        rounds.push(round.with_context(|| format!("round {}", number + 1))?);
    }
    cloud.server.end().await?;
    match arguments.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&rounds)?)),
        false => say(&text(&arguments.shape, &rounds)),
    }
}

async fn round(
    site: &mut Site,
    cloud: &Cloud,
    api: &Api,
    changing: &Changing,
    number: u32,
    idle: Duration,
) -> anyhow::Result<Round> {
    let locks = site.lock_server(None).await?;
    let (store, ends) = site.policy_store().await?;
    let began = (Instant::now(), Reading::take(None)?);
    let mut syncer = site.syncer(cloud, &locks, &ends.writer)?;
    let first = applied(&mut syncer, Duration::ZERO, |_| true).await?;
    let before = syncer.usage()?.cpu;
    sleep(idle).await;
    let polls = idle.div_duration_f64(POLL).max(1.0);
    let idle_cpu = syncer.usage()?.cpu - before;

    let mut rules = changing.rules.clone();
    rules.push(json!({ "protocol": "all", "destination": format!("192.0.2.{}", number % 256) }));
    let before = syncer.usage()?.cpu;
    api.call(Method::PATCH, &changing.path, &json!({ "rules": rules })).await?;
    let changed = Instant::now();
    let change = applied(&mut syncer, before, |data| data["changed"] == 1).await?;
    let change_seen_ms = changed.elapsed().as_secs_f64() * 1e3;
    let cost = Reading::take(None)?.since(&began.1, began.0.elapsed(), 1);
    for server in [syncer, store, locks] {
        server.end().await?;
    }
    let idle_poll_cpu_ms = idle_cpu.as_secs_f64() * 1e3 / polls;
    Ok(Round { first, change, change_seen_ms, idle_poll_cpu_ms, other_cores: cost.other_cores })
}

/// Waits for a sync with this log line; `before` is the syncer's CPU time before the
/// sync.
async fn applied(
    syncer: &mut Server,
    before: Duration,
    fits: impl Fn(&Value) -> bool,
) -> anyhow::Result<Sync> {
    let applied = syncer.log_line(APPLIED, fits).await?;
    let usage = syncer.usage()?;
    let cpu_ms = (usage.cpu - before).as_secs_f64() * 1e3;
    Ok(Sync { applied, cpu_ms, peak: usage.peak })
}

fn text(shape: &Shape, rounds: &[Round]) -> String {
    let Shape { groups, rules, bindings, .. } = shape;
    let mut text = format!("{groups} groups, {rules} rules and {bindings} spaces each\n");
    for (number, round) in rounds.iter().enumerate() {
        let Round { first, change, change_seen_ms, idle_poll_cpu_ms, other_cores } = round;
        text += &format!(
            "\nround {}\n{}{}one change seen after {change_seen_ms:.0} ms\n\
             a poll without a change takes {idle_poll_cpu_ms:.2} ms of CPU\n\
             others {other_cores:.2} cores\n",
            number + 1,
            sync_text("first sync", first),
            sync_text("one change", change),
        );
    }
    text
}

fn sync_text(name: &str, sync: &Sync) -> String {
    let Sync { applied, cpu_ms, peak } = sync;
    let number = |key: &str| applied[key].as_u64().unwrap_or_default();
    let (read, store) = (number("read-ms"), number("store-ms"));
    format!(
        "{name}  {} ms: list {read} ms, store {store} ms; CPU {cpu_ms:.0} ms; {:.1} MiB at most; \
         {} added, {} changed, {} unchanged\n",
        read + store,
        mebibytes(*peak),
        number("added"),
        number("changed"),
        number("unchanged"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_told() {
        let sync = |peak, applied| Sync { applied, cpu_ms: 120.0, peak };
        let shape = Shape {
            groups: 5,
            global: 0,
            rules: 2,
            bindings: 1,
            staging_bindings: 0,
            scattered: false,
            spaces: 3,
        };
        let round = Round {
            first: sync(20 << 20, json!({ "added": 7, "read-ms": 30, "store-ms": 12 })),
            change: sync(22 << 20, json!({ "changed": 1, "unchanged": 6 })),
            change_seen_ms: 700.4,
            idle_poll_cpu_ms: 0.25,
            other_cores: 0.5,
        };
        let text = text(&shape, &[round]);
        for part in [
            "5 groups, 2 rules and 1 spaces each",
            "first sync  42 ms: list 30 ms, store 12 ms; CPU 120 ms; 20.0 MiB at most; 7 added",
            "1 changed, 6 unchanged",
            "seen after 700 ms",
            "0.25 ms of CPU",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
