//! Requests to a running cluster: `portcullis-dev cluster kill syncer-1` and so
//! on, sent to the launcher over a Unix socket in the state directory.
//!
//! One connection carries one request and one reply, each a line of JSON. The
//! launcher handles requests one after another.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::topology::Cell;

/// How long the launcher waits for the line of a connected client.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client waits for the reply: a restart waits for a slow shutdown and a slow start.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest accepted request, in bytes.
const LONGEST_REQUEST: u64 = 64 * 1024;

/// A change of a running cluster, or a question about it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// List processes, cells and apps with their state
    List,
    /// Send a signal to a process, SIGKILL by default
    Kill {
        /// Name of the process, as `list` prints it
        process: String,
        /// KILL, TERM, INT, HUP, USR1, STOP or CONT
        #[arg(short, long, default_value = "KILL")]
        signal: String,
    },
    /// Pause a process (SIGSTOP)
    Stop {
        /// Name of the process, as `list` prints it
        process: String,
    },
    /// Resume a paused process (SIGCONT)
    Cont {
        /// Name of the process, as `list` prints it
        process: String,
    },
    /// Start a stopped process, and wait until it responds
    Start {
        /// Name of the process, as `list` prints it
        process: String,
    },
    /// Stop a process with SIGTERM, start it again, and wait until it responds
    Restart {
        /// Name of the process, as `list` prints it
        process: String,
    },
    /// Add an app: a container with network, metadata entry and rules
    AddApp {
        /// Name of the app; unique in the cluster
        app: String,
        /// Space of the app: s1, s2, or the GUID of a space
        #[arg(long, default_value = "s1")]
        space: String,
        /// Cell of the app, such as cell-2 [default: the cell with the fewest apps]
        #[arg(long, value_parser = Cell::parse)]
        cell: Option<Cell>,
        /// Create a staging container instead of a running app
        #[arg(long)]
        staging: bool,
    },
    /// Remove an app
    RemoveApp {
        /// Name of the app
        app: String,
    },
    /// Add a cell with its agent
    AddCell,
    /// Remove a cell, its agent and its apps
    RemoveCell {
        /// Name of the cell, such as cell-3
        #[arg(value_parser = Cell::parse)]
        cell: Cell,
    },
}

/// The launcher's reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Done(String),
    Failed(String),
}

/// The signal of that name, with or without `SIG`, in any case.
pub(crate) fn signal(name: &str) -> anyhow::Result<Signal> {
    let upper = name.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "KILL" => Ok(Signal::SIGKILL),
        "TERM" => Ok(Signal::SIGTERM),
        "INT" => Ok(Signal::SIGINT),
        "HUP" => Ok(Signal::SIGHUP),
        "USR1" => Ok(Signal::SIGUSR1),
        "STOP" => Ok(Signal::SIGSTOP),
        "CONT" => Ok(Signal::SIGCONT),
        _ => Err(anyhow!(
            "unknown signal {name:?}: expected KILL, TERM, INT, HUP, USR1, STOP or CONT"
        )),
    }
}

/// Sends a request to the launcher that listens on `socket`, and returns its reply.
///
/// # Errors
/// No launcher listens there, the connection breaks, or the launcher reports that the
/// request failed.
pub(crate) fn send(socket: &Path, request: &Request) -> anyhow::Result<String> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "no running cluster answers on {}; --name or --state-dir selects another one",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let line = serde_json::to_string(request)? + "\n";
    (&stream).write_all(line.as_bytes()).context("cannot send the request")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("cannot read the reply")?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Done(text)) => Ok(text),
        Ok(Reply::Failed(text)) => Err(anyhow!("{text}")),
        Err(_torn) => Err(anyhow!("the launcher ended before it answered")),
    }
}

/// Reads the request of a connected client.
///
/// # Errors
/// No complete request arrives within 5 s.
pub(crate) async fn receive(stream: &mut tokio::net::UnixStream) -> anyhow::Result<Request> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream).take(LONGEST_REQUEST);
    let read = timeout(READ_TIMEOUT, reader.read_line(&mut line)).await;
    read.context("no request arrived in time")?.context("cannot read the request")?;
    serde_json::from_str(&line).context("unknown request")
}

/// Sends the result of a request to its client.
///
/// # Errors
/// The client has disconnected; the request was carried out nevertheless.
pub(crate) async fn answer(
    stream: &mut tokio::net::UnixStream,
    outcome: anyhow::Result<String>,
) -> anyhow::Result<()> {
    let reply = match outcome {
        Ok(text) => Reply::Done(text),
        Err(error) => Reply::Failed(format!("{error:#}")),
    };
    let line = serde_json::to_string(&reply)? + "\n";
    stream.write_all(line.as_bytes()).await.context("the client is gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let process = "syncer-1".to_owned();
        vec![
            Request::List,
            Request::Kill { process: process.clone(), signal: "TERM".to_owned() },
            Request::Restart { process },
            Request::AddApp {
                app: "appC".to_owned(),
                space: "s2".to_owned(),
                cell: Some(Cell::parse("cell-2").unwrap()),
                staging: true,
            },
            Request::AddCell,
            Request::RemoveCell { cell: Cell::parse("cell-3").unwrap() },
        ]
    }

    #[tokio::test]
    async fn a_request_and_its_outcome_cross_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("launcher.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        for request in requests() {
            let (to, wanted) = (socket.clone(), request.clone());
            let client = tokio::task::spawn_blocking(move || send(&to, &wanted));
            let (mut stream, _peer) = listener.accept().await.unwrap();
            assert_eq!(receive(&mut stream).await.unwrap(), request);
            let outcome = match &request {
                Request::List => Err(anyhow!("inner").context("outer")),
                _other => Ok("done\nwith it".to_owned()),
            };
            answer(&mut stream, outcome).await.unwrap();
            match (client.await.unwrap(), request) {
                (Err(error), Request::List) => assert_eq!(error.to_string(), "outer: inner"),
                (outcome, _other) => assert_eq!(outcome.unwrap(), "done\nwith it"),
            }
        }
    }

    #[test]
    fn without_a_launcher_the_error_names_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let error = send(&directory.path().join("launcher.sock"), &Request::List).unwrap_err();
        assert!(error.to_string().starts_with("no running cluster answers on /"), "{error}");
    }

    #[test]
    fn signals_have_names() {
        for name in ["KILL", "sigkill", "kill", "SIGKILL"] {
            assert_eq!(signal(name).unwrap(), Signal::SIGKILL);
        }
        assert!(signal("WINCH").unwrap_err().to_string().contains("\"WINCH\""));
    }
}
