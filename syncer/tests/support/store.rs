//! A fake policy store in memory: the Replace protocol, the mass removal guard, the fence.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use model::{
    group::{ContentHash, SecurityGroup},
    ids::GroupGuid,
    lock::Owner,
};
use proto::policy_v1::{
    self, ListRequest, ListResponse, ReplaceRequest, ReplaceResponse, StatusRequest,
    StatusResponse, WatchRequest, WatchResponse,
    policy_store_server::{PolicyStore, PolicyStoreServer},
    replace_request::{Begin, Step},
    replace_response::{Committed, Missing, Step as Answer},
    status_response::Writer,
};
use runtime::tls::ServerTls;
use syncer::store::{Settings, Store};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// A committed Replace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    pub(crate) begin: Begin,
    /// The manifest's guids, in order.
    pub(crate) guids: Vec<String>,
    /// Guids of the sent content.
    pub(crate) sent: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) groups: BTreeMap<GroupGuid, SecurityGroup>,
    pub(crate) writer: Writer,
    pub(crate) generation: u64,
    pub(crate) writes: Vec<Write>,
    pub(crate) lists: usize,
    /// Error responses of Replace before it succeeds.
    pub(crate) failures: Vec<Status>,
    /// Duration of a commit.
    pub(crate) slow: Duration,
}

impl State {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.groups.keys().map(GroupGuid::as_str).collect()
    }
}

/// The fake server; stops on drop.
pub(crate) struct PolicyStoreTwin {
    state: Arc<Mutex<State>>,
    pub(crate) address: String,
    _server: JoinSet<()>,
}

impl PolicyStoreTwin {
    pub(crate) async fn start() -> Self {
        Self::with_tls(None).await
    }

    pub(crate) async fn with_tls(tls: Option<ServerTls>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (grpc, address) = super::grpc(tls).await;
        let grpc = grpc.add(PolicyStoreServer::new(Twin(Arc::clone(&state))));
        Self { state, address, _server: super::serve(grpc) }
    }

