//! The files, addresses and programs of the foundation. Each part has a network namespace of
//! its own, with a link to the router: the cells 1 to 5 are cells, the others are the VMs of
//! the control plane.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::Context;
use certificates::{Authority, Files};
use cluster::control;
use cluster::process::Program;
use cluster::topology::{Cell, OVERLAY};
use cni::tools;
use runtime::tls::ClientTls;
use serde_json::{Value, json};
use storage::server::Dialect;
use storage::testing::TestServer;

use crate::schedule::{Part, Shape};

pub(crate) const API: u16 = 9022;
pub(crate) const INTERNAL_API: u16 = 9023;
pub(crate) const UAA: u16 = 8443;
pub(crate) const LOCKS: u16 = 8891;
pub(crate) const STORE: u16 = 4004;

/// `locket.service.cf.internal`: the router sends a connection to any instance.
pub(crate) const LOCKS_NAME: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// `policy-store.service.cf.internal`.
pub(crate) const STORE_NAME: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

/// The databases of a shared server.
const LOCKS_DATABASE: &str = "locket";
const GROUPS_DATABASE: &str = "network_policy";

/// The data plane of the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Plane {
    /// A table of our own
    Nftables,
    /// The original's chains, with iptables-legacy
    Iptables,
}

impl Plane {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// The size of a disk: enough for the databases of an hour.
const DISK: &str = "96m";

/// The prefix of the programs of iptables.
pub(crate) const IPTABLES: &str = "iptables-legacy";

/// Directories, certificates and configuration files.
#[derive(Debug)]
pub(crate) struct Site {
    root: PathBuf,
    own: PathBuf,
    binaries: PathBuf,
    pub(crate) plane: Plane,
    pub(crate) shape: Shape,
    authority: Authority,
    operator: Files,
    watcher: Files,
}

impl Site {
    /// Writes all files below the directory.
    pub(crate) fn write(
        root: &Path,
        binaries: PathBuf,
        plane: Plane,
        shape: Shape,
        database: Option<&TestServer>,
    ) -> anyhow::Result<Self> {
        let cells = (1..=shape.cells).map(|number| format!("cell-{number}"));
        for disk in disks(root, Shape { has_database: false, ..shape }) {
            // Of an earlier run that was killed; usually there is none.
            let _none = tools::run("umount", [&disk]);
        }
        for directory in cells.chain(["config", "logs", "data"].map(str::to_owned)) {
            remove(&root.join(directory))?;
        }
        for directory in ["config", "logs", "data"] {
            fs::create_dir_all(root.join(directory))?;
        }
        mount(root, shape)?;
        let authority = Authority::create(&root.join("certificates"))?;
        let site = Self {
            operator: authority.issue("operator", &[])?,
            watcher: authority.issue_in_unit("cell", "watcher", &[])?,
            root: root.to_owned(),
            own: std::env::current_exe()?,
            binaries,
            plane,
            shape,
            authority,
        };
        for part in shape.parts() {
            site.issue(part)?;
            let config = match part {
                Part::CloudController => site.cloud_controller(),
                Part::LockServer(_) => site.lock_server(part, database),
                Part::PolicyStore(_) => site.policy_store(part, database),
                Part::Syncer(_) => site.syncer(part),
                Part::Agent(number) => {
                    fs::create_dir_all(site.cell(number).join("container-metadata"))?;
                    fs::create_dir_all(site.cell(number).join("agent"))?;
                    site.agent(number)
                }
                Part::Database => continue,
            };
            let path = site.config(part);
            fs::write(&path, serde_json::to_string_pretty(&config)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(site)
    }

    /// Writes a new certificate of a part.
    pub(crate) fn issue(&self, part: Part) -> anyhow::Result<()> {
        let names = self.names(part)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match part {
            Part::Agent(number) => {
                self.authority.issue_in_unit("cell", &format!("cell-{number}"), &[])?
            }
            _ => self.authority.issue(&part.to_string(), &names)?,
        };
        Ok(())
    }

    /// Writes a certificate of a part that has expired.
    pub(crate) fn expire(&self, part: Part) -> anyhow::Result<()> {
        let names = self.names(part)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match part {
            Part::Agent(number) => {
                self.authority.issue_expired(Some("cell"), &format!("cell-{number}"), &[])?
            }
            _ => self.authority.issue_expired(None, &part.to_string(), &names)?,
        };
        Ok(())
    }

    /// The names of a server in its certificate.
    fn names(&self, part: Part) -> anyhow::Result<[String; 5]> {
        let address = self.address(part)?;
        let names = [LOCKS_NAME, STORE_NAME, address, Ipv4Addr::LOCALHOST];
        let [locks, store, own, here] = names.map(|address| address.to_string());
        Ok(["localhost".to_owned(), here, own, locks, store])
    }

    /// Cuts the file of a part's certificate in half.
    pub(crate) fn tear(&self, part: Part) -> anyhow::Result<()> {
        let path = self.certificate(part).cert;
        let text = fs::read(&path)?;
        fs::write(&path, &text[..text.len() / 2]).with_context(|| path.display().to_string())
    }

    fn certificate(&self, part: Part) -> Files {
        let name = match part {
            Part::Agent(number) => format!("cell-{number}"),
            _ => part.to_string(),
        };
        let file = |extension| self.root.join("certificates").join(format!("{name}.{extension}"));
        Files { ca: self.authority.ca_file(), cert: file("crt"), key: file("key") }
    }

    /// The namespace of a part, as a cell of the network.
    pub(crate) fn place(&self, part: Part) -> anyhow::Result<Cell> {
        let Shape { cells, lock_servers, policy_stores, .. } = self.shape;
        let number = match part {
            Part::Agent(number) => number,
            Part::CloudController | Part::Database => cells + 1,
            Part::LockServer(number) => cells + 1 + number,
            Part::PolicyStore(number) => cells + 1 + lock_servers + number,
            Part::Syncer(number) => cells + 1 + lock_servers + policy_stores + number,
        };
        Cell::parse(&format!("cell-{number}")).map_err(anyhow::Error::msg)
    }

    /// The number of namespaces.
    pub(crate) fn places(shape: Shape) -> u8 {
        shape.cells + 1 + shape.lock_servers + shape.policy_stores + shape.syncers
    }

    pub(crate) fn address(&self, part: Part) -> anyhow::Result<Ipv4Addr> {
        Ok(self.place(part)?.underlay())
    }

    fn at(&self, part: Part, port: u16) -> String {
        let place = self.place(part).expect("the schedule has only parts of the shape");
        SocketAddrV4::new(place.underlay(), port).to_string()
    }

    pub(crate) fn url(&self, port: u16) -> String {
        format!("https://{}", self.at(Part::CloudController, port))
    }

    /// The lock servers' own addresses.
    pub(crate) fn lock_servers(&self) -> Vec<String> {
        (1..=self.shape.lock_servers).map(|n| self.at(Part::LockServer(n), LOCKS)).collect()
    }

    /// The policy stores, with their own addresses.
    pub(crate) fn policy_stores(&self) -> Vec<(String, String)> {
        let store = |number| {
            let part = Part::PolicyStore(number);
            (part.to_string(), self.at(part, STORE))
        };
        (1..=self.shape.policy_stores).map(store).collect()
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.authority.ca_file()
    }

    pub(crate) fn operator_tls(&self) -> anyhow::Result<ClientTls> {
        Ok(ClientTls::load(&self.operator.clone().into())?)
    }

    pub(crate) fn watcher_tls(&self) -> anyhow::Result<ClientTls> {
        Ok(ClientTls::load(&self.watcher.clone().into())?)
    }

    /// The file with the way in which the Cloud Controller errs.
    pub(crate) fn trouble(&self) -> PathBuf {
        self.root.join("data").join("trouble")
    }

    /// The disk of a part with SQLite.
    pub(crate) fn disk(&self, part: Part) -> PathBuf {
        self.root.join("data").join(part.to_string())
    }

    /// Unmounts the disks.
    pub(crate) fn unmount(&self) -> Result<(), tools::Error> {
        let disks = disks(&self.root, self.shape);
        disks.iter().try_for_each(|disk| tools::run("umount", [disk]).map(drop))
    }

    fn config(&self, part: Part) -> PathBuf {
        self.root.join("config").join(format!("{part}.json"))
    }

    fn cell(&self, number: u8) -> PathBuf {
        self.root.join(format!("cell-{number}"))
    }

    pub(crate) fn metadata(&self, cell: u8) -> PathBuf {
        self.cell(cell).join("container-metadata").join("store.json")
    }

    pub(crate) fn socket(&self, cell: u8) -> PathBuf {
        self.cell(cell).join("agent.sock")
    }

    /// The command line of a part.
    pub(crate) fn program(&self, part: Part) -> Program {
        let config = self.config(part).into_os_string();
        let ours = |program: &str, flag: &str| {
            (self.binaries.join(program), vec![flag.into(), config.clone()])
        };
        let (executable, arguments) = match part {
            Part::CloudController | Part::Database => {
                let arguments = ["cloud-controller", "--config-file"].map(Into::into);
                (self.own.clone(), arguments.into_iter().chain([config]).collect())
            }
            Part::LockServer(_) => ours("lock-server", "-config"),
            Part::PolicyStore(_) => ours("policy-store", "-config-file"),
            Part::Syncer(_) => ours("syncer", "-config-file"),
            Part::Agent(_) => ours("cell-agent", "-config-file"),
        };
        let log = self.root.join("logs").join(format!("{part}.log"));
        Program { name: part.to_string(), executable, arguments, log }
    }

    fn cloud_controller(&self) -> Value {
        let part = Part::CloudController;
        let Files { ca, cert, key } = self.certificate(part);
        json!({
            "api_address": self.at(part, API), "uaa_address": self.at(part, UAA),
            "internal_address": self.at(part, INTERNAL_API),
            "tls": { "cert_file": cert, "key_file": key },
            "internal_tls": { "ca_file": ca, "cert_file": cert, "key_file": key },
            "state_file": self.root.join("data").join("cloud-controller.json"),
            "trouble_file": self.trouble(),
        })
    }

    fn lock_server(&self, part: Part, database: Option<&TestServer>) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let (driver, connection) = match database {
            Some(server) => {
                (driver(server), server.connection_string(&self.router(part), LOCKS_DATABASE))
            }
            None => {
                let file = self.disk(part).join("locks.db");
                ("sqlite", file.to_string_lossy().into_owned())
            }
        };
        json!({
            "listen_address": self.at(part, LOCKS), "debug_address": "127.0.0.1:17018",
            "ca_file": ca, "cert_file": cert, "key_file": key,
            "database_driver": driver, "database_connection_string": connection,
            "log_level": "info", "time_format": "rfc3339",
        })
    }

    /// The router as that part sees it.
    fn router(&self, part: Part) -> String {
        let place = self.place(part).expect("the schedule has only parts of the shape");
        place.router().to_string()
    }

    fn policy_store(&self, part: Part, database: Option<&TestServer>) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let database = match database {
            Some(server) => json!({
                "type": driver(server), "user": "tester", "password": "secret",
                "host": self.router(part), "port": server.port(), "timeout": 60,
                "database_name": GROUPS_DATABASE,
            }),
            None => json!({
                "type": "sqlite", "path": self.disk(part).join("groups.db"),
            }),
        };
        let writers = (1..=self.shape.syncers).map(|n| format!("cn=syncer-{n}"));
        let writers: Vec<_> = writers.chain(["cn=operator".to_owned()]).collect();
        json!({
            "grpc_listen_address": self.at(part, STORE), "admin_listen_address": "127.0.0.1:4005",
            "ca_cert_file": ca, "server_cert_file": cert, "server_key_file": key,
            "database": database,
            "writer_identities": writers,
            "cell_identities": ["ou=cell"], "operator_identities": ["cn=operator"],
            "cell_id_from": "any", "log_level": "info",
        })
    }

