//! The command line of `portcullis-dev cluster`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use cni::tools;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::fixtures::Stage;
use crate::launch::{Cluster, Options};
use crate::layout::Layout;
use crate::ports::{Choice, Ports};
use crate::process::Death;
use crate::request::Request;
use crate::rootless::Footing;
use crate::state::State;
use crate::story;
use crate::terminal::say;
use crate::topology::{MOST_CELLS, Name};
use crate::{guide, live, network, process, request, rootless, state};

/// Maximum initial number of apps: those that fit on one cell.
const MOST_APPS: u16 = 250;

/// Tools that the cluster needs.
const NEEDED_TOOLS: [&str; 5] = ["ip", "nft", "setpriv", "sleep", "unshare"];

/// The command line of `portcullis-dev cluster`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct Arguments {
    /// Prefix of all namespace names; clusters with different names can run side by side
    #[arg(long, value_name = "NAME", default_value = "portcullis", value_parser = Name::parse, global = true)]
    name: Name,

    /// Directory of configuration, certificates, data and logs [default:
    /// ~/.local/state/portcullis/NAME]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,

    /// Directory of the services' executables [default: directory of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Number of cells
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_CELLS)))]
    cells: u8,

    /// Number of apps, distributed over all cells in turn
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(2..=i64::from(MOST_APPS)))]
    apps: u16,

    /// Ports of the control plane [default: default; auto for a story]
    #[arg(long, value_name = "CHOICE", value_enum)]
    ports: Option<Choice>,

    /// Run the operator's story; exit code 0 if every check passes, otherwise 1
    #[arg(long, conflicts_with = "clean")]
    story: bool,

    /// Bind and unbind a group this many times, print the distribution of the times until a packet
    /// passes or is rejected, and exit
    #[arg(long, value_name = "N", conflicts_with_all = ["clean", "story"],
          value_parser = clap::value_parser!(u32).range(1..))]
    changes: Option<u32>,

    /// File for the times of --changes, as a JSON array of milliseconds
    #[arg(long, value_name = "FILE", requires = "changes")]
    times: Option<PathBuf>,

    /// Only remove the remains of a killed cluster of that name
    #[arg(long)]
    clean: bool,

    /// Request to a running cluster; without a request, a cluster is started
    #[command(subcommand)]
    request: Option<Request>,
}

/// Runs the cluster until it is interrupted, and stops it; or sends a request to the
/// running one.
///
/// Returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let directory = match &arguments.state_dir {
        Some(directory) => directory.clone(),
        None => default_directory(&arguments.name)?,
    };
    let directory = std::path::absolute(directory)?;
    let layout = Layout::below(&directory);
    if let Some(request) = &arguments.request {
        return say(&(request::send(&layout.launcher_socket(), request)? + "\n"));
    }
    layout.check_socket_paths().map_err(anyhow::Error::msg)?;
    if arguments.clean && !State::exists(&directory) {
        return say(&format!("Nothing to remove: {} holds no cluster.\n", directory.display()));
    }
    NEEDED_TOOLS.into_iter().try_for_each(|tool| tools::find(tool).map(drop))?;
    let footing = rootless::find_footing()?;
    // Fails only if a provider is installed already, which is sufficient.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(launch(arguments, directory, footing))
}

async fn launch(arguments: Arguments, directory: PathBuf, footing: Footing) -> anyhow::Result<()> {
    let Arguments { name, state_dir: _, bin_dir, cells, apps, ports, clean, request: _, .. } =
        arguments;
    let play = match (arguments.story, arguments.changes) {
        (true, _) => Some(Play::Story),
        (false, Some(count)) => Some(Play::Changes { count, times: arguments.times }),
        (false, None) => None,
    };
    let (state, left) = State::take(&directory)?;
    process::end_leftovers(&left.still_running(&state::boot())).await;
    network::remove_leftovers(&left.namespaces)?;
    state.save()?;
    if clean {
        return say("Removed what was left.\n");
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this executable lies in a directory")?;
    let usual = if play.is_some() { Choice::Auto } else { Choice::Default };
    let options = Options {
        name,
        cells,
        apps,
        binaries: bin_dir.map_or_else(|| Ok(beside.to_owned()), std::path::absolute)?,
        own: own.clone(),
        ports: Ports::choose(ports.unwrap_or(usual))?,
    };
    let (sender, mut deaths) = mpsc::channel(16);
    let mut signals = Signals::listen()?;
    let mut cluster = Cluster::new(options, state, sender)?;
    let outcome = run_cluster(&mut cluster, &mut deaths, &mut signals, footing, play).await;
    say("\nTaking the cluster down.\n")?;
    outcome.and(cluster.stop().await)
}

/// Starts the cluster, then plays the story or waits for requests.
async fn run_cluster(
    cluster: &mut Cluster,
    deaths: &mut mpsc::Receiver<Death>,
    signals: &mut Signals,
    footing: Footing,
    play: Option<Play>,
) -> anyhow::Result<()> {
    let is_play = play.is_some();
    let broken = cluster.broken();
    let stage = tokio::select! {
        started = start(cluster, play) => started?,
        Some(death) = deaths.recv() => bail!("{}", death.report()),
        () = broken.cancelled() => bail!("a task of the launcher ended"),
        () = signals.next() => return interrupted(is_play),
    };
    let Some(stage) = stage else { return Ok(()) };
    let listener = live::listen(cluster)?;
    let env = guide::write_env(cluster)?;
    say(&format!("\n{}\n", guide::guide(cluster, &stage, &env, footing)))?;
    tokio::select! {
        outcome = live::attend(cluster, &stage, deaths, &listener) => outcome,
        () = broken.cancelled() => Err(anyhow!("a task of the launcher ended")),
        () = signals.next() => Ok(()),
    }
}

/// What the launcher does instead of waiting for requests.
#[derive(Debug)]
enum Play {
    /// The operator's story.
    Story,
    /// Changes, one after another.
    Changes { count: u32, times: Option<PathBuf> },
}

fn interrupted(is_play: bool) -> anyhow::Result<()> {
    if is_play { Err(anyhow!("the story was interrupted")) } else { Ok(()) }
}

/// Starts everything, and plays if requested; otherwise returns the stage.
async fn start(cluster: &mut Cluster, play: Option<Play>) -> anyhow::Result<Option<Stage>> {
    let name = cluster.options().name.as_str().to_owned();
    say(&format!("Starting the cluster {name}:\n"))?;
    cluster.start().await?;
    let stage = Stage::set(cluster).await?;
    match play {
        None => return Ok(Some(stage)),
        Some(Play::Story) => story::play(cluster, stage).await?,
        Some(Play::Changes { count, times }) => {
            story::many::measure(cluster, &stage, count, times.as_deref()).await?;
        }
    }
    Ok(None)
}

/// Signals that end the launcher. SIGHUP is sent when its terminal is closed.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _signal = interrupt.recv() => {}
            _signal = terminate.recv() => {}
            _signal = hangup.recv() => {}
        }
    }
}

/// The directory of a launcher's files, unless another one is given.
pub fn default_directory(name: &Name) -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) if !state.is_empty() => PathBuf::from(state),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/state"),
        _ => return Err(anyhow!("HOME is not set; give --state-dir")),
    };
    Ok(base.join("portcullis").join(name.as_str()))
}
