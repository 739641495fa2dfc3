//! Holds many presences and refreshes them like cells do: each at its own time within
//! the interval, so that the calls are spread evenly.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::calls::{Caller, Presences};
use super::connect::Target;
use super::histogram::{Summary, Tally};
use super::locket::{all, failure, shares};
use super::meter::{Cost, Reading, usage};
use super::plot::{Chart, Line, Scale};
use super::report::{costs, mebibytes};
use super::wire::Connection;
use super::{positive_length, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Number of presences
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    presences: u32,
    /// Time to live of the presences in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    ttl: u32,
    /// Interval of refreshes of each presence [default: half of the time to live]
    #[arg(long, value_parser = positive_length)]
    interval: Option<Duration>,
    /// Duration of the measurement
    #[arg(long, default_value = "10m", value_parser = positive_length)]
    duration: Duration,
    /// Number of workers, each with its own connection, which share the presences
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// Size of a presence's value in bytes
    #[arg(long, default_value_t = 600)]
    value_size: u32,
    /// PNG file for a plot of the server's memory
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Leave the presences to their time to live, instead of giving them back.
    #[arg(long)]
    keep: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Results of the run.
#[derive(Debug, Serialize)]
struct Report {
    presences: u32,
    seconds: f64,
    /// Presences that expired meanwhile: a refresh returned another token.
    lost: u64,
    /// Maximum delay of a refresh after its planned time, in milliseconds.
    latest_ms: f64,
    refreshes: Summary,
    cost: Cost,
    memory: Memory,
}

/// The server's memory in MiB, read every second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Memory {
    first_half_mean: f64,
    second_half_mean: f64,
    most: f64,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { target, presences, ttl, duration, concurrency, value_size, .. } = &arguments;
    let Some(server) = target.server_pid else { bail!("--server-pid is needed to see its memory") };
    let interval = arguments.interval.unwrap_or(Duration::from_secs((*ttl).into()) / 2);
    let taken = Arc::new(Presences::new(*value_size, *ttl));
    let mut holders = Vec::new();
    for (number, share) in shares(*presences, *concurrency).enumerate() {
        // The task answers the server's pings between calls.
        let caller = Caller::new(Connection::open(target).await?.driven());
        let (presences, tokens) = (Arc::clone(&taken), Vec::new());
        holders.push((Holder { number, caller, presences, tokens }, share));
    }
    let holders = all(holders.into_iter().map(|(holder, share)| holder.take(share)))
        .await
        .context("taking the presences")?;

    let begin = Instant::now();
    let before = Reading::take(Some(server))?;
    let plan = Plan { begin, end: begin + *duration, interval, holders: *concurrency };
    let sampling = sample(server, begin, plan.end);
    let holding = all(holders.into_iter().map(|holder| holder.hold(plan)));
    let (held, samples) = tokio::try_join!(holding, sampling)?;
    let (after, elapsed) = (Reading::take(Some(server))?, begin.elapsed());

    let (mut tally, mut lost, mut latest, mut holders) =
        (Tally::default(), 0, Duration::ZERO, Vec::new());
    for (holder, outcome) in held {
        tally.add(outcome.tally);
        lost += outcome.lost;
        latest = latest.max(outcome.latest);
        holders.push(holder);
    }
    let refreshes = tally.summary(elapsed);
    let report = Report {
        presences: *presences,
        seconds: elapsed.as_secs_f64(),
        lost,
        latest_ms: latest.as_secs_f64() * 1e3,
        cost: after.since(&before, elapsed, refreshes.operations),
        refreshes,
        memory: memory(&samples).context("the run was too short to read the memory twice")?,
    };
    if let Some(path) = &arguments.plot {
        chart(*presences, samples).write(path)?;
    }
    match arguments.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        false => say(&text(&report))?,
    }
    if !arguments.keep {
        all(holders.into_iter().map(Holder::give_back)).await.context("giving back")?;
    }
    Ok(())
}

/// The schedule of refreshes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    begin: Instant,
    end: Instant,
    interval: Duration,
    holders: u32,
}

impl Plan {
    /// The time of a holder's refresh number `count`. Its presences take turns; the
    /// holders are offset against each other.
    fn due(&self, holder: usize, share: usize, count: u32) -> Instant {
        let step = self.interval / u32::try_from(share).unwrap_or(u32::MAX).max(1);
        let shift = step * u32::try_from(holder).unwrap_or(0) / self.holders.max(1);
        self.begin + shift + step * count
    }
}

#[derive(Debug, Default)]
struct Outcome {
    tally: Tally,
    lost: u64,
    latest: Duration,
}

struct Holder {
    number: usize,
    caller: Caller,
    presences: Arc<Presences>,
    /// The fencing tokens of its presences.
    tokens: Vec<u64>,
}

