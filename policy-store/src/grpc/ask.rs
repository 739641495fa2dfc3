//! `AskCell`: passes a request to the agent of a cell, and its answer back.

use std::{sync::Arc, time::Duration};

use model::ids::CellId;
use proto::policy_v1::{
    AskCellRequest, AskCellResponse, CellError, CellRequest, CellResponse,
    cell_request::Request as Kind, watch_request,
};
use runtime::{
    server::Deadline,
    tls::{Identity, describe},
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::{
    inventory::{TEXT, cut},
    status::{Error, Unasked, invalid},
};
use crate::{
    feed::{
        cells::Cells,
        questions::{Failure, Pending},
        watch::ClientMessage,
    },
    metrics::QUESTIONS,
};

/// Time limit of a call without a deadline.
const LIMIT: Duration = Duration::from_secs(10);
/// The same of a reconcile, which changes the kernel.
const RECONCILE_LIMIT: Duration = Duration::from_secs(60);

/// The peer, and until when it waits.
pub(super) struct Asker {
    identity: Option<Arc<Identity>>,
    deadline: Option<Instant>,
}

impl Asker {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        Self {
            identity: runtime::tls::peer(request).identity,
            deadline: request.extensions().get().map(|Deadline(deadline)| *deadline),
        }
    }
}

/// Answers an `AskCell`.
pub(super) async fn ask(
    cells: &Cells,
    asker: &Asker,
    request: AskCellRequest,
) -> Result<AskCellResponse, Error> {
    let AskCellRequest { cell_id, request } = request;
    let cell = CellId::parse(&cell_id).map_err(|error| invalid("cell_id", error))?;
    let request = request.filter(|request| request.request.is_some());
    let request = request.ok_or_else(|| invalid("request", "is missing"))?;
    let is_reconcile = matches!(request.request, Some(Kind::Reconcile(_)));
    let limit = if is_reconcile { RECONCILE_LIMIT } else { LIMIT };
    let deadline = asker.deadline.unwrap_or_else(|| Instant::now() + limit);
    let answer = async {
        let pending = pass(cells, &cell, request)?;
        if is_reconcile {
            let asker = describe(asker.identity.as_deref());
            tracing::info!(%cell, asker, "reconcile-asked");
        }
        let answer = tokio::time::timeout_at(deadline, pending.answer()).await;
        let answer = answer.map_err(|_elapsed| Unasked::Late(cell.clone()))?;
        let answer = answer.map_err(|failure| failed(&cell, failure))?;
        answer.map_err(|error| Unasked::Agent(Box::new(agent_status(error))))
    };
    let answer = answer.await;
    let outcome = match &answer {
        Ok(_) => "answered",
        Err(Unasked::Agent(_)) => "failed",
        Err(Unasked::Late(_)) => "timeout",
        Err(_) => "refused",
    };
    QUESTIONS.counter_by([("outcome", outcome)]).increment(1);
    Ok(AskCellResponse { response: Some(answer?) })
}

fn pass(cells: &Cells, cell: &CellId, request: CellRequest) -> Result<Pending, Unasked> {
    let known = cells.desk(cell).ok_or_else(|| Unasked::Unknown(cell.clone()))?;
    let (desk, agent) = known.ok_or_else(|| Unasked::NotConnected(cell.clone()))?;
    if !agent.answers_questions {
        return Err(Unasked::AnswersNone { cell: cell.clone(), version: agent.version.clone() });
    }
    desk.ask(request).map_err(|failure| match failure {
        // The stream takes no more questions, though it is not gone yet.
        Failure::Ended => Unasked::NotConnected(cell.clone()),
        Failure::TooMany => failed(cell, failure),
    })
}

fn failed(cell: &CellId, failure: Failure) -> Unasked {
    match failure {
        Failure::Ended => Unasked::Ended(cell.clone()),
        Failure::TooMany => Unasked::TooMany(cell.clone()),
    }
}

/// The agent's error. An agent that fails with OK or an unknown code fails all the same.
fn agent_status(error: CellError) -> Status {
    let CellError { code, message } = error;
    let code = match Code::from(code) {
        Code::Ok => Code::Unknown,
        code => code,
    };
    Status::new(code, cut(message, TEXT))
}

/// Parses the answer of an agent.
pub(super) fn answer(answer: watch_request::Answer) -> ClientMessage {
    let watch_request::Answer { id, result } = answer;
    let answer = match result {
        Some(watch_request::answer::Result::Response(response)) => complete(response),
        Some(watch_request::answer::Result::Error(error)) => Err(error),
        None => complete(CellResponse::default()),
    };
    ClientMessage::Answer(id, Box::new(answer))
}

fn complete(response: CellResponse) -> Result<CellResponse, CellError> {
    match response.response {
        Some(_) => Ok(response),
        None => {
            let message = "the agent answered without a response".to_owned();
            Err(CellError { code: Code::Internal.into(), message })
        }
    }
}
