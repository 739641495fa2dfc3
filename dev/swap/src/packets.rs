//! Packets from the containers: a thread in each container's namespace sends datagrams, each
//! from a new port, so that each is judged as a new flow.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use cni::namespace::{Namespace, Resident};
use cni::tools;
use socket2::SockRef;
use tokio::time::Instant;

use crate::versions::{self, Expected, Versions};

/// A destination that a global group allows at all times.
pub const ALWAYS: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);
/// A destination that no group allows.
pub const NEVER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);
/// The destination of the groups that change.
pub const CHANGING: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);

/// The port that all others are redirected to.
const ECHO_PORT: u16 = 7;
/// After that time a packet counts as lost. On one machine an answer takes microseconds.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Source ports are used in turn: with at most 125 packets a second none is used again
/// before the kernel has forgotten its flow, after 30 s.
const SOURCES: std::ops::Range<u16> = 20_000..60_000;

/// Distance of the first source ports of two containers: more packets than a container sends
/// until the kernel has forgotten a flow.
const STRIDE: usize = 3_001;

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To [`ALWAYS`].
    Always,
    /// To [`NEVER`].
    Never,
    /// To the port of that number at [`CHANGING`].
    Port(usize),
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The echo came back.
    Passed,
    /// An ICMP error came back.
    Rejected,
    /// Neither came back in time.
    Silent,
}

/// One packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// The number of the sender.
    pub container: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When the answer came, or the timeout ended.
    pub done: Instant,
    /// Its destination.
    pub goal: Goal,
    /// The result.
    pub fate: Fate,
}

/// How the ports of a container's changing group are judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) width: usize,
    pub(crate) window: Duration,
}

impl Packet {
    /// What must become of it; `versions` are those of its container's group.
    pub(crate) fn expected(&self, versions: &Versions, rules: Rules) -> Expected {
        match self.goal {
            Goal::Always => Expected::Allowed,
            Goal::Never => Expected::Denied,
            Goal::Port(number) => {
                let Rules { width, window } = rules;
                versions.expected(number, width, self.sent, self.done, window)
            }
        }
    }

    /// Whether its fate contradicts the groups.
    pub(crate) fn is_wrong(&self, versions: &Versions, rules: Rules) -> bool {
        let expected = self.expected(versions, rules);
        match (expected, self.fate) {
            (Expected::Either, Fate::Passed | Fate::Rejected)
            | (Expected::Allowed, Fate::Passed)
            | (Expected::Denied, Fate::Rejected) => false,
            (_, Fate::Silent) | (Expected::Allowed | Expected::Denied, _) => true,
        }
    }
}

/// All senders and the echo.
#[derive(Debug)]
pub struct Senders {
    sent: Arc<Mutex<Vec<Packet>>>,
    over: Arc<AtomicBool>,
    echo: JoinHandle<anyhow::Result<()>>,
    senders: BTreeMap<usize, Running>,
}

/// The thread of a sender.
#[derive(Debug)]
struct Running {
    over: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What a sender sends.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The newest port number that may be open.
    pub newest: Arc<AtomicUsize>,
    /// How many ports a version opens.
    pub width: usize,
    /// The pause between two packets.
    pub pause: Duration,
}

