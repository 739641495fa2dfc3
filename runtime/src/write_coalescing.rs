//! Coalesces the writes of one poll into a single write.
//!
//! An HTTP/2 connection flushes after each frame that carries data. With TLS each flush is a
//! record, a system call and a wakeup of the peer: three for a response that fits in one, forty for
//! a large one. [`CoalescingStream`] buffers writes until the end of the connection's poll
//! ([`CoalescingStream::poll_and_flush`]), or until 64 KiB are buffered.
//!
//! Invariants: after a poll, only bytes that the kernel does not accept stay buffered, and the
//! connection's task is woken when the kernel accepts more. Shutdown writes everything first. An
//! idle connection has no buffer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum buffer size: what rustls takes at a time.
const ROOM: usize = 64 << 10;
/// Buffer size of an ordinary response.
const SMALL: usize = 1 << 10;

/// Stream of a connection, shared by the connection and its driver.
#[derive(Debug)]
pub struct CoalescingStream<I>(Arc<Mutex<Inner<I>>>);

#[derive(Debug)]
struct Inner<I> {
    io: I,
    gathered: Vec<u8>,
    /// Number of bytes already written.
    written: usize,
    /// `io` may have bytes in a buffer of its own, as TLS does when the kernel accepts no more.
    is_unflushed: bool,
    /// Unbuffered: everything is written at once.
    is_direct: bool,
}

impl<I> CoalescingStream<I> {
    /// Buffers writes to `io`.
    pub fn new(io: I) -> Self {
        Self::of(io, false)
    }

    /// Creates an unbuffered stream, for a connection that flushes only when it has nothing more to
    /// write, as HTTP/1 does.
    pub(crate) fn direct(io: I) -> Self {
        Self::of(io, true)
    }

    fn of(io: I, is_direct: bool) -> Self {
        let inner = Inner { io, gathered: Vec::new(), written: 0, is_unflushed: false, is_direct };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Another handle of the same stream.
    #[must_use]
    pub fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: AsyncWrite + Unpin> CoalescingStream<I> {
    /// Polls the connection, then flushes.
    pub fn poll_and_flush<T, E: From<io::Error>>(
        &self,
        connection: Pin<&mut impl Future<Output = Result<T, E>>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, E>> {
        let turn = connection.poll(context);
        if turn.is_pending()
            && let Poll::Ready(Err(error)) = self.inner().poll_flush(context)
        {
            return Poll::Ready(Err(error.into()));
        }
        turn
    }
}

impl<I: AsyncWrite + Unpin> Inner<I> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
            self.is_unflushed = true;
        }
        self.written = 0;
        self.gathered = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            ready!(self.poll_send(context))?;
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Buffers as many bytes as fit.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let room = ROOM - self.gathered.len();
        let taken = &bytes[..bytes.len().min(room)];
        if self.gathered.capacity() - self.gathered.len() < taken.len() {
            // A response larger than an ordinary one usually consists of several writes.
            let is_small = self.gathered.len() + taken.len() <= SMALL;
            self.gathered.reserve_exact(if is_small { SMALL } else { room });
        }
        self.gathered.extend_from_slice(taken);
        taken.len()
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.len() < ROOM { Poll::Ready(Ok(())) } else { self.poll_send(context) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CoalescingStream<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().io).poll_read(context, to)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CoalescingStream<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.is_direct {
            return Pin::new(&mut inner.io).poll_write(context, bytes);
        }
        ready!(inner.poll_room(context))?;
        Poll::Ready(Ok(inner.take(bytes)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.is_direct {
            return Pin::new(&mut inner.io).poll_write_vectored(context, pieces);
        }
        ready!(inner.poll_room(context))?;
        Poll::Ready(Ok(pieces.iter().map(|piece| inner.take(piece)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        let inner = self.inner();
        !inner.is_direct || inner.io.is_write_vectored()
    }

    /// Ready at once: the end of the poll writes.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if inner.is_direct {
            return Pin::new(&mut inner.io).poll_flush(context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.poll_flush(context))?;
        Pin::new(&mut inner.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// A connection that writes these pieces, flushes after each, and then stays pending.
    async fn say(
        mut io: CoalescingStream<impl AsyncWrite + Unpin>,
        pieces: &[&[u8]],
    ) -> io::Result<()> {
        for piece in pieces {
            io.write_all(piece).await?;
            io.flush().await?;
        }
        std::future::pending().await
    }

    #[tokio::test]
    async fn one_poll_is_one_write() {
        let (near, mut far) = duplex(1 << 20);
        let gather = CoalescingStream::new(near);
        let mut connection = pin!(say(gather.share(), &[b"one", b"two"]));
        let turn = poll_fn(|context| {
            assert!(gather.poll_and_flush(connection.as_mut(), context).is_pending());
            Poll::Ready(())
        });
        turn.await;
        let mut text = [0; 16];
        assert_eq!(far.read(&mut text).await.unwrap(), 6);
        assert_eq!(&text[..6], b"onetwo");
        assert!(gather.inner().gathered.is_empty());
    }

    #[tokio::test]
    async fn excess_bytes_wait_for_the_peer_and_leave_no_buffer() {
        let (near, mut far) = duplex(1_000);
        let gather = CoalescingStream::new(near);
        let large: Vec<u8> = (0..ROOM * 3).map(|number| number as u8).collect();
        let pieces = [&large[..]];
        let mut connection = pin!(say(gather.share(), &pieces));
        let read = async {
            let mut read = vec![0; large.len()];
            far.read_exact(&mut read).await.unwrap();
            read
        };
        let read = tokio::select! {
            _ = poll_fn(|context| gather.poll_and_flush(connection.as_mut(), context)) => panic!(),
            read = read => read,
        };
        assert!(read == large);
        assert_eq!(gather.inner().gathered.capacity(), 0);
    }

    /// Accepts each write into a buffer, and waits once before it flushes the buffer, as TLS does.
    struct Buffered<I> {
        io: I,
        buffer: Vec<u8>,
        has_waited: bool,
    }

    impl<I: AsyncWrite + Unpin> AsyncWrite for Buffered<I> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.buffer.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            let Self { io, buffer, has_waited } = self.get_mut();
            if !std::mem::replace(has_waited, true) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            while !buffer.is_empty() {
                let count = ready!(Pin::new(&mut *io).poll_write(context, buffer))?;
                buffer.drain(..count);
            }
            Pin::new(io).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(context)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_was_pending_is_continued() {
        let (near, mut far) = duplex(64);
        let near = Buffered { io: near, buffer: Vec::new(), has_waited: false };
        let gather = CoalescingStream::new(near);
        let mut connection = pin!(say(gather.share(), &[b"last"]));
        let mut text = [0; 4];
        tokio::select! {
            _ = poll_fn(|context| gather.poll_and_flush(connection.as_mut(), context)) => panic!(),
            read = far.read_exact(&mut text) => assert_eq!(read.unwrap(), 4),
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => panic!("not flushed"),
        }
        assert_eq!(&text, b"last");
    }

    #[tokio::test]
    async fn a_shutdown_writes_everything_first_and_a_dead_stream_ends_the_connection() {
        let (near, mut far) = duplex(64);
        let mut gather = CoalescingStream::new(near);
        gather.write_all(b"last").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last");

        let (near, far) = duplex(64);
        drop(far);
        let gather = CoalescingStream::new(near);
        let mut connection = pin!(say(gather.share(), &[b"nobody"]));
        let ended = poll_fn(|context| gather.poll_and_flush(connection.as_mut(), context)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
