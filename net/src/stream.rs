//! TCP connections that detect a dead peer.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::memory;

/// Interval of TCP keepalive probes on an idle connection.
pub const PROBE: Duration = Duration::from_secs(1);
/// How long data or probes may stay unacknowledged before the connection fails.
pub const SILENCE: Duration = Duration::from_secs(4);
/// Dropping a connection this long after an unanswered write marks its address as failed: the peer
/// hangs. TCP alone does not detect this, since the kernel still acknowledges for a stopped
/// process.
const HUNG: Duration = Duration::from_secs(1);

/// Makes a connection fail when its peer has acknowledged nothing for `silence`. An idle connection
/// is probed every `probe`.
///
/// # Errors
/// The kernel rejects a socket option.
pub fn notice_dead_peer(socket: &TcpStream, probe: Duration, silence: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(probe).with_interval(probe);
    socket.set_tcp_keepalive(&keepalive)?;
    // Overrides the number of probes: see tcp(7).
    socket.set_tcp_user_timeout(Some(silence))
}

/// A connection opened by [`open`](crate::open), with TCP_NODELAY.
#[derive(Debug)]
pub struct Stream {
    io: TcpStream,
    address: SocketAddr,
    /// When the oldest unanswered write started.
    unanswered: Option<Instant>,
}

impl Stream {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect(address).await?;
        io.set_nodelay(true)?;
        notice_dead_peer(&io, PROBE, SILENCE)?;
        Ok(Self { io, address, unanswered: None })
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(0)) | Poll::Pending => {}
            Poll::Ready(Ok(_)) => _ = self.unanswered.get_or_insert_with(Instant::now),
            Poll::Ready(Err(_)) => memory::note(self.address),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.unanswered.is_some_and(|since| since.elapsed() > HUNG) {
            memory::note(self.address);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(context, to);
        match &read {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => this.unanswered = None,
            Poll::Ready(Err(_)) => memory::note(this.address),
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.wrote(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, pieces);
        this.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
