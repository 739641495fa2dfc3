//! A control plane on loopback: certificates, configuration files and processes.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    fs,
    hash::{BuildHasher as _, Hasher as _},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use certificates::{Authority, Files};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    grpcurl::{self, Answer, Target},
    process::{CLIENT_SECRET, Process},
    wait,
};

/// A temporary directory with a certificate authority and the files of the services.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
    authority: Authority,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// # Panics
    /// The temporary directory cannot be created.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let authority = Authority::create(&directory.path().join("certs"))
            .expect("a development authority can be made");
        Self { directory, authority }
    }

    /// The path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Issues a server and client certificate for this machine.
    ///
    /// # Panics
    /// The certificate cannot be created.
    pub fn certificate(&self, name: &str) -> Files {
        self.authority.issue(name, &["localhost", "127.0.0.1"]).expect("a certificate can be made")
    }

    /// Issues a certificate for a cell.
    ///
    /// # Panics
    /// The certificate cannot be created.
    pub fn cell_certificate(&self, name: &str) -> Files {
        let made = self.authority.issue_in_unit("cell", name, &["localhost", "127.0.0.1"]);
        made.expect("a certificate can be made")
    }

    /// Writes a configuration file.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn config(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, value.to_string()).expect("a configuration file can be written");
        path
    }
}

/// A free port below the ephemeral range, so that no outgoing connection takes it before
/// the service binds.
///
/// # Panics
/// None of a hundred ports is free.
pub fn free_port() -> u16 {
    (0..100_u64)
        .map(|attempt| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(attempt);
            u16::try_from(10_000 + hasher.finish() % 20_000).expect("below 30,000")
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of a hundred ports is free")
}

/// A running lock server.
#[derive(Debug)]
pub struct LockServer {
    /// The process.
    pub process: Process,
    /// Address of the gRPC server.
    pub address: String,
    /// Server certificate, valid for clients too.
    pub files: Files,
    config: PathBuf,
}

impl LockServer {
    /// Starts a lock server and waits until it is ready.
    pub fn start(site: &Site) -> Self {
        Self::start_as(site, "lock-server")
    }

    /// Starts a lock server whose files have this name.
    pub fn start_as(site: &Site, name: &str) -> Self {
        Self::start_on(site, name, Ipv4Addr::LOCALHOST)
    }

    /// Starts a lock server that listens on this address, or on all.
    pub fn start_on(site: &Site, name: &str, listen: Ipv4Addr) -> Self {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let files = site.certificate(name);
        let config = site.config(
            name,
            &json!({
                "listen_address": format!("{listen}:{port}"),
                "ca_file": files.ca, "cert_file": files.cert, "key_file": files.key,
                "database_driver": "sqlite",
                "database_connection_string": site.path(&format!("{name}.db")),
                "log_level": "debug", "time_format": "rfc3339",
                "debug_address": "127.0.0.1:0",
            }),
        );
        let process = Process::serve("lock-server", "-config", &config);
        process.wait_for("locket.started");
        Self { process, address, files, config }
    }

    /// Address of the admin endpoint.
    ///
    /// # Panics
    /// The log does not contain the address.
    pub fn debug_address(&self) -> String {
        let line = self.process.wait_for("locket.debug-server.bound");
        line["data"]["address"].as_str().expect("an address").to_owned()
    }

    /// Acquires or refreshes a lock with a time to live of 60 seconds.
    ///
    /// # Panics
    /// The lock server refuses the request.
    pub fn lock(&self, key: &str, owner: &str) {
        let request = json!({
            "resource": { "key": key, "owner": owner, "type_code": "LOCK" },
            "ttl_in_seconds": 60,
        });
        let target = Target::Tls(&self.address, &self.files);
        let answer = grpcurl::run(&target, Some(&request.to_string()), &["models.Locket/Lock"]);
        assert!(answer.success, "{answer:?}");
    }

    /// Starts the lock server again with the same files.
    pub fn restart(&mut self) {
        self.process = Process::serve("lock-server", "-config", &self.config);
        self.process.wait_for("locket.started");
    }
}

/// A control plane: Cloud Controller, lock server, policy store, and syncers.
#[derive(Debug)]
pub struct ControlPlane {
    /// The files.
    pub site: Site,
    /// The lock server.
    pub lock_server: LockServer,
    /// The policy store.
    pub policy_store: Process,
    /// Address of the policy store's gRPC server.
    pub store_address: String,
    /// The Cloud Controller with an administrator's token.
    pub cloud: CloudController,
    /// The operator's certificate.
    pub operator: Files,
    syncer: Files,
}

/// The development Cloud Controller and an administrator's token.
#[derive(Debug)]
pub struct CloudController {
    process: Process,
    api: String,
    uaa_port: u16,
    internal: String,
    http: reqwest::blocking::Client,
    token: String,
}

/// Time to live of the syncers' lock in these tests, in seconds.
pub const LOCK_TTL: u64 = 3;

/// Addresses for a syncer.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// host:port of the lock server.
    pub lock_server: String,
    /// host:port of the policy store.
    pub policy_store: String,
    /// URL of the Cloud Controller's v3 API.
    pub api: String,
    /// URL of its internal API.
    pub internal_api: String,
    /// Configured time to live of the lock in seconds.
    pub lock_ttl: Option<u64>,
    /// The section `otlp`, if any.
    pub otlp: Option<Value>,
}

