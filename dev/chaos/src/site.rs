//! The files, addresses and programs of the foundation. Each part has a network namespace of
//! its own, with a link to the router: the cells 1 to 5 are cells, the others are the VMs of
//! the control plane.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use certificates::{Authority, Files};
use cluster::process::Program;
use cluster::topology::Cell;
use runtime::tls::ClientTls;

use crate::database::Database;
use crate::disk::Disk;
use crate::part::{Part, Shape};

pub(crate) const API: u16 = 9022;
pub(crate) const INTERNAL_API: u16 = 9023;
pub(crate) const UAA: u16 = 8443;
pub(crate) const LOCKS: u16 = 8891;
pub(crate) const STORE: u16 = 4004;

/// `locket.service.cf.internal`: the router sends a connection to any instance.
pub(crate) const LOCKS_NAME: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// `policy-store.service.cf.internal`.
pub(crate) const STORE_NAME: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

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

/// Lets a process have a wall clock of its own, from Debian's package faketime.
const FAKE_CLOCK: &str = if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"
} else {
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
};
/// Preloads that library for one program. `LD_PRELOAD` would hold for its children too, which share
/// a semaphore: a killed child that has it lets all later ones hang.
const LOADER: &str = if cfg!(target_arch = "aarch64") {
    "/lib/ld-linux-aarch64.so.1"
} else {
    "/lib64/ld-linux-x86-64.so.2"
};

/// The prefix of the programs of iptables.
pub(crate) const IPTABLES: &str = "iptables-legacy";

/// Directories, certificates and configuration files.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) root: PathBuf,
    own: PathBuf,
    binaries: Binaries,
    pub(crate) plane: Plane,
    pub(crate) shape: Shape,
    authority: Authority,
    operator: Files,
    watcher: Files,
}

/// The directories of the services' programs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) current: PathBuf,
    /// Those of an earlier release.
    pub(crate) earlier: Option<PathBuf>,
}

impl Site {
    /// Writes all files below the directory, and mounts the disks.
    pub(crate) fn write(
        root: &Path,
        binaries: Binaries,
        plane: Plane,
        shape: Shape,
        database: Option<&Database>,
    ) -> anyhow::Result<Self> {
        // A killed run leaves its disks mounted.
        for part in (Shape { has_database: false, ..shape }).with_files() {
            Disk::at(disk(root, part)).unmount_leftover();
        }
        let cells = (1..=shape.cells).map(|number| format!("cell-{number}"));
        for directory in cells.chain(["config", "logs", "data"].map(str::to_owned)) {
            remove(&root.join(directory))?;
        }
        for directory in ["config", "logs", "data"] {
            fs::create_dir_all(root.join(directory))?;
        }
        for part in shape.with_files() {
            Disk::at(disk(root, part)).mount()?;
        }
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
            site.prepare(part, database)?;
        }
        Ok(site)
    }

    /// Writes the files of a part.
    fn prepare(&self, part: Part, database: Option<&Database>) -> anyhow::Result<()> {
        self.issue(part)?;
        self.set_clock(part, 0)?;
        if let Part::Agent(number) = part {
            fs::create_dir_all(self.cell(number).join("container-metadata"))?;
            fs::create_dir_all(self.cell(number).join("agent"))?;
        }
        let path = self.config(part);
        let text = serde_json::to_string_pretty(&self.configuration(part, database))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
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

    pub(crate) fn certificate(&self, part: Part) -> Files {
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

    pub(crate) fn at(&self, part: Part, port: u16) -> String {
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
    pub(crate) fn disk(&self, part: Part) -> Disk {
        Disk::at(disk(&self.root, part))
    }

    /// The database file of a part with SQLite.
    pub(crate) fn database_file(&self, part: Part) -> PathBuf {
        let name = if matches!(part, Part::LockServer(_)) { "locks.db" } else { "groups.db" };
        disk(&self.root, part).join(name)
    }

    /// Lets the wall clock of a part be wrong by so many seconds.
    pub(crate) fn set_clock(&self, part: Part, seconds: i32) -> anyhow::Result<()> {
        let path = self.clock(part);
        fs::write(&path, format!("{seconds:+}\n")).with_context(|| path.display().to_string())
    }

    fn clock(&self, part: Part) -> PathBuf {
        self.root.join("config").join(format!("{part}.clock"))
    }

    fn config(&self, part: Part) -> PathBuf {
        self.root.join("config").join(format!("{part}.json"))
    }

    pub(crate) fn cell(&self, number: u8) -> PathBuf {
        self.root.join(format!("cell-{number}"))
    }

    pub(crate) fn metadata(&self, cell: u8) -> PathBuf {
        self.cell(cell).join("container-metadata").join("store.json")
    }

    pub(crate) fn socket(&self, cell: u8) -> PathBuf {
        self.cell(cell).join("agent.sock")
    }

    /// The command line of a part, of the current or the earlier release.
    pub(crate) fn program(&self, part: Part, is_earlier: bool) -> anyhow::Result<Program> {
        let earlier = self.binaries.earlier.as_ref().filter(|_| is_earlier);
        let directory = earlier.unwrap_or(&self.binaries.current);
        let (executable, flags) = match part {
            Part::CloudController | Part::Database => {
                (self.own.clone(), &["cloud-controller", "--config-file"][..])
            }
            Part::LockServer(_) => (directory.join("lock-server"), &["-config"][..]),
            Part::PolicyStore(_) => (directory.join("policy-store"), &["-config-file"][..]),
            Part::Syncer(_) => (directory.join("syncer"), &["-config-file"][..]),
            Part::Agent(_) => (directory.join("cell-agent"), &["-config-file"][..]),
        };
        for (file, advice) in [
            (executable.as_path(), "build it, or name its directory"),
            (FAKE_CLOCK.as_ref(), "install the package faketime"),
            (LOADER.as_ref(), "a system with glibc has it"),
        ] {
            if !file.is_file() {
                bail!("{} is not there: {advice}", file.display());
            }
        }
        let mut clock = OsString::from("FAKETIME_TIMESTAMP_FILE=");
        clock.push(self.clock(part));
        // The file is read again every second. The monotonic clock does not jump.
        let mut arguments: Vec<OsString> =
            ["FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"]
                .map(OsString::from)
                .into();
        arguments.push(clock);
        arguments.extend([LOADER, "--preload", FAKE_CLOCK].map(OsString::from));
        arguments.push(executable.into_os_string());
        arguments.extend(flags.iter().map(OsString::from));
        arguments.push(self.config(part).into_os_string());
        let log = self.root.join("logs").join(format!("{part}.log"));
        Ok(Program { name: part.to_string(), executable: "/usr/bin/env".into(), arguments, log })
    }
}

fn disk(root: &Path, part: Part) -> PathBuf {
    root.join("data").join(part.to_string())
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
