//! A fake policy store that implements the contract, with groups from a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message as _;
use proto::{
    cell_v1::Container,
    policy_v1::{
        CellRequest, IsolatedRules, ListRequest, ListResponse, Question, ReplaceRequest,
        ReplaceResponse, SecurityGroup, StatusRequest, StatusResponse, StoredGroup, WatchRequest,
        WatchResponse, cell_request,
        policy_store_server::{PolicyStore, PolicyStoreServer},
        watch_request::{Hello, Inventory, Report, RuleUses, Step, answer},
    },
};
use runtime::{
    server::{Grpc, Health, Listener},
    tls::{Alpn, Files, ServerTls},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::eventually;

#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    groups: Vec<(u64, SecurityGroup)>,
    /// Sends nothing, like a store that was never filled.
    silent: bool,
}

/// What the cell told the store.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) hello: Hello,
    pub(crate) reports: usize,
    pub(crate) report: Option<Report>,
    /// The last message.
    pub(crate) inventory: Inventory,
    pub(crate) inventories: usize,
    /// The result of all messages.
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) isolated: IsolatedRules,
    pub(crate) answers: BTreeMap<u64, answer::Result>,
    pub(crate) uses: Vec<RuleUses>,
}

type Shared = Arc<Mutex<Told>>;

/// The store, running or stopped.
pub(crate) struct Store {
    state: watch::Sender<State>,
    told: Shared,
    questions: watch::Sender<Vec<Question>>,
    /// A store that knows neither Inventory nor questions.
    older: bool,
    files: Files,
    address: Option<SocketAddr>,
    up: Option<(CancellationToken, JoinSet<()>)>,
}

