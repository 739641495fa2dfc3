//! Simulates agents of the original: each polls the groups of its spaces over HTTP/1.1
//! and mutual TLS, page by page.

use std::io::Read;
use std::time::Duration;

use anyhow::anyhow;
use flate2::read::MultiGzDecoder;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::data::{Shape, spaces_of};
use crate::connect::Target;
use crate::histogram::{Summary, Tally};
use crate::{length, positive_length};

/// Parsed length of a response.
const HEAD: usize = 4 << 10;

/// Polling behaviour of the agents.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Habits {
    /// Number of agents that poll over HTTP
    #[arg(long, default_value_t = 0)]
    pub(super) pollers: u32,
    /// Poll interval of each agent; 0s: without pause
    #[arg(long, default_value = "60s", value_parser = length)]
    poll_interval: Duration,
    /// Duration of the measurement
    #[arg(long, default_value = "60s", value_parser = positive_length)]
    poll_duration: Duration,
    /// Number of spaces per request
    #[arg(long, default_value_t = 100)]
    poll_spaces: u32,
    /// Page size per request (`per_page`)
    #[arg(long, default_value_t = 5_000)]
    page_size: u32,
    /// Start all agents at the same moment instead of spread over the interval
    #[arg(long)]
    poll_together: bool,
    /// Timeout of a request; the original agents use 5s
    #[arg(long, default_value = "60s", value_parser = positive_length)]
    poll_timeout: Duration,
    /// Accept gzip
    #[arg(long)]
    gzip: bool,
}

/// Results of the polls.
#[derive(Debug, Serialize)]
pub(super) struct Polled {
    pub(super) pollers: u32,
    pub(super) seconds: f64,
    pub(super) polls: Summary,
}

/// Polls until the period is over.
pub(super) async fn poll(
    habits: &Habits,
    address: &str,
    target: &Target,
    shape: &Shape,
) -> anyhow::Result<Polled> {
    let begin = Instant::now();
    let end = begin + habits.poll_duration;
    let mut running = JoinSet::new();
    for number in 0..habits.pollers {
        let agent = Agent {
            client: client(target, habits)?,
            url: url(address, habits, shape, number),
            gzip: habits.gzip,
        };
        let share = if habits.poll_together { 0 } else { number };
        let first = begin + habits.poll_interval * share / habits.pollers.max(1);
        running.spawn(agent.work(first, habits.poll_interval, end));
    }
    let mut tally = Tally::default();
    while let Some(its) = running.join_next().await {
        tally.add(its?);
    }
    let elapsed = begin.elapsed();
    let polls = tally.summary(elapsed);
    Ok(Polled { pollers: habits.pollers, seconds: elapsed.as_secs_f64(), polls })
}

fn client(target: &Target, habits: &Habits) -> anyhow::Result<Client> {
    let tls = target.tls()?.rustls_config()?.as_ref().clone();
    // Responses are counted as received, compressed or not.
    Ok(Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .gzip(false)
        .timeout(habits.poll_timeout)
        .build()?)
}

fn url(address: &str, habits: &Habits, shape: &Shape, number: u32) -> String {
    let spaces = spaces_of(number as usize, habits.poll_spaces, shape);
    let spaces: Vec<&str> = spaces.iter().map(|space| space.as_str()).collect();
    let (size, spaces) = (habits.page_size, spaces.join(","));
    format!(
        "https://{address}/networking/v1/internal/security_groups\
         ?per_page={size}&space_guids={spaces}"
    )
}

struct Agent {
    client: Client,
    url: String,
    gzip: bool,
}

impl Agent {
    async fn work(self, first: Instant, interval: Duration, end: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut due = first;
        while due < end {
            sleep_until(due).await;
            let began = Instant::now();
            match self.poll().await {
                Ok(bytes) => tally.success(began.elapsed(), bytes),
                Err(code) => tally.failure(code),
            }
            due = if interval.is_zero() { Instant::now() } else { due + interval };
        }
        tally
    }

    /// The bytes of all pages, or the error as a gRPC code.
    async fn poll(&self) -> Result<usize, Code> {
        let (mut from, mut total) = (0, 0);
        loop {
            let page = self.page(from).await?;
            total += page.bytes;
            let next = next(&page.head, self.gzip).map_err(|_error| Code::DataLoss)?;
            if next == 0 {
                return Ok(total);
            }
            if next <= from {
                return Err(Code::DataLoss);
            }
            from = next;
        }
    }

    /// The first page is requested without a start, like by agents.
    async fn page(&self, from: u64) -> Result<Page, Code> {
        let encoding = if self.gzip { "gzip" } else { "identity" };
        let url = match from {
            0 => self.url.clone(),
            _ => format!("{}&from={from}", self.url),
        };
        let answer = self.client.get(url).header(ACCEPT_ENCODING, encoding).send().await;
        let mut answer = answer.map_err(|error| code(&error))?;
        let compressed = answer.headers().get(CONTENT_ENCODING).is_some();
        match answer.status() {
            StatusCode::OK if compressed == self.gzip => {}
            StatusCode::OK => return Err(Code::FailedPrecondition),
            StatusCode::SERVICE_UNAVAILABLE => return Err(Code::ResourceExhausted),
            _ => return Err(Code::Unknown),
        }
        let mut page = Page { bytes: 0, head: Vec::new() };
        while let Some(piece) = answer.chunk().await.map_err(|error| code(&error))? {
            page.bytes += piece.len();
            let wanted = HEAD.saturating_sub(page.head.len()).min(piece.len());
            page.head.extend_from_slice(&piece[..wanted]);
        }
        Ok(page)
    }
}

/// A response that was read to its end.
struct Page {
    bytes: usize,
    /// Its first bytes: the whole responses of a thousand agents are not kept in
    /// memory.
    head: Vec<u8>,
}

fn code(error: &reqwest::Error) -> Code {
    if error.is_timeout() { Code::DeadlineExceeded } else { Code::Unavailable }
}

/// The start of the next page: the first key of the response. The rest is not decoded:
/// CPU time of the load tool is not available to the server.
fn next(page: &[u8], compressed: bool) -> anyhow::Result<u64> {
    let mut head = [0; 48];
    let length = match compressed {
        true => read_all(MultiGzDecoder::new(page), &mut head)?,
        false => read_all(page, &mut head)?,
    };
    let text = str::from_utf8(&head[..length]).unwrap_or_default();
    let number = text.strip_prefix(r#"{"next":"#).and_then(|rest| rest.split(',').next());
    number.and_then(|number| number.parse().ok()).ok_or_else(|| anyhow!("begins with {text:?}"))
}

fn read_all(from: impl Read, head: &mut [u8]) -> std::io::Result<usize> {
    let mut read = Vec::new();
    from.take(head.len() as u64).read_to_end(&mut read)?;
    head[..read.len()].copy_from_slice(&read);
    Ok(read.len())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn the_next_page_is_in_the_first_key() {
        let page = br#"{"next":501,"security_groups":[{"guid":"abcdefgh","name":"long enough"}]}"#;
        assert_eq!(next(page, false).unwrap(), 501);
        // Like the store's response: concatenated gzip members.
        let mut members = Vec::new();
        for part in page.chunks(5) {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(part).unwrap();
            members.extend(encoder.finish().unwrap());
        }
        assert_eq!(next(&members, true).unwrap(), 501);
        assert!(next(b"{}", false).unwrap_err().to_string().contains("{}"));
        assert!(next(page, true).is_err());
    }
}
