//! Infrastructure of a Portcullis process: configuration, logs, TLS, signals, supervision, gRPC and
//! HTTP servers, clients and metrics.
//!
//! A service implements [`process::Service`] and its `main` is one line.
//!
//! Not in this crate: domain code; no module depends on locks, rules or containers. Databases are
//! in [`storage`](../storage/index.html), outgoing TCP connections in [`net`], verification of
//! certificates in [`trust`], contracts in [`proto`](../proto/index.html).
//!
//! Modules, outermost first:
//!
//! | module | content |
//! |---|---|
//! | [`process`] | process lifecycle, from arguments to exit code |
//! | [`config`] | one JSON file, all of its problems reported at once |
//! | [`lager`] | log lines in the format of the Cloud Foundry components |
//! | [`tls`] | certificates, reloaded when their files change |
//! | [`server`] | listeners, gRPC and HTTP servers, the admin endpoint |
//! | [`health`] | readiness of a process |
//! | [`client`] | gRPC channels |
//! | [`write_coalescing`] | coalesces the writes of one poll into a single write |
//! | [`dropsonde`] | metrics for the local metron agent, over UDP |
//! | [`loggregator`] | metrics and app logs for the local loggregator agent |
//! | [`otlp`] | spans for an OpenTelemetry collector |
//! | [`https`] | HTTP clients |
//! | [`json`] | JSON from outside; objects are read only from objects |
//! | [`go_json`] | JSON text as Go writes it |
//! | [`supervise`] | task groups; every task is awaited |
//! | [`periodic`] | work that repeats until shutdown |
//! | [`metrics`] | Prometheus text |
//! | [`redact`] | URLs without user names and passwords |
//! | [`backoff`], [`mod@error`] | pauses between attempts, errors as text |
//!
//! # Example
//!
//! A complete service, which serves only the admin endpoint:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use runtime::config::{Configure, HostPort, Reader};
//! use runtime::lager::{Level, Options, TimeFormat};
//! use runtime::process::{About, ConfigError, Process, Service};
//! use runtime::server::{Admin, Health, Listener};
//! use runtime::supervise::Tasks;
//! use tokio_util::sync::CancellationToken;
//!
//! struct Config {
//!     admin: HostPort,
//! }
//!
//! impl Configure for Config {
//!     fn read(keys: &mut Reader<'_>) -> Option<Self> {
//!         Some(Self { admin: keys.required("admin_address")? })
//!     }
//! }
//!
//! struct App {
//!     admin: Admin,
//! }
//!
//! impl Service for App {
//!     type Config = Config;
//!
//!     const ABOUT: About = About {
//!         name: "example",
//!         summary: "Serves metrics and health",
//!         version: env!("CARGO_PKG_VERSION"),
//!         config_flag: "config-file",
//!         config_error: ConfigError { exit: 1, prefix: "example: " },
//!     };
//!
//!     fn log(_: &Config) -> Options {
//!         Options { source: "example".into(), level: Level::Info, format: TimeFormat::Rfc3339 }
//!     }
//!
//!     async fn bind(config: Config, process: &Process) -> anyhow::Result<Self> {
//!         let listener = Listener::tcp("admin", config.admin.as_str()).await?;
//!         Ok(Self { admin: Admin::new(listener, process, &Health::new()) })
//!     }
//!
//!     async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
//!         let drain = Duration::from_secs(10);
//!         let mut tasks = Tasks::new(shutdown.clone());
//!         tasks.add("admin", self.admin.start(drain).run(shutdown));
//!         tasks.join(drain).await
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     runtime::process::main::<App>()
//! }
//! ```

pub mod client;
pub mod config;
pub mod dropsonde;
pub mod error;
pub mod go_json;
pub mod health;
pub mod https;
pub mod json;
pub mod lager;
pub mod loggregator;
pub mod metrics;
pub mod otlp;
pub mod periodic;
pub mod process;
pub mod redact;
pub mod server;
pub mod supervise;
pub mod tls;
pub mod write_coalescing;

pub use net::backoff;
