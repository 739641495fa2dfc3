//! Test service that demonstrates the lifecycle of a process.

use std::process::ExitCode;
use std::time::Duration;

use runtime::config::{Configure, HostPort, Reader, Seconds};
use runtime::lager::{Level, Options, TimeFormat};
use runtime::process::{About, ConfigError, Process, Service};
use runtime::server::{Admin, Health, Listener};
use runtime::supervise::Tasks;
use tokio_util::sync::CancellationToken;

struct Config {
    admin: HostPort,
    drain: Seconds,
    /// Injected fault, if any: `bind`, `task`, `panic`, `hang`.
    fault: Option<String>,
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let admin = keys.required("admin_address");
        let drain = keys.or("drain_seconds", Seconds::new(1));
        let fault = keys.optional("fault");
        Some(Self { admin: admin?, drain: drain?, fault: fault? })
    }
}

struct Probe {
    admin: Admin,
    drain: Duration,
    fault: Option<String>,
}

impl Service for Probe {
    type Config = Config;

    const ABOUT: About = About {
        name: "runtime-probe",
        summary: "Shows how a process lives",
        version: env!("CARGO_PKG_VERSION"),
        config_flag: "config",
        config_error: ConfigError { exit: 7, prefix: "invalid-config-file" },
    };

    fn log(_: &Config) -> Options {
        Options { source: "probe".into(), level: Level::Info, format: TimeFormat::Rfc3339 }
    }

    async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
        let Config { admin, drain, fault } = config;
        if fault.as_deref() == Some("bind") {
            return Err(anyhow::anyhow!("it is not there").context("opening the store"));
        }
        let listener = Listener::tcp("admin", admin.as_str()).await?;
        tracing::info!(admin = listener.local_addr(), "bound");
        let admin = Admin::new(listener, process, &Health::new());
        Ok(Self { admin, drain: drain.into(), fault })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { admin, drain, fault } = self;
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.add("admin", admin.start(drain).run(shutdown.clone()));
        match fault.as_deref() {
            Some("task") => tasks.add("worker", async { anyhow::bail!("out of paper") }),
            Some("panic") => tasks.add("worker", async { panic!("out of luck") }),
            Some("hang") => tasks.add("worker", std::future::pending()),
            _ => {}
        }
        metrics::counter!("probe_starts_total").increment(1);
        tracing::info!("started");
        tasks.join(drain).await
    }
}

fn main() -> ExitCode {
    runtime::process::main::<Probe>()
}
