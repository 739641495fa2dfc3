//! Metrics and log lines for the loggregator agent of the machine: a client of
//! its v2 ingress (docs/compatibility/locket.md#metrics).
//!
//! What holds:
//! - Sending never waits and never fails. Envelopes go into a queue of
//!   [`QUEUE`]; what finds it full is dropped and counted in
//!   `runtime_loggregator_dropped_total`.
//! - One task, [`Delivery`], holds one stream to the agent. An agent that is not
//!   there, or goes away, costs attempts in the background, further and further
//!   apart; an outage is two log lines. What is queued waits for its end.
//! - A batch leaves when it is full or [`LINGER`] after its first envelope.
//! - The connection is mutual TLS, and the agent's certificate must be for
//!   `metron`, wherever the agent is.
//! - What was given to a connection that breaks may be lost: nobody confirms it.

mod agent;
mod config;
mod delivery;
mod envelope;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::sync::mpsc;

pub use agent::Agent;
pub use config::Config;
pub use delivery::Delivery;
pub use envelope::{Envelope, EnvelopeBatch, Gauge, GaugeValue, Log, Message, Stream};

use crate::metrics::own;
use crate::tls::{ClientTls, Role};

/// Envelopes that wait for the agent.
pub const QUEUE: usize = 4_096;
/// How long an envelope waits for company.
pub const LINGER: Duration = Duration::from_millis(100);

/// Takes envelopes; clones share the queue.
#[derive(Debug, Clone)]
pub struct Loggregator {
    queue: mpsc::Sender<Envelope>,
    about: Arc<About>,
    dropped: Counter,
}

/// What envelopes say of their sender.
#[derive(Debug)]
struct About {
    source_id: String,
    instance_id: String,
    origin: String,
}

/// A line for the log of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppLog {
    /// The guid of the app.
    pub source_id: String,
    /// The index of its instance.
    pub instance_id: String,
    /// Shown with the line, such as `source_type`.
    pub tags: BTreeMap<String, String>,
    /// The line.
    pub text: String,
    /// On which of the app's streams it appears.
    pub stream: Stream,
}

/// A queue and the task that empties it; `None` when no certificates are
/// configured. `service` is the prefix of the service's metrics. Certificates that
/// cannot be used do not keep a service from starting: delivery begins when they
/// can be.
pub fn bind(service: &'static str, config: &Config) -> Option<(Loggregator, Delivery)> {
    let Config { use_v2_api: _, address, files, origin, source_id, instance_id, batch } = config;
    let files = files.as_ref()?;
    let tls = ClientTls::follow(Role { service, name: "loggregator-client" }, files);
    let (queue, receiver) = mpsc::channel(QUEUE);
    let about = About {
        source_id: source_id.clone(),
        instance_id: instance_id.clone(),
        origin: origin.clone(),
    };
    let loggregator =
        Loggregator { queue, about: Arc::new(about), dropped: own::LOGGREGATOR_DROPPED.counter() };
    Some((loggregator, Delivery::new(receiver, address.clone(), tls, *batch)))
}

/// A queue that nobody empties, and what is queued. For tests.
pub fn detached() -> (Loggregator, mpsc::Receiver<Envelope>) {
    let (queue, queued) = mpsc::channel(QUEUE);
    let name = || "detached".to_owned();
    let about = About { source_id: name(), instance_id: name(), origin: name() };
    let dropped = Counter::noop();
    (Loggregator { queue, about: Arc::new(about), dropped }, queued)
}

impl Loggregator {
    /// Sends a value of this moment, one metric in its envelope, as the originals
    /// do; tags besides `origin` are `tags`.
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

    /// Stamps an envelope, and queues it if there is room.
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
