//! The agent process: binds sockets, files and the kernel, then runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::any,
};
use proto::cell_v1::cell_server::CellServer;
use runtime::{
    dropsonde::Dropsonde,
    lager::{self, Level, TimeFormat},
    loggregator::{self, Delivery, Loggregator},
    metrics::Family,
    otlp,
    process::{About, Command, ConfigError, Flag, Process},
    server::{Admin, Grpc, Health, Http, Listener},
    supervise::Tasks,
    tls::ClientTls,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{Method, StatusCode};

use crate::{
    app_log::AppLogs,
    assemble::{self, Groups},
    c2c_logging,
    config::{Config, DataPlane},
    containers::{Feed, StoreFile},
    control::{self, Control, PolicyAgent},
    denied::{Denials, Recorder, lines::Lines, nflog::Nflog},
    groups::{self, Connectivity},
    grpc,
    inspect::Inspector,
    metrics::{STORE_CONNECTED, Times},
    once::{self, OneShot},
    plane::{Plane, nftables::nft::Nft},
    questions,
    reconcile::{Enforced, Reconciler},
    render_command,
    state::StateDirectory,
    underlay,
    uses::RuleUse,
};

/// The job that this one replaces: the origin of its metrics.
const JOB: &str = "vxlan-policy-agent";
/// Shutdown timeout of open requests and tasks.
const DRAIN: Duration = Duration::from_secs(5);

/// The agent, bound.
pub enum App {
    /// A long-running agent.
    Agent(Box<Agent>),
    /// A one-shot run.
    OneShot(Box<OneShot>),
}

/// An agent that runs until shutdown.
pub struct Agent {
    config: Config,
    plane: Box<dyn Plane>,
    state: StateDirectory,
    tls: ClientTls,
    http: Listener,
    debug: Listener,
    socket: Listener,
    loggregator: Option<(Loggregator, Delivery)>,
    policies: Option<PolicyAgent>,
    times: Times,
    /// The socket for denied packets, or why they are not recorded.
    nflog: Result<Nflog, String>,
    /// The kernel's counters at the start.
    counted: BTreeMap<String, u64>,
    process: Process,
}

impl runtime::process::Service for App {
    type Config = Config;

    const ABOUT: About = About {
        name: "cell-agent",
        summary: "Enforces security groups for the containers of one cell",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config-file",
        config_error: ConfigError {
            exit: 1,
            prefix: "cfnetworking: could not read config file invalid config",
        },
    };

    const FLAGS: &'static [Flag] = &[once::ONCE, once::DRY_RUN];
    const COMMANDS: &'static [Command] = &[render_command::RENDER];

    const METRICS: &'static [Family] = crate::metrics::FAMILIES;

    fn log(config: &Config) -> lager::Options {
        lager::Options {
            source: format!("{}.vxlan-policy-agent", config.log_prefix),
            level: config.log_level,
            format: TimeFormat::Rfc3339,
        }
    }

    fn otlp(config: &Config) -> Option<otlp::Source<'_>> {
        let instance = Some(config.cell.as_str());
        config.otlp.as_ref().map(|config| otlp::Source { config, instance })
    }

    async fn bind(mut config: Config, process: &Process) -> anyhow::Result<Self> {
        let directory = config.container_store.parent().filter(|path| !path.as_os_str().is_empty());
        if let Some(directory) = directory
            && !directory.is_dir()
        {
            bail!("datastore-directory-stat: there is no directory {}", directory.display());
        }
        choose_plane(&mut config);
        config.settings.underlay = underlay::interfaces(&config.underlay_ips)?;
        if let Some(pass) = OneShot::bind(&config, process).await? {
            return Ok(Self::OneShot(Box::new(pass)));
        }
        Ok(Self::Agent(Box::new(Agent::bind(config, process).await?)))
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        match self {
            Self::Agent(agent) => agent.run(shutdown).await,
            Self::OneShot(pass) => {
                let pass = Box::pin(pass.run());
                let ended = shutdown.run_until_cancelled(pass).await;
                ended.unwrap_or_else(|| bail!("stopped before the pass was complete"))
            }
        }
    }
}

