//! Request bodies of gRPC calls, with limits on incomplete messages.
//!
//! tonic reserves the announced length of a message as soon as the five bytes of its prefix arrive,
//! and keeps the bytes of a message until the message is complete. Without a limit, a peer can fill
//! the memory with messages that it never completes. [`Intake`] sits between the connection and
//! tonic.
//!
//! Invariants:
//! - tonic gets complete messages only, so it reserves nothing for bytes that have not arrived. A
//!   message that arrives in one piece is passed on without a copy.
//! - The buffers of incomplete messages, and calls that wait for their first message, count against
//!   a budget of the connection and one of the server. A call that exceeds a budget ends with
//!   RESOURCE_EXHAUSTED. No call waits for budget, so one peer cannot block another. A connection
//!   with at most [`OWN`] is not refused for what other connections have.
//! - A message is complete [`Limits::message_time`](super::Limits::message_time) after its first
//!   byte, or its call ends with DEADLINE_EXCEEDED.
//! - The end of a call releases its share of the budgets.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::metrics::own;
use crate::tls::Peer;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Length of a gRPC message prefix: a flag and four bytes of length.
const PREFIX: usize = 5;
/// Memory of a call that waits for its first message: task, headers, and the read
/// buffer of tonic.
const CALL: usize = 8 << 10;
/// Share of a connection that does not depend on other connections: two calls that wait for their
/// first message.
const OWN: usize = 2 * CALL;

/// The budget of all connections of a server.
#[derive(Debug)]
pub(super) struct Budget {
    server: &'static str,
    used: AtomicUsize,
    most: usize,
    most_each: usize,
    message_time: Duration,
}

impl Budget {
    pub(super) fn new(server: &'static str, limits: &super::Limits) -> Self {
        Self {
            server,
            used: AtomicUsize::new(0),
            most: limits.unfinished,
            most_each: limits.unfinished_each,
            message_time: limits.message_time,
        }
    }

    fn gauge(&self) -> metrics::Gauge {
        own::UNFINISHED.gauge_by([("server", self.server)])
    }
}

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct Account {
    used: AtomicUsize,
    all: Arc<Budget>,
    pub(super) peer: Peer,
    /// Whether the refusal is logged; it is logged once per connection.
    is_logged: AtomicBool,
}

impl Account {
    pub(super) fn new(all: Arc<Budget>, peer: Peer) -> Self {
        Self { used: AtomicUsize::new(0), all, peer, is_logged: AtomicBool::new(false) }
    }

    /// Takes `bytes` from both budgets, or nothing.
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let Some(own) = add(&self.used, bytes, self.all.most_each) else {
            let most = self.all.most_each;
            return Err(self.refuse(&format!("this connection has more than {most} bytes")));
        };
        if own <= OWN {
            self.all.used.fetch_add(bytes, Relaxed);
        } else if add(&self.all.used, bytes, self.all.most).is_none() {
            self.used.fetch_sub(bytes, Relaxed);
            let most = self.all.most;
            return Err(self.refuse(&format!("the connections of this server have {most} bytes")));
        }
        self.all.gauge().increment(as_f64(bytes));
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
        self.all.used.fetch_sub(bytes, Relaxed);
        self.all.gauge().decrement(as_f64(bytes));
    }

    fn refuse(&self, problem: &str) -> Status {
        let server = self.all.server;
        own::UNFINISHED_REFUSED.counter_by([("server", server)]).increment(1);
        let text = format!("too many unfinished messages: {problem} of them");
        if !self.is_logged.swap(true, Relaxed) {
            let address = self.peer.address.map(|address| address.to_string());
            let certificate = self.peer.identity.as_ref().map(ToString::to_string);
            tracing::info!(server, peer = address, certificate, error = text, "call-refused");
        }
        Status::resource_exhausted(text)
    }
}

/// Adds up to a limit; returns the sum.
fn add(used: &AtomicUsize, bytes: usize, most: usize) -> Option<usize> {
    let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= most);
    used.fetch_update(Relaxed, Relaxed, add).ok().map(|before| before + bytes)
}

#[expect(clippy::cast_precision_loss, reason = "budgets are far below 2^52 bytes")]
fn as_f64(bytes: usize) -> f64 {
    bytes as f64
}

/// Request body with the account of its connection.
pub(super) struct Arrived {
    pub(super) body: Incoming,
    pub(super) account: Arc<Account>,
}

/// A share of the budgets, released on drop.
struct Share {
    account: Arc<Account>,
    bytes: usize,
}

impl Share {
    fn set(&mut self, bytes: usize) -> Result<(), Status> {
        if bytes > self.bytes {
            self.account.take(bytes - self.bytes)?;
        } else if bytes < self.bytes {
            self.account.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.give_back(self.bytes);
        }
    }
}

/// Request body with limits, see the module docs. Generic over the body for tests.
pub(super) struct Intake<B = Incoming> {
    body: B,
    share: Share,
    /// Maximum message size of the method.
    largest: usize,
    /// The beginning of an incomplete message.
    held: Vec<u8>,
    /// Complete messages that [`Intake::first`] has read.
    ready: Option<Bytes>,
    /// Runs while a message is incomplete.
    timer: Option<Pin<Box<Sleep>>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No message has arrived.
    Opening,
    /// At least one message has arrived.
    Talking,
    /// tonic rejects the current message from its prefix alone.
    Refused,
}

