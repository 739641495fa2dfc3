//! The context file: addresses and certificates of one deployment, as JSON.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;

/// A context file. Every key is optional; unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ContextFile {
    pub(crate) lock_server: Server,
    pub(crate) policy_store: Server,
    pub(crate) cell_socket: Option<PathBuf>,
}

/// A server, and the client certificate for it.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// host:port
    pub(crate) address: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// # Errors
/// The file cannot be read, is not JSON, or has an unknown key.
pub(crate) fn read(path: &Path) -> anyhow::Result<ContextFile> {
    let name = || format!("context file {}", path.display());
    let text = fs::read_to_string(path).with_context(name)?;
    serde_json::from_str(&text).with_context(name)
}
