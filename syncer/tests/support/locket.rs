//! A fake lock server with one lock and injectable faults.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use model::lock::{Claim, LockKey, LockKind, LockValue, Owner, Ttl};
use proto::{
    lock_v1::{
        self,
        lock_watch_server::{LockWatch, LockWatchServer},
        watch_response::Kind,
    },
    models::{
        self,
        locket_server::{Locket, LocketServer},
    },
};
use runtime::tls::ServerTls;
use syncer::lease::{Times, keeper::Pace, locket as client};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Normal,
    /// Every call fails.
    Broken,
    /// No call is ever answered.
    Silent,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mood: Mood,
    pub(crate) owner: Option<String>,
    pub(crate) token: u64,
    /// Whether responses contain the token.
    pub(crate) tokens: bool,
    /// Whether Fetch fails.
    pub(crate) forgetful: bool,
    /// Arrival time of each granted Lock.
    pub(crate) granted: Vec<Instant>,
    /// Name of each call, with its metadata `uuid`.
    pub(crate) calls: Vec<(&'static str, String)>,
    pub(crate) requests: Vec<models::LockRequest>,
}

/// The claim of a syncer.
pub(crate) fn claim(owner: &str) -> Claim {
    Claim {
        key: LockKey::parse("policy-server-asg-syncer").unwrap(),
        owner: Owner::parse(owner).unwrap(),
        value: LockValue::parse("").unwrap(),
        kind: LockKind::Lock,
        ttl: Ttl::try_from_seconds(15).unwrap(),
    }
}

/// The fake server; stops on drop.
pub(crate) struct LockServer {
    state: Arc<Mutex<State>>,
    freed: Arc<watch::Sender<u64>>,
    pub(crate) address: String,
    _server: JoinSet<()>,
}

impl LockServer {
    /// `watchable`: with LockWatch, which the original Locket lacks.
    pub(crate) async fn start(watchable: bool) -> Self {
        Self::with_tls(watchable, None).await
    }

    pub(crate) async fn with_tls(watchable: bool, tls: Option<ServerTls>) -> Self {
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Normal,
            owner: None,
            token: 0,
            tokens: true,
            forgetful: false,
            granted: Vec::new(),
            calls: Vec::new(),
            requests: Vec::new(),
        }));
        let freed = Arc::new(watch::Sender::new(0));
        let twin = Twin { state: Arc::clone(&state), freed: Arc::clone(&freed) };
        let (grpc, address) = super::grpc(tls).await;
        let grpc = grpc.add(LocketServer::new(twin.clone()));
        let grpc = match watchable {
            true => grpc.add(LockWatchServer::new(twin)),
            false => grpc,
        };
        Self { state, freed, address, _server: super::serve(grpc) }
    }

    pub(crate) fn client(&self) -> client::Locket {
        client::Locket::new(super::channel(&self.address))
    }

    /// The claim's time to live in requests, and other times in the client.
    pub(crate) fn pace(&self, times: Times) -> Pace {
        Pace { ttl: claim("me").ttl, times, locket: self.client() }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Grants the lock to another owner.
    pub(crate) fn give_to(&self, owner: &str) {
        self.with(|state| {
            state.owner = Some(owner.to_owned());
            state.token += 1;
        });
    }

    /// Deletes the lock, whoever owns it.
    pub(crate) fn free(&self) {
        self.with(|state| state.owner = None);
        self.freed.send_modify(|times| *times += 1);
    }
}

#[derive(Clone)]
struct Twin {
    state: Arc<Mutex<State>>,
    freed: Arc<watch::Sender<u64>>,
}

impl Twin {
    async fn enter<T>(&self, call: &'static str, request: &Request<T>) -> Result<(), Status> {
        let uuid = request.metadata().get("uuid").map(|uuid| uuid.to_str().unwrap().to_owned());
        let mood = {
            let mut state = self.state.lock().unwrap();
            state.calls.push((call, uuid.unwrap_or_default()));
            state.mood
        };
        match mood {
            Mood::Normal => Ok(()),
            Mood::Broken => Err(Status::unknown("sql-deadlock")),
            Mood::Silent => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(Status::unknown("nobody waits for this"))
            }
        }
    }
}

#[tonic::async_trait]
impl Locket for Twin {
    async fn lock(
        &self,
        request: Request<models::LockRequest>,
    ) -> Result<Response<models::LockResponse>, Status> {
        let arrived = Instant::now();
        self.enter("lock", &request).await?;
        let request = request.into_inner();
        let owner = request.resource.clone().unwrap().owner;
        let mut state = self.state.lock().unwrap();
        state.requests.push(request);
        match state.owner.clone() {
            Some(held) if held != owner => return Err(Status::already_exists("lock-collision")),
            Some(_) => {}
            None => {
                state.owner = Some(owner);
                state.token += 1;
            }
        }
        state.granted.push(arrived);
        let fencing_token = if state.tokens { state.token } else { 0 };
        Ok(Response::new(models::LockResponse { fencing_token }))
    }

    async fn release(
        &self,
        request: Request<models::ReleaseRequest>,
    ) -> Result<Response<models::ReleaseResponse>, Status> {
        self.enter("release", &request).await?;
        let owner = request.into_inner().resource.unwrap().owner;
        {
            let mut state = self.state.lock().unwrap();
            match &state.owner {
                Some(held) if *held != owner => {
                    return Err(Status::already_exists("lock-collision"));
                }
                _ => state.owner = None,
            }
        }
        self.freed.send_modify(|times| *times += 1);
        Ok(Response::new(models::ReleaseResponse {}))
    }

    async fn fetch(
        &self,
        request: Request<models::FetchRequest>,
    ) -> Result<Response<models::FetchResponse>, Status> {
        self.enter("fetch", &request).await?;
        let key = request.into_inner().key;
        let state = self.state.lock().unwrap();
        if state.forgetful {
            return Err(Status::unknown("sql-deadlock"));
        }
        let owner = state.owner.clone();
        let owner = owner.ok_or_else(|| Status::not_found("resource-not-found"))?;
        let resource = models::Resource { key, owner, type_code: 1, ..Default::default() };
        Ok(Response::new(models::FetchResponse { resource: Some(resource) }))
    }

    async fn fetch_all(
        &self,
        _: Request<models::FetchAllRequest>,
    ) -> Result<Response<models::FetchAllResponse>, Status> {
        Err(Status::internal("no syncer asks for this"))
    }
}

#[tonic::async_trait]
impl LockWatch for Twin {
    type WatchStream = ReceiverStream<Result<lock_v1::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<lock_v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.enter("watch", &request).await?;
        let mut freed = self.freed.subscribe();
        let held = self.state.lock().unwrap().owner.is_some();
        let (events, stream) = mpsc::channel(4);
        let event =
            |kind: Kind| Ok(lock_v1::WatchResponse { kind: kind.into(), ..Default::default() });
        if held {
            events.send(event(Kind::Existing)).await.unwrap();
        }
        events.send(event(Kind::Synced)).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "it ends with the stream")]
        tokio::spawn(async move {
            if freed.changed().await.is_ok() {
                _ = events.send(event(Kind::Released)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
