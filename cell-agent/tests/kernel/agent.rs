//! Runs the whole agent in the cell's namespace, with the files and calls of a CNI
//! plugin.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};
use tokio::time::Instant;

use cell_agent::{app::App, config::Config};
use proto::{
    cell_v1::{self, cell_client::CellClient},
    policy_v1::{Rule, SecurityGroup},
};
use runtime::{
    lager::{self, Capture, Level, TimeFormat},
    process::{Process, Service as _},
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::subscriber::DefaultGuard;

use crate::{lab::sh, silk::Silk, store::Store};

/// A cell: its files, its store, and its agent while that runs.
pub(crate) struct Cell {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) log: Capture,
    _logging: DefaultGuard,
    config: Map<String, Value>,
    agent: Option<Agent>,
    version: u64,
    /// The CNI plugin beside the agent, and the containers that have its chains.
    silk: Option<Silk>,
    plugged: BTreeMap<String, String>,
}

struct Agent {
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    control: SocketAddr,
    debug: SocketAddr,
}

impl Cell {
    /// A cell whose agent is not running yet.
    pub(crate) async fn new(overrides: Value) -> Self {
        runtime::tls::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::start(directory.path()).await;
        let options = lager::Options {
            source: "cfnetworking.vxlan-policy-agent".to_owned(),
            level: Level::Debug,
            format: TimeFormat::Rfc3339,
        };
        let (log, _, logging) = lager::capture(options);
        let path = |name: &str| directory.path().join(name).display().to_string();
        let files = store.files().clone();
        let mut config = json!({
            "cell_id": "cell-1",
            "policy_store_address": store.address().to_string(),
            "ca_cert_file": files.ca,
            "client_cert_file": files.cert,
            "client_key_file": files.key,
            "cni_datastore_path": path("store.json"),
            "overlay_network": "10.255.0.0/16",
            "state_directory": path("state"),
            "control_socket": path("cell.sock"),
            // The namespace belongs to this test, so any port is free in it.
            "force_policy_poll_cycle_port": 8722,
            "debug_server_port": 8721,
            "drift_interval": "100ms",
        });
        let config = config.as_object_mut().unwrap();
        config.extend(overrides.as_object().cloned().unwrap_or_default());
        let config = config.clone();
        let (silk, plugged) = (Silk::of(&config), BTreeMap::new());
        let (agent, version, _logging) = (None, 1, logging);
        Self { directory, store, log, _logging, config, agent, version, silk, plugged }
    }

    /// A cell with a running agent.
    pub(crate) async fn running(overrides: Value) -> Self {
        let mut cell = Self::new(overrides).await;
        cell.start().await;
        cell
    }

    /// Shortens the wait of a request that cannot succeed, from the next start on.
    pub(crate) fn shorten_force_timeout(&mut self) {
        self.config.insert("force_timeout".to_owned(), json!("3s"));
    }

    pub(crate) fn configure(&mut self, overrides: &Map<String, Value>) {
        self.config.extend(overrides.clone());
    }

    /// The configuration with one key changed.
    pub(crate) fn config_with(&self, key: &str, value: Value) -> Config {
        let mut config = self.config.clone();
        config.insert(key.to_owned(), value);
        runtime::config::parse(&Value::Object(config).to_string()).unwrap().config
    }

    /// The text of the configuration file.
    pub(crate) fn config_text(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }

    async fn bind(&self) -> anyhow::Result<App> {
        let config = self.config_with("cell_id", json!("cell-1"));
        App::bind(config, &Process::detached()).await
    }

    pub(crate) async fn start(&mut self) {
        let port = |key: &str| {
            let port = self.config[key].as_u64().unwrap();
            SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
        };
        let (control, debug) = (port("force_policy_poll_cycle_port"), port("debug_server_port"));
        // Parallel tests start programs, and during a fork the child briefly holds
        // every socket of this process.
        let mut app = self.bind().await;
        while app.as_ref().is_err_and(|error| format!("{error:#}").contains("in use")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            app = self.bind().await;
        }
        let app = app.unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::task::spawn_local(app.run(shutdown.clone()));
        self.agent = Some(Agent { shutdown, task, control, debug });
    }

