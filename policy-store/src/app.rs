//! The process: binds all resources, then runs.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::Router;
use jiff::Timestamp;
use runtime::{
    dropsonde::Dropsonde,
    lager,
    metrics::Family,
    otlp,
    process::{About, Backup, ConfigError, Flag, Process, Service, Task},
    server::{Admin, Component, Grpc, Health, Http, Limits, Listener, RunningAdmin},
    supervise::Tasks,
    tls::{Alpn, Role, ServerTls},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    committer::{self, Commits},
    config::{Config, Database},
    feed::{
        cells::Cells,
        changes::Changes,
        laggards,
        watch::{Feed, gauge, save_reports},
    },
    groups::current::SnapshotPublisher,
    grpc::PolicyStore,
    http::{
        self, Api,
        admission::{self, Admission},
        tags::Tags,
    },
    open,
    page::{Page, Services},
    release,
    report::Report,
    rollout,
    store::{Contents, Store},
    upkeep::Upkeep,
    use_upkeep::UseUpkeep,
    uses::Uses,
};

/// The original's origin name in its metrics.
const ORIGIN: &str = "policy-server-internal";

/// The server's own certificate, shared by both ports.
const CERTIFICATE: Role = Role { service: "policy_store", name: "server" };

/// Time limit for tasks to exit after the servers have drained.
const AFTER_DRAIN: Duration = Duration::from_secs(5);

/// Time limit for open admin requests after shutdown began.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// Buffer size: fits a request with the longest accepted URL; also the limit of unsent
/// bytes for a slow reader.
const HTTP_BUFFER: usize = 96 << 10;

/// The listener and the certificates of the original's API.
struct Internal {
    listener: Listener,
    tls: ServerTls,
}

/// A policy store with all resources bound that does not serve yet.
pub struct App {
    config: Config,
    tls: ServerTls,
    grpc: Listener,
    internal: Option<Internal>,
    health_checks: Option<Listener>,
    began: Instant,
    admin: RunningAdmin,
    health: Health,
    metron: Dropsonde,
    store: Arc<dyn Store>,
    board: Arc<SnapshotPublisher>,
    cells: Cells,
    page: Option<Page>,
}

impl Service for App {
    type Config = Config;

    const ABOUT: About = About {
        name: "policy-store",
        summary: "Stores security groups and pushes changes to cells",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config-file",
        config_error: ConfigError {
            exit: 1,
            prefix: "cfnetworking.policy-server-internal: could not read config file",
        },
    };

