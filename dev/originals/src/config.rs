//! Configuration files: JSON objects with the keys of the originals.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use runtime::tls::Files;
use serde_json::Value;

/// The values of one file.
#[derive(Debug, Clone)]
pub(crate) struct Config(Value);

impl Config {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file);
        let text = text.with_context(|| format!("could not read {}", file.display()))?;
        let value = runtime::json::from_str(&text);
        Ok(Self(value.with_context(|| format!("could not parse {}", file.display()))?))
    }

    /// The object below a key.
    pub(crate) fn below(&self, key: &str) -> Self {
        Self(self.0[key].clone())
    }

    pub(crate) fn text(&self, key: &str) -> anyhow::Result<String> {
        self.0[key].as_str().map(str::to_owned).with_context(|| format!("{key} is required"))
    }

    pub(crate) fn text_or(&self, key: &str, default: &str) -> String {
        self.0[key].as_str().unwrap_or(default).to_owned()
    }

    pub(crate) fn path(&self, key: &str) -> anyhow::Result<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(crate) fn number(&self, key: &str) -> anyhow::Result<u64> {
        self.0[key].as_u64().with_context(|| format!("{key} must be a number"))
    }

    pub(crate) fn port(&self, key: &str) -> anyhow::Result<u16> {
        u16::try_from(self.number(key)?).map_err(|_error| anyhow!("{key} must be a port"))
    }

    pub(crate) fn seconds(&self, key: &str) -> anyhow::Result<Duration> {
        self.number(key).map(Duration::from_secs)
    }

    /// The three files of one side of mutual TLS.
    pub(crate) fn files(&self, ca: &str, cert: &str, key: &str) -> anyhow::Result<Files> {
        Ok(Files { ca: self.path(ca)?, cert: self.path(cert)?, key: self.path(key)? })
    }
}
