//! Servers that the load tools start: processes of our binaries with their own files.
//! They end with the tool.

mod lines;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use self::lines::{controls_by_log, data_of, listens_by_log, serves_http_by_log};
use super::connect::Target;
use super::empty;
use super::meter::{self, Usage};
use certificates::{Authority, Files};
use cni::namespace::Resident;
use cni::tools;

/// Timeout of a server's start, and of its shutdown.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of log reads meanwhile.
const GLANCE: Duration = Duration::from_millis(10);

/// Directory with the files of the servers, and certificates of a CA created for them.
#[derive(Debug)]
pub struct Site {
    directory: tempfile::TempDir,
    authority: Authority,
    files: Files,
    binaries: PathBuf,
    started: u32,
}

/// How a server is started.
#[derive(Debug, Clone)]
pub(super) struct Program {
    name: String,
    binary: PathBuf,
    arguments: Vec<OsString>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    pid: u32,
    /// Its listen address.
    address: String,
    files: Files,
    log: PathBuf,
}

/// Endpoints of a policy store: for its writer, and for its cells.
#[derive(Debug, Clone)]
pub struct Ends {
    /// For its writer.
    pub writer: Target,
    /// For its cells.
    pub cell: Target,
    /// Address that agents of the original poll: host:port.
    pub http: Option<String>,
}

/// A running development Cloud Controller.
#[derive(Debug)]
pub struct Cloud {
    /// The process.
    pub server: Server,
    /// URL of the v3 API.
    pub api: String,
    /// URL of the UAA.
    pub uaa: String,
    /// URL of the internal API.
    pub internal: String,
    /// The CA of its certificates, and the certificates of its clients.
    pub files: Files,
}

/// Timeout of a syncer's sync.
const SYNC: Duration = Duration::from_secs(300);

impl Site {
    /// The binaries are in this directory, or beside this program.
    pub fn new(binaries: Option<PathBuf>) -> anyhow::Result<Self> {
        Self::on("127.0.0.1", binaries)
    }

