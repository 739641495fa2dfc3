//! Minimal syncer and cell.

use std::collections::BTreeMap;

use model::group::ContentHash;
use policy_store::groups::decide::Replacement;
use proto::policy_v1::{
    ListRequest, ReplaceRequest, ReplaceResponse, SecurityGroup, StoredGroup, WatchRequest,
    WatchResponse,
    replace_request::{Begin, Commit, Groups, Manifest, ManifestEntry, Step},
    replace_response::{Committed, Step as Answer},
    watch_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{PATIENCE, site::Client};

/// One Replace, step by step.
pub(crate) struct Talk {
    requests: mpsc::Sender<ReplaceRequest>,
    answers: Streaming<ReplaceResponse>,
}

impl Talk {
    pub(crate) async fn open(client: &Client) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        let answers = client.clone().replace(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    /// A refused send means that the call ended; its response has the reason.
    pub(crate) async fn say(&self, step: Step) {
        let _refused = self.requests.send(ReplaceRequest { step: Some(step) }).await;
    }

    pub(crate) async fn next_answer(&mut self) -> Result<Answer, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let answer = answer.expect("the store answers")?;
        Ok(answer.expect("the stream goes on").step.expect("an answer has a step"))
    }

    /// Sends Begin and the manifest; returns the missing guids.
    pub(crate) async fn promise(&mut self, write: &Replacement) -> Result<Vec<String>, Status> {
        self.say(Step::Begin(begin(write))).await;
        self.say(Step::Manifest(Manifest { entries: entries(write), last: true })).await;
        self.missing().await
    }

    pub(crate) async fn missing(&mut self) -> Result<Vec<String>, Status> {
        let mut missing = Vec::new();
        loop {
            let Answer::Missing(part) = self.next_answer().await? else {
                panic!("expected Missing")
            };
            missing.extend(part.guids);
            if part.last {
                return Ok(missing);
            }
        }
    }

    /// Supplies the missing groups.
    pub(crate) async fn deliver(&self, write: &Replacement, missing: &[String]) {
        for part in parts(write, missing) {
            self.say(part).await;
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<Committed, Status> {
        self.say(Step::Commit(Commit {})).await;
        let Answer::Committed(committed) = self.next_answer().await? else {
            panic!("expected Committed")
        };
        let end = self.answers.message().await?;
        assert_eq!(end, None, "the stream ends after Committed");
        Ok(committed)
    }
}

/// Encoded bytes per message with groups, as a syncer sends them.
const PART: usize = 128 << 10;

/// Messages with these groups.
pub(crate) fn parts(write: &Replacement, missing: &[String]) -> Vec<Step> {
    let (mut steps, mut groups, mut size) = (Vec::new(), Vec::new(), 0);
    for text in missing {
        let content = &write.supplied.groups[&super::sets::guid(text)];
        size += content.encoded().len();
        groups.push(content.encoded().clone());
        if size >= PART {
            size = 0;
            steps.push(Step::Groups(Groups { groups: std::mem::take(&mut groups) }));
        }
    }
    steps.push(Step::Groups(Groups { groups }));
    steps
}

pub(crate) fn begin(write: &Replacement) -> Begin {
    Begin {
        owner: write.owner.as_str().to_owned(),
        fencing_token: write.token.map_or(0, |token| token.0),
        watermark: Some(proto::timestamp(write.watermark)),
        allow_mass_removal: write.allow_mass_removal,
        ..Begin::default()
    }
}

pub(crate) fn entry(guid: &str, hash: ContentHash) -> ManifestEntry {
    ManifestEntry { guid: guid.to_owned(), content_hash: hash.0.to_vec() }
}

pub(crate) fn entries(write: &Replacement) -> Vec<ManifestEntry> {
    let entries = write.supplied.manifest.entries();
    entries.map(|(guid, hash)| entry(guid.as_str(), *hash)).collect()
}

/// A complete Replace, as a syncer does it.
pub(crate) async fn replace(client: &Client, write: &Replacement) -> Result<Committed, Status> {
    let mut talk = Talk::open(client).await?;
    let missing = talk.promise(write).await?;
    talk.deliver(write, &missing).await;
    talk.commit().await
}

/// The content of a group.
pub(crate) fn decoded(stored: &StoredGroup) -> SecurityGroup {
    proto::decode_group(stored.group.clone()).unwrap()
}

/// Lists all groups, page by page.
pub(crate) async fn list(
    client: &Client,
    request: ListRequest,
) -> Result<(u64, Vec<StoredGroup>), Status> {
    let mut groups = Vec::new();
    let mut page_token = 0;
    loop {
        let request = ListRequest { page_token, ..request.clone() };
        let page = client.clone().list(request).await?.into_inner();
        groups.extend(page.groups);
        if page.next_page_token == 0 {
            return Ok((page.generation, groups));
        }
        assert!(page.next_page_token > page_token, "pages go on");
        page_token = page.next_page_token;
    }
}

pub(crate) async fn list_all(client: &Client) -> (u64, Vec<StoredGroup>) {
    list(client, ListRequest { all: true, ..ListRequest::default() }).await.unwrap()
}

/// State of a cell, derived from the responses of a watch only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mirror {
    pub(crate) groups: BTreeMap<String, StoredGroup>,
    pub(crate) generation: u64,
    pub(crate) stamp: i64,
    pub(crate) sequence: u64,
    /// Responses since the last complete state.
    parts: usize,
}

impl Mirror {
    /// Applies a response; true when the state is complete. Also checks the invariants of
    /// every response.
    pub(crate) fn apply(&mut self, answer: WatchResponse) -> bool {
        let WatchResponse {
            generation,
            reset,
            upserted,
            removed,
            complete,
            subscription_sequence,
            stamp,
            question: _,
            traceparent: _,
        } = answer;
        assert!(generation >= self.generation, "generations never go back");
        assert!(self.parts == 0 || generation == self.generation, "an update has one generation");
        assert_eq!(
            stamp.cmp(&self.stamp),
            generation.cmp(&self.generation),
            "each generation has its stamp, and both rise"
        );
        assert!(!reset || self.parts == 0, "reset comes first");
        assert!(subscription_sequence >= self.sequence, "sequences never go back");
        if reset {
            self.groups.clear();
        }
        for guid in removed {
            assert!(self.groups.remove(&guid).is_some(), "{guid} was not there to remove");
        }
        for group in upserted {
            let guid = decoded(&group).guid;
            let before = self.groups.insert(guid, group.clone());
            // Changes that were reverted in between are included, too.
            let is_next = generation <= self.generation + 1;
            assert!(!is_next || before != Some(group), "only what changed is told");
        }
        self.generation = generation;
        self.stamp = stamp;
        self.sequence = subscription_sequence;
        self.parts = if complete { 0 } else { self.parts + 1 };
        complete
    }

    /// State for the next watch: the groups of the last complete state.
    pub(crate) fn on_a_new_watch(self) -> Self {
        assert_eq!(self.parts, 0, "between two states it has nothing to come back with");
        Self { sequence: 0, ..self }
    }

    /// Its groups, ascending by id.
    pub(crate) fn sorted(&self) -> Vec<StoredGroup> {
        let mut groups: Vec<_> = self.groups.values().cloned().collect();
        groups.sort_by_key(|group| group.id);
        groups
    }
}

/// A cell that watches.
pub(crate) struct Cell {
    requests: Option<mpsc::Sender<WatchRequest>>,
    pub(crate) answers: Streaming<WatchResponse>,
    pub(crate) mirror: Mirror,
}

impl Cell {
    pub(crate) async fn hello(client: &Client, id: &str, spaces: &[&str]) -> Self {
        Self::back(client, id, spaces, Mirror::default()).await.unwrap()
    }

    /// Reconnects with its state for these spaces.
    pub(crate) async fn back(
        client: &Client,
        id: &str,
        spaces: &[&str],
        mirror: Mirror,
    ) -> Result<Self, Status> {
        let hello = watch_request::Hello {
            cell_id: id.to_owned(),
            space_guids: texts(spaces),
            generation: mirror.generation,
            stamp: mirror.stamp,
            ..Default::default()
        };
        let mut cell = Self::try_open(client, Some(watch_request::Step::Hello(hello))).await?;
        cell.mirror = mirror.on_a_new_watch();
        Ok(cell)
    }

    pub(crate) async fn open(client: &Client, first: Option<watch_request::Step>) -> Self {
        Self::try_open(client, first).await.unwrap()
    }

    /// The same; the store may refuse the watch at once.
    pub(crate) async fn try_hello(client: &Client, id: &str) -> Result<Self, Status> {
        let hello = watch_request::Hello { cell_id: id.to_owned(), ..Default::default() };
        Self::try_open(client, Some(watch_request::Step::Hello(hello))).await
    }

    async fn try_open(client: &Client, first: Option<watch_request::Step>) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        requests.send(WatchRequest { step: first }).await.expect("there is room");
        let answers = client.clone().watch(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests: Some(requests), answers, mirror: Mirror::default() })
    }

    pub(crate) async fn say(&self, step: watch_request::Step) {
        let requests = self.requests.as_ref().expect("has not said its last word");
        let _refused = requests.send(WatchRequest { step: Some(step) }).await;
    }

    pub(crate) async fn subscribe(&self, sequence: u64, add: &[&str], drop: &[&str]) {
        let subscribe = watch_request::Subscribe {
            sequence,
            add_space_guids: texts(add),
            drop_space_guids: texts(drop),
        };
        self.say(watch_request::Step::Subscribe(subscribe)).await;
    }

    pub(crate) async fn report(&self, enforced_generation: u64) {
        let report = watch_request::Report {
            enforced_generation,
            containers: 3,
            isolated_rules: 1,
            ..Default::default()
        };
        self.say(watch_request::Step::Report(report)).await;
    }

    /// Half-closes the stream and still receives.
    pub(crate) fn fall_silent(&mut self) {
        self.requests = None;
    }

    /// The next complete state; the number of responses it took.
    pub(crate) async fn whole(&mut self) -> Result<usize, Status> {
        for parts in 1.. {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
            let answer = answer.expect("the store tells")?.expect("the watch goes on");
            if self.mirror.apply(answer) {
                return Ok(parts);
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Reads complete states until this generation.
    pub(crate) async fn until(&mut self, generation: u64) {
        while self.mirror.generation < generation {
            self.whole().await.unwrap();
        }
    }

    /// Status with which the watch ends.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("it ends") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}
