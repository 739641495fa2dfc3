//! Write timeout for slow readers.
//!
//! TCP has no such limit: a client that stops reading would hold its response, and the resources of
//! the response, indefinitely.
//!
//! [`Signs`] tell the drain whether the client is alive: a frozen or vanished client must not delay
//! process exit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Length of the HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Signs of life of the peer, most of them since the last [`Signs::take`].
#[derive(Debug, Default)]
pub(super) struct Signs {
    read: AtomicBool,
    /// Bytes of the peer since the beginning; wraps around.
    arrived: AtomicUsize,
    written: AtomicBool,
    /// The last write is blocked on the peer.
    waits: AtomicBool,
}

/// Signs of life in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// The peer sent bytes.
    pub(super) read: bool,
    /// The peer does not read the bytes sent to it.
    pub(super) is_stuck: bool,
}

impl Signs {
    /// Whether the peer of a new connection has sent enough for an HTTP/2 connection preface.
    pub(super) fn has_preface(&self) -> bool {
        self.arrived.load(Relaxed) >= PREFACE
    }

    /// Returns the signs since the last call.
    pub(super) fn take(&self) -> Seen {
        let written = self.written.swap(false, Relaxed);
        let is_stuck = self.waits.load(Relaxed) && !written;
        Seen { read: self.read.swap(false, Relaxed), is_stuck }
    }
}

/// Stream with a write timeout, see the module docs. A write fails when the peer reads nothing for
/// too long.
pub(super) struct WriteTimeout<I> {
    io: I,
    limit: Duration,
    /// Timer of a blocked write.
    stalled: Option<Pin<Box<Sleep>>>,
    signs: Arc<Signs>,
}

impl<I> WriteTimeout<I> {
    /// Sets the write timeout to `limit`.
    pub(super) fn new(io: I, limit: Duration) -> Self {
        Self { io, limit, stalled: None, signs: Arc::default() }
    }

    /// Signs of life of the peer.
    pub(super) fn signs(&self) -> Arc<Signs> {
        Arc::clone(&self.signs)
    }

    /// Returns the result of a write, or an error when the write is blocked for too long.
    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        self.signs.waits.store(written.is_pending(), Relaxed);
        if written.is_ready() {
            self.signs.written.store(true, Relaxed);
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WriteTimeout<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, to);
        if read.is_ready() {
            self.signs.read.store(true, Relaxed);
            self.signs.arrived.fetch_add(to.filled().len() - before, Relaxed);
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up() {
        let limit = Duration::from_secs(30);
        let (near, mut far) = duplex(8);
        let mut near = WriteTimeout::new(near, limit);
        near.write_all(b"12345678").await.unwrap();
        let began = Instant::now();
        // Slow, but the peer reads some bytes now and then.
        let (written, ()) = tokio::join!(near.write_all(b"abcdef"), async {
            for _ in 0..6 {
                sleep(Duration::from_secs(20)).await;
                far.read_u8().await.unwrap();
            }
        });
        written.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(120));
        let began = Instant::now();
        let error = near.write_all(b"123456789").await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, limit));
    }
}