    /// The servers' certificates are also valid for this address.
    pub(super) fn on(host: &str, binaries: Option<PathBuf>) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this executable lies in a directory")?;
        let directory = tempfile::tempdir().context("making a directory for the servers")?;
        let authority = Authority::create(&directory.path().join("certificates"))?;
        let files = authority.issue("load", &["localhost", "127.0.0.1", host])?;
        let binaries = binaries.unwrap_or_else(|| beside.to_owned());
        Ok(Self { directory, authority, files, binaries, started: 0 })
    }

    /// The CA of all certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Files of the servers' certificate, which is valid for clients too.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// A new path for a server's file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{}-{name}", self.started))
    }

    /// A service of our binaries with a new configuration file.
    fn program(&self, name: &str, flag: &str, config: &Value) -> anyhow::Result<Program> {
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, config.to_string()).context("writing a configuration")?;
        let arguments = vec![flag.into(), path.into()];
        Ok(Program { name: name.to_owned(), binary: self.binaries.join(name), arguments })
    }

    /// A lock server with a new SQLite file, or on a database server.
    pub async fn lock_server(&mut self, database: Option<&Database>) -> anyhow::Result<Server> {
        self.started += 1;
        let Files { ca, cert, key } = &self.files;
        let (driver, connection) = match database {
            None => ("sqlite", json!(self.path("locks.db"))),
            Some(Database { driver, connection }) => (*driver, json!(connection)),
        };
        let config = json!({
            "listen_address": "127.0.0.1:0",
            "ca_file": ca, "cert_file": cert, "key_file": key,
            "database_driver": driver, "database_connection_string": connection,
            "max_open_database_connections": 200,
            "log_level": "info",
        });
        let program = self.program("lock-server", "-config", &config)?;
        self.serve(&program, listens_by_log).await
    }

    /// A policy store with a new SQLite file, and its endpoints.
    pub async fn policy_store(&mut self) -> anyhow::Result<(Server, Ends)> {
        let program = self.store_program("127.0.0.1:0", None)?;
        let mut server = self.serve(&program, listens_by_log).await?;
        let http = server.line(TIMEOUT, serves_http_by_log).await?;
        let ends = Ends { http: Some(http), ..self.ends(&server)? };
        Ok((server, ends))
    }

    /// A policy store with this gRPC address, which accepts any cell name with a cell's
    /// certificate; its `database`, or a new SQLite file.
    pub(super) fn store_program(
        &mut self,
        address: &str,
        database: Option<&Value>,
    ) -> anyhow::Result<Program> {
        self.started += 1;
        let Files { ca, cert, key } = &self.files;
        let own = json!({ "type": "sqlite", "path": self.path("groups.db") });
        let config = json!({
            "grpc_listen_address": address, "admin_listen_address": "127.0.0.1:0",
            "listen_host": "127.0.0.1", "internal_listen_port": 0,
            "ca_cert_file": ca, "server_cert_file": cert, "server_key_file": key,
            "database": database.unwrap_or(&own),
            "writer_identities": ["cn=writer"], "cell_identities": ["ou=cell"],
            "cell_id_from": "any",
            "log_level": "info",
        });
        self.program("policy-store", "-config-file", &config)
    }

    /// The endpoints of a policy store, without its HTTP API.
    pub(super) fn ends(&self, server: &Server) -> anyhow::Result<Ends> {
        let writer = self.client(server, "writer")?;
        let Files { ca: _, cert, key } = self.authority.issue_in_unit("cell", "cell", &[])?;
        let cell = Target { cert, key, ..server.target() };
        Ok(Ends { writer, cell, http: None })
    }

    /// A server for a client with this common name.
    pub(super) fn client(&self, server: &Server, name: &str) -> anyhow::Result<Target> {
        let Files { ca: _, cert, key } = self.authority.issue(name, &[])?;
        Ok(Target { cert, key, ..server.target() })
    }

    /// A cell agent that gets its groups from that store; the keys are added to its
    /// configuration. Its address is that of its control endpoints.
    pub async fn cell_agent(
        &mut self,
        store: &Target,
        keys: Map<String, Value>,
    ) -> anyhow::Result<Server> {
        let program = self.agent_program(store, keys)?;
        self.serve(&program, controls_by_log).await
    }

    /// The program of [`Self::cell_agent`].
    pub(super) fn agent_program(
        &mut self,
        store: &Target,
        keys: Map<String, Value>,
    ) -> anyhow::Result<Program> {
        self.started += 1;
        let Target { address, ca, cert, key, server_pid: _ } = store;
        let config = json!({
            "cell_id": "cell-1", "policy_store_address": address,
            "ca_cert_file": ca, "client_cert_file": cert, "client_key_file": key,
            "state_directory": self.path("state"), "control_socket": self.path("cell.sock"),
            "force_policy_poll_cycle_port": 0, "debug_server_port": 0,
            "log_level": "info",
        });
        let mut config = config.as_object().cloned().unwrap_or_default();
        config.extend(keys);
        self.program("cell-agent", "-config-file", &Value::Object(config))
    }

    /// A server of the empty call, or of responses over TLS alone.
    pub async fn empty(&mut self, bare: bool) -> anyhow::Result<Server> {
        self.started += 1;
        let Files { ca, cert, key } = &self.files;
        let mut arguments: Vec<OsString> =
            ["load", "empty-server", "--ca"].map(Into::into).to_vec();
        arguments.extend([ca.into(), "--cert".into(), cert.into(), "--key".into(), key.into()]);
        arguments.extend(bare.then(|| "--bare".into()));
        let (name, binary) = ("empty-server".to_owned(), std::env::current_exe()?);
        let listens = |text: &str| text.strip_prefix(empty::LISTENS).map(str::to_owned);
        self.serve(&Program { name, binary, arguments }, listens).await
    }

    /// A development Cloud Controller with TLS on all endpoints: `portcullis-dev` beside the
    /// other binaries, or else this program.
    pub async fn cloud_controller(&mut self) -> anyhow::Result<Cloud> {
        self.started += 1;
        let Files { ca, cert, key } = &self.files;
        let any = "127.0.0.1:0";
        let config = json!({
            "api_address": any, "uaa_address": any, "internal_address": any,
            "tls": { "cert_file": cert, "key_file": key },
            "internal_tls": { "ca_file": ca, "cert_file": cert, "key_file": key },
        });
        let mut program = self.program("cloud-controller", "--config-file", &config)?;
        program.arguments.insert(0, "cloud-controller".into());
        let beside = self.binaries.join("portcullis-dev");
        program.binary = if beside.exists() { beside } else { std::env::current_exe()? };
        let mut server = self.start(&program)?;
        let started = server.line(TIMEOUT, |line| data_of(line, "started")).await?;
        let url = |key: &str| started[key].as_str().unwrap_or_default().to_owned();
        let (api, uaa, internal) = (url("api"), url("uaa"), url("internal"));
        Ok(Cloud { server, api, uaa, internal, files: self.files.clone() })
    }

    /// A syncer between a Cloud Controller and a policy store.
    pub fn syncer(
        &mut self,
        cloud: &Cloud,
        locks: &Server,
        store: &Target,
    ) -> anyhow::Result<Server> {
        self.started += 1;
        let Files { ca, cert, key } = &self.files;
        let (uaa_url, uaa_port) = cloud.uaa.rsplit_once(':').context("the UAA has no port")?;
        let config = json!({
            "uuid": "load",
            "uaa_client": "network-policy", "uaa_client_secret": "network-policy-secret",
            "uaa_url": uaa_url, "uaa_port": uaa_port.parse::<u16>()?, "uaa_ca": ca,
            "cc_url": cloud.api, "cc_internal_url": cloud.internal,
            "cc_internal_ca_cert": ca, "cc_internal_client_cert": cert,
            "cc_internal_client_key": key,
            "locket_address": locks.address,
            "locket_ca_cert_file": ca, "locket_client_cert_file": cert,
            "locket_client_key_file": key,
            "policy_store_address": store.address,
            "policy_store_ca_cert_file": store.ca, "policy_store_client_cert_file": store.cert,
            "policy_store_client_key_file": store.key,
        });
        self.start(&self.program("syncer", "-config-file", &config)?)
    }

    async fn serve(
        &self,
        program: &Program,
        listens: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Server> {
        let mut server = self.start(program)?;
        server.address = server.line(TIMEOUT, listens).await?;
        Ok(server)
    }

    fn start(&self, program: &Program) -> anyhow::Result<Server> {
        let log = self.path(&format!("{}.log", program.name));
        let child = program.command(&log)?.spawn();
        self.adopt(program, child.map_err(Into::into), log)
    }

    /// Starts a program, also one that ran before, and returns at once.
    pub(super) fn start_again(&mut self, program: &Program) -> anyhow::Result<Server> {
        self.started += 1;
        self.start(program)
    }

    /// Starts a program in the namespace of a resident, and returns at once.
    pub(super) async fn start_in(
        &mut self,
        place: &Resident,
        program: &Program,
    ) -> anyhow::Result<Server> {
        self.started += 1;
        let log = self.path(&format!("{}.log", program.name));
        let child = place.spawn(program.command(&log)?).await;
        self.adopt(program, child, log)
    }

    fn adopt(
        &self,
        program: &Program,
        child: anyhow::Result<Child>,
        log: PathBuf,
    ) -> anyhow::Result<Server> {
        let Program { name, binary, arguments: _ } = program;
        let child = child.with_context(|| format!("starting {}", binary.display()))?;
        let pid = child.id().with_context(|| format!("{name} has ended already"))?;
        let (name, address, files) = (name.clone(), String::new(), self.files.clone());
        Ok(Server { name, child, pid, address, files, log })
    }
}