    /// Ends the agent as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown.cancel();
            agent.task.await.unwrap().unwrap();
        }
    }

    pub(crate) fn store_path(&self) -> PathBuf {
        self.directory.path().join("store.json")
    }

    /// Changes the metadata store as the CNI plugin does.
    pub(crate) fn change_store(&mut self, change: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.store_path();
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        let lock = File::options().create(true).append(true).open(beside("_lock")).unwrap();
        lock.lock().unwrap();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut entries: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        change(&mut entries);
        fs::write(&path, Value::Object(entries).to_string()).unwrap();
        self.version += 1;
        fs::write(beside("_version"), self.version.to_string()).unwrap();
    }

    /// Creates the chains of a container, if the cell has a CNI plugin.
    pub(crate) fn plug(&mut self, handle: &str, ip: &str) {
        if let Some(silk) = self.silk
            && self.plugged.insert(handle.to_owned(), ip.to_owned()).is_none()
        {
            silk.add(handle, ip, &Value::Object(self.config.clone()));
        }
    }

    pub(crate) fn add_entry(&mut self, handle: &str, ip: &str, metadata: &Value) {
        let entry = json!({"handle": handle, "ip": ip, "metadata": metadata});
        self.change_store(|entries| _ = entries.insert(handle.to_owned(), entry));
    }

    pub(crate) fn delete_entry(&mut self, handle: &str) {
        self.change_store(|entries| _ = entries.remove(handle));
        if let Some((silk, ip)) = self.silk.zip(self.plugged.remove(handle)) {
            silk.delete(handle, &ip);
        }
    }

    /// Adds an app container in a space; waits until its rules are in force.
    pub(crate) async fn add_app(&mut self, handle: &str, ip: &str, space: &str) {
        self.plug(handle, ip);
        self.add_entry(handle, ip, &app(space));
        let (status, body) = self.force(handle).await;
        assert_eq!((status, body.as_str()), (200, &*format!("updated container {handle}")));
    }

    pub(crate) async fn force(&self, handle: &str) -> (u16, String) {
        self.get(&format!("/force-asgs-for-container?container={handle}")).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        http(self.agent.as_ref().expect("the agent runs").control, "GET", path, "").await
    }

    pub(crate) async fn debug(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        http(self.agent.as_ref().expect("the agent runs").debug, method, path, body).await
    }

    /// Head and body of a response of the control port and of the debug server.
    pub(crate) async fn heads(&self, path: &str) -> [(String, String); 2] {
        let agent = self.agent.as_ref().expect("the agent runs");
        let ask = |address| exchange(address, "GET", path, "");
        [ask(agent.control).await, ask(agent.debug).await]
    }

    pub(crate) fn client(&self) -> CellClient<Channel> {
        CellClient::new(runtime::client::unix(&self.directory.path().join("cell.sock")))
    }

    pub(crate) async fn status(&self) -> cell_v1::StatusResponse {
        self.client().status(cell_v1::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Whether the agent enforces anything.
    pub(crate) fn enforces(&self) -> bool {
        self.config.get("enable_asg_syncing").is_none_or(|enabled| enabled == true)
    }

    /// Waits until the store's latest generation is in force and reported.
    pub(crate) async fn caught_up(&self) {
        let generation = self.store.generation();
        eventually("the newest generation is in force", async || {
            self.store.last_report().is_some_and(|report| report.enforced_generation >= generation)
        })
        .await;
    }

    /// Waits until the kernel's listing is recorded, so that drift is detected. A plane
    /// that compares the tables themselves records nothing.
    pub(crate) async fn settled(&self) {
        if self.silk.is_some() {
            return;
        }
        let applied = self.directory.path().join("state/applied");
        let listed = || cell_agent::plane::nftables::listing::fingerprint(&listing());
        eventually("the table has settled", async || {
            fs::read_to_string(&applied).is_ok_and(|text| text.contains(&listed()))
        })
        .await;
    }
}

pub(crate) fn app(space: &str) -> Value {
    json!({"policy_group_id": "app", "app_id": "app", "space_id": space, "container_workload": "app"})
}

/// Our table as nft shows it.
pub(crate) fn listing() -> String {
    sh("nft -s list table inet portcullis 2>/dev/null || true")
}

/// A group for all running apps.
pub(crate) fn global(guid: &str, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup { running_default: true, ..group(guid, rules) }
}

/// A group for the running apps of one space.
pub(crate) fn bound(guid: &str, space: &str, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup { running_space_guids: vec![space.to_owned()], ..group(guid, rules) }
}

fn group(guid: &str, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup { guid: guid.to_owned(), name: guid.to_owned(), rules, ..Default::default() }
}

pub(crate) fn all(destination: &str) -> Rule {
    rule("all", destination, "")
}

pub(crate) fn rule(protocol: &str, destination: &str, ports: &str) -> Rule {
    Rule {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        ..Rule::default()
    }
}

/// Waits for a condition, with a timeout.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let (head, body) = exchange(address, method, path, body).await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// Head and body of a response.
async fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: cell\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}
