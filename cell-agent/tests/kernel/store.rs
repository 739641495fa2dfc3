//! A fake policy store that implements the contract, with groups from a test.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message as _;
use proto::policy_v1::{
    ListRequest, ListResponse, ReplaceRequest, ReplaceResponse, SecurityGroup, StatusRequest,
    StatusResponse, StoredGroup, WatchRequest, WatchResponse,
    policy_store_server::{PolicyStore, PolicyStoreServer},
    watch_request::{Report, Step},
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

#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    groups: Vec<(u64, SecurityGroup)>,
    /// Sends nothing, like a store that was never filled.
    silent: bool,
}

/// The store, running or stopped.
pub(crate) struct Store {
    state: watch::Sender<State>,
    reports: Arc<Mutex<Option<Report>>>,
    files: Files,
    address: Option<SocketAddr>,
    up: Option<(CancellationToken, JoinSet<()>)>,
}

impl Store {
    pub(crate) async fn start(directory: &Path) -> Self {
        let (state, _) = watch::channel(State::default());
        let files = certificates(directory);
        let mut store = Self { state, reports: Arc::default(), files, address: None, up: None };
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
        self.reports.lock().unwrap().clone()
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
        let listener = Listener::tcp("the test's store", &asked).await.unwrap();
        self.address = Some(listener.local_addr().parse().unwrap());
        let tls = ServerTls::load(&self.files, Alpn::H2).unwrap();
        let service = Service { state: self.state.subscribe(), reports: Arc::clone(&self.reports) };
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
    reports: Arc<Mutex<Option<Report>>>,
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
            reports: Arc::clone(&self.reports),
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
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Watcher {
    state: watch::Receiver<State>,
    reports: Arc<Mutex<Option<Report>>>,
    /// Nothing is sent before the cell has sent its Hello.
    spaces: Option<BTreeSet<String>>,
    sequence: u64,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Watcher {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        loop {
            let tell = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(WatchRequest { step: Some(step) })) => self.take(step),
                    _ => return,
                },
                changed = self.state.changed(), if self.spaces.is_some() => changed.is_ok(),
            };
            if tell && !self.state.borrow().silent {
                let whole = self.whole();
                if self.answers.send(Ok(whole)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Hello(hello) => self.spaces = Some(hello.space_guids.into_iter().collect()),
            Step::Subscribe(request) => {
                self.sequence = request.sequence;
                let spaces = self.spaces.get_or_insert_default();
                spaces.extend(request.add_space_guids);
                request.drop_space_guids.iter().for_each(|space| _ = spaces.remove(space));
            }
            Step::Report(report) => {
                *self.reports.lock().unwrap() = Some(report);
                return false;
            }
            Step::Inventory(_) | Step::Answer(_) => return false,
        }
        true
    }

    fn whole(&mut self) -> WatchResponse {
        let state = self.state.borrow_and_update();
        let wanted = self.spaces.clone().unwrap_or_default();
        let stored = state.groups.iter().filter(|(_, group)| concerns(group, &wanted));
        let stored =
            stored.map(|(id, group)| StoredGroup { id: *id, group: group.encode_to_vec().into() });
        WatchResponse {
            generation: state.generation,
            reset: true,
            upserted: stored.collect(),
            complete: true,
            subscription_sequence: self.sequence,
            ..WatchResponse::default()
        }
    }
}

fn concerns(group: &SecurityGroup, spaces: &BTreeSet<String>) -> bool {
    let mut bound = group.running_space_guids.iter().chain(&group.staging_space_guids);
    group.running_default || group.staging_default || bound.any(|space| spaces.contains(space))
}
