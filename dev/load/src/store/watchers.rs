//! Simulated cells: each has its own connection, watches its spaces, and reports its
//! containers and each generation, if it has containers. It decodes only the generation of
//! the messages, and counts the bytes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use prost::Message;
use prost::bytes::Buf;
use proto::policy_v1::WatchRequest;
use proto::policy_v1::watch_request::{Hello, Step};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstEncoder;

use super::containers;
use super::data::{Shape, spaces_of};
use crate::connect::Target;
use crate::locket::failure;

/// Maximum number of simultaneous connects.
const CONNECTING: usize = 64;
/// Queue length of arrivals; their times are taken before.
const ARRIVALS: usize = 1 << 14;
/// Timeout until all cells have received a message.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum message size.
const LARGEST: usize = 64 << 20;

/// Size of each cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells {
    pub(super) spaces: u32,
    pub(super) containers: u32,
}

/// A cell that watches.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) number: usize,
    pub(crate) spaces: Vec<String>,
    pub(crate) containers: u32,
}

/// A cell has received a complete generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) generation: u64,
    pub(crate) stamp: i64,
    pub(crate) at: Instant,
    pub(crate) bytes: u64,
}

/// The watch of a cell.
#[derive(Debug)]
pub(crate) struct Session {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<Answer>,
}

/// All cells.
#[derive(Debug)]
pub(super) struct Watchers {
    arrivals: mpsc::Receiver<Arrival>,
    sender: mpsc::Sender<Arrival>,
    running: JoinSet<anyhow::Error>,
    connecting: Arc<Semaphore>,
}

/// Arrivals of a generation at all cells.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Arrival time at each cell.
    pub(super) at: Vec<Instant>,
    pub(super) bytes: u64,
}

impl Watchers {
    pub(super) fn new() -> Self {
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        Self { arrivals, sender, running: JoinSet::new(), connecting }
    }

    /// Adds cells up to this number. Returns when the new ones have a complete state.
    pub(super) async fn grow(
        &mut self,
        count: usize,
        target: &Target,
        shape: &Shape,
        cells: Cells,
    ) -> anyhow::Result<Arrived> {
        let first = self.running.len();
        let channels = target.channels(count.saturating_sub(first))?;
        let fresh = channels.len();
        for (offset, channel) in channels.into_iter().enumerate() {
            let number = first + offset;
            let spaces = spaces_of(number, cells.spaces, shape);
            let spaces = spaces.iter().map(|space| space.as_str().to_owned()).collect();
            let cell = Cell { number, spaces, containers: cells.containers };
            let (sender, connecting) = (self.sender.clone(), Arc::clone(&self.connecting));
            self.running.spawn(watch(channel, cell, sender, connecting));
        }
        self.wait(0, fresh).await.context("the first state")
    }

    /// Waits until all cells have this generation.
    pub(super) async fn all(&mut self, generation: u64) -> anyhow::Result<Arrived> {
        self.wait(generation, self.running.len()).await
    }

    async fn wait(&mut self, generation: u64, count: usize) -> anyhow::Result<Arrived> {
        let deadline = Instant::now() + TIMEOUT;
        let mut arrived = Arrived { at: Vec::with_capacity(count), bytes: 0 };
        while arrived.at.len() < count {
            let arrival = tokio::select! {
                arrival = timeout_at(deadline, self.arrivals.recv()) => arrival,
                Some(ended) = self.running.join_next() => return Err(ended?),
            };
            let Ok(Some(arrival)) = arrival else {
                let have = arrived.at.len();
                bail!("{have} of {count} cells got the generation within {} s", TIMEOUT.as_secs());
            };
            if arrival.generation >= generation {
                arrived.at.push(arrival.at);
                arrived.bytes += arrival.bytes;
            }
        }
        Ok(arrived)
    }
}

/// One cell, until its stream ends; returns the reason.
async fn watch(
    channel: Channel,
    cell: Cell,
    sender: mpsc::Sender<Arrival>,
    connecting: Arc<Semaphore>,
) -> anyhow::Error {
    let first = async {
        let _place = connecting.acquire().await;
        let mut session = Session::open(channel, &cell, None).await?;
        Ok::<_, Status>((session.whole().await?, session))
    };
    let failed = |status| failure(&status).context(cell.id());
    let (first, mut session) = match first.await {
        Ok(opened) => opened,
        Err(status) => return failed(status),
    };
    session.report_containers(&cell).await;
    let mut arrived = Ok(first);
    loop {
        let arrival = match arrived {
            Ok(arrival) => arrival,
            Err(status) => return failed(status),
        };
        session.report(&cell, arrival.generation).await;
        // The receiver is gone when the tool ends.
        let _refused = sender.send(arrival).await;
        arrived = session.whole().await;
    }
}

