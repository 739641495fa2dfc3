//! The process: binds all resources, then serves.
//!
//! Shutdown order: the signal stops the listener; open calls are answered; then the
//! flusher commits the queue and closes the database. The flusher is signalled by a
//! token cancelled when the gRPC task exits, for whatever reason; it does not wait
//! until all handles of the store are dropped. The last envelopes for the
//! loggregator agent are sent concurrently.
//!
//! A failed start logs the original's messages (docs/compatibility/locket.md#configuration).

use std::{pin::pin, time::Duration};

use anyhow::bail;
use runtime::{
    loggregator::{self, Delivery, Loggregator},
    metrics::Family,
    process::{About, Backup, ConfigError, Ending, Process},
    server::{Admin, Component, Grpc, Health, Limits, Listener, RunningAdmin},
    supervise::Tasks,
    tls::{Alpn, Role, ServerTls},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};

use crate::{
    access::Access,
    config::{Config, Database},
    feed::Feed,
    grpc::Service,
    locks::Locks,
    open::{Opened, open},
    reaper,
    report::{self, Report},
    store::{
        Store,
        shared::{HealthCheck, Shared},
    },
};

/// Prefix of the metrics.
const METRICS: &str = "lock_server";
/// The server's own certificate.
const CERTIFICATE: Role = Role { service: METRICS, name: "server" };
/// Time limit for the queue and the database after the last call is answered.
const CLOSE: Duration = Duration::from_secs(5);

/// A server that is bound but does not serve yet.
pub struct App {
    store: Opened,
    check: Option<HealthCheck>,
    loaded: Component,
    front: Front,
}

/// Everything that does not depend on the kind of the store.
struct Front {
    feed: Feed,
    listener: Listener,
    tls: ServerTls,
    limits: Limits,
    admin: Option<RunningAdmin>,
    health: Health,
    access: Access,
    agent: Option<(Loggregator, Delivery)>,
    timing: Timing,
    ending: Ending,
}

/// Timeouts and intervals.
#[derive(Debug, Clone, Copy)]
struct Timing {
    operation: Duration,
    drain: Duration,
    report: Duration,
}

impl App {
    /// Listen address of the gRPC server.
    pub fn local_addr(&self) -> String {
        self.front.listener.local_addr()
    }
}

impl runtime::process::Service for App {
    type Config = Config;

    const ABOUT: About = About {
        name: "lock-server",
        summary: "Lock service for Cloud Foundry components, wire compatible with Locket",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config",
        config_error: ConfigError { exit: 2, prefix: "invalid-config-file" },
    };

    const BACKUP: Option<Backup<Config>> = Some(|config, to| match &config.database {
        Database::Embedded(path) => Ok(storage::sqlite::backup(path, to)?),
        Database::Shared(server) => bail!(
            "the database is on a server: back it up there, as with {}",
            server.dialect.backup_tool()
        ),
    });

    const METRICS: &'static [Family] = crate::metrics::FAMILIES;

    fn log(config: &Config) -> runtime::lager::Options {
        config.log.clone()
    }

    fn redactor(config: &Config) -> runtime::lager::Redactor {
        config.redactor.clone()
    }

    async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
        let Config {
            listen_address,
            tls,
            database,
            operation_timeout,
            drain_timeout,
            max_connections,
            access,
            health_check,
            report_interval,
            loggregator,
            debug_address,
            log: _,
            redactor: _,
        } = config;
        let health = Health::new();
        let agent = loggregator.as_ref().and_then(|config| loggregator::bind(METRICS, config));
        let tls =
            ServerTls::follow(CERTIFICATE, &tls, Alpn::H2).telling(health.component("certificate"));
        let listener = listen(&listen_address).await?;
        let debug = match debug_address {
            Some(address) => Some(Listener::tcp("admin", address.as_str()).await?),
            None => None,
        };
        let loaded = health.component("store");
        let admin = debug.map(|listener| {
            let address = listener.local_addr();
            info_span!("debug-server").in_scope(|| tracing::info!(address, "bound"));
            loaded.not_ready("loading the locks");
            Admin::new(listener, process, &health).start(drain_timeout)
        });
        let feed = Feed::default();
        let store = open(&database, feed.clone()).await?;
        let limits = Limits { connections: max_connections, ..Limits::default() };
        let timing =
            Timing { operation: operation_timeout, drain: drain_timeout, report: report_interval };
        let ending = process.ending.clone();
        let front =
            Front { feed, listener, tls, limits, admin, health, access, agent, timing, ending };
        Ok(Self { store, check: health_check, loaded, front })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { store, check, loaded, front } = self;
        let (drained, closes) = (CancellationToken::new(), front.timing.drain + CLOSE);
        let mut tasks = Tasks::new(shutdown.clone());
        loaded.ready();
        let stop = drained.clone();
        match store {
            Opened::Embedded(store, flusher) => {
                tasks.add("store", async { Ok(flusher.run(stop, loaded).await?) });
                front.serve(store, &mut tasks, drained, &shutdown);
            }
            Opened::Shared(store, follower) => {
                tasks.add("store", async { Ok(follower.run(stop, loaded).await?) });
                front.watch_database(&store, check, &mut tasks, &shutdown);
                front.serve(store, &mut tasks, drained, &shutdown);
            }
        }
        tracing::info!("started");
        tasks.join(closes).await
    }
}