impl ControlPlane {
    /// Starts all but the syncers, and waits until the services are ready.
    pub fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST)
    }

    /// Like [`Self::start`]; lock server and policy store listen on this address, or on all.
    pub fn start_on(listen: Ipv4Addr) -> Self {
        runtime::tls::install_provider();
        let site = Site::new();
        let lock_server = LockServer::start_on(&site, "lock-server", listen);
        let port = free_port();
        let store_address = format!("127.0.0.1:{port}");
        let files = site.certificate("policy-store");
        let config = json!({
            "grpc_listen_address": format!("{listen}:{port}"),
            "admin_listen_address": "127.0.0.1:0",
            "ca_cert_file": files.ca, "server_cert_file": files.cert, "server_key_file": files.key,
            "database": { "type": "sqlite", "path": site.path("policy-store.db") },
            "log_level": "debug",
        });
        site.config("policy-store", &config);
        let policy_store = Self::serve_store(&site);
        let cloud = CloudController::start(&site);
        let (operator, syncer) = (site.certificate("operator"), site.certificate("syncer"));
        Self { site, lock_server, policy_store, store_address, cloud, operator, syncer }
    }

    fn serve_store(site: &Site) -> Process {
        let process =
            Process::serve("policy-store", "-config-file", &site.path("policy-store.json"));
        process.wait_for("policy-server-internal.started");
        process
    }

    /// Starts the policy store again with the same files.
    pub fn restart_store(&mut self) {
        self.policy_store = Self::serve_store(&self.site);
    }

    /// Starts a syncer of this name.
    pub fn syncer(&self, name: &str) -> Process {
        self.syncer_among(name, &self.surroundings())
    }

    /// The addresses for a syncer without proxies.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            lock_server: self.lock_server.address.clone(),
            policy_store: self.store_address.clone(),
            api: self.cloud.api.clone(),
            internal_api: self.cloud.internal.clone(),
            lock_ttl: Some(LOCK_TTL),
            otlp: None,
        }
    }

    /// Starts a syncer with these addresses.
    pub fn syncer_among(&self, name: &str, surroundings: &Surroundings) -> Process {
        let Surroundings { lock_server, policy_store, api, internal_api, lock_ttl, otlp } =
            surroundings;
        let files = &self.syncer;
        let mut config = json!({
            "uuid": name,
            "uaa_client": "network-policy", "uaa_client_secret": CLIENT_SECRET,
            "uaa_url": "http://127.0.0.1", "uaa_port": self.cloud.uaa_port,
            "cc_url": api, "cc_internal_url": internal_api,
            "cc_internal_ca_cert": files.ca,
            "cc_internal_client_cert": files.cert, "cc_internal_client_key": files.key,
            "locket_address": lock_server,
            "locket_ca_cert_file": files.ca,
            "locket_client_cert_file": files.cert, "locket_client_key_file": files.key,
            "policy_store_address": policy_store,
            "policy_store_ca_cert_file": files.ca,
            "policy_store_client_cert_file": files.cert,
            "policy_store_client_key_file": files.key,
            "cc_timeout_seconds": 5,
            "log_level": "info", "debug_server_port": 0,
        });
        if let Some(section) = otlp {
            config["otlp"] = section.clone();
        }
        if let Some(ttl) = lock_ttl {
            config["lock_ttl_seconds"] = json!(ttl);
            config["lock_retry_interval_seconds"] = json!(ttl / 3);
        }
        Process::serve("syncer", "-config-file", &self.site.config(name, &config))
    }

    /// Status of the policy store.
    ///
    /// # Panics
    /// No answer within the timeout.
    pub fn store_status(&self) -> Value {
        wait::until("the status of the policy store", || {
            let answer = self.store("Status", "{}");
            serde_json::from_str(&answer.stdout).map_err(|_| answer.stderr)
        })
    }

    /// Calls the policy store with a real grpcurl.
    pub fn store(&self, method: &str, request: &str) -> Answer {
        let target = Target::Tls(&self.store_address, &self.operator);
        let method = format!("portcullis.policy.v1.PolicyStore/{method}");
        grpcurl::run(&target, Some(request), &[&method])
    }

    /// Waits until the store's groups are those of the Cloud Controller.
    ///
    /// # Panics
    /// The groups differ at the end of the timeout.
    pub fn wait_until_synced(&self) {
        wait::until("the store to have the Cloud Controller's groups", || {
            let (wanted, stored) = (self.cloud.group_names(), self.stored_names());
            if wanted == stored { Ok(()) } else { Err(format!("{stored:?}, not {wanted:?}")) }
        });
    }

    /// The destination of the first rule of each group in the store, by name.
    pub fn stored_destinations(&self) -> BTreeMap<String, String> {
        let answer = self.store("List", r#"{"all":true,"page_size":5000}"#);
        let page: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        destinations(&page["groups"], |group| &group["group"])
    }

    /// The names of the groups in the store.
    pub fn stored_names(&self) -> BTreeSet<String> {
        let answer = self.store("List", r#"{"all":true,"page_size":5000}"#);
        let page: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        names(&page["groups"], |group| &group["group"]["name"])
    }

    /// Owner of the syncers' lock.
    pub fn leader(&self) -> Option<String> {
        let target = Target::Tls(&self.lock_server.address, &self.operator);
        let request = r#"{"key":"policy-server-asg-syncer"}"#;
        let answer = grpcurl::run(&target, Some(request), &["models.Locket/Fetch"]);
        let answer: Value = serde_json::from_str(&answer.stdout).ok()?;
        answer["resource"]["owner"].as_str().map(str::to_owned)
    }
}

fn destinations(list: &Value, group: impl Fn(&Value) -> &Value) -> BTreeMap<String, String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |group: &Value| (text(&group["name"]), text(&group["rules"][0]["destination"]));
    items.iter().map(|item| entry(group(item))).collect()
}

