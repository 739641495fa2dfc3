//! Client of the policy store.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use jiff::Timestamp;
use model::{
    generation::Generation,
    group::SecurityGroup,
    lock::{FencingToken, Owner},
    trace::TraceContext,
};
use proto::policy_v1::{
    ListRequest, ReplaceRequest, ReplaceResponse, StatusRequest,
    policy_store_client::PolicyStoreClient,
    replace_request::{Begin, Commit, Groups, Manifest as ManifestPart, ManifestEntry, Step},
    replace_response::{Committed as WireCommitted, Step as Answer},
};
use runtime::client;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use crate::{
    lease::keeper::Term,
    manifest::{Manifest, StoreHashes},
    stamp::Stamp,
};

/// Reason why a store call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fenced: the store has seen a newer leader, so this one must stop.
    #[error("the policy store has seen a newer leader: {0}")]
    Fenced(String),
    /// The lease ended before the commit was sent.
    #[error("the lease ended before the commit")]
    LeaseEnded,
    /// The store's mass removal guard refused the Replace.
    #[error(
        "the policy store refused the security groups: {0}; if the Cloud Controller's list is \
         right, `portcullisctl sync --accept-removal NUMBER`, with the number of groups to remove, \
         lets it pass once"
    )]
    Refused(String),
    /// The store lacks groups that it was known to have.
    #[error("the policy store lacks {count} groups that it held, such as {guid}")]
    Lacks {
        /// One of them.
        guid: String,
        /// Number of missing groups.
        count: usize,
    },
    /// The call failed.
    #[error("{operation}: {}", client::describe(status))]
    Call {
        /// Name of the call.
        operation: &'static str,
        /// gRPC status.
        status: Box<Status>,
    },
    /// The store sent a message that violates the protocol.
    #[error("the policy store answered out of turn: {0}")]
    OutOfTurn(&'static str),
    /// The store has an invalid group.
    #[error("the policy store holds what is no group")]
    NoGroup(#[from] proto::Error),
}

impl Error {
    /// The label of the failure metric.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Fenced(_) => "fenced",
            Self::LeaseEnded => "lease-ended",
            Self::Refused(_) => "refused",
            Self::Lacks { .. } | Self::OutOfTurn(_) | Self::NoGroup(_) | Self::Call { .. } => {
                "store"
            }
        }
    }
}

/// Result of a confirmed Replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Generation of the set in the store.
    pub generation: Generation,
    /// Number of new groups.
    pub added: u64,
    /// Number of groups with new content.
    pub changed: u64,
    /// Number of removed groups.
    pub removed: u64,
    /// Number of unchanged groups.
    pub unchanged: u64,
    /// The first groups of each kind.
    pub named: Named,
}

/// Guids of the first groups that a Replace changed; empty if the store does not send them.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Named {
    /// New groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added_guids: Vec<String>,
    /// Groups with new content.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_guids: Vec<String>,
    /// Removed groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_guids: Vec<String>,
}

/// The sync that a Replace belongs to, for operators.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// When the syncer saw that the list has to be read.
    pub noticed_at: Timestamp,
    /// When the whole list was read.
    pub read_at: Timestamp,
    /// Names the sync.
    pub trace: TraceContext,
}

/// Client of the policy store.
#[derive(Debug, Clone)]
pub struct Store {
    client: PolicyStoreClient<Channel>,
    settings: Settings,
}

/// Identity of the writer and options.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Owner of the lock.
    pub owner: Owner,
    /// Whether the store may remove most of its groups.
    pub allow_mass_removal: bool,
    /// Timeout of a Replace, or of a page of List.
    pub timeout: Duration,
}

/// Number of entries per part of the manifest: about 80 bytes each.
const ENTRIES: usize = 4_096;
/// Encoded bytes after which a part of the groups is sent. The store decodes several parts
/// at a time.
const PART: usize = 128 << 10;
/// Number of groups per page of List.
const PAGE: u32 = 500;
/// Size limit of a response. A page of List may contain groups as large as the Cloud
/// Controller allows (16 MiB of rules), so the default limit of 4 MiB would fail a sync.
const LARGEST_ANSWER: usize = 64 << 20;

impl Store {
    /// Uses a channel that connects lazily.
    #[must_use]
    pub fn new(channel: Channel, settings: Settings) -> Self {
        let client = PolicyStoreClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        Self { client, settings }
    }

