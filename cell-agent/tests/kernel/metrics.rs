//! The agent's metrics, and its log line for each applied change.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message as _;
use runtime::dropsonde::Envelope;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UdpSocket,
    process::{Child, Command},
    task::JoinSet,
};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, http, rule},
    lab::{lab, sh},
};

/// The agent as a separate process, since metrics are per process.
struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    _reader: JoinSet<()>,
}

impl Process {
    fn start(cell: &Cell) -> Self {
        let config = cell.directory.path().join("agent.json");
        std::fs::write(&config, cell.config_text()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cell-agent"))
            .arg("--config-file")
            .arg(config)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut reader = JoinSet::new();
        let kept = Arc::clone(&lines);
        reader.spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                kept.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines, _reader: reader }
    }

    /// The data of the info lines of applied changes.
    fn applied(&self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        let applied = lines.iter().filter(|line| {
            line["level"] == "info" && line["message"].as_str().unwrap().ends_with(".rules-applied")
        });
        applied.map(|line| line["data"].clone()).collect()
    }

    /// Metrics by name, with `/step` for those with a step.
    async fn metrics(&self) -> BTreeMap<String, f64> {
        let debug = ([127, 0, 0, 1], 8721).into();
        let (status, text) = http(debug, "GET", "/metrics", "").await;
        assert_eq!(status, 200);
        let values = text.lines().filter(|line| !line.starts_with('#'));
        let values = values.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let step = labels.strip_prefix("step=\"").and_then(|step| step.strip_suffix("\"}"));
            let step = step.map(|step| format!("/{step}")).unwrap_or_default();
            Some((format!("{name}{step}"), value.parse().ok()?))
        });
        values.collect()
    }

    /// Waits until a metric has this value.
    async fn shows(&self, name: &str, value: f64) -> BTreeMap<String, f64> {
        let mut metrics = BTreeMap::new();
        eventually(&format!("{name} is {value}"), async || {
            metrics = self.metrics().await;
            metrics.get(name) == Some(&value)
        })
        .await;
        metrics
    }
}

async fn up() {
    eventually("the agent answers", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", 8721)).await.is_ok()
    })
    .await;
}

