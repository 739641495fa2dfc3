//! Observers of the policy stores: their state, a writer with an old token, watchers; and
//! observers of the cell agents.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use prost::Message;
use proto::cell_v1::cell_client::CellClient;
use proto::cell_v1::{EffectiveRulesRequest, StatusRequest as CellStatusRequest};
use proto::policy_v1::policy_store_client::PolicyStoreClient;
use proto::policy_v1::replace_request::{Begin, Manifest, Step as Write};
use proto::policy_v1::watch_request::{Hello, Step};
use proto::policy_v1::{
    ReplaceRequest, SecurityGroup, StatusRequest, StoredGroup, WatchRequest, WatchResponse,
};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::changes::{Groups, number_of_group, version_of_rules};
use crate::foundation::Foundation;
use crate::history::{Event, Group, Outcome, StoreState, Version};
use crate::record::Record;

const PATIENCE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(200);
/// Every so many observations, a writer with an old token tries.
const WRITES: u32 = 5;

/// A policy store, and where to note what is observed.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) tls: ClientTls,
    pub(crate) record: Record,
    pub(crate) shutdown: CancellationToken,
    /// The newest state that the watcher received.
    pub(crate) newest: Arc<std::sync::Mutex<Vec<(Group, Version)>>>,
}

impl Store {
    fn client(&self) -> anyhow::Result<PolicyStoreClient<Channel>> {
        let tls = Some(self.tls.clone());
        Ok(PolicyStoreClient::new(client::channel(&self.address, tls, Options::default())?))
    }

    /// Asks for the state again and again, and tries to write with an older token.
    pub(crate) async fn follow(self) -> anyhow::Result<()> {
        let mut client = self.client()?;
        let mut turn = 0_u32;
        while self.shutdown.run_until_cancelled(sleep(GLANCE)).await.is_some() {
            let sent = self.record.now();
            let Ok(Ok(answer)) = timeout(PATIENCE, client.status(StatusRequest {})).await else {
                continue;
            };
            let status = answer.into_inner();
            let token = status.writer.map_or(0, |writer| writer.fencing_token);
            let watermark = status.watermark.map_or(0, |watermark| watermark.seconds);
            let (store, generation) = (self.name.clone(), status.generation);
            self.record.note(Event::Store(StoreState {
                store,
                sent,
                generation,
                token,
                watermark,
            }));
            turn += 1;
            if token > 1 && turn.is_multiple_of(WRITES) {
                self.write_late(&mut client, token - 1).await;
            }
        }
        Ok(())
    }

    /// A Replace with no groups, as of a writer that has lost its lock.
    async fn write_late(&self, client: &mut PolicyStoreClient<Channel>, token: u64) {
        let begin = Begin { owner: "late".to_owned(), fencing_token: token, ..Begin::default() };
        let manifest = Manifest { entries: Vec::new(), last: true };
        let commit = proto::policy_v1::replace_request::Commit {};
        let steps = [Write::Begin(begin), Write::Manifest(manifest), Write::Commit(commit)];
        let steps = steps.map(|step| ReplaceRequest { step: Some(step) });
        let sent = self.record.now();
        let answer = timeout(PATIENCE, async {
            let mut answers = client.replace(tokio_stream::iter(steps)).await?.into_inner();
            let mut committed = false;
            while let Some(answer) = answers.message().await? {
                let step = answer.step;
                committed |=
                    matches!(step, Some(proto::policy_v1::replace_response::Step::Committed(_)));
            }
            Ok::<_, Status>(committed)
        });
        let outcome = match answer.await {
            Ok(Ok(true)) => Outcome::Confirmed,
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => Outcome::Refused,
            _ => Outcome::Unknown,
        };
        self.record.note(Event::Write { store: self.name.clone(), token, sent, outcome });
    }

    /// Watches all spaces, and notes every complete state.
    pub(crate) async fn watch(self, spaces: Vec<String>) -> anyhow::Result<()> {
        let hello = Hello {
            cell_id: format!("watcher-{}", self.name),
            space_guids: spaces,
            ..Hello::default()
        };
        let mut watcher = Watcher { groups: BTreeMap::new(), hello };
        while !self.shutdown.is_cancelled() {
            let client = self.client()?;
            let watched = watcher.watch(client, &self);
            // A watch ends when its store stops.
            let _ended = self.shutdown.run_until_cancelled(watched).await;
            sleep(GLANCE).await;
        }
        Ok(())
    }
}

