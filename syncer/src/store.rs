//! Calls to the policy store.

use std::{collections::HashMap, time::Duration};

use model::{
    generation::Generation,
    group::SecurityGroup,
    lock::{FencingToken, Owner},
};
use prost::Message as _;
use proto::policy_v1::{
    self, ListRequest, ReplaceRequest, ReplaceResponse, StatusRequest,
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
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    lease::keeper::Term,
    manifest::{Manifest, StoreHashes},
    stamp::Stamp,
};

/// Why the store did not take, or give, what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store has seen a newer leader: this one must stop.
    #[error("the policy store has seen a newer leader: {0}")]
    Fenced(String),
    /// The lease ended before the commit was sent.
    #[error("the lease ended before the commit")]
    LeaseEnded,
    /// The store's guard: too much would be removed.
    #[error(
        "the policy store refused the security groups: {0}; if the Cloud Controller's list is \
         right, run the syncer with allow_mass_removal: true until it has been applied"
    )]
    Refused(String),
    /// The store no longer holds what it is known to hold.
    #[error("the policy store lacks {count} groups that it held, such as {guid}")]
    Lacks {
        /// One of them.
        guid: String,
        /// How many.
        count: usize,
    },
    /// The call failed.
    #[error("{operation}: {}", client::describe(status))]
    Call {
        /// Which call.
        operation: &'static str,
        /// How.
        status: Box<Status>,
    },
    /// The store said something that the protocol does not have there.
    #[error("the policy store answered out of turn: {0}")]
    OutOfTurn(&'static str),
    /// A group of the store that is no group.
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

/// What a confirmed Replace did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The store's number for the set.
    pub generation: Generation,
    /// Groups that it did not have.
    pub added: u64,
    /// Groups whose content is new.
    pub changed: u64,
    /// Groups that are gone.
    pub removed: u64,
    /// Groups that stayed.
    pub unchanged: u64,
    /// The first groups of each kind.
    pub named: Named,
}

/// The guids of the first groups that a Replace changed; empty if the store does not say.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Named {
    /// Groups that the store did not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added_guids: Vec<String>,
    /// Groups whose content is new.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_guids: Vec<String>,
    /// Groups that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_guids: Vec<String>,
}

/// The policy store's client.
#[derive(Debug, Clone)]
pub struct Store {
    client: PolicyStoreClient<Channel>,
    settings: Settings,
}

/// As whom, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lock's owner.
    pub owner: Owner,
    /// Whether the store may remove most of its groups.
    pub allow_mass_removal: bool,
    /// How long a Replace, or a page of List, may take.
    pub timeout: Duration,
}

/// Entries in one part of the manifest: about 80 bytes each.
const ENTRIES: usize = 4_096;
/// Encoded bytes in one part of the groups, beyond which a part is sent. Several
/// parts are in memory at a time, decoded to several times that.
const PART: usize = 128 << 10;
/// Groups in one page of List.
const PAGE: u32 = 500;
/// A page of List may hold groups as large as the Cloud Controller lets them be
/// (16 MiB of rules), so the usual limit of 4 MiB would strand a sync.
const LARGEST_ANSWER: usize = 64 << 20;

impl Store {
    /// Over a channel that connects by itself.
    #[must_use]
    pub fn new(channel: Channel, settings: Settings) -> Self {
        let client = PolicyStoreClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        Self { client, settings }
    }

