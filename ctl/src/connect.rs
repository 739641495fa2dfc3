//! Channels to the parts, from flags.

use anyhow::Context as _;
use runtime::{
    client,
    tls::{ClientTls, Files},
};
use tonic::transport::Channel;

use crate::cli::Connection;

impl Connection {
    fn tls(&self) -> anyhow::Result<ClientTls> {
        let file = |path: &Option<std::path::PathBuf>, flag: &str, variable: &str| {
            path.clone().with_context(|| format!("give --{flag} or set {variable}"))
        };
        let files = Files {
            ca: file(&self.ca, "ca", "PORTCULLIS_CA")?,
            cert: file(&self.cert, "cert", "PORTCULLIS_CERT")?,
            key: file(&self.key, "key", "PORTCULLIS_KEY")?,
        };
        Ok(ClientTls::load(&files)?)
    }

    fn channel(&self, address: &str) -> anyhow::Result<Channel> {
        Ok(client::channel(address, Some(self.tls()?), client::Options::default())?)
    }

    /// To the lock server.
    pub(crate) fn to_lock_server(&self) -> anyhow::Result<Channel> {
        self.channel(&self.lock_server)
    }

    /// To the policy store.
    pub(crate) fn to_policy_store(&self) -> anyhow::Result<Channel> {
        self.channel(&self.policy_store)
    }

    /// To the agent of this machine.
    pub(crate) fn to_cell(&self) -> Channel {
        client::unix(&self.cell_socket)
    }
}

/// What failed, and what the server says about it.
pub(crate) fn explained(what: &str, status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{what}: {}", client::describe(status))
}
