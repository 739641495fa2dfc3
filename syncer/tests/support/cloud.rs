//! A scripted Cloud Controller and UAA: each route has a list of responses, of which the
//! last repeats, and every call is recorded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use runtime::https::Servers;
use serde_json::{Value, json};
use syncer::cloud_controller::{CloudController, Http, Secret, Settings, Trust, Uaa};
use tokio::task::JoinSet;

pub(crate) const TOKEN: &str = "POST /oauth/token";
pub(crate) const STAMP: &str = "GET /internal/v4/asg_latest_update";

/// The call for a page of the list.
pub(crate) fn page(number: u32) -> String {
    format!("GET /v3/security_groups?per_page=5000&page={number}")
}

/// Any page without responses of its own.
pub(crate) const ANY_PAGE: &str = "GET /v3/security_groups";

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    code: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    delay: Duration,
}

impl Reply {
    pub(crate) fn json(body: &Value) -> Self {
        Self::text(200, &body.to_string())
    }

    pub(crate) fn text(code: u16, body: &str) -> Self {
        let (headers, body) = (Vec::new(), body.as_bytes().to_vec());
        Self { code, headers, body, delay: Duration::ZERO }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

pub(crate) fn token(name: &str) -> Reply {
    Reply::json(&json!({"access_token": name, "token_type": "bearer", "expires_in": 43_199}))
}

pub(crate) fn stamp(text: &str) -> Reply {
    Reply::json(&json!({ "last_update": text }))
}

/// A page of these groups; `more`: with a link to a next page.
pub(crate) fn groups(groups: &[Value], more: bool) -> Reply {
    let next = more.then(|| json!({"href": "https://elsewhere.example.org/never-followed"}));
    Reply::json(&json!({"pagination": {"next": next}, "resources": groups}))
}

/// A page of a list of `total` groups on `pages` pages.
pub(crate) fn counted(groups: &[Value], more: bool, total: usize, pages: usize) -> Reply {
    let next = more.then(|| json!({"href": "https://elsewhere.example.org/never-followed"}));
    let pagination = json!({"total_results": total, "total_pages": pages, "next": next});
    Reply::json(&json!({"pagination": pagination, "resources": groups}))
}

/// A group with one rule.
pub(crate) fn group(guid: &str, destination: &str) -> Value {
    json!({
        "guid": guid,
        "name": format!("name-of-{guid}"),
        "rules": [{"protocol": "tcp", "destination": destination, "ports": "443"}],
        "globally_enabled": {"running": true, "staging": false},
        "relationships": {
            "running_spaces": {"data": [{"guid": "s1"}]},
            "staging_spaces": {"data": []},
        },
    })
}

pub(crate) const EARLY: &str = "2026-11-23T01:53:08.742529000+00:00";
pub(crate) const LATE: &str = "2026-11-23T01:53:09.000001000+00:00";

#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Method, path and query.
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Default)]
struct Script {
    replies: HashMap<String, VecDeque<Reply>>,
    calls: Vec<Call>,
}

/// The fake server; stops on drop.
pub(crate) struct Cloud {
    script: Arc<Mutex<Script>>,
    pub(crate) url: String,
    _server: JoinSet<()>,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let (url, server) = super::serve_http(router).await;
        let cloud = Self { script, url, _server: server };
        cloud.on(TOKEN, [token("t1")]);
        cloud
    }

    /// Replaces the responses of a call.
    pub(crate) fn on(&self, call: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies: VecDeque<_> = replies.into_iter().collect();
        self.script.lock().unwrap().replies.insert(call.to_owned(), replies);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.script.lock().unwrap().calls.clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.line).collect()
    }

    pub(crate) fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|call| *call == line).count()
    }

    pub(crate) fn client(&self) -> CloudController {
        self.client_with_timeout(Duration::from_secs(5))
    }

    pub(crate) fn client_with_timeout(&self, timeout: Duration) -> CloudController {
        client(&self.url, timeout)
    }
}

/// A client of a fake server that serves all APIs at one address.
pub(crate) fn client(url: &str, timeout: Duration) -> CloudController {
    runtime::tls::install_provider();
    let settings = Settings {
        url: url.to_owned(),
        internal_url: url.to_owned(),
        uaa: Uaa {
            url: url.to_owned(),
            client: "network-policy".to_owned(),
            secret: Secret("se:cret".to_owned()),
        },
        page_size: 5000,
        call_timeout: timeout,
        page_timeout: timeout,
    };
    let http =
        || Http::new(Trust::Anything(None), "test-agent/1".to_owned(), Servers::default()).unwrap();
    CloudController::new(settings, http(), http())
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let line = format!("{} {}", parts.method, parts.uri);
    let reply = {
        let mut script = script.lock().unwrap();
        script.calls.push(Call { line: line.clone(), headers: parts.headers, body });
        let any = line.split('?').next().unwrap_or_default();
        let key = if script.replies.contains_key(&line) { line.as_str() } else { any };
        let replies = script.replies.get_mut(key);
        replies.and_then(|replies| match replies.len() {
            0 | 1 => replies.front().cloned(),
            _ => replies.pop_front(),
        })
    };
    let reply = reply.unwrap_or_else(|| Reply::text(418, &format!("not in the script: {line}")));
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.code).unwrap();
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
