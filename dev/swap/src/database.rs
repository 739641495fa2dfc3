//! The database of the foundation, and readers of its tables beside the programs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use originals::sql::{Database, Dialect};
use serde_json::{Value, json};
use storage::testing::TestServer;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::ledger::{At, Ledger};

/// A private server with one database for the locks and one for the groups.
#[derive(Debug)]
pub(crate) struct Server {
    server: TestServer,
    dialect: Dialect,
}

const LOCKS: &str = "locket";
const GROUPS: &str = "network_policy";

impl Server {
    /// Starts the server; it ends with the handle, and with this process.
    pub(crate) fn start(dialect: Dialect) -> Self {
        let server = TestServer::start(match dialect {
            Dialect::Postgres => storage::server::Dialect::Postgres,
            Dialect::MySql => storage::server::Dialect::MySql,
        });
        for name in [LOCKS, GROUPS] {
            server.sql(&format!("CREATE DATABASE {name}"));
        }
        Self { server, dialect }
    }

    /// `database_driver` and `database_connection_string` of a lock service.
    pub(crate) fn locks(&self) -> (&'static str, String) {
        (self.driver(), self.server.connection_string("127.0.0.1", LOCKS))
    }

    /// The `database` of policy-server's jobs.
    pub(crate) fn groups(&self) -> Value {
        json!({
            "type": self.driver(), "user": "tester", "password": "secret",
            "host": "127.0.0.1", "port": self.server.port(), "timeout": 60,
            "database_name": GROUPS,
        })
    }

    fn driver(&self) -> &'static str {
        match self.dialect {
            Dialect::Postgres => "postgres",
            Dialect::MySql => "mysql",
        }
    }

    fn open(&self, name: &str) -> anyhow::Result<Database> {
        Database::new(self.dialect, &self.server.connection_string("127.0.0.1", name))
    }

    pub(crate) fn open_locks(&self) -> anyhow::Result<Database> {
        self.open(LOCKS)
    }

    pub(crate) fn open_groups(&self) -> anyhow::Result<Database> {
        self.open(GROUPS)
    }
}

/// Compares the table of the locks with what their owners believe, again and again.
pub(crate) async fn witness(
    database: Database,
    ledger: Arc<Ledger>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    const INTERVAL: Duration = Duration::from_millis(100);
    while shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        let before = ledger.beliefs();
        let rows = database.run("SELECT path, owner, modified_id FROM locks", &[]).await;
        let mut found = BTreeMap::new();
        for row in rows.context("reading the table of the locks")? {
            let (key, owner) = (row.text(0)?, row.text(1)?);
            found.insert(key.unwrap_or_default(), (owner.unwrap_or_default(), row.text(2)?));
        }
        ledger.judge(&before, |_, _| true, |key| found.get(key).cloned(), "the table");
    }
    Ok(())
}

/// When each generation of the policy store was first seen in its table.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    seen: Mutex<Vec<At<u64>>>,
}

impl Generations {
    pub(crate) fn seen(&self) -> Vec<At<u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the newest generation again and again; the table may not exist yet.
    pub(crate) async fn follow(
        self: Arc<Self>,
        database: Database,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        const INTERVAL: Duration = Duration::from_millis(20);
        let mut newest = 0;
        while shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
            let rows = database.run("SELECT generation FROM portcullis_store_state", &[]).await;
            let Some(row) = rows.ok().and_then(|mut rows| rows.pop()) else { continue };
            let generation = row.int(0)?.unwrap_or_default().cast_unsigned();
            if generation > newest {
                newest = generation;
                let at = At { at: Instant::now(), what: generation };
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(at);
            }
        }
        Ok(())
    }
}

/// The stamp of the originals' groups, in microseconds since 1970.
pub(crate) async fn originals_stamp(database: &Database) -> anyhow::Result<i64> {
    let micros = match database.dialect() {
        Dialect::Postgres => "CAST(EXTRACT(EPOCH FROM last_updated) * 1000000 AS BIGINT)",
        Dialect::MySql => "CAST(UNIX_TIMESTAMP(last_updated) * 1000000 AS SIGNED)",
    };
    let rows = database.run(&format!("SELECT {micros} FROM security_groups_info"), &[]).await?;
    let row = rows.first().context("security_groups_info is empty")?;
    Ok(row.int(0)?.unwrap_or_default())
}
