//! Test agent that records the envelopes it receives.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use metrics::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{ClientStreamingService, NamedService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

use super::envelope::{BatchSenderResponse, Envelope, EnvelopeBatch};
use super::{Config, Loggregator, QUEUE};

/// Ingress service of an agent, for [`Grpc::add`](crate::server::Grpc::add); clones share the
/// received envelopes.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    batches: Arc<Mutex<Vec<Vec<Envelope>>>>,
    /// Ends the open streams.
    hang_up: Arc<Mutex<CancellationToken>>,
}

impl Agent {
    /// The received batches, in order.
    pub fn batches(&self) -> Vec<Vec<Envelope>> {
        lock(&self.batches).clone()
    }

    /// The received envelopes, in order.
    pub fn envelopes(&self) -> Vec<Envelope> {
        lock(&self.batches).concat()
    }

    /// Ends every open stream with UNAVAILABLE; new ones are served.
    pub fn hang_up(&self) {
        std::mem::take(&mut *lock(&self.hang_up)).cancel();
    }

    async fn receive(self, stream: &mut Streaming<EnvelopeBatch>) -> Result<(), Status> {
        while let Some(EnvelopeBatch { batch }) = stream.message().await? {
            lock(&self.batches).push(batch);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NamedService for Agent {
    const NAME: &'static str = "loggregator.v2.Ingress";
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let agent = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/loggregator.v2.Ingress/BatchSender" {
                return Ok(Status::unimplemented("only BatchSender is served").into_http());
            }
            let codec = ProstCodec::<BatchSenderResponse, EnvelopeBatch>::default();
            Ok(tonic::server::Grpc::new(codec).client_streaming(agent, request).await)
        })
    }
}

impl ClientStreamingService<EnvelopeBatch> for Agent {
    type Response = BatchSenderResponse;
    type Future = Answer<Result<Response<BatchSenderResponse>, Status>>;

    fn call(&mut self, request: Request<Streaming<EnvelopeBatch>>) -> Self::Future {
        let agent = self.clone();
        let hung_up = lock(&self.hang_up).clone();
        Box::pin(async move {
            let mut stream = request.into_inner();
            match hung_up.run_until_cancelled(agent.receive(&mut stream)).await {
                Some(received) => received.map(|()| Response::new(BatchSenderResponse {})),
                None => Err(Status::unavailable("the agent hangs up")),
            }
        })
    }
}

/// A queue without a delivery task, and its receiver.
pub fn detached() -> (Loggregator, mpsc::Receiver<Envelope>) {
    let (queue, queued) = mpsc::channel(QUEUE);
    let name = || "detached".to_owned();
    let about = Config {
        use_v2_api: true,
        address: name(),
        files: None,
        origin: name(),
        source_id: name(),
        instance_id: name(),
        batch: 1,
    };
    let dropped = Counter::noop();
    (Loggregator { queue, about: Arc::new(about), dropped }, queued)
}
