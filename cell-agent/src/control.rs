//! The HTTP endpoints for the CNI plugin
//! (docs/compatibility/vxlan-policy-agent.md#endpoints, #cni-chains): plain HTTP on
//! loopback, any method, no authentication.
//!
//! "updated container H" is a promise: the container's rules are in the kernel. So the
//! metadata store is read again, the policy store must have sent the groups of the
//! container's space, and the transaction must be committed. While the policy store is
//! down, its last good response counts, if there is one. A polled policy server is
//! asked immediately.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
    routing::any,
};
use model::{
    generation::Generation,
    ids::{ContainerHandle, SpaceGuid},
};
use runtime::error::chain;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::codegen::http::{StatusCode, header::X_CONTENT_TYPE_OPTIONS};

use crate::{
    containers::Feed,
    groups::Refresh,
    plan::{Assignment, Known},
    reconcile::{Enforced, Trigger},
};

/// State of the endpoints.
#[derive(Debug, Clone)]
pub struct Control {
    /// `None` when enforcement is disabled; the endpoints say so.
    pub cell: Option<Cell>,
    /// The agent that enforces container-to-container policies on this cell, if any.
    pub policies: Option<PolicyAgent>,
}

/// The original's agent beside this one, for container-to-container policies; its own
/// security groups are switched off.
#[derive(Debug, Clone)]
pub struct PolicyAgent {
    url: String,
    http: reqwest::Client,
}

impl PolicyAgent {
    /// The agent at this address.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(address: &str, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().no_proxy().timeout(timeout).build()?;
        Ok(Self { url: format!("http://{address}/force-policy-poll-cycle"), http })
    }

    /// Sends the same request to that agent.
    async fn force(&self) -> Result<(StatusCode, String), reqwest::Error> {
        let answer = self.http.get(&self.url).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

/// The enforcing parts of the agent.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The containers.
    pub containers: Feed,
    /// The known groups.
    pub groups: watch::Receiver<Option<Arc<Known>>>,
    /// Triggers a request to the source of the groups.
    pub refresh: Refresh,
    /// The state in force.
    pub enforced: watch::Receiver<Arc<Enforced>>,
    /// Trigger of the reconcile loop.
    pub nudge: mpsc::Sender<Trigger>,
    /// Whether the rules are in chains beside the CNI plugin's, and have no effect
    /// without those.
    pub beside_plugin: bool,
    /// Timeout of a request.
    pub timeout: Duration,
}

/// The routes.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/force-policy-poll-cycle", any(force_policy_poll_cycle))
        .route("/force-asgs-for-container", any(force_asgs_for_container))
        .route("/force-orphaned-asgs-cleanup", any(force_orphaned_asgs_cleanup))
        .fallback(not_found)
        .with_state(control)
}