    const TASKS: &'static [Task<Config>] = &[Task {
        flag: Flag {
            name: "reset-fencing",
            help: "Forget the newest fencing token, so that the next writer is accepted with any \
                   token, and exit",
            prints: true,
        },
        run: |config| open::reset_fencing(&config.database),
    }];

    const BACKUP: Option<Backup<Config>> = Some(|config, to| match &config.database {
        Database::Sqlite(path) => Ok(storage::sqlite::backup(path, to)?),
        Database::Server { options, .. } => bail!(
            "the database is on a server: back it up there, as with {}",
            options.dialect.backup_tool()
        ),
    });

    const METRICS: &'static [Family] = crate::metrics::FAMILIES;

    fn log(config: &Config) -> lager::Options {
        lager::Options {
            source: format!("{}.policy-server-internal", config.log_prefix),
            level: config.log_level,
            format: lager::TimeFormat::Rfc3339,
        }
    }

    fn otlp(config: &Config) -> Option<otlp::Source<'_>> {
        config.otlp.as_ref().map(|config| otlp::Source { config, instance: None })
    }

    async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
        let health = Health::new();
        let tls = ServerTls::follow(CERTIFICATE, &config.tls, Alpn::H2)
            .telling(health.component("certificate"));
        let grpc = Listener::tcp("grpc", config.grpc_listen_address.as_str()).await?;
        let internal = match &config.internal_listen_address {
            None => None,
            Some(address) => Some(Internal {
                listener: Listener::tcp("http", address.as_str()).await?,
                tls: tls.for_alpn(Alpn::None),
            }),
        };
        let health_checks = match &config.health_check_address {
            None => None,
            Some(address) => Some(Listener::tcp("health", address.as_str()).await?),
        };
        let admin = Listener::tcp("admin", config.admin_listen_address.as_str()).await?;
        let metron = match &config.metron_address {
            None => Dropsonde::default(),
            Some(address) => Dropsonde::to(address, ORIGIN),
        };
        health.component(http::health::DATABASE).not_ready("loading the groups");
        let page = config.web_page.then(Page::default);
        let mut admin = Admin::new(admin, process, &health);
        if let Some(page) = &page {
            admin = admin.merge(page.router());
        }
        let admin = admin.start(ADMIN_DRAIN);
        let store = Box::pin(open::open(&config.database)).await?;
        let nothing = Arc::new(Contents::default().into());
        committer::mend(&*store, nothing).await.context("checking for lost rows")?;
        let contents = store.load(None).await.context("reading the database")?;
        let cells = Cells::new(contents.reports.clone());
        let newest = Arc::new(contents.into());
        let released = release::released(&*store, &newest, &[]).await;
        let released = released.context("reading the frozen generation")?;
        let board = Arc::new(SnapshotPublisher::starting(newest, released, Instant::now()));
        process.metrics.at_scrape({
            let (board, cells) = (Arc::clone(&board), cells.clone());
            move || gauge(&board, &cells, Timestamp::now())
        });
        let began = Instant::now();
        Ok(Self {
            config,
            tls,
            grpc,
            internal,
            health_checks,
            began,
            admin,
            health,
            metron,
            store,
            board,
            cells,
            page,
        })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let store = Arc::clone(&self.store);
        let drain = self.config.drain_timeout;
        let outcome = self.tasks(&shutdown).join(drain + AFTER_DRAIN).await;
        // The writers are gone; confirmed changes are durable already.
        let closed = store.close().await.context("closing the database");
        // The reason of the exit is more useful than its effect on the database.
        outcome.and(closed)
    }
}

impl App {
    /// Listen address of the gRPC server, with the bound port.
    #[must_use]
    pub fn grpc_address(&self) -> String {
        self.grpc.local_addr()
    }

    /// Listen address of the original's HTTP API, if enabled.
    #[must_use]
    pub fn internal_address(&self) -> Option<String> {
        self.internal.as_ref().map(|internal| internal.listener.local_addr())
    }

    /// Listen address of the original's health checks, if enabled.
    #[must_use]
    pub fn health_check_address(&self) -> Option<String> {
        self.health_checks.as_ref().map(Listener::local_addr)
    }

    fn tell_start(&self) {
        let snapshot = self.board.current();
        tracing::info!(
            address = self.grpc_address(),
            "admin-address" = self.admin.local_addr(),
            "internal-address" = self.internal_address(),
            "health-check-address" = self.health_check_address(),
            generation = snapshot.state.generation.0,
            groups = snapshot.entries().len(),
            "started"
        );
    }

