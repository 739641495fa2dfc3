//! The original's periodic metrics, for the metron agent under the original's names and
//! with its periods (docs/compatibility/asg-syncer.md#metrics,
//! docs/compatibility/policy-server-internal.md#metrics), and connection pool metrics,
//! also for Prometheus.
//!
//! Of the Go runtime's gauges only those with an equivalent are sent: private memory for
//! the heap, the stack, tasks for goroutines.

use std::{sync::Arc, time::Duration};

use runtime::{dropsonde::Dropsonde, metrics::Family, periodic::every};
use storage::server::Stats;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{DB_FAILED, DB_IN_FLIGHT, DB_LONGEST, DB_OPEN, DB_QUERIES, DB_SUCCEEDED},
    store::Store,
};

/// Period of the original's process and database metrics.
const ITSELF: Duration = Duration::from_secs(30);

/// Metrics reporter and its sink.
pub(crate) struct Report {
    /// The metron agent.
    pub(crate) metron: Dropsonde,
    /// Has the statistics of the database.
    pub(crate) store: Arc<dyn Store>,
    /// Start of the process.
    pub(crate) began: Instant,
}

impl Report {
    /// Reports until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metron, store, began } = self;
        let send = || itself(&metron, &*store, began);
        tokio::join!(metron.run(&shutdown), every(Instant::now(), ITSELF, &shutdown, send));
        Ok(())
    }
}

fn itself(metron: &Dropsonde, store: &dyn Store, began: Instant) {
    metron.value("uptime", began.elapsed().as_secs_f64(), "seconds");
    // Container-to-container policies are not supported: there are none.
    metron.value("totalPolicies", 0.0, "");
    let Some(stats) = store.stats() else { return };
    for Row { name, unit, shown, value } in rows(&stats) {
        metron.value(name, value, unit);
        shown.set(value);
    }
}

/// A database metric under the original's name and under the Portcullis name.
struct Row {
    name: &'static str,
    unit: &'static str,
    shown: Family,
    value: f64,
}

#[expect(clippy::cast_precision_loss, reason = "nobody comes to 2^52 queries")]
fn rows(stats: &Stats) -> [Row; 6] {
    let Stats { open, waits: _, waited: _, queries, succeeded, failed, in_flight, longest } =
        *stats;
    let row = |name, shown, value| Row { name, unit: "", shown, value };
    [
        row("DBOpenConnections", DB_OPEN, open as f64),
        row("DBQueriesTotal", DB_QUERIES, queries as f64),
        row("DBQueriesSucceeded", DB_SUCCEEDED, succeeded as f64),
        row("DBQueriesFailed", DB_FAILED, failed as f64),
        row("DBQueriesInFlight", DB_IN_FLIGHT, in_flight as f64),
        Row {
            name: "DBQueryDurationMax",
            unit: "seconds",
            shown: DB_LONGEST,
            value: longest.as_secs_f64(),
        },
    ]
}
