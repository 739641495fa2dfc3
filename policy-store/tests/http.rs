//! The original's HTTP API over TLS (docs/compatibility/policy-server-internal.md).

use std::io::Read as _;

use flate2::read::GzDecoder;
use model::generation::Watermark;
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::json;
use storage::{server::Dialect, testing::TestServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    client::replace,
    http::{Poller, expected, unquote},
    sets::{Set, bound, fenced, global, named, set},
    site::{Served, Site},
    until,
};

const GROUPS: &str = "/networking/v1/internal/security_groups";
const STAMP: &str = "/networking/v1/internal/security_groups_last_updated";

fn some() -> Set {
    set([
        bound("a", "one", &["s1"]),
        global("b", "two"),
        bound("c", "three", &["s2", "s1"]),
        bound("d", "four", &["s3"]),
    ])
}

async fn served_with(set: &Set) -> Served {
    let served = Served::start().await;
    replace(&served.writer(), &fenced(set, "syncer-a", 1)).await.unwrap();
    served
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn each_route_answers_as_the_original() {
    let served = served_with(&some()).await;
    let poller = served.poller();
    let route = |rest: &str| format!("/networking/v1/internal/{rest}");
    let bad = |name: &str| format!("{{\"error\": \"invalid value for '{name}' parameter\"}}");
    let none = r#"{"total_policies":0,"policies":[]}"#;
    let two = r#"{"next":0,"security_groups":[{"guid":"b","name":"two","rules":"[{\"protocol\":\"tcp\",\"destination\":\"10.0.0.1\",\"ports\":\"443\",\"type\":0,\"code\":0,\"description\":\"two\",\"log\":false}]","staging_default":false,"running_default":true,"staging_space_guids":[],"running_space_guids":[]}]}"#;
    let none_of_them = r#"{"next":2,"security_groups":[]}"#;
    for (path, status, body) in [
        (route("policies"), 200, none.to_owned()),
        (route("policies?id=a,b"), 200, none.to_owned()),
        ("/networking/v0/internal/policies".to_owned(), 200, none.to_owned()),
        ("/networking//internal/policies".to_owned(), 200, none.to_owned()),
        (route("policies_last_updated"), 200, "1".to_owned()),
        (route("security_groups"), 200, two.to_owned()),
        ("/networking/v7/internal/security_groups?per_page=x".to_owned(), 200, two.to_owned()),
        (route("security_groups?limit=-1"), 200, none_of_them.to_owned()),
        (route("security_groups?from="), 500, bad("from")),
        (route("security_groups?from=x&limit=y"), 500, bad("from")),
        (route("security_groups?limit=1.5"), 500, bad("limit")),
    ] {
        let answer = poller.get(&path).await;
        let headers = answer.headers().clone();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.text().await.unwrap(), body, "{path}");
        assert_eq!(header(&headers, "content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(header(&headers, "strict-transport-security"), Some("max-age=31536000"));
        assert_eq!(header(&headers, "x-vcap-request-id").unwrap().len(), 36);
        assert_eq!(header(&headers, "content-encoding"), None);
        assert_eq!(header(&headers, "content-length"), Some(&*body.len().to_string()), "{path}");
    }
    served.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_told_as_go_tells_it() {
    let served = served_with(&some()).await;
    let poller = served.poller();
    let (missing, wrong) = ("404 page not found\n", "Method Not Allowed\n");
    for (method, path, status, body, allow) in [
        (Method::GET, "/", 404, missing, None),
        (Method::GET, "/networking/v1/internal/healthcheck", 404, missing, None),
        (Method::GET, "/networking/v1/internal/policies/", 404, missing, None),
        (Method::PUT, "/networking/v0/internal/tags", 404, missing, None),
        (Method::POST, GROUPS, 405, wrong, Some("GET")),
        (Method::HEAD, GROUPS, 405, "", Some("GET")),
        (Method::GET, "/networking/v1/internal/tags", 405, wrong, Some("PUT")),
    ] {
        let answer = poller.ask(method.clone(), path).await;
        let headers = answer.headers().clone();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        assert_eq!(answer.text().await.unwrap(), body, "{method} {path}");
        assert_eq!(header(&headers, "allow"), allow, "{method} {path}");
        assert_eq!(header(&headers, "content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(header(&headers, "x-content-type-options"), Some("nosniff"));
        for name in ["strict-transport-security", "x-vcap-request-id"] {
            assert_eq!(header(&headers, name), None, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_id_of_a_request_is_kept() {
    let served = Served::start().await;
    let path = "/networking/v1/internal/policies";
    let request = served.poller().request(Method::GET, path).header("X-VCAP-Request-ID", "mine");
    let answer = request.send().await.unwrap();
    let id = header(answer.headers(), "x-vcap-request-id").unwrap();
    assert!(id.starts_with("mine::") && id.len() == 42, "{id}");
}

#[tokio::test]
async fn groups_come_by_space_in_the_order_of_their_ids() {
    let served = served_with(&some()).await;
    let poller = served.poller();
    for (query, guids) in [
        ("", vec!["b"]),
        ("?space_guids=", vec!["b"]),
        ("?space_guids=nowhere", vec!["b"]),
        ("?space_guids=s1", vec!["a", "b", "c"]),
        ("?space_guids=s3,s2", vec!["b", "c", "d"]),
        ("?space_guids=s3&space_guids=s1", vec!["b", "d"]),
        ("?space_guids=s1&from=2", vec!["b", "c"]),
        ("?space_guids=s1&from=-2", vec!["a", "b", "c"]),
        ("?space_guids=s1&limit=2", vec!["a", "b"]),
        ("?space_guids=s1&per_page=2&from=2", vec!["b", "c"]),
        ("?space_guids=s1&per_page=5000", vec!["a", "b", "c"]),
    ] {
        let answer = poller.groups(query).await;
        assert_eq!(answer.guids(), guids, "{query}");
        let next = if query.ends_with("limit=2") { 3 } else { 0 };
        assert_eq!(answer.next, next, "{query}");
    }
    // All spaces of a group, not only the requested ones.
    let answer = poller.groups("?space_guids=s2").await;
    assert_eq!(answer.security_groups[1].running_space_guids, ["s1", "s2"]);

    // Ids stay with the groups, and new groups get higher ones.
    let mut changed = some();
    changed.extend(set([global("aa", "new"), bound("a", "other", &["s1"])]));
    replace(&served.writer(), &fenced(&changed, "syncer-a", 1)).await.unwrap();
    assert_eq!(poller.groups("?space_guids=s1").await.guids(), ["a", "b", "c", "aa"]);
    assert_eq!(poller.groups("?from=3").await.guids(), ["aa"]);
}

/// The loop of the original's client, with its page size and with small ones.
#[tokio::test]
async fn pages_add_up() {
    let mut groups = named(300, "x");
    groups.extend(set((0..200).map(|index| bound(&format!("s{index:03}"), "y", &["s1", "s2"]))));
    for group in groups.values_mut().take(300) {
        std::sync::Arc::make_mut(group).staging.everywhere = true;
    }
    let write = fenced(&groups, "syncer-a", 1);
    let served = served_with(&groups).await;
    let poller = Poller::decoding(&served.site, &served.internal, "agent");
    let all = expected(&write);
    for (per_page, requests) in [(5000, 1), (500, 1), (499, 2), (50, 10), (7, 72)] {
        assert_eq!(poller.all(per_page, "s1,s2").await, (all.clone(), requests), "{per_page}");
    }
    assert_eq!(poller.all(5000, "").await, (all[..300].to_vec(), 1));
}

#[tokio::test]
async fn gzip_is_the_same_text() {
    let mut groups = named(400, "x<y>&\"\\\u{2028}\u{1f600}");
    groups.extend(set([global("large", &"0123456789abcdef".repeat(20_000))]));
    for group in groups.values_mut() {
        std::sync::Arc::make_mut(group).running.everywhere = true;
    }
    let write = fenced(&groups, "syncer-a", 1);
    let served = served_with(&groups).await;
    let (plain, decoding) =
        (served.poller(), Poller::decoding(&served.site, &served.internal, "agent"));
    for query in ["", "?limit=1", "?limit=2&from=300", "?from=100000"] {
        let path = format!("{GROUPS}{query}");
        let identity = plain.get(&path).await;
        assert_eq!(header(identity.headers(), "content-encoding"), None);
        assert_eq!(header(identity.headers(), "vary"), Some("Accept-Encoding"));
        let identity = identity.bytes().await.unwrap();
        let request = plain.request(Method::GET, &path).header("Accept-Encoding", "gzip");
        let gzip = request.send().await.unwrap();
        assert_eq!(header(gzip.headers(), "content-encoding"), Some("gzip"));
        let gzip = gzip.bytes().await.unwrap();
        // This decoder reads only one member.
        let (mut decoder, mut text) = (GzDecoder::new(&gzip[..]), Vec::new());
        decoder.read_to_end(&mut text).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member");
        assert_eq!(text, identity, "{query}");
        assert_eq!(decoding.get(&path).await.bytes().await.unwrap(), identity, "{query}");
    }
    assert_eq!(plain.groups("").await.security_groups, expected(&write));
}

#[tokio::test]
async fn the_stamp_moves_with_the_groups_and_never_back() {
    let site = Site::new();
    let mut last = 0;
    let mut write = fenced(&some(), "syncer-a", 1);
    write.watermark = Watermark::try_new(1_700_000_000, 5).unwrap();
    for round in 0..3 {
        let served = Served::start_at(site.clone()).await;
        let poller = served.poller();
        let stamp = async || poller.text(STAMP).await.parse::<i64>().unwrap();
        if round > 0 {
            assert_eq!(stamp().await, last, "a restart changes nothing");
        }
        replace(&served.writer(), &write).await.unwrap();
        if round == 0 {
            assert!(stamp().await > 1_600_000_000_000_000_000, "nanoseconds");
        }
        for name in ["x", "y"] {
            let before = stamp().await;
            let mut changed = fenced(&named(2, &format!("{name}{round}")), "syncer-a", 1);
            // The Cloud Controller's stamp stays, or goes back.
            changed.watermark = Watermark::try_new(1_600_000_000, 0).unwrap();
            replace(&served.writer(), &changed).await.unwrap();
            last = stamp().await;
            assert!(last > before, "{last} after {before}");
            changed.watermark = Watermark::try_new(1_600_000_001, 0).unwrap();
            replace(&served.writer(), &changed).await.unwrap();
            assert_eq!(stamp().await, last, "the Cloud Controller's stamp alone changed");
        }
        replace(&served.writer(), &fenced(&some(), "syncer-a", 1)).await.unwrap();
        last = stamp().await;
        served.stop().await;
    }
}

/// A store that lost its database must not return an empty list to agents.
#[tokio::test]
async fn before_the_first_replace_there_is_no_list() {
    let served = Served::start().await;
    let poller = served.poller();
    assert_eq!(poller.text(STAMP).await, "0");
    let answer = poller.get(GROUPS).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(answer.headers(), "retry-after"), Some("5"));
    // The next attempt goes to another instance, if the name has one.
    assert_eq!(header(answer.headers(), "connection"), Some("close"));
    let body = answer.text().await.unwrap();
    assert_eq!(body, r#"{"error": "no security groups were synced yet"}"#);
    replace(&served.writer(), &fenced(&Set::new(), "syncer-a", 1)).await.unwrap();
    assert_eq!(poller.text(GROUPS).await, r#"{"next":0,"security_groups":[]}"#);
}

#[tokio::test]
async fn tags_are_given() {
    let served = Served::start().await;
    let poller = served.poller();
    let put = async |body: &str| {
        let request = poller.request(Method::PUT, "/networking/v1/internal/tags");
        let answer = request.body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let router = (200, r#"{"id":"INGRESS_ROUTER","tag":"0001","type":"router"}"#.to_owned());
    assert_eq!(put(r#"{"ID":"INGRESS_ROUTER","Type":"router"}"#).await, router);
    assert_eq!(put("{}").await, (200, r#"{"id":"","tag":"0002","type":""}"#.to_owned()));
    assert_eq!(put(r#"{"id":"INGRESS_ROUTER","type":"router"}"#).await, router);
    let error = |text: &str| format!("{{\"error\": \"{text}\"}}");
    assert_eq!(put("[]").await, (400, error("failed parsing request body")));
    let other = put(r#"{"id":"INGRESS_ROUTER","type":"app"}"#).await;
    assert_eq!(other, (500, error("database create failed")));
    let (status, body) = put(&"x".repeat(100_000)).await;
    assert_eq!((status, body), (400, error("failed reading request body")));
}

#[tokio::test]
async fn only_certificates_that_are_named_may_poll() {
    let site = Site::new();
    let mut config = site.config();
    config["internal_api_identities"] = json!(["cn=agent"]);
    let served = Served::start_with(site, &config).await;
    let path = "/networking/v1/internal/policies";
    assert_eq!(served.poller().get(path).await.status(), StatusCode::OK);
    let other = Poller::new(&served.site, &served.internal, "other");
    let answer = other.get(path).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.text().await.unwrap(), r#"{"error": "permission denied"}"#);
    // Of another CA: the TLS handshake fails.
    let stranger = Poller::new(&Site::new(), &served.internal, "agent");
    stranger.request(Method::GET, path).send().await.unwrap_err();
}

/// The post-start script of the job relies on this response.
#[tokio::test]
async fn plain_http_on_the_tls_port_is_refused_in_plain_http() {
    let served = Served::start().await;
    let mut stream = TcpStream::connect(&served.internal).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("Client sent an HTTP request to an HTTPS server."), "{answer}");
}

/// As in the original, an unreachable database is unhealthy.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_bad_health() {
    let server = TestServer::start(Dialect::Postgres);
    let site = Site::on(&server);
    let mut config = site.config();
    config["database"]["timeout"] = json!(1);
    let served = Box::pin(Served::start_with(site, &config)).await;
    let url = format!("http://{}/health", served.health_checks);
    let health = async || reqwest::get(&url).await.unwrap().status().as_u16();
    replace(&served.writer(), &fenced(&some(), "syncer-a", 1)).await.unwrap();
    assert_eq!(health().await, 200);
    server.kill();
    until("it is told", async || health().await == 500).await;
    server.restart();
    until("it is well again", async || health().await == 200).await;
}

#[tokio::test]
async fn health_checks_are_plain_http() {
    let served = Served::start().await;
    let client = reqwest::Client::new();
    let ask = async |method: Method, path: &str| {
        let url = format!("http://{}{path}", served.health_checks);
        let answer = client.request(method, url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for path in ["/", "/networking"] {
        let (status, body) = ask(Method::GET, path).await;
        assert_eq!(status, 200);
        let up = body.strip_prefix("Network policy server, up for ").unwrap();
        assert!(up.ends_with("s\n"), "{body}");
    }
    // Without groups another instance is to be asked.
    let nothing = r#"{"error": "no current security groups"}"#;
    assert_eq!(ask(Method::GET, "/health").await, (503, nothing.to_owned()));
    replace(&served.writer(), &fenced(&some(), "syncer-a", 1)).await.unwrap();
    let url = format!("http://{}/health", served.health_checks);
    let healthy = client.get(url).send().await.unwrap();
    assert_eq!((healthy.status().as_u16(), header(healthy.headers(), "content-type")), (200, None));
    assert_eq!(healthy.text().await.unwrap(), "");
    assert_eq!(ask(Method::GET, "/else").await, (404, "404 page not found\n".to_owned()));
    assert_eq!(ask(Method::POST, "/health").await, (405, "Method Not Allowed\n".to_owned()));
    assert_eq!(ask(Method::HEAD, "/").await, (405, String::new()));
}

/// Formatted as Go does: shell scripts match the text.
#[tokio::test]
async fn names_of_headers_have_capital_letters() {
    let served = Served::start().await;
    let mut stream = TcpStream::connect(&served.health_checks).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    for name in ["Content-Type", "Content-Length", "X-Vcap-Request-Id", "Strict-Transport-Security"]
    {
        assert!(answer.contains(&format!("\r\n{name}: ")), "{name}: {answer}");
    }
}

/// Preconditions of the checks above.
#[test]
fn texts_are_unquoted_as_go_does() {
    assert_eq!(unquote(r#""a\"\\\u003c\t""#).unwrap(), "a\"\\<\t");
    for refused in [r#""\/""#, r#""\ud83d\ude00""#, r#""\'""#, "null", "\"a\nb\"", r#""a"b""#] {
        assert_eq!(unquote(refused), None, "{refused}");
    }
}
