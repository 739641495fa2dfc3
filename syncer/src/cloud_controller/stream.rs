//! Parses a page of the list while it arrives.
//!
//! A page may have tens of megabytes, so it is never buffered as a whole: chunks go
//! through a short queue to a thread that parses, hashes and encodes group by group. It
//! is a blocking-pool thread, so that thousands of groups do not delay the renewal of
//! the lease. When the caller is dropped, the queue closes and the thread exits.

use std::{
    io::{self, BufReader},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use reqwest::Response;
use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::Level;

use super::Fault;
use crate::{
    import::{self, Page},
    manifest::{ListSnapshot, StoreHashes},
};

/// Size limit of a page: more than any Cloud Controller sends.
const LARGEST_PAGE: usize = 256 << 20;
/// Queue size for chunks.
const QUEUE: usize = 4;

/// Result of reading a page.
pub(super) struct Read {
    pub(super) reading: ListSnapshot,
    pub(super) page: Page,
    /// The body, if the log shows it.
    pub(super) echo: Option<Vec<u8>>,
}

/// Reads the body of `response` into `reading`.
pub(super) async fn read(
    mut response: Response,
    mut reading: ListSnapshot,
    held: Arc<StoreHashes>,
) -> Result<Read, Fault> {
    let (chunks, received) = mpsc::channel(QUEUE);
    let parser = spawn_blocking(move || {
        let body = BufReader::new(Body { received, chunk: Bytes::new() });
        let page = reading.page(body, &held)?;
        Ok::<_, import::Error>((reading, page))
    });
    let echo = feed(&mut response, chunks).await?;
    let parsed = parser.await.expect("parsing neither panics nor is cancelled");
    let (reading, page) = parsed?;
    Ok(Read { reading, page, echo })
}

/// Forwards the body until its end, also after the receiver was dropped: reading the rest
/// of an invalid page keeps the connection usable.
async fn feed(
    response: &mut Response,
    chunks: mpsc::Sender<Bytes>,
) -> Result<Option<Vec<u8>>, Fault> {
    let mut echo = tracing::enabled!(Level::DEBUG).then(Vec::new);
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.map_err(Fault::Body)? {
        size += chunk.len();
        if size > LARGEST_PAGE {
            return Err(Fault::TooLarge { limit: LARGEST_PAGE });
        }
        if let Some(echo) = &mut echo {
            echo.extend_from_slice(&chunk);
        }
        _ = chunks.send(chunk).await;
    }
    Ok(echo)
}

/// Body as a reader for the parser.
struct Body {
    received: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl io::Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
