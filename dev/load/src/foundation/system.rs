//! The services of the foundation, and who changes its groups.

use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use storage::server::Dialect;
use storage::testing::TestServer;
use tokio::time::Instant;

use super::agents::Agent;
use super::costs::Snapshot;
use super::{Arguments, Database, Kind, ground, probes, progress};
use crate::cloud::{Api, Filled, fill, rule};
use crate::connect::Target;
use crate::meter::Usage;
use crate::server::{Cloud, Ends, Program, Server, Site};
use crate::store::data::{Data, Shape, spaces_of};
use crate::store::watchers::Cell;
use crate::store::writer::{Identity, Writer as Replacer};

/// The port of the first policy store.
const PORT: u32 = 4_004;
/// A token of the Cloud Controller is replaced after this time.
const TOKEN: Duration = Duration::from_secs(240);

/// All processes.
pub(super) struct System {
    pub(super) site: Site,
    programs: Vec<Program>,
    stores: Vec<Server>,
    ends: Vec<Ends>,
    operators: Vec<Target>,
    writer: Writer,
    pub(super) agents: Vec<Agent>,
    /// Ends after the stores.
    _database: Option<TestServer>,
}

/// Who changes the groups.
enum Writer {
    /// An operator at the Cloud Controller, from which a syncer copies.
    Cloud(Box<Synced>),
    /// This tool replaces the groups, as a syncer would.
    Replace(Box<Replaced>),
}

struct Replaced {
    replacer: Replacer,
    data: Data,
}

struct Synced {
    cloud: Cloud,
    api: Api,
    login: Instant,
    filled: Filled,
    locks: Server,
    syncer: Server,
}

/// A confirmed change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) number: u32,
    pub(super) sent: Instant,
    /// The response, by both clocks.
    pub(super) confirmed: Instant,
    pub(super) at: Timestamp,
    /// The generation with the change, if the response has it.
    pub(super) generation: Option<u64>,
}

impl System {
    /// Starts the services, and fills them with groups.
    pub(super) async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut site = Site::on(&ground::HUB.to_string(), arguments.bin_dir.clone())?;
        let database = arguments.database.server();
        let section = database.as_ref().map(section);
        let (mut programs, mut stores, mut ends, mut operators) = (vec![], vec![], vec![], vec![]);
        for number in 0..arguments.stores {
            let address = format!("{}:{}", ground::HUB, PORT + number);
            let program = site.store_program(&address, section.as_ref())?;
            let mut store = site.start_again(&program)?;
            let _at = store.listens().await?;
            ends.push(site.ends(&store)?);
            operators.push(site.client(&store, "operator")?);
            programs.push(program);
            stores.push(store);
        }
        let first = ends.first().context("there is no store")?;
        let mut data = Data::new(&arguments.shape());
        data.put(probes::rules(0));
        let writer = match arguments.writer {
            Kind::CloudController => {
                Writer::Cloud(Box::new(Synced::start(&mut site, &first.writer, &data).await?))
            }
            Kind::Replace => {
                let channel = first.writer.channels(1)?.remove(0);
                let mut replacer = Replacer::new(channel, Identity::default());
                replacer.replace(&data).await.context("the first Replace")?;
                Writer::Replace(Box::new(Replaced { replacer, data }))
            }
        };
        let (agents, _database) = (Vec::new(), database);
        Ok(Self { site, programs, stores, ends, operators, writer, agents, _database })
    }

    /// The stores, for cells.
    pub(super) fn stores(&self) -> Vec<Target> {
        self.ends.iter().map(|ends| ends.cell.clone()).collect()
    }

    /// The stores, for operators.
    pub(super) fn operators(&self) -> &[Target] {
        &self.operators
    }

    /// All cells; the real ones are the first.
    pub(super) fn cells(&self, arguments: &Arguments) -> Vec<Cell> {
        let shape = arguments.shape();
        let cells = 0..arguments.cells as usize;
        cells.map(|number| self.cell(number, arguments, &shape)).collect()
    }

    fn cell(&self, number: usize, arguments: &Arguments, shape: &Shape) -> Cell {
        let spaces = spaces_of(number, arguments.cell_spaces, shape);
        let named = spaces.iter().map(|space| match &self.writer {
            Writer::Cloud(synced) => synced.filled.spaces.get(space).cloned(),
            Writer::Replace(_) => None,
        });
        let named = named.zip(&spaces);
        let spaces = named.map(|(found, space)| found.unwrap_or_else(|| space.as_str().to_owned()));
        Cell { number, spaces: spaces.collect(), containers: arguments.containers }
    }

    /// Makes a change.
    pub(super) async fn change(&mut self, number: u32) -> anyhow::Result<Made> {
        let sent = Instant::now();
        let generation = match &mut self.writer {
            Writer::Cloud(synced) => {
                synced.change(number).await?;
                None
            }
            Writer::Replace(replaced) => {
                let Replaced { replacer, data } = replaced.as_mut();
                data.put(probes::rules(number));
                Some(replacer.replace(data).await?.generation)
            }
        };
        let (confirmed, at) = (Instant::now(), Timestamp::now());
        Ok(Made { number, sent, confirmed, at, generation })
    }

    /// Kills all stores as `kill -9` does.
    pub(super) async fn kill_stores(&mut self) -> anyhow::Result<()> {
        for store in std::mem::take(&mut self.stores) {
            store.kill().await?;
        }
        Ok(())
    }

    /// Starts all stores again, each with its address and database; returns when the last one
    /// listens.
    pub(super) async fn start_stores(&mut self) -> anyhow::Result<Instant> {
        for program in &self.programs {
            self.stores.push(self.site.start_again(program)?);
        }
        let mut last = Instant::now();
        for store in &mut self.stores {
            last = store.listens().await?;
        }
        Ok(last)
    }

    /// Usage of all parts now.
    pub(super) fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let all = |servers: &[&Server]| -> anyhow::Result<Vec<Usage>> {
            servers.iter().map(|server| server.usage()).collect()
        };
        let mut parts = vec![("policy store", all(&self.stores.iter().collect::<Vec<_>>())?)];
        if let Writer::Cloud(synced) = &self.writer {
            parts.push(("syncer", all(&[&synced.syncer])?));
            parts.push(("lock server", all(&[&synced.locks])?));
            parts.push(("Cloud Controller (development)", all(&[&synced.cloud.server])?));
        }
        let agents: Vec<&Server> = self.agents.iter().map(|agent| &agent.server).collect();
        parts.push(("cell agent", all(&agents)?));
        Snapshot::take(parts)
    }

    /// Ends all processes in order; an unexpected exit status is an error.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let Self { stores, writer, agents, .. } = self;
        let mut servers: Vec<Server> = agents.into_iter().map(|agent| agent.server).collect();
        if let Writer::Cloud(synced) = writer {
            let Synced { cloud, locks, syncer, .. } = *synced;
            servers.extend([syncer, locks, cloud.server]);
        }
        servers.extend(stores);
        for server in &servers {
            server.terminate()?;
        }
        for server in servers {
            server.ended().await?;
        }
        Ok(())
    }
}

