//! A name with several instances, as BOSH DNS serves it: healthy instances in turn; if none
//! is healthy, all. A connection goes to the first that accepts it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use cni::namespace::Resident;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// An instance behind a name.
#[derive(Debug)]
struct Instance {
    port: u16,
    /// The port of its `/health`; without one the instance counts as healthy.
    health: Option<u16>,
    is_healthy: AtomicBool,
}

/// The instances behind a name.
#[derive(Debug)]
pub struct Pool {
    instances: Vec<Instance>,
    next: AtomicUsize,
}

impl Pool {
    /// Instances by port, each with the port of its health check.
    #[must_use]
    pub fn new(instances: &[(u16, Option<u16>)]) -> Arc<Self> {
        let instance = |&(port, health): &(u16, Option<u16>)| Instance {
            port,
            health,
            is_healthy: AtomicBool::new(health.is_none()),
        };
        let instances = instances.iter().map(instance).collect();
        Arc::new(Self { instances, next: AtomicUsize::new(0) })
    }

    /// Leads new connections to this instance only.
    pub fn prefer(&self, number: usize) {
        for (place, instance) in self.instances.iter().enumerate() {
            instance.is_healthy.store(place == number, Ordering::Relaxed);
        }
    }

    /// Asks for the health of the instances again and again.
    pub(crate) async fn check(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        const INTERVAL: Duration = Duration::from_millis(200);
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2));
        let client = client.build().context("a client for health checks")?;
        loop {
            for instance in &self.instances {
                let Some(port) = instance.health else { continue };
                let url = format!("http://127.0.0.1:{port}/health");
                let answer = client.get(url).send().await;
                let is_healthy = answer.is_ok_and(|answer| answer.status() == 200);
                instance.is_healthy.store(is_healthy, Ordering::Relaxed);
            }
            if shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether an instance is healthy.
    pub(crate) fn is_healthy(&self, number: usize) -> bool {
        self.instances[number].is_healthy.load(Ordering::Relaxed)
    }

    async fn connect(&self) -> Option<TcpStream> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.instances.len();
        let in_turn = (0..count).map(|step| &self.instances[(turn + step) % count]);
        let (healthy, others): (Vec<_>, Vec<_>) =
            in_turn.partition(|instance| instance.is_healthy.load(Ordering::Relaxed));
        let chosen = if healthy.is_empty() { others } else { healthy };
        for instance in chosen {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, instance.port);
            if let Ok(stream) = TcpStream::connect(address).await {
                return Some(stream);
            }
        }
        None
    }
}

/// Listens on a port of 127.0.0.1 in a namespace.
pub(crate) async fn listen(namespace: &Resident, port: u16) -> anyhow::Result<TcpListener> {
    namespace.listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).await
}

/// Connects every client to an instance; a client that finds none is disconnected.
///
/// # Errors
/// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
pub async fn serve(
    listener: TcpListener,
    pool: Arc<Pool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => {
                // A failed accept concerns only that peer.
                let Ok((mut near, _peer)) = accepted else { continue };
                let pool = Arc::clone(&pool);
                connections.spawn(async move {
                    let Some(mut far) = pool.connect().await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    // A broken connection ends on both sides; the peers handle that.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}
