//! A lock server as a separate process.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::models::locket_client::LocketClient;
use runtime::{
    client,
    tls::{ClientTls, Files},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tonic::transport::Channel;

use super::{PATIENCE, certificates::Authority};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_lock-server");

/// Files and certificates of one server, shared by successive processes.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
}

impl Site {
    pub(crate) fn new() -> Self {
        runtime::tls::install_provider();
        let directory = TempDir::new().unwrap();
        let authority = Authority::new(directory.path(), "test");
        Self { directory, authority }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A valid configuration.
    pub(crate) fn config(&self) -> Value {
        let Files { ca, cert, key } = self.authority.server();
        json!({
            "listen_address": "127.0.0.1:0",
            "ca_file": ca,
            "cert_file": cert,
            "key_file": key,
            "database_driver": "sqlite",
            "database_connection_string": self.path("locket.db"),
            "log_level": "debug",
            "time_format": "rfc3339",
        })
    }

    pub(crate) fn write(&self, config: &Value) -> PathBuf {
        let path = self.path("locket.json");
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub(crate) fn command(&self, config: &Value) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("-config").arg(self.write(config));
        command
    }

    pub(crate) fn start(&self) -> Server {
        Server::start(self.command(&self.config()))
    }

    pub(crate) fn client(&self, address: &str) -> LocketClient<Channel> {
        LocketClient::new(self.channel(address))
    }

    pub(crate) fn channel(&self, address: &str) -> Channel {
        channel(address, &self.authority.client())
    }
}

pub(crate) fn channel(address: &str, files: &Files) -> Channel {
    let tls = ClientTls::load(files).unwrap();
    client::channel(address, Some(tls), client::Options::default()).unwrap()
}

/// A running process.
pub(crate) struct Server {
    child: Child,
    lines: mpsc::Receiver<Value>,
    seen: Vec<Value>,
    pub(crate) address: String,
}

impl Server {
    /// Returns when the process logs that it has started.
    pub(crate) fn start(command: Command) -> Self {
        let mut server = Self::spawn(command);
        let line = server.line("locket.grpc-server.started");
        server.address = line["data"]["address"].as_str().unwrap().to_owned();
        server.line("locket.started");
        server
    }

    /// Returns without waiting for the start.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("each line is JSON");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new(), address: String::new() }
    }

    /// Waits for the first line with this message.
    pub(crate) fn line(&mut self, message: &str) -> Value {
        self.line_where(|line| line["message"] == message)
            .unwrap_or_else(|| panic!("no {message} among {:#?}", self.seen))
    }

    pub(crate) fn line_where(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(line) = self.seen.iter().find(|line| wanted(line)) {
            return Some(line.clone());
        }
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line.clone());
            if wanted(&line) {
                return Some(line);
            }
        }
        None
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    /// Waits until the process exits by itself.
    pub(crate) async fn end(mut self) -> (ExitStatus, Vec<Value>) {
        // Clients of this test stay connected meanwhile, which delays the exit.
        let ended = spawn_blocking(move || {
            loop {
                match self.lines.recv_timeout(PATIENCE) {
                    Ok(line) => self.seen.push(line),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => panic!("it does not end"),
                }
            }
            (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
        });
        ended.await.unwrap()
    }

    /// Like `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