fn names(list: &Value, name: impl Fn(&Value) -> &Value) -> BTreeSet<String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| name(item).as_str().map(str::to_owned)).collect()
}

impl CloudController {
    fn start(site: &Site) -> Self {
        let [api, uaa, internal] = [(); 3].map(|()| free_port());
        let files = site.certificate("cloud-controller");
        let config = json!({
            "api_address": format!("127.0.0.1:{api}"),
            "uaa_address": format!("127.0.0.1:{uaa}"),
            "internal_address": format!("127.0.0.1:{internal}"),
            "internal_tls": { "ca_file": files.ca, "cert_file": files.cert, "key_file": files.key },
        });
        let config = site.config("cloud-controller", &config).display().to_string();
        let process =
            Process::start("portcullis-dev", &["cloud-controller", "--config-file", &config]);
        let http = reqwest::blocking::Client::new();
        let form = [("grant_type", "password"), ("username", "admin"), ("password", "admin")];
        let token = wait::until("a token of the UAA", || {
            let url = format!("http://127.0.0.1:{uaa}/oauth/token");
            let answer = http.post(url).basic_auth("cf", Some("")).form(&form).send();
            let answer: Value =
                answer.and_then(|answer| answer.json()).map_err(|error| error.to_string())?;
            answer["access_token"].as_str().map(str::to_owned).ok_or_else(|| answer.to_string())
        });
        Self {
            process,
            api: format!("http://127.0.0.1:{api}"),
            uaa_port: uaa,
            internal: format!("https://127.0.0.1:{internal}"),
            http,
            token,
        }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// URL of the v3 API.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    fn call(&self, method: &reqwest::Method, path: &str, body: Option<&Value>) -> Value {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.api));
        request = request.bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let status = answer.status();
        let text = answer.text().unwrap_or_default();
        assert!(status.is_success(), "{method} {path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Creates a group with one rule and returns its GUID.
    pub fn create_group(&self, name: &str, destination: &str) -> String {
        let body = json!({
            "name": name,
            "rules": [{ "protocol": "all", "destination": destination }],
            "globally_enabled": { "running": true },
        });
        let group = self.call(&reqwest::Method::POST, "/v3/security_groups", Some(&body));
        group["guid"].as_str().expect("a group has a guid").to_owned()
    }

    /// Replaces the rules of a group by one rule.
    pub fn change_group(&self, guid: &str, destination: &str) {
        let body = json!({ "rules": [{ "protocol": "all", "destination": destination }] });
        let path = format!("/v3/security_groups/{guid}");
        self.call(&reqwest::Method::PATCH, &path, Some(&body));
    }

    /// Deletes a group.
    pub fn delete_group(&self, guid: &str) {
        self.call(&reqwest::Method::DELETE, &format!("/v3/security_groups/{guid}"), None);
    }

    /// The destination of the first rule of each group, by name.
    pub fn group_destinations(&self) -> BTreeMap<String, String> {
        let page = self.call(&reqwest::Method::GET, "/v3/security_groups?per_page=5000", None);
        destinations(&page["resources"], |group| group)
    }

    /// The names of all groups.
    pub fn group_names(&self) -> BTreeSet<String> {
        let page = self.call(&reqwest::Method::GET, "/v3/security_groups?per_page=5000", None);
        names(&page["resources"], |group| &group["name"])
    }
}