impl Agent {
    async fn bind(mut config: Config, process: &Process) -> anyhow::Result<Self> {
        let state = assemble::open_state(&config)?;
        let mut plane = assemble::plane(&config, state.clone()).await?;
        // Packets that the kernel sends from now on are counted from now on.
        let records = config.settings.records_denied().is_some() && config.enabled;
        let counted = if records { plane.counters().await } else { None };
        let counted = counted.unwrap_or_default();
        let nflog = match config.enabled {
            true => assemble::nflog(&mut config.settings),
            false => Err("the agent enforces nothing".to_owned()),
        };
        let tls = ClientTls::follow(assemble::CERTIFICATE, &config.tls);
        let http = Listener::tcp("control", &config.control_address).await?;
        let debug = Listener::tcp("admin", &config.debug_address).await?;
        let socket = Listener::unix("cell", &config.control_socket).await?;
        let loggregator = config
            .loggregator
            .as_ref()
            .and_then(|config| loggregator::bind(assemble::METRICS, config));
        let policies = match &config.policy_agent {
            Some(address) => {
                let agent = PolicyAgent::new(address.as_str(), config.force_timeout);
                Some(agent.context("an HTTP client for policy_agent_address")?)
            }
            None => None,
        };
        let metron = match &config.metron {
            Some(address) => Dropsonde::to(address, JOB),
            None => Dropsonde::default(),
        };
        let times = Times::new(metron);
        let process = process.clone();
        Ok(Self {
            config,
            plane,
            state,
            tls,
            http,
            debug,
            socket,
            loggregator,
            policies,
            times,
            nflog,
            counted,
            process,
        })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        tracing::info!(
            cell = %self.config.cell,
            control = self.http.local_addr(),
            debug = self.debug.local_addr(),
            socket = self.socket.local_addr(),
            "policy-store" = self.config.source.address(),
            "data-plane" = self.config.plane.name(),
            enabled = self.config.enabled,
            "started"
        );
        let mut tasks = Tasks::new(shutdown.clone());
        if self.config.enabled {
            self.start(&mut tasks, &shutdown).await?;
        } else {
            // Chains beside those of the CNI plugin stay, like with the original.
            if let DataPlane::Nftables = self.config.plane {
                assemble::take_away(&mut Nft::new(&self.config.nft)).await?;
            }
            // No gRPC service runs, so callers are refused at once.
            drop(self.socket);
            let routes = control::router(Control { cell: None, policies: self.policies });
            let health = Health::new();
            let admin = admin(self.debug, &self.process, &health, self.config.c2c_logging);
            tasks.add("control-endpoints", serve(self.http, routes, shutdown.clone()));
            tasks.add("debug-server", admin.start(DRAIN).run(shutdown));
        }
        tasks.join(DRAIN).await
    }
}

/// Switches to iptables if the file names no data plane and nft is missing, as on some
/// stemcells.
fn choose_plane(config: &mut Config) {
    if !Nft::new(&config.nft).is_missing() {
        return;
    }
    let nft = config.nft.display().to_string();
    if config.fall_back() {
        tracing::warn!(nft, "data-plane" = "iptables", "nft-not-found.using-iptables");
    }
}

impl Agent {
    /// Starts every part of an agent that enforces.
    async fn start(self, tasks: &mut Tasks, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let (config, times, token) = (self.config, self.times, || shutdown.clone());
        let health = Health::new();
        let tls = self.tls.telling(health.component("policy-store-certificate"));
        let store = StoreFile::new(&config.container_store, assemble::LOCK_TIMEOUT);
        let (containers, follower) = Feed::open(store, times.clone()).await;
        let saved = groups::load(&self.state);
        let has_saved = saved.is_some();
        let (known, groups) = watch::channel(saved);
        let inputs = assemble::inputs(&config, containers.latest(), groups.clone(), times.clone());
        let (reconciler, enforced, nudge) = Reconciler::new(inputs, self.plane);
        let counts = config.settings.count_use && matches!(config.plane, DataPlane::Nftables);
        let uses = counts.then(RuleUse::new);
        let recorded = uses.clone().map(|uses| (uses, config.use_interval));
        let reconciler = reconciler.counting_from(self.counted).recording(recorded);
        let (asked, questions) = questions::channel();
        let parts = Groups {
            containers: containers.latest(),
            enforced: enforced.clone(),
            known,
            times: times.clone(),
            questions: Some(asked),
            uses,
        };
        let (learner, link, refresh) = assemble::learner(&config, &tls, parts)?;
        let up = link.clone();
        self.process.metrics.at_scrape(move || {
            crate::metrics::number(STORE_CONNECTED, u64::from(*up.borrow() == Connectivity::Up));
        });
        tasks.add(learner.name(), learner.run(token()));
        let cell = control::Cell {
            containers,
            groups: groups.clone(),
            refresh,
            enforced: enforced.clone(),
            nudge: nudge.clone(),
            beside_plugin: matches!(config.plane, DataPlane::Iptables { .. }),
            timeout: config.force_timeout,
        };
        let apps = self.loggregator.as_ref().map(|(loggregator, _)| loggregator.clone());
        let lines = (config.denied_lines, apps);
        let inspector = Arc::new(Inspector {
            cell: config.cell,
            enforced: enforced.clone(),
            known: groups.clone(),
            link: link.clone(),
            certificate: tls.clone(),
            nudge,
            denials: start_recorder(self.nflog, &enforced, lines, tasks, shutdown),
        });
        tasks.add("questions", questions::answer(questions, Arc::clone(&inspector), token()));
        let grpc = Grpc::new(self.socket, None, &health)
            .descriptors(proto::DESCRIPTORS)
            .add(CellServer::new(grpc::Service(inspector)));
        let routes = control::router(Control { cell: Some(cell), policies: self.policies });
        let admin = admin(self.debug, &self.process, &health, config.c2c_logging);
        if let Some((loggregator, delivery)) = self.loggregator {
            let logs = AppLogs::new(loggregator, enforced.clone(), self.state.clone());
            tasks.add("app-log", logs.run(token()));
            tasks.add("loggregator", delivery.run(token()));
        }
        tasks.add("metrics", times.of_process(token()));
        tasks.add("certificate-watch", tls.watch(token()));
        tasks.add("container-store", follower.run(token()));
        tasks.add("saved-groups", groups::save_latest(self.state, groups, token()));
        tasks.add("health", watch_health(health, enforced, link.clone(), token()));
        let shutdown = token();
        tasks.add("reconcile", async move {
            if has_saved {
                wait_for_first_answer(link, &shutdown).await;
            }
            reconciler.run(shutdown).await
        });
        let shutdown = token();
        tasks.add("cell-service", async move { Ok(grpc.serve(shutdown, DRAIN).await?) });
        tasks.add("control-endpoints", serve(self.http, routes, token()));
        tasks.add("debug-server", admin.start(DRAIN).run(token()));
        Ok(())
    }
}

