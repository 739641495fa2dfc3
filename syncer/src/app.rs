//! Builds the running syncer from the configuration.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Json, Router, routing::post};
use http::StatusCode;
use model::lock::{Claim, LockKey, LockKind, LockValue, Ttl};
use runtime::{
    client,
    dropsonde::Dropsonde,
    https::Servers,
    lager,
    metrics::Family,
    otlp,
    process::{About, ConfigError, Process, Service},
    server::{Admin, Health, Listener, RunningAdmin},
    supervise::Tasks,
    tls::{ClientTls, Files, Role},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{error_span, info};

use crate::{
    cloud_controller::{CloudController, Http, Trust},
    config::{self, Config, InternalTls},
    lease::{
        Times,
        keeper::{self, Keeper, Pace},
        locket::Locket,
    },
    poll::{
        Poller,
        sync_now::{Outcome, SyncNow},
    },
    report::Report,
    store::{self, Store},
};

/// The job that this one replaces: the origin of its metrics, and the key of the lock, so
/// that Portcullis and original syncers exclude each other.
const JOB: &str = "policy-server-asg-syncer";
/// Time limit for the release of the lock at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// A syncer with all clients built that does not run yet.
pub struct App {
    keeper: Keeper,
    poller: Arc<Poller>,
    admin: Option<RunningAdmin>,
    report: Report,
    watched: Watched,
    interval: Duration,
}

/// TLS files of all clients, to be watched.
struct Watched {
    health: Health,
    clients: Vec<ClientTls>,
}

impl Watched {
    /// Creates a client's TLS, whose state the readiness `component` shows.
    fn follow(&mut self, name: &'static str, component: &'static str, files: &Files) -> ClientTls {
        self.telling(component, ClientTls::follow(role(name), files))
    }

    fn telling(&mut self, component: &'static str, tls: ClientTls) -> ClientTls {
        let tls = tls.telling(self.health.component(component));
        self.clients.push(tls.clone());
        tls
    }
}

fn role(name: &'static str) -> Role {
    Role { service: "syncer", name }
}

impl Service for App {
    type Config = Config;

    const ABOUT: About = About {
        name: "syncer",
        summary: "Copies the Cloud Controller's security groups to the policy store",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config-file",
        config_error: ConfigError {
            exit: 1,
            prefix: "cfnetworking.policy-server-asg-syncer: could not read config file",
        },
    };

    const METRICS: &'static [Family] = crate::metrics::FAMILIES;

    fn log(config: &Config) -> lager::Options {
        lager::Options {
            source: format!("{}.policy-server-asg-syncer", config.log_prefix),
            level: config.log_level,
            format: lager::TimeFormat::Rfc3339,
        }
    }

    fn otlp(config: &Config) -> Option<otlp::Source<'_>> {
        let instance = Some(config.uuid.as_str());
        config.otlp.as_ref().map(|config| otlp::Source { config, instance })
    }

    async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
        let Config {
            uuid,
            log_prefix: _,
            log_level: _,
            debug_server,
            metron,
            otlp: _,
            poll,
            cloud_controller,
            lock,
            store,
        } = config;
        // The original numbers its log sessions in this order; the spans of the clients and the
        // lock follow. The first session is that of its metrics.
        let _session_1 = error_span!(parent: None, "time-metric-emitter");
        let metron = match &metron {
            None => Dropsonde::default(),
            Some(address) => Dropsonde::to(address, JOB),
        };
        let report = Report::new(metron);
        let times = report.clone();
        let health = Health::new();
        let mut watched = Watched { health: health.clone(), clients: Vec::new() };
        let cloud_controller = reach_cloud_controller(cloud_controller, &mut watched)?;
        let keeper = keeper(&lock, &uuid, &mut watched)?;
        let store = reach_store(store, uuid, &mut watched)?;
        let sync_now = SyncNow::default();
        let interval = poll.intervals.poll;
        let poller = Poller::new(poll, cloud_controller, store, times, &health, sync_now.clone());
        let admin = match debug_server {
            Some(address) => {
                let admin = debug_endpoint(address.as_str(), process, &health, sync_now).await?;
                Some(admin.start(DRAIN))
            }
            None => None,
        };
        Ok(Self { keeper, poller: Arc::new(poller), admin, report, watched, interval })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { keeper, poller, admin, report, watched, interval } = self;
        // A whole number, as the original's, where it is one.
        match interval.subsec_nanos() {
            0 => info!(interval = interval.as_secs(), "starting-asg-syncer"),
            _ => info!(interval = interval.as_secs_f64(), "starting-asg-syncer"),
        }
        let mut tasks = Tasks::new(shutdown.clone());
        let lead = move |term| Arc::clone(&poller).lead(term);
        tasks.add("lease", keeper.run(shutdown.clone(), lead));
        if let Some(admin) = admin {
            tasks.add("debug-server", admin.run(shutdown.clone()));
        }
        tasks.add("metrics", report.of_process(shutdown.clone()));
        for tls in watched.clients {
            tasks.add("certificates", tls.watch(shutdown.clone()));
        }
        tasks.join(DRAIN).await
    }
}