impl Front {
    /// Adds the tasks that observe the database server.
    fn watch_database(
        &self,
        store: &Shared,
        check: Option<HealthCheck>,
        tasks: &mut Tasks,
        shutdown: &CancellationToken,
    ) {
        if let Some(check) = check {
            let span = info_span!("db-health-check-runner");
            let work = store.clone().watch_health(check, shutdown.clone()).instrument(span);
            tasks.add("database health", work);
        }
        let (store, agent) = (store.clone(), self.agent.as_ref().map(|(agent, _)| agent.clone()));
        let stats = move || store.stats();
        let database = report::database(stats, agent, self.timing.report, shutdown.clone());
        tasks.add("database metrics", database);
    }

    /// Adds the tasks that serve `store`; the end of the gRPC task cancels `drained`.
    fn serve<S: Store>(
        self,
        store: S,
        tasks: &mut Tasks,
        drained: CancellationToken,
        shutdown: &CancellationToken,
    ) {
        let Self { feed, listener, tls, limits, admin, health, access, agent, timing, ending } =
            self;
        let Timing { operation, drain, report: interval } = timing;
        tasks.add("reaper", reaper::run(store.clone(), feed.clone(), shutdown.clone()));
        tasks.add("certificates", tls.clone().watch(shutdown.clone()));
        if let Some(admin) = admin {
            tasks.add("admin", admin.run(shutdown.clone()));
        }
        let service = Service::new(Locks::new(store, operation), shutdown.clone()).only(access);
        if let Some((loggregator, delivery)) = agent {
            let report = Report { loggregator, feed, calls: service.calls(), interval };
            tasks.add("report", report.run(shutdown.clone()));
            tasks.add("loggregator", delivery.run(shutdown.clone()));
        }
        tasks.add("grpc", {
            let (locket, watch) = service.servers();
            let server = Grpc::new(listener, Some(tls), &health)
                .limits(limits)
                .descriptors(proto::DESCRIPTORS)
                .enter(locket)
                .enter(watch);
            let drained = drained.drop_guard();
            let span = info_span!("grpc-server");
            span.in_scope(|| tracing::info!(address = server.local_addr(), "started"));
            let shutdown = shutdown.clone();
            async move {
                let _drained = drained;
                serve(server, span, shutdown, drain, ending).await
            }
        });
    }
}

async fn listen(address: &str) -> anyhow::Result<Listener> {
    let listened = Listener::tcp("grpc", address).await.map_err(anyhow::Error::new);
    let span = info_span!("grpc-server");
    span.in_scope(|| match &listened {
        Ok(_) => {}
        Err(error) => tracing::error!(error = format_args!("{error:#}"), "failed-to-listen"),
    });
    listened
}

/// Serves and logs the original's lines about it.
async fn serve(
    server: Grpc,
    span: Span,
    shutdown: CancellationToken,
    drain: Duration,
    ending: Ending,
) -> anyhow::Result<()> {
    let mut served = pin!(server.serve(shutdown.clone(), drain));
    let served = tokio::select! {
        biased;
        () = shutdown.cancelled() => {
            span.in_scope(|| tracing::info!(signal = ending.signal(), "signalled"));
            served.await
        }
        served = served.as_mut() => served,
    };
    span.in_scope(|| tracing::info!("complete"));
    Ok(served?)
}
