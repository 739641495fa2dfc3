//! Messages that are too large, compressed, or full of odd bytes.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use h2::client::{Builder, SendRequest};
use http::{HeaderValue, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::call;
use crate::context::Context;
use crate::dial::Protocol;
use crate::target::Door;

const WINDOW: u32 = 16 << 20;
/// Pause between two calls of one connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Largest message that the services accept.
const LARGEST: usize = 4 << 20;
/// Decompressed length.
const BOMB: usize = 64 << 20;
/// Timeout of a call.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection for gRPC calls.
struct Caller {
    send: SendRequest<Bytes>,
    address: String,
    /// Drives the connection until it is dropped.
    _task: JoinSet<()>,
}

impl Caller {
    async fn open(context: &Context) -> io::Result<Self> {
        let stream = context.open().await?;
        let mut builder = Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (send, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ends_with_its_calls = connection.await;
        });
        Ok(Self { send, address: context.target.authority(), _task: task })
    }

    fn request(&self, context: &Context) -> Request<()> {
        call::request(&self.address, &context.target.path)
    }

    /// Counts the status of a call; an error of the connection is returned.
    async fn call(
        &self,
        context: &Context,
        what: &str,
        request: Request<()>,
        bytes: Bytes,
    ) -> io::Result<()> {
        let status = call::status(self.send.clone(), request, bytes, true);
        let outcome = match timeout(PATIENCE, status).await {
            Err(_elapsed) => "accepted, waits".to_owned(),
            Ok(Ok(status)) => format!("grpc-status {status}"),
            Ok(Err(error)) if error.is_reset() => error.to_string(),
            Ok(Err(error)) => return Err(io::Error::other(error)),
        };
        context.got.add(format!("{what}: {outcome}"));
        Ok(())
    }
}

pub(super) async fn huge(context: Context) -> anyhow::Result<()> {
    context.again(4, move |context, _| huge_one(context)).await;
    Ok(())
}

fn gzip() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let part = vec![b' '; 1 << 20];
    for _ in 0..BOMB >> 20 {
        encoder.write_all(&part).expect("a vector takes everything");
    }
    encoder.finish().expect("a vector takes everything")
}

pub(super) async fn compressed(context: Context) -> anyhow::Result<()> {
    let bomb = Bytes::from(gzip());
    context.again(4, move |context, _| compressed_one(context, bomb.clone())).await;
    Ok(())
}

async fn compressed_body(context: &Context, bomb: &[u8]) -> io::Result<()> {
    let target = &context.target;
    let ((method, path), admitted) = (target.upload, &target.admitted);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\n{admitted}Content-Encoding: gzip\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    let request = [head.as_bytes(), bomb].concat();
    one_request(context, "gzip", &request).await
}

/// Sends a request on a new connection, and counts the status of the response.
pub(super) async fn one_request(context: &Context, what: &str, request: &[u8]) -> io::Result<()> {
    let mut stream = context.open().await?;
    let sent = stream.write_all(request).await;
    let _closed_early = stream.flush().await;
    let mut bytes = [0; 512];
    let count = match timeout(PATIENCE, stream.read(&mut bytes)).await {
        Ok(count) => count.or_else(|error| sent.and(Err(error)))?,
        Err(_elapsed) => {
            context.got.add(format!("{what}: accepted, waits"));
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&bytes[..count]);
    let status = text.get(..12).unwrap_or("closed");
    context.got.add(format!("{what}: {status}"));
    Ok(())
}

/// A field of text or bytes in protobuf.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("short contents");
    assert!(length < 128, "a length of one byte");
    [&[number << 3 | 2, length], content].concat()
}

/// A message of the door's method with these bytes in its texts.
fn odd_message(door: Door, odd: &[u8]) -> Vec<u8> {
    match door {
        Door::LockServer => {
            let texts = [field(1, odd), field(2, odd), field(3, odd)].concat();
            // A lock for five seconds.
            [field(1, &[&texts[..], &[5 << 3, 1]].concat()), vec![2 << 3, 5]].concat()
        }
        Door::PolicyStore => field(1, &[field(1, odd), field(2, odd)].concat()),
        _ => field(1, odd),
    }
}

/// Each byte alone, and within a word; each of four connections begins with other bytes.
fn odd_texts(number: u32) -> impl Iterator<Item = Vec<u8>> {
    let texts = |byte: u8| [vec![byte], vec![b'a', byte, b'z'], vec![byte; 30]];
    (0..=255).cycle().skip(64 * number as usize).flat_map(texts)
}

pub(super) async fn every_byte(context: Context) -> anyhow::Result<()> {
    context.again(4, every_byte_one).await;
    Ok(())
}

async fn odd_requests(context: &Context, number: u32) -> io::Result<()> {
    let path = &context.target.path;
    for odd in odd_texts(number) {
        let head =
            [b"GET ", path.as_bytes(), &odd, b" HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n"];
        one_request(context, "path", &head.concat()).await?;
        let head = [
            b"GET ",
            path.as_bytes(),
            b" HTTP/1.1\r\nConnection: close\r\nHost: a\r\nX-Odd: ",
            &odd,
            b"\r\n\r\n",
        ];
        one_request(context, "header", &head.concat()).await?;
        sleep(PAUSE / 5).await;
    }
    Ok(())
}

async fn huge_one(context: Context) -> io::Result<()> {
    let caller = Caller::open(&context).await?;
    let at_limit = call::unfinished(u32::try_from(LARGEST).expect("4 MiB"), LARGEST);
    let above = call::unfinished(u32::try_from(LARGEST + 1).expect("4 MiB"), LARGEST + 1);
    let announced = call::unfinished(u32::MAX, 1 << 20);
    loop {
        for (what, bytes) in [("at", &at_limit), ("above", &above), ("4 GiB", &announced)] {
            caller.call(&context, what, caller.request(&context), bytes.clone()).await?;
            sleep(PAUSE * 4).await;
        }
    }
}

async fn compressed_one(context: Context, bomb: Bytes) -> io::Result<()> {
    if !context.target.door.is_grpc() {
        return compressed_body(&context, &bomb).await;
    }
    let caller = Caller::open(&context).await?;
    let mut message = call::framed(&bomb).to_vec();
    message[0] = 1;
    loop {
        let mut request = caller.request(&context);
        request.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
        caller.call(&context, "gzip", request, message.clone().into()).await?;
        sleep(PAUSE).await;
    }
}

async fn every_byte_one(context: Context, number: u32) -> io::Result<()> {
    if context.protocol == Protocol::Http1 {
        return odd_requests(&context, number).await;
    }
    let caller = Caller::open(&context).await?;
    for odd in odd_texts(number) {
        let message = call::framed(&odd_message(context.target.door, &odd));
        caller.call(&context, "bytes", caller.request(&context), message).await?;
        sleep(PAUSE / 10).await;
    }
    Ok(())
}
