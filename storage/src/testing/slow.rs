//! TCP proxy that delays the responses of a server.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// A proxy on its own loopback port; dropping the handle stops the proxy.
#[derive(Debug)]
pub struct SlowWay {
    port: u16,
    milliseconds: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

impl SlowWay {
    /// Proxies a port on 127.0.0.1, at first without a delay.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let milliseconds = Arc::new(AtomicU64::new(0));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, port, Arc::clone(&milliseconds)));
        Self { port: own, milliseconds, _accepting: accepting }
    }

    /// The proxy's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Delays each response from now on.
    pub fn delay(&self, delay: Duration) {
        let milliseconds = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(milliseconds, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, port: u16, milliseconds: Arc<AtomicU64>) {
    let mut pairs = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let milliseconds = Arc::clone(&milliseconds);
        pairs.spawn(async move {
            // The client sees the end of the connection.
            let _ended = carry(client, port, milliseconds).await;
        });
        while pairs.try_join_next().is_some() {}
    }
}

async fn carry(client: TcpStream, port: u16, milliseconds: Arc<AtomicU64>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    tokio::select! {
        asked = tokio::io::copy(&mut from_client, &mut to_server) => asked.map(drop),
        told = slowly(from_server, to_client, &milliseconds) => told,
    }
}

async fn slowly(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    milliseconds: &AtomicU64,
) -> io::Result<()> {
    let (late, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).await?;
            let delay = Duration::from_millis(milliseconds.load(Ordering::Relaxed));
            let chunk = buffer[..count].to_vec();
            if count == 0 || late.send((Instant::now() + delay, chunk)).is_err() {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            to.write_all(&chunk).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(drop)
}
