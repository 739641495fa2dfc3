//! Measures one operation on a Locket at maximum rate.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use prost::bytes::Bytes;
use runtime::client;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::calls::{Caller, Presences};
use super::connect::Target;
use super::histogram::Tally;
use super::meter::Reading;
use super::raw_tls;
use super::report::Report;
use super::wire::Connection;
use super::{length, positive_length, say};

/// Connections that acquire the additional locks.
const TAKERS: u32 = 64;

/// Operation under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Operation {
    /// Lock a new key
    LockNew,
    /// Refresh a lock of the caller, with the same value
    LockRefresh,
    /// Fetch one presence
    Fetch,
    /// Fetch all presences
    FetchAll,
    /// Release a presence acquired before the measurement
    Release,
    /// A call without effect, served by `load empty-server`
    Empty,
    /// A response as long as that of fetch-all over TLS alone, served by `load empty-server
    /// --bare`
    Tls,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LockNew => "lock-new",
            Self::LockRefresh => "lock-refresh",
            Self::Fetch => "fetch",
            Self::FetchAll => "fetch-all",
            Self::Release => "release",
            Self::Empty => "empty",
            Self::Tls => "tls",
        }
    }

    /// Whether it is about presences that have to be there.
    fn needs_presences(self) -> bool {
        match self {
            Self::LockRefresh | Self::Fetch | Self::FetchAll | Self::Release => true,
            Self::LockNew | Self::Empty | Self::Tls => false,
        }
    }
}

