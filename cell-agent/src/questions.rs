//! Answers the questions that operators ask through the policy store.
//!
//! A question is answered in a task of its own, at most `AT_A_TIME`, so neither a slow
//! answer nor a panic delays the groups. Answers of a watch that has ended are dropped.

use std::sync::Arc;

use prost::Message as _;
use proto::policy_v1::{
    CellError, CellRequest, CellResponse, Question, WatchRequest,
    cell_request::Request,
    watch_request::{Answer, Step, answer::Result as Outcome},
};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{groups::Asked, inspect::Inspector};

/// Maximum number of questions that are answered at a time.
const AT_A_TIME: usize = 8;
/// Maximum number of questions that wait.
const WAITING: usize = 32;
/// Maximum size of an answer in bytes: a store refuses messages above 4 MiB, and ends the
/// watch.
const LARGEST: usize = 3 << 20;

/// The queue of questions.
#[must_use]
pub fn channel() -> (Sender<Asked>, Receiver<Asked>) {
    mpsc::channel(WAITING)
}

/// Answers questions until shutdown.
///
/// # Errors
/// Never; the result lets this be a task of [`runtime::supervise::Tasks`].
pub async fn answer(
    mut questions: Receiver<Asked>,
    inspector: Arc<Inspector>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = open.join_next() => {}
            // A polled policy server asks nothing.
            Some(asked) = questions.recv(), if open.len() < AT_A_TIME => {
                open.spawn(one(asked, Arc::clone(&inspector)));
            }
        }
    }
}

async fn one(asked: Asked, inspector: Arc<Inspector>) {
    let Asked { question: Question { id, request }, answers } = asked;
    let result = match find(request.unwrap_or_default(), inspector).await {
        Ok(response) => Outcome::Response(response),
        Err(status) => {
            let message = status.message().to_owned();
            Outcome::Error(CellError { code: status.code().into(), message })
        }
    };
    let answer = Answer { id, result: Some(result) };
    // The watch may have ended meanwhile.
    _ = answers.send(WatchRequest { step: Some(Step::Answer(answer)) }).await;
}

/// The response; a panic is an error.
async fn find(request: CellRequest, inspector: Arc<Inspector>) -> Result<CellResponse, Status> {
    if let Some(Request::Reconcile(_)) = &request.request {
        tracing::info!("reconcile-requested-through-policy-store");
    }
    let mut task = JoinSet::new();
    task.spawn(async move { inspector.answer(request).await });
    let ended = task.join_next().await.and_then(Result::ok);
    let failed = || Err(Status::internal("the agent failed to answer; its log says why"));
    let response = ended.unwrap_or_else(failed)?;
    match response.encoded_len() {
        ..=LARGEST => Ok(response),
        size => Err(Status::resource_exhausted(format!(
            "the answer has {size} bytes, at most {LARGEST} are sent through the store: ask on the cell"
        ))),
    }
}