impl Senders {
    /// Echoes every datagram that reaches the outside.
    ///
    /// # Errors
    /// The echo cannot be bound.
    pub async fn new(outside: &Namespace) -> anyhow::Result<Self> {
        let rules = format!(
            "table ip outside {{ chain prerouting {{ \
             type nat hook prerouting priority dstnat; \
             fib daddr type local meta l4proto udp redirect to :{ECHO_PORT}; }}; }}\n"
        );
        let exec = ["netns", "exec", outside.name(), "nft", "-f", "-"];
        tools::run_with_input("ip", exec, &rules)?;
        let bound = outside.resident().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT)));
        let socket = bound.await?.context("cannot echo outside")?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let echo = thread::spawn(move || echo(&socket, &ended));
        Ok(Self { sent: Arc::default(), over, echo, senders: BTreeMap::new() })
    }

    /// Starts the sender of a container.
    ///
    /// # Errors
    /// The container's namespace is gone.
    pub async fn add(
        &mut self,
        inside: &Resident,
        container: usize,
        plan: Plan,
    ) -> anyhow::Result<()> {
        let (sent, over) = (Arc::clone(&self.sent), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        // The kernel may still know the flows of an earlier container with the same address.
        let next_source = u16::try_from(container * STRIDE % SOURCES.len())?;
        let sender = Sender { container, plan, sent, over: ended, next_source, unopened: 0 };
        // A thread is in the namespace of the thread that starts it.
        let thread = inside.run(move || thread::spawn(move || sender.run())).await?;
        self.senders.insert(container, Running { over, thread });
        Ok(())
    }

    /// Ends the sender of a container soon; its network may be gone already.
    pub fn stop(&self, container: usize) {
        if let Some(running) = self.senders.get(&container) {
            running.over.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the packets that are done.
    #[must_use]
    pub fn take(&self) -> Vec<Packet> {
        std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a packet of the container has passed to the port of that number.
    pub(crate) fn has_passed(&self, container: usize, number: usize) -> bool {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().rev().any(|packet| {
            packet.container == container
                && packet.goal == Goal::Port(number)
                && packet.fate == Fate::Passed
        })
    }

    /// Ends all threads; returns the packets that were not taken.
    ///
    /// # Errors
    /// A sender could not send.
    pub fn end(mut self) -> anyhow::Result<Vec<Packet>> {
        for running in self.senders.values() {
            running.over.store(true, Ordering::Relaxed);
        }
        for (_, running) in std::mem::take(&mut self.senders) {
            running.thread.join().ok().context("a sender panicked")??;
        }
        let packets = self.take();
        self.over.store(true, Ordering::Relaxed);
        self.echo.join().ok().context("the echo panicked")??;
        Ok(packets)
    }
}

/// Sends datagrams back until it is over.
fn echo(socket: &UdpSocket, over: &AtomicBool) -> anyhow::Result<()> {
    // Room for a second of packets while the machine is busy.
    SockRef::from(socket).set_recv_buffer_size(1 << 20)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut datagram = [0; 64];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
            // The peer may be gone.
            let _sent = socket.send_to(&datagram[..length], peer);
        }
    }
    Ok(())
}

struct Sender {
    container: usize,
    plan: Plan,
    sent: Arc<Mutex<Vec<Packet>>>,
    over: Arc<AtomicBool>,
    next_source: u16,
    /// The first port that was never seen open.
    unopened: usize,
}

impl Sender {
    fn run(mut self) -> anyhow::Result<()> {
        for turn in 0_usize.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let newest = self.plan.newest.load(Ordering::Relaxed);
            let goal = match turn % 4 {
                0 => Goal::Always,
                1 => Goal::Never,
                2 => Goal::Port(self.unopened.min(newest)),
                _ => {
                    let lowest = newest.saturating_sub(2 * self.plan.width);
                    Goal::Port(fastrand::usize(lowest..=newest))
                }
            };
            let packet = match self.send(goal) {
                Err(_gone) if self.over.load(Ordering::Relaxed) => break,
                sent => sent?,
            };
            if goal == Goal::Port(self.unopened) && packet.fate == Fate::Passed {
                self.unopened += 1;
            }
            self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
            pause(self.plan.pause);
        }
        Ok(())
    }

    fn send(&mut self, goal: Goal) -> anyhow::Result<Packet> {
        let to = match goal {
            Goal::Always => SocketAddrV4::new(ALWAYS, versions::port(0)),
            Goal::Never => SocketAddrV4::new(NEVER, versions::port(0)),
            Goal::Port(number) => SocketAddrV4::new(CHANGING, versions::port(number)),
        };
        self.next_source = (self.next_source + 1) % (SOURCES.end - SOURCES.start);
        let source = SOURCES.start + self.next_source;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, source)).context("a new port")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.connect(to)?;
        let sent = Instant::now();
        let answer = socket.send(b"portcullis").and_then(|_| socket.recv(&mut [0; 64]));
        let done = Instant::now();
        let fate = match answer {
            Ok(_length) => Fate::Passed,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Fate::Rejected,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Fate::Silent
            }
            Err(error) => return Err(error).context("sending a packet"),
        };
        Ok(Packet { container: self.container, sent, done, goal, fate })
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
fn pause(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::Change;

    #[test]
    fn a_packet_is_wrong_if_it_contradicts_every_version_in_the_window() {
        let sent = Instant::now();
        let versions = Versions { changes: vec![Change { sent, confirmed: Some(sent) }] };
        let rules = Rules { width: 2, window: Duration::from_secs(5) };
        let is_wrong = |goal, fate| {
            let at = sent + Duration::from_secs(10);
            let packet = Packet { container: 0, sent: at, done: at, goal, fate };
            packet.is_wrong(&versions, rules)
        };
        for (goal, is_allowed) in [
            (Goal::Always, true),
            (Goal::Never, false),
            (Goal::Port(1), true),
            (Goal::Port(2), false),
        ] {
            assert_eq!(is_wrong(goal, Fate::Passed), !is_allowed, "{goal:?}");
            assert_eq!(is_wrong(goal, Fate::Rejected), is_allowed, "{goal:?}");
            assert!(is_wrong(goal, Fate::Silent), "{goal:?}");
        }
    }
}
