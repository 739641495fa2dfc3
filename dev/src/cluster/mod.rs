//! The local cluster: every part of Portcullis as a process of its own, with
//! cells in network namespaces.
//!
//! The launcher owns everything that it starts: processes, namespaces, the
//! files below its state directory. It takes all down when it is interrupted,
//! when a process dies, and when something of its own fails. After a `kill -9`
//! the kernel ends the processes, and the next launcher of that name removes
//! the namespaces.

pub mod cloud;
pub mod container;
pub mod control;
pub mod forward;
pub mod guide;
pub mod launch;
pub mod layout;
pub mod metadata;
pub mod namespace;
pub mod network;
pub mod operator;
pub mod outside;
pub mod ports;
pub mod probe;
pub mod process;
pub mod rootless;
pub mod settings;
pub mod stage;
pub mod state;
pub mod tools;
pub mod topology;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::launch::{Cluster, Options};
use self::ports::{Choice, Ports};
use self::rootless::Footing;
use self::stage::Stage;
use self::state::State;
use self::topology::{MOST_CELLS, Name};
use crate::story;

/// The command line of `portcullis-dev cluster`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Part of every namespace's name; clusters of different names live side by side
    #[arg(long, value_name = "NAME", default_value = "portcullis", value_parser = Name::parse)]
    name: Name,

    /// Where configuration, certificates, data and logs go [default: ~/.local/state/portcullis/NAME]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Where the executables of the services are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// How many cells
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_CELLS)))]
    cells: u8,

    /// The control plane's ports [default: default; auto for a story]
    #[arg(long, value_name = "CHOICE", value_enum)]
    ports: Option<Choice>,

    /// Play the operator's story, and end with 0 if everything is as told
    #[arg(long, conflicts_with = "clean")]
    story: bool,

    /// Only remove what a killed cluster of that name left
    #[arg(long)]
    clean: bool,
}

/// Runs the cluster until it is interrupted, and tears it down.
///
/// Returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    tools::require_all()?;
    let footing = rootless::find_footing()?;
    // Fails only when there is one already, and that one is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(launch(arguments, footing))
}

async fn launch(arguments: Arguments, footing: Footing) -> anyhow::Result<()> {
    let Arguments { name, state_dir, bin_dir, cells, ports, story, clean } = arguments;
    let directory = state_dir.map_or_else(|| default_directory(&name), Ok)?;
    let directory = std::path::absolute(directory)?;
    let (state, left) = State::take(&directory)?;
    process::end_leftovers(&left.still_running(&state::boot())).await;
    network::remove_leftovers(&left.namespaces)?;
    state.save()?;
    if clean {
        return say("Removed what was left.\n");
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this executable lies in a directory")?;
    let usual = if story { Choice::Auto } else { Choice::Default };
    let options = Options {
        name,
        cells,
        binaries: bin_dir.map_or_else(|| Ok(beside.to_owned()), std::path::absolute)?,
        own: own.clone(),
        ports: Ports::choose(ports.unwrap_or(usual))?,
    };
    live(options, state, footing, story).await
}

/// Starts, does what was asked, and takes all down whatever came of it.
async fn live(options: Options, state: State, footing: Footing, story: bool) -> anyhow::Result<()> {
    let (sender, mut deaths) = mpsc::channel(16);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut cluster = Cluster::new(options, state, sender)?;
    let broken = cluster.broken();
    let outcome = tokio::select! {
        outcome = work(&mut cluster, footing, story) => outcome,
        Some(death) = deaths.recv() => Err(anyhow!("{}", death.report())),
        () = broken.cancelled() => Err(anyhow!("a part of the launcher ended")),
        _signal = interrupt.recv() => interrupted(story),
        _signal = terminate.recv() => interrupted(story),
    };
    say("\nTaking the cluster down.\n")?;
    outcome.and(cluster.stop().await)
}

fn interrupted(story: bool) -> anyhow::Result<()> {
    if story { Err(anyhow!("the story was interrupted")) } else { Ok(()) }
}

async fn work(cluster: &mut Cluster, footing: Footing, story: bool) -> anyhow::Result<()> {
    let name = cluster.options().name.as_str().to_owned();
    say(&format!("Starting the cluster {name}.\n"))?;
    cluster.start().await?;
    let stage = Stage::set(cluster).await?;
    if story {
        return story::play(cluster, stage).await;
    }
    let env = guide::write_env(cluster)?;
    say(&format!("\n{}\n", guide::guide(cluster, &env, footing)))?;
    say(&format!("{} leads, fencing token {}.\n", stage.leader.owner, stage.leader.fencing_token))?;
    std::future::pending().await
}

/// Writes to standard output at once.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot print")
}

fn default_directory(name: &Name) -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) if !state.is_empty() => PathBuf::from(state),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/state"),
        _ => return Err(anyhow!("HOME is not set; give --state-dir")),
    };
    Ok(base.join("portcullis").join(name.as_str()))
}
