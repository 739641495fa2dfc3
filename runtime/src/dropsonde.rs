//! Metrics for the machine's metron agent in the format of Cloud Foundry's networking components:
//! dropsonde's first protocol, one envelope per UDP datagram
//! (docs/compatibility/asg-syncer.md#metrics).
//!
//! Sending never blocks and never fails. The protocol has no acknowledgement: a datagram is lost
//! when the kernel does not accept it at once or no agent is running. A failure to resolve the
//! address is logged as an error and retried, and does not prevent the start of a service.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::HostPort;
use crate::metrics::{Memory, memory, own};
use crate::periodic::every;

/// Sends metrics; clones share the socket. The default sends nothing.
#[derive(Debug, Clone, Default)]
pub struct Dropsonde(Option<Arc<Sender>>);

/// Period of the originals' process metrics.
const PROCESS: Duration = Duration::from_secs(10);
/// Pause between two attempts to resolve the agent's address.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Sender {
    address: HostPort,
    /// Empty until the address is resolved.
    socket: OnceLock<UdpSocket>,
    origin: String,
}

impl Dropsonde {
    /// Sends to the agent at `address`, as `origin`, whether or not the agent is running. A host
    /// name needs [`Self::run`].
    #[must_use]
    pub fn to(address: &HostPort, origin: &str) -> Self {
        let socket = OnceLock::new();
        if let Ok(agent) = address.as_str().parse()
            && let Ok(connected) = connect(agent)
        {
            socket.get_or_init(|| connected);
        }
        let (address, origin) = (address.clone(), origin.to_owned());
        Self(Some(Arc::new(Sender { address, socket, origin })))
    }

