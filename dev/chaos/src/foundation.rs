//! The running foundation: processes, network, containers, and the faults done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use cluster::network::{Attachment, Network};
use cluster::process::{Death, Processes};
use cluster::state::State;
use cluster::topology::{Cell, Name, UNDERLAY};
use cni::metadata::{Entry, Store};
use cni::namespace::Namespace;
use cni::tools;
use nix::sys::signal::Signal;
use storage::testing::TestServer;

use crate::links::{self, Cut};
use crate::schedule::{Fault, Kind, Part};
use crate::site::{IPTABLES, Plane, Site};

/// The file that fills a disk.
const FILLER: &str = "filler";

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) cell: u8,
    pub(crate) handle: String,
    attachment: Attachment,
}

/// All parts. [`Foundation::end`] stops and removes them from any state.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) site: Arc<Site>,
    name: Name,
    network: Network,
    state: State,
    processes: Processes,
    database: Option<Arc<TestServer>>,
    containers: BTreeMap<String, Container>,
    cuts: Vec<Cut>,
    /// Parts whose process may end because of a fault.
    excused: BTreeSet<Part>,
}

impl Foundation {
    pub(crate) fn new(
        name: Name,
        site: Arc<Site>,
        network: Network,
        state: State,
        processes: Processes,
        database: Option<Arc<TestServer>>,
    ) -> Self {
        let (containers, cuts, excused) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        Self { site, name, network, state, processes, database, containers, cuts, excused }
    }

    /// Prepares the network, and starts all parts.
    pub(crate) async fn start_all(&mut self) -> anyhow::Result<()> {
        let shape = self.site.shape;
        for cell in 1..=shape.cells {
            // Every rejected packet is answered: the kernel limits these answers by default.
            let resident = self.network.cell(self.site.place(Part::Agent(cell))?)?.resident();
            resident.set("net/ipv4/icmp_ratemask", "0").await?;
        }
        let addresses = |parts: Vec<Part>| -> anyhow::Result<Vec<Ipv4Addr>> {
            parts.into_iter().map(|part| self.site.address(part)).collect()
        };
        let locks = addresses((1..=shape.lock_servers).map(Part::LockServer).collect())?;
        let stores = addresses((1..=shape.policy_stores).map(Part::PolicyStore).collect())?;
        links::install(&self.name.router(), &locks, &stores)?;
        for part in shape.parts() {
            self.start(part).await?;
        }
        Ok(())
    }

    /// The addresses at which parts see the database server, each on its own link.
    pub(crate) fn database_addresses(&self) -> anyhow::Result<Vec<SocketAddrV4>> {
        let Some(server) = &self.database else { return Ok(Vec::new()) };
        let links = self.site.shape.links().into_iter();
        let clients = links.filter(|(_, to)| *to == Part::Database).map(|(from, _)| from);
        clients
            .map(|part| Ok(SocketAddrV4::new(self.site.place(part)?.router(), server.port())))
            .collect()
    }

    pub(crate) fn outside(&self) -> anyhow::Result<&Namespace> {
        self.network.outside()
    }

    async fn start(&mut self, part: Part) -> anyhow::Result<()> {
        let program = self.site.program(part);
        if !program.executable.is_file() {
            bail!("{} is not there; build it, or name its directory", program.executable.display());
        }
        let resident = self.network.cell(self.site.place(part)?)?.resident();
        self.processes.start(&program, resident, &mut self.state).await.map(drop)
    }

    /// Starts a part that ended by itself, as a process supervisor does.
    pub(crate) async fn start_again(&mut self, death: &Death) -> anyhow::Result<()> {
        self.processes.note_death(death, &mut self.state)?;
        let parts = self.site.shape.parts();
        match parts.into_iter().find(|part| part.to_string() == death.name) {
            Some(part) => self.start(part).await,
            None => Ok(()),
        }
    }

    /// Whether a fault may have ended the process.
    pub(crate) fn is_excused(&self, process: &str) -> bool {
        self.excused.iter().any(|part| part.to_string() == process)
    }