/// The original's metrics over the original's protocol: the values received for each.
#[test]
fn the_metron_agent_hears_the_originals_names() {
    lab(async |_lab| {
        let metron = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = metron.local_addr().unwrap().to_string();
        let mut cell = Cell::new(json!({"metron_address": address})).await;
        cell.store.set(vec![global("g", vec![all("10.1.0.0/16")])]);
        cell.add_entry("c1", "10.255.1.1", &app("s1"));
        let mut process = Process::start(&cell);
        let mut missing: BTreeMap<&str, &str> = BTreeMap::from([
            ("uptime", "seconds"),
            ("containerMetadataTime", "ms"),
            ("asgIptablesEnforceTime", "ms"),
            ("asgIptablesCleanupTime", "ms"),
            ("asgTotalPollTime", "ms"),
            ("numCPUS", "count"),
            ("numGoRoutines", "count"),
            ("memoryStats.numBytesAllocated", "count"),
        ]);
        let hear = async {
            while !missing.is_empty() {
                let mut datagram = [0; 1024];
                let length = metron.recv(&mut datagram).await.unwrap();
                let envelope = Envelope::decode(&datagram[..length]).unwrap();
                assert_eq!(envelope.origin, "vxlan-policy-agent");
                let metric = envelope.value_metric.unwrap();
                assert!(metric.value >= 0.0, "{metric:?}");
                if let Some(unit) = missing.remove(metric.name.as_str()) {
                    assert_eq!(metric.unit, unit, "{metric:?}");
                }
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(20), hear).await;
        heard.unwrap_or_else(|_| panic!("not heard: {missing:?}"));
        process.child.kill().await.unwrap();
    });
}

#[test]
fn events_are_counted_and_each_change_is_logged() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({})).await;
        let shared = global("g", vec![all("10.1.0.0/16"), rule("tcp", "10.2.0.0/16", "80")]);
        cell.store.set(vec![shared.clone(), bound("s", "s1", vec![all("not an address")])]);
        for index in 1..=3 {
            cell.add_entry(&format!("c{index}"), &format!("10.255.1.{index}"), &app("s1"));
        }
        let mut process = Process::start(&cell);
        up().await;
        let metrics = process.shows("cell_agent_rules_before_sharing", 6.0).await;
        for (name, value) in [
            ("cell_agent_enforced_generation", 1.0),
            ("cell_agent_containers", 3.0),
            ("cell_agent_policies", 1.0),
            ("cell_agent_rules_after_sharing", 2.0),
            ("cell_agent_isolated_rules", 1.0),
            ("cell_agent_isolated_containers", 0.0),
            ("cell_agent_waiting_containers", 0.0),
            ("cell_agent_apply_failures_total", 0.0),
            ("cell_agent_drift_healed_total", 0.0),
            ("cell_agent_container_store_failures_total", 0.0),
            ("cell_agent_policy_store_failures_total", 0.0),
            ("cell_agent_policy_server_failures_total", 0.0),
            ("cell_agent_force_failures_total", 0.0),
            ("cell_agent_force_timeouts_total", 0.0),
            ("cell_agent_unknown_spellings_total", 0.0),
        ] {
            assert_eq!(metrics.get(name), Some(&value), "{name} in {metrics:#?}");
        }
        assert!(metrics["cell_agent_kernel_rules"] > 2.0, "{metrics:#?}");
        for step in ["containers", "enforce", "total"] {
            let name = format!("cell_agent_cycle_duration_seconds_count/{step}");
            assert!(metrics[&name] > 0.0, "{name} in {metrics:#?}");
        }
        process.shows("cell_agent_containers", 3.0).await;
        // One additional rule: one log line with the added and removed rules.
        let before = process.applied().len();
        let mut more = shared;
        more.rules.push(all("10.3.0.0/16"));
        more.rules.remove(1);
        cell.store.set(vec![more]);
        let metrics = process.shows("cell_agent_enforced_generation", 2.0).await;
        assert_eq!(metrics["cell_agent_isolated_rules"], 0.0);
        eventually("the change has a line", async || process.applied().len() > before).await;
        let line = process.applied().pop().unwrap();
        let number = |key: &str| line[key].as_u64().unwrap_or_else(|| panic!("{key} in {line}"));
        assert_eq!((number("containers"), number("added"), number("removed")), (3, 1, 1), "{line}");
        assert!(number("milliseconds") < 20_000 && number("generation") == 2, "{line}");
        // Drift, and the age of the unchanged state.
        process.shows("cell_agent_drift_healed_total", 0.0).await;
        cell.settled().await;
        sh("nft flush chain inet portcullis egress");
        process.shows("cell_agent_drift_healed_total", 1.0).await;
        eventually("the generation grows old", async || {
            process.metrics().await["cell_agent_enforced_generation_age_seconds"] > 0.1
        })
        .await;
        let metrics = process.metrics().await;
        assert!(metrics["cell_agent_cycle_duration_seconds_count/cleanup"] > 0.0, "{metrics:#?}");
        assert!(metrics["cell_agent_apply_seconds_count"] >= 2.0, "{metrics:#?}");
        // Failures of all kinds.
        cell.store.down().await;
        std::fs::write(cell.store_path(), "{torn").unwrap();
        let failed = |name: &'static str| async {
            let process = &process;
            eventually(name, async || process.metrics().await[name] > 0.0).await;
        };
        failed("cell_agent_policy_store_failures_total").await;
        failed("cell_agent_container_store_failures_total").await;
        let control = ([127, 0, 0, 1], 8722).into();
        let path = "/force-asgs-for-container?container=c1";
        assert_eq!(http(control, "GET", path, "").await.0, 500);
        assert_eq!(process.metrics().await["cell_agent_force_failures_total"], 1.0);
        process.child.kill().await.unwrap();
    });
}
