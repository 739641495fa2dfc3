//! Metrics and log lines for the machine's loggregator agent: a client of its v2 ingress
//! (docs/compatibility/locket.md#metrics).
//!
//! Invariants:
//! - Sending never blocks and never fails. Envelopes go into a queue of [`QUEUE`]; an envelope for
//!   a full queue is dropped and counted in `runtime_loggregator_dropped_total`.
//! - One task, [`Delivery`], holds one stream to the agent. While the agent is unreachable, the
//!   task reconnects in the background with growing pauses; an outage is two log lines. Queued
//!   envelopes wait for the end of the outage.
//! - A batch is sent when it is full or [`LINGER`] after its first envelope.
//! - The connection is mutual TLS, and the agent's certificate must be for `metron`, at any
//!   address.
//! - Envelopes passed to a connection that breaks may be lost, as agents send no acknowledgements.

mod config;
mod delivery;
mod envelope;
#[cfg(feature = "testing")]
mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::sync::mpsc;

pub use config::Config;
pub use delivery::Delivery;
pub use envelope::{Envelope, EnvelopeBatch, Gauge, GaugeValue, Log, Message, Stream};
#[cfg(feature = "testing")]
pub use testing::{Agent, detached};

use crate::metrics::own;
use crate::tls::{ClientTls, Role};

/// Capacity of the queue, in envelopes.
pub const QUEUE: usize = 4_096;
/// Maximum time that an envelope waits for its batch to fill.
pub const LINGER: Duration = Duration::from_millis(100);

/// Takes envelopes; clones share the queue.
#[derive(Debug, Clone)]
pub struct Loggregator {
    queue: mpsc::Sender<Envelope>,
    /// Names the sender in each envelope.
    about: Arc<Config>,
    dropped: Counter,
}

/// A line for the log of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppLog {
    /// The GUID of the app.
    pub source_id: String,
    /// The index of the app instance.
    pub instance_id: String,
    /// Shown with the line, such as `source_type`.
    pub tags: BTreeMap<String, String>,
    /// The text.
    pub text: String,
    /// The app's output stream.
    pub stream: Stream,
}

/// Creates the queue and the task that sends it; `None` when no certificates are configured.
/// `service` is the prefix of the service's metrics. Unusable certificates do not prevent the start
/// of a service: delivery begins once they can be used.
pub fn bind(service: &'static str, config: &Config) -> Option<(Loggregator, Delivery)> {
    let Config { address, files, batch, .. } = config;
    let files = files.as_ref()?;
    let tls = ClientTls::follow(Role { service, name: "loggregator-client" }, files);
    let (queue, receiver) = mpsc::channel(QUEUE);
    let about = Arc::new(config.clone());
    let loggregator = Loggregator { queue, about, dropped: own::LOGGREGATOR_DROPPED.counter() };
    Some((loggregator, Delivery::new(receiver, address.clone(), tls, *batch)))
}

impl Loggregator {
    /// Sends a current value, one metric per envelope as in the originals. `tags` are added to
    /// `origin`.
    pub fn gauge(&self, name: &str, unit: &str, value: f64, tags: &[(&str, &str)]) {
        let metric = (name.to_owned(), GaugeValue { unit: unit.to_owned(), value });
        let tags = tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.send(Envelope {
            source_id: self.about.source_id.clone(),
            instance_id: self.about.instance_id.clone(),
            tags: tags.collect(),
            message: Some(Message::Gauge(Gauge { metrics: BTreeMap::from([metric]) })),
            ..Envelope::default()
        });
    }

    /// Sends a line to the log of an app.
    pub fn app_log(&self, log: AppLog) {
        let AppLog { source_id, instance_id, tags, text, stream } = log;
        let log = Log { payload: text.into_bytes(), r#type: stream.into() };
        self.send(Envelope {
            source_id,
            instance_id,
            tags,
            message: Some(Message::Log(log)),
            ..Envelope::default()
        });
    }

    /// Adds timestamp and source to an envelope, and queues it if there is room.
    fn send(&self, mut envelope: Envelope) {
        let now = jiff::Timestamp::now().as_nanosecond();
        envelope.timestamp = i64::try_from(now).unwrap_or(i64::MAX);
        let origin = || self.about.origin.clone();
        envelope.tags.entry("origin".to_owned()).or_insert_with(origin);
        if self.queue.try_send(envelope).is_err() {
            self.dropped.increment(1);
        }
    }
}
