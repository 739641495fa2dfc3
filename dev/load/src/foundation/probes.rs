//! Packets that show when a change is in force: for each change the container of each real
//! cell sends datagrams to the destination that this change allows, until one arrives.
//!
//! Each change has a destination of its own, and a rejected packet leaves no connection in the
//! kernel, so the rules judge every packet as a new connection.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use model::rule::RuleSpec;
use tokio::time::{Instant, sleep, timeout};

/// Number of changes whose destinations are allowed at a time, so that a cell that skips a
/// generation still shows when it has a change.
pub(super) const WIDTH: u32 = 20;
/// The port of all destinations.
const PORT: u16 = 7_777;
/// Largest number of changes.
pub(super) const MOST: u32 = 60_000;
/// Interval at which the receiver looks for the end.
const GLANCE: Duration = Duration::from_millis(100);

/// The rules of the changing group after a change.
pub(super) fn rules(change: u32) -> Vec<RuleSpec> {
    let first = change.saturating_sub(WIDTH - 1);
    (first..=change)
        .map(|change| RuleSpec {
            protocol: "udp".to_owned(),
            destination: target(change).to_string(),
            ports: PORT.to_string(),
            ..RuleSpec::default()
        })
        .collect()
}

fn target(change: u32) -> Ipv4Addr {
    let [_, _, high, low] = change.to_be_bytes();
    Ipv4Addr::new(10, 20, high, low)
}

/// Sender and receiver of all real cells.
#[derive(Debug)]
pub(super) struct Probes {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

/// First arrivals: microseconds since `base`, plus one; 0: none yet.
#[derive(Debug)]
struct Seen {
    base: Instant,
    cells: usize,
    first: Vec<AtomicU64>,
    /// The newest change for which packets are sent.
    newest: AtomicU32,
    over: AtomicBool,
}

impl Probes {
    /// Starts both threads; there are no packets before [`Self::aim`].
    pub(super) fn start(
        sockets: Vec<UdpSocket>,
        changes: u32,
        interval: Duration,
    ) -> anyhow::Result<Self> {
        ensure!(changes <= MOST, "at most {MOST} changes can be told apart");
        let cells = sockets.len();
        let places = (changes as usize + 1) * cells;
        let first = (0..places).map(|_| AtomicU64::new(0)).collect();
        let (newest, over) = (AtomicU32::new(0), AtomicBool::new(false));
        let seen = Arc::new(Seen { base: Instant::now(), cells, first, newest, over });
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT));
        let receiver = receiver.context("a socket for the packets that pass")?;
        receiver.set_read_timeout(Some(GLANCE))?;
        let (sending, receiving) = (Arc::clone(&seen), Arc::clone(&seen));
        let threads = vec![
            thread::spawn(move || sending.send(&sockets, interval)),
            thread::spawn(move || receiving.receive(&receiver)),
        ];
        Ok(Self { seen, threads })
    }

    /// Sends packets for this change, which is not made yet.
    pub(super) fn aim(&self, change: u32) {
        self.seen.newest.store(change, Ordering::Relaxed);
    }

    /// First arrivals of a change, by cell.
    pub(super) fn arrivals(&self, change: u32) -> Vec<Option<Instant>> {
        (0..self.seen.cells).map(|cell| self.seen.at(change, cell)).collect()
    }

    /// Waits until the change is seen at all cells; returns the number of the others.
    pub(super) async fn everywhere(&self, change: u32, wait: Duration) -> usize {
        let missing = || self.arrivals(change).iter().filter(|at| at.is_none()).count();
        let all = async {
            while missing() > 0 {
                sleep(GLANCE).await;
            }
        };
        match timeout(wait, all).await {
            Ok(()) => 0,
            Err(_elapsed) => missing(),
        }
    }

    /// Ends both threads.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.seen.over.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().ok().context("a thread of the packets panicked")??;
        }
        Ok(())
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn place(&self, change: u32, cell: usize) -> usize {
        change as usize * self.cells + cell
    }

    fn at(&self, change: u32, cell: usize) -> Option<Instant> {
        let place = self.first.get(self.place(change, cell))?;
        let micros = place.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base + Duration::from_micros(micros))
    }

    fn send(&self, sockets: &[UdpSocket], interval: Duration) -> anyhow::Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let newest = self.newest.load(Ordering::Relaxed);
            for change in newest.saturating_sub(WIDTH - 1).max(1)..=newest {
                for (cell, socket) in sockets.iter().enumerate() {
                    if self.at(change, cell).is_none() {
                        let [a, b, c, d] = change.to_be_bytes();
                        let [.., e, f] = cell.to_be_bytes();
                        let sent = socket.send_to(&[a, b, c, d, e, f], (target(change), PORT));
                        sent.with_context(|| format!("sending from cell {cell}"))?;
                    }
                }
            }
            pause(interval);
        }
        Ok(())
    }

    fn receive(&self, socket: &UdpSocket) -> anyhow::Result<()> {
        let mut datagram = [0; 16];
        while !self.over.load(Ordering::Relaxed) {
            match socket.recv_from(&mut datagram) {
                Ok((6, _peer)) => {
                    let [a, b, c, d, e, f, ..] = datagram;
                    let change = u32::from_be_bytes([a, b, c, d]);
                    let cell = usize::from(u16::from_be_bytes([e, f]));
                    self.note(change, cell, Instant::now());
                }
                Ok(_foreign) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receiving the packets that pass"),
            }
        }
        Ok(())
    }

    /// Keeps the first arrival.
    fn note(&self, change: u32, cell: usize, at: Instant) {
        let Some(place) = self.first.get(self.place(change, cell)) else { return };
        let micros = u64::try_from((at - self.base).as_micros()).unwrap_or(u64::MAX - 1);
        let _later = place.compare_exchange(0, micros + 1, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
fn pause(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        let first = (0..6).map(|_| AtomicU64::new(0)).collect();
        let (newest, over) = (AtomicU32::new(0), AtomicBool::new(false));
        Seen { base: Instant::now(), cells: 2, first, newest, over }
    }

    #[test]
    fn the_first_arrival_of_each_change_and_cell_counts() {
        let seen = seen();
        let at = |micros| seen.base + Duration::from_micros(micros);
        seen.note(1, 0, at(5));
        seen.note(1, 0, at(9));
        seen.note(2, 1, at(0));
        seen.note(9, 9, at(7));
        assert_eq!(seen.at(1, 0), Some(at(5)));
        assert_eq!(seen.at(2, 1), Some(at(0)));
        assert_eq!((seen.at(1, 1), seen.at(2, 0)), (None, None));
    }

    #[test]
    fn a_change_allows_its_destination_and_the_last_ones() {
        let destinations = |change| {
            let rules = rules(change);
            rules.into_iter().map(|rule| rule.destination).collect::<Vec<_>>()
        };
        assert_eq!(destinations(1), ["10.20.0.0", "10.20.0.1"]);
        let later = destinations(300);
        assert_eq!((later.len(), later[0].as_str()), (WIDTH as usize, "10.20.1.25"));
        assert_eq!(later.last().map(String::as_str), Some("10.20.1.44"));
    }
}
