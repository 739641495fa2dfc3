//! The files, ports and programs of the foundation: every job has one configuration file,
//! with which both the original's stand-in and ours start.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use certificates::{Authority, Files};
use cluster::control;
use cluster::process::Program;
use cluster::topology::{Cell, OVERLAY};
use runtime::tls::ClientTls;
use serde_json::{Value, json};

use crate::database::Server;

/// Instances of each job of the control plane, and cells.
pub(crate) const INSTANCES: usize = 2;
pub(crate) const CELLS: u8 = 2;

/// Whose program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Original,
    Ours,
}

/// A job of the foundation; its name in the foundation is that of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    CloudController,
    Locket(usize),
    Syncer(usize),
    /// policy-server-internal, or the policy store.
    Policies(usize),
    Agent(Cell),
}

impl Job {
    /// The name of its process and of its files.
    pub(crate) fn name(self) -> String {
        match self {
            Self::CloudController => "cloud-controller".to_owned(),
            Self::Locket(number) => format!("locket-{number}"),
            Self::Syncer(number) => format!("policy-server-asg-syncer-{number}"),
            Self::Policies(number) => format!("policy-server-internal-{number}"),
            Self::Agent(cell) => format!("vxlan-policy-agent-{}", cell.name()),
        }
    }
}

/// Ports on 127.0.0.1, below those of outgoing connections, so that a job finds its port
/// free when it is started again.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) api: u16,
    pub(crate) internal_api: u16,
    pub(crate) uaa: u16,
    pub(crate) lockets: [u16; INSTANCES],
    /// `locket.service.cf.internal`
    pub(crate) locket: u16,
    /// The JSON API of each instance.
    pub(crate) policies: [u16; INSTANCES],
    pub(crate) healths: [u16; INSTANCES],
    /// `policy-server.service.cf.internal`, in the cells.
    pub(crate) policy: u16,
    /// The gRPC of each policy store.
    pub(crate) stores: [u16; INSTANCES],
    pub(crate) admins: [u16; INSTANCES],
    /// `policy-store.service.cf.internal`
    pub(crate) store: u16,
}

impl Ports {
    fn choose() -> anyhow::Result<Self> {
        let mut taken = BTreeSet::new();
        let mut free = || -> anyhow::Result<u16> {
            let tries = (0..1_000).map(|_| fastrand::u16(10_000..20_000));
            let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
            let port = tries.into_iter().find(|port| is_free(port) && taken.insert(*port));
            port.context("no port on 127.0.0.1 is free")
        };
        Ok(Self {
            api: free()?,
            internal_api: free()?,
            uaa: free()?,
            lockets: [free()?, free()?],
            locket: free()?,
            policies: [free()?, free()?],
            healths: [free()?, free()?],
            policy: free()?,
            stores: [free()?, free()?],
            admins: [free()?, free()?],
            store: free()?,
        })
    }
}

/// Directories, certificates and configuration files.
#[derive(Debug)]
pub(crate) struct Site {
    root: PathBuf,
    own: PathBuf,
    binaries: PathBuf,
    iptables: String,
    pub(crate) ports: Ports,
    server: Files,
    client: Files,
    cell: Files,
}

impl Site {
    /// Writes all files below the directory.
    pub(crate) fn write(
        root: &Path,
        binaries: PathBuf,
        iptables: &str,
        database: &Server,
    ) -> anyhow::Result<Self> {
        let cells = Cell::all(CELLS).map(Cell::name);
        for directory in cells.chain(["config", "logs"].map(str::to_owned)) {
            remove(&root.join(directory))?;
        }
        let authority = Authority::create(&root.join("certificates"))?;
        let names = ["localhost", "127.0.0.1"];
        let site = Self {
            root: root.to_owned(),
            own: std::env::current_exe()?,
            binaries,
            iptables: iptables.to_owned(),
            ports: Ports::choose()?,
            server: authority.issue("server", &names)?,
            client: authority.issue("syncer", &names)?,
            cell: authority.issue_in_unit("cell", "cell", &[])?,
        };
        for directory in ["config", "logs"] {
            fs::create_dir_all(root.join(directory))?;
        }
        site.write_config(Job::CloudController, &site.cloud_controller())?;
        for number in 0..INSTANCES {
            site.write_config(Job::Locket(number), &site.locket(number, database))?;
            site.write_config(Job::Syncer(number), &site.syncer(number, database))?;
            site.write_config(Job::Policies(number), &site.policies(number, database))?;
        }
        for cell in Cell::all(CELLS) {
            fs::create_dir_all(site.cell_directory(cell).join("container-metadata"))?;
            site.write_config(Job::Agent(cell), &site.agent(cell))?;
        }
        Ok(site)
    }

