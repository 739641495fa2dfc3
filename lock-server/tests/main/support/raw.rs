//! HTTP/2 over mutual TLS without a gRPC library: shows the bytes on the wire.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use runtime::tls::Files;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Status;

use super::PATIENCE;

/// TLS client with these files, which may be invalid; with or without a certificate.
pub(crate) fn tls(files: &Files, with_certificate: bool) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = if with_certificate {
        let certificate = CertificateDer::from_pem_file(&files.cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) async fn shake_hands(
    stream: TcpStream,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// An open connection.
pub(crate) struct Raw {
    requests: SendRequest<Full<Bytes>>,
    authority: String,
    _connection: JoinSet<()>,
}

/// Response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// `None` for a response with headers only.
    pub(crate) trailers: Option<HeaderMap>,
}

impl Raw {
    pub(crate) async fn connect(address: &str, files: &Files) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = shake_hands(stream, tls(files, true)).await.unwrap();
        let (requests, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let _ends_with_the_server = connection.await;
        });
        Self { requests, authority: address.to_owned(), _connection: connections }
    }

    /// POST as gRPC clients send it, after `change`.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        body: &[u8],
        change: impl FnOnce(&mut Request<Full<Bytes>>),
    ) -> Answer {
        let uri: Uri = format!("https://{}{path}", self.authority).parse().unwrap();
        let mut request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        change(&mut request);
        let answer = async {
            let (parts, body) = self.requests.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned();
            Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers }
        };
        timeout(PATIENCE, answer).await.unwrap()
    }
}

impl Answer {
    /// Code and text of a headers-only response.
    pub(crate) fn refusal(&self) -> (u32, String) {
        assert!(self.body.is_empty() && self.trailers.is_none(), "not trailers alone: {self:?}");
        // Decoded as every client does it: this server escapes blanks, grpc-go does not.
        let status = Status::from_header_map(&self.headers).expect("a status");
        (i32::from(status.code()).unsigned_abs(), status.message().to_owned())
    }
}
