//! A gRPC connection with little CPU cost per call: CPU time of the load tool is not
//! available to the server.
//!
//! The caller polls the connection itself, so that a call needs no other task and its
//! frames leave with one write, like those of the genuine clients in Go. A task polls a
//! connection that several callers share, or that is idle for long.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use h2::client::{Builder, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use prost::bytes::Bytes;
use runtime::client::{self, Options, Stream};
use runtime::write_coalescing::CoalescingStream;
use tokio::task::JoinSet;
use tonic::Status;

use super::connect::Target;

/// HTTP/2 stream window: the same as hyper's clients.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// A connection to the server under load.
#[derive(Debug)]
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    authority: Authority,
    driven: Driven,
}

#[derive(Debug)]
enum Driven {
    /// Polled by the callers.
    ByCalls(Box<Driver>),
    /// Polled by a task that ends with the last sharer.
    ByTask(Arc<JoinSet<()>>),
}

#[derive(Debug)]
struct Driver {
    gather: CoalescingStream<Stream>,
    connection: h2::client::Connection<CoalescingStream<Stream>, Bytes>,
}

impl Connection {
    /// Connects; the callers poll the connection.
    pub(super) async fn open(target: &Target) -> anyhow::Result<Self> {
        let stream = client::open(&target.address, &target.tls()?, Options::default()).await?;
        let gather = CoalescingStream::new(stream);
        let (send, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(gather.share())
            .await
            .context("speaking HTTP/2")?;
        let authority = target.address.parse().context("the address")?;
        let driven = Driven::ByCalls(Box::new(Driver { gather, connection }));
        Ok(Self { send, authority, driven })
    }

    /// Moves the connection to a task.
    pub(super) fn driven(self) -> Self {
        let Self { send, authority, driven } = self;
        let task = match driven {
            Driven::ByTask(task) => task,
            Driven::ByCalls(mut driver) => {
                let mut task = JoinSet::new();
                // Calls on the connection see how it ends.
                task.spawn(poll_fn(move |context| driver.poll(context).map(drop)));
                Arc::new(task)
            }
        };
        Self { send, authority, driven: Driven::ByTask(task) }
    }

    /// Another handle of the same connection, if a task polls it.
    pub(super) fn share(&self) -> Option<Self> {
        let Driven::ByTask(task) = &self.driven else { return None };
        let (send, authority) = (self.send.clone(), self.authority.clone());
        Some(Self { send, authority, driven: Driven::ByTask(Arc::clone(task)) })
    }

    /// A unary call with a framed message; `take` receives chunks of the response.
    pub(super) async fn call(
        &mut self,
        path: &'static str,
        message: Bytes,
        take: impl FnMut(Bytes),
    ) -> Result<(), Status> {
        let request = self.request(path);
        let Self { send, authority: _, driven } = self;
        let call = exchange(send, request, message, take);
        let answered = match driven {
            Driven::ByTask(_) => call.await,
            Driven::ByCalls(driver) => driver.drive(call).await,
        };
        answered.unwrap_or_else(|error| Err(Status::unavailable(error.to_string())))
    }

    fn request(&self, path: &'static str) -> Request<()> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = Uri::from_parts(uri).expect("all parts are there");
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        request
    }
}

impl Driver {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { gather, connection } = self;
        let turn = poll_fn(|context| Pin::new(&mut *connection).poll(context));
        gather.poll_and_flush(pin!(async { turn.await.map_err(io::Error::other) }), context)
    }

    /// Polls `call` and the connection until there is a response.
    async fn drive<T>(
        &mut self,
        call: impl Future<Output = Result<T, h2::Error>>,
    ) -> Result<T, h2::Error> {
        let mut call = pin!(call);
        poll_fn(|context| {
            // Polled first: its frames leave with the poll of the connection below.
            if let Poll::Ready(answer) = call.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            let turn = self.poll(context);
            if let Poll::Ready(answer) = call.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            // A closed connection fails its calls.
            turn.map(|_ended| Err(h2::Reason::CONNECT_ERROR.into()))
        })
        .await
    }
}

/// The outer error is that of the connection.
async fn exchange(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
    mut take: impl FnMut(Bytes),
) -> Result<Result<(), Status>, h2::Error> {
    poll_fn(|context| send.poll_ready(context)).await?;
    let (answer, mut body) = send.send_request(request, false)?;
    body.send_data(message, true)?;
    let answer: Response<h2::RecvStream> = answer.await?;
    // A response without a message has its status in the headers.
    if let Some(status) = status(answer.headers()) {
        return Ok(status);
    }
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        take(data);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let none = || Err(Status::internal("an answer without a status"));
    Ok(status(&trailers).unwrap_or_else(none))
}

fn status(headers: &HeaderMap) -> Option<Result<(), Status>> {
    if headers.get(Status::GRPC_STATUS)? == "0" {
        return Some(Ok(()));
    }
    Status::from_header_map(headers).map(Err)
}
