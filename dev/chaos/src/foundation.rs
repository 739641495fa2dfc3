//! The running foundation: processes, network, containers, and the faults done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::network::{Attachment, Network};
use cluster::process::{Death, Processes};
use cluster::state::State;
use cluster::topology::{Cell, Name, UNDERLAY};
use cni::metadata::{Entry, Store};
use cni::namespace::Namespace;
use cni::tools;
use nix::sys::signal::Signal;
use swap::front::Pool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::delay::Delays;
use crate::disk::{self, Disk};
use crate::fault::{Fault, Kind};
use crate::links::{self, Cut, Slow};
use crate::part::Part;
use crate::site::{IPTABLES, Plane, Site};

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
    database: Option<Arc<Database>>,
    containers: BTreeMap<String, Container>,
    cuts: Vec<Cut>,
    slow: Vec<Slow>,
    delays: Delays,
    /// Disks that are slow, until the token is cancelled.
    slow_disks: BTreeMap<u32, (CancellationToken, JoinSet<anyhow::Result<()>>)>,
    /// Parts whose process may end because of a fault.
    excused: BTreeSet<Part>,
    /// Parts that a fault has ended.
    down: BTreeSet<Part>,
    /// Parts that run the earlier release.
    earlier: BTreeSet<Part>,
}

impl Foundation {
    pub(crate) fn new(
        name: Name,
        site: Arc<Site>,
        network: Network,
        state: State,
        processes: Processes,
        database: Option<Arc<Database>>,
    ) -> Self {
        let (cuts, slow, delays) = (Vec::new(), Vec::new(), Delays::default());
        let (excused, down, earlier) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (containers, slow_disks) = (BTreeMap::new(), BTreeMap::new());
        Self {
            site,
            name,
            network,
            state,
            processes,
            database,
            containers,
            cuts,
            slow,
            delays,
            slow_disks,
            excused,
            down,
            earlier,
        }
    }

