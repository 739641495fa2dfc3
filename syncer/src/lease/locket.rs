//! Client of the lock server: Portcullis or the original Locket.

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

/// Resource as Go formats it in the log: `data.lock`.
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

/// A failed call, with its `uuid` for the log.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Status from the server or the transport.
    pub status: Status,
    /// `uuid` metadata of the call.
    pub request_uuid: Uuid,
}

impl Failure {
    /// Whether another owner holds the lock.
    #[must_use]
    pub fn is_collision(&self) -> bool {
        self.status.code() == Code::AlreadyExists
    }
}

/// Formats a status as grpc-go does.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        client::describe(&self.status).fmt(f)
    }
}

/// Reason why a watch for the lock ended.
#[derive(Debug)]
pub enum Watched {
    /// The lock is free: claim it at once.
    Free,
    /// The server has no LockWatch service: the original Locket.
    Unsupported,
    /// The watch failed.
    Failed(Status),
}

/// Client of the lock server. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Locket {
    locks: LocketClient<Channel>,
    events: LockWatchClient<Channel>,
}

impl Locket {
    /// Uses a channel that connects lazily.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { locks: LocketClient::new(channel.clone()), events: LockWatchClient::new(channel) }
    }

    /// Acquires or renews the lock. The token is 0 from a server without fencing tokens.
    ///
    /// # Errors
    /// Held by another owner, refused, unreachable, or timed out.
    pub async fn lock(
        &mut self,
        claim: &Claim,
        patience: Duration,
    ) -> Result<FencingToken, Failure> {
        let message = models::LockRequest {
            resource: Some(resource(claim)),
            ttl_in_seconds: claim.ttl.seconds(),
        };
        let answer = call(message, patience, |request| self.locks.lock(request)).await?;
        Ok(FencingToken(answer.fencing_token))
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// Held by another owner, unreachable, or timed out.
    pub async fn release(&mut self, claim: &Claim, patience: Duration) -> Result<(), Failure> {
        let message = models::ReleaseRequest { resource: Some(resource(claim)) };
        call(message, patience, |request| self.locks.release(request)).await.map(drop)
    }

    /// The owner of the lock.
    ///
    /// # Errors
    /// The lock is free, the server is unreachable, or the call timed out.
    pub async fn owner(&mut self, claim: &Claim, patience: Duration) -> Result<String, Failure> {
        let message = models::FetchRequest { key: claim.key.as_str().to_owned() };
        let answer = call(message, patience, |request| self.locks.fetch(request)).await?;
        Ok(answer.resource.unwrap_or_default().owner)
    }

    /// Waits until the lock is free.
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

/// Sends a request with the metadata that identifies the call in the lock server's log.
async fn call<M, T, F>(
    message: M,
    patience: Duration,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let request_uuid = Uuid::new_v4();
    let mut request = Request::new(message);
    let value = request_uuid.to_string().parse().expect("a uuid is ASCII");
    request.metadata_mut().insert("uuid", value);
    let answer = tokio::time::timeout(patience, send(request)).await;
    answer
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")))
        .map(tonic::Response::into_inner)
        .map_err(|status| Failure { status, request_uuid })
}
