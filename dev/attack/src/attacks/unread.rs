//! Clients that ask for much and read nothing.

use std::io;
use std::time::Duration;

use load::store::data::guid;
use load::store::writer::{Identity, Writer};
use prost::Message;
use proto::models::locket_client::LocketClient;
use proto::models::{LockRequest, ReleaseRequest, Resource, TypeCode};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::io::AsyncWriteExt;
use tokio::time::{interval, timeout_at};

use crate::call;
use crate::context::Context;
use crate::dial::Protocol;
use crate::frame::{self, DATA, END_HEADERS, END_STREAM, HEADERS};
use crate::target::{self, Door};

const CONNECTIONS: u32 = 20;
/// Watchers of one connection.
const WATCHERS: u32 = 100;
/// Interval between two pipelined requests of one connection: 500 requests a second in all.
const PIPELINED: Duration = Duration::from_millis(40);
/// The watched lock.
const KEY: &str = "watched";

pub(super) async fn watchers(context: Context) -> anyhow::Result<()> {
    let changes = timeout_at(context.until, change(&context));
    let (changed, ()) = tokio::join!(changes, async {
        context
            .many(CONNECTIONS, 10, |context, number| async move {
                match context.protocol {
                    Protocol::Http1 => pipeline(&context).await,
                    Protocol::Http2 => watch(&context, number).await,
                }
            })
            .await;
    });
    changed.unwrap_or(Ok(()))
}

/// Changes what is watched until the end.
async fn change(context: &Context) -> anyhow::Result<()> {
    match context.target.door {
        Door::LockServer => change_lock(context).await,
        Door::PolicyStore => change_groups(context).await,
        _ => Ok(()),
    }
}

async fn change_lock(context: &Context) -> anyhow::Result<()> {
    let tls = ClientTls::load(&context.target.files.clone().into())?;
    let channel = client::channel(&context.target.authority(), Some(tls), Options::default())?;
    let mut locks = LocketClient::new(channel);
    let resource = Resource {
        key: KEY.to_owned(),
        owner: "attacker".to_owned(),
        value: "v".repeat(1_000),
        type_code: TypeCode::Lock.into(),
        ..Resource::default()
    };
    let mut pace = interval(Duration::from_millis(20));
    loop {
        pace.tick().await;
        let resource = Some(resource.clone());
        locks.lock(LockRequest { resource: resource.clone(), ttl_in_seconds: 60 }).await?;
        locks.release(ReleaseRequest { resource }).await?;
        context.got.add("changes");
    }
}

async fn change_groups(context: &Context) -> anyhow::Result<()> {
    let Some(ends) = &context.target.ends else { return Ok(()) };
    let mut data = target::groups();
    let mut writer = Writer::new(ends.writer.channels(1)?.remove(0), Identity::default());
    let mut pace = interval(Duration::from_millis(500));
    for revision in 1.. {
        pace.tick().await;
        data.change(revision);
        writer.replace(&data).await?;
        context.got.add("changes");
    }
    Ok(())
}

/// The path and the first message of a watch.
fn subscription(door: Door, number: u32) -> (&'static str, Vec<u8>) {
    match door {
        Door::LockServer => {
            use proto::lock_v1::watch_request::Selector;
            let selector = Some(Selector::Key(KEY.to_owned()));
            let request = proto::lock_v1::WatchRequest { selector };
            ("/portcullis.lock.v1.LockWatch/Watch", request.encode_to_vec())
        }
        Door::PolicyStore => {
            use proto::policy_v1::watch_request::{Hello, Step};
            let hello = Hello {
                cell_id: format!("unread-{number}"),
                space_guids: (0..100).map(|number| guid(1, number)).collect(),
                ..Hello::default()
            };
            let request = proto::policy_v1::WatchRequest { step: Some(Step::Hello(hello)) };
            ("/portcullis.policy.v1.PolicyStore/Watch", request.encode_to_vec())
        }
        _ => ("/grpc.health.v1.Health/Watch", Vec::new()),
    }
}

/// Many watches with a window of 0, on a connection that answers pings.
async fn watch(context: &Context, number: u32) -> io::Result<()> {
    let mut stream = context.open().await?;
    let door = context.target.door;
    stream.write_all(&frame::opening(Some(0))).await?;
    for watcher in 0..WATCHERS {
        let (path, message) = subscription(door, number * WATCHERS + watcher);
        let id = 2 * watcher + 1;
        let block = frame::request(path, true);
        stream.write_all(&frame::frame(HEADERS, END_HEADERS, id, &block)).await?;
        let ends = if door == Door::PolicyStore { 0 } else { END_STREAM };
        stream.write_all(&frame::frame(DATA, ends, id, &call::framed(&message))).await?;
        context.got.add("watches begun");
    }
    stream.flush().await?;
    context.stay(stream).await
}

/// Sends requests and reads no response.
async fn pipeline(context: &Context) -> io::Result<()> {
    let mut stream = context.open().await?;
    let target = &context.target;
    let (path, admitted) = (&target.path, &target.admitted);
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{admitted}\r\n");
    let mut pace = interval(PIPELINED);
    loop {
        pace.tick().await;
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        context.got.add("requests sent");
    }
}