impl Store {
    pub(crate) async fn start(directory: &Path) -> Self {
        let (state, _) = watch::channel(State::default());
        let files = certificates(directory);
        let (questions, _) = watch::channel(Vec::new());
        let (told, older) = (Arc::default(), false);
        let mut store = Self { state, told, questions, older, files, address: None, up: None };
        store.up().await;
        store
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Replaces all groups.
    pub(crate) fn set(&self, groups: Vec<SecurityGroup>) {
        self.state.send_modify(|state| {
            state.generation += 1;
            let groups = groups.into_iter().zip(1..);
            state.groups = groups.map(|(group, id)| (id, group)).collect();
        });
    }

    /// Forgets everything, like after the loss of its database.
    pub(crate) fn forget(&self) {
        self.state.send_replace(State::default());
    }

    /// Sends nothing, like a store that was never filled.
    pub(crate) fn say_nothing(&self) {
        self.state.send_replace(State { silent: true, ..State::default() });
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.borrow().generation
    }

    pub(crate) fn last_report(&self) -> Option<Report> {
        self.told(|told| told.report.clone())
    }

    pub(crate) fn told<T>(&self, read: impl FnOnce(&Told) -> T) -> T {
        read(&self.told.lock().unwrap())
    }

    /// From the next start on, ends the watch of a cell that sends what older stores do not
    /// know.
    pub(crate) fn become_older(&mut self) {
        self.older = true;
    }

    /// Asks the cell; returns the question's id.
    pub(crate) fn ask(&self, request: cell_request::Request) -> u64 {
        let mut id = 0;
        self.questions.send_modify(|questions| {
            id = questions.len() as u64 + 1;
            let request = Some(CellRequest { request: Some(request) });
            questions.push(Question { id, request });
        });
        id
    }

    /// Whether a client watches the store.
    pub(crate) fn is_watched(&self) -> bool {
        // One receiver is the service's own.
        self.state.receiver_count() > 1
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    pub(crate) async fn up(&mut self) {
        if self.up.is_some() {
            return;
        }
        let asked = self.address.map_or("127.0.0.1:0".to_owned(), |address| address.to_string());
        // Parallel tests start programs, and during a fork the child briefly holds every
        // socket of this process.
        let mut listener = None;
        eventually("the store's port is free", async || {
            listener = Listener::tcp("the test's store", &asked).await.ok();
            listener.is_some()
        })
        .await;
        let listener = listener.unwrap();
        self.address = Some(listener.local_addr().parse().unwrap());
        let tls = ServerTls::load(&self.files, Alpn::H2).unwrap();
        let service = Service {
            state: self.state.subscribe(),
            told: Arc::clone(&self.told),
            questions: self.questions.subscribe(),
            older: self.older,
        };
        let grpc =
            Grpc::new(listener, Some(tls), &Health::new()).add(PolicyStoreServer::new(service));
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let token = shutdown.clone();
        tasks.spawn(async move { grpc.serve(token, Duration::ZERO).await.unwrap() });
        self.up = Some((shutdown, tasks));
    }

    pub(crate) async fn down(&mut self) {
        if let Some((shutdown, mut tasks)) = self.up.take() {
            shutdown.cancel();
            while tasks.join_next().await.is_some() {}
        }
    }
}

/// A self-signed CA and one certificate for both sides.
fn certificates(directory: &Path) -> Files {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let own = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "metron".to_owned()];
    let cert = CertificateParams::new(names).unwrap().signed_by(&own, &issuer).unwrap().pem();
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    Files {
        ca: write("ca.crt", ca_pem),
        cert: write("agent.crt", cert),
        key: write("agent.key", own.serialize_pem()),
    }
}

struct Service {
    state: watch::Receiver<State>,
    told: Shared,
    questions: watch::Receiver<Vec<Question>>,
    older: bool,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PolicyStore for Service {
    type ReplaceStream = Answers<ReplaceResponse>;
    type WatchStream = Answers<WatchResponse>;

    async fn replace(
        &self,
        _: Request<Streaming<ReplaceRequest>>,
    ) -> Result<Response<Self::ReplaceStream>, Status> {
        Err(Status::unimplemented("not for cells"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented("not for cells"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("not for cells"))
    }

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, outgoing) = mpsc::channel(16);
        let watcher = Watcher {
            state: self.state.clone(),
            told: Arc::clone(&self.told),
            questions: self.questions.clone(),
            older: self.older,
            spaces: None,
            sequence: 0,
            answers,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(watcher.run(request.into_inner()));
        let answers = tokio_stream::StreamExt::map(ReceiverStream::new(outgoing), move |answer| {
            let _alive = &tasks;
            answer
        });
        let mut response = Response::new(Box::pin(answers) as Self::WatchStream);
        if !self.older {
            let accepted = "inventory, rule-uses".parse().unwrap();
            response.metadata_mut().insert(proto::WATCH_ACCEPTS, accepted);
        }
        Ok(response)
    }
}

struct Watcher {
    state: watch::Receiver<State>,
    told: Shared,
    questions: watch::Receiver<Vec<Question>>,
    older: bool,
    /// Nothing is sent before the cell has sent its Hello.
    spaces: Option<BTreeSet<String>>,
    sequence: u64,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Watcher {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        loop {
            let tell = tokio::select! {
                biased;
                request = requests.message() => match request {
                    Ok(Some(WatchRequest { step: Some(Step::Inventory(_) | Step::Answer(_) | Step::RuleUses(_)) }))
                        if self.older =>
                    {
                        let refusal = Status::invalid_argument("step is missing");
                        _ = self.answers.send(Err(refusal)).await;
                        return;
                    }
                    Ok(Some(WatchRequest { step: Some(step) })) => self.take(step),
                    _ => return,
                },
                changed = self.state.changed(), if self.spaces.is_some() => changed.is_ok(),
                Ok(()) = self.questions.changed(), if self.spaces.is_some() => {
                    let question = self.question();
                    if self.answers.send(Ok(question)).await.is_err() {
                        return;
                    }
                    false
                }
            };
            if !tell || self.state.borrow().silent {
                continue;
            }
            let (first, last) = self.whole();
            let mut messages = vec![first, last];
            if self.questions.has_changed().unwrap_or_default() {
                messages.insert(1, self.question());
            }
            for message in messages {
                if self.answers.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn question(&mut self) -> WatchResponse {
        let question = self.questions.borrow_and_update().last().cloned();
        WatchResponse { question, ..WatchResponse::default() }
    }

    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Hello(hello) => {
                self.spaces = Some(hello.space_guids.iter().cloned().collect());
                self.told.lock().unwrap().hello = hello;
            }
            Step::Subscribe(request) => {
                self.sequence = request.sequence;
                let spaces = self.spaces.get_or_insert_default();
                spaces.extend(request.add_space_guids);
                request.drop_space_guids.iter().for_each(|space| _ = spaces.remove(space));
            }
            Step::Report(report) => {
                let mut told = self.told.lock().unwrap();
                told.report = Some(report);
                told.reports += 1;
                return false;
            }
            Step::Inventory(inventory) => {
                self.told.lock().unwrap().take(inventory);
                return false;
            }
            Step::RuleUses(uses) => {
                self.told.lock().unwrap().uses.push(uses);
                return false;
            }
            Step::Answer(answer) => {
                let mut told = self.told.lock().unwrap();
                told.answers.extend(answer.result.map(|result| (answer.id, result)));
                return false;
            }
        }
        true
    }

    /// The state in two parts.
    fn whole(&mut self) -> (WatchResponse, WatchResponse) {
        let state = self.state.borrow_and_update();
        let wanted = self.spaces.clone().unwrap_or_default();
        let stored = state.groups.iter().filter(|(_, group)| concerns(group, &wanted));
        let stored =
            stored.map(|(id, group)| StoredGroup { id: *id, group: group.encode_to_vec().into() });
        let mut upserted: Vec<_> = stored.collect();
        let rest = upserted.split_off(upserted.len() / 2);
        let first = WatchResponse {
            generation: state.generation,
            reset: true,
            upserted,
            ..WatchResponse::default()
        };
        let last = WatchResponse {
            upserted: rest,
            reset: false,
            complete: true,
            subscription_sequence: self.sequence,
            traceparent: format!("00-{:032x}-00f067aa0ba902b7-01", state.generation),
            ..first.clone()
        };
        (first, last)
    }
}

impl Told {
    fn take(&mut self, inventory: Inventory) {
        let Inventory { reset, upserted, removed_handles, isolated } = &inventory;
        if *reset {
            self.containers.clear();
        }
        removed_handles.iter().for_each(|handle| _ = self.containers.remove(handle));
        let upserted =
            upserted.iter().map(|container| (container.handle.clone(), container.clone()));
        self.containers.extend(upserted);
        self.isolated = isolated.clone().unwrap_or_else(|| std::mem::take(&mut self.isolated));
        self.inventories += 1;
        self.inventory = inventory;
    }
}

fn concerns(group: &SecurityGroup, spaces: &BTreeSet<String>) -> bool {
    let mut bound = group.running_space_guids.iter().chain(&group.staging_space_guids);
    group.running_default || group.staging_default || bound.any(|space| spaces.contains(space))
}