    /// The beginning of a fault.
    pub(crate) async fn harm(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match fault.kind {
            Kind::Kill(Part::Database) => self.with_database(|server| server.kill()).await,
            Kind::Pause(Part::Database) => self.with_database(|server| server.pause()).await,
            Kind::Kill(part) => self.processes.kill(&part.to_string(), &mut self.state).await,
            Kind::Pause(part) => self.processes.signal(&part.to_string(), Signal::SIGSTOP),
            Kind::Cut { from, to, both, percent } => {
                let (a, b) = self.ends(from, to)?;
                let cut = |from, to| Cut { fault: fault.number, from, to, percent };
                self.cuts.push(cut(a, b));
                if both {
                    self.cuts.push(cut(b, a));
                }
                Ok(links::cut(&self.name.router(), &self.cuts)?)
            }
            Kind::Flush(cell) => self.flush(cell),
            Kind::Renew(part) => self.site.issue(part),
            Kind::Tear(part) => {
                self.excused.insert(part);
                self.site.tear(part)
            }
            Kind::Expire(part) => {
                self.excused.insert(part);
                self.site.expire(part)
            }
            Kind::Fill(part) => {
                self.excused.insert(part);
                fill(&self.site.disk(part).join(FILLER))
            }
            Kind::Err(way) => Ok(std::fs::write(self.site.trouble(), way)?),
        }
    }

