//! Bounds the memory of request bodies that have not arrived completely.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::Limited;
use tokio::sync::Semaphore;

use super::MAX_BODY;

/// A permit is for one KiB.
const PERMIT: usize = 1 << 10;

/// Maximum size of a body whose length the client does not announce.
const UNANNOUNCED: usize = 1 << 20;

/// Time for a request with a body, as nginx allows in front of the Cloud Controller.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Permits for all bodies of a listener: one of [`MAX_BODY`], or many smaller ones.
pub(crate) fn budget() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_BODY / PERMIT))
}

/// Begins to read a body when the budget has room for its announced length; refuses it after
/// [`TIMEOUT`].
pub(crate) async fn bound(
    State(budget): State<Arc<Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let announced = request.body().size_hint().upper();
    let limit = announced.map_or(UNANNOUNCED, |bytes| usize::try_from(bytes).unwrap_or(MAX_BODY));
    let limit = limit.min(MAX_BODY);
    let permits = u32::try_from(limit.div_ceil(PERMIT)).expect("the budget fits");
    let answered = async {
        let _room = budget.acquire_many(permits).await;
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        next.run(request).await
    };
    let answered = tokio::time::timeout(TIMEOUT, answered).await;
    answered.unwrap_or_else(|_elapsed| StatusCode::REQUEST_TIMEOUT.into_response())
}
