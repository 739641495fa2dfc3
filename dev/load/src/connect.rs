//! Connects the load tools to a server: mutual TLS, like all clients of the services.

use std::path::PathBuf;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use runtime::client::{self, Options};
use runtime::tls::{ClientTls, Files};
use tonic::transport::Channel;

/// The server under load.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// Address of the server, host:port; its certificate must be valid for the host
    #[arg(long)]
    pub address: String,
    /// PEM file of the CA of both certificates
    #[arg(long)]
    pub ca: PathBuf,
    /// PEM file of the client certificate
    #[arg(long)]
    pub cert: PathBuf,
    /// PEM file of its private key
    #[arg(long)]
    pub key: PathBuf,
    /// Process id of the server, if it runs on this machine; reports its CPU time and memory
    #[arg(long)]
    pub server_pid: Option<u32>,
}

impl Target {
    /// Opens this number of channels, one connection each.
    pub fn channels(&self, count: usize) -> anyhow::Result<Vec<Channel>> {
        let tls = self.tls()?;
        // Pings would be traffic that the genuine clients do not have.
        let options = Options { keepalive_interval: None, ..Options::default() };
        (0..count)
            .map(|_| Ok(client::channel(&self.address, Some(tls.clone()), options)?))
            .collect()
    }

    /// The client's side of the connection.
    pub fn tls(&self) -> anyhow::Result<ClientTls> {
        let Self { address: _, ca, cert, key, server_pid: _ } = self;
        let files = Files { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
        ClientTls::load(&files).context("the certificate of the load")
    }
}

/// Raises the limit of open files to its maximum, since each connection needs one.
pub fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .context("raising the limit of open files")?;
    }
    Ok(())
}