    /// The end of a fault.
    pub(crate) async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match fault.kind {
            Kind::Kill(Part::Database) => self.with_database(|server| server.restart()).await,
            Kind::Pause(Part::Database) => self.with_database(|server| server.resume()).await,
            Kind::Kill(part) => self.start(part).await,
            Kind::Pause(part) => self.processes.signal(&part.to_string(), Signal::SIGCONT),
            Kind::Cut { .. } => {
                self.cuts.retain(|cut| cut.fault != fault.number);
                Ok(links::cut(&self.name.router(), &self.cuts)?)
            }
            Kind::Flush(_) | Kind::Renew(_) => Ok(()),
            Kind::Tear(part) | Kind::Expire(part) => {
                self.excused.remove(&part);
                self.site.issue(part)
            }
            Kind::Fill(part) => {
                self.excused.remove(&part);
                Ok(std::fs::remove_file(self.site.disk(part).join(FILLER))?)
            }
            Kind::Err(_) => Ok(std::fs::remove_file(self.site.trouble())?),
        }
    }

    async fn with_database(
        &self,
        work: impl FnOnce(&TestServer) + Send + 'static,
    ) -> anyhow::Result<()> {
        let server = Arc::clone(self.database.as_ref().context("there is no database server")?);
        tokio::task::spawn_blocking(move || work(&server)).await.context("the database server")
    }

    /// The addresses of both ends. A client sees the database server at the router.
    fn ends(&self, from: Part, to: Part) -> anyhow::Result<(Ipv4Addr, Ipv4Addr)> {
        let end = |part, peer| match part {
            Part::Database => Ok(self.site.place(peer)?.router()),
            part => self.site.address(part),
        };
        Ok((end(from, to)?, end(to, from)?))
    }

    /// Removes the agent's rules behind its back.
    fn flush(&self, cell: u8) -> anyhow::Result<()> {
        let namespace = self.name.cell(self.site.place(Part::Agent(cell))?);
        match self.site.plane {
            Plane::Nftables => {
                let flush = ["nft", "flush", "table", "inet", "portcullis"];
                tools::run("ip", [&["netns", "exec", &namespace][..], &flush].concat())?;
            }
            Plane::Iptables => {
                let listing =
                    tools::run("ip", ["netns", "exec", &namespace, "iptables-legacy", "-S"])?;
                let chains = listing.lines().filter_map(|line| line.strip_prefix("-N "));
                for chain in chains.filter(|chain| chain.starts_with("asg-")) {
                    let flush = ["netns", "exec", &namespace, IPTABLES, "-w", "-F", chain];
                    tools::run("ip", flush)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a container's network and metadata, in the order of the CNI plugin. Its rules are
    /// not in force yet. Returns its handle.
    pub(crate) async fn attach(
        &mut self,
        cell: u8,
        name: &str,
        space: &str,
    ) -> anyhow::Result<String> {
        let place = self.site.place(Part::Agent(cell))?;
        let attachment = self.network.attach(place, name, &mut self.state).await?;
        let [handle, app] = [(); 2].map(|()| uuid::Uuid::new_v4().to_string());
        let address = attachment.address;
        let container = Container { cell, handle: handle.clone(), attachment };
        self.containers.insert(name.to_owned(), container);
        if self.site.plane == Plane::Iptables {
            self.chains(place, &added(&handle, address))?;
        }
        let entry = Entry::app(&handle, address, &app, space);
        Store::at(self.site.metadata(cell)).add(entry)?;
        Ok(handle)
    }

    pub(crate) fn container(&self, name: &str) -> anyhow::Result<&Namespace> {
        let container = self.containers.get(name);
        Ok(&container
            .with_context(|| format!("there is no container {name}"))?
            .attachment
            .namespace)
    }

    /// A container of that cell.
    pub(crate) fn any_handle(&self, cell: u8) -> Option<String> {
        let mut on_cell = self.containers.values().filter(|container| container.cell == cell);
        on_cell.next().map(|container| container.handle.clone())
    }

    /// Removes a container's metadata and network. Returns its handle.
    pub(crate) fn detach(&mut self, name: &str) -> anyhow::Result<String> {
        let container = self.containers.remove(name);
        let Container { cell, handle, attachment } =
            container.with_context(|| format!("there is no container {name}"))?;
        Store::at(self.site.metadata(cell)).remove(&handle)?;
        let (place, address) = (attachment.cell, attachment.address);
        self.network.detach(attachment, &mut self.state)?;
        if self.site.plane == Plane::Iptables {
            self.chains(place, &removed(&handle, address))?;
        }
        Ok(handle)
    }

    /// The chains that the CNI plugin makes (docs/compatibility/vxlan-policy-agent.md#cni-chains).
    fn chains(&self, cell: Cell, text: &str) -> anyhow::Result<()> {
        let namespace = self.name.cell(cell);
        let restore = format!("{IPTABLES}-restore");
        let command = ["netns", "exec", &namespace, &restore, "--noflush", "--wait"];
        tools::run_with_input("ip", command, text)?;
        Ok(())
    }

    /// Stops and removes everything; continues after a failure and returns the first error.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for name in self.processes.names() {
            result = result.and(self.processes.kill(&name, &mut self.state).await);
        }
        for container in std::mem::take(&mut self.containers).into_values() {
            result = result.and(self.network.detach(container.attachment, &mut self.state));
        }
        result = result.and(self.site.unmount().map_err(Into::into));
        result.and(self.network.lower(&mut self.state)).context("removing the foundation")
    }
}

/// Writes until the disk is full.
fn fill(file: &Path) -> anyhow::Result<()> {
    let mut file = File::create(file)?;
    let block = [0; 64 << 10];
    loop {
        match file.write(&block) {
            Ok(_length) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("filling a disk"),
        }
    }
}

fn netout(handle: &str) -> String {
    format!("netout--{handle}").chars().take(28).collect()
}

fn added(handle: &str, address: Ipv4Addr) -> String {
    let netout = netout(handle);
    format!(
        "*filter\n:{netout} - [0:0]\n-A FORWARD -s {address} -o {UNDERLAY} -j {netout}\n\
         -A {netout} -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n"
    )
}

/// The agent's own jumps in the chain go with it.
fn removed(handle: &str, address: Ipv4Addr) -> String {
    let netout = netout(handle);
    format!(
        "*filter\n-D FORWARD -s {address} -o {UNDERLAY} -j {netout}\n-F {netout}\n-X {netout}\n\
         COMMIT\n"
    )
}
