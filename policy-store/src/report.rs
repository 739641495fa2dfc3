//! The original's metrics that come by themselves, for the metron agent under its
//! names and with its periods (docs/compatibility/asg-syncer.md#metrics,
//! docs/compatibility/policy-server-internal.md#metrics), and what the database connections did,
//! for Prometheus besides.
//!
//! Of the gauges of Go's runtime those are sent that mean something here: private
//! memory for the heap, the stack, tasks for goroutines.

use std::time::Duration;

use metrics::{counter, gauge};
use runtime::dropsonde::Dropsonde;
use storage::server::Stats;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// How often the original tells of itself and of its database.
const ITSELF: Duration = Duration::from_secs(30);
/// And of its runtime.
const RUNTIME: Duration = Duration::from_secs(10);

/// Counts what a database did; its maxima begin anew with each look.
pub(crate) type Look = Box<dyn Fn() -> Stats + Send + Sync>;

/// What is told, and to whom.
pub(crate) struct Report {
    /// The agent.
    pub(crate) metron: Dropsonde,
    /// The database, if it is on a server.
    pub(crate) database: Option<Look>,
    /// When the process began.
    pub(crate) began: Instant,
}

impl Report {
    /// Tells until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metron, database, began } = self;
        begin_counters();
        tokio::join!(
            metron.resolve(&shutdown),
            every(ITSELF, &shutdown, || itself(&metron, database.as_ref(), began)),
            every(RUNTIME, &shutdown, || metron.process()),
        );
        Ok(())
    }
}

/// Counters that are shown before they count anything: a rate needs the zero.
fn begin_counters() {
    for name in [
        "policy_store_denied_total",
        "policy_store_http_list_bytes_total",
        "policy_store_http_lists_refused_total",
        "policy_store_http_stale_total",
    ] {
        counter!(name).increment(0);
    }
    for outcome in ["changed", "unchanged", "fenced", "mass-removal", "overtaken", "failed"] {
        counter!("policy_store_replaces_total", "outcome" => outcome).increment(0);
    }
}

fn itself(metron: &Dropsonde, database: Option<&Look>, began: Instant) {
    metron.value("uptime", began.elapsed().as_secs_f64(), "seconds");
    // Policies between containers are not ours: there are none.
    metron.value("totalPolicies", 0.0, "");
    let Some(look) = database else { return };
    for Row { name, unit, shown, value } in rows(&look()) {
        metron.value(name, value, unit);
        gauge!(shown).set(value);
    }
}

/// A number of the database under the original's name and under ours.
struct Row {
    name: &'static str,
    unit: &'static str,
    shown: &'static str,
    value: f64,
}

#[expect(clippy::cast_precision_loss, reason = "nobody comes to 2^52 queries")]
fn rows(stats: &Stats) -> [Row; 6] {
    let Stats { open, waits: _, waited: _, queries, succeeded, failed, in_flight, longest } =
        *stats;
    let row = |name, shown, value| Row { name, unit: "", shown, value };
    [
        row("DBOpenConnections", "policy_store_db_open_connections", open as f64),
        row("DBQueriesTotal", "policy_store_db_queries", queries as f64),
        row("DBQueriesSucceeded", "policy_store_db_queries_succeeded", succeeded as f64),
        row("DBQueriesFailed", "policy_store_db_queries_failed", failed as f64),
        row("DBQueriesInFlight", "policy_store_db_queries_in_flight_max", in_flight as f64),
        Row {
            name: "DBQueryDurationMax",
            unit: "seconds",
            shown: "policy_store_db_query_seconds_max",
            value: longest.as_secs_f64(),
        },
    ]
}

/// At once, and then in each period.
async fn every(period: Duration, shutdown: &CancellationToken, mut tell: impl FnMut()) {
    let mut ticks = interval_at(Instant::now(), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        tell();
    }
}