    /// Replaces the set in the store with the manifest, all or nothing.
    ///
    /// # Errors
    /// Nothing was changed, except that after [`Error::Call`] the commit may have taken effect
    /// without its response.
    pub async fn replace(
        &self,
        manifest: &Manifest,
        stamp: Stamp,
        term: &Term,
        origin: Origin,
    ) -> Result<Committed, Error> {
        let call = Replace { store: self, manifest, stamp, term, origin };
        let outcome = match timeout(self.settings.timeout, call.run()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed("Replace")(Status::deadline_exceeded("not answered in time"))),
        };
        match outcome {
            Err(Error::Call { status, .. }) if status.code() == Code::FailedPrecondition => {
                Err(self.precondition(status.message(), term.token()).await)
            }
            outcome => outcome,
        }
    }

    /// FAILED_PRECONDITION has two causes: a token older than the newest writer's, and a
    /// mass removal. The newest writer in the store's status distinguishes them; if the
    /// status is unavailable, the worse cause is assumed.
    async fn precondition(&self, message: &str, token: FencingToken) -> Error {
        let mut client = self.client.clone();
        let status = client.status(StatusRequest {});
        let fenced = match within(self.settings.timeout, "Status", status).await {
            Ok(status) => {
                let writer = status.writer.unwrap_or_default();
                let newest = FencingToken(writer.fencing_token);
                let taken = newest == token && writer.owner != self.settings.owner.as_str();
                newest > token || (taken && token.0 != 0)
            }
            Err(_) => true,
        };
        match fenced {
            true => Error::Fenced(message.to_owned()),
            false => Error::Refused(message.to_owned()),
        }
    }

    /// Number of groups in the store.
    ///
    /// # Errors
    /// The call failed or timed out.
    pub async fn count(&self) -> Result<usize, Error> {
        self.count_within(self.settings.timeout).await
    }

    /// [`Self::count`], with the timeout `patience`.
    ///
    /// # Errors
    /// The call failed or timed out.
    pub async fn count_within(&self, patience: Duration) -> Result<usize, Error> {
        let mut client = self.client.clone();
        let status = within(patience, "Status", client.status(StatusRequest {})).await?;
        Ok(usize::try_from(status.groups).unwrap_or(usize::MAX))
    }

    /// Guid and hash of every group in the store.
    ///
    /// # Errors
    /// The call failed or timed out.
    pub async fn held(&self) -> Result<StoreHashes, Error> {
        let mut client = self.client.clone();
        let mut held = StoreHashes::new();
        let mut page_token = 0;
        loop {
            let request =
                ListRequest { space_guids: Vec::new(), all: true, page_size: PAGE, page_token };
            let page = within(self.settings.timeout, "List", client.list(request)).await?;
            for stored in page.groups {
                let group = SecurityGroup::try_from(proto::decode_group(stored.group)?)?;
                held.insert(group.guid.clone(), group.content_hash());
            }
            if page.next_page_token <= page_token {
                return Ok(held);
            }
            page_token = page.next_page_token;
        }
    }
}

async fn within<T>(
    patience: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    let answer = timeout(patience, call).await;
    let late = |_| Err(Status::deadline_exceeded("not answered in time"));
    answer.unwrap_or_else(late).map(Response::into_inner).map_err(failed(operation))
}

fn failed(operation: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Call { operation, status: Box::new(status) }
}

/// One Replace in progress.
struct Replace<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    stamp: Stamp,
    term: &'a Term,
    origin: Origin,
}

type Requests = mpsc::Sender<ReplaceRequest>;

fn request(step: Step) -> ReplaceRequest {
    ReplaceRequest { step: Some(step) }
}