impl Holder {
    async fn lock(&mut self, number: usize) -> Result<u64, Status> {
        self.caller.lock(self.presences.lock(self.number, number as u64)).await
    }

    async fn take(mut self, share: u64) -> anyhow::Result<Self> {
        for number in 0..usize::try_from(share)? {
            let token = self.lock(number).await.map_err(|status| failure(&status))?;
            self.tokens.push(token);
        }
        Ok(self)
    }

    async fn give_back(mut self) -> anyhow::Result<()> {
        for number in 0..self.tokens.len() as u64 {
            let request = self.presences.release(self.number, number);
            let released = self.caller.release(request).await;
            released.map_err(|status| failure(&status))?;
        }
        Ok(())
    }

    async fn hold(mut self, plan: Plan) -> anyhow::Result<(Self, Outcome)> {
        let mut outcome = Outcome::default();
        let share = self.tokens.len();
        if share == 0 {
            return Ok((self, outcome));
        }
        for count in 0.. {
            let due = plan.due(self.number, share, count);
            if due >= plan.end {
                break;
            }
            sleep_until(due).await;
            outcome.latest = outcome.latest.max(due.elapsed());
            let index = count as usize % share;
            let began = Instant::now();
            match self.lock(index).await {
                Ok(token) => {
                    outcome.tally.success(began.elapsed(), 0);
                    outcome.lost += u64::from(token != self.tokens[index]);
                    self.tokens[index] = token;
                }
                Err(status) => outcome.tally.failure(status.code()),
            }
        }
        Ok((self, outcome))
    }
}

/// Seconds since the start, and the server's memory in MiB.
type Samples = Vec<(f64, f64)>;

async fn sample(server: u32, begin: Instant, end: Instant) -> anyhow::Result<Samples> {
    let mut ticker = tokio::time::interval(Duration::from_secs(1));
    let mut samples = Vec::new();
    while Instant::now() < end {
        let _at = ticker.tick().await;
        let usage = usage(&server.to_string())?;
        samples.push((begin.elapsed().as_secs_f64(), mebibytes(usage.resident)));
    }
    Ok(samples)
}

fn memory(samples: &Samples) -> Option<Memory> {
    let (first, second) = samples.split_at(samples.len() / 2);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mean = |half: &[(f64, f64)]| {
        (!half.is_empty())
            .then(|| half.iter().map(|point| point.1).sum::<f64>() / half.len() as f64)
    };
    Some(Memory {
        first_half_mean: mean(first)?,
        second_half_mean: mean(second)?,
        most: samples.iter().map(|point| point.1).fold(0.0, f64::max),
    })
}

fn chart(presences: u32, points: Samples) -> Chart<'static> {
    let name = format!("{presences} presences held");
    let lines = vec![Line { name, points }];
    let (title, scale) = ("Memory of the lock server", Scale::Linear);
    Chart { title, x: "seconds", y: "MiB", lines, marks: false, scale }
}

fn text(report: &Report) -> String {
    let Report { presences, seconds, lost, latest_ms, refreshes, cost, memory } = report;
    let Summary { per_second, p50_ms, p99_ms, max_ms, operations, failures, bytes: _ } = refreshes;
    let Memory { first_half_mean: first, second_half_mean: second, most } = memory;
    let change = (second / first - 1.0) * 100.0;
    let mut text = format!(
        "hold: {presences} presences, {seconds:.0} s, {lost} lost\n\
         refresh  {per_second:.0}/s ({operations}), sent {latest_ms:.0} ms late at most\n\
         latency  p50 {p50_ms:.2} ms  p99 {p99_ms:.2} ms  max {max_ms:.2} ms\n\
         memory   first half {first:.1} MiB, second half {second:.1} MiB ({change:+.1} %), \
         at most {most:.1} MiB\n"
    );
    for (code, count) in failures {
        text += &format!("failed   {code} {count}\n");
    }
    text + &costs(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_compared() {
        let samples = vec![(0.0, 10.0), (1.0, 12.0), (2.0, 20.0), (3.0, 22.0)];
        let memory = memory(&samples).unwrap();
        let expected = Memory { first_half_mean: 11.0, second_half_mean: 21.0, most: 22.0 };
        assert_eq!(memory, expected);
        assert_eq!(super::memory(&vec![(0.0, 1.0)]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_are_spread_over_the_interval() {
        let begin = Instant::now();
        let interval = Duration::from_secs(8);
        let plan = Plan { begin, end: begin + interval, interval, holders: 2 };
        let at = |holder, count| plan.due(holder, 4, count) - begin;
        assert_eq!([0, 1, 4].map(|count| at(0, count).as_secs()), [0, 2, 8]);
        assert_eq!([0, 1].map(|count| at(1, count).as_secs()), [1, 3]);
    }
}
