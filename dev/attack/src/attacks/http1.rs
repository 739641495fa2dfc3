//! Heads and bodies of HTTP/1.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::connections::closed;
use crate::context::Context;

/// Bytes of a head.
const HEAD: usize = 400 << 10;
/// Announced length of a body.
const ANNOUNCED: u64 = 1 << 30;
const PAUSE: Duration = Duration::from_millis(20);

/// Fields up to 400 KiB, without the empty line at the end.
pub(super) async fn header_bomb(context: Context) -> anyhow::Result<()> {
    context
        .many(1_000, 250, |context, _| async move {
            let mut stream = context.open().await?;
            let path = &context.target.path;
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n");
            stream.write_all(head.as_bytes()).await?;
            // Few and long: a server counts fields as well.
            let field = format!("X-Long: {}\r\n", "a".repeat(8_000));
            for _ in 0..HEAD / field.len() {
                if stream.write_all(field.as_bytes()).await.is_err() {
                    break;
                }
            }
            let _closed_early = stream.flush().await;
            closed(&context, stream).await
        })
        .await;
    Ok(())
}

/// Half of the connections announce a long body, half send chunks with long extensions.
pub(super) async fn bodies(context: Context) -> anyhow::Result<()> {
    context.again(8, body).await;
    Ok(())
}

async fn body(context: Context, number: u32) -> io::Result<()> {
    let stream = context.open().await?;
    let (from, mut to) = tokio::io::split(stream);
    let target = &context.target;
    let ((method, path), admitted) = (target.upload, &target.admitted);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{admitted}");
    let (length, part) = if number.is_multiple_of(2) {
        (format!("Content-Length: {ANNOUNCED}\r\n\r\n"), vec![b' '; 64 << 10])
    } else {
        let chunk = format!("1;{}\r\n \r\n", "e".repeat(4_000));
        ("Transfer-Encoding: chunked\r\n\r\n".to_owned(), chunk.into_bytes())
    };
    let send = async {
        to.write_all(format!("{head}{length}").as_bytes()).await?;
        loop {
            to.write_all(&part).await?;
            to.flush().await?;
            context.got.add("parts sent");
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        ended = closed(&context, from) => ended,
        ended = send => ended,
    }
}
