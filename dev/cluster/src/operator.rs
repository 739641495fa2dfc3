//! Runs `portcullisctl` and other commands like an operator.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::launch::Cluster;
use super::ports::local;
use super::settings::OPERATOR;
use super::topology::Cell;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The owner of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The owner.
    pub(crate) owner: String,
    /// The fencing token of its ownership.
    pub(crate) fencing_token: u64,
}

impl Cluster {
    /// `portcullisctl` with the operator's certificate and the addresses of this cluster.
    pub(crate) fn ctl_command(&self, arguments: &[&str]) -> Command {
        let executable = self.options().binaries.join("portcullisctl");
        let ports = &self.options().ports;
        let (cert, key) = self.layout().certificate(OPERATOR);
        let mut command = Command::new(executable);
        command
            .args(arguments)
            .env("PORTCULLIS_LOCK_SERVER", local(ports.lock_server).to_string())
            .env("PORTCULLIS_POLICY_STORE", local(ports.policy_store).to_string())
            .env("PORTCULLIS_CA", self.layout().ca())
            .env("PORTCULLIS_CERT", cert)
            .env("PORTCULLIS_KEY", key)
            .kill_on_drop(true);
        command
    }

    /// Runs `portcullisctl` with the operator's certificate, and returns its output.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.ctl_command(arguments);
        let shown = format!("portcullisctl {}", arguments.join(" "));
        let output = timeout(TIMEOUT, command.output()).await;
        let output = output.with_context(|| format!("{shown} took too long"))?;
        let output = output.with_context(|| format!("cannot run {shown}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{shown} ended with {}: {}", output.status, errors.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `portcullisctl` for the agent of one cell.
    pub(crate) async fn ctl_on(&self, cell: Cell, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.layout().agent_socket(cell);
        let socket = socket.to_str().context("the state directory's name is text")?;
        let all: Vec<&str> = ["--cell-socket", socket].iter().chain(arguments).copied().collect();
        self.ctl(&all).await
    }

    /// The owner of the syncers' lock; `None` if the lock is free.
    pub(crate) async fn leader(&self) -> anyhow::Result<Option<Held>> {
        let text = self.ctl(&["locks", "--json"]).await?;
        let lines = text.lines().map(serde_json::from_str::<Value>);
        let locks = lines.collect::<Result<Vec<_>, _>>().context("portcullisctl's JSON")?;
        Ok(locks.iter().find_map(held))
    }

    /// Runs a command in a cell's namespace, and returns its output.
    pub(crate) async fn on_cell(
        &self,
        cell: Cell,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let namespace = self.options().name.cell(cell);
        let mut all: Vec<OsString> =
            ["netns", "exec", &namespace, program].into_iter().map(OsString::from).collect();
        all.extend(arguments.iter().map(OsString::from));
        let output = tokio::task::spawn_blocking(move || cni::tools::run("ip", all)).await?;
        Ok(output?)
    }
}

/// The lock that syncers compete for.
pub(crate) const LOCK: &str = "policy-server-asg-syncer";

fn held(lock: &Value) -> Option<Held> {
    let owner = lock["owner"].as_str()?.to_owned();
    let token = &lock["fencing_token"];
    // 64-bit numbers may be JSON strings.
    let fencing_token = token.as_u64().or_else(|| token.as_str()?.parse().ok())?;
    (lock["key"] == LOCK).then_some(Held { owner, fencing_token })
}
