//! Runs a started cluster: reports exited processes, and carries out requests.

use anyhow::{Context, anyhow};
use nix::sys::signal::Signal;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::container::Workload;
use super::fixtures::Stage;
use super::launch::Cluster;
use super::process::Death;
use super::request::{self, Request};
use super::status_line::StatusLine;
use super::topology::Cell;

/// Binds the socket for requests; replaces one of an earlier launcher.
///
/// # Errors
/// The socket cannot be created.
pub(crate) fn listen(cluster: &Cluster) -> anyhow::Result<UnixListener> {
    let socket = cluster.layout().launcher_socket();
    // The lock on the state directory guarantees that no other launcher uses the
    // socket.
    let _absent = std::fs::remove_file(&socket);
    UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))
}

/// Reports exited processes, shows the status and carries out requests, until cancelled.
///
/// # Errors
/// Standard output is closed, the state file cannot be written, or the socket fails.
pub(crate) async fn attend(
    cluster: &mut Cluster,
    stage: &Stage,
    deaths: &mut mpsc::Receiver<Death>,
    listener: &UnixListener,
) -> anyhow::Result<()> {
    let mut status = StatusLine::start(cluster);
    loop {
        tokio::select! {
            line = status.next() => status.show(&line)?,
            Some(death) = deaths.recv() => {
                cluster.note_death(&death)?;
                status.say(&ended(cluster, &death))?;
            }
            accepted = listener.accept() => {
                let (mut stream, _peer) = accepted.context("the socket for requests is broken")?;
                let outcome = match request::receive(&mut stream).await {
                    Ok(request) => perform(cluster, stage, request).await,
                    Err(error) => Err(error),
                };
                // The request was carried out; the client may have disconnected.
                let _gone = request::answer(&mut stream, outcome).await;
            }
        }
    }
}

/// The message about an exited process.
fn ended(cluster: &Cluster, death: &Death) -> String {
    // A signal comes from another process; an exit status is the process's own, and its
    // log has the reason.
    let by_itself = death.status.is_some_and(|status| status.code().is_some_and(|code| code != 0));
    let what = if by_itself {
        death.report()
    } else {
        format!("{} ended: {}; log: {}", death.name, death.status(), death.log.display())
    };
    let again = match cluster.can_start(&death.name) {
        true => format!("start it again: {} start {}", command(cluster), death.name),
        false => "its app does not run any more".to_owned(),
    };
    format!("\n{what}\nThe cluster goes on; {again}\n")
}

/// `portcullis-dev cluster`, with the flag that selects this cluster.
pub(crate) fn command(cluster: &Cluster) -> String {
    let directory = super::cloud::quoted(&cluster.layout().root().display().to_string());
    format!("portcullis-dev cluster --state-dir {directory}")
}

/// Carries out one request, and returns the text to print.
async fn perform(cluster: &mut Cluster, stage: &Stage, request: Request) -> anyhow::Result<String> {
    match request {
        Request::List => Ok(list(cluster)),
        Request::Kill { process, signal } => send(cluster, &process, request::signal(&signal)?),
        Request::Stop { process } => send(cluster, &process, Signal::SIGSTOP),
        Request::Cont { process } => send(cluster, &process, Signal::SIGCONT),
        Request::Start { process } => {
            cluster.start_again(&process).await?;
            Ok(format!("{process} answers"))
        }
        Request::Restart { process } => {
            if !cluster.can_start(&process) {
                return Err(anyhow!("there is no process {process}"));
            }
            if cluster.processes().mark(&process).is_some() {
                cluster.stop_process(&process).await?;
            }
            cluster.start_again(&process).await?;
            Ok(format!("{process} answers"))
        }
        Request::AddApp { app, space, cell, staging } => {
            let cell = cell.or_else(|| emptiest(cluster)).context("the cluster has no cell")?;
            let workload = if staging { Workload::Staging } else { Workload::App };
            let wanted = stage.wanted(&app, cell, stage.space(&space), workload);
            cluster.add_container(wanted).await?;
            let container = cluster.container(&app)?;
            let address = container.attachment.address;
            Ok(format!("{app} runs on {} at {address}, handle {}", cell.name(), container.handle))
        }
        Request::RemoveApp { app } => {
            cluster.remove_container(&app).await?;
            Ok(format!("{app} is removed"))
        }
        Request::AddCell => {
            let cell = cluster.add_cell().await?;
            Ok(format!("{} answers", cell.name()))
        }
        Request::RemoveCell { cell } => {
            cluster.remove_cell(cell).await?;
            Ok(format!("{} is removed", cell.name()))
        }
    }
}

fn send(cluster: &mut Cluster, process: &str, signal: Signal) -> anyhow::Result<String> {
    cluster.processes().signal(process, signal)?;
    Ok(format!("sent {signal} to {process}"))
}

/// The cell with the fewest apps, the first of several.
fn emptiest(cluster: &Cluster) -> Option<Cell> {
    let apps = |cell: &Cell| cluster.containers().filter(|app| app.wanted.cell == *cell).count();
    cluster.network().cells().min_by_key(apps)
}

/// Processes with their state, and the cell of each app.
fn list(cluster: &mut Cluster) -> String {
    let mut lines = vec![format!("{:<24} {:<8} STATE", "PROCESS", "PID")];
    for (name, (pid, state)) in cluster.processes().states() {
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        lines.push(format!("{name:<24} {pid:<8} {state}"));
    }
    lines.push(format!("\n{:<24} {:<8} {:<16} HANDLE", "APP", "CELL", "ADDRESS"));
    for app in cluster.containers() {
        let (name, cell, address) =
            (&app.wanted.name, app.wanted.cell.name(), app.attachment.address);
        lines.push(format!("{name:<24} {cell:<8} {address:<16} {}", app.handle));
    }
    lines.join("\n")
}