/// Amount of load.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Load {
    #[arg(long, value_enum)]
    pub(super) operation: Operation,
    /// Number of workers; each has one open call at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) concurrency: u32,
    /// Number of connections, shared by the workers [default: one per worker]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) connections: Option<u32>,
    /// Duration of the measurement
    #[arg(long, default_value = "4s", value_parser = positive_length)]
    pub(super) duration: Duration,
    /// Time under load before the measurement begins
    #[arg(long, default_value = "1s", value_parser = length)]
    pub(super) warm_up: Duration,
    /// Size of a presence's value in bytes
    #[arg(long, default_value_t = 600)]
    pub(super) value_size: u32,
    /// Number of presences acquired before the measurement, for all operations except lock-new
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) presences: u32,
    /// Number of locks acquired before the measurement, in addition to the presences
    #[arg(long, default_value_t = 0)]
    pub(super) locks: u32,
    /// Time to live of presences and locks in seconds
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) ttl: u32,
    /// Let acquired locks expire instead of releasing them
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    load: Load,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { target, load, json } = arguments;
    let report = measure(&target, &load).await?;
    if json {
        return say(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    say(&report.text())
}

/// Acquires the presences, measures the calls, and releases everything.
pub(super) async fn measure(target: &Target, load: &Load) -> anyhow::Result<Report> {
    let concurrency = load.concurrency as usize;
    if load.operation == Operation::Tls {
        return measure_tls(target, load, concurrency).await;
    }
    let locks = take_locks(target, load).await.context("taking the locks")?;
    let connections = load.connections.map_or(concurrency, |count| count as usize);
    let callers = callers(target, concurrency, connections).await?;
    let presences = Arc::new(Presences::new(load.value_size, load.ttl));
    let worker = |(number, caller)| {
        let (operation, presences) = (load.operation, Arc::clone(&presences));
        Worker { number, operation, caller, presences, taken: 0, ready: Vec::new() }
    };
    let mut workers: Vec<_> = callers.into_iter().enumerate().map(worker).collect();
    if load.operation.needs_presences() {
        let shares = shares(load.presences, load.concurrency);
        let tasks = workers.into_iter().zip(shares).map(|(worker, share)| worker.take(share));
        workers = all(tasks).await.context("taking the presences")?;
    }
    let (report, workers) = call(target, load, connections, workers).await?;
    if !load.keep {
        let workers = workers.into_iter().chain(locks);
        all(workers.map(Worker::give_back)).await.context("giving back")?;
    }
    Ok(report)
}

/// Acquires the additional locks over [`TAKERS`] connections. A task drives each of them: a
/// connection that answers no ping while it is idle is closed by the server after 9 s.
async fn take_locks(target: &Target, load: &Load) -> anyhow::Result<Vec<Worker>> {
    if load.locks == 0 {
        return Ok(Vec::new());
    }
    let presences = Arc::new(Presences::locks(load.value_size, load.ttl));
    let mut callers = Vec::new();
    for _ in 0..TAKERS {
        callers.push(Caller::new(Connection::open(target).await?.driven()));
    }
    let tasks = callers.into_iter().enumerate().zip(shares(load.locks, TAKERS)).map(
        |((number, caller), share)| {
            let (operation, presences) = (Operation::LockNew, Arc::clone(&presences));
            Worker { number, operation, caller, presences, taken: 0, ready: Vec::new() }.take(share)
        },
    );
    all(tasks).await
}

/// Uses a connection for each worker.
async fn measure_tls(target: &Target, load: &Load, workers: usize) -> anyhow::Result<Report> {
    let bytes = Presences::new(load.value_size, load.ttl).answer_len(load.presences);
    let mut lines = Vec::new();
    for _ in 0..workers {
        lines.push(raw_tls::Connection::open(target, bytes).await?);
    }
    let (report, _lines) = call(target, load, workers, lines).await?;
    Ok(report)
}

/// One connection for each worker. Handshakes are not measured.
async fn callers(
    target: &Target,
    workers: usize,
    connections: usize,
) -> anyhow::Result<Vec<Caller>> {
    let (mut callers, mut shared) = (Vec::new(), Vec::new());
    for number in 0..workers {
        let connection = if connections >= workers {
            Connection::open(target).await?
        } else if number < connections {
            let connection = Connection::open(target).await?.driven();
            shared.extend(connection.share());
            connection
        } else {
            shared[number % connections].share().expect("a task drives it")
        };
        callers.push(Caller::new(connection));
    }
    Ok(callers)
}

async fn call<W: Work>(
    target: &Target,
    load: &Load,
    connections: usize,
    workers: Vec<W>,
) -> anyhow::Result<(Report, Vec<W>)> {
    let from = Instant::now() + load.warm_up;
    let window = Window { from, until: from + load.duration, over: CancellationToken::new() };
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn(work(worker, window.clone()));
    }
    sleep_until(window.from).await;
    let before = Reading::take(target.server_pid)?;
    let _early = window.over.run_until_cancelled(sleep_until(window.until)).await;
    let after = Reading::take(target.server_pid)?;
    let elapsed = window.from.elapsed();
    let (mut tally, mut workers) = (Tally::default(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (worker, its) = done?;
        tally.add(its);
        workers.push(worker);
    }
    let calls = tally.summary(elapsed);
    if calls.operations == 0 && calls.failures.is_empty() {
        bail!("nothing was answered in the measured time: more presences, or more time");
    }
    let report = Report {
        operation: load.operation.name().to_owned(),
        concurrency: load.concurrency as usize,
        connections,
        seconds: elapsed.as_secs_f64(),
        cost: after.since(&before, elapsed, calls.operations),
        calls,
    };
    Ok((report, workers))
}

/// The number of presences of each worker: equal, give or take one.
pub(super) fn shares(presences: u32, workers: u32) -> impl Iterator<Item = u64> {
    let more = presences % workers;
    (0..workers).map(move |worker| u64::from(presences / workers + u32::from(worker < more)))
}

/// Runs tasks in parallel until all have ended, or one failed.
pub(super) async fn all<T: Send + 'static>(
    tasks: impl Iterator<Item = impl Future<Output = anyhow::Result<T>> + Send + 'static>,
) -> anyhow::Result<Vec<T>> {
    let mut running: JoinSet<_> = tasks.collect();
    let mut done = Vec::new();
    while let Some(ended) = running.join_next().await {
        done.push(ended??);
    }
    Ok(done)
}

/// A status with all its details.
pub(super) fn failure(status: &Status) -> anyhow::Error {
    anyhow!("{}", client::describe(status))
}

