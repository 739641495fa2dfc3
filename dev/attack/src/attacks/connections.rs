//! Connections that cost the attacker little: idle, half open, slow.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::tls::hello;
use crate::call;
use crate::context::Context;
use crate::dial::{Protocol, Stream};
use crate::frame::{self, CONTINUATION, HEADERS};

/// Interval between two bytes of a slow client.
const SLOWLY: Duration = Duration::from_secs(1);
/// Body of a slow client, below the limits of all doors.
const BODY: usize = 1_900_000;
/// HTTP/2 window for responses.
const WINDOW: u32 = 1 << 20;

pub(super) async fn idle(context: Context) -> anyhow::Result<()> {
    context.many(5_000, 250, move |context, _| idle_one(context)).await;
    Ok(())
}

pub(super) async fn half_open(context: Context) -> anyhow::Result<()> {
    context.many(1_000, 500, move |context, _| half_open_one(context)).await;
    Ok(())
}

/// Waits until the server closes; counts the status of an HTTP/1 response.
pub(super) async fn closed(
    context: &Context,
    mut stream: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let mut bytes = [0; 4_096];
    loop {
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&bytes[..count]);
        if let Some(status) = text.strip_prefix("HTTP/1.1 ").and_then(|text| text.get(..3)) {
            context.got.add(format!("HTTP {status}"));
        }
    }
}

pub(super) async fn slow_headers(context: Context) -> anyhow::Result<()> {
    context.many(500, 200, move |context, _| slow_headers_one(context)).await;
    Ok(())
}

/// Reads responses until the server closes.
async fn listen(context: &Context, mut from: tokio::io::ReadHalf<Stream>) -> io::Result<()> {
    if context.protocol == Protocol::Http2 {
        loop {
            context.receive(&mut from).await?;
        }
    }
    let mut bytes = [0; 4_096];
    let count = from.read(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes[..count]);
    context.got.add(text.lines().next().unwrap_or("closed").to_owned());
    Ok(())
}

pub(super) async fn slow_bodies(context: Context) -> anyhow::Result<()> {
    context
        .many(300, 150, |context, _| async move {
            match context.target.door.is_grpc() {
                true => slow_messages(&context).await,
                false => slow_body(&context).await,
            }
        })
        .await;
    Ok(())
}

async fn slow_body(context: &Context) -> io::Result<()> {
    let stream = context.open().await?;
    let (from, mut to) = tokio::io::split(stream);
    let target = &context.target;
    let ((method, path), admitted) = (target.upload, &target.admitted);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\n{admitted}Content-Length: {}\r\n\r\n",
        BODY + 1_000
    );
    let send = async {
        to.write_all(head.as_bytes()).await?;
        let part = vec![b' '; BODY / 100];
        for _ in 0..100 {
            to.write_all(&part).await?;
        }
        loop {
            to.flush().await?;
            sleep(SLOWLY).await;
            to.write_all(b" ").await?;
        }
    };
    tokio::select! {
        ended = send => ended,
        ended = listen(context, from) => ended,
    }
}

/// Two messages of 2 MiB on a connection, without their last bytes.
async fn slow_messages(context: &Context) -> io::Result<()> {
    let stream = context.open().await?;
    let mut builder = Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (send, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
    let address = context.target.authority();
    let one = || async {
        let request = call::request(&address, &context.target.path);
        let bytes: Bytes = call::unfinished(2 << 20, BODY);
        match call::status(send.clone(), request, bytes, false).await {
            Ok(status) => context.got.add(format!("grpc-status {status}")),
            Err(error) => context.got.add(error.to_string()),
        }
    };
    tokio::select! {
        ended = connection => ended.map_err(io::Error::other),
        _ = async { tokio::join!(one(), one()) } => Ok(()),
    }
}

async fn idle_one(context: Context) -> io::Result<()> {
    let mut stream = context.open().await?;
    if context.protocol == Protocol::Http2 {
        stream.write_all(&frame::opening(None)).await?;
        stream.flush().await?;
        return context.stay(stream).await;
    }
    closed(&context, stream).await
}

async fn half_open_one(context: Context) -> io::Result<()> {
    let mut stream = context.target.dial.plain().await?;
    context.got.add("connected");
    let hello = hello([3, 3]);
    stream.write_all(&hello[..hello.len() / 2]).await?;
    closed(&context, stream).await
}

async fn slow_headers_one(context: Context) -> io::Result<()> {
    let stream = context.open().await?;
    let (from, mut to) = tokio::io::split(stream);
    let (first, next) = match context.protocol {
        Protocol::Http1 => {
            let path = &context.target.path;
            (format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Slow: ").into_bytes(), b"a".to_vec())
        }
        Protocol::Http2 => {
            let block = frame::request(&context.target.path, context.target.door.is_grpc());
            let first = [frame::opening(None), frame::frame(HEADERS, 0, 1, &block)].concat();
            (first, frame::frame(CONTINUATION, 0, 1, &frame::literal("a", b"")))
        }
    };
    let send = async {
        to.write_all(&first).await?;
        loop {
            to.flush().await?;
            sleep(SLOWLY).await;
            to.write_all(&next).await?;
        }
    };
    tokio::select! {
        ended = send => ended,
        ended = listen(&context, from) => ended,
    }
}
