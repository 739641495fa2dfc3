//! What every attack has: its door, its time, its outcomes, and ways to run many connections.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::dial::{Protocol, Stream};
use super::frame::{self, Head};
use super::got::Got;
use super::target::Target;

/// Pause of an attacker whose connection was closed.
const AGAIN: Duration = Duration::from_millis(200);
/// Interval of a paced flood.
const TICK: Duration = Duration::from_millis(10);
/// An attacker that gets no answer gives up.
const PATIENCE: Duration = Duration::from_secs(15);

/// One attack on one door.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) target: Arc<Target>,
    pub(crate) protocol: Protocol,
    /// End of the attack.
    pub(crate) until: Instant,
    pub(crate) got: Got,
    /// Divides the numbers of connections, for quick runs.
    pub(crate) divisor: u32,
    /// Number of keys of the attack with many keys.
    pub(crate) keys: u64,
}

impl Context {
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The attacker got what no attacker may get.
    pub(crate) fn breach(&self, text: String) {
        self.got.breach(text);
    }

    /// This number of connections, or fewer in a quick run.
    pub(crate) fn scaled(&self, count: u32) -> u32 {
        count.div_ceil(self.divisor)
    }

    /// Connects, and counts it.
    pub(crate) async fn open(&self) -> io::Result<Stream> {
        let stream = timeout(PATIENCE, self.target.dial.open(self.protocol)).await??;
        self.got.add("connected");
        Ok(stream)
    }

    /// Begins `count` connections at a rate, and keeps them until the end.
    pub(crate) async fn many<F, R>(&self, count: u32, per_second: u32, one: F)
    where
        F: Fn(Self, u32) -> R,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        let mut running = JoinSet::new();
        let mut pace = interval(Duration::from_secs(1) / per_second);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..self.scaled(count) {
            pace.tick().await;
            if self.is_over() {
                let all = self.scaled(count);
                let text = format!("the machine was busy: {number} of {all} connections begun");
                // A quick run is no measurement.
                if self.divisor == 1 {
                    self.breach(text);
                } else {
                    self.got.add(text);
                }
                break;
            }
            let (task, context) = (one(self.clone(), number), self.clone());
            running.spawn(async move {
                match timeout_at(context.until, task).await {
                    Err(_elapsed) => context.got.add("open to the end"),
                    Ok(Err(error)) => context.got.ended(&error),
                    Ok(Ok(())) => {}
                }
            });
        }
        while running.join_next().await.is_some() {}
    }

    /// Like [`Self::many`]; each connection is begun again when it has ended.
    pub(crate) async fn again<F, R>(&self, count: u32, one: F)
    where
        F: Fn(Self, u32) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        self.many(count, 100, move |context, number| {
            let one = one.clone();
            async move {
                loop {
                    if let Err(error) = one(context.clone(), number).await {
                        context.got.ended(&error);
                    }
                    sleep(AGAIN).await;
                }
            }
        })
        .await;
    }

    /// Sends frames at a rate on an HTTP/2 connection until it ends, with or without reading
    /// the server's. `next` makes a frame from its number.
    pub(crate) async fn flood(
        &self,
        per_second: u32,
        reads: bool,
        next: impl Fn(u32) -> Vec<u8> + Send,
    ) -> io::Result<()> {
        let stream = self.open().await?;
        let (mut from, mut to) = tokio::io::split(stream);
        let send = async {
            to.write_all(&frame::opening(None)).await?;
            let each = per_second / u32::try_from(1_000 / TICK.as_millis()).expect("100");
            let mut pace = interval(TICK);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for first in (0..).step_by(each as usize) {
                pace.tick().await;
                let frames: Vec<u8> = (first..first + each).flat_map(&next).collect();
                to.write_all(&frames).await?;
                to.flush().await?;
                self.got.add_many("frames sent", each.into());
            }
            Ok(())
        };
        let read = async {
            if !reads {
                return std::future::pending().await;
            }
            loop {
                self.receive(&mut from).await?;
            }
        };
        tokio::select! {
            biased;
            ended = read => ended,
            // What the server said before it closed.
            ended = send => match timeout(PATIENCE, async {
                loop {
                    self.receive(&mut from).await?;
                }
            }).await {
                Ok(Err::<(), io::Error>(_closed)) => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => ended,
            },
        }
    }

    /// Reads a frame; counts GOAWAY, RST_STREAM and responses.
    pub(crate) async fn receive(
        &self,
        from: &mut (impl AsyncReadExt + Unpin),
    ) -> io::Result<Vec<u8>> {
        let mut bytes = [0; frame::HEAD];
        from.read_exact(&mut bytes).await?;
        let head = Head::parse(bytes);
        let mut payload = vec![0; head.length];
        from.read_exact(&mut payload).await?;
        let reason = |at: usize| {
            let code = payload.get(at..at + 4).and_then(|code| code.try_into().ok());
            h2::Reason::from(u32::from_be_bytes(code.unwrap_or_default()))
        };
        match head.kind {
            frame::GOAWAY => self.got.add(format!("GOAWAY {:?}", reason(4))),
            frame::RST_STREAM => self.got.add(format!("RST_STREAM {:?}", reason(0))),
            frame::HEADERS if head.has(frame::END_STREAM) => self.got.add("answered"),
            _ => {}
        }
        let acknowledges = matches!(head.kind, frame::PING | frame::SETTINGS);
        if acknowledges && !head.has(frame::ACK) {
            let payload = if head.kind == frame::PING { &payload[..] } else { &[] };
            return Ok(frame::frame(head.kind, frame::ACK, 0, payload));
        }
        Ok(Vec::new())
    }

    /// Answers the server's pings until the connection ends.
    pub(crate) async fn stay(&self, mut stream: Stream) -> io::Result<()> {
        loop {
            let answer = self.receive(&mut stream).await?;
            stream.write_all(&answer).await?;
            stream.flush().await?;
        }
    }
}
