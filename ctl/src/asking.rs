//! Requests to the agent of any cell, which a policy store passes on.

use anyhow::bail;
use proto::policy_v1::{
    AskCellRequest, CellRequest, cell_request::Request, cell_response::Response,
};
use std::time::Duration;
use tonic::Code;

use crate::{connect::Connection, refused::code, stores::foundation};

/// Asks a cell through the instance that the cell watches.
pub(crate) async fn ask(
    connection: &Connection,
    cell: &str,
    request: Request,
    usual: Duration,
) -> anyhow::Result<Response> {
    let asked = AskCellRequest {
        cell_id: cell.to_owned(),
        request: Some(CellRequest { request: Some(request) }),
    };
    let bound = connection.timeout.unwrap_or(usual);
    let mut failed = None;
    for store in connection.stores().await? {
        let answer = async {
            let mut client = foundation(connection.open(&store).await?);
            let mut request = tonic::Request::new(asked.clone());
            request.set_timeout(bound);
            connection.ask_within(usual, "ask cell", client.ask_cell(request)).await
        };
        match answer.await {
            Ok(answer) => {
                let response = answer.into_inner().response.and_then(|answer| answer.response);
                let Some(response) = response else { bail!("the answer of {cell:?} is empty") };
                return Ok(response);
            }
            Err(error) => {
                // The cell may watch another instance.
                let elsewhere = matches!(code(&error), Some(Code::NotFound | Code::Unavailable));
                if !elsewhere {
                    return Err(error);
                }
                // "Does not watch this instance" says more than "no such cell".
                if failed.is_none() || code(&error) == Some(Code::Unavailable) {
                    failed = Some(error);
                }
            }
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("there is no policy store to ask")))
}
