//! The commands of the lock server.

use std::time::Duration;

use anyhow::anyhow;
use proto::{
    lock_v1::{
        WatchRequest, WatchResponse, lock_watch_client::LockWatchClient, watch_request::Selector,
        watch_response::Kind,
    },
    models::{FetchAllRequest, Resource, TypeCode, locket_client::LocketClient},
};
use runtime::backoff::Backoff;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    connect::Connection,
    escape::escape,
    field::Field,
    natural,
    output::Output,
    refused::Refused,
    report::{self, Report},
};

/// Initial and maximum delay before reconnecting.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// A lock or presence.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lock: Resource,
    /// `None` for Locket, which has no tokens.
    pub(crate) token: Option<u64>,
}

pub(crate) const LOCKS: &[Field<Held>] = &[
    Field::text("key", |held| held.lock.key.clone()),
    Field::text("owner", |held| held.lock.owner.clone()),
    Field::integer("fencing_token", |held| held.token),
    Field::text("value", |held| held.lock.value.clone()),
];

/// An event of a lock.
#[derive(Debug)]
pub(crate) struct Event {
    kind: String,
    lock: Resource,
    token: u64,
}

pub(crate) const EVENTS: &[Field<Event>] = &[
    Field::text("kind", |event| event.kind.clone()),
    Field::text("key", |event| event.lock.key.clone()),
    Field::text("owner", |event| event.lock.owner.clone()),
    Field::integer("fencing_token", |event| Some(event.token)),
    Field::text("value", |event| event.lock.value.clone()),
];

impl From<WatchResponse> for Event {
    fn from(event: WatchResponse) -> Self {
        let kind = event.kind().as_str_name().to_lowercase();
        Self { kind, lock: event.resource.unwrap_or_default(), token: event.fencing_token }
    }
}

/// All locks or presences.
pub(crate) async fn list(connection: &Connection, presences: bool) -> anyhow::Result<Report> {
    let code = if presences { TypeCode::Presence } else { TypeCode::Lock };
    let mut locks = fetch_kind(connection, code).await?;
    locks.sort_by(|one, other| natural::compare(&one.lock.key, &other.lock.key));
    Ok(Report::list(LOCKS, locks))
}

/// All locks.
pub(crate) async fn fetch_all(connection: &Connection) -> anyhow::Result<Vec<Held>> {
    fetch_kind(connection, TypeCode::Lock).await
}

async fn fetch_kind(connection: &Connection, code: TypeCode) -> anyhow::Result<Vec<Held>> {
    let channel = connection.to_lock_server()?;
    connection.ask("list locks", fetch(channel, code)).await
}

/// Fallback for a genuine Locket, which has no watch and so no tokens.
pub(crate) async fn fetch(channel: Channel, code: TypeCode) -> Result<Vec<Held>, Status> {
    let request = WatchRequest { selector: Some(Selector::TypeCode(code.into())) };
    let mut events = match LockWatchClient::new(channel.clone()).watch(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => {
            let request = FetchAllRequest { type_code: code.into(), ..Default::default() };
            let locks = LocketClient::new(channel).fetch_all(request).await?.into_inner();
            let locks = locks.resources.into_iter();
            return Ok(locks.map(|lock| Held { lock, token: None }).collect());
        }
        Err(status) => return Err(status),
    };
    let mut locks = Vec::new();
    while let Some(event) = events.message().await? {
        match (event.kind(), event.resource) {
            (Kind::Existing, Some(lock)) => {
                locks.push(Held { lock, token: Some(event.fencing_token) });
            }
            _ => break,
        }
    }
    Ok(locks)
}

/// Prints events until the user interrupts. Reconnects after a lost connection; the
/// server then begins with the existing locks.
pub(crate) async fn watch(
    connection: &Connection,
    key: Option<String>,
    output: &Output,
) -> anyhow::Result<()> {
    let selector = key.map_or(Selector::TypeCode(TypeCode::Lock.into()), Selector::Key);
    let mut client = LockWatchClient::new(connection.to_lock_server()?);
    let request = WatchRequest { selector: Some(selector) };
    let first = client.watch(request.clone());
    let mut events = connection.ask("watch locks", first).await?.into_inner();
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    loop {
        let lost = print(&mut events, output).await?;
        report::warn(&format!("watch locks: {lost}; reconnecting"));
        backoff.reset();
        events = loop {
            tokio::time::sleep(backoff.pause()).await;
            match client.watch(request.clone()).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) if is_final(status.code()) => {
                    return Err(anyhow::Error::new(Refused::new(&status)).context("watch locks"));
                }
                Err(_) => {}
            }
        };
        report::warn("watch locks: reconnected");
    }
}

/// Prints events until the stream ends; returns the reason.
async fn print(
    events: &mut Streaming<WatchResponse>,
    output: &Output,
) -> anyhow::Result<anyhow::Error> {
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                let event = Event::from(event);
                let line = text(&event);
                report::event(EVENTS, event, output, &line)?;
            }
            Ok(None) => return Ok(anyhow!("the lock server ended the watch")),
            Err(status) => return Ok(Refused::new(&status).into()),
        }
    }
}

/// Whether a retry cannot succeed.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::InvalidArgument
            | Code::NotFound
    )
}

fn text(event: &Event) -> String {
    let Event { kind, lock, token } = event;
    match lock.key.as_str() {
        "" => kind.clone(),
        key => {
            format!("{kind:9} {} owner {} token {token}", escape(key), escape(&lock.owner))
        }
    }
}
