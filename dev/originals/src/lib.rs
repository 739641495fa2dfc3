//! Stand-ins for the four programs of Cloud Foundry that Portcullis replaces, written from
//! their contracts (docs/compatibility/): the same wire, the same tables, the same
//! configuration files. They share no code with our services, so that a foundation in
//! which both run finds differences between them.
//!
//! | program | what it does |
//! |---|---|
//! | `locket` | `models.Locket` on the table `locks`; each instance expires locks by its own timers |
//! | `policy-server-asg-syncer` | the leader polls the Cloud Controller and rewrites the tables of the groups |
//! | `policy-server-internal` | `security_groups` and its stamp from these tables, over mutual TLS |
//! | `vxlan-policy-agent` | polls that API and swaps the iptables chains of its cell's containers |
//! | `migrate-db` | creates the tables of the groups, as policy-server's pre-start does |
//!
//! Left out: metrics, debug servers, container-to-container policies, and all log lines but
//! those that somebody waits for. The tables and the stamp are those of cf-networking 3.66
//! and later, which cf-deployment ships.

mod agent;
mod asg_syncer;
mod config;
mod groups;
mod internal;
mod locket;
mod log;
pub mod sql;

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use config::Config;
use log::Log;

/// Serve one of the stand-ins
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(value_enum)]
    program: Program,
    /// The program's configuration file, with the original's keys; others are ignored
    #[arg(long)]
    config_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Program {
    /// The lock service of Diego
    Locket,
    /// The leader of several copies the security groups into the database
    PolicyServerAsgSyncer,
    /// Serves the security groups to the agents of the cells
    PolicyServerInternal,
    /// Brings the security groups into the iptables chains of a cell
    VxlanPolicyAgent,
    /// Creates the tables of policy-server-asg-syncer's database, and exits
    MigrateDb,
}

/// Runs a stand-in until SIGTERM or SIGINT.
///
/// Returns the exit code of the process, which is the original's.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments { program, config_file } = arguments;
    match start(program, &config_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(program: Program, config_file: &Path) -> anyhow::Result<()> {
    runtime::tls::install_provider();
    let config = Config::read(config_file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(program, &config));
    runtime.shutdown_background();
    outcome
}

async fn run(program: Program, config: &Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let ends = ends_at_signal(shutdown.clone())?;
    let log = |name: &'static str| Log::new(config, name);
    let serve = async {
        match program {
            Program::Locket => locket::serve(config, &Log::bare("locket"), shutdown.clone()).await,
            Program::PolicyServerAsgSyncer => {
                let log = log("policy-server-asg-syncer");
                asg_syncer::serve(config, &log, shutdown.clone()).await
            }
            Program::PolicyServerInternal => {
                let log = log("policy-server-internal");
                internal::serve(config, &log, shutdown.clone()).await
            }
            Program::VxlanPolicyAgent => {
                let log = log("vxlan-policy-agent");
                agent::serve(config, &log, shutdown.clone()).await
            }
            Program::MigrateDb => groups::migrate(&sql::Database::of_job(config)?).await,
        }
    };
    tokio::select! {
        outcome = serve => outcome,
        never = ends => never,
    }
}

/// Cancels `shutdown` at SIGTERM and SIGINT; completes only with an error.
fn ends_at_signal(
    shutdown: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            tokio::select! {
                _signal = terminate.recv() => shutdown.cancel(),
                _signal = interrupt.recv() => shutdown.cancel(),
            }
        }
    })
}
