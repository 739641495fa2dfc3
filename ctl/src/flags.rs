//! Flags of all commands for addresses and certificates.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use jiff::SignedDuration;

/// Addresses and certificates. An empty value counts as not set. A flag or variable
/// precedes the context file.
#[derive(Debug, Args)]
pub struct Flags {
    /// JSON file with addresses and certificates, or name of a context (`context list`) [default:
    /// the context in use]
    #[arg(long, global = true, env = "PORTCULLIS_CONTEXT", value_name = "NAME|FILE", value_parser = maybe_empty())]
    pub context: Option<PathBuf>,

    /// Address of the lock server, host:port [default: locket.service.cf.internal:8891]
    #[arg(long, global = true, env = "PORTCULLIS_LOCK_SERVER")]
    pub lock_server: Option<String>,

    /// Address of the policy store, host:port, or several separated by commas [default: policy-server.service.cf.internal:4004]
    #[arg(long, global = true, env = "PORTCULLIS_POLICY_STORE")]
    pub policy_store: Option<String>,

    /// Unix socket of the cell agent on this machine [default:
    /// /var/vcap/data/cell-agent/control.sock]
    #[arg(long, global = true, env = "PORTCULLIS_CELL_SOCKET", value_parser = maybe_empty())]
    pub cell_socket: Option<PathBuf>,

    /// PEM file of the CA that signed the servers' certificates
    #[arg(long, global = true, env = "PORTCULLIS_CA", value_parser = maybe_empty())]
    pub ca: Option<PathBuf>,

    /// PEM file of this client's certificate
    #[arg(long, global = true, env = "PORTCULLIS_CERT", value_parser = maybe_empty())]
    pub cert: Option<PathBuf>,

    /// PEM file of this client's private key
    #[arg(long, global = true, env = "PORTCULLIS_KEY", value_parser = maybe_empty())]
    pub key: Option<PathBuf>,

    /// Timeout of each request, such as 30s or 2m [default: 10s; reconcile: 60s]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Unlike the usual parser of paths, accepts an empty path; commands that need the path
/// report it.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A time in seconds, or with units.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<i64>().map(SignedDuration::from_secs);
    let duration = seconds.or_else(|_| text.parse::<SignedDuration>());
    let duration = duration.map_err(|_| "not a time such as 10s or 2m".to_owned())?;
    let duration = Duration::try_from(duration).map_err(|_| "negative".to_owned())?;
    if duration.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_or_are_seconds() {
        for (text, seconds) in [("10", 10), ("30s", 30), ("2m", 120), ("1h", 3_600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "-3s", "soon", "0s"] {
            duration(text).unwrap_err();
        }
    }
}
