//! Delivery of envelopes to an agent over mutual TLS.

use std::collections::BTreeMap;
use std::time::Duration;

use rcgen::SanType;
use runtime::lager;
use runtime::loggregator::{
    Agent, AppLog, Config, Delivery, Envelope, Gauge, GaugeValue, Loggregator, Message, QUEUE,
    Stream, bind,
};
use runtime::server::{Grpc, Health, Listener};
use runtime::tls::{Alpn, Files, ServerTls};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::certificates::{Authority, Leaf};
use crate::grpc::spawn;
use crate::wait;

const DRAIN: Duration = Duration::from_secs(5);

/// A certificate like those of real agents: for `metron`, not for the address.
fn agent_certificate(authority: &Authority) -> Files {
    let leaf = Leaf::new("metron").with(|params| params.subject_alt_names.clear());
    authority.issue("metron", &leaf.name(SanType::DnsName("metron".try_into().unwrap())))
}

/// An agent that runs until it is dropped.
struct Running {
    agent: Agent,
    address: String,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Running {
    async fn start(authority: &Authority, address: &str) -> Self {
        let tls = ServerTls::load(&agent_certificate(authority), Alpn::H2).unwrap();
        let listener = Listener::tcp("ingress", address).await.unwrap();
        let address = listener.local_addr();
        let agent = Agent::default();
        let shutdown = CancellationToken::new();
        let server = {
            let (agent, shutdown) = (agent.clone(), shutdown.clone());
            let grpc = Grpc::new(listener, Some(tls), &Health::new()).add(agent);
            spawn(async move { grpc.serve(shutdown, DRAIN).await.unwrap() })
        };
        Self { agent, address, shutdown, server }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.agent.hang_up();
        self.server.await.unwrap();
    }

    async fn arrived(&self, count: usize) -> Vec<Envelope> {
        let what = format!("{count} envelopes");
        wait::until(&what, async || self.agent.envelopes().len() >= count).await;
        self.agent.envelopes()
    }
}

fn config(authority: &Authority, address: &str) -> Config {
    Config {
        use_v2_api: true,
        address: address.to_owned(),
        files: Some(authority.issue("client", &Leaf::new("client"))),
        origin: "locket".into(),
        source_id: "locket".into(),
        instance_id: "7".into(),
        batch: 100,
    }
}

/// A client with a running delivery task.
struct Client {
    loggregator: Loggregator,
    shutdown: CancellationToken,
    delivery: JoinHandle<anyhow::Result<()>>,
}

impl Client {
    fn start(config: &Config) -> Self {
        let (loggregator, delivery): (Loggregator, Delivery) = bind("test", config).unwrap();
        let shutdown = CancellationToken::new();
        let delivery = spawn(delivery.run(shutdown.clone()));
        Self { loggregator, shutdown, delivery }
    }

