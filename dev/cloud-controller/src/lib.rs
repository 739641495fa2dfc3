//! The development Cloud Controller and UAA.
//!
//! They respond like the originals to all requests about security groups: same
//! documents, errors, messages and their order, stamp of the last update. Facts:
//! docs/compatibility/cloud-controller.md.
//!
//! - [`validate`] validates requests, [`state`] applies changes, and [`uaa::grant`]
//!   decides on tokens. These are pure.
//! - `store` keeps the state in memory, and in a file if one is configured.
//! - `present` creates the documents, `http` and `http::uaa` have the routes.
//! - [`app`] has the three listeners: the API, the UAA (also called login server), and
//!   `/internal/v4` behind mutual TLS.
//!
//! Known differences from the original: deletions are done before the response, so jobs
//! are complete immediately; the stamp is strictly monotonic, where the original's can go
//! back with two concurrent writers; passwords are stored in plain text.
//!
//! Not for production. Its client is the [`syncer`](../syncer/index.html).

pub mod app;
pub mod config;
mod http;
pub mod json;
mod present;
pub mod refusal;
mod ruby;
pub mod state;
mod store;
mod tls;
pub mod uaa;
pub mod validate;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use runtime::{config as settings, lager};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use app::App;
use config::Config;

/// The command line of `portcullis-dev cloud-controller`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file (JSON) [default: the default of every key]
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Check the configuration file, print all problems, and exit
    #[arg(long)]
    pub check_config: bool,
}

/// Serves until SIGTERM or SIGINT, and returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments { config_file, check_config } = arguments;
    let loaded = match config_file {
        Some(path) => settings::load::<Config>(&path),
        None => settings::parse::<Config>("{}"),
    };
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            for line in error.lines() {
                let _closed = writeln!(io::stderr(), "invalid configuration: {line}");
            }
            return ExitCode::FAILURE;
        }
    };
    if check_config {
        let _closed = writeln!(io::stdout(), "configuration is valid");
        return ExitCode::SUCCESS;
    }
    let options = lager::Options {
        source: "cloud-controller".to_owned(),
        level: loaded.config.log_level,
        format: lager::TimeFormat::Rfc3339,
    };
    if let Err(error) = lager::init(options, lager::Redactor::default(), io::stdout()) {
        let _closed = writeln!(io::stderr(), "cannot set up the log: {error}");
        return ExitCode::FAILURE;
    }
    if !loaded.unknown.is_empty() {
        tracing::info!(keys = lager::json(&loaded.unknown), "unknown-config-keys");
    }
    match live(loaded.config) {
        Ok(()) => {
            tracing::info!("exited");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "exited-with-failure");
            ExitCode::FAILURE
        }
    }
}

fn live(config: Config) -> anyhow::Result<()> {
    runtime::tls::install_provider();
    let runtime = tokio::runtime::Runtime::new().context("starting tokio")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
        let app = App::bind(config).await?;
        let shutdown = CancellationToken::new();
        let signalled = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.cancel();
            // The first signal drains, the second one ends the process.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::select! {
            outcome = app.run(shutdown.clone()) => outcome,
            () = signalled => Ok(()),
        }
    })
}
