//! Database health check: writes a number and reads it back, in the original's own
//! table (docs/compatibility/locket.md#database-health-check).

use std::time::Duration;

use anyhow::bail;
use runtime::error::chain;
use storage::server::{Dialect, Server, Value};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;

const ON_POSTGRES: &str = "CREATE TABLE IF NOT EXISTS locket_health_check
(id SERIAL PRIMARY KEY, time BIGINT NOT NULL)";
const ON_MYSQL: &str = "CREATE TABLE IF NOT EXISTS locket_health_check
(id BIGINT AUTO_INCREMENT PRIMARY KEY, time BIGINT NOT NULL)";

/// Settings of the health check (docs/compatibility/locket.md#database-health-check).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `health_check_timeout`: timeout of one attempt.
    pub timeout: Duration,
    /// `health_check_interval`: interval between checks.
    pub interval: Duration,
    /// `health_check_failure_threshold`: attempts per check, without a delay between them.
    pub attempts: u32,
}

impl Shared {
    /// Checks the database until `shutdown`.
    ///
    /// # Errors
    /// All attempts of a check failed: the process has to exit, so that its supervisor
    /// restarts it.
    pub async fn watch_health(
        self,
        check: HealthCheck,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut beat = interval(check.interval.max(Duration::from_millis(1)));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = beat.tick() => attempts(&self.server, check).await?,
            }
        }
    }
}

async fn attempts(server: &Server, check: HealthCheck) -> anyhow::Result<()> {
    let mut errors = Vec::new();
    for attempt in 1..=check.attempts.max(1) {
        let error = match timeout(check.timeout, sign(server)).await {
            Ok(Ok(())) => {
                tracing::info!("health-check-succeeded");
                return Ok(());
            }
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::error!(attempt, error, "failed-health-check");
                error
            }
            Err(_) => {
                let error =
                    format!("timed out after {:?} while executing DB health check", check.timeout);
                tracing::error!(attempt, error, "health-check-timed-out");
                error
            }
        };
        errors.push(error);
    }
    let most = check.attempts;
    tracing::error!("max-attempts" = most, "health-check-attempts-exceeded");
    tracing::error!("database-failure-detected-restarting-locket");
    bail!(errors.join("\n"))
}

async fn sign(server: &Server) -> Result<(), storage::Error> {
    let create = match server.dialect() {
        Dialect::Postgres => ON_POSTGRES,
        Dialect::MySql => ON_MYSQL,
    };
    server.execute(create, &[]).await?;
    let now = nanoseconds();
    let values = [Value::from(now)];
    let updated =
        server.execute("UPDATE locket_health_check SET time = ? WHERE id = 1", &values).await?;
    if updated == 0 {
        // Another instance may have inserted the row meanwhile: the database works then, too.
        let sql = match server.dialect() {
            Dialect::Postgres => {
                "INSERT INTO locket_health_check (id, time) VALUES (1, ?)
                 ON CONFLICT (id) DO NOTHING"
            }
            Dialect::MySql => "INSERT IGNORE INTO locket_health_check (id, time) VALUES (1, ?)",
        };
        server.execute(sql, &values).await?;
    }
    server.query("SELECT time FROM locket_health_check WHERE id = 1", &[]).await.map(drop)
}

/// Unix time, as the original writes it; no decision depends on it.
#[expect(clippy::disallowed_methods, reason = "operators read the row: it holds a wall clock")]
fn nanoseconds() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
