//! Records the denied packets of this cell's containers.
//!
//! The kernel sends denied packets to the agent through NFLOG, of each container and of the
//! cell only so many a second, so a flood costs the agent little ([`Nflog`]). The agent finds the
//! container of each ([`sources`]) and counts them by target ([`record`]). An operator asks for
//! the flows and gets them with the reason, from the rules that are in force then ([`answer`]).
//!
//! Invariant: each denied packet is counted in the packets of a flow or as not recorded. The
//! second number is the difference between the kernel's count of denied packets and the first.
//! The record is not saved: an agent begins with an empty one.

pub mod answer;
pub mod lines;
pub mod nflog;
pub mod packet;
pub mod record;
pub mod sources;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use model::ids::ContainerHandle;
use nix::{errno::Errno, net::if_::if_indextoname};
use proto::cell_v1::Container;
use runtime::loggregator::Loggregator;
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use self::{
    lines::{Limiter, Lines},
    nflog::Nflog,
    packet::Denied,
    record::{Limits, Moment, Record},
    sources::Sources,
};
use crate::{app_log, metrics, reconcile::Enforced};

/// Bounds of the record: about 3 MB.
const LIMITS: Limits = Limits { cell: 10_000, container: 200, kept: Duration::from_secs(3600) };
/// Pause between reads: many datagrams cost one wakeup.
const PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of datagrams between two pauses.
const DATAGRAMS_MOST: usize = 64;
/// Interval of the search for old flows.
const EXPIRY: Duration = Duration::from_secs(30);

/// The record, shared with the service that answers operators.
#[derive(Debug, Clone)]
pub struct Denials(Arc<Mutex<Record>>);

impl Denials {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        let since = wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since.as_millis()).unwrap_or_default() << 16;
        // 65 million packets a second would overtake the clock.
        Self(Arc::new(Mutex::new(Record::new(LIMITS, first))))
    }

    /// The record, locked.
    pub fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Denials {
    fn default() -> Self {
        Self::new()
    }
}

/// The task that reads packets from the kernel.
#[derive(Debug)]
pub struct Recorder {
    socket: Nflog,
    enforced: watch::Receiver<Arc<Enforced>>,
    denials: Denials,
    sources: Sources,
    lines: Lines,
    limiter: Limiter,
    apps: Option<Loggregator>,
}

impl Recorder {
    /// A task that is not running yet, with the record.
    #[must_use]
    pub fn new(
        socket: Nflog,
        enforced: watch::Receiver<Arc<Enforced>>,
        lines: Lines,
        apps: Option<Loggregator>,
    ) -> (Self, Denials) {
        let denials = Denials::new();
        let per_second = enforced.borrow().ruleset.settings.denied_logs_per_second;
        let recorder = Self {
            socket,
            enforced,
            denials: denials.clone(),
            sources: Sources::default(),
            lines,
            limiter: Limiter::new(per_second),
            apps: apps.filter(|_| lines.app_log),
        };
        (recorder, denials)
    }

    /// Records packets until shutdown.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        // Until then no packet has a known container; the socket keeps the first ones.
        let ready = self.enforced.wait_for(|enforced| enforced.at.is_some());
        shutdown.run_until_cancelled(async { ready.await.is_ok() }).await;
        let mut expiry = interval(EXPIRY);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = expiry.tick() => {
                    let mut record = self.denials.lock();
                    record.expire(Instant::now().into_std());
                    metrics::number(metrics::DENIED_FLOWS, record.flows() as u64);
                }
                read = self.socket.datagram() => {
                    let packets = packets(read)?;
                    self.add(&packets);
                    self.drain()?;
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Reads what has arrived.
    fn drain(&mut self) -> anyhow::Result<()> {
        for _ in 0..DATAGRAMS_MOST {
            let Some(read) = self.socket.arrived() else { break };
            let packets = packets(read)?;
            self.add(&packets);
        }
        Ok(())
    }

    fn add(&mut self, packets: &[Denied]) {
        let now = Moment { instant: Instant::now().into_std(), time: wall_clock() };
        let enforced = Arc::clone(&self.enforced.borrow());
        self.sources.update(&enforced);
        let second = now.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut lines, mut recorded) = (Vec::new(), 0);
        let mut record = self.denials.lock();
        for packet in packets {
            // Other packets of the group, or of a container that is not published yet, count
            // as not recorded.
            let found = self.sources.find(&enforced, packet, name_of);
            let Some((handle, about)) = found else { continue };
            record.add(handle, about, packet.target, now);
            recorded += 1;
            let any = self.lines.log || self.apps.is_some();
            if any && self.limiter.allows(handle, second) {
                lines.push((handle.clone(), Arc::clone(about), packet));
            }
        }
        drop(record);
        metrics::DENIED_RECORDED.counter().increment(recorded);
        for (handle, about, packet) in lines {
            self.write(&handle, &about, packet);
        }
    }

    /// Writes the lines about a packet.
    fn write(&self, handle: &ContainerHandle, about: &Container, packet: &Denied) {
        if self.lines.log {
            tracing::info!(
                container = %handle,
                app = about.app_guid,
                space = about.space_guid,
                line = lines::kernel(handle, packet),
                "connection-denied"
            );
        }
        if let Some(apps) = &self.apps {
            let enforced = self.enforced.borrow();
            let container = enforced.snapshot.containers.get(handle);
            let text = lines::app(packet);
            if let Some(line) = container.and_then(|of| app_log::line(&of.log_config, text)) {
                apps.app_log(line);
            }
        }
    }
}

fn packets(read: std::io::Result<&[u8]>) -> anyhow::Result<Vec<Denied>> {
    match read {
        Ok(datagram) => Ok(packet::denied(datagram)),
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
            metrics::count(metrics::DENIED_OVERRUNS);
            Ok(Vec::new())
        }
        Err(error) => Err(anyhow::Error::new(error).context("reading denied packets from NFLOG")),
    }
}

/// The name of an interface in the network namespace of this thread.
fn name_of(index: u32) -> Option<String> {
    Some(if_indextoname(index).ok()?.to_string_lossy().into_owned())
}

#[expect(clippy::disallowed_methods, reason = "the time stamp is shown to people")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