    fn write_config(&self, job: Job, config: &Value) -> anyhow::Result<()> {
        let path = self.config(job);
        fs::write(&path, serde_json::to_string_pretty(config)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn config(&self, job: Job) -> PathBuf {
        self.root.join("config").join(format!("{}.json", job.name()))
    }

    /// The log of a job, of both sides.
    pub(crate) fn log(&self, job: Job) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", job.name()))
    }

    fn cell_directory(&self, cell: Cell) -> PathBuf {
        self.root.join(cell.name())
    }

    pub(crate) fn metadata(&self, cell: Cell) -> PathBuf {
        self.cell_directory(cell).join("container-metadata").join("store.json")
    }

    pub(crate) fn ca(&self) -> &Path {
        &self.server.ca
    }

    /// The client side of Locket's clients.
    pub(crate) fn client_tls(&self) -> anyhow::Result<ClientTls> {
        Ok(ClientTls::load(&self.client.clone().into())?)
    }

    /// The client side of a cell.
    pub(crate) fn cell_tls(&self) -> anyhow::Result<ClientTls> {
        Ok(ClientTls::load(&self.cell.clone().into())?)
    }

    /// The command line of a job.
    pub(crate) fn program(&self, job: Job, side: Side) -> Program {
        let config = self.config(job).into_os_string();
        let original = |program: &str| {
            let arguments = ["original", program, "--config-file"].map(Into::into);
            (self.own.clone(), arguments.into_iter().chain([config.clone()]).collect())
        };
        let ours = |program: &str, flag: &str| {
            (self.binaries.join(program), vec![flag.into(), config.clone()])
        };
        let (executable, arguments) = match (job, side) {
            (Job::CloudController, _) => {
                let arguments = ["cloud-controller", "--config-file"].map(Into::into);
                (self.own.clone(), arguments.into_iter().chain([config]).collect())
            }
            (Job::Locket(_), Side::Original) => original("locket"),
            (Job::Locket(_), Side::Ours) => ours("lock-server", "-config"),
            (Job::Syncer(_), Side::Original) => original("policy-server-asg-syncer"),
            (Job::Syncer(_), Side::Ours) => ours("syncer", "-config-file"),
            (Job::Policies(_), Side::Original) => original("policy-server-internal"),
            (Job::Policies(_), Side::Ours) => ours("policy-store", "-config-file"),
            (Job::Agent(_), Side::Original) => original("vxlan-policy-agent"),
            (Job::Agent(_), Side::Ours) => ours("cell-agent", "-config-file"),
        };
        Program { name: job.name(), executable, arguments, log: self.log(job) }
    }

    /// The command that creates the originals' tables.
    pub(crate) fn migrate(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.own);
        command
            .args(["original", "migrate-db", "--config-file"])
            .arg(self.config(Job::Policies(0)));
        command
    }

    fn cloud_controller(&self) -> Value {
        let Ports { api, internal_api, uaa, .. } = &self.ports;
        let Files { ca, cert, key } = &self.server;
        json!({
            "api_address": local(*api), "uaa_address": local(*uaa),
            "internal_address": local(*internal_api),
            "tls": { "cert_file": cert, "key_file": key },
            "internal_tls": { "ca_file": ca, "cert_file": cert, "key_file": key },
        })
    }

