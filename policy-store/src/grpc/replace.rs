//! Replace call: Begin, the manifest, the missing list, the missing groups, Commit.
//!
//! Nothing is written before Commit, and then by a separate task: a stream that breaks
//! earlier leaves no trace; when one breaks later, the Replace takes effect without a
//! confirmation.
//!
//! The call runs beside its response stream and has a deadline, which bounds how long a
//! writer that does not read its responses holds a set and a permit. The response
//! stream waits for the call; dropping the stream cancels the call.

use std::{collections::VecDeque, mem, panic::resume_unwind, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use jiff::Timestamp;
use model::{group::SecurityGroup, ids::GroupGuid};
use proto::policy_v1::{
    self, ReplaceRequest, ReplaceResponse, replace_request,
    replace_request::Step as ClientMessage,
    replace_response::{self, Missing, Step},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    parse::Beginning,
    status::{Error, status},
};
use crate::{
    committer::{Commits, Committed, Failure, tell_refusal},
    config::Replaces,
    feed::watch::Feed,
    groups::{
        current::SnapshotPublisher,
        decide::{Refused, Replacement, plausible},
        manifest::{Expected, Manifest},
    },
    store,
};

/// Idle timeout of a writer.
const SILENCE: Duration = Duration::from_secs(60);
/// Limit of guids per message.
const MISSING_AT_ONCE: usize = 5_000;

/// Queue size for group messages that wait for the check.
const AHEAD: usize = 2;

enum Phase {
    Opening,
    Telling { beginning: Beginning, expected: Box<Expected>, parts: VecDeque<Missing> },
    Done,
}

/// A running Replace; see the module.
pub(super) struct Replacing {
    requests: Streaming<ReplaceRequest>,
    phase: Phase,
    board: Arc<SnapshotPublisher>,
    commits: Commits,
    drain: CancellationToken,
    bounds: Replaces,
    /// Permit of one of the concurrent Replaces; released before the last response, so that
    /// a client that received it can start the next.
    permit: Option<OwnedSemaphorePermit>,
}

impl Replacing {
    /// Creates a Replace with these limits that has not begun.
    pub(super) fn new(
        requests: Streaming<ReplaceRequest>,
        feed: &Feed,
        commits: Commits,
        permit: OwnedSemaphorePermit,
        bounds: Replaces,
    ) -> Self {
        let (board, drain) = (Arc::clone(&feed.board), feed.drain.clone());
        let (phase, permit) = (Phase::Opening, Some(permit));
        Self { requests, phase, board, commits, drain, bounds, permit }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<ReplaceResponse, Status>> + Send {
        let (answers, receiver) = mpsc::channel(1);
        let mut running = JoinSet::new();
        running.spawn(self.run(answers));
        stream::unfold((receiver, running), async |(mut receiver, mut running)| {
            let answer = match receiver.recv().await {
                Some(step) => Ok(ReplaceResponse { step: Some(step) }),
                None => match running.join_next().await? {
                    Ok(Ok(())) => return None,
                    Ok(Err(error)) => Err(status(&error)),
                    Err(_panicked) => Err(Status::internal("the Replace panicked")),
                },
            };
            Some((answer, (receiver, running)))
        })
    }

    async fn run(mut self, answers: mpsc::Sender<Step>) -> Result<(), Error> {
        let limit = self.bounds.timeout;
        let outcome = tokio::time::timeout(limit, self.answer(&answers)).await;
        let outcome = outcome.unwrap_or(Err(Error::Slow(limit.as_secs())));
        outcome.inspect_err(|error| tracing::debug!(error = %error, "replace-ended"))
    }

    async fn answer(&mut self, answers: &mpsc::Sender<Step>) -> Result<(), Error> {
        while let Some(step) = self.next().await? {
            if let Phase::Done = self.phase {
                self.permit = None;
            }
            if answers.send(step).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Step>, Error> {
        loop {
            match mem::replace(&mut self.phase, Phase::Done) {
                Phase::Opening => {
                    let beginning = self.begin().await?;
                    self.check_token(&beginning)?;
                    let manifest = self.manifest().await?;
                    let snapshot = self.board.current();
                    let expected = Box::new(manifest.expect(|guid| snapshot.hash(guid)));
                    let parts = parts(&expected.missing());
                    self.phase = Phase::Telling { beginning, expected, parts };
                }
                Phase::Telling { beginning, expected, mut parts } => {
                    let Some(part) = parts.pop_front() else {
                        return self.finish(beginning, expected).await.map(Some);
                    };
                    self.phase = Phase::Telling { beginning, expected, parts };
                    return Ok(Some(Step::Missing(part)));
                }
                Phase::Done => return Ok(None),
            }
        }
    }

    async fn begin(&mut self) -> Result<Beginning, Error> {
        match self.next_message().await? {
            ClientMessage::Begin(begin) => begin.try_into(),
            other => Err(unexpected("Begin", &other)),
        }
    }

    /// Checks the token before reading further. The newest token only rises: a refusal that
    /// is due to a slightly outdated served state succeeds when the writer retries.
    fn check_token(&self, Beginning { owner, token, .. }: &Beginning) -> Result<(), Error> {
        let state = &self.board.current().state;
        plausible(state, owner, *token, self.bounds.token_step).map_err(|refusal| {
            tell_refusal(owner, *token, &refusal);
            Failure::from(store::Error::from(Refused { refusal, seen: None })).into()
        })
    }

    async fn manifest(&mut self) -> Result<Manifest, Error> {
        let mut manifest = Manifest::default();
        loop {
            let part = match self.next_message().await? {
                ClientMessage::Manifest(part) => part,
                other => return Err(unexpected("Manifest", &other)),
            };
            let replace_request::Manifest { entries, last } = part;
            for entry in entries {
                let (guid, hash) = entry.try_into()?;
                manifest.push(guid, hash)?;
            }
            if last {
                return Ok(manifest);
            }
        }
    }

    async fn finish(
        &mut self,
        beginning: Beginning,
        expected: Box<Expected>,
    ) -> Result<Step, Error> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let mut taking = JoinSet::new();
        taking.spawn(take(expected, receiver));
        let taken = tokio::select! {
            biased;
            // It ends before all messages are sent only on an error.
            Some(taken) = taking.join_next() => Some(taken),
            heard = self.on_message(sender) => {
                heard?;
                taking.join_next().await
            }
        };
        let taken = taken.expect("it was spawned and nobody else waits for it");
        let expected = taken.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
        let Beginning { owner, token, watermark, allow_mass_removal, origin } = beginning;
        let supplied = expected.complete()?;
        let at = Timestamp::now();
        let write = Replacement {
            owner,
            token,
            watermark,
            allow_mass_removal,
            accepted_removal: None,
            rollout: None,
            supplied,
            at,
            origin,
        };
        let Committed { generation, added, changed, removed, unchanged, named } =
            self.commits.commit(write).await?;
        let guids =
            |guids: Vec<GroupGuid>| guids.iter().map(|guid| guid.as_str().to_owned()).collect();
        Ok(Step::Committed(replace_response::Committed {
            generation: generation.0,
            added: added as u64,
            changed: changed as u64,
            removed: removed as u64,
            unchanged: unchanged as u64,
            added_guids: guids(named.added),
            changed_guids: guids(named.changed),
            removed_guids: guids(named.removed),
        }))
    }

    /// Forwards groups until Commit.
    async fn on_message(&mut self, groups: mpsc::Sender<Vec<Received>>) -> Result<(), Error> {
        loop {
            match self.next_message().await? {
                // The receiver ends early only with an error, which is reported there.
                ClientMessage::Groups(part) => {
                    let received = part.groups.into_iter().map(|encoded| {
                        let bytes = encoded.len();
                        Ok(Received { group: proto::decode_group(encoded)?, bytes })
                    });
                    let received = received.collect::<Result<_, proto::Error>>()?;
                    _ = groups.send(received).await;
                }
                ClientMessage::Commit(replace_request::Commit {}) => return Ok(()),
                other => return Err(unexpected("Groups or Commit", &other)),
            }
        }
    }

    /// Next message of the writer.
    async fn next_message(&mut self) -> Result<ClientMessage, Error> {
        let request = tokio::select! {
            biased;
            () = self.drain.cancelled() => return Err(Error::Draining),
            request = tokio::time::timeout(SILENCE, self.requests.message()) => request,
        };
        let request = request.map_err(|_elapsed| Error::Silent(SILENCE.as_secs()))??;
        let protocol = |text: &str| Error::Protocol(text.to_owned());
        let request = request.ok_or_else(|| protocol("the stream ended before Commit"))?;
        request.step.ok_or_else(|| protocol("step is missing"))
    }
}

/// A decoded group and its encoded size.
struct Received {
    group: policy_v1::SecurityGroup,
    bytes: usize,
}

/// Reads and checks groups while the next ones are decrypted and decoded: the two cost
/// about the same.
async fn take(
    mut expected: Box<Expected>,
    mut groups: mpsc::Receiver<Vec<Received>>,
) -> Result<Box<Expected>, Error> {
    while let Some(groups) = groups.recv().await {
        for Received { group, bytes } in groups {
            expected.supply(SecurityGroup::try_from(group)?, bytes)?;
        }
    }
    Ok(expected)
}

fn unexpected(expected: &str, message: &ClientMessage) -> Error {
    let name = match message {
        ClientMessage::Begin(_) => "Begin",
        ClientMessage::Manifest(_) => "Manifest",
        ClientMessage::Groups(_) => "Groups",
        ClientMessage::Commit(_) => "Commit",
    };
    Error::Protocol(format!("{name} came where {expected} belongs"))
}

/// At least one part; the last one is marked.
fn parts(missing: &[GroupGuid]) -> VecDeque<Missing> {
    let texts = |chunk: &[GroupGuid]| chunk.iter().map(|guid| guid.as_str().to_owned()).collect();
    let mut parts: VecDeque<Missing> = missing
        .chunks(MISSING_AT_ONCE)
        .map(|chunk| Missing { guids: texts(chunk), last: false })
        .collect();
    match parts.back_mut() {
        Some(last) => last.last = true,
        None => parts.push_back(Missing { guids: Vec::new(), last: true }),
    }
    parts
}