/// The response of Go's net/http for an unknown path.
pub(crate) async fn not_found() -> Response {
    let options = [(X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (StatusCode::NOT_FOUND, options, "404 page not found\n").into_response()
}

/// Container-to-container policies are not handled here, but the CNI plugin knows only
/// one agent: the request is forwarded to the agent that enforces them.
async fn force_policy_poll_cycle(State(control): State<Control>) -> Response {
    let Some(agent) = &control.policies else { return StatusCode::OK.into_response() };
    match agent.force().await {
        Ok(answer) => answer.into_response(),
        Err(error) => {
            let reason = chain(&error);
            tracing::error!(error = reason, "force-policy-poll-cycle-failed");
            failed(format!("failed to force policy poll cycle: {reason}"))
        }
    }
}

async fn force_asgs_for_container(
    State(control): State<Control>,
    RawQuery(query): RawQuery,
) -> Response {
    let (cell, handle) = match control.asked(query.as_deref()) {
        Ok(asked) => asked,
        Err(refusal) => return refusal.into_response(),
    };
    match cell.update(&handle).await {
        Ok(()) => format!("updated container {handle}").into_response(),
        Err(reason) => {
            crate::metrics::count(crate::metrics::FORCE_FAILURES);
            tracing::error!(container = handle, error = reason, "force-asgs-for-container-failed");
            failed(format!("failed to update asgs for container {handle}: {reason}"))
        }
    }
}

async fn force_orphaned_asgs_cleanup(
    State(control): State<Control>,
    RawQuery(query): RawQuery,
) -> Response {
    let (cell, handle) = match control.asked(query.as_deref()) {
        Ok(asked) => asked,
        Err(refusal) => return refusal.into_response(),
    };
    match cell.clean_up(&handle).await {
        Ok(()) => format!("cleaned up ASGs for container {handle}").into_response(),
        Err(reason) => {
            tracing::error!(
                container = handle,
                error = reason,
                "force-orphaned-asgs-cleanup-failed"
            );
            failed(format!("failed to cleanup ASGs for container {handle}: {reason}"))
        }
    }
}

/// Why a request is rejected without processing.
type Refusal = (StatusCode, &'static str);

fn failed(text: String) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

impl Control {
    /// The cell and the handle, or the refusal.
    fn asked(&self, query: Option<&str>) -> Result<(&Cell, String), Refusal> {
        let disabled = "ASG syncing has been disabled administratively";
        let cell = self.cell.as_ref().ok_or((StatusCode::METHOD_NOT_ALLOWED, disabled))?;
        let handle = container(query.unwrap_or_default());
        Ok((cell, handle.ok_or((StatusCode::BAD_REQUEST, "no container specified"))?))
    }
}

/// The first parameter `container` that can be decoded; empty counts as absent.
fn container(query: &str) -> Option<String> {
    let pairs = query.split('&').filter(|pair| !pair.contains(';'));
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut read = pairs.filter_map(|(name, value)| unescape(name).zip(unescape(value)));
    let (_, value) = read.find(|(name, _)| name == "container")?;
    (!value.is_empty()).then_some(value)
}

/// Decodes `%41` and `+` as in a query; `None` for invalid UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Cell {
    /// Waits until the container's rules are in the kernel. A container that is not in
    /// the metadata store is ignored, like in the original.
    async fn update(&self, handle: &str) -> Result<(), String> {
        let before = self.enforced.borrow().clone();
        let reading = self.containers.reload().await?.reading;
        let Ok(handle) = ContainerHandle::parse(handle) else { return Ok(()) };
        let asked = tokio::time::timeout(self.timeout, self.refresh.now()).await;
        let refreshed =
            asked.unwrap_or_else(|_| Err("the policy server does not answer".to_owned()));
        let known = self.groups.borrow().clone();
        let assignment = |enforced: &Enforced| {
            enforced.ruleset.containers.get(&handle).map(|planned| planned.assignment.clone())
        };
        let missing = |enforced: &Enforced| {
            if enforced.attempted < reading {
                return Some(Missing::Reading(reading));
            }
            // An older failure does not concern this container.
            if enforced.error.is_some() {
                return None;
            }
            if let Some(known) = &known
                && !enforced.has_seen(known)
            {
                return Some(Missing::Generation(known.generation));
            }
            match assignment(enforced) {
                Some(Assignment::Unknown(space)) if refreshed.is_ok() => {
                    Some(Missing::Space(space))
                }
                _ => None,
            }
        };
        let mut enforced = self.wait(&handle, missing).await;
        let is_old = self.beside_plugin && Arc::ptr_eq(&enforced, &before);
        if is_old || enforced.waiting.contains_key(&handle) {
            // The CNI plugin writes the metadata before it creates the chains, and
            // calls afterwards; it may also have recreated the chains of an old entry.
            self.look_again().await?;
            enforced = self.enforced.borrow().clone();
        }
        if let Some(error) = failure(&enforced, reading) {
            let unknown = || "no security groups are known yet".to_owned();
            return Err(known.map_or_else(|| refreshed.err().unwrap_or_else(unknown), |_| error));
        }
        if let Some(reason) = enforced.waiting.get(&handle) {
            return Err(reason.clone());
        }
        match assignment(&enforced) {
            None | Some(Assignment::Bound(_) | Assignment::Ungrouped(_)) => Ok(()),
            Some(Assignment::Isolated(reason)) => Err(reason),
            Some(Assignment::Unknown(space)) => Err(refreshed.err().unwrap_or_else(|| {
                format!("the policy store has not sent the security groups of space {space}")
            })),
        }
    }

    /// Waits until the kernel holds nothing of a deleted container.
    async fn clean_up(&self, handle: &str) -> Result<(), String> {
        let containers = self.containers.reload().await?;
        let Ok(handle) = ContainerHandle::parse(handle) else { return Ok(()) };
        if containers.snapshot.containers.contains_key(&handle) {
            return Err("it is still in the container metadata store".to_owned());
        }
        let reading = containers.reading;
        let missing = |enforced: &Enforced| {
            (enforced.attempted < reading).then_some(Missing::Reading(reading))
        };
        let enforced = self.wait(&handle, missing).await;
        // The plugin has deleted its chains, so chains that they referenced can go now.
        self.look_again().await?;
        failure(&enforced, reading).map_or(Ok(()), Err)
    }

    /// Waits for a kernel comparison that begins after this call.
    async fn look_again(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let pass = async {
            let gone = || "the agent is shutting down".to_owned();
            let nudge = Trigger { thoroughly: false, answer };
            self.nudge.send(nudge).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?.map(drop)
        };
        let passed = tokio::time::timeout(self.timeout, pass).await;
        passed.unwrap_or_else(|_| Err("the rules are not in the kernel yet".to_owned()))
    }

    /// The first state in which nothing is missing, or the state at the deadline. A
    /// timeout is logged and counted, since the CNI plugin waits for the response.
    async fn wait(
        &self,
        handle: &ContainerHandle,
        missing: impl Fn(&Enforced) -> Option<Missing>,
    ) -> Arc<Enforced> {
        let mut enforced = self.enforced.clone();
        let waited = enforced.wait_for(|enforced| missing(enforced).is_none());
        let _time_is_up = tokio::time::timeout(self.timeout, waited).await;
        let enforced = self.enforced.borrow().clone();
        if let Some(missing) = missing(&enforced) {
            crate::metrics::count(crate::metrics::FORCE_TIMEOUTS);
            tracing::error!(
                container = %handle,
                seconds = self.timeout.as_secs_f64(),
                missing = %missing,
                "force-asgs-for-container-timed-out"
            );
        }
        enforced
    }
}

/// The condition that a caller waits for.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("no attempt with reading {0} of the container metadata store")]
    Reading(u64),
    #[error("generation {} of the security groups is not in the kernel", .0.0)]
    Generation(Generation),
    #[error("the security groups of space {0} are not known")]
    Space(SpaceGuid),
}

fn failure(enforced: &Enforced, reading: u64) -> Option<String> {
    if enforced.reading >= reading {
        return None;
    }
    let reason = enforced.error.as_deref();
    Some(reason.unwrap_or("the rules are not in the kernel yet").to_owned())
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "control_fuzz_tests.rs"]
mod fuzz_tests;
