//! vxlan-policy-agent, docs/compatibility/vxlan-policy-agent.md: polls the groups of its
//! cell's spaces, and writes the asg chains of the containers.
//!
//! As in the original, the memory is the only truth about what is in force: after a start
//! every container's chain is written again, and changes by others are never noticed. The
//! groups are requested only if their stamp is higher than the last one.

mod chains;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::StatusCode;
use reqwest::Client;
use runtime::server::{Http, Listener};
use runtime::tls::ClientTls;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::groups::Group;
use crate::log::Log;
use chains::Chains;
use rules::Workload;

/// A container in the metadata store.
#[derive(Debug, Clone, Deserialize)]
struct Entry {
    handle: String,
    metadata: Option<HashMap<String, Value>>,
}

impl Entry {
    fn value(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// The space, if the container has security groups at all.
    fn space(&self) -> Option<&str> {
        self.value("policy_group_id")?;
        self.value("space_id")
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    security_groups: Vec<Group>,
}

struct Agent {
    client: Client,
    server: String,
    metadata: PathBuf,
    interval: Duration,
    chains: Chains,
    log: Log,
    /// Held during a whole poll and a whole forced call.
    applied: Mutex<Applied>,
}

/// What the agent believes to be in force.
#[derive(Debug, Default)]
struct Applied {
    rules: HashMap<String, Vec<String>>,
    stamp: i64,
}

pub(crate) async fn serve(
    config: &Config,
    log: &Log,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let files = config.files("ca_cert_file", "client_cert_file", "client_key_file")?;
    let tls = ClientTls::load(&files).context("mutual tls config")?.rustls_config()?;
    let client = Client::builder()
        .tls_backend_preconfigured(tls.as_ref().clone())
        .http1_only()
        .no_proxy()
        .timeout(config.seconds("client_timeout_seconds")?)
        .build()?;
    let agent = Arc::new(Agent {
        client,
        server: config.text("policy_server_url")?,
        metadata: config.path("cni_datastore_path")?,
        interval: config.seconds("asg_poll_interval")?,
        chains: Chains {
            iptables: config.text_or("iptables_path", "iptables"),
            lock: config.path("iptables_lock_file")?,
        },
        log: log.clone(),
        applied: Mutex::default(),
    });
    // The original asks for all policies once, only to see whether the server answers.
    agent.get("policies").await.context("policy-client-get-policies")?;
    let host = config.text("force_policy_poll_cycle_host")?;
    let port = config.port("force_policy_poll_cycle_port")?;
    let listener = Listener::tcp("force", &format!("{host}:{port}")).await?;
    let routes = Router::new()
        .route("/force-policy-poll-cycle", any(async || StatusCode::OK))
        .route("/force-asgs-for-container", any(force))
        .route("/force-orphaned-asgs-cleanup", any(clean_up))
        .with_state(Arc::clone(&agent));
    log.info("starting", &json!({}));
    let http = Http::new(listener, None).serve(routes, shutdown.clone(), Duration::ZERO);
    tokio::join!(http, agent.poll(shutdown.clone()));
    log.info("exited", &json!({}));
    Ok(())
}

impl Agent {
    /// Polls until a shutdown; a cycle in progress is finished.
    async fn poll(&self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(sleep(self.interval)).await.is_some() {
            if let Err(error) = self.cycle().await {
                self.log.error("poll-cycle", &error);
            }
        }
    }

    async fn cycle(&self) -> anyhow::Result<()> {
        let mut applied = self.applied.lock().await;
        let stamp = self.get("security_groups_last_updated").await;
        let stamp = stamp.and_then(|text| Ok(text.parse::<i64>()?)).unwrap_or_default();
        if stamp != 0 && stamp <= applied.stamp {
            return Ok(());
        }
        let entries = self.entries()?;
        let groups = self.security_groups(&entries).await.context("get-asg-rules")?;
        let mut failed = Vec::new();
        let mut wanted = Vec::new();
        for entry in entries.iter().rev() {
            match self.enforce(&mut applied, entry, &groups).await {
                Ok(chain) => wanted.extend(chain),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        let chains = self.chains.clone();
        let all: Vec<String> = entries.iter().map(|entry| chains::asg(&entry.handle)).collect();
        applied.rules.retain(|chain, _rules| all.contains(chain));
        // Chains of earlier successes count as wanted, too.
        wanted.extend(applied.rules.keys().cloned());
        let swept = spawn_blocking(move || chains.sweep(&wanted)).await?;
        failed.extend(swept.err().map(|error| format!("{error:#}")));
        if !failed.is_empty() {
            bail!("enforce-asg: {}", failed.join(", "));
        }
        applied.stamp = stamp;
        self.log.info("applied", &json!({ "stamp": stamp, "containers": entries.len() }));
        Ok(())
    }

    /// Returns the container's chain, if it has one.
    async fn enforce(
        &self,
        applied: &mut Applied,
        entry: &Entry,
        groups: &[Group],
    ) -> anyhow::Result<Option<String>> {
        let Some(space) = entry.space() else { return Ok(None) };
        let workload = entry.value("container_workload").and_then(Workload::parse);
        let rules = rules::chain(workload, space, groups)?;
        let chain = chains::asg(&entry.handle);
        if applied.rules.get(&chain) != Some(&rules) {
            let (chains, handle, new) = (self.chains.clone(), entry.handle.clone(), rules.clone());
            spawn_blocking(move || chains.enforce(&handle, &new)).await??;
            applied.rules.insert(chain.clone(), rules);
        }
        Ok(Some(chain))
    }

    async fn force(&self, handle: &str) -> anyhow::Result<()> {
        let mut applied = self.applied.lock().await;
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.handle == handle);
        let groups = self.security_groups(&entries).await?;
        for entry in &entries {
            self.enforce(&mut applied, entry, &groups).await?;
        }
        Ok(())
    }

    async fn clean_up(&self, handle: &str) -> anyhow::Result<()> {
        let mut applied = self.applied.lock().await;
        applied.rules.remove(&chains::asg(handle));
        let (chains, handle) = (self.chains.clone(), handle.to_owned());
        spawn_blocking(move || chains.clean_up(&handle)).await?
    }

    /// The containers, by handle.
    fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let lock = format!("{}_lock", self.metadata.display());
        let lock = std::fs::File::options().create(true).truncate(false).write(true).open(lock)?;
        lock.lock()?;
        let text = std::fs::read_to_string(&self.metadata).unwrap_or_default();
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let entries: BTreeMap<String, Entry> =
            runtime::json::from_str(&text).context("datastore")?;
        Ok(entries.into_values().collect())
    }

    async fn security_groups(&self, entries: &[Entry]) -> anyhow::Result<Vec<Group>> {
        let spaces: BTreeSet<&str> = entries.iter().filter_map(Entry::space).collect();
        let spaces: Vec<&str> = spaces.into_iter().collect();
        let mut path = "security_groups?per_page=5000".to_owned();
        if !spaces.is_empty() {
            path += &format!("&space_guids={}", spaces.join(","));
        }
        let page: Page = runtime::json::from_str(&self.get(&path).await?)?;
        Ok(page.security_groups)
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("{}/networking/v1/internal/{path}", self.server);
        let sent = match self.client.get(&url).send().await {
            // As Go's client: once more if a kept connection ended instead of a response.
            Err(error) if !error.is_timeout() && !error.is_connect() => {
                self.client.get(&url).send().await
            }
            sent => sent,
        };
        let answer = sent?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        if status > 299 {
            bail!("http status {status}: {text}");
        }
        Ok(text)
    }
}

type Parameters = Query<HashMap<String, String>>;

async fn force(State(agent): State<Arc<Agent>>, Query(query): Parameters) -> Response {
    let Some(handle) = query.get("container") else {
        return (StatusCode::BAD_REQUEST, "no container specified").into_response();
    };
    match agent.force(handle).await {
        Ok(()) => format!("updated container {handle}").into_response(),
        Err(error) => {
            agent.log.error("force-asgs-for-container", &error);
            let text = format!("failed to update asgs for container {handle}: {error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn clean_up(State(agent): State<Arc<Agent>>, Query(query): Parameters) -> Response {
    let Some(handle) = query.get("container") else {
        return (StatusCode::BAD_REQUEST, "no container specified").into_response();
    };
    match agent.clean_up(handle).await {
        Ok(()) => format!("cleaned up ASGs for container {handle}").into_response(),
        Err(error) => {
            let text = format!("failed to cleanup ASGs for container {handle}: {error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