    /// Makes the store hold exactly the manifest, all or nothing.
    ///
    /// # Errors
    /// Nothing was changed, except that after [`Error::Call`] the commit may
    /// have arrived without its answer.
    pub async fn replace(
        &self,
        manifest: &Manifest,
        stamp: Stamp,
        term: &Term,
    ) -> Result<Committed, Error> {
        let call = Replace { store: self, manifest, stamp, term };
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

    /// Two things are refused with FAILED_PRECONDITION: a token that is not the
    /// newest writer's, and a removal of too much. The store's own word on its
    /// newest writer tells them apart; without it the worse one is believed.
    async fn precondition(&self, message: &str, token: FencingToken) -> Error {
        let mut client = self.client.clone();
        let status = timeout(self.settings.timeout, client.status(StatusRequest {})).await;
        let fenced = match status {
            Ok(Ok(status)) => {
                let writer = status.into_inner().writer.unwrap_or_default();
                let newest = FencingToken(writer.fencing_token);
                let taken = newest == token && writer.owner != self.settings.owner.as_str();
                newest > token || (taken && token.0 != 0)
            }
            Ok(Err(_)) | Err(_) => true,
        };
        match fenced {
            true => Error::Fenced(message.to_owned()),
            false => Error::Refused(message.to_owned()),
        }
    }

    /// How many groups the store holds.
    ///
    /// # Errors
    /// No answer, or not in time.
    pub async fn count(&self) -> Result<usize, Error> {
        self.count_within(self.settings.timeout).await
    }

    /// [`Self::count`], within `patience`.
    ///
    /// # Errors
    /// No answer, or not in time.
    pub async fn count_within(&self, patience: Duration) -> Result<usize, Error> {
        let mut client = self.client.clone();
        let status = timeout(patience, client.status(StatusRequest {}))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("not answered in time")))
            .map_err(failed("Status"))?;
        Ok(usize::try_from(status.into_inner().groups).unwrap_or(usize::MAX))
    }

    /// The guid and hash of every group that the store holds.
    ///
    /// # Errors
    /// It does not say, or not in time.
    pub async fn held(&self) -> Result<StoreHashes, Error> {
        let mut client = self.client.clone();
        let mut held = StoreHashes::new();
        let mut page_token = 0;
        loop {
            let request =
                ListRequest { space_guids: Vec::new(), all: true, page_size: PAGE, page_token };
            let page = timeout(self.settings.timeout, client.list(request))
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("not answered in time")))
                .map_err(failed("List"))?
                .into_inner();
            for stored in page.groups {
                let group = SecurityGroup::try_from(stored.group.unwrap_or_default())?;
                held.insert(group.guid.clone(), group.content_hash());
            }
            if page.next_page_token <= page_token {
                return Ok(held);
            }
            page_token = page.next_page_token;
        }
    }
}

fn failed(operation: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Call { operation, status: Box::new(status) }
}

/// One Replace under way.
struct Replace<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    stamp: Stamp,
    term: &'a Term,
}

type Requests = mpsc::Sender<ReplaceRequest>;

fn request(step: Step) -> ReplaceRequest {
    ReplaceRequest { step: Some(step) }
}

impl Replace<'_> {
    /// Sending and receiving go side by side: the store may read all of the
    /// manifest before it opens its stream, and may refuse before it has read
    /// anything.
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
            tokio::join!(committed(&mut answers), self.send_groups(requests, &contents));
        sent?;
        committed
    }

    /// A refused send means that the call is over, and its answer says why.
    async fn send_manifest(&self, requests: &Requests) {
        let begin = Begin {
            owner: self.store.settings.owner.as_str().to_owned(),
            fencing_token: self.term.token().0,
            watermark: Some(proto::timestamp(self.stamp.watermark())),
            allow_mass_removal: self.store.settings.allow_mass_removal,
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

    /// The content of what the store lacks, before anything is sent of it.
    fn contents(&self, missing: &[String]) -> Result<Vec<&[u8]>, Error> {
        let content = self.by_guid();
        let found: Vec<_> =
            missing.iter().map(|guid| content.get(guid.as_str()).copied().ok_or(guid)).collect();
        let lost: Vec<_> = found.iter().filter_map(|found| found.err()).collect();
        match lost.first() {
            Some(guid) => Err(Error::Lacks { guid: (**guid).clone(), count: lost.len() }),
            None => Ok(found.into_iter().flatten().collect()),
        }
    }

    fn by_guid(&self) -> HashMap<&str, &[u8]> {
        self.manifest.content.iter().map(|(guid, bytes)| (guid.as_str(), &**bytes)).collect()
    }

    async fn send_groups(&self, requests: Requests, contents: &[&[u8]]) -> Result<(), Error> {
        let mut part = Vec::new();
        let mut size = 0;
        for encoded in contents {
            let group =
                policy_v1::SecurityGroup::decode(*encoded).expect("it was encoded by this process");
            size += encoded.len();
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
            // A refused send shows in the answer.
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