struct Watcher {
    groups: BTreeMap<String, (Group, Version)>,
    hello: Hello,
}

impl Watcher {
    async fn watch(
        &mut self,
        mut client: PolicyStoreClient<Channel>,
        store: &Store,
    ) -> Result<(), Status> {
        // The sender stays until the watch ends: the request stream must not end.
        let (sender, requests) = mpsc::channel(1);
        let hello = WatchRequest { step: Some(Step::Hello(self.hello.clone())) };
        let _sent = sender.send(hello).await;
        let mut answers = client.watch(ReceiverStream::new(requests)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if self.apply(&answer) {
                let watcher = store.name.clone();
                let mut versions: Vec<_> = self.groups.values().copied().collect();
                versions.sort_unstable();
                let generation = answer.generation;
                *store.newest.lock().unwrap_or_else(PoisonError::into_inner) = versions.clone();
                store.record.note(Event::Content { watcher, generation, versions });
            }
        }
        drop(sender);
        Ok(())
    }

    /// Returns whether the state is complete.
    fn apply(&mut self, answer: &WatchResponse) -> bool {
        if answer.question.is_some() {
            return false;
        }
        if answer.reset {
            self.groups.clear();
        }
        for guid in &answer.removed {
            self.groups.remove(guid);
        }
        let decoded = |stored: &StoredGroup| SecurityGroup::decode(stored.group.as_ref()).ok();
        for SecurityGroup { guid, name, rules, .. } in answer.upserted.iter().filter_map(decoded) {
            let ports = rules.first().map(|rule| rule.ports.as_str()).unwrap_or_default();
            if let Some(version) = number_of_group(&name).zip(version_of_rules(ports)) {
                self.groups.insert(guid, version);
            }
        }
        if answer.complete {
            self.hello.generation = answer.generation;
            self.hello.stamp = answer.stamp;
        }
        answer.complete
    }
}

/// Asks a cell's agent for its state again and again.
pub(crate) async fn follow_cell(
    foundation: Arc<Mutex<Foundation>>,
    cell: u8,
    record: Record,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let socket = foundation.lock().await.site.socket(cell);
    let mut client = CellClient::new(client::unix(&socket));
    while shutdown.run_until_cancelled(sleep(GLANCE)).await.is_some() {
        let sent = record.now();
        let answer = timeout(PATIENCE, client.status(CellStatusRequest {})).await;
        let Ok(Ok(answer)) = answer else { continue };
        let status = answer.into_inner();
        // 0: the agent has just started.
        if status.enforced_generation == 0 {
            continue;
        }
        let at = record.now();
        let handle = foundation.lock().await.any_handle(cell);
        let mut isolated = Vec::new();
        if let Some(handle) = handle {
            let rules = client.effective_rules(EffectiveRulesRequest { handle });
            if let Ok(Ok(rules)) = timeout(PATIENCE, rules).await {
                let rules = rules.into_inner().isolated;
                let names = rules.into_iter().filter_map(|rule| Some(rule.source?.group_name));
                isolated.extend(names);
            }
        }
        isolated.sort_unstable();
        isolated.dedup();
        let generation = status.enforced_generation;
        record
            .note_at(at, Event::Cell { cell: format!("cell-{cell}"), sent, generation, isolated });
    }
    Ok(())
}

/// Whether every store has the newest groups, and every cell the newest generation of them.
pub(crate) async fn all_equal(
    stores: &[Store],
    sockets: &[std::path::PathBuf],
    groups: &Groups,
) -> bool {
    let wanted = groups.newest().await;
    for store in stores {
        if *store.newest.lock().unwrap_or_else(PoisonError::into_inner) != wanted {
            return false;
        }
        let Ok(mut client) = store.client() else { return false };
        let Ok(Ok(answer)) = timeout(PATIENCE, client.status(StatusRequest {})).await else {
            return false;
        };
        let status = answer.into_inner();
        for socket in sockets {
            let mut client = CellClient::new(client::unix(socket));
            let answer = timeout(PATIENCE, client.status(CellStatusRequest {})).await;
            let Ok(Ok(answer)) = answer else { return false };
            if answer.into_inner().enforced_generation != status.generation {
                return false;
            }
        }
    }
    true
}
