//! The database server that lock servers and policy stores share, and its replica.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, anyhow};
use storage::server::Dialect;
use storage::testing::TestServer;
use swap::front::Pool;

/// The databases.
pub(crate) const LOCKS: &str = "locket";
pub(crate) const GROUPS: &str = "network_policy";

/// How long an asynchronous replica has received nothing when its primary is killed.
const LAG: Duration = Duration::from_millis(1_500);

/// How a replica receives the commits of its primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Replication {
    /// There is no replica
    None,
    /// A commit waits for the replica: a failover loses nothing
    Synchronous,
    /// A commit does not wait: a failover loses 1.5 seconds of acknowledged commits
    Asynchronous,
}

impl Replication {
    /// The word on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Synchronous => "synchronous",
            Self::Asynchronous => "asynchronous",
        }
    }
}

#[derive(Debug)]
struct Servers {
    primary: TestServer,
    /// Missing while there is a failover.
    replica: Option<TestServer>,
    /// The killed primary.
    killed: Option<TestServer>,
}

/// The server as its clients see it: at one port, whichever server is the primary.
#[derive(Debug)]
pub(crate) struct Database {
    dialect: Dialect,
    ports: [u16; 2],
    replication: Replication,
    servers: Mutex<Servers>,
    pool: Arc<Pool>,
}

impl Database {
    /// Starts the servers, with empty databases.
    pub(crate) fn start(dialect: Dialect, replication: Replication) -> Self {
        let primary = TestServer::start(dialect);
        for name in [LOCKS, GROUPS] {
            primary.sql(&format!("CREATE DATABASE {name}"));
        }
        let replica = (replication != Replication::None).then(|| primary.replica());
        if replication == Replication::Synchronous {
            primary.replicate_synchronously();
        }
        let ports = [primary.port(), replica.as_ref().map_or(0, TestServer::port)];
        let pool = Pool::new(&ports.map(|port| (port, None)));
        pool.prefer(0);
        let servers = Mutex::new(Servers { primary, replica, killed: None });
        Self { dialect, ports, replication, servers, pool }
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Leads connections to the primary.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// The word for the kind of database in the configuration of the services.
    pub(crate) fn driver(&self) -> &'static str {
        match self.dialect {
            Dialect::Postgres => "postgres",
            Dialect::MySql => "mysql",
        }
    }

    pub(crate) fn connection_string(&self, host: &str, database: &str) -> String {
        // The port of the primary is that of the first server, whichever it is.
        let port = self.port();
        match self.dialect {
            Dialect::Postgres => format!("postgres://tester:secret@{host}:{port}/{database}"),
            Dialect::MySql => format!("tester:secret@tcp({host}:{port})/{database}"),
        }
    }

    /// A step that panicked left the servers in an unknown state.
    fn servers(&self) -> anyhow::Result<MutexGuard<'_, Servers>> {
        self.servers.lock().map_err(|_panic| anyhow!("a step of the database server panicked"))
    }

    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        self.servers()?.primary.kill();
        Ok(())
    }

    pub(crate) fn restart(&self) -> anyhow::Result<()> {
        self.servers()?.primary.restart();
        Ok(())
    }

    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.servers()?.primary.pause();
        Ok(())
    }

    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.servers()?.primary.resume();
        Ok(())
    }

    /// Kills the primary; its replica becomes the primary.
    pub(crate) fn fail_over(&self) -> anyhow::Result<()> {
        let mut servers = self.servers()?;
        let replica = servers.replica.take().context("there is no replica")?;
        if self.replication == Replication::Asynchronous {
            replica.stop_following();
            wait(LAG);
        }
        servers.primary.kill();
        replica.promote();
        let place = self.ports.iter().position(|port| *port == replica.port());
        self.pool.prefer(place.context("a server with another port")?);
        servers.killed = Some(std::mem::replace(&mut servers.primary, replica));
        Ok(())
    }

    /// The killed primary becomes the replica.
    pub(crate) fn return_killed(&self) -> anyhow::Result<()> {
        let mut servers = self.servers()?;
        let killed = servers.killed.take().context("no primary was killed")?;
        killed.follow(&servers.primary);
        if self.replication == Replication::Synchronous {
            servers.primary.replicate_synchronously();
        }
        servers.replica = Some(killed);
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "runs on a thread for blocking work")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
