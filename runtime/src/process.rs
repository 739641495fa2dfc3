//! Lifecycle of a process, from its arguments to its exit code.
//!
//! 1. Arguments and configuration. Problems go to standard error, one sentence a line, since the
//!    log is not set up yet.
//! 2. Log, metrics recorder, TLS provider, tokio.
//! 3. [`Service::bind`]: sockets, stores, certificates.
//! 4. [`Service::run`] until SIGTERM or SIGINT, then drain. A second signal ends the process at
//!    once, unless it is the same signal within half a second.
//!
//! Exit codes: 0 for an orderly exit, [`ConfigError::exit`] for an unusable configuration, 2 for a
//! wrong command line, that of a [`Failure`] where the original has one, and 1 for everything else,
//! with an error line `exited-with-failure` whose `data.error` has the whole chain. An orderly exit
//! writes the info line `exited`.

mod about;
mod args;
#[cfg(feature = "testing")]
mod testing;

use std::future::Future;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::about::{About, Command, ConfigError, Flag};
use self::args::{Own, Request};
use crate::config::{self, Loaded};
use crate::{lager, metrics, otlp, redact};

/// Period in which a repeated signal counts as the same request: supervisors signal a process, and
/// then its process group.
const ECHO: Duration = Duration::from_millis(500);

/// Interval of the log line about omitted lines.
const LEFT_OUT: Duration = Duration::from_secs(10);

/// What a program does instead of serving when its flag is set: `run` returns the text for standard
/// output. Blocks.
#[derive(Debug, Clone, Copy)]
pub struct Task<C> {
    /// The flag.
    pub flag: Flag,
    /// Runs the task.
    pub run: fn(&C) -> anyhow::Result<String>,
}

/// A failure that the original reports with its own log line and exit code. A `Failure` anywhere in
/// an error chain replaces `exited-with-failure`.
#[derive(Debug, thiserror::Error)]
#[error("{line}")]
pub struct Failure {
    line: &'static str,
    is_fatal: bool,
    exit: u8,
    #[source]
    cause: anyhow::Error,
}

impl Failure {
    /// Creates a failure with a fatal log line and exit code 2.
    pub fn fatal(line: &'static str, cause: impl Into<anyhow::Error>) -> Self {
        Self { line, is_fatal: true, exit: 2, cause: cause.into() }
    }

    /// Creates a failure with an error log line and exit code 1.
    pub fn error(line: &'static str, cause: impl Into<anyhow::Error>) -> Self {
        Self { line, is_fatal: false, exit: 1, cause: cause.into() }
    }
}

/// What a process provides to its service.
#[derive(Debug, Clone)]
pub struct Process {
    /// Changes the log level at run time.
    pub log: lager::Control,
    /// Renders the metrics.
    pub metrics: metrics::Handle,
    /// The signal that ends the process.
    pub ending: Ending,
    /// The service's own flags that are set.
    flags: Vec<Flag>,
}

/// The signal that ends a process, once it has arrived.
#[derive(Debug, Clone, Default)]
pub struct Ending(Arc<OnceLock<i32>>);

impl Ending {
    /// The signal number; `None` before a signal arrives or when the process ends for another
    /// reason.
    pub fn signal(&self) -> Option<i32> {
        self.0.get().copied()
    }
}

impl Process {
    /// Whether one of the service's own flags is set.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given.name == flag)
    }
}

/// Copies the persistent state of a process with this configuration to a file, whether or not the
/// process is running, and returns the number of bytes. Blocks.
pub type Backup<C> = fn(&C, &Path) -> anyhow::Result<u64>;

/// A service, as [`main`] runs it.
pub trait Service: Sized {
    /// Its configuration.
    type Config: config::Configure + 'static;

    /// Name, version and command line of the service.
    const ABOUT: About;

    /// The service's own flags; [`Process::has`] tests them.
    const FLAGS: &'static [Flag] = &[];

    /// Subcommands that run instead of the service.
    const COMMANDS: &'static [Command] = &[];

    /// Flags that run a task with the configuration instead of serving.
    const TASKS: &'static [Task<Self::Config>] = &[];

    /// Implementation of the flag `backup-to`; `None` for a service without persistent state.
    const BACKUP: Option<Backup<Self::Config>> = None;