/// Starts the record of denied packets, unless there is a reason not to.
fn start_recorder(
    nflog: Result<Nflog, String>,
    enforced: &watch::Receiver<Arc<Enforced>>,
    (lines, apps): (Lines, Option<Loggregator>),
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> Result<Denials, String> {
    let (recorder, denials) = Recorder::new(nflog?, enforced.clone(), lines, apps);
    tasks.add("denied-packets", recorder.run(shutdown.clone()));
    Ok(denials)
}

async fn serve(
    listener: Listener,
    router: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Http::new(listener, None).serve(router, shutdown, DRAIN).await;
    Ok(())
}

/// Timeout of the first response before saved groups are used.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// Waits until the source of groups has responded. The saved groups may be those of a former
/// life, while another agent kept the kernel's rules current; the kernel keeps them meanwhile.
async fn wait_for_first_answer(
    mut link: watch::Receiver<Connectivity>,
    shutdown: &CancellationToken,
) {
    let answered = link.wait_for(|link| *link == Connectivity::Up);
    // Without a response the saved groups are the last good ones (law 5).
    let in_time = async { tokio::time::timeout(FIRST_ANSWER, answered).await.is_ok() };
    shutdown.run_until_cancelled(in_time).await;
}

/// Ready while the desired state is in force and the store is reachable: without the
/// store no change arrives. A supervisor that restarts the agent uses `/healthz`, or
/// `/log-level` as for the original, since a restart does not repair the store.
async fn watch_health(
    health: Health,
    mut enforced: watch::Receiver<Arc<Enforced>>,
    mut link: watch::Receiver<Connectivity>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (kernel, store) = (health.component("kernel"), health.component("policy-store"));
    loop {
        {
            let enforced = enforced.borrow_and_update();
            match (&enforced.error, enforced.at) {
                (Some(error), _) => kernel.not_ready(error.clone()),
                (None, None) => kernel.not_ready("nothing was applied yet"),
                (None, Some(_)) => kernel.ready(),
            }
        }
        match link.borrow_and_update().problem() {
            None => store.ready(),
            Some(problem) => store.not_ready(problem),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Ok(()) = enforced.changed() => {}
            Ok(()) = link.changed() => {}
        }
    }
}

/// Metrics, health, and the endpoints of the original's debug server that jobs and operators use.
fn admin(listener: Listener, process: &Process, health: &Health, c2c_logging: bool) -> Admin {
    let own = Router::new()
        .route("/log-level", any(log_level).with_state(process.log.clone()))
        .merge(c2c_logging::router(c2c_logging))
        .fallback(control::not_found);
    Admin::without_debug_server(listener, process, health).merge(own)
}

/// GET is the original's health check; POST and PUT set the level.
async fn log_level(State(log): State<lager::Control>, method: Method, body: String) -> Response {
    if method != Method::POST && method != Method::PUT {
        return StatusCode::OK.into_response();
    }
    match Level::parse_loosely(&body) {
        Ok(level) => {
            log.set_level(level);
            tracing::info!(level = level.name(), "log-level-changed");
            StatusCode::OK.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("the level {error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn saved_groups_wait_for_the_first_answer_but_not_forever() {
        let (sender, link) = watch::channel(Connectivity::begin());
        let shutdown = CancellationToken::new();
        let began = Instant::now();
        wait_for_first_answer(link.clone(), &shutdown).await;
        assert_eq!(began.elapsed(), FIRST_ANSWER, "nobody answers");
        sender.send_replace(Connectivity::Up);
        wait_for_first_answer(link.clone(), &shutdown).await;
        assert_eq!(began.elapsed(), FIRST_ANSWER, "it has answered");
        sender.send_replace(Connectivity::begin());
        shutdown.cancel();
        wait_for_first_answer(link, &shutdown).await;
        assert_eq!(began.elapsed(), FIRST_ANSWER, "the agent stops");
    }
}