    /// The task that delays the packets of slow links; it runs in the router's namespace.
    pub(crate) fn delaying(
        &self,
        shutdown: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        self.delays.clone().carry(self.name.router(), shutdown)
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
    pub(crate) fn database_addresses(&self) -> anyhow::Result<Vec<(SocketAddrV4, Arc<Pool>)>> {
        let Some(database) = &self.database else { return Ok(Vec::new()) };
        let links = self.site.shape.links().into_iter();
        let clients = links.filter(|(_, to)| *to == Part::Database).map(|(from, _)| from);
        let address = |part| {
            let router = self.site.place(part)?.router();
            Ok((SocketAddrV4::new(router, database.port()), database.pool()))
        };
        clients.map(address).collect()
    }

    pub(crate) fn outside(&self) -> anyhow::Result<&Namespace> {
        self.network.outside()
    }

    async fn start(&mut self, part: Part) -> anyhow::Result<()> {
        let program = self.site.program(part, self.earlier.contains(&part))?;
        let resident = self.network.cell(self.site.place(part)?)?.resident();
        self.down.remove(&part);
        self.processes.start(&program, resident, &mut self.state).await.map(drop)
    }

    /// Ends a part, which may have ended by itself; it stays down.
    async fn end_part(&mut self, part: Part) -> anyhow::Result<()> {
        self.down.insert(part);
        let name = part.to_string();
        if self.processes.mark(&name).is_none() {
            return Ok(());
        }
        self.processes.kill(&name, &mut self.state).await
    }

    /// Starts a part that ended by itself, as a process supervisor does.
    pub(crate) async fn start_again(&mut self, death: &Death) -> anyhow::Result<()> {
        self.processes.note_death(death, &mut self.state)?;
        let parts = self.site.shape.parts();
        let part = parts.into_iter().find(|part| part.to_string() == death.name);
        let runs = self.processes.mark(&death.name).is_some();
        match part {
            Some(part) if !runs && !self.down.contains(&part) => self.start(part).await,
            _ => Ok(()),
        }
    }

    /// Whether a fault may have ended the process.
    pub(crate) fn is_excused(&self, process: &str) -> bool {
        self.excused.iter().any(|part| part.to_string() == process)
    }

    /// The beginning of a fault.
    pub(crate) async fn harm(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let number = fault.number;
        match fault.kind {
            Kind::Kill(Part::Database) => self.with_database(|server| server.kill()).await,
            Kind::Pause(Part::Database) => self.with_database(|server| server.pause()).await,
            Kind::Failover => self.with_database(Database::fail_over).await,
            Kind::Kill(part) => self.end_part(part).await,
            Kind::TornFile(part) => {
                self.end_part(part).await?;
                disk::tear(&self.site.database_file(part))
            }
            Kind::Pause(part) => self.processes.signal(&part.to_string(), Signal::SIGSTOP),
            Kind::Cut { from, to, both, percent } => {
                let (a, b) = self.ends(from, to)?;
                let cut = |from, to| Cut { fault: number, from, to, percent };
                self.cuts.push(cut(a, b));
                if both {
                    self.cuts.push(cut(b, a));
                }
                self.harm_links()
            }
            Kind::Delay { from, to, milliseconds } => {
                let ends: [Ipv4Addr; 2] = self.ends(from, to)?.into();
                self.delays.add(ends, Duration::from_millis(milliseconds.into()));
                self.slow.push(Slow { fault: number, ends });
                self.harm_links()
            }
            Kind::Flush(cell) => self.flush(cell),
            Kind::Renew(part) => self.site.issue(part),
            Kind::Err(error) => Ok(std::fs::write(self.site.trouble(), error.word())?),
            Kind::Step { part, seconds } => self.site.set_clock(part, seconds),
            Kind::Tear(part)
            | Kind::Expire(part)
            | Kind::Fill(part)
            | Kind::Slow(part)
            | Kind::Earlier(part) => {
                self.excused.insert(part);
                self.harm_part(part, fault).await
            }
        }
    }

    /// A fault whose part may end by itself.
    async fn harm_part(&mut self, part: Part, fault: &Fault) -> anyhow::Result<()> {
        match fault.kind {
            Kind::Tear(_) => self.site.tear(part),
            Kind::Expire(_) => self.site.expire(part),
            Kind::Fill(_) => self.site.disk(part).fill(),
            Kind::Slow(_) => {
                let end = CancellationToken::new();
                let mut slow = JoinSet::new();
                slow.spawn(Disk::slow(self.site.disk(part), end.clone()));
                self.slow_disks.insert(fault.number, (end, slow));
                Ok(())
            }
            Kind::Earlier(_) => {
                self.end_part(part).await?;
                self.earlier.insert(part);
                self.start(part).await
            }
            _ => Ok(()),
        }
    }

    /// The end of a fault.
    pub(crate) async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.excused.retain(|part| !fault.kind.parts().contains(part));
        match fault.kind {
            Kind::Kill(Part::Database) => self.with_database(|server| server.restart()).await,
            Kind::Pause(Part::Database) => self.with_database(|server| server.resume()).await,
            Kind::Failover => self.with_database(Database::return_killed).await,
            Kind::Kill(part) | Kind::TornFile(part) => self.start(part).await,
            Kind::Pause(part) => self.processes.signal(&part.to_string(), Signal::SIGCONT),
            Kind::Cut { .. } => {
                self.cuts.retain(|cut| cut.fault != fault.number);
                self.harm_links()
            }
            Kind::Delay { from, to, .. } => {
                self.slow.retain(|slow| slow.fault != fault.number);
                self.harm_links()?;
                self.delays.remove(self.ends(from, to)?.into());
                Ok(())
            }
            Kind::Flush(_) | Kind::Renew(_) => Ok(()),
            Kind::Tear(part) | Kind::Expire(part) => self.site.issue(part),
            Kind::Fill(part) => self.site.disk(part).empty(),
            Kind::Slow(_) => {
                let slow = self.slow_disks.remove(&fault.number);
                let (end, mut slow) = slow.context("a disk that is not slow")?;
                end.cancel();
                slow.join_next().await.context("the slow disk")??
            }
            Kind::Step { part, .. } => self.site.set_clock(part, 0),
            Kind::Earlier(part) => {
                self.end_part(part).await?;
                self.earlier.remove(&part);
                self.start(part).await
            }
            Kind::Err(_) => Ok(std::fs::remove_file(self.site.trouble())?),
        }
    }

    fn harm_links(&self) -> anyhow::Result<()> {
        Ok(links::harm(&self.name.router(), &self.cuts, &self.slow)?)
    }

    async fn with_database(
        &self,
        work: impl FnOnce(&Database) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let server = Arc::clone(self.database.as_ref().context("there is no database server")?);
        tokio::task::spawn_blocking(move || work(&server)).await.context("the database server")?
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
                    // The agent may have removed the chain meanwhile.
                    let _flushed = tools::run("ip", flush);
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
        for (end, mut slow) in std::mem::take(&mut self.slow_disks).into_values() {
            end.cancel();
            while let Some(ended) = slow.join_next().await {
                result = result.and(ended.unwrap_or_else(|panic| Err(panic.into())));
            }
        }
        for part in self.site.shape.with_files() {
            result = result.and(self.site.disk(part).unmount().map_err(Into::into));
        }
        result = result.and(remove_shared_memory().context("the files of libfaketime"));
        result.and(self.network.lower(&mut self.state)).context("removing the foundation")
    }
}

/// Removes the files that libfaketime leaves for each killed process.
fn remove_shared_memory() -> std::io::Result<()> {
    for file in std::fs::read_dir("/dev/shm")? {
        let name = file?.file_name().into_string().unwrap_or_default();
        let pid = ["faketime_shm_", "sem.faketime_sem_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix));
        let is_left = |pid: &str| {
            pid.parse::<u32>().is_ok() && !std::fs::exists(format!("/proc/{pid}")).unwrap_or(true)
        };
        if pid.is_some_and(is_left) {
            std::fs::remove_file(format!("/dev/shm/{name}"))?;
        }
    }
    Ok(())
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