impl Cell {
    pub(crate) fn id(&self) -> String {
        format!("cell-{}", self.number)
    }
}

impl Session {
    /// Sends the cell's Hello; with a state that the cell has, it resumes from that.
    pub(crate) async fn open(
        channel: Channel,
        cell: &Cell,
        known: Option<Arrival>,
    ) -> Result<Self, Status> {
        let mut client = Grpc::new(channel).max_decoding_message_size(LARGEST);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let hello = Hello {
            cell_id: cell.id(),
            space_guids: cell.spaces.clone(),
            generation: known.map_or(0, |known| known.generation),
            stamp: known.map_or(0, |known| known.stamp),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plane: "nftables".to_owned(),
            ..Hello::default()
        };
        let (requests, words) = mpsc::channel(4);
        say(&requests, Step::Hello(hello)).await;
        let words = ReceiverStream::new(words);
        let path = PathAndQuery::from_static("/portcullis.policy.v1.PolicyStore/Watch");
        let answers = client.streaming(Request::new(words), path, Glance).await?;
        Ok(Self { requests, answers: answers.into_inner() })
    }

    /// The next complete state.
    pub(crate) async fn whole(&mut self) -> Result<Arrival, Status> {
        let mut all = 0;
        while let Some(answer) = self.answers.message().await? {
            let Answer { generation, stamp, complete, bytes } = answer;
            all += bytes;
            if complete {
                return Ok(Arrival { generation, stamp, at: Instant::now(), bytes: all });
            }
        }
        Err(Status::unavailable("the store ended the watch"))
    }

    /// Reports all containers.
    pub(crate) async fn report_containers(&self, cell: &Cell) {
        for step in containers::inventory(cell.number, cell.containers, &cell.spaces) {
            say(&self.requests, step).await;
        }
    }

    /// Reports that a generation is in force, if the cell has containers.
    pub(crate) async fn report(&self, cell: &Cell, generation: u64) {
        if cell.containers > 0 {
            say(&self.requests, containers::report(cell.number, cell.containers, generation)).await;
        }
    }
}

/// A refused message means that the stream has ended; the next response has the reason.
async fn say(requests: &mpsc::Sender<WatchRequest>, step: Step) {
    let _refused = requests.send(WatchRequest { step: Some(step) }).await;
}

/// The relevant fields of `WatchResponse`; others are skipped.
#[derive(Clone, PartialEq, Message)]
struct Progress {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(bool, tag = "5")]
    complete: bool,
    #[prost(int64, tag = "7")]
    stamp: i64,
}

#[derive(Debug, PartialEq)]
struct Answer {
    generation: u64,
    stamp: i64,
    complete: bool,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Glance;

impl Codec for Glance {
    type Encode = WatchRequest;
    type Decode = Answer;
    type Encoder = ProstEncoder<WatchRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Glance {
    type Item = Answer;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Answer>, Status> {
        glance(answer).map(Some)
    }
}

fn glance(answer: &mut impl Buf) -> Result<Answer, Status> {
    let bytes = answer.remaining() as u64;
    let Progress { generation, complete, stamp } =
        Progress::decode(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Answer { generation, stamp, complete, bytes })
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::{StoredGroup, WatchResponse};

    use super::*;

    #[test]
    fn an_answer_is_read_without_its_groups() {
        let upserted = vec![StoredGroup { id: 7, ..StoredGroup::default() }];
        let removed = vec!["guid".to_owned()];
        let answer = WatchResponse {
            generation: 9,
            upserted,
            removed,
            complete: true,
            stamp: -3,
            ..WatchResponse::default()
        };
        let encoded = answer.encode_to_vec();
        let bytes = encoded.len() as u64;
        let expected = Answer { generation: 9, stamp: -3, complete: true, bytes };
        assert_eq!(glance(&mut &encoded[..]).unwrap(), expected);
        assert!(glance(&mut &encoded[1..]).is_err());
    }
}
