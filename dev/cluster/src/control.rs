//! Calls the agent's endpoints for the CNI plugin from within the cell, like the
//! plugin.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail};
use cni::namespace::Resident;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The agent's port in its cell.
pub const PORT: u16 = 8722;

/// Request timeout; the CNI plugin itself has none.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `GET /force-asgs-for-container`: returns when the container's rules are in
/// force.
pub async fn force_asgs(cell: &Resident, handle: &str) -> anyhow::Result<()> {
    expect_ok(cell, &format!("/force-asgs-for-container?container={handle}")).await
}

/// `GET /force-orphaned-asgs-cleanup`: returns when the container's rules are
/// gone.
pub async fn force_cleanup(cell: &Resident, handle: &str) -> anyhow::Result<()> {
    expect_ok(cell, &format!("/force-orphaned-asgs-cleanup?container={handle}")).await
}

async fn expect_ok(cell: &Resident, path: &str) -> anyhow::Result<()> {
    let answer = timeout(TIMEOUT, get(cell, path)).await;
    let answer = answer.with_context(|| format!("no answer within {TIMEOUT:?}")).flatten();
    match answer.with_context(|| format!("GET http://127.0.0.1:{PORT}{path}"))? {
        (StatusCode::OK, _text) => Ok(()),
        (status, text) => bail!("GET http://127.0.0.1:{PORT}{path}: {status}: {}", text.trim()),
    }
}

async fn get(cell: &Resident, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
    let stream = cell.tcp().await?.connect(address.into()).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // The connection ends with this call; its errors are returned by the request.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path)
        .header("Host", address.to_string())
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