    pub(crate) fn client(&self, owner: &str) -> Store {
        let settings = Settings {
            owner: Owner::parse(owner).unwrap(),
            allow_mass_removal: false,
            timeout: Duration::from_secs(5),
        };
        Store::new(super::channel(&self.address), settings)
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub(crate) fn writes(&self) -> Vec<Write> {
        self.with(|state| state.writes.clone())
    }
}

struct Twin(Arc<Mutex<State>>);

type Answers = mpsc::Sender<Result<ReplaceResponse, Status>>;

#[tonic::async_trait]
impl PolicyStore for Twin {
    type ReplaceStream = ReceiverStream<Result<ReplaceResponse, Status>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn replace(
        &self,
        request: Request<Streaming<ReplaceRequest>>,
    ) -> Result<Response<Self::ReplaceStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let state = Arc::clone(&self.0);
        #[expect(clippy::disallowed_methods, reason = "it ends with the stream")]
        tokio::spawn(async move {
            if let Err(status) = converse(request.into_inner(), &answers, &state).await {
                _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { all, page_size, page_token, .. } = request.into_inner();
        assert!(all);
        let mut state = self.0.lock().unwrap();
        state.lists += 1;
        let numbered = (1_u64..).zip(state.groups.values());
        let page: Vec<_> = numbered.skip_while(|(id, _)| *id <= page_token).collect();
        let (page, rest) = page.split_at(page.len().min(page_size as usize));
        let next = if rest.is_empty() { 0 } else { page.last().unwrap().0 };
        let stored = |(id, group): &(u64, &SecurityGroup)| policy_v1::StoredGroup {
            id: *id,
            group: proto::encode_group((*group).clone()),
        };
        Ok(Response::new(ListResponse {
            groups: page.iter().map(stored).collect(),
            next_page_token: next,
            generation: state.generation,
        }))
    }

    async fn watch(
        &self,
        _: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::internal("no syncer asks for this"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let state = self.0.lock().unwrap();
        let writer = Some(state.writer.clone());
        let groups = state.groups.len() as u64;
        Ok(Response::new(StatusResponse { writer, groups, ..Default::default() }))
    }
}

async fn step(requests: &mut Streaming<ReplaceRequest>) -> Result<Step, Status> {
    let request = requests.message().await?;
    request.and_then(|request| request.step).ok_or_else(|| Status::aborted("ended too early"))
}

async fn converse(
    mut requests: Streaming<ReplaceRequest>,
    answers: &Answers,
    state: &Mutex<State>,
) -> Result<(), Status> {
    let failure = state.lock().unwrap().failures.pop();
    failure.map_or(Ok(()), Err)?;
    let Step::Begin(begin) = step(&mut requests).await? else { panic!("no Begin") };
    fence(&begin, &state.lock().unwrap().writer)?;
    let mut manifest = Vec::new();
    loop {
        let Step::Manifest(part) = step(&mut requests).await? else { panic!("no Manifest") };
        manifest.extend(part.entries.into_iter().map(|entry| entry.try_into().unwrap()));
        if part.last {
            break;
        }
    }
    let missing = missing(&manifest, &state.lock().unwrap().groups);
    answer(answers, Answer::Missing(Missing { guids: missing.clone(), last: true })).await;
    let mut sent = Vec::new();
    loop {
        match step(&mut requests).await? {
            Step::Groups(part) => sent.extend(part.groups),
            Step::Commit(_) => break,
            Step::Begin(_) | Step::Manifest(_) => panic!("out of turn"),
        }
    }
    let slow = state.lock().unwrap().slow;
    tokio::time::sleep(slow).await;
    let committed = commit(&mut state.lock().unwrap(), begin, &manifest, sent)?;
    answer(answers, Answer::Committed(committed)).await;
    Ok(())
}

async fn answer(answers: &Answers, step: Answer) {
    _ = answers.send(Ok(ReplaceResponse { step: Some(step) })).await;
}

fn fence(begin: &Begin, writer: &Writer) -> Result<(), Status> {
    let same = begin.fencing_token == writer.fencing_token && begin.fencing_token != 0;
    if begin.fencing_token < writer.fencing_token {
        Err(Status::failed_precondition("the fencing token is old"))
    } else if same && begin.owner != writer.owner {
        Err(Status::failed_precondition("the fencing token is another's"))
    } else {
        Ok(())
    }
}

type Manifest = [(GroupGuid, ContentHash)];

fn missing(manifest: &Manifest, groups: &BTreeMap<GroupGuid, SecurityGroup>) -> Vec<String> {
    let lacks = |(guid, hash): &&(GroupGuid, ContentHash)| {
        groups.get(guid).is_none_or(|group| group.content_hash() != *hash)
    };
    manifest.iter().filter(lacks).map(|(guid, _)| guid.as_str().to_owned()).collect()
}

fn commit(
    state: &mut State,
    begin: Begin,
    manifest: &Manifest,
    sent: Vec<Bytes>,
) -> Result<Committed, Status> {
    fence(&begin, &state.writer)?;
    let named: BTreeMap<_, _> = manifest.iter().cloned().collect();
    assert_eq!(named.len(), manifest.len(), "a guid twice in the manifest");
    let guids = manifest.iter().map(|(guid, _)| guid.as_str().to_owned()).collect();
    let mut write = Write { begin, guids, sent: Vec::new() };
    let stored = state.groups.len();
    let gone = state.groups.keys().filter(|guid| !named.contains_key(*guid)).count();
    if stored >= 50 && gone * 2 > stored && !write.begin.allow_mass_removal {
        return Err(Status::failed_precondition("too much would be removed"));
    }
    let (mut added_guids, mut changed_guids) = (Vec::new(), Vec::new());
    for group in sent {
        let group = SecurityGroup::try_from(proto::decode_group(group).unwrap()).unwrap();
        assert_eq!(named.get(&group.guid), Some(&group.content_hash()), "not as promised");
        write.sent.push(group.guid.as_str().to_owned());
        let guid = group.guid.to_string();
        match state.groups.insert(group.guid.clone(), group) {
            Some(_) => changed_guids.push(guid),
            None => added_guids.push(guid),
        }
    }
    let is_gone = |guid: &&GroupGuid| !named.contains_key(*guid);
    let removed_guids = state.groups.keys().filter(is_gone).map(ToString::to_string).collect();
    state.groups.retain(|guid, _| named.contains_key(guid));
    assert_eq!(state.groups.len(), named.len(), "a group is missing at the commit");
    let removed = gone as u64;
    let (added, changed) = (added_guids.len() as u64, changed_guids.len() as u64);
    state.generation += u64::from(added + changed + removed > 0);
    state.writer =
        Writer { owner: write.begin.owner.clone(), fencing_token: write.begin.fencing_token };
    state.writes.push(write);
    let unchanged = named.len() as u64 - added - changed;
    Ok(Committed {
        generation: state.generation,
        added,
        changed,
        removed,
        unchanged,
        added_guids,
        changed_guids,
        removed_guids,
    })
}