impl Synced {
    async fn start(site: &mut Site, store: &Target, data: &Data) -> anyhow::Result<Self> {
        let cloud = site.cloud_controller().await?;
        let (api, login) = (Api::login(&cloud).await?, Instant::now());
        progress("filling the Cloud Controller");
        let filled = fill(&api, data, false).await?;
        let locks = site.lock_server(None).await?;
        let mut syncer = site.syncer(&cloud, &locks, store)?;
        syncer.log_line("applied-security-groups", |_| true).await.context("the first sync")?;
        Ok(Self { cloud, api, login, filled, locks, syncer })
    }

    async fn change(&mut self, number: u32) -> anyhow::Result<()> {
        if self.login.elapsed() > TOKEN {
            (self.api, self.login) = (Api::login(&self.cloud).await?, Instant::now());
        }
        let rules: Vec<Value> = probes::rules(number).iter().map(rule).collect();
        let path = &self.filled.changing.path;
        let changed = self.api.call(Method::PATCH, path, &json!({ "rules": rules })).await?;
        if !path.ends_with(&changed) {
            bail!("the Cloud Controller changed {changed} instead of {path}");
        }
        Ok(())
    }
}

impl Database {
    fn server(self) -> Option<TestServer> {
        let dialect = match self {
            Self::Sqlite => return None,
            Self::Postgres => Dialect::Postgres,
            Self::Mysql => Dialect::MySql,
        };
        let server = TestServer::start(dialect);
        server.sql(&format!("CREATE DATABASE {GROUPS}"));
        Some(server)
    }
}

/// The database of the groups.
const GROUPS: &str = "groups_of_load";

fn section(server: &TestServer) -> Value {
    let kind = match server.dialect() {
        Dialect::Postgres => "postgres",
        Dialect::MySql => "mysql",
    };
    json!({
        "type": kind, "user": "tester", "password": "secret", "host": "127.0.0.1",
        "port": server.port(), "timeout": 60, "database_name": GROUPS,
    })
}
