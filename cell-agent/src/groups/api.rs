//! Client of policy-server-internal (docs/compatibility/vxlan-policy-agent.md#calls):
//! HTTP/1.1 over mutual TLS, each request within the configured timeout, body included.

use std::{collections::BTreeSet, fmt::Write as _, io, io::Read as _, time::Duration};

use flate2::read::MultiGzDecoder;
use model::ids::SpaceGuid;
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};
use runtime::{
    https::{self, Servers, TlsClient},
    tls::ClientTls,
};
use serde::Deserialize;

use super::page::{Entry, Page};

/// The original's page size; the genuine server ignores it and sends everything.
const PER_PAGE: u32 = 5000;
/// Size limit of a page: far more than 6,000 groups need, and less than a cell's
/// memory.
const LARGEST_PAGE: usize = 512 << 20;
/// Maximum length of an error response in a log line.
const LARGEST_MESSAGE: usize = 300;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The request failed.
    #[error("{what}: no answer")]
    Request {
        /// The requested resource.
        what: &'static str,
        /// The cause.
        source: reqwest::Error,
    },
    /// The HTTP client cannot be built.
    #[error("{what}: no client")]
    Client {
        /// The requested resource.
        what: &'static str,
        /// The cause.
        source: https::Error,
    },
    /// The server returned an error status.
    #[error("{what}: http status {status}: {message}")]
    Refused {
        /// The requested resource.
        what: &'static str,
        /// The status code.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The response is invalid.
    #[error("{what}: {problem}")]
    Nonsense {
        /// The requested resource.
        what: &'static str,
        /// The problem in the response.
        problem: String,
    },
}

const STAMP: &str = "security_groups_last_updated";
const GROUPS: &str = "security_groups";

/// The server.
#[derive(Debug)]
pub(super) struct Api {
    base: String,
    client: TlsClient,
    timeout: Duration,
}

impl Api {
    /// A client for a URL without path.
    pub(super) fn new(url: &str, tls: ClientTls, timeout: Duration) -> Self {
        let user_agent = format!("cell-agent/{}", env!("CARGO_PKG_VERSION"));
        let client =
            TlsClient::new(tls, user_agent, Servers::new(&[url]), |builder| builder.no_gzip());
        let base = format!("{}/networking/v1/internal", url.trim_end_matches('/'));
        Self { base, client, timeout }
    }

    /// Stamp of the last change of the groups; `None` for older servers without one.
    pub(super) async fn last_updated(&self) -> Result<Option<u64>, Error> {
        let response = self.send(STAMP, STAMP).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = body(STAMP, response).await?;
        let text = String::from_utf8_lossy(&body);
        let stamp = text.trim().parse().map_err(|_| {
            let problem = format!("{:?} is not a number", shortened(&text));
            Error::Nonsense { what: STAMP, problem }
        })?;
        Ok(Some(stamp))
    }

    /// All groups of the spaces and all global groups, with the number of pages.
    pub(super) async fn groups(
        &self,
        spaces: &BTreeSet<SpaceGuid>,
    ) -> Result<(Vec<Entry>, u32), Error> {
        let nonsense = |problem| Error::Nonsense { what: GROUPS, problem };
        let (mut entries, mut from, mut pages) = (Vec::new(), 0, 0);
        loop {
            let response = self.send(GROUPS, &query(spaces, from)).await?;
            let body = body(GROUPS, response).await?;
            let page = Page::parse(&body).map_err(nonsense)?;
            entries.extend(page.groups);
            pages += 1;
            if page.next == 0 {
                return Ok((entries, pages));
            }
            if page.next <= from {
                let problem = format!("after page {from} it names page {}", page.next);
                return Err(nonsense(problem));
            }
            from = page.next;
        }
    }

    async fn send(&self, what: &'static str, path: &str) -> Result<Response, Error> {
        let failed = |source| Error::Request { what, source };
        let client = self.client.client();
        let client = client.map_err(|source| Error::Client { what, source })?;
        let request = client.get(format!("{}/{path}", self.base));
        let request = request.header(ACCEPT_ENCODING, "gzip").timeout(self.timeout);
        request.send().await.map_err(|error| failed(error.without_url()))
    }
}

/// Space GUIDs are in the URL unescaped, like in the original.
fn query(spaces: &BTreeSet<SpaceGuid>, from: u64) -> String {
    let mut query = format!("{GROUPS}?per_page={PER_PAGE}");
    if !spaces.is_empty() {
        let spaces: Vec<&str> = spaces.iter().map(SpaceGuid::as_str).collect();
        query.push_str(&format!("&space_guids={}", spaces.join(",")));
    }
    if from > 0 {
        write!(query, "&from={from}").expect("a String takes everything");
    }
    query
}

async fn body(what: &'static str, mut response: Response) -> Result<Vec<u8>, Error> {
    let failed = |error: reqwest::Error| Error::Request { what, source: error.without_url() };
    let too_large = || {
        let problem = format!("an answer of more than {} MiB", LARGEST_PAGE >> 20);
        Error::Nonsense { what, problem }
    };
    let status = response.status();
    let zipped = response.headers().get(CONTENT_ENCODING).is_some_and(|name| name == "gzip");
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > LARGEST_PAGE {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    if zipped {
        body = unzipped(&body)
            .map_err(|error| Error::Nonsense { what, problem: format!("gzip: {error}") })?;
        if body.len() > LARGEST_PAGE {
            return Err(too_large());
        }
    }
    if status.as_u16() > 299 {
        return Err(Error::Refused { what, status: status.as_u16(), message: message(&body) });
    }
    Ok(body)
}

/// Decompresses several gzip members: a server may compress each group separately, and
/// most HTTP clients stop after the first member.
fn unzipped(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(body.len() * 4);
    // One more byte than the limit shows that the limit is exceeded.
    let most = LARGEST_PAGE as u64 + 1;
    MultiGzDecoder::new(body).take(most).read_to_end(&mut plain)?;
    Ok(plain)
}

/// The member `error` of the body, or the whole body.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Update {
        error: String,
    }
    match runtime::json::from_slice(body) {
        Ok(Update { error }) => shortened(&error),
        Err(_) => shortened(&String::from_utf8_lossy(body)),
    }
}

fn shortened(text: &str) -> String {
    text.trim().chars().take(LARGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_the_originals() {
        let spaces = |names: &[&str]| names.iter().map(|n| SpaceGuid::parse(n).unwrap()).collect();
        assert_eq!(query(&spaces(&[]), 0), "security_groups?per_page=5000");
        assert_eq!(
            query(&spaces(&["s2", "s1"]), 7),
            "security_groups?per_page=5000&space_guids=s1,s2&from=7"
        );
    }

    #[test]
    fn the_servers_words_are_found() {
        assert_eq!(message(br#"{"error": "database read failed"}"#), "database read failed");
        assert_eq!(message(b"404 page not found\n"), "404 page not found");
    }
}