    /// Resolves the agent's address, and sends process metrics, until `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) {
        if self.0.is_none() {
            return shutdown.cancelled().await;
        }
        let process = every(Instant::now(), PROCESS, shutdown, || self.process());
        tokio::join!(self.resolve(shutdown), process);
    }

    /// Resolves the agent's address and retries until success or shutdown; the first failure is
    /// logged as an error.
    async fn resolve(&self, shutdown: &CancellationToken) {
        let Some(sender) = &self.0 else { return };
        let mut is_first = true;
        while sender.socket.get().is_none() {
            let Some(resolved) = shutdown.run_until_cancelled(sender.resolve()).await else {
                return;
            };
            match resolved {
                Ok(socket) => _ = sender.socket.get_or_init(|| socket),
                Err(error) => {
                    if std::mem::take(&mut is_first) {
                        let (address, error) = (sender.address.as_str(), error.to_string());
                        tracing::error!(address, error, "metron-address-not-resolved");
                    }
                    _ = shutdown.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    /// Sends a current value.
    pub fn value(&self, name: impl Display, value: f64, unit: &str) {
        self.send(|| {
            let (name, unit) = (name.to_string(), unit.to_owned());
            let metric = ValueMetric { name, value, unit };
            (VALUE_METRIC, Some(metric), None)
        });
    }

    /// Sends a duration in milliseconds, as the originals do.
    pub fn took(&self, name: impl Display, time: Duration) {
        self.value(name, time.as_secs_f64() * 1_000.0, "ms");
    }

    /// Increments a counter.
    pub fn count(&self, name: impl Display) {
        self.send(|| {
            (COUNTER_EVENT, None, Some(CounterEvent { name: name.to_string(), delta: 1 }))
        });
    }

    /// Sends the originals' process metrics, as far as they have a meaning without a garbage
    /// collector: private memory for the heap, tasks for goroutines. Must run within a tokio
    /// runtime.
    fn process(&self) {
        let Memory { private, stack } = memory();
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for (name, value) in [
            ("numCPUS", processors as f64),
            ("numGoRoutines", tasks as f64),
            ("memoryStats.numBytesAllocatedHeap", private as f64),
            ("memoryStats.numBytesAllocatedStack", stack as f64),
            ("memoryStats.numBytesAllocated", private as f64),
        ] {
            self.value(name, value, "count");
        }
    }

    fn send(&self, what: impl FnOnce() -> (i32, Option<ValueMetric>, Option<CounterEvent>)) {
        let Some(sender) = &self.0 else { return };
        let (event_type, value_metric, counter_event) = what();
        let now = jiff::Timestamp::now().as_nanosecond();
        let envelope = Envelope {
            origin: sender.origin.clone(),
            event_type,
            timestamp: i64::try_from(now).unwrap_or(i64::MAX),
            value_metric,
            counter_event,
        };
        let is_sent = sender.socket.get().is_some_and(|socket| {
            let datagram = envelope.encode_to_vec();
            socket.send(&datagram).is_ok()
        });
        if !is_sent {
            own::DROPSONDE_LOST.counter().increment(1);
        }
    }
}

impl Sender {
    async fn resolve(&self) -> io::Result<UdpSocket> {
        let mut found = tokio::net::lookup_host(self.address.as_str()).await?;
        let agent = found.next().ok_or_else(|| io::Error::other("the host has no address"))?;
        connect(agent)
    }
}

fn connect(agent: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match agent {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(agent)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

const VALUE_METRIC: i32 = 6;
const COUNTER_EVENT: i32 = 7;

/// One event (github.com/cloudfoundry/dropsonde-protocol, events/envelope.proto).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// The job.
    #[prost(string, required, tag = "1")]
    pub origin: String,
    /// 6 for a value, 7 for a counter.
    #[prost(int32, required, tag = "2")]
    pub event_type: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, required, tag = "6")]
    pub timestamp: i64,
    /// Set for type 6.
    #[prost(message, optional, tag = "9")]
    pub value_metric: Option<ValueMetric>,
    /// Set for type 7.
    #[prost(message, optional, tag = "10")]
    pub counter_event: Option<CounterEvent>,
}

/// A current value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueMetric {
    /// Name of the metric.
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// The value.
    #[prost(double, required, tag = "2")]
    pub value: f64,
    /// The unit, such as `ms`.
    #[prost(string, required, tag = "3")]
    pub unit: String,
}

/// A counter increment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CounterEvent {
    /// Name of the counter.
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// The increment.
    #[prost(uint64, required, tag = "2")]
    pub delta: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_gets_one_envelope_a_datagram() {
        let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
        agent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let address = HostPort::parse(&agent.local_addr().unwrap().to_string()).unwrap();
        let metron = Dropsonde::to(&address, "job");
        metron.took("StoreTime", Duration::from_micros(1_500));
        metron.count("http_error");
        let heard = || {
            let mut datagram = [0; 1_024];
            let length = agent.recv(&mut datagram).unwrap();
            Envelope::decode(&datagram[..length]).unwrap()
        };
        let value = heard();
        assert_eq!((value.origin.as_str(), value.event_type), ("job", 6));
        assert!(value.timestamp > 1_700_000_000_000_000_000, "{}", value.timestamp);
        let metric = ValueMetric { name: "StoreTime".into(), value: 1.5, unit: "ms".into() };
        assert_eq!((value.value_metric, value.counter_event), (Some(metric), None));
        let count = heard();
        assert_eq!((count.event_type, count.value_metric), (7, None));
        assert_eq!(
            count.counter_event.unwrap(),
            CounterEvent { name: "http_error".into(), delta: 1 }
        );
    }

    /// Compares the encoding with the bytes of dropsonde's wire format.
    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let envelope = Envelope {
            origin: "o".into(),
            event_type: COUNTER_EVENT,
            timestamp: 1,
            value_metric: None,
            counter_event: Some(CounterEvent { name: "n".into(), delta: 1 }),
        };
        let expected = [0x0a, 1, b'o', 0x10, 7, 0x30, 1, 0x52, 5, 0x0a, 1, b'n', 0x10, 1];
        assert_eq!(envelope.encode_to_vec(), expected);
    }

    #[tokio::test]
    async fn sending_without_an_agent_does_not_fail() {
        Dropsonde::default().count("nowhere");
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metron = Dropsonde::to(&HostPort::parse(&gone.to_string()).unwrap(), "job");
        (0..10).for_each(|_| metron.count("unheard"));
    }

    #[tokio::test]
    async fn a_host_name_is_resolved_later() {
        let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
        agent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let port = agent.local_addr().unwrap().port();
        let metron = Dropsonde::to(&HostPort::parse(&format!("localhost:{port}")).unwrap(), "job");
        metron.count("too early");
        metron.resolve(&CancellationToken::new()).await;
        metron.count("heard");
        let mut datagram = [0; 1_024];
        let length = agent.recv(&mut datagram).unwrap();
        let envelope = Envelope::decode(&datagram[..length]).unwrap();
        assert_eq!(envelope.counter_event.unwrap().name, "heard");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unresolved_host_is_logged_and_retried() {
        let (log, _control, _guard) = crate::lager::capture(crate::lager::Options {
            source: "test".into(),
            level: crate::lager::Level::Info,
            format: crate::lager::TimeFormat::Rfc3339,
        });
        let address = HostPort::parse("no-such-host.invalid:1").unwrap();
        let metron = Dropsonde::to(&address, "job");
        let shutdown = CancellationToken::new();
        let stop = async {
            while log.data_of("test.metron-address-not-resolved").is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(AGAIN * 3).await;
            shutdown.cancel();
        };
        tokio::join!(metron.resolve(&shutdown), stop);
        metron.count("lost");
    }
}
