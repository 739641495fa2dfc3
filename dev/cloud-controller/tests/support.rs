//! A Cloud Controller on free ports, and a client for it.

use certificates::Authority;
use cloud_controller::app::{Addresses, App};
use cloud_controller::config::Config;
use cloud_controller::json::Json;
use reqwest::{Method, RequestBuilder, StatusCode};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running Cloud Controller; it stops on drop.
pub(crate) struct Controller {
    pub(crate) addresses: Addresses,
    client: reqwest::Client,
    _stop: DropGuard,
    running: JoinHandle<anyhow::Result<()>>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Json {
        Json::parse(self.text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn at(&self, path: &[&str]) -> String {
        let json = self.json();
        let found = json.at(path).and_then(Json::as_str).map(str::to_owned);
        found.unwrap_or_else(|| panic!("no text at {path:?} in {}", self.text))
    }

    pub(crate) fn guid(&self) -> String {
        self.at(&["guid"])
    }

    /// The `detail` of the only error.
    pub(crate) fn detail(&self) -> String {
        let json = self.json();
        let errors = json.at(&["errors"]).and_then(Json::as_array).unwrap_or_default();
        assert_eq!(errors.len(), 1, "{}", self.text);
        errors[0].at(&["detail"]).and_then(Json::as_str).unwrap().to_owned()
    }

    /// The texts under `key` in all resources.
    pub(crate) fn listed(&self, key: &str) -> Vec<String> {
        let json = self.json();
        let resources = json.at(&["resources"]).and_then(Json::as_array).unwrap();
        let texts = resources.iter().map(|entry| entry.at(&[key]).and_then(Json::as_str).unwrap());
        texts.map(str::to_owned).collect()
    }
}

impl Controller {
    /// Starts on free ports; `config` is the inside of a JSON object.
    pub(crate) async fn start(config: &str) -> Self {
        runtime::tls::install_provider();
        let comma = if config.is_empty() { "" } else { "," };
        let config = format!(
            r#"{{"api_address":"127.0.0.1:0","uaa_address":"127.0.0.1:0",
                "internal_address":"127.0.0.1:0"{comma}{config}}}"#
        );
        let config = runtime::config::parse::<Config>(&config).unwrap();
        assert_eq!(config.unknown, Vec::<String>::new());
        let app = App::bind(config.config).await.unwrap();
        let addresses = app.addresses();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone().drop_guard();
        let running = spawn(app, shutdown);
        let client = reqwest::Client::builder().build().unwrap();
        Self { addresses, client, _stop: stop, running }
    }

    /// Stops the Cloud Controller, and waits for its end.
    pub(crate) async fn stop(self) {
        let Self { _stop, running, .. } = self;
        drop(_stop);
        running.await.unwrap().unwrap();
    }

    pub(crate) fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.addresses.api))
    }

    pub(crate) fn uaa(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.addresses.uaa))
    }

    pub(crate) async fn token(&self, form: &str) -> Reply {
        let request = self.uaa(Method::POST, "/oauth/token");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        send(request.basic_auth("cf", Some("")).body(form.to_owned())).await
    }

    /// A session of the administrator.
    pub(crate) async fn admin(&self) -> Session<'_> {
        self.session("grant_type=password&username=admin&password=admin").await
    }

    pub(crate) async fn session(&self, form: &str) -> Session<'_> {
        let reply = self.token(form).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        Session { controller: self, token: reply.at(&["access_token"]) }
    }

    /// The stamp, requested over mutual TLS.
    pub(crate) async fn last_update(&self) -> String {
        let directory = self.addresses.certificates.ca.parent().unwrap();
        let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
        let ca = reqwest::Certificate::from_pem(&read("ca.crt")).unwrap();
        let mut pair = read("client.crt");
        pair.extend(read("client.key"));
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .identity(reqwest::Identity::from_pem(&pair).unwrap())
            .build()
            .unwrap();
        let url = format!("{}/internal/v4/asg_latest_update", self.addresses.internal);
        let reply = send(client.get(url)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.at(&["last_update"])
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the handle is awaited by stop, or dies with the test"
)]
fn spawn(app: App, shutdown: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(app.run(shutdown))
}

/// A token and its Cloud Controller.
pub(crate) struct Session<'a> {
    controller: &'a Controller,
    pub(crate) token: String,
}

impl Session<'_> {
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&str>) -> Reply {
        let request = self.controller.api(method, path).bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_owned()),
            None => request,
        };
        send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &str) -> Reply {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    /// Creates an organization with one space; returns both GUIDs.
    pub(crate) async fn place(&self, organization: &str, space: &str) -> (String, String) {
        let body = format!(r#"{{"name":"{organization}"}}"#);
        let organization = self.post("/v3/organizations", &body).await.guid();
        let space = self.space(&organization, space).await;
        (organization, space)
    }

    pub(crate) async fn space(&self, organization: &str, name: &str) -> String {
        let body = format!(
            r#"{{"name":"{name}","relationships":{{"organization":{{"data":{{"guid":"{organization}"}}}}}}}}"#
        );
        let reply = self.post("/v3/spaces", &body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.guid()
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let header =
        |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let status: StatusCode = response.status();
    let (location, request_id) = (header("location"), header("x-vcap-request-id"));
    Reply { status: status.as_u16(), location, request_id, text: response.text().await.unwrap() }
}

/// A client certificate for `controller` that another CA signed.
pub(crate) fn foreign_identity() -> reqwest::Identity {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(directory.path()).unwrap();
    let files = authority.issue("stranger", &[]).unwrap();
    let mut pair = std::fs::read(files.cert).unwrap();
    pair.extend(std::fs::read(files.key).unwrap());
    reqwest::Identity::from_pem(&pair).unwrap()
}
