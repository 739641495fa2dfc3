//! Watch call: reads Hello, then sends the updates of [`Watcher`].

use std::{mem, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use jiff::Timestamp;
use model::generation::{Generation, Point};
use proto::policy_v1::{WatchRequest, WatchResponse, watch_request::Step as Said};
use runtime::tls::Identity;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Shared, ask, inventory, parse,
    status::{Error, status},
    uses,
};
use crate::{
    access::Action,
    feed::watch::{ClientMessage, ClientMessages, Feed, Message, Watcher},
};

/// Timeout for Hello, in seconds.
const SILENCE: u64 = 10;

enum Phase {
    Opening(Box<Streaming<WatchRequest>>),
    Watching(Box<Watcher<Requests>>),
    Done,
}

/// A running Watch; see the module.
pub(super) struct Watching {
    shared: Arc<Shared>,
    identity: Option<Arc<Identity>>,
    /// Cancelled when the server sends GOAWAY.
    drain: CancellationToken,
    phase: Phase,
}

impl Watching {
    /// A stream that has received nothing yet. Headers are sent at once and a refusal later:
    /// some clients send nothing before they receive headers.
    pub(super) fn new(
        shared: Arc<Shared>,
        identity: Option<Arc<Identity>>,
        drain: CancellationToken,
        requests: Streaming<WatchRequest>,
    ) -> Self {
        Self { shared, identity, drain, phase: Phase::Opening(Box::new(requests)) }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<WatchResponse, Status>> + Send {
        stream::unfold(self, async |mut this| {
            let answer = this.next().await.transpose()?;
            if let Err(error) = &answer {
                tracing::debug!(error = %error, "watch-ended");
                this.phase = Phase::Done;
            }
            Some((answer.map_err(|error| status(&error)), this))
        })
    }

    async fn next(&mut self) -> Result<Option<WatchResponse>, Error> {
        if let Phase::Opening(_) = self.phase
            && let Phase::Opening(requests) = mem::replace(&mut self.phase, Phase::Done)
        {
            self.phase = Phase::Watching(Box::new(self.open(*requests).await?));
        }
        match &mut self.phase {
            Phase::Watching(watcher) => {
                let message = watcher.next().await?;
                Ok(Some(self.response(message)))
            }
            Phase::Opening(_) | Phase::Done => Ok(None),
        }
    }

    fn response(&self, message: Message) -> WatchResponse {
        match message {
            Message::Question(question) => (*question).into(),
            Message::Part(part) => {
                let changes = &self.shared.feed.changes;
                let trace = match part.complete {
                    true => changes.trace(part.point.generation),
                    false => None,
                };
                let traceparent = trace.map(|trace| trace.to_string()).unwrap_or_default();
                WatchResponse { traceparent, ..part.into() }
            }
        }
    }

    async fn open(
        &self,
        mut requests: Streaming<WatchRequest>,
    ) -> Result<Watcher<Requests>, Error> {
        let first = tokio::time::timeout(Duration::from_secs(SILENCE), requests.message());
        let first = tokio::select! {
            () = self.drain.cancelled() => return Err(Error::Draining),
            first = first => first.map_err(|_elapsed| Error::Silent(SILENCE))??,
        };
        let Some(Said::Hello(hello)) = first.and_then(|request| request.step) else {
            return Err(Error::Protocol("the first request must be Hello".to_owned()));
        };
        let hello = parse::hello(&hello)?;
        self.shared.check(self.identity.as_deref(), Action::Watch(hello.cell.clone()))?;
        self.be_as_new_as(hello.known).await?;
        let feed = Feed { drain: self.drain.clone(), ..self.shared.feed.clone() };
        let watcher = Watcher::new(feed, hello, Requests(requests))?;
        tracing::debug!(cell = %watcher.cell(), "watch-started");
        Ok(watcher)
    }
}

impl Watching {
    /// Waits until this instance has the generation of a cell that comes from another
    /// instance: the cell must not get older groups. If the store itself has an older
    /// generation, it was restored from a backup, and the cell has to follow.
    async fn be_as_new_as(&self, known: Option<Point>) -> Result<(), Error> {
        let generation = known.map_or(Generation::default(), |known| known.generation);
        if generation > self.shared.feed.board.current().state.generation {
            self.shared.commits.catch_up().await?;
        }
        Ok(())
    }
}

/// Messages of a cell after Hello.
pub(super) struct Requests(Streaming<WatchRequest>);

impl ClientMessages for Requests {
    type Error = Error;

    async fn next(&mut self) -> Result<Option<ClientMessage>, Error> {
        let Some(request) = self.0.message().await? else { return Ok(None) };
        match request.step {
            Some(Said::Subscribe(subscribe)) => parse::subscribe(&subscribe).map(Some),
            Some(Said::Report(report)) => Ok(Some(parse::report(&report, Timestamp::now()))),
            Some(Said::Inventory(message)) => {
                inventory::update(message).map(Box::new).map(ClientMessage::Inventory).map(Some)
            }
            Some(Said::RuleUses(uses)) => uses::reported(uses).map(ClientMessage::Uses).map(Some),
            Some(Said::Answer(answer)) => Ok(Some(ask::answer(answer))),
            Some(Said::Hello(_)) => Err(Error::Protocol("Hello came twice".to_owned())),
            None => Err(Error::Protocol("step is missing".to_owned())),
        }
    }
}
