//! Locket: `models.Locket` on the table `locks`, docs/compatibility/locket.md.
//!
//! As in the original, the database work of a call does not stop when the client goes
//! away, and each instance expires locks by its own timers ([`expiry`]).

mod expiry;
mod rows;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::models::locket_server::{Locket, LocketServer};
use proto::models::{
    FetchAllRequest, FetchAllResponse, FetchRequest, FetchResponse, LockRequest, LockResponse,
    ReleaseRequest, ReleaseResponse, Resource, TypeCode,
};
use runtime::health::Health;
use runtime::server::{Grpc, Listener};
use runtime::tls::{Alpn, ServerTls};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::config::Config;
use crate::log::Log;
use crate::sql::Database;
use expiry::LockPick;
use rows::{Failure, Lock, Rows};

/// `db_operation_timeout`.
const OPERATION: Duration = Duration::from_secs(10);
/// A graceful stop of the original waits without limit for calls of at most [`OPERATION`].
const DRAIN: Duration = Duration::from_secs(10);

pub(crate) async fn serve(
    config: &Config,
    log: &Log,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let rows = Arc::new(Rows::new(Database::of_locket(config)?));
    rows.create_table().await.context("failed-to-create-lock-table")?;
    let files = config.files("ca_file", "cert_file", "key_file")?;
    let tls = ServerTls::load(&files, Alpn::H2).context("invalid-tls-config")?;
    let listener = Listener::tcp("grpc", &config.text("listen_address")?).await?;
    let address = listener.local_addr();
    let pick = Arc::new(LockPick::new(Arc::clone(&rows), log.clone()));
    // Its first pass is part of being ready.
    pick.register_all().await;
    let service = Service { rows, pick: Arc::clone(&pick), log: log.clone() };
    let health = Health::new();
    let server = Grpc::new(listener, Some(tls), &health).add(LocketServer::new(service));
    log.info("grpc-server.started", &json!({ "address": address }));
    log.info("started", &json!({}));
    let burglar = pick.burgle();
    tokio::select! {
        outcome = server.serve(shutdown, DRAIN) => outcome?,
        () = burglar => {}
    }
    Ok(())
}

struct Service {
    rows: Arc<Rows>,
    pick: Arc<LockPick>,
    log: Log,
}

impl Service {
    /// Work that continues when the caller disconnects.
    async fn detached<T: Send + 'static>(
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Status> {
        #[expect(
            clippy::disallowed_methods,
            reason = "as in the original, the work goes on when its caller has gone"
        )]
        let work = tokio::spawn(timeout(OPERATION, work));
        match work.await {
            Ok(Ok(outcome)) => outcome.map_err(status),
            Ok(Err(_elapsed)) => Err(Status::deadline_exceeded("context deadline exceeded")),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

fn status(failure: Failure) -> Status {
    match failure {
        Failure::Collision => Status::already_exists("lock-collision"),
        Failure::NotFound => Status::not_found("resource-not-found"),
        Failure::Database(text) => Status::unknown(text),
    }
}

#[expect(deprecated, reason = "answers have it")]
fn resource(key: String, lock: Lock) -> Resource {
    let type_code = match lock.kind.as_str() {
        "lock" => TypeCode::Lock,
        "presence" => TypeCode::Presence,
        _ => TypeCode::Unknown,
    };
    let Lock { owner, value, kind, .. } = lock;
    Resource { key, owner, value, r#type: kind, type_code: type_code.into() }
}

/// The text of a type code.
fn kind(type_code: i32) -> Result<&'static str, Status> {
    match TypeCode::try_from(type_code) {
        Ok(TypeCode::Lock) => Ok("lock"),
        Ok(TypeCode::Presence) => Ok("presence"),
        Ok(TypeCode::Unknown) | Err(_) => Err(Status::not_found("invalid-type")),
    }
}

/// The original dies of a request without resource; this is not repeated here.
fn given(resource: Option<Resource>) -> Result<Resource, Status> {
    resource.ok_or_else(|| Status::new(Code::InvalidArgument, "invalid-request"))
}

#[tonic::async_trait]
impl Locket for Service {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { resource, ttl_in_seconds } = request.into_inner();
        let resource = given(resource)?;
        let kind = kind(resource.type_code)?;
        if ttl_in_seconds <= 0 {
            return Err(Status::invalid_argument("invalid-ttl"));
        }
        if resource.owner.is_empty() {
            return Err(Status::invalid_argument("invalid-owner"));
        }
        let (rows, pick, log) = (Arc::clone(&self.rows), Arc::clone(&self.pick), self.log.clone());
        Self::detached(async move {
            let Resource { key, owner, value, .. } = resource;
            let locked = rows.lock(&key, &owner, &value, kind, ttl_in_seconds).await?;
            if locked.index == 1 {
                let data = json!({ "key": key, "owner": owner });
                log.info("lock.lock.acquired-lock", &data);
            }
            pick.register(&key, &locked);
            Ok(())
        })
        .await?;
        // The original assigns no fencing tokens.
        Ok(Response::new(LockResponse::default()))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let key = request.into_inner().key;
        let rows = Arc::clone(&self.rows);
        let asked = key.clone();
        let lock = Self::detached(async move { rows.fetch(&asked).await }).await?;
        Ok(Response::new(FetchResponse { resource: Some(resource(key, lock)) }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let resource = given(request.into_inner().resource)?;
        let (rows, log) = (Arc::clone(&self.rows), self.log.clone());
        Self::detached(async move {
            rows.release(&resource.key, &resource.owner).await?;
            let data = json!({ "key": resource.key, "owner": resource.owner });
            log.info("release.release-lock.released-lock", &data);
            Ok(())
        })
        .await?;
        // The timer of the released generation stays, and then finds no row or another one.
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn fetch_all(
        &self,
        request: Request<FetchAllRequest>,
    ) -> Result<Response<FetchAllResponse>, Status> {
        let kind = kind(request.into_inner().type_code)?;
        let rows = Arc::clone(&self.rows);
        let found = Self::detached(async move { rows.of_kind(kind).await }).await?;
        let resources = found.into_iter().map(|(key, lock)| resource(key, lock)).collect();
        Ok(Response::new(FetchAllResponse { resources }))
    }
}
