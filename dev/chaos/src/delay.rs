//! Links that are slow: the router sends their packets through a TUN device, and this process
//! returns each one after its delay. Not every kernel has `netem`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cni::tools;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;
use tokio_util::sync::CancellationToken;

/// The name of the device, and the mark of packets that are routed to it.
pub(crate) const DEVICE: &str = "delay";
pub(crate) const MARK: u32 = 77;
/// An IPv4 packet.
const LONGEST_PACKET: usize = 65_535;
/// The length of the queue of a direction.
const MOST_PACKETS: usize = 4_096;
/// The place of the destination in an IPv4 header.
const DESTINATION: std::ops::Range<usize> = 16..20;

type Packet = (Instant, Vec<u8>);

/// A slow direction of a link, known by its destination: no two delays share one.
#[derive(Debug)]
struct Way {
    delay: Duration,
    packets: Sender<Packet>,
}

/// All slow links.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delays {
    ways: Arc<Mutex<HashMap<Ipv4Addr, Way>>>,
    ready: Arc<Mutex<Vec<Receiver<Packet>>>>,
}

impl Delays {
    /// Delays the packets to both ends.
    pub(crate) fn add(&self, ends: [Ipv4Addr; 2], delay: Duration) {
        for end in ends {
            let (packets, waiting) = channel(MOST_PACKETS);
            lock(&self.ways).insert(end, Way { delay, packets });
            lock(&self.ready).push(waiting);
        }
    }

    /// Packets to these ends are not delayed any more; those that wait arrive at their time.
    pub(crate) fn remove(&self, ends: [Ipv4Addr; 2]) {
        let mut ways = lock(&self.ways);
        ends.iter().for_each(|end| drop(ways.remove(end)));
    }

    /// Returns the packets of the device. The caller is in the namespace of the router.
    pub(crate) async fn carry(
        self,
        router: String,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let device = Tun::builder().name(DEVICE).up().build().context("a TUN device")?;
        let device = Arc::new(device.into_iter().next().context("a TUN device has a queue")?);
        let mark = MARK.to_string();
        let table = ["-n", &router, "route", "add", "default", "dev", DEVICE, "table", &mark];
        tools::run("ip", table)?;
        tools::run("ip", ["-n", &router, "rule", "add", "fwmark", &mark, "lookup", &mark])?;
        let mut ways = JoinSet::new();
        let mut buffer = vec![0; LONGEST_PACKET];
        loop {
            let length = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                read = device.recv(&mut buffer) => read.context("the TUN device")?,
            };
            for waiting in lock(&self.ready).drain(..) {
                ways.spawn(in_time(Arc::clone(&device), waiting));
            }
            while ways.try_join_next().is_some() {}
            self.queue(&device, &buffer[..length]).await;
        }
    }

    async fn queue(&self, device: &Tun, packet: &[u8]) {
        let destination = packet
            .get(DESTINATION)
            .and_then(|octets| <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from));
        let is_delayed = destination.is_some_and(|destination| {
            let ways = lock(&self.ways);
            let Some(way) = ways.get(&destination) else { return false };
            // A full queue loses the packet, as a router does.
            let _lost = way.packets.try_send((Instant::now() + way.delay, packet.to_vec()));
            true
        });
        if !is_delayed {
            // The delay has just ended. A lost packet is as on any link.
            let _lost = device.send(packet).await;
        }
    }
}

/// Sends the packets of one direction, in their order.
async fn in_time(device: Arc<Tun>, mut packets: Receiver<Packet>) {
    while let Some((at, packet)) = packets.recv().await {
        sleep_until(at).await;
        // A lost packet is as on any link.
        let _lost = device.send(&packet).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
