//! The process with invalid certificates: its own, and those of the loggregator client.

use std::{fs, time::Duration};

use proto::models::FetchRequest;
use rcgen::{CertificateParams, SanType, date_time_ymd};
use runtime::{
    loggregator::Agent,
    server::{Grpc, Health, Listener},
    supervise::Tasks,
    tls::{Alpn, Files, ServerTls},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::support::{
    PATIENCE,
    server::{Server, Site},
};

const BROKEN: [&str; 5] = ["missing", "garbage", "half-written", "other-key", "expired"];

/// Certificate files with one defect.
fn broken(site: &Site, what: &str) -> Files {
    let expire = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    };
    let files = site.authority.issue_with(what, |params| {
        if what == "expired" {
            expire(params);
        }
    });
    match what {
        "missing" => fs::remove_file(&files.cert).unwrap(),
        "garbage" => fs::write(&files.cert, "garbage").unwrap(),
        "half-written" => {
            let text = fs::read_to_string(&files.cert).unwrap();
            fs::write(&files.cert, &text[..text.len() / 2]).unwrap();
        }
        "other-key" => {
            let other = site.authority.issue_with("other", |_| ());
            fs::copy(other.key, &files.key).unwrap();
        }
        _ => {}
    }
    files
}

/// Replaces broken files with valid ones.
fn mend(site: &Site, files: &Files) {
    let good = site.authority.issue_with("mended", |_| ());
    for (from, to) in [(&good.key, &files.key), (&good.cert, &files.cert)] {
        let new = to.with_extension("new");
        fs::copy(from, &new).unwrap();
        fs::rename(&new, to).unwrap();
    }
}

async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Polls until the response contains `part`.
async fn answers(address: &str, path: &str, part: &str) -> String {
    let asked = async {
        loop {
            let answer = get(address, path).await;
            if answer.contains(part) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{path} without {part}"))
}

fn start(site: &Site, config: &Value) -> (Server, String) {
    let mut config = config.clone();
    config["debug_address"] = json!("127.0.0.1:0");
    let mut server = Server::start(site.command(&config));
    let bound = server.line("locket.debug-server.bound");
    (server, bound["data"]["address"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_server_whose_own_certificate_cannot_be_used_starts_and_waits() {
    for what in BROKEN {
        let site = Site::new();
        let files = broken(&site, what);
        let mut config = site.config();
        config["cert_file"] = json!(files.cert);
        config["key_file"] = json!(files.key);
        let (mut server, debug) = start(&site, &config);
        let line = server.line("locket.certificate-unusable");
        assert_eq!((&line["level"], &line["data"]["tls"]), (&json!("error"), &json!("server")));
        let path = files.cert.display().to_string();
        assert!(line["data"]["error"].as_str().unwrap().contains(&path), "{what}: {line}");
        let answer = get(&debug, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("certificate: "), "{answer}");
        let loaded = if what == "expired" { 1 } else { 0 };
        let gauge = "lock_server_certificate_last_reload_successful{tls=\"server\"}";
        answers(&debug, "/metrics", &format!("{gauge} {loaded}\n")).await;

        mend(&site, &files);
        answers(&debug, "/readyz", "HTTP/1.1 200").await;
        let mut client = site.client(&server.address);
        let fetched = client.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap_err();
        assert_eq!(fetched.code(), Code::NotFound, "{what}: {fetched}");
        let line = server.line("locket.tls-files-reloaded");
        assert!(line["data"]["subject"].as_str().unwrap().contains("CN=mended"), "{line}");
        let metrics = answers(&debug, "/metrics", &format!("{gauge} 1\n")).await;
        let expiry = "lock_server_certificate_expiry_timestamp_seconds{tls=\"server\",file=";
        for file in ["cert", "ca"] {
            let prefix = format!("{expiry}\"{file}\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&prefix));
            let value: f64 =
                value.unwrap_or_else(|| panic!("no {file}: {metrics}")).parse().unwrap();
            assert!(value > 4e9, "rcgen's certificates end in the year 4096: {value}");
        }
    }
}

#[tokio::test]
async fn telemetry_without_usable_files_never_prevents_a_start() {
    let site = Site::new();
    let metron = site.authority.issue_with("metron", |params| {
        params.subject_alt_names = vec![SanType::DnsName("metron".try_into().unwrap())];
    });
    let listener = Listener::tcp("ingress", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let agent = Agent::default();
    let tls = ServerTls::load(&metron, Alpn::H2).unwrap();
    let ingress = Grpc::new(listener, Some(tls), &Health::new()).add(agent.clone());
    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new(shutdown.clone());
    let served = ingress.serve(shutdown, PATIENCE);
    tasks.add("ingress", async { Ok(served.await?) });

    for what in BROKEN {
        let files = broken(&site, what);
        let before = agent.envelopes().len();
        let mut config = site.config();
        config["database_connection_string"] = json!(site.path(&format!("{what}.db")));
        config["report_interval"] = json!("300ms");
        config["loggregator"] = json!({
            "loggregator_api_port": port, "loggregator_ca_path": files.ca,
            "loggregator_cert_path": files.cert, "loggregator_key_path": files.key,
            "loggregator_job_origin": "locket", "loggregator_source_id": "locket",
        });
        let (mut server, debug) = start(&site, &config);
        let line = server.line("locket.certificate-unusable");
        assert_eq!(line["level"], "error");
        assert_eq!(line["data"]["tls"], "loggregator-client", "{what}");
        answers(&debug, "/readyz", "HTTP/1.1 200").await;
        mend(&site, &files);
        let delivered = async {
            while agent.envelopes().len() == before {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(2 * PATIENCE, delivered).await.unwrap_or_else(|_| panic!("{what}: no delivery"));
    }
}
