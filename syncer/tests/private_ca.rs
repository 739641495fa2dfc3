//! TLS with private CAs: mutual TLS with the internal API, and no trust in other CAs.

use std::{fs, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use runtime::{
    https::Servers,
    server::{Http as HttpServer, Listener},
    tls::{Alpn, ClientTls, Files, ServerTls},
};
use syncer::cloud_controller::{Http, Identity, Trust};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{
    certificates::{Authority, authority, issue},
    until,
};

async fn serve(files: &Files, server: &mut JoinSet<()>) -> String {
    let tls = ServerTls::load(files, Alpn::None).unwrap();
    let listener = Listener::tcp("test", "127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr());
    let router = Router::new().route("/", get(|| async { "in" }));
    let http = HttpServer::new(listener, Some(tls));
    server.spawn(http.serve(router, CancellationToken::new(), Duration::ZERO));
    url
}

async fn fetch(trust: Trust, url: &str) -> Result<String, String> {
    let http = Http::new(trust, "test".to_owned(), Servers::default()).unwrap();
    let response = http.client().unwrap().get(url).send().await;
    match response {
        Ok(response) => Ok(response.text().await.unwrap()),
        Err(err) => Err(format!("{:#}", anyhow::Error::from(err))),
    }
}

#[tokio::test]
async fn only_the_configured_authorities_are_trusted() {
    runtime::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let server_files = issue(&ours, folder.path(), "server");
    let mut server = JoinSet::new();
    let url = serve(&server_files, &mut server).await;
    let mutual = |authority, name| {
        Trust::Files(ClientTls::load(&issue(authority, folder.path(), name)).unwrap())
    };
    let blank = folder.path().join("blank");
    fs::write(&blank, " \n").unwrap();
    let only = |authority: &Authority| {
        let bundle = folder.path().join("bundle");
        fs::write(&bundle, &authority.pem).unwrap();
        Trust::Files(ClientTls::trusting(&[blank.clone(), bundle]).unwrap())
    };

    assert_eq!(fetch(mutual(&ours, "client"), &url).await, Ok("in".to_owned()));
    let refused = fetch(mutual(&theirs, "stranger"), &url).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let refused = fetch(only(&theirs), &url).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    // The server certificate is trusted, but the server requires a client certificate.
    let refused = fetch(only(&ours), &url).await.unwrap_err();
    assert!(!refused.contains("UnknownIssuer"), "{refused}");
    let refused = fetch(Trust::Anything(None), &url).await.unwrap_err();
    assert!(!refused.contains("UnknownIssuer"), "{refused}");
    let files = issue(&ours, folder.path(), "shown");
    let identity = Identity { cert: files.cert, key: files.key };
    assert_eq!(fetch(Trust::Anything(Some(identity)), &url).await, Ok("in".to_owned()));
}

/// The CAs of UAA and the public API are replaced while the process runs.
#[tokio::test]
async fn replaced_authorities_are_taken_up() {
    runtime::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (authority("old"), authority("new"));
    let mut server = JoinSet::new();
    let url = serve(&issue(&new, folder.path(), "server"), &mut server).await;
    let bundle = folder.path().join("bundle");
    fs::write(&bundle, &old.pem).unwrap();
    let tls = ClientTls::trusting(std::slice::from_ref(&bundle)).unwrap();
    let before = tls.rustls_config().unwrap();
    let http = Http::new(Trust::Files(tls.clone()), "test".to_owned(), Servers::default()).unwrap();
    let ask = || async {
        let sent = http.client().unwrap().get(&url).send().await;
        sent.map(drop).map_err(|err| format!("{:#}", anyhow::Error::from(err)))
    };
    let refused = ask().await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let mut watch = JoinSet::new();
    watch.spawn(tls.clone().watch(CancellationToken::new()));
    fs::write(&bundle, format!("{}{}", old.pem, new.pem)).unwrap();
    until("the new authority", || !Arc::ptr_eq(&tls.rustls_config().unwrap(), &before)).await;
    // Trusted now; the server still requests a client certificate, which is missing.
    let refused = ask().await.unwrap_err();
    assert!(!refused.contains("UnknownIssuer"), "{refused}");
}