    fn tasks(self, shutdown: &CancellationToken) -> Tasks {
        self.tell_start();
        let (force_close, drained) = (CancellationToken::new(), CancellationToken::new());
        let (commits, committer) =
            committer::committer(Arc::clone(&self.store), Arc::clone(&self.board));
        let reads = self.health.component(http::health::DATABASE);
        let feed = Feed {
            board: Arc::clone(&self.board),
            cells: self.cells.clone(),
            changes: Changes::default(),
            uses: Uses::default(),
            drain: force_close.clone(),
        };
        let committer = committer
            .telling(reads, self.health.component("database writes"))
            .recording(feed.changes.clone(), feed.cells.clone())
            .rolling_out(self.config.rollout.clone());
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.add("certificates", self.tls.clone().watch(shutdown.clone()));
        let spread = self.config.drain_spread;
        let drain = force_close_after(shutdown.clone(), spread, force_close, drained.clone());
        tasks.add("drain", drain);
        tasks.add("writer", committer.run(drained.clone()));
        self.keep(&mut tasks, &feed, &commits, &drained);
        let stale_after = self.config.stale_after;
        if let Some(internal) = self.internal {
            let api = api(&self.config, &self.board).as_new_as(Arc::clone(&self.store));
            let api = api.telling(self.metron.clone()).noting(feed.uses.clone());
            serve_internal(&mut tasks, internal, api, self.config.drain_timeout, shutdown);
        }
        if let Some(listener) = self.health_checks {
            let (health, board) = (self.health.clone(), Arc::clone(&self.board));
            let checked = http::health::Checked { health, board, stale_after, began: self.began };
            let router = http::health::router(checked, self.metron.clone());
            serve_health_checks(&mut tasks, listener, router, shutdown);
        }
        let synced = self.health.component("sync");
        tasks.add("readiness", tell_readiness(self.board, stale_after, synced, shutdown.clone()));
        let report =
            Report { metron: self.metron, store: Arc::clone(&self.store), began: self.began };
        tasks.add("metrics", report.run(shutdown.clone()));
        tasks.add("admin", self.admin.run(shutdown.clone()));
        let Config { access, replaces, drain_timeout, .. } = self.config;
        let service = PolicyStore::new(access, feed, commits, self.store, replaces);
        let foundation = service.foundation();
        if let Some(page) = self.page {
            page.open(Services { store: service.clone(), foundation: foundation.clone() });
        }
        // Fits four Replaces with messages of the maximum size.
        let limits = Limits { spread, unfinished: 128 << 20, ..Limits::default() };
        let server = Grpc::new(self.grpc, Some(self.tls), &self.health).limits(limits);
        let server = server.descriptors(proto::DESCRIPTORS).enter(service.entry());
        let server = server.enter(foundation.entry()).serve(shutdown.clone(), drain_timeout);
        tasks.add("grpc", async move {
            let outcome = server.await;
            drained.cancel();
            Ok(outcome?)
        });
        tasks
    }

    /// Starts what runs until the servers have drained.
    fn keep(&self, tasks: &mut Tasks, feed: &Feed, commits: &Commits, drained: &CancellationToken) {
        let (store, every) = (|| Arc::clone(&self.store), self.config.report_save_interval);
        tasks.add("reports", save_reports(store(), feed.clone(), every, drained.clone()));
        tasks.add("uses", UseUpkeep::new(store(), feed.clone()).run(every, drained.clone()));
        let upkeep = Upkeep {
            store: store(),
            board: Arc::clone(&self.board),
            changes: feed.changes.clone(),
            limits: self.config.history,
        };
        tasks.add("history", upkeep.run(drained.clone()));
        tasks.add("laggards", laggards::watch(feed.clone(), drained.clone()));
        let rollout = rollout::Watch { feed: feed.clone(), commits: commits.clone() };
        tasks.add("rollout", rollout.run(drained.clone()));
    }
}

/// The HTTP API of the original.
fn api(config: &Config, board: &Arc<SnapshotPublisher>) -> Api {
    let gate = Admission::new(config.concurrent_lists, admission::TIMEOUT);
    let tags = Tags::new(config.tag_length);
    Api::new(config.access.clone(), Arc::clone(board), gate, tags)
}

fn serve_health_checks(
    tasks: &mut Tasks,
    listener: Listener,
    router: Router,
    shutdown: &CancellationToken,
) {
    let shutdown = shutdown.clone();
    tasks.add("health checks", async move {
        Http::new(listener, None).serve(router, shutdown, Duration::from_secs(1)).await;
        Ok(())
    });
}

fn serve_internal(
    tasks: &mut Tasks,
    internal: Internal,
    api: Api,
    drain: Duration,
    shutdown: &CancellationToken,
) {
    let Internal { listener, tls } = internal;
    let address = listener.local_addr();
    if let Some((host, port)) = address.rsplit_once(':') {
        let port = port.parse::<u16>().ok();
        tracing::info!("listen-address" = host, port, "starting internal server");
    }
    let router = api.router();
    let limits = Limits { buffer: HTTP_BUFFER, ..Limits::default() };
    let server = Http::new(listener, Some(tls)).limits(limits);
    let shutdown = shutdown.clone();
    tasks.add("internal API", async move {
        server.serve(router, shutdown, drain).await;
        Ok(())
    });
}