    fn locket(&self, number: usize, database: &Server) -> Value {
        let Files { ca, cert, key } = &self.server;
        let (driver, connection) = database.locks();
        json!({
            "listen_address": local(self.ports.lockets[number]),
            "ca_file": ca, "cert_file": cert, "key_file": key,
            "database_driver": driver, "database_connection_string": connection,
            "max_open_database_connections": 10, "max_database_connection_lifetime": "1h",
            "report_interval": "1m", "log_level": "info", "time_format": "rfc3339",
        })
    }

    fn syncer(&self, number: usize, database: &Server) -> Value {
        let ports = &self.ports;
        let Files { ca, cert, key } = &self.client;
        json!({
            "uuid": syncer_uuid(number),
            "asg_poll_interval_seconds": 1, "retry_deadline_seconds": 300,
            "database": database.groups(),
            "uaa_client": "network-policy", "uaa_client_secret": "network-policy-secret",
            "uaa_url": "https://127.0.0.1", "uaa_port": ports.uaa, "uaa_ca": ca,
            "cc_url": format!("https://{}", local(ports.api)), "cc_ca_cert": ca,
            "cc_internal_url": format!("https://{}", local(ports.internal_api)),
            "cc_internal_ca_cert": ca, "cc_internal_client_cert": cert,
            "cc_internal_client_key": key,
            "locket_address": local(ports.locket), "locket_ca_cert_file": ca,
            "locket_client_cert_file": cert, "locket_client_key_file": key,
            "log_level": "info", "log_prefix": "cfnetworking",
            // Ours.
            "policy_store_address": local(ports.store), "policy_store_ca_cert_file": ca,
            "policy_store_client_cert_file": cert, "policy_store_client_key_file": key,
        })
    }

    fn policies(&self, number: usize, database: &Server) -> Value {
        let ports = &self.ports;
        let Files { ca, cert, key } = &self.server;
        json!({
            "listen_host": "127.0.0.1", "internal_listen_port": ports.policies[number],
            "health_check_port": ports.healths[number],
            "ca_cert_file": ca, "server_cert_file": cert, "server_key_file": key,
            "database": database.groups(), "tag_length": 2,
            "max_idle_connections": 10, "max_open_connections": 200,
            "log_level": "info", "log_prefix": "cfnetworking",
            // Ours.
            "grpc_listen_address": local(ports.stores[number]),
            "admin_listen_address": local(ports.admins[number]),
            // The groups change every 2 s.
            "cell_id_from": "any", "stale_after_seconds": 15,
        })
    }

    fn agent(&self, cell: Cell) -> Value {
        let ports = &self.ports;
        let Files { ca, cert, key } = &self.cell;
        let directory = self.cell_directory(cell);
        json!({
            "poll_interval": 5, "asg_poll_interval": 1, "enable_asg_syncing": true,
            "cni_datastore_path": self.metadata(cell),
            "policy_server_url": format!("https://{}", local(ports.policy)),
            "ca_cert_file": ca, "client_cert_file": cert, "client_key_file": key,
            "client_timeout_seconds": 5, "vni": 1,
            "iptables_lock_file": directory.join("iptables.lock"),
            "force_policy_poll_cycle_host": "127.0.0.1",
            "force_policy_poll_cycle_port": control::PORT,
            "debug_server_host": "127.0.0.1", "debug_server_port": 8721,
            "overlay_network": OVERLAY, "underlay_ips": [cell.underlay()],
            "log_level": "info", "log_prefix": "cfnetworking",
            // Ours; the stand-in reads iptables_path, too.
            "iptables_path": self.iptables, "data_plane": "iptables",
            "cell_id": cell.name(), "policy_store_address": local(ports.store),
            "state_directory": directory.join("agent"),
            "control_socket": directory.join("agent.sock"),
        })
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

/// The owner of a syncer's lock.
pub(crate) fn syncer_uuid(number: usize) -> String {
    format!("syncer-{number}")
}

/// A port on 127.0.0.1 as an address.
pub(crate) fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
