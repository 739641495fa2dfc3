//! Replaces the groups by manifest, like a syncer.

use std::collections::HashSet;

use anyhow::{Context, bail};
use jiff::Timestamp;
use model::generation::Watermark;
use proto::policy_v1::policy_store_client::PolicyStoreClient;
use proto::policy_v1::replace_request::{Begin, Commit, Groups, Manifest, ManifestEntry, Step};
use proto::policy_v1::replace_response::{Committed, Step as Answer};
use proto::policy_v1::{ReplaceRequest, ReplaceResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::data::Data;
use crate::locket::failure;

/// Manifest entries in one message.
const ENTRIES: usize = 2_000;
/// Approximate bytes of groups in one message.
const PART: usize = 1 << 20;

/// Identity of the writer.
#[derive(Debug, Clone, clap::Args)]
pub struct Identity {
    /// Lock owner sent to the store
    #[arg(long, default_value = "load")]
    owner: String,
    /// Fencing token sent to the store, which refuses one older than the newest it has seen
    #[arg(long, default_value_t = 0)]
    token: u64,
}

impl Default for Identity {
    fn default() -> Self {
        Self { owner: "load".to_owned(), token: 0 }
    }
}

/// The only writer of a policy store.
#[derive(Debug)]
pub struct Writer {
    client: PolicyStoreClient<Channel>,
    identity: Identity,
}

/// A confirmed Replace.
#[derive(Debug)]
pub struct Replaced {
    /// Its generation.
    pub generation: u64,
    pub(super) began: Instant,
    pub(crate) confirmed: Instant,
}

type Requests = mpsc::Sender<ReplaceRequest>;

impl Writer {
    /// Writes over this channel.
    pub fn new(channel: Channel, identity: Identity) -> Self {
        Self { client: PolicyStoreClient::new(channel), identity }
    }

    /// Replaces the store's groups by this data. Sends and receives concurrently: the
    /// store may read the whole manifest before it responds.
    pub async fn replace(&mut self, data: &Data) -> anyhow::Result<Replaced> {
        let began = Instant::now();
        let (requests, stream) = mpsc::channel(1);
        let begin = self.begin()?;
        let open = async {
            let opened = self.client.replace(ReceiverStream::new(stream)).await;
            let mut answers = opened.map_err(|status| failure(&status))?.into_inner();
            let missing = missing(&mut answers).await?;
            Ok::<_, anyhow::Error>((answers, missing))
        };
        let (opened, ()) = tokio::join!(open, send_manifest(&requests, begin, data));
        let (mut answers, missing) = opened.context("Replace")?;
        let sent = send_groups(requests, data, &missing);
        let (committed, ()) = tokio::join!(committed(&mut answers), sent);
        let generation = committed.context("Replace")?.generation;
        Ok(Replaced { generation, began, confirmed: Instant::now() })
    }

    fn begin(&self) -> anyhow::Result<Begin> {
        let now = Timestamp::now();
        let watermark = Watermark::try_new(now.as_second(), now.subsec_nanosecond().into())
            .context("the time of day is no watermark")?;
        Ok(Begin {
            owner: self.identity.owner.clone(),
            fencing_token: self.identity.token,
            watermark: Some(proto::timestamp(watermark)),
            allow_mass_removal: true,
            ..Begin::default()
        })
    }
}

/// A failed send means that the call has ended: its response has the reason.
async fn send(requests: &Requests, step: Step) {
    let _refused = requests.send(ReplaceRequest { step: Some(step) }).await;
}

async fn send_manifest(requests: &Requests, begin: Begin, data: &Data) {
    send(requests, Step::Begin(begin)).await;
    let entries: Vec<ManifestEntry> = data.manifest().map(ManifestEntry::from).collect();
    let parts = entries.chunks(ENTRIES);
    let count = parts.len();
    for (index, part) in parts.enumerate() {
        let manifest = Manifest { entries: part.to_vec(), last: index + 1 == count };
        send(requests, Step::Manifest(manifest)).await;
    }
}

async fn send_groups(requests: Requests, data: &Data, missing: &HashSet<String>) {
    let (mut part, mut size) = (Vec::new(), 0);
    for group in data.find(missing) {
        let group = proto::encode_group(group.clone());
        size += group.len();
        part.push(group);
        if size >= PART {
            size = 0;
            let groups = std::mem::take(&mut part);
            send(&requests, Step::Groups(Groups { groups })).await;
        }
    }
    if !part.is_empty() {
        send(&requests, Step::Groups(Groups { groups: part })).await;
    }
    send(&requests, Step::Commit(Commit {})).await;
}

async fn next(answers: &mut Streaming<ReplaceResponse>) -> anyhow::Result<Answer> {
    let answer = answers.message().await.map_err(|status| failure(&status))?;
    answer.and_then(|answer| answer.step).context("the store ended the stream early")
}

async fn missing(answers: &mut Streaming<ReplaceResponse>) -> anyhow::Result<HashSet<String>> {
    let mut guids = HashSet::new();
    loop {
        match next(answers).await? {
            Answer::Missing(part) => {
                guids.extend(part.guids);
                if part.last {
                    return Ok(guids);
                }
            }
            Answer::Committed(_) => bail!("the store confirmed before the commit"),
        }
    }
}

async fn committed(answers: &mut Streaming<ReplaceResponse>) -> anyhow::Result<Committed> {
    match next(answers).await? {
        Answer::Committed(committed) => Ok(committed),
        Answer::Missing(_) => bail!("the store lacks groups that it was given"),
    }
}
