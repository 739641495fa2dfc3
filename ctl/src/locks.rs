//! What the lock server knows.

use anyhow::Context as _;
use proto::{
    lock_v1::{
        WatchRequest, WatchResponse, lock_watch_client::LockWatchClient, watch_request::Selector,
        watch_response::Kind,
    },
    models::{FetchAllRequest, Resource, TypeCode, locket_client::LocketClient},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    cli::Connection,
    connect::explained,
    report::{self, Report},
};

/// All locks or presences. A genuine Locket has no watch, so no tokens.
pub(crate) async fn list(connection: &Connection, presences: bool) -> anyhow::Result<Report> {
    let code = if presences { TypeCode::Presence } else { TypeCode::Lock };
    let channel = connection.to_lock_server()?;
    let request = WatchRequest { selector: Some(Selector::TypeCode(code.into())) };
    let mut events = match LockWatchClient::new(channel.clone()).watch(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => {
            let request = FetchAllRequest { type_code: code.into(), ..Default::default() };
            let answer = LocketClient::new(channel).fetch_all(request).await;
            let locks = answer.map_err(|status| explained("list locks", &status))?.into_inner();
            return Ok(Report::list(locks.resources.into_iter().map(|lock| row(&lock, None))));
        }
        Err(status) => return Err(explained("list locks", &status)),
    };
    let mut rows = Vec::new();
    while let Some(event) = events.message().await.map_err(|s| explained("list locks", &s))? {
        match (event.kind(), &event.resource) {
            (Kind::Existing, Some(lock)) => rows.push(row(lock, Some(event.fencing_token))),
            _ => break,
        }
    }
    Ok(Report::list(rows))
}

fn row(lock: &Resource, token: Option<u64>) -> Value {
    json!({ "key": lock.key, "owner": lock.owner, "fencing_token": token, "value": lock.value })
}

/// Prints events until the server ends the stream or the user interrupts.
pub(crate) async fn watch(
    connection: &Connection,
    key: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    let selector = key.map_or(Selector::TypeCode(TypeCode::Lock.into()), Selector::Key);
    let request = WatchRequest { selector: Some(selector) };
    let answer = LockWatchClient::new(connection.to_lock_server()?).watch(request).await;
    let mut events = answer.map_err(|status| explained("watch locks", &status))?.into_inner();
    while let Some(event) = events.message().await.map_err(|s| explained("watch locks", &s))? {
        report::line(&if json { event_json(&event).to_string() } else { event_text(&event) })?;
    }
    Err(anyhow::anyhow!("the lock server ended the watch")).context("watch locks")
}

fn event_json(event: &WatchResponse) -> Value {
    let lock = event.resource.clone().unwrap_or_default();
    let mut value = row(&lock, Some(event.fencing_token));
    value["kind"] = event.kind().as_str_name().to_lowercase().into();
    value
}

fn event_text(event: &WatchResponse) -> String {
    let kind = event.kind().as_str_name().to_lowercase();
    match &event.resource {
        None => kind,
        Some(lock) => {
            format!("{kind:9} {} owner {} token {}", lock.key, lock.owner, event.fencing_token)
        }
    }
}