    fn count(&self, values: std::ops::Range<usize>) {
        for value in values {
            self.loggregator.gauge("Count", "Metric", value as f64, &[]);
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.delivery.await.unwrap().unwrap();
    }
}

fn values(envelopes: &[Envelope]) -> Vec<usize> {
    let value = |envelope: &Envelope| match &envelope.message {
        Some(Message::Gauge(Gauge { metrics })) => metrics["Count"].value as usize,
        other => panic!("not a gauge: {other:?}"),
    };
    envelopes.iter().map(value).collect()
}

#[tokio::test]
async fn gauges_and_app_logs_arrive_whole() {
    let authority = Authority::new("loggregator authority");
    let running = Running::start(&authority, "127.0.0.1:0").await;
    let client = Client::start(&config(&authority, &running.address));
    let before = jiff::Timestamp::now().as_nanosecond();
    client.loggregator.gauge("RequestLatencyMax", "nanos", 1.5e6, &[("request-type", "Lock")]);
    client.loggregator.app_log(AppLog {
        source_id: "app-guid".into(),
        instance_id: "3".into(),
        tags: BTreeMap::from([("source_type".into(), "NET".into())]),
        text: "Security group rules were updated".into(),
        stream: Stream::Err,
    });
    let envelopes = running.arrived(2).await;
    let tags = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
        let all = [("origin", "locket")].into_iter().chain(more.iter().copied());
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let [gauge, log] = envelopes.as_slice() else { panic!("{envelopes:?}") };

    let value = GaugeValue { unit: "nanos".into(), value: 1.5e6 };
    let metrics = BTreeMap::from([("RequestLatencyMax".into(), value)]);
    assert_eq!(gauge.message, Some(Message::Gauge(Gauge { metrics })));
    assert_eq!((gauge.source_id.as_str(), gauge.instance_id.as_str()), ("locket", "7"));
    assert_eq!(gauge.tags, tags(&[("request-type", "Lock")]));

    let Some(Message::Log(line)) = &log.message else { panic!("{log:?}") };
    assert_eq!(
        (line.payload.as_slice(), line.r#type),
        (&b"Security group rules were updated"[..], 1)
    );
    assert_eq!((log.source_id.as_str(), log.instance_id.as_str()), ("app-guid", "3"));
    assert_eq!(log.tags, tags(&[("source_type", "NET")]));
    let stamp = i128::from(log.timestamp) - before;
    assert!((0..60_000_000_000).contains(&stamp), "{stamp} ns after it was made");
    client.stop().await;
}

#[tokio::test]
async fn batches_are_bounded_and_keep_their_order() {
    let authority = Authority::new("loggregator authority");
    let running = Running::start(&authority, "127.0.0.1:0").await;
    let client = Client::start(&Config { batch: 7, ..config(&authority, &running.address) });
    client.count(0..40);
    assert_eq!(values(&running.arrived(40).await), (0..40).collect::<Vec<_>>());
    let sizes: Vec<usize> = running.agent.batches().iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size <= 7), "{sizes:?}");
    assert!(sizes.len() <= 8, "full batches as long as there is enough: {sizes:?}");
    client.stop().await;
}

#[tokio::test]
async fn an_agent_may_start_late_and_restart() {
    let authority = Authority::new("loggregator authority");
    let address = {
        let listener = Listener::tcp("later", "127.0.0.1:0").await.unwrap();
        listener.local_addr()
    };
    let client = Client::start(&config(&authority, &address));
    client.count(0..10);

    let running = Running::start(&authority, &address).await;
    assert_eq!(values(&running.arrived(10).await), (0..10).collect::<Vec<_>>());
    running.agent.hang_up();
    wait::until("the envelopes after the stream was ended", async || {
        client.count(10..11);
        running.agent.envelopes().len() > 10
    })
    .await;
    running.stop().await;

    let running = Running::start(&authority, &address).await;
    wait::until("the envelopes for an agent that was restarted", async || {
        client.count(11..12);
        values(&running.agent.envelopes()).contains(&11)
    })
    .await;
    client.stop().await;
}

#[tokio::test]
async fn without_an_agent_the_queue_fills_and_nobody_waits() {
    let authority = Authority::new("loggregator authority");
    let client = Client::start(&config(&authority, "127.0.0.1:1"));
    client.count(0..QUEUE + 500);
    client.stop().await;

    // Envelopes that fit in the queue are delivered once an agent runs; the others are dropped.
    let running = Running::start(&authority, "127.0.0.1:0").await;
    let (loggregator, delivery) = bind("test", &config(&authority, &running.address)).unwrap();
    for value in 0..QUEUE + 500 {
        loggregator.gauge("Count", "Metric", value as f64, &[]);
    }
    let shutdown = CancellationToken::new();
    let delivery = spawn(delivery.run(shutdown.clone()));
    running.arrived(QUEUE).await;
    shutdown.cancel();
    delivery.await.unwrap().unwrap();
    assert_eq!(values(&running.agent.envelopes()), (0..QUEUE).collect::<Vec<_>>());
}

#[tokio::test]
async fn envelopes_queued_at_shutdown_are_delivered() {
    let authority = Authority::new("loggregator authority");
    let running = Running::start(&authority, "127.0.0.1:0").await;
    let client = Client::start(&config(&authority, &running.address));
    client.count(0..1);
    running.arrived(1).await;
    client.count(1..251);
    client.stop().await;
    assert_eq!(values(&running.agent.envelopes()), (0..251).collect::<Vec<_>>());
}

#[tokio::test]
async fn only_an_agent_is_spoken_to() {
    let authority = Authority::new("loggregator authority");
    // A certificate of the right CA for the address, but not for `metron`.
    let files = authority.issue("other", &Leaf::new("other"));
    let listener = Listener::tcp("ingress", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let agent = Agent::default();
    let tls = ServerTls::load(&files, Alpn::H2).unwrap();
    let grpc = Grpc::new(listener, Some(tls.clone()), &Health::new()).add(agent.clone());
    let shutdown = CancellationToken::new();
    let server = spawn(grpc.serve(shutdown.clone(), DRAIN));
    let watch = spawn(tls.watch(shutdown.clone()));

    let options = lager::Options {
        source: "locket".into(),
        level: lager::Level::Info,
        format: lager::TimeFormat::Rfc3339,
    };
    let (log, _control, _guard) = lager::capture(options);
    let client = Client::start(&config(&authority, &address));
    client.count(0..5);
    let line = "locket.loggregator.disconnected";
    wait::until(line, async || log.data_of(line).is_some()).await;
    let why = log.data_of(line).unwrap()["error"].to_string();
    assert!(why.contains("certificate") && why.contains("metron"), "{why}");
    assert!(agent.batches().is_empty(), "a stranger was told");
    // The same address with the right certificate gets the queued envelopes.
    let right = agent_certificate(&authority);
    std::fs::copy(right.cert, files.cert).unwrap();
    std::fs::copy(right.key, files.key).unwrap();
    wait::until("the envelopes", async || agent.envelopes().len() == 5).await;
    client.stop().await;
    shutdown.cancel();
    server.await.unwrap().unwrap();
    watch.await.unwrap().unwrap();
}

#[test]
fn without_certificates_there_is_no_delivery_task() {
    let authority = Authority::new("loggregator authority");
    let config = Config { files: None, ..config(&authority, "127.0.0.1:1") };
    assert!(bind("test", &config).is_none());
}
