//! Load tools: measure throughput and latency of a lock server or a policy store, the
//! cost of a large foundation for a syncer, the effect of a cell agent on a cell, a whole
//! foundation with many cells, and resource usage.
//!
//! Invariants:
//! - A worker has one call open at a time. Latency is measured at the caller, and a
//!   call counts if its response arrived in the measured period.
//! - CPU time and memory of the server's process come from the kernel (`/proc`), so the
//!   server runs on the same machine.
//! - CPU usage of other processes is reported: on a busy machine the figures mean
//!   little.
//!
//! Figures and commands: docs/performance.md. The public modules start and measure services for
//! other tools: [`attack`](../attack/index.html).

mod calls;
mod cell;
mod cloud;
pub mod connect;
mod distribution;
mod empty;
mod foundation;
pub mod histogram;
mod locket;
pub mod meter;
mod plot;
mod raw_tls;
mod report;
pub mod server;
mod soak;
pub mod store;
mod suite;
mod sync;
mod wire;

pub use cell::lab::leave as leave_network;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use runtime::config::GoDuration;

/// Measurements, separated by commas
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send one kind of request to a Locket, ours or the original, at full rate
    Locket(locket::Arguments),
    /// Hold many presences, and measure the memory of the lock server
    Hold(soak::Arguments),
    /// Measure the lock server and an empty call in one run, and print a table
    LocketSuite(suite::Arguments),
    /// Change groups in a policy store, and measure the delay to simulated cells
    Store(Box<store::Arguments>),
    /// Sync a large foundation, and measure time and memory of the syncer
    Sync(sync::Arguments),
    /// Change groups and containers of a full cell, and measure its agent and packets
    Cell(cell::Arguments),
    /// Run a foundation with real and simulated cells, and measure changes and restarts
    Foundation(Box<foundation::Arguments>),
    /// Plot the distribution of times that `portcullis-dev cluster --changes` recorded
    Distribution(distribution::Arguments),
    /// Serve a gRPC call that does nothing, on the same stack as the services
    EmptyServer(empty::Arguments),
}

/// Runs one of the tools.
///
/// Returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    runtime::tls::install_provider();
    connect::raise_descriptor_limit()?;
    if let Command::Foundation(arguments) = &arguments.command {
        arguments.raise_limits()?;
    }
    if let Command::Cell(_) | Command::Foundation(_) = &arguments.command {
        // Before a second thread exists: all threads must be in the new namespace.
        cell::lab::leave()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Locket(arguments) => locket::run(arguments).await,
            Command::Hold(arguments) => soak::run(arguments).await,
            Command::LocketSuite(arguments) => suite::run(arguments).await,
            Command::Store(arguments) => store::run(*arguments).await,
            Command::Sync(arguments) => sync::run(arguments).await,
            Command::Cell(arguments) => cell::run(arguments).await,
            Command::Foundation(arguments) => foundation::run(*arguments).await,
            Command::Distribution(arguments) => distribution::run(&arguments),
            Command::EmptyServer(arguments) => empty::run(arguments).await,
        }
    });
    runtime.shutdown_background();
    outcome
}

/// Writes to standard output and flushes.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot print")
}

/// Parses a duration such as `4s`, `10m`, `500ms`.
fn length(text: &str) -> Result<Duration, String> {
    let length: GoDuration = text.parse().map_err(|error| format!("{text:?} {error}"))?;
    if length < GoDuration::ZERO {
        return Err(format!("{text:?} is negative"));
    }
    Ok(length.to_duration())
}

/// Parses a duration greater than zero.
///
/// # Errors
/// The text is not such a duration.
pub fn positive_length(text: &str) -> Result<Duration, String> {
    length(text)?.checked_sub(Duration::from_nanos(1)).ok_or(format!("{text:?} is no time"))?;
    length(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_in_configuration_files() {
        assert_eq!(length("4s"), Ok(Duration::from_secs(4)));
        assert_eq!(length("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(length("0s"), Ok(Duration::ZERO));
        for wrong in ["", "4", "-1s", "soon"] {
            assert!(length(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
        assert!(positive_length("0s").unwrap_err().contains("0s"));
        assert_eq!(positive_length("1ms"), Ok(Duration::from_millis(1)));
    }
}