/// Two ways to renew the lock: times and a connection for any lock server, and for one that
/// gives fencing tokens.
fn keeper(
    lock: &config::Lock,
    owner: &model::lock::Owner,
    watched: &mut Watched,
) -> anyhow::Result<Keeper> {
    let tls = watched.follow("lock-server-client", "lock-server-certificate", &lock.tls);
    let pace = |times: Times| {
        let seconds = i64::try_from(times.ttl.as_secs()).context("lock_ttl_seconds is too long")?;
        let ttl = Ttl::try_from_seconds(seconds)?;
        let locket = reach_lock_server(lock, tls.clone(), times.ttl)?;
        anyhow::Ok(Pace { ttl, times, locket })
    };
    let usual = pace(lock.times)?;
    let claim = Claim {
        key: LockKey::parse(JOB).expect("it is short"),
        owner: owner.clone(),
        value: LockValue::parse("").expect("it is short"),
        kind: LockKind::Lock,
        ttl: usual.ttl,
    };
    let settings = keeper::Settings { claim, exit_on_loss: lock.exit_on_loss };
    let component = watched.health.component("lock-server");
    Ok(Keeper::new(settings, usual, Some(pace(lock.times_with_tokens)?), component))
}

fn reach_lock_server(lock: &config::Lock, tls: ClientTls, ttl: Duration) -> anyhow::Result<Locket> {
    // A lock survives a dead server only if its death is detected well within the ttl.
    let default = client::Options::noticing_within(ttl * 3 / 10);
    let options = client::Options {
        keepalive_interval: lock.keepalive_time.or(default.keepalive_interval),
        keepalive_timeout: lock.keepalive_timeout.unwrap_or(default.keepalive_timeout),
        ..default
    };
    let channel = client::channel(lock.address.as_str(), Some(tls), options)
        .context("failed-to-create-locket-client")?;
    Ok(Locket::new(channel))
}

fn reach_store(
    store: config::Store,
    owner: model::lock::Owner,
    watched: &mut Watched,
) -> anyhow::Result<Store> {
    let config::Store { address, tls, timeout, allow_mass_removal } = store;
    let tls = watched.follow("policy-store-client", "policy-store-certificate", &tls);
    let channel = client::channel(address.as_str(), Some(tls), client::Options::default())
        .context("policy store client")?;
    Ok(Store::new(channel, store::Settings { owner, allow_mass_removal, timeout }))
}

fn reach_cloud_controller(
    config: config::CloudController,
    watched: &mut Watched,
) -> anyhow::Result<CloudController> {
    let config::CloudController { settings, authorities, internal_tls, user_agent } = config;
    let (public, internal) = match internal_tls {
        InternalTls::Files(files) => {
            let tls = watched.follow("cc-internal-client", "cc-internal-certificate", &files);
            (public_trust(&authorities, watched), Trust::Files(tls))
        }
        InternalTls::Skip(identity) => (Trust::Anything(None), Trust::Anything(identity)),
    };
    let public =
        Http::new(public, user_agent.clone(), Servers::new(&[&settings.url, &settings.uaa.url]))
            .context("uaa_ca, cc_ca_cert")?;
    let internal = Http::new(internal, user_agent, Servers::new(&[&settings.internal_url]))
        .context("cc_internal client")?;
    Ok(CloudController::new(settings, public, internal))
}

/// Skips files that contain only white space, as the original does; without any other
/// file, trusts the system's CAs. A file that cannot be read is retried.
fn public_trust(paths: &[PathBuf], watched: &mut Watched) -> Trust {
    let is_blank = |path| std::fs::read(path).is_ok_and(|text| text.trim_ascii().is_empty());
    if paths.iter().all(is_blank) {
        return Trust::System;
    }
    let tls = ClientTls::follow_trusting(role("cc-authorities"), paths);
    Trust::Files(watched.telling("cc-authorities", tls))
}

async fn debug_endpoint(
    address: &str,
    process: &Process,
    health: &Health,
    sync_now: SyncNow,
) -> anyhow::Result<Admin> {
    let listener = Listener::tcp("admin", address).await?;
    info!(address = %listener.local_addr(), "debug-server-bound");
    let sync = move || async move { answer(sync_now.ask().await) };
    let router = Router::new().route("/sync-now", post(sync));
    Ok(Admin::new(listener, process, health).merge(router))
}

fn answer(outcome: Outcome) -> (StatusCode, Json<serde_json::Value>) {
    let (status, body) = match outcome {
        Outcome::Applied(applied) => (StatusCode::OK, json!({ "applied": applied })),
        Outcome::Failed { error, retry_in_ms } => {
            (StatusCode::BAD_GATEWAY, json!({ "error": error, "retry-in-ms": retry_in_ms }))
        }
        Outcome::NotLeading => {
            (StatusCode::CONFLICT, json!({ "error": "this syncer does not lead" }))
        }
        Outcome::LeadershipEnded => {
            let error = "this syncer ceased to lead before the answer was there";
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error }))
        }
    };
    (status, Json(body))
}