/// Drains the clients one after another, each watch with its connection; open requests
/// may complete. Then ends the remaining requests, early enough that the clients still
/// get a status.
async fn force_close_after(
    shutdown: CancellationToken,
    spread: Duration,
    force_close: CancellationToken,
    drained: CancellationToken,
) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    let _in_time = tokio::time::timeout(spread, drained.cancelled()).await;
    force_close.cancel();
    Ok(())
}

/// Reports the store as not ready when no writer confirmed its set for too long: cells
/// then get outdated groups.
async fn tell_readiness(
    board: Arc<SnapshotPublisher>,
    stale_after: Option<Duration>,
    synced: Component,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut confirmed = board.confirmed();
    loop {
        let last = *confirmed.borrow_and_update();
        synced.ready();
        let Some(stale_after) = stale_after else {
            shutdown.cancelled().await;
            return Ok(());
        };
        let deadline = last.checked_add(stale_after);
        let stale = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            let seconds = stale_after.as_secs();
            synced.not_ready(format!("no Replace was confirmed for {seconds} seconds"));
            tracing::error!(seconds, "store-is-stale");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = stale => {}
            // This function keeps the board alive.
            _changed = confirmed.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use model::{generation::Watermark, lock::Owner};

    use super::*;
    use crate::{
        groups::{
            decide::{Origin, Replacement},
            manifest::Supplied,
            snapshot::Snapshot,
        },
        store::{Contents, testing::Memory},
    };

    /// The thread exits without a request, as after a panic.
    #[tokio::test]
    async fn the_end_of_the_writer_ends_the_process() {
        runtime::tls::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let own = rcgen::generate_simple_self_signed(["policy-store".to_owned()]).unwrap();
        std::fs::write(file("crt"), own.cert.pem()).unwrap();
        std::fs::write(file("key"), own.signing_key.serialize_pem()).unwrap();
        let config = serde_json::json!({
            "grpc_listen_address": "127.0.0.1:0",
            "admin_listen_address": "127.0.0.1:0",
            "ca_cert_file": file("crt"),
            "server_cert_file": file("crt"),
            "server_key_file": file("key"),
            "database": { "type": "sqlite", "path": file("db") },
        });
        let config = runtime::config::parse(&config.to_string()).unwrap().config;
        let app = App::bind(config, &Process::detached()).await.unwrap();
        app.store.close().await.unwrap();
        let running = app.run(CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        let error = format!("{:#}", ended.expect("it ends by itself").unwrap_err());
        assert!(error.contains("database"), "{error}");
        assert!(error.contains("the writer of the database has ended"), "{error}");
    }

    /// Over time: ready, stale, and ready again after a Replace.
    #[tokio::test(start_paused = true)]
    async fn a_store_without_a_writer_becomes_stale() {
        let empty = Snapshot::from(Contents::default());
        let board = Arc::new(SnapshotPublisher::new(empty, Instant::now()));
        let (commits, committer) =
            committer::committer(Arc::new(Memory::default()), Arc::clone(&board));
        let health = Health::new();
        let (synced, shutdown) = (health.component("sync"), CancellationToken::new());
        let stale_after = Duration::from_secs(600);
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.add("writer", committer.run(shutdown.clone()));
        tasks.add("readiness", tell_readiness(board, Some(stale_after), synced, shutdown.clone()));
        health.wait_for(true).await;
        let began = Instant::now();
        health.wait_for(false).await;
        assert_eq!(began.elapsed().as_secs(), 600);
        let reason = "no Replace was confirmed for 600 seconds".to_owned();
        assert_eq!(health.reasons(), [("sync", reason)]);
        let nothing = Replacement {
            owner: Owner::parse("syncer").unwrap(),
            token: None,
            watermark: Watermark::try_new(0, 0).unwrap(),
            allow_mass_removal: false,
            accepted_removal: None,
            rollout: None,
            supplied: Supplied::default(),
            at: Timestamp::UNIX_EPOCH,
            origin: Origin::default(),
        };
        commits.commit(nothing).await.unwrap();
        health.wait_for(true).await;
        shutdown.cancel();
        tasks.join(Duration::from_secs(1)).await.unwrap();
    }
}
