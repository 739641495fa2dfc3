//! `portcullis-dev`: the development Cloud Controller, the local cluster, and, with the
//! feature `load`, load tools.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The lock server's allocator, so that an empty call differs from its calls in nothing
/// else.
#[cfg(feature = "load")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "portcullis-dev", version, about, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "load")]
    Attack(attack::Arguments),
    #[cfg(feature = "load")]
    Chaos(chaos::Arguments),
    /// Serve a development Cloud Controller and UAA
    CloudController(cloud_controller::Arguments),
    /// Run all of Portcullis on this machine, with cells in network namespaces
    Cluster(cluster::Arguments),
    /// Measure services under load: lock server, policy store, syncer, cell agent
    #[cfg(feature = "load")]
    Load(load::Arguments),
    /// Serve a stand-in for one of the programs of Cloud Foundry that Portcullis replaces
    #[cfg(feature = "load")]
    Original(originals::Arguments),
    #[cfg(feature = "load")]
    Swap(swap::Arguments),
}

fn main() -> ExitCode {
    match CommandLine::parse().command {
        #[cfg(feature = "load")]
        Command::Attack(arguments) => attack::main(&arguments),
        #[cfg(feature = "load")]
        Command::Chaos(arguments) => chaos::main(&arguments),
        Command::CloudController(arguments) => cloud_controller::main(arguments),
        Command::Cluster(arguments) => cluster::main(arguments),
        #[cfg(feature = "load")]
        Command::Load(arguments) => load::main(arguments),
        #[cfg(feature = "load")]
        Command::Original(arguments) => originals::main(arguments),
        #[cfg(feature = "load")]
        Command::Swap(arguments) => swap::main(arguments),
    }
}
