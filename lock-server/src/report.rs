//! The original's metrics for the loggregator agent: its names, units, tags and
//! periods (docs/compatibility/locket.md#metrics).
//!
//! The database metrics go to Prometheus as well: each read resets the maxima, so one
//! read serves both.
//!
//! Runs three reporters, as the original has three notifiers, each with its period;
//! the first report is sent after the first period. Sending never blocks, see
//! [`runtime::loggregator`]. Of the Go runtime's gauges only those with an equivalent
//! are sent: private memory for the heap, the stack, tasks for goroutines. There is no
//! garbage collector, hence no pause metric.

use std::{sync::Arc, time::Duration};

use model::lock::LockKind;
use runtime::{
    loggregator::Loggregator,
    metrics::{Family, memory},
    periodic::every,
};
use storage::server::Stats;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};

use crate::{
    feed::Feed,
    grpc::Calls,
    metrics::{self, Requests},
};

/// Unit of the original's metrics without a specific unit.
const METRIC: &str = "Metric";
const NANOS: &str = "nanos";
/// Period that no configuration key changes.
const EXPIRED: Duration = Duration::from_secs(60);
const PROCESS: Duration = Duration::from_secs(10);

/// Metrics reporter and its sink.
#[derive(Debug)]
pub struct Report {
    /// The loggregator agent.
    pub loggregator: Loggregator,
    /// Provides the counts of held and of expired locks.
    pub feed: Feed,
    /// Request metrics.
    pub calls: Arc<Calls>,
    /// `report_interval`.
    pub interval: Duration,
}

impl Report {
    /// Reports until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (interval, shutdown) = (self.interval, &shutdown);
        let (locks, requests) =
            (info_span!("lock-metrics-notifier"), info_span!("request-metrics-notifier"));
        tokio::join!(
            notify(locks, interval, shutdown, || self.active()),
            notify(requests, interval, shutdown, || self.requests()),
            every(Instant::now() + EXPIRED, EXPIRED, shutdown, || self.expired()),
            every(Instant::now() + PROCESS, PROCESS, shutdown, || self.process()),
        );
        Ok(())
    }

    fn send(&self, name: &str, unit: &str, value: f64) {
        self.loggregator.gauge(name, unit, value, &[]);
    }

    fn active(&self) {
        let population = self.feed.population();
        for (kind, name) in
            [(LockKind::Lock, "ActiveLocks"), (LockKind::Presence, "ActivePresences")]
        {
            self.send(name, METRIC, population[kind].active.get() as f64);
        }
    }

    fn expired(&self) {
        let population = self.feed.population();
        for (kind, name) in
            [(LockKind::Lock, "LocksExpired"), (LockKind::Presence, "PresenceExpired")]
        {
            self.send(name, METRIC, population[kind].expired.get() as f64);
        }
    }

    fn requests(&self) {
        for (rpc, requests) in self.calls.of_the_original() {
            let tags = [("request-type", rpc)];
            let Requests { started, succeeded, failed, cancelled, in_flight, .. } = requests;
            let counts = [
                ("RequestsStarted", started.get() as f64),
                ("RequestsSucceeded", succeeded.get() as f64),
                ("RequestsFailed", failed.get() as f64),
                ("RequestsInFlight", in_flight.get() as f64),
                ("RequestsCancelled", cancelled.get() as f64),
            ];
            for (name, value) in counts {
                self.loggregator.gauge(name, METRIC, value, &tags);
            }
            let longest = requests.take_longest().as_nanos() as f64;
            self.loggregator.gauge("RequestLatencyMax", NANOS, longest, &tags);
        }
    }

    fn process(&self) {
        let memory = memory();
        self.send("memoryStats.numBytesAllocatedHeap", "Bytes", memory.private as f64);
        self.send("memoryStats.numBytesAllocatedStack", "Bytes", memory.stack as f64);
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.send("numGoRoutines", "Count", tasks as f64);
    }
}

/// Reports the connection pool metrics of a database server, each `interval` until
/// `shutdown`: to Prometheus, and to the agent if there is one.
///
/// # Errors
/// Never, as [`Report::run`].
pub async fn database(
    stats: impl Fn() -> Stats,
    agent: Option<Loggregator>,
    interval: Duration,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    notify(info_span!("metrics-notifier"), interval, &shutdown, || {
        for Row { name, unit, value, shown, shown_value } in rows(&stats()) {
            shown.set(shown_value);
            if let Some(agent) = &agent {
                agent.gauge(name, unit, value, &[]);
            }
        }
    })
    .await;
    Ok(())
}

/// A database metric under the original's name and under the Portcullis name. The original's times
/// are in nanoseconds, those of Portcullis in seconds.
struct Row {
    name: &'static str,
    unit: &'static str,
    value: f64,
    shown: Family,
    shown_value: f64,
}

fn rows(stats: &Stats) -> [Row; 8] {
    let Stats { open, waits, waited, queries, succeeded, failed, in_flight, longest } = *stats;
    let row = |name, shown, number: u64| {
        let value = number as f64;
        Row { name, unit: METRIC, value, shown, shown_value: value }
    };
    let time = |name, shown, time: Duration| {
        let (value, shown_value) = (time.as_nanos() as f64, time.as_secs_f64());
        Row { name, unit: NANOS, value, shown, shown_value }
    };
    [
        row("DBOpenConnections", metrics::DB_OPEN, open as u64),
        row("DBWaitCount", metrics::DB_WAITS, waits),
        time("DBWaitDuration", metrics::DB_WAITED, waited),
        row("DBQueriesTotal", metrics::DB_QUERIES, queries),
        row("DBQueriesSucceeded", metrics::DB_SUCCEEDED, succeeded),
        row("DBQueriesFailed", metrics::DB_FAILED, failed),
        row("DBQueriesInFlight", metrics::DB_IN_FLIGHT, in_flight),
        time("DBQueryDurationMax", metrics::DB_LONGEST, longest),
    ]
}

/// One of the original's notifiers, with its log lines.
async fn notify(span: Span, period: Duration, shutdown: &CancellationToken, report: impl FnMut()) {
    let work = async {
        let interval = i64::try_from(period.as_nanos()).unwrap_or(i64::MAX);
        tracing::info!(interval, "starting");
        every(Instant::now() + period, period, shutdown, report).await;
        tracing::info!("completed");
    };
    work.instrument(span).await;
}
