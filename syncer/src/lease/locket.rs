//! Calls to the lock server: ours or a genuine Locket.

use std::{fmt, time::Duration};

use model::lock::{Claim, FencingToken, LockKey};
use proto::{
    lock_v1::{
        self, lock_watch_client::LockWatchClient, watch_request::Selector, watch_response::Kind,
    },
    models::{self, locket_client::LocketClient},
};
use runtime::client;
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

/// As Go prints the resource into the log: `data.lock`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LoggedLock {
    key: String,
    owner: String,
    r#type: &'static str,
    type_code: i32,
}

impl From<&Claim> for LoggedLock {
    fn from(claim: &Claim) -> Self {
        Self {
            key: claim.key.as_str().to_owned(),
            owner: claim.owner.as_str().to_owned(),
            r#type: claim.kind.as_str(),
            type_code: claim.kind.type_code(),
        }
    }
}

#[expect(deprecated, reason = "the genuine clients send `type` beside `type_code`")]
fn resource(claim: &Claim) -> models::Resource {
    models::Resource {
        key: claim.key.as_str().to_owned(),
        owner: claim.owner.as_str().to_owned(),
        value: claim.value.as_str().to_owned(),
        r#type: claim.kind.as_str().to_owned(),
        type_code: claim.kind.type_code(),
    }
}

/// A call that failed, with its `uuid` for the log.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What the server, or the way there, said.
    pub status: Status,
    /// The call's `uuid` metadata.
    pub request_uuid: Uuid,
}

impl Failure {
    /// Somebody else holds the lock.
    #[must_use]
    pub fn is_collision(&self) -> bool {
        self.status.code() == Code::AlreadyExists
    }
}

/// As Go's gRPC prints a status.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        client::describe(&self.status).fmt(f)
    }
}

/// Why a watch for the lock ended.
#[derive(Debug)]
pub enum Watched {
    /// Nobody holds it: it is worth asking at once.
    Free,
    /// The server has no such service: a genuine Locket.
    Unsupported,
    /// The watch broke.
    Failed(Status),
}

/// The lock server's client. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Locket {
    locks: LocketClient<Channel>,
    events: LockWatchClient<Channel>,
}

impl Locket {
    /// Over a channel that connects by itself.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { locks: LocketClient::new(channel.clone()), events: LockWatchClient::new(channel) }
    }

    /// Takes the lock, or renews it. The token is 0 from a server without.
    ///
    /// # Errors
    /// Held by somebody else, refused, unreachable, or not answered in time.
    pub async fn lock(
        &mut self,
        claim: &Claim,
        patience: Duration,
    ) -> Result<FencingToken, Failure> {
        let message = models::LockRequest {
            resource: Some(resource(claim)),
            ttl_in_seconds: claim.ttl.seconds(),
        };
        let (request, request_uuid) = tagged(message);
        within(patience, self.locks.lock(request))
            .await
            .map(|answer| FencingToken(answer.fencing_token))
            .map_err(|status| Failure { status, request_uuid })
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// Held by somebody else, unreachable, or not answered in time.
    pub async fn release(&mut self, claim: &Claim, patience: Duration) -> Result<(), Failure> {
        let message = models::ReleaseRequest { resource: Some(resource(claim)) };
        let (request, request_uuid) = tagged(message);
        within(patience, self.locks.release(request))
            .await
            .map(drop)
            .map_err(|status| Failure { status, request_uuid })
    }

    /// Who holds the lock.
    ///
    /// # Errors
    /// Nobody does, unreachable, or not answered in time.
    pub async fn owner(&mut self, claim: &Claim, patience: Duration) -> Result<String, Failure> {
        let message = models::FetchRequest { key: claim.key.as_str().to_owned() };
        let (request, request_uuid) = tagged(message);
        within(patience, self.locks.fetch(request))
            .await
            .map(|answer| answer.resource.unwrap_or_default().owner)
            .map_err(|status| Failure { status, request_uuid })
    }

    /// Waits until nobody holds the lock.
    pub async fn until_free(mut self, key: LockKey) -> Watched {
        match self.watch(&key).await {
            Ok(()) => Watched::Free,
            Err(status) if status.code() == Code::Unimplemented => Watched::Unsupported,
            Err(status) => Watched::Failed(status),
        }
    }

    async fn watch(&mut self, key: &LockKey) -> Result<(), Status> {
        let selector = Some(Selector::Key(key.as_str().to_owned()));
        let request = lock_v1::WatchRequest { selector };
        let mut events = self.events.watch(request).await?.into_inner();
        let mut held = false;
        while let Some(event) = events.message().await? {
            match event.kind() {
                Kind::Existing | Kind::Acquired | Kind::Updated => held = true,
                Kind::Synced if !held => return Ok(()),
                Kind::Released | Kind::Expired => return Ok(()),
                Kind::Synced | Kind::Unspecified => {}
            }
        }
        Err(Status::unavailable("the watch ended"))
    }
}

/// With the metadata by which the lock server's log names the call.
fn tagged<T>(message: T) -> (Request<T>, Uuid) {
    let uuid = Uuid::new_v4();
    let mut request = Request::new(message);
    let value = uuid.to_string().parse().expect("a uuid is ASCII");
    request.metadata_mut().insert("uuid", value);
    (request, uuid)
}

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}
