//! Channels to the servers, built from flags, and calls with a timeout.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::Context as _;
use runtime::{
    client,
    tls::{ClientTls, Files},
};
use tonic::{Status, transport::Channel};

use crate::cli::Connection;

/// Default of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Connection {
    fn tls(&self) -> anyhow::Result<ClientTls> {
        let file = |path: &Option<PathBuf>, flag: &str, variable: &str| {
            let path = path.clone().filter(|path| !path.as_os_str().is_empty());
            path.with_context(|| format!("set --{flag} or {variable}"))
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

    /// A channel to the lock server.
    pub(crate) fn to_lock_server(&self) -> anyhow::Result<Channel> {
        self.channel(&self.lock_server)
    }

    /// A channel to the policy store.
    pub(crate) fn to_policy_store(&self) -> anyhow::Result<Channel> {
        self.channel(&self.policy_store)
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

/// An error of a server or of the connection: a message, and the code separately.
#[derive(Debug)]
pub(crate) struct Refused {
    sentence: String,
    /// The code's name as in Go.
    pub(crate) code: String,
}

impl Refused {
    pub(crate) fn new(status: &Status) -> Self {
        // `rpc error: code = NotFound desc = resource-not-found`
        let text = client::describe(status);
        let described = text.strip_prefix("rpc error: code = ");
        let (code, sentence) =
            described.and_then(|text| text.split_once(" desc = ")).unwrap_or(("Unknown", &text));
        let sentence = if sentence.is_empty() { "no reason given" } else { sentence };
        Self { sentence: sentence.to_owned(), code: code.to_owned() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_and_the_code_are_apart() {
        let refused = Refused::new(&Status::not_found("there is no container c on this cell"));
        assert_eq!(refused.to_string(), "there is no container c on this cell");
        assert_eq!(refused.code, "NotFound");
        assert_eq!(Refused::new(&Status::cancelled("")).to_string(), "no reason given");
    }
}
