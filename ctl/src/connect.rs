//! Channels to the servers, and calls with a timeout.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use runtime::{
    client,
    tls::{ClientTls, Files},
};
use tonic::{Status, transport::Channel};

use crate::{
    context::{self, CloudController, ContextFile, Server},
    flags::Flags,
    refused::Refused,
};

const LOCK_SERVER: &str = "locket.service.cf.internal:8891";
const POLICY_STORE: &str = "policy-server.service.cf.internal:4004";
const CELL_SOCKET: &str = "/var/vcap/data/cell-agent/control.sock";

/// Default of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the servers are, and how to connect to them.
#[derive(Debug)]
pub(crate) struct Connection {
    lock_server: Server,
    policy_store: Server,
    cell_socket: PathBuf,
    /// Admin URLs of the syncers, from the context.
    pub(crate) syncer_admin: Vec<String>,
    /// From the context.
    pub(crate) cloud_controller: CloudController,
    pub(crate) timeout: Option<Duration>,
}

impl Connection {
    /// Flags and variables first, then the context file, then the defaults.
    ///
    /// # Errors
    /// The context file cannot be read.
    pub(crate) fn new(flags: &Flags) -> anyhow::Result<Self> {
        let context = context::select(path(&flags.context).as_deref())?;
        Ok(Self::with_context(flags, context))
    }

    /// Flags and variables first, then the context, then the defaults.
    fn with_context(flags: &Flags, context: ContextFile) -> Self {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let server = |address: &Option<String>, server: Server, default: &str| Server {
            address: text(address).or(server.address).or_else(|| Some(default.to_owned())),
            ca: path(&flags.ca).or(server.ca),
            cert: path(&flags.cert).or(server.cert),
            key: path(&flags.key).or(server.key),
        };
        Self {
            lock_server: server(&flags.lock_server, context.lock_server, LOCK_SERVER),
            policy_store: server(&flags.policy_store, context.policy_store, POLICY_STORE),
            cell_socket: path(&flags.cell_socket)
                .or(context.cell_socket)
                .unwrap_or_else(|| CELL_SOCKET.into()),
            syncer_admin: context.syncer_admin,
            cloud_controller: context.cloud_controller,
            timeout: flags.timeout,
        }
    }

    /// A channel to the lock server.
    pub(crate) fn to_lock_server(&self) -> anyhow::Result<Channel> {
        channel(&self.lock_server, self.lock_server.address.as_deref().unwrap_or_default())
    }

    /// The lock server.
    pub(crate) fn lock_server(&self) -> &Server {
        &self.lock_server
    }

    /// The policy store; its address may be a list of addresses.
    pub(crate) fn policy_store(&self) -> &Server {
        &self.policy_store
    }

    /// The configured address, or list of addresses, of the policy store.
    pub(crate) fn policy_store_address(&self) -> &str {
        self.policy_store.address.as_deref().unwrap_or_default()
    }

    /// The user's timeout of a request, or the default.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// A channel to the agent of this VM.
    pub(crate) fn to_cell(&self) -> Channel {
        client::unix(&self.cell_socket)
    }

    /// Calls with the user's timeout, or the default.
    pub(crate) async fn ask<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> anyhow::Result<T> {
        self.ask_within(TIMEOUT, what, call).await
    }

    /// Calls with the user's timeout, or this one.
    pub(crate) async fn ask_within<T>(
        &self,
        usual: Duration,
        what: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> anyhow::Result<T> {
        let bound = self.timeout.unwrap_or(usual);
        let answer = tokio::time::timeout(bound, call).await;
        let late = |_| Status::deadline_exceeded(format!("no answer within {bound:?} (--timeout)"));
        answer.map_err(late).flatten().map_err(|status| Refused::new(&status)).context(what)
    }
}

/// The path, unless a shell profile set the variable to the empty string.
fn path(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

/// A channel to one address of a server.
pub(crate) fn channel(server: &Server, address: &str) -> anyhow::Result<Channel> {
    Ok(client::channel(address, Some(tls(server)?), client::Options::default())?)
}

/// The client certificate for a server.
pub(crate) fn tls(server: &Server) -> anyhow::Result<ClientTls> {
    let file = |path: &Option<PathBuf>, flag: &str, variable: &str| {
        path.clone().with_context(|| format!("set --{flag} or {variable}, or use --context"))
    };
    let files = Files {
        ca: file(&server.ca, "ca", "PORTCULLIS_CA")?,
        cert: file(&server.cert, "cert", "PORTCULLIS_CERT")?,
        key: file(&server.key, "key", "PORTCULLIS_KEY")?,
    };
    Ok(ClientTls::load(&files)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn flags(arguments: &[&str]) -> Flags {
        Cli::parse_from([&["portcullisctl", "cell"], arguments].concat()).flags
    }

    /// A shell profile may set variables to the empty string.
    #[test]
    fn an_empty_value_counts_as_none() {
        let empty = ["--lock-server", "", "--policy-store", "", "--cell-socket", "", "--ca", ""];
        let found = Connection::with_context(&flags(&empty), ContextFile::default());
        assert_eq!(found.lock_server.address.as_deref(), Some(LOCK_SERVER));
        assert_eq!(found.policy_store.address.as_deref(), Some(POLICY_STORE));
        assert_eq!(found.cell_socket, PathBuf::from(CELL_SOCKET));
        assert_eq!(found.policy_store.ca, None);
        let error = tls(found.policy_store()).expect_err("no CA").to_string();
        assert_eq!(error, "set --ca or PORTCULLIS_CA, or use --context");
    }

    #[test]
    fn flags_precede_the_context_file() {
        let file = std::env::temp_dir().join(format!("context-{}.json", std::process::id()));
        let text = r#"{"lock_server": {"address": "l:1", "ca": "/l/ca", "cert": "/l/cert"},
            "policy_store": {"address": "p:1", "ca": "/p/ca"}, "cell_socket": "/s"}"#;
        std::fs::write(&file, text).expect("the temporary directory is writable");
        let path = file.to_str().expect("an ASCII path");
        let arguments = ["--context", path, "--lock-server", "f:2", "--cert", "/f/cert"];
        let found = Connection::new(&flags(&arguments));
        std::fs::remove_file(&file).expect("the file exists");
        let found = found.expect("the file is valid");
        let path = |text: &str| Some(PathBuf::from(text));
        let (cert, key) = (path("/f/cert"), None);
        let address = Some("f:2".to_owned());
        let lock_server = Server { address, ca: path("/l/ca"), cert: cert.clone(), key: None };
        assert_eq!(found.lock_server, lock_server);
        let address = Some("p:1".to_owned());
        assert_eq!(found.policy_store, Server { address, ca: path("/p/ca"), cert, key });
        assert_eq!(found.cell_socket, PathBuf::from("/s"));
    }

    #[test]
    fn an_unreadable_context_file_is_named() {
        let error = Connection::new(&flags(&["--context", "/nowhere/context.json"]));
        let error = error.expect_err("no such file");
        assert!(format!("{error:#}").starts_with("context file /nowhere/context.json: "));
    }
}
