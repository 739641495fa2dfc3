//! The process: binds everything, then serves.
//!
//! Order at the end: the signal ends accepting; open calls get their answers;
//! then the flusher stores what is queued and closes the database. The flusher is
//! told by a token that falls when the gRPC task ends, however it ends: it does
//! not wait for handles of the store to be dropped.

use std::time::Duration;

use anyhow::Context as _;
use proto::{lock_v1::lock_watch_server::LockWatchServer, models::locket_server::LocketServer};
use runtime::{
    process::{About, ConfigError, Process},
    server::{Admin, Grpc, Health, Listener},
    supervise::Tasks,
    tls::{Alpn, ServerTls},
};
use storage::sqlite::Options;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::{
    config::Config,
    feed::Feed,
    grpc::Service,
    locks::Locks,
    reaper,
    store::embedded::{Embedded, Flusher},
};

/// What the queue and the database get after the last call was answered.
const CLOSE: Duration = Duration::from_secs(5);

/// A server that is bound and not serving yet.
pub struct App {
    store: Embedded,
    flusher: Flusher,
    feed: Feed,
    listener: Listener,
    tls: ServerTls,
    admin: Option<Admin>,
    health: Health,
    operation_timeout: Duration,
}

impl App {
    /// Where gRPC is served.
    pub fn local_addr(&self) -> String {
        self.listener.local_addr()
    }
}

impl runtime::process::Service for App {
    type Config = Config;

    const ABOUT: About = About {
        name: "lock-server",
        summary: "Locks and presences for Cloud Foundry components, compatible with Locket",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config",
        config_error: ConfigError { exit: 2, prefix: "invalid-config-file" },
    };

    fn log(config: &Config) -> runtime::lager::Options {
        config.log()
    }

    async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
        let Config {
            listen_address,
            tls,
            database,
            operation_timeout,
            debug_address,
            log_level: _,
            time_format: _,
        } = config;
        let health = Health::new();
        let tls = ServerTls::load(&tls, Alpn::H2).context("invalid-tls-config")?;
        let listener = Listener::tcp("listen_address", &listen_address).await?;
        let debug = match debug_address {
            Some(address) => Some(Listener::tcp("debug_address", address.as_str()).await?),
            None => None,
        };
        let admin = debug.map(|listener| {
            let address = listener.local_addr();
            info_span!("debug-server").in_scope(|| tracing::info!(address, "bound"));
            Admin::new(listener, process, &health)
        });
        let feed = Feed::default();
        let (store, flusher) = Embedded::open(&database, &Options::default(), feed.clone())
            .await
            .context("opening database_connection_string")?;
        Ok(Self { store, flusher, feed, listener, tls, admin, health, operation_timeout })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { store, flusher, feed, listener, tls, admin, health, operation_timeout } = self;
        let drain = operation_timeout;
        let drained = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone());

        tasks.add("store", {
            let (stop, health) = (drained.clone(), health.component("store"));
            // Its locks are loaded: `started` may be said.
            health.ready();
            async move { Ok(flusher.run(stop, health).await?) }
        });
        tasks.add("reaper", reaper::run(store.clone(), feed, shutdown.clone()));
        tasks.add("certificates", tls.clone().watch(shutdown.clone()));
        if let Some(admin) = admin {
            let shutdown = shutdown.clone();
            tasks.add("admin", async move {
                admin.serve(shutdown, drain).await;
                Ok(())
            });
        }
        tasks.add("grpc", {
            let address = listener.local_addr();
            info_span!("grpc-server").in_scope(|| tracing::info!(address, "started"));
            let service = Service::new(Locks::new(store, operation_timeout), shutdown.clone());
            let server = Grpc::new(listener, Some(tls), &health)
                .descriptors(proto::DESCRIPTORS)
                .add(LocketServer::new(service.clone()))
                .add(LockWatchServer::new(service));
            let drained = drained.drop_guard();
            async move {
                let _drained = drained;
                server.serve(shutdown, drain).await?;
                Ok(())
            }
        });
        tracing::info!("started");
        tasks.join(drain + CLOSE).await
    }
}
