//! Handshakes that must be refused.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ClientConfig;

use crate::context::Context;
use crate::dial::{Address, Protocol};

/// Pause between two handshakes of a connection.
const PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);
/// Content type of a TLS record.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// The last one is accepted: the others are refused for their version alone.
const VERSIONS: [(&str, [u8; 2]); 4] =
    [("SSL 3.0", [3, 0]), ("TLS 1.0", [3, 1]), ("TLS 1.1", [3, 2]), GOOD];
const GOOD: (&str, [u8; 2]) = ("TLS 1.2", [3, 3]);

/// A ClientHello of this version, with suites that servers of its time had.
pub(super) fn hello(version: [u8; 2]) -> Vec<u8> {
    // ECDHE-RSA with AES256-GCM-SHA384 and AES128-GCM-SHA256, as the services have them, and
    // ECDHE-RSA-AES256-SHA, RSA-AES128-SHA and RSA-3DES of old clients.
    let suites = [0xc0, 0x30, 0xc0, 0x2f, 0xc0, 0x14, 0, 0x2f, 0, 0x0a];
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 10]);
    body.extend(suites);
    body.extend([1, 0]);
    // Supported groups: secp256r1; point formats: uncompressed; signatures: RSA with PSS or
    // PKCS #1 and SHA-256; extended master secret; ALPN: h2.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 6, 0, 4, 8, 4, 4, 1],
        &[0, 23, 0, 0],
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
    ]
    .concat();
    body.extend([0, u8::try_from(extensions.len()).expect("few extensions")]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).expect("a short hello");
    let message = [&[1, 0, 0, length], &body[..]].concat();
    let length = u8::try_from(message.len()).expect("a short hello");
    [&[HANDSHAKE, 3, 1, 0, length], &message[..]].concat()
}

pub(super) async fn old_versions(context: Context) -> anyhow::Result<()> {
    context.again(4, move |context, _| old_versions_one(context)).await;
    Ok(())
}

/// Whether the server serves a connection with this configuration; `Err` says how it refuses.
async fn is_served(context: &Context, tls: Arc<ClientConfig>) -> io::Result<()> {
    let tried = async {
        let mut stream = context.target.dial.secure(tls).await?;
        if context.protocol == Protocol::Http1 {
            let path = &context.target.path;
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
        }
        // An HTTP/2 server speaks first.
        stream.read_u8().await
    };
    timeout(PATIENCE, tried).await??;
    Ok(())
}

pub(super) async fn certificates(context: Context) -> anyhow::Result<()> {
    context.again(2, move |context, _| certificates_one(context)).await;
    Ok(())
}

fn text(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(": ").map_or(text.clone(), |(_, last)| last.to_owned())
}

pub(super) async fn protocols(context: Context) -> anyhow::Result<()> {
    context.again(2, move |context, _| protocols_one(context)).await;
    Ok(())
}

/// `openssl s_client` begins a new handshake at the line `R`.
pub(super) async fn renegotiation(context: Context) -> anyhow::Result<()> {
    let Address::Tcp(address) = context.target.dial.address else { return Ok(()) };
    while !context.is_over() {
        // A client that is refused may wait for ever.
        let mut command = Command::new("timeout");
        command.args([
            "2",
            "openssl",
            "s_client",
            "-tls1_2",
            "-connect",
            &address.to_string(),
            "-CAfile",
        ]);
        let files = &context.target.files;
        command.arg(&files.ca).arg("-cert").arg(&files.cert).arg("-key").arg(&files.key);
        if context.protocol == Protocol::Http2 {
            command.args(["-alpn", "h2"]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().context("running openssl")?;
        let mut stdin = child.stdin.take().context("openssl has an input")?;
        // The first handshake must be over before the line arrives.
        sleep(PAUSE * 6).await;
        let _ended_early = stdin.write_all(b"R\n").await;
        sleep(PAUSE * 6).await;
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output()).await;
        let output = output.context("openssl does not end")?.context("running openssl")?;
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        if !all.contains("RENEGOTIATING") {
            context.breach(format!("no renegotiation was tried: {}", last_line(&all)));
        } else if all.contains("no renegotiation") || all.contains("unexpected message") {
            context.got.add("refused");
        } else if renegotiated(&all) {
            context.breach("the server renegotiates".to_owned());
        } else {
            context.got.add("no second handshake");
        }
    }
    Ok(())
}

/// After a second handshake, openssl verifies the chain again.
fn renegotiated(output: &str) -> bool {
    let after = output.split_once("RENEGOTIATING").map_or("", |(_, after)| after);
    after.contains("verify return")
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

async fn old_versions_one(context: Context) -> io::Result<()> {
    for (name, version) in VERSIONS.into_iter().cycle() {
        let mut stream = context.target.dial.plain().await?;
        stream.write_all(&hello(version)).await?;
        let mut record = [0; 7];
        let read = timeout(PATIENCE, stream.read_exact(&mut record)).await?;
        match (read, record) {
            (Ok(_), [HANDSHAKE, ..]) if version == GOOD.1 => context.got.add(name),
            (Ok(_), [ALERT, _, _, _, _, _, alert]) if version != GOOD.1 => {
                context.got.add(format!("{name}: alert {alert}"));
            }
            (Ok(_), [HANDSHAKE, ..]) => context.breach(format!("{name} is accepted")),
            (Ok(_), _) => context.breach(format!("{name} is refused")),
            (Err(_), _) => context.got.add(format!("{name}: closed")),
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn certificates_one(context: Context) -> io::Result<()> {
    let own = context.target.dial.tls(context.protocol).cloned();
    let Some(own) = own else { return Ok(()) };
    for (name, wrong) in context.target.wrong.iter().cycle() {
        let mut tls = wrong.as_ref().clone();
        tls.alpn_protocols.clone_from(&own.alpn_protocols);
        match is_served(&context, Arc::new(tls)).await {
            Ok(()) => context.breach(format!("the certificate {name} is accepted")),
            Err(error) => context.got.add(format!("{name}: {}", text(&error))),
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn protocols_one(context: Context) -> io::Result<()> {
    let offers: [(&str, Vec<Vec<u8>>); 4] = [
        ("none", Vec::new()),
        ("http/1.1", vec![b"http/1.1".to_vec()]),
        ("h3", vec![b"h3".to_vec()]),
        ("255 bytes", vec![vec![b'x'; 255]]),
    ];
    let Some(own) = context.target.dial.tls(context.protocol).cloned() else { return Ok(()) };
    for (name, offer) in offers.iter().cycle() {
        let mut tls = own.as_ref().clone();
        tls.alpn_protocols.clone_from(offer);
        match is_served(&context, Arc::new(tls)).await {
            Ok(()) if context.target.door.is_grpc() => {
                context.breach(format!("ALPN {name} is accepted"));
            }
            Ok(()) => context.got.add(format!("{name}: HTTP/1")),
            Err(error) => context.got.add(format!("{name}: {}", text(&error))),
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_has_the_lengths_of_its_parts() {
        let hello = hello([3, 1]);
        assert_eq!(usize::from(hello[4]), hello.len() - 5);
        assert_eq!(usize::from(hello[8]), hello.len() - 9);
        assert_eq!(hello[9..11], [3, 1]);
    }

    #[test]
    fn a_second_handshake_is_seen_in_the_output() {
        assert!(renegotiated("verify return:1\nRENEGOTIATING\nverify return:1"));
        assert!(!renegotiated("verify return:1\nRENEGOTIATING\nerror"));
    }
}