impl Program {
    /// Starts it in a process group of its own, so that Ctrl-C reaches only this tool. The
    /// kernel kills it when the thread that started it ends.
    fn command(&self, log: &Path) -> anyhow::Result<Command> {
        let out = File::create(log).context("making a log file")?;
        let mut command = Command::new(tools::find("setpriv")?);
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.binary).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }
}

impl Server {
    /// Waits for the first log line that `read` accepts.
    async fn line<T>(
        &mut self,
        wait: Duration,
        read: impl Fn(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + wait;
        loop {
            let text = self.output()?;
            if let Some(read) = text.lines().find_map(&read) {
                return Ok(read);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} and output: {text}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} is not there in time; it output: {text}", self.name);
            }
            sleep(GLANCE).await;
        }
    }

    fn output(&self) -> anyhow::Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Waits, within the sync timeout, for a log line whose message has this suffix and
    /// whose data match; returns the data.
    pub async fn log_line(
        &mut self,
        message: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        self.line(SYNC, |line| data_of(line, message).filter(&fits)).await
    }

    /// Its current and peak resource usage.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        meter::usage(&self.pid.to_string())
    }

    /// Its log file, with standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its listen address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its address and TLS files.
    pub fn target(&self) -> Target {
        let Files { ca, cert, key } = self.files.clone();
        Target { address: self.address.clone(), ca, cert, key, server_pid: Some(self.pid) }
    }

    /// Waits until it listens, and returns the time.
    pub(super) async fn listens(&mut self) -> anyhow::Result<Instant> {
        self.address = self.line(TIMEOUT, listens_by_log).await?;
        Ok(Instant::now())
    }

    /// Kills the server as `kill -9` does.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Ends the server, and waits for its exit.
    pub async fn end(self) -> anyhow::Result<()> {
        self.terminate()?;
        self.ended().await
    }

    /// Sends SIGTERM.
    pub(super) fn terminate(&self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("ending {}", self.name))
    }

    /// Waits for its exit after SIGTERM.
    pub(super) async fn ended(mut self) -> anyhow::Result<()> {
        let ended = timeout(TIMEOUT, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} does not end", self.name))??;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

/// A database server, as in `database_driver` and `database_connection_string`
/// (docs/compatibility/locket.md#configuration).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    driver: &'static str,
    connection: String,
}

impl Database {
    /// Whether it is MySQL or MariaDB.
    pub fn is_mysql(&self) -> bool {
        self.driver == "mysql"
    }
}

impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let driver = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            "postgres"
        } else if text.contains("@tcp(") {
            "mysql"
        } else {
            return Err(format!(
                "{text:?} is neither postgres://user@host/name nor user:password@tcp(host:port)/name"
            ));
        };
        Ok(Self { driver, connection: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_follows_from_the_connection_string() {
        let driver = |text: &str| text.parse().map(|database: Database| database.driver);
        assert_eq!(driver("postgres://u@h/locket"), Ok("postgres"));
        assert_eq!(driver("u:p@tcp(127.0.0.1:3306)/locket"), Ok("mysql"));
        assert!(driver("locket.db").unwrap_err().contains("locket.db"));
    }
}