    /// Its metric families, in addition to those of every process.
    const METRICS: &'static [metrics::Family] = &[];

    /// Log options from the configuration.
    fn log(config: &Self::Config) -> lager::Options;

    /// Log redaction from the configuration.
    fn redactor(_config: &Self::Config) -> lager::Redactor {
        lager::Redactor::default()
    }

    /// Where spans go; `None` for nowhere.
    fn otlp(_config: &Self::Config) -> Option<otlp::Source<'_>> {
        None
    }

    /// Acquires sockets, stores and certificates. Nothing is served yet.
    fn bind(config: Self::Config, process: &Process) -> impl Future<Output = anyhow::Result<Self>>;

    /// Serves until `shutdown`, then drains.
    fn run(self, shutdown: CancellationToken) -> impl Future<Output = anyhow::Result<()>>;
}

/// Runs a service until it exits. This is the whole of a service's `main`.
pub fn main<S: Service>() -> ExitCode {
    let about = S::ABOUT;
    let named = std::env::args_os().nth(1).unwrap_or_default();
    if let Some(command) = S::COMMANDS.iter().find(|command| named == command.name) {
        return (command.run)(args::double_dashes(std::env::args_os().skip(1)).collect());
    }
    let keeps = S::BACKUP.is_some();
    let tasks = S::TASKS.iter().map(|task| task.flag).collect();
    let own = Own { flags: S::FLAGS, tasks, commands: S::COMMANDS, keeps };
    let request = match args::parse(&about, &own, std::env::args_os()) {
        Ok(request) => request,
        Err(error) => {
            // clap reports help and version as errors. Go writes help to standard error.
            let _closed = match error.kind() {
                ErrorKind::DisplayHelp => write!(io::stderr(), "{error}"),
                _ => error.print(),
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let Some((path, request)) = request else {
        let About { name, config_flag: flag, .. } = about;
        let text = format!("no configuration file is named: run {name} -{flag}=FILE");
        return refuse(&about, [text]);
    };
    let loaded = match config::load::<S::Config>(&path) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&about, error.lines()),
    };
    match request {
        Request::Check => report_check(&loaded.unknown),
        Request::Run(flags) => start::<S>(loaded, flags),
        Request::Backup(to) => {
            let backup = S::BACKUP.expect("without it there is no such flag");
            let copied = backup(&loaded.config, &to);
            let text = copied.map(|bytes| format!("copied {bytes} bytes to {}", to.display()));
            report_outcome(text, "no backup was made")
        }
        Request::Task(flag) => {
            let task = S::TASKS.iter().find(|task| task.flag == flag);
            let task = task.expect("only flags of tasks are parsed as such");
            crate::tls::install_provider();
            report_outcome((task.run)(&loaded.config), flag.name)
        }
    }
}

fn report_outcome(outcome: anyhow::Result<String>, problem: &str) -> ExitCode {
    match outcome {
        Ok(text) => {
            let _closed = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _closed = writeln!(io::stderr(), "{problem}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(about: &About, problems: impl IntoIterator<Item = String>) -> ExitCode {
    let ConfigError { exit, prefix } = about.config_error;
    let mut stderr = io::stderr().lock();
    for problem in problems {
        let _closed = writeln!(stderr, "{prefix}: {}", redact::urls(&problem));
    }
    ExitCode::from(exit)
}

fn report_check(unknown: &[String]) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let _closed = writeln!(stdout, "configuration is valid");
    for key in unknown {
        let _closed = writeln!(stdout, "unknown key, ignored: {key}");
    }
    ExitCode::SUCCESS
}

fn start<S: Service>(loaded: Loaded<S::Config>, flags: Vec<Flag>) -> ExitCode {
    let Loaded { config, unknown } = loaded;
    let about = S::ABOUT;
    let output: Box<dyn Write + Send> = match flags.iter().any(|flag| flag.prints) {
        true => Box::new(io::stderr()),
        false => Box::new(io::stdout()),
    };
    let log = match lager::init(S::log(&config), S::redactor(&config), output) {
        Ok(log) => log,
        Err(error) => return refuse(&about, [format!("cannot set up the log: {error}")]),
    };
    log_panics();
    let process = match prepare(&about, S::METRICS, log, flags) {
        Ok(process) => process,
        Err(error) => return fail(&error),
    };
    if !unknown.is_empty() {
        tracing::info!(keys = lager::json(&unknown), "unknown-config-keys");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("starting tokio")),
    };
    let outcome = runtime.block_on(live::<S>(config, &process));
    // While tokio runs, which sends the spans.
    otlp::Exporter::flush();
    // Blocking work that hangs must not keep the process alive.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => {
            tracing::info!("exited");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn prepare(
    about: &About,
    families: &[metrics::Family],
    log: lager::Control,
    flags: Vec<Flag>,
) -> anyhow::Result<Process> {
    crate::tls::install_provider();
    crate::tls::gather_randomness();
    let (recorder, metrics) = metrics::recorder(about.name, about.version);
    ::metrics::set_global_recorder(recorder)
        .map_err(|error| anyhow::anyhow!("installing the metrics recorder: {error}"))?;
    metrics::FAMILIES.iter().chain(families).for_each(metrics::Family::declare);
    Ok(Process { log, metrics, ending: Ending::default(), flags })
}

/// Binds, runs, and drains on a signal.
async fn live<S: Service>(config: S::Config, process: &Process) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("listening for signals")?;
    let exporter = otlp::Exporter::start(S::ABOUT.name, S::ABOUT.version, S::otlp(&config))?;
    let app = tokio::select! {
        bound = S::bind(config, process) => bound?,
        _number = signals.next() => return Ok(()),
    };
    let shutdown = CancellationToken::new();
    let run = async {
        let outcome = Box::pin(app.run(shutdown.clone())).await;
        shutdown.cancel();
        outcome
    };
    let watch_signals = async {
        let first = signals.next().await;
        let came = Instant::now();
        tracing::info!(signal = first, "signalled");
        // Only the first signal counts; no other code sets the cell.
        let _only_once = process.ending.0.set(first);
        shutdown.cancel();
        let number = loop {
            let number = signals.next().await;
            if number != first || came.elapsed() >= ECHO {
                break number;
            }
        };
        anyhow::anyhow!("signal {number} arrived while draining")
    };
    let upkeep = async {
        let certificates = async {
            if let Some(exporter) = &exporter {
                exporter.watch(shutdown.clone()).await;
            }
        };
        tokio::join!(process.metrics.upkeep(&shutdown), certificates);
        std::future::pending::<()>().await;
    };
    let left_out = async {
        loop {
            tokio::time::sleep(LEFT_OUT).await;
            process.log.tell_left_out();
        }
    };
    let outcome = tokio::select! {
        outcome = run => outcome,
        error = watch_signals => Err(error),
        () = upkeep => Ok(()),
        () = left_out => Ok(()),
    };
    process.log.tell_left_out();
    outcome
}

/// The signals that end a process, and those that are ignored.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Registered so that SIGUSR1 is ignored, as in the originals.
    _user: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            _user: signal(SignalKind::user_defined1())?,
        })
    }

    /// Returns the number of the next signal that ends the process. SIGHUP has no effect: operators
    /// send it for a reload, so the log says what is reloaded without it.
    async fn next(&mut self) -> i32 {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return SignalKind::terminate().as_raw_value(),
                _ = self.interrupt.recv() => return SignalKind::interrupt().as_raw_value(),
                _ = self.hangup.recv() => tracing::info!(
                    signal = SignalKind::hangup().as_raw_value(),
                    reason = "certificates are reloaded when their files change, the log level by \
                              POST /log-level; other settings need a restart",
                    "signal-ignored"
                ),
            }
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let Some(failure) = error.downcast_ref::<Failure>() else {
        tracing::error!(error = format_args!("{error:#}"), "exited-with-failure");
        return ExitCode::FAILURE;
    };
    let Failure { line, is_fatal, exit, cause } = failure;
    let text = format_args!("{cause:#}");
    tracing::error!("lager.fatal" = *is_fatal, error = text, "{line}");
    ExitCode::from(*exit)
}

/// Writes panics to the log, in addition to standard error.
fn log_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let text = crate::supervise::panic_text(panic.payload());
        let place = panic.location().map(ToString::to_string);
        tracing::error!(error = text, location = place.as_deref(), "panicked");
        default(panic);
    }));
}
