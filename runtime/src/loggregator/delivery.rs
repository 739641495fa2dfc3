//! The task that sends the queued envelopes over a stream.

use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

use http::uri::PathAndQuery;
use metrics::{Counter, Gauge};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tracing::{Instrument, info_span};

use super::LINGER;
use super::envelope::{BatchSenderResponse, Envelope, EnvelopeBatch};
use crate::backoff::Backoff;
use crate::client::{self, Options};
use crate::metrics::own;
use crate::tls::ClientTls;

/// The name in every agent's certificate.
const AGENT: &str = "metron";
/// Bounds of the first and of the longest pause between connection attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// After a connection of this duration, pauses start from the shortest again.
const STEADY: Duration = Duration::from_secs(10);
/// Timeout for the last batches at shutdown.
const FLUSH: Duration = Duration::from_secs(1);

/// Sends the queue of a [`Loggregator`](super::Loggregator).
#[derive(Debug)]
pub struct Delivery {
    address: String,
    tls: ClientTls,
    outbox: Outbox,
    connected: Gauge,
}

/// The queue, and the batch that is being filled.
#[derive(Debug)]
struct Outbox {
    queue: mpsc::Receiver<Envelope>,
    batch: Vec<Envelope>,
    /// Deadline for sending the batch even if it is not full.
    leaves: Option<Instant>,
    max: usize,
    sent: Counter,
}

/// How a stream ended.
enum Ended {
    /// Everything was sent, or the shutdown timeout passed.
    Shutdown,
    /// The agent or the connection ended the stream.
    Lost(String),
}

impl Delivery {
    pub(super) fn new(
        queue: mpsc::Receiver<Envelope>,
        address: String,
        tls: ClientTls,
        max: usize,
    ) -> Self {
        let sent = own::LOGGREGATOR_SENT.counter();
        let outbox = Outbox { queue, batch: Vec::new(), leaves: None, max, sent };
        let connected = own::LOGGREGATOR_CONNECTED.gauge();
        Self { address, tls, outbox, connected }
    }

    /// Sends envelopes until shutdown, then the remaining ones if an agent is connected.
    ///
    /// # Errors
    /// Never; the return type fits [`crate::supervise::Tasks`].
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let watch = self.tls.clone().watch(shutdown.clone());
        let deliver = self.deliver(&shutdown).instrument(info_span!("loggregator"));
        let (watched, ()) = tokio::join!(watch, deliver);
        watched
    }

    async fn deliver(mut self, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut logged = false;
        loop {
            let begun = Instant::now();
            let error = match shutdown.run_until_cancelled(self.connect()).await {
                None => return,
                Some(Err(error)) => format!("{:#}", anyhow::Error::new(error)),
                Some(Ok(channel)) => {
                    tracing::info!(address = self.address, "connected");
                    logged = false;
                    self.connected.set(1);
                    let ended = self.outbox.stream(channel, shutdown).await;
                    self.connected.set(0);
                    match ended {
                        Ended::Shutdown => return,
                        Ended::Lost(error) => error,
                    }
                }
            };
            if begun.elapsed() >= STEADY {
                backoff.reset();
            }
            if !logged {
                logged = true;
                tracing::error!(error, address = self.address, "disconnected");
            }
            let pause = tokio::time::sleep(backoff.pause());
            if shutdown.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<Channel, client::Error> {
        // Agents treat frequent pings as an attack, and they run on the same machine.
        let options = Options { keepalive_interval: None, ..Options::default() };
        client::connect_as(AGENT, &self.address, &self.tls, options).await
    }
}

impl Outbox {
    async fn stream(&mut self, channel: Channel, shutdown: &CancellationToken) -> Ended {
        let (batches, receiver) = mpsc::channel(1);
        let mut call = pin!(batch_sender(channel, receiver));
        tokio::select! {
            ended = call.as_mut() => return Ended::Lost(reason(ended)),
            () = self.feed(&batches) => {}
            () = shutdown.cancelled() => {}
        }
        let close = async {
            self.drain(&batches).await;
            drop(batches);
            let _last_words = call.await;
        };
        let _in_time = timeout(FLUSH, close).await;
        Ended::Shutdown
    }

    /// Passes batches to the stream. Never returns.
    async fn feed(&mut self, batches: &mpsc::Sender<EnvelopeBatch>) {
        loop {
            self.fill().await;
            self.hand_over(batches).await;
        }
    }

    /// Waits until the batch is due. Cancel safe.
    async fn fill(&mut self) {
        while self.batch.len() < self.max {
            let next = match self.leaves {
                None => self.queue.recv().await,
                Some(at) => match timeout_at(at, self.queue.recv()).await {
                    Ok(next) => next,
                    Err(_elapsed) => return,
                },
            };
            match next {
                Some(envelope) => {
                    self.batch.push(envelope);
                    self.leaves.get_or_insert_with(|| Instant::now() + LINGER);
                }
                // No sender is left.
                None if self.batch.is_empty() => pending().await,
                None => return,
            }
        }
    }

    /// Keeps the batch until the stream has room for it.
    async fn hand_over(&mut self, batches: &mpsc::Sender<EnvelopeBatch>) {
        match batches.reserve().await {
            Ok(room) => {
                let batch = std::mem::take(&mut self.batch);
                self.leaves = None;
                self.sent.increment(batch.len() as u64);
                room.send(EnvelopeBatch { batch });
            }
            // The call is about to return its status.
            Err(_closed) => pending().await,
        }
    }

    /// Passes on the envelopes that are queued now.
    async fn drain(&mut self, batches: &mpsc::Sender<EnvelopeBatch>) {
        loop {
            while self.batch.len() < self.max {
                match self.queue.try_recv() {
                    Ok(envelope) => self.batch.push(envelope),
                    Err(_empty_or_closed) => break,
                }
            }
            if self.batch.is_empty() {
                return;
            }
            self.hand_over(batches).await;
        }
    }
}

/// `loggregator.v2.Ingress/BatchSender`: ends with the agent or the connection, or after the last
/// batch.
fn batch_sender(
    channel: Channel,
    batches: mpsc::Receiver<EnvelopeBatch>,
) -> impl Future<Output = Result<(), Status>> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let codec = ProstCodec::<EnvelopeBatch, BatchSenderResponse>::default();
    async move {
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(Box::new(error)))?;
        let request = Request::new(ReceiverStream::new(batches));
        let path = PathAndQuery::from_static("/loggregator.v2.Ingress/BatchSender");
        grpc.client_streaming(request, path, codec).await.map(drop)
    }
}

fn reason(ended: Result<(), Status>) -> String {
    match ended {
        Ok(()) => "the agent ended the stream".to_owned(),
        Err(status) => client::describe(&status),
    }
}