impl Replace<'_> {
    /// Sends and receives concurrently: the store may read the whole manifest before it opens
    /// its response stream, and may refuse before it has read anything.
    async fn run(&self) -> Result<Committed, Error> {
        let (requests, stream) = mpsc::channel(1);
        let mut client = self.store.client.clone();
        let open = async {
            let mut answers = client
                .replace(ReceiverStream::new(stream))
                .await
                .map_err(failed("Replace"))?
                .into_inner();
            let missing = missing(&mut answers).await?;
            Ok::<_, Error>((answers, missing))
        };
        let (opened, ()) = tokio::join!(open, self.send_manifest(&requests));
        let (mut answers, missing) = opened?;
        let contents = self.contents(&missing)?;
        let (committed, sent) =
            tokio::join!(committed(&mut answers), self.send_groups(requests, contents));
        sent?;
        committed
    }

    /// A refused send means that the call has ended; its response has the reason.
    async fn send_manifest(&self, requests: &Requests) {
        let Origin { noticed_at, read_at, trace } = self.origin;
        let begin = Begin {
            owner: self.store.settings.owner.as_str().to_owned(),
            fencing_token: self.term.token().0,
            watermark: Some(proto::timestamp(self.stamp.watermark())),
            allow_mass_removal: self.store.settings.allow_mass_removal,
            noticed_at: Some(SystemTime::from(noticed_at).into()),
            read_at: Some(SystemTime::from(read_at).into()),
            traceparent: trace.to_string(),
        };
        let mut parts = vec![Step::Begin(begin)];
        let mut entries = self.manifest.entries.as_slice();
        loop {
            let (part, rest) = entries.split_at(entries.len().min(ENTRIES));
            let last = rest.is_empty();
            let part = part.iter().map(|(guid, hash)| ManifestEntry::from((guid, hash)));
            parts.push(Step::Manifest(ManifestPart { entries: part.collect(), last }));
            for step in parts.drain(..) {
                if requests.send(request(step)).await.is_err() {
                    return;
                }
            }
            if last {
                return;
            }
            entries = rest;
        }
    }

    /// Content of the missing groups, collected before any of it is sent.
    fn contents(&self, missing: &[String]) -> Result<Vec<Bytes>, Error> {
        let content = self.by_guid();
        let found: Vec<_> =
            missing.iter().map(|guid| content.get(guid.as_str()).ok_or(guid)).collect();
        let lost: Vec<_> = found.iter().filter_map(|found| found.err()).collect();
        match lost.first() {
            Some(guid) => Err(Error::Lacks { guid: (**guid).clone(), count: lost.len() }),
            None => Ok(found.into_iter().flatten().copied().cloned().collect()),
        }
    }

    fn by_guid(&self) -> HashMap<&str, &Bytes> {
        self.manifest.content.iter().map(|(guid, encoded)| (guid.as_str(), encoded)).collect()
    }

    async fn send_groups(&self, requests: Requests, contents: Vec<Bytes>) -> Result<(), Error> {
        let mut part = Vec::new();
        let mut size = 0;
        for group in contents {
            size += group.len();
            part.push(group);
            if size >= PART {
                size = 0;
                let groups = std::mem::take(&mut part);
                if requests.send(request(Step::Groups(Groups { groups }))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if !part.is_empty() {
            // The response shows why the send was refused.
            _ = requests.send(request(Step::Groups(Groups { groups: part }))).await;
        }
        if !self.term.holds(Instant::now()) {
            return Err(Error::LeaseEnded);
        }
        _ = requests.send(request(Step::Commit(Commit {}))).await;
        Ok(())
    }
}

async fn missing(answers: &mut Streaming<ReplaceResponse>) -> Result<Vec<String>, Error> {
    let mut guids = Vec::new();
    loop {
        match next(answers).await? {
            Answer::Missing(missing) => {
                guids.extend(missing.guids);
                if missing.last {
                    return Ok(guids);
                }
            }
            Answer::Committed(_) => return Err(Error::OutOfTurn("committed before the commit")),
        }
    }
}

async fn committed(answers: &mut Streaming<ReplaceResponse>) -> Result<Committed, Error> {
    match next(answers).await? {
        Answer::Committed(committed) => {
            let WireCommitted {
                generation,
                added,
                changed,
                removed,
                unchanged,
                added_guids,
                changed_guids,
                removed_guids,
            } = committed;
            let generation = Generation(generation);
            let named = Named { added_guids, changed_guids, removed_guids };
            Ok(Committed { generation, added, changed, removed, unchanged, named })
        }
        Answer::Missing(_) => Err(Error::OutOfTurn("missing groups after the last")),
    }
}

async fn next(answers: &mut Streaming<ReplaceResponse>) -> Result<Answer, Error> {
    answers
        .message()
        .await
        .map_err(failed("Replace"))?
        .and_then(|answer| answer.step)
        .ok_or(Error::OutOfTurn("an end, or an empty answer"))
}