/// The measured period.
#[derive(Debug, Clone)]
struct Window {
    from: Instant,
    until: Instant,
    /// Cancelled by a worker that has no more calls.
    over: CancellationToken,
}

/// A worker's calls, one after another.
trait Work: Send + 'static {
    /// Makes a call; returns the size of the response, if relevant.
    fn call(&mut self, next: u64) -> impl Future<Output = Result<usize, Status>> + Send;

    /// Whether no more calls are left.
    fn is_done(&self) -> bool {
        false
    }
}

struct Worker {
    number: usize,
    operation: Operation,
    caller: Caller,
    presences: Arc<Presences>,
    /// Number of its presences, which are numbered from 0.
    taken: u64,
    /// Prepared requests that are sent repeatedly: building a request is not measured.
    ready: Vec<Bytes>,
}

impl Worker {
    async fn take(mut self, share: u64) -> anyhow::Result<Self> {
        while self.taken < share {
            let request = self.presences.lock(self.number, self.taken);
            self.caller.lock(request).await.map_err(|status| failure(&status))?;
            self.taken += 1;
        }
        let Self { number, operation, ref presences, taken, .. } = self;
        // With more workers than presences, a worker without a presence uses one
        // nevertheless.
        let numbers = 0..taken.max(1);
        self.ready = match operation {
            Operation::LockRefresh => numbers.map(|at| presences.lock(number, at)).collect(),
            Operation::Fetch => numbers.map(|at| presences.fetch(number, at)).collect(),
            _ => Vec::new(),
        };
        Ok(self)
    }

    async fn give_back(mut self) -> anyhow::Result<()> {
        for number in 0..self.taken {
            let request = self.presences.release(self.number, number);
            self.caller.release(request).await.map_err(|status| failure(&status))?;
        }
        Ok(())
    }
}

impl Work for Worker {
    async fn call(&mut self, next: u64) -> Result<usize, Status> {
        let Self { number, operation, caller, presences, taken, ready } = self;
        let again = || ready[next as usize % ready.len()].clone();
        match operation {
            Operation::LockNew => {
                let new = *taken;
                *taken += 1;
                caller.lock(presences.lock(*number, new)).await.map(|_token| 0)
            }
            Operation::LockRefresh => caller.lock(again()).await.map(|_token| 0),
            Operation::Fetch => caller.fetch(again()).await.map(|()| 0),
            Operation::FetchAll => caller.fetch_all().await,
            Operation::Release => {
                *taken -= 1;
                caller.release(presences.release(*number, *taken)).await.map(|()| 0)
            }
            Operation::Empty => caller.empty().await.map(|()| 0),
            Operation::Tls => unreachable!("has connections of its own"),
        }
    }

    fn is_done(&self) -> bool {
        self.operation == Operation::Release && self.taken == 0
    }
}

impl Work for raw_tls::Connection {
    async fn call(&mut self, _next: u64) -> Result<usize, Status> {
        self.call().await
    }
}

/// Calls until the measured period is over.
async fn work<W: Work>(mut worker: W, window: Window) -> (W, Tally) {
    let mut tally = Tally::default();
    let mut next = 0;
    loop {
        let began = Instant::now();
        if began >= window.until || window.over.is_cancelled() {
            return (worker, tally);
        }
        if worker.is_done() {
            window.over.cancel();
            return (worker, tally);
        }
        let outcome = worker.call(next).await;
        let ended = Instant::now();
        next += 1;
        if ended <= window.from || ended > window.until || window.over.is_cancelled() {
            continue;
        }
        match outcome {
            Ok(bytes) => tally.success(ended - began, bytes),
            Err(status) => tally.failure(status.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presences_are_shared_out_evenly() {
        for (presences, workers, expected) in
            [(10, 4, vec![3, 3, 2, 2]), (2, 3, vec![1, 1, 0]), (6, 1, vec![6])]
        {
            assert_eq!(shares(presences, workers).collect::<Vec<_>>(), expected);
        }
    }
}