    fn syncer(&self, part: Part) -> Value {
        let Files { ca, cert, key } = self.certificate(part);
        let controller = self.at(Part::CloudController, UAA);
        let controller = controller.split(':').next().unwrap_or_default();
        json!({
            "uuid": part.to_string(), "log_level": "info", "log_prefix": "cfnetworking",
            "debug_server_port": 17021,
            "cc_url": self.url(API), "cc_ca_cert": ca,
            "cc_internal_url": self.url(INTERNAL_API), "cc_internal_ca_cert": ca,
            "cc_internal_client_cert": cert, "cc_internal_client_key": key,
            "uaa_url": format!("https://{controller}"), "uaa_port": UAA, "uaa_ca": ca,
            "uaa_client": "network-policy", "uaa_client_secret": "network-policy-secret",
            "locket_address": format!("{LOCKS_NAME}:{LOCKS}"), "locket_ca_cert_file": ca,
            "locket_client_cert_file": cert, "locket_client_key_file": key,
            "policy_store_address": format!("{STORE_NAME}:{STORE}"),
            "policy_store_ca_cert_file": ca, "policy_store_client_cert_file": cert,
            "policy_store_client_key_file": key,
        })
    }

    fn agent(&self, number: u8) -> Value {
        let part = Part::Agent(number);
        let Files { ca, cert, key } = self.certificate(part);
        let directory = self.cell(number);
        json!({
            "cell_id": format!("cell-{number}"),
            "policy_store_address": format!("{STORE_NAME}:{STORE}"),
            "ca_cert_file": ca, "client_cert_file": cert, "client_key_file": key,
            "cni_datastore_path": self.metadata(number), "overlay_network": OVERLAY,
            "underlay_ips": [self.address(part).unwrap_or(Ipv4Addr::UNSPECIFIED)],
            "state_directory": directory.join("agent"), "control_socket": self.socket(number),
            "data_plane": self.plane.name(), "iptables_path": IPTABLES,
            "iptables_lock_file": directory.join("iptables.lock"),
            "force_policy_poll_cycle_host": "127.0.0.1",
            "force_policy_poll_cycle_port": control::PORT,
            "debug_server_host": "127.0.0.1", "debug_server_port": 8721, "log_level": "info",
        })
    }
}

/// The disks of the parts with SQLite, which can be full.
fn disks(root: &Path, shape: Shape) -> Vec<PathBuf> {
    if shape.has_database {
        return Vec::new();
    }
    let parts = [Part::LockServer(1), Part::PolicyStore(1)];
    parts.iter().map(|part| root.join("data").join(part.to_string())).collect()
}

/// Mounts a small disk for each part with SQLite.
fn mount(root: &Path, shape: Shape) -> anyhow::Result<()> {
    for disk in disks(root, shape) {
        fs::create_dir_all(&disk)?;
        let size = format!("size={DISK}");
        tools::run(
            "mount",
            [
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                size.as_ref(),
                "tmpfs".as_ref(),
                disk.as_os_str(),
            ],
        )?;
    }
    Ok(())
}

/// Starts a database server with the databases of the foundation.
pub(crate) fn database(dialect: Dialect) -> TestServer {
    let server = TestServer::start(dialect);
    for name in [LOCKS_DATABASE, GROUPS_DATABASE] {
        server.sql(&format!("CREATE DATABASE {name}"));
    }
    server
}

fn driver(server: &TestServer) -> &'static str {
    match server.dialect() {
        Dialect::Postgres => "postgres",
        Dialect::MySql => "mysql",
    }
}

/// Removes what an earlier run left.
fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _gone => Ok(()),
    }
}