/// Result of examining the beginning of a body.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Number of bytes that are complete messages.
    Whole(usize),
    /// The first message has `total` bytes, not all of which have arrived.
    Part { total: usize },
    /// tonic rejects the first message.
    Refused,
}

/// `total` is the known length: that of the prefix before the prefix has arrived.
fn look(bytes: &[u8], largest: usize) -> Found {
    let mut whole = 0;
    loop {
        let rest = &bytes[whole..];
        let total = match *rest {
            [] => return Found::Whole(whole),
            [0 | 1, a, b, c, d, ..] => {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if length <= largest { Some(PREFIX + length) } else { None }
            }
            [0 | 1, ..] => Some(PREFIX),
            _ => None,
        };
        match total {
            Some(total) if rest.len() >= total && rest.len() >= PREFIX => whole += total,
            _ if whole > 0 => return Found::Whole(whole),
            Some(total) => return Found::Part { total },
            None => return Found::Refused,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Intake<B>
where
    B::Error: Into<BoxError>,
{
    pub(super) fn new(body: B, account: Arc<Account>, largest: usize) -> Self {
        let share = Share { account, bytes: 0 };
        let (held, ready, timer) = (Vec::new(), None, None);
        Self { body, share, largest, held, ready, timer, state: State::Opening }
    }

    /// Waits for the first message, or for the end of the body.
    pub(super) async fn first(&mut self) -> Result<(), Status> {
        std::future::poll_fn(|context| self.poll_first(context)).await
    }

    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        match ready!(self.poll_messages(context)) {
            None => {}
            Some(Ok(frame)) => self.ready = frame.into_data().ok(),
            Some(Err(error)) => return Poll::Ready(Err(Status::from_error(error))),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_messages(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(ready) = self.ready.take() {
            return Poll::Ready(Some(Ok(Frame::data(ready))));
        }
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return self.poll_late(context),
                Poll::Ready(frame) => frame,
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // tonic reports that the message is incomplete.
                None if !self.held.is_empty() => {
                    let held = mem::take(&mut self.held);
                    return Poll::Ready(Some(Ok(Frame::data(held.into()))));
                }
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                Ok(data) => match self.add(data) {
                    Ok(None) => {}
                    Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(status) => return Poll::Ready(Some(Err(status.into()))),
                },
            }
        }
    }

    /// No bytes have arrived: counts a call that waits for its first message, and enforces the
    /// message timeout.
    fn poll_late(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.state == State::Opening
            && self.held.is_empty()
            && let Err(status) = self.share.set(CALL)
        {
            return Poll::Ready(Some(Err(status.into())));
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(context));
        let seconds = self.share.account.all.message_time.as_secs();
        let text = format!("the message was not complete within {seconds} seconds");
        Poll::Ready(Some(Err(Status::deadline_exceeded(text).into())))
    }

    /// Returns the complete messages, if any.
    fn add(&mut self, mut data: Bytes) -> Result<Option<Bytes>, Status> {
        if self.state == State::Refused {
            return Ok(Some(data));
        }
        if self.held.is_empty() {
            return match look(&data, self.largest) {
                Found::Whole(whole) => {
                    let rest = data.split_off(whole);
                    self.complete(&rest)?;
                    Ok(Some(data))
                }
                Found::Refused => Ok(Some(self.refused(data))),
                Found::Part { total } => self.hold(&data, total).map(|()| None),
            };
        }
        let total = match look(&self.held, self.largest) {
            Found::Part { total } => total,
            Found::Whole(_) | Found::Refused => PREFIX,
        };
        self.hold(&data, total)?;
        match look(&self.held, self.largest) {
            Found::Part { .. } => Ok(None),
            Found::Refused => {
                let held = mem::take(&mut self.held);
                Ok(Some(self.refused(held.into())))
            }
            Found::Whole(whole) => {
                let mut held = Bytes::from(mem::take(&mut self.held));
                let rest = held.split_off(whole);
                self.complete(&rest)?;
                Ok(Some(held))
            }
        }
    }

    /// A message is complete; `rest` is the beginning of the next one.
    fn complete(&mut self, rest: &[u8]) -> Result<(), Status> {
        self.state = State::Talking;
        self.timer = None;
        if rest.is_empty() {
            return self.share.set(0);
        }
        match look(rest, self.largest) {
            Found::Part { total } => self.hold(rest, total),
            // Examined again when more bytes arrive.
            Found::Whole(_) | Found::Refused => self.hold(rest, rest.len()),
        }
    }

    fn refused(&mut self, data: Bytes) -> Bytes {
        self.state = State::Refused;
        self.timer = None;
        data
    }

    /// Copies `data`, which is a slice of a larger buffer of the connection. The buffer doubles, up
    /// to the length of the message.
    fn hold(&mut self, data: &[u8], total: usize) -> Result<(), Status> {
        let needed = self.held.len() + data.len();
        if needed > self.held.capacity() {
            let room = (2 * self.held.capacity()).max(needed).min(total.max(needed));
            self.share.set(CALL + room)?;
            self.held.reserve_exact(room - self.held.len());
        }
        self.held.extend_from_slice(data);
        let time = self.share.account.all.message_time;
        self.timer.get_or_insert_with(|| Box::pin(sleep(time)));
        Ok(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Intake<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.poll_messages(context)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.ready.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
