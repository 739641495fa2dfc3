//! The whole cluster: starts its parts in order, and stops a partly started cluster
//! too.
//!
//! Invariants:
//! - A part is started when the parts that it depends on are ready.
//! - [`Cluster::stop`] works from any state that [`Cluster::start`] left.
//! - Services of the launcher itself (the simulated internet, the cells' forwarding to
//!   the policy store) are supervised: their end cancels [`Cluster::broken`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use cni::metadata::Store;
use cni::namespace::Resident;
use cni::tools;
use runtime::supervise::Tasks;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::container::{Container, Identity, Wanted};
use super::control;
use super::forward::Forwarder;
use super::internet::Outside;
use super::layout::Layout;
use super::network::Network;
use super::ports::{self, Ports, SYNCERS};
use super::process::{Death, Processes, Program};
use super::settings::{self, CELL_UNIT, OPERATOR, SERVER, SYNCER};
use super::state::State;
use super::terminal::progress;
use super::topology::{Cell, Name};
use certificates::Authority;

/// Timeout until a part is ready, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Shutdown timeout of the launcher's own tasks.
const GRACE: Duration = Duration::from_secs(2);

/// Options of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Its name.
    pub(crate) name: Name,
    /// Initial number of cells.
    pub(crate) cells: u8,
    /// Initial number of apps.
    pub(crate) apps: u16,
    /// Directory of the services' executables.
    pub(crate) binaries: PathBuf,
    /// This executable, which also runs the Cloud Controller.
    pub(crate) own: PathBuf,
    /// Listen ports of the control plane.
    pub(crate) ports: Ports,
}

/// The network namespace of a process.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// The launcher's own namespace.
    Here,
    /// The namespace of a cell.
    On(Cell),
}

/// A cluster, possibly partly started.
#[derive(Debug)]
pub(crate) struct Cluster {
    options: Options,
    layout: Layout,
    state: State,
    here: Resident,
    network: Network,
    processes: Processes,
    programs: BTreeMap<String, (Program, Place)>,
    containers: BTreeMap<String, Container>,
    forwarders: BTreeMap<Cell, CancellationToken>,
    tasks: Tasks,
    shutdown: CancellationToken,
}

impl Cluster {
    /// A cluster without parts. Unexpected exits are sent to `deaths`.
    pub(crate) fn new(
        options: Options,
        state: State,
        deaths: mpsc::Sender<Death>,
    ) -> anyhow::Result<Self> {
        let shutdown = CancellationToken::new();
        Ok(Self {
            layout: Layout::below(state.directory()),
            network: Network::new(options.name.clone()),
            here: Resident::here()?,
            processes: Processes::new(deaths),
            programs: BTreeMap::new(),
            containers: BTreeMap::new(),
            forwarders: BTreeMap::new(),
            tasks: Tasks::new(shutdown.clone()),
            options,
            state,
            shutdown,
        })
    }

    /// Cancelled when a service of the launcher has failed.
    pub(crate) fn broken(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Its options.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Its files.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its network.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Its processes.
    pub(crate) fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// Starts everything, without containers.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.make_directories()?;
        self.issue_certificates()?;
        progress("network namespaces")?;
        self.network.raise(self.options.cells, &mut self.state).await?;
        let outside = Outside::bind(self.network.outside()?).await?;
        self.tasks.add("outside", outside.serve(self.shutdown.clone()));
        let cells: Vec<Cell> = self.network.cells().collect();
        for cell in &cells {
            self.forward(*cell).await?;
        }
        self.start_control_plane().await?;
        progress(&format!("{} cell agents", cells.len()))?;
        for cell in &cells {
            self.launch_agent(*cell).await?;
        }
        for cell in cells {
            self.wait_for_agent(cell).await?;
        }
        Ok(())
    }

    /// Adds a cell with its agent, and waits until the agent is ready.
    pub(crate) async fn add_cell(&mut self) -> anyhow::Result<Cell> {
        let cell = self.network.free_cell().context("the cluster has as many cells as it can")?;
        remove_directory(&self.layout.cell(cell))?;
        let authority = Authority::open(&self.layout.certificates())?;
        authority.issue_in_unit(CELL_UNIT, &cell.name(), &[])?;
        self.network.add_cell(cell, &mut self.state).await?;
        self.forward(cell).await?;
        self.launch_agent(cell).await?;
        self.wait_for_agent(cell).await?;
        Ok(cell)
    }

    /// Removes a cell with its agent and its containers.
    pub(crate) async fn remove_cell(&mut self, cell: Cell) -> anyhow::Result<()> {
        self.network.cell(cell)?;
        let on_cell = self.containers.values().filter(|container| container.wanted.cell == cell);
        let names: Vec<String> = on_cell.map(|container| container.wanted.name.clone()).collect();
        for name in names {
            self.remove_container(&name).await?;
        }
        let agent = settings::agent_name(cell);
        if self.processes.mark(&agent).is_some() {
            self.stop_process(&agent).await?;
        }
        self.programs.remove(&agent);
        if let Some(forwarder) = self.forwarders.remove(&cell) {
            forwarder.cancel();
        }
        self.network.remove_cell(cell, &mut self.state)
    }

    /// Forwards connections from a cell to the policy store.
    async fn forward(&mut self, cell: Cell) -> anyhow::Result<()> {
        let target = ports::local(self.options.ports.policy_store);
        let forwarder = Forwarder::bind(self.network.cell(cell)?, target).await?;
        let (removed, shutdown) = (self.shutdown.child_token(), self.shutdown.clone());
        self.forwarders.insert(cell, removed.clone());
        self.tasks.add("forwarder", async move {
            forwarder.serve(removed).await?;
            // When only a cell was removed, this task must not end, since its end would
            // stop the cluster.
            shutdown.cancelled().await;
            Ok(())
        });
        Ok(())
    }

    fn make_directories(&self) -> anyhow::Result<()> {
        self.layout.leftovers().try_for_each(|directory| remove_directory(&directory))?;
        for directory in self.layout.fresh() {
            remove_directory(&directory)?;
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(())
    }

    fn issue_certificates(&self) -> anyhow::Result<()> {
        let authority = Authority::create(&self.layout.certificates())?;
        let here = ["localhost", "127.0.0.1"];
        authority.issue(SERVER, &here)?;
        authority.issue(SYNCER, &[])?;
        authority.issue(OPERATOR, &[])?;
        for cell in Cell::all(self.options.cells) {
            authority.issue_in_unit(CELL_UNIT, &cell.name(), &[])?;
        }
        Ok(())
    }

    async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        progress("Cloud Controller, lock server, policy store, syncers")?;
        let (layout, ports) = (self.layout.clone(), self.options.ports.clone());
        let own = self.options.own.clone();
        let file = layout.config("cloud-controller");
        write_config(&file, &settings::cloud_controller(&layout, &ports))?;
        let arguments = vec!["cloud-controller".into(), "--config-file".into(), file.into()];
        self.launch("cloud-controller", own, arguments, Place::Here).await?;
        self.service("lock-server", &settings::lock_server(&layout, &ports), Place::Here).await?;
        self.service("policy-store", &settings::policy_store(&layout, &ports), Place::Here).await?;
        wait_for_port("the Cloud Controller", ports.internal_api).await?;
        wait_for_port("the lock server", ports.lock_server).await?;
        wait_for_port("the policy store", ports.policy_store).await?;
        for number in 1..=SYNCERS {
            let config = settings::syncer(&layout, &ports, number);
            let name = settings::syncer_name(number);
            self.run_service(&name, "syncer", &config, Place::Here).await?;
            wait_for_port(&name, ports.syncer_debug[number - 1]).await?;
        }
        Ok(())
    }

    async fn launch_agent(&mut self, cell: Cell) -> anyhow::Result<()> {
        let store = self.layout.metadata(cell);
        let directory = store.parent().context("the metadata store lies in a directory")?;
        std::fs::create_dir_all(directory)?;
        std::fs::create_dir_all(self.layout.agent_state(cell))?;
        let nft = tools::find("nft")?;
        let config = settings::cell_agent(&self.layout, &self.options.ports, cell, &nft);
        let name = settings::agent_name(cell);
        self.run_service(&name, "cell-agent", &config, Place::On(cell)).await
    }

    async fn wait_for_agent(&self, cell: Cell) -> anyhow::Result<()> {
        let resident = self.network.cell(cell)?.resident();
        let address = ports::local(control::PORT);
        let since = Instant::now();
        while let Err(error) = resident.tcp().await?.connect(address.into()).await {
            if since.elapsed() > TIMEOUT {
                return Err(error).with_context(|| format!("no agent answers on {}", cell.name()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn service(&mut self, name: &str, config: &Value, place: Place) -> anyhow::Result<()> {
        self.run_service(name, name, config, place).await
    }

    async fn run_service(
        &mut self,
        name: &str,
        executable: &str,
        config: &Value,
        place: Place,
    ) -> anyhow::Result<()> {
        let file = self.layout.config(name);
        write_config(&file, config)?;
        // Two services use the original's Go flag, which has two spellings.
        let flag = if executable == "lock-server" { "-config" } else { "-config-file" };
        let executable = self.options.binaries.join(executable);
        self.launch(name, executable, vec![flag.into(), file.into()], place).await
    }

    async fn launch(
        &mut self,
        name: &str,
        executable: PathBuf,
        arguments: Vec<std::ffi::OsString>,
        place: Place,
    ) -> anyhow::Result<()> {
        if !executable.is_file() {
            bail!("{} is not there; build it first, or name its directory", executable.display());
        }
        let program =
            Program { name: name.to_owned(), executable, arguments, log: self.layout.log(name) };
        self.programs.insert(name.to_owned(), (program, place));
        self.start_process(name).await
    }

    /// Starts a stopped process with the same arguments.
    pub(crate) async fn start_process(&mut self, name: &str) -> anyhow::Result<()> {
        let known = self.programs.get(name);
        let (program, place) = known.with_context(|| format!("there is no process {name}"))?;
        let resident = match place {
            Place::Here => &self.here,
            Place::On(cell) => self.network.cell(*cell)?.resident(),
        };
        self.processes.start(program, resident, &mut self.state).await.map(drop)
    }

    /// Ends a process with SIGTERM.
    pub(crate) async fn stop_process(&mut self, name: &str) -> anyhow::Result<()> {
        if self.processes.stop(name, &mut self.state).await? {
            return Ok(());
        }
        bail!("{name} did not end after SIGTERM and was killed")
    }

    /// Kills a process as `kill -9` does.
    pub(crate) async fn kill_process(&mut self, name: &str) -> anyhow::Result<()> {
        self.processes.kill(name, &mut self.state).await
    }

    /// Starts a process that has ended, and waits until it is ready.
    pub(crate) async fn start_again(&mut self, name: &str) -> anyhow::Result<()> {
        self.start_process(name).await?;
        let ports = &self.options.ports;
        let (_program, place) = self.programs.get(name).context("it was just started")?;
        let port = match (place, name) {
            (Place::On(cell), _agent) => return self.wait_for_agent(*cell).await,
            (Place::Here, "cloud-controller") => ports.internal_api,
            (Place::Here, "lock-server") => ports.lock_server,
            (Place::Here, "policy-store") => ports.policy_store,
            (Place::Here, syncer) => {
                let mut syncers = (1..).zip(ports.syncer_debug);
                let found = syncers.find(|(number, _)| settings::syncer_name(*number) == syncer);
                found.with_context(|| format!("no port of {syncer} is known"))?.1
            }
        };
        wait_for_port(name, port).await
    }

    /// Whether a process of that name belongs to the cluster and can be started again.
    pub(crate) fn can_start(&self, name: &str) -> bool {
        self.programs.contains_key(name)
    }

    /// Records an unexpected exit; the process can be started again.
    pub(crate) fn note_death(&mut self, death: &Death) -> anyhow::Result<()> {
        self.processes.note_death(death, &mut self.state)
    }

    /// Adds a container as the CNI plugin does: its network, its metadata entry, the
    /// forced sync; only then does its process start.
    pub(crate) async fn add_container(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        let (name, cell) = (wanted.name.clone(), wanted.cell);
        if self.containers.contains_key(&name) {
            bail!("there is a container {name} already");
        }
        let attachment = self.network.attach(cell, &name, &mut self.state).await?;
        let (handle, app) = Container::new_guids();
        let entry = wanted.entry(&handle, &app, attachment.address);
        let container = Container { wanted, handle: handle.clone(), attachment };
        self.containers.insert(name.clone(), container);
        Store::at(self.layout.metadata(cell)).add(entry)?;
        control::force_asgs(self.network.cell(cell)?.resident(), &handle).await?;
        let program = Program {
            name: Container::process(&name),
            executable: tools::find("sleep")?,
            arguments: vec!["infinity".into()],
            log: self.layout.log(&Container::process(&name)),
        };
        let container = self.containers.get(&name).context("it was inserted above")?;
        let resident = container.resident();
        self.processes.start(&program, resident, &mut self.state).await.map(drop)
    }

    /// Removes a container as the CNI plugin does.
    pub(crate) async fn remove_container(&mut self, name: &str) -> anyhow::Result<()> {
        let process = Container::process(name);
        if self.processes.mark(&process).is_some() {
            self.processes.stop(&process, &mut self.state).await?;
        }
        let container = self.containers.remove(name);
        let Container { wanted, handle, attachment } =
            container.with_context(|| format!("there is no container {name}"))?;
        Store::at(self.layout.metadata(wanted.cell)).remove(&handle)?;
        self.network.detach(attachment, &mut self.state)?;
        control::force_cleanup(self.network.cell(wanted.cell)?.resident(), &handle).await
    }

    /// A container by name.
    pub(crate) fn container(&self, name: &str) -> anyhow::Result<&Container> {
        self.containers.get(name).with_context(|| format!("there is no container {name}"))
    }

    /// All containers.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers.values()
    }

    /// The properties that change only if a container's app is restarted.
    pub(crate) fn identity(&self, container: &str) -> anyhow::Result<Identity> {
        let process = self.processes.mark(&Container::process(container));
        let mark = process.filter(|mark| mark.runs());
        let mark = mark.with_context(|| format!("the app in {container} does not run"))?;
        let namespace = self.container(container)?.attachment.namespace.inode()?;
        Ok(Identity { pid: mark.pid, started: mark.started, namespace })
    }

    /// Stops everything in reverse order; continues after a failure and returns the
    /// first error.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        let mut names = self.processes.names();
        names.sort_by_key(|name| stop_order(name));
        for name in names {
            let stopped = self.processes.stop(&name, &mut self.state).await;
            result = result.and(stopped.map(drop));
        }
        self.shutdown.cancel();
        result = result.and(self.tasks.join(GRACE).await);
        for container in std::mem::take(&mut self.containers).into_values() {
            result = result.and(self.network.detach(container.attachment, &mut self.state));
        }
        result = result.and(self.network.lower(&mut self.state));
        result
    }
}

/// Clients stop before the services that they use.
fn stop_order(name: &str) -> usize {
    let order = ["container-", "cell-agent-", "syncer-", "policy-store", "lock-server"];
    order.iter().position(|start| name.starts_with(start)).unwrap_or(order.len())
}

fn remove_directory(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _gone => Ok(()),
    }
}

fn write_config(file: &PathBuf, config: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(config)? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

async fn wait_for_port(what: &str, port: u16) -> anyhow::Result<()> {
    let since = Instant::now();
    while let Err(error) = ports::answers(port).await {
        if since.elapsed() > TIMEOUT {
            return Err(error).with_context(|| format!("{what} does not answer on port {port}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_stop_before_their_services() {
        let mut names = [
            "cloud-controller",
            "policy-store",
            "cell-agent-1",
            "lock-server",
            "container-appA",
            "syncer-2",
        ];
        names.sort_by_key(|name| stop_order(name));
        assert_eq!(
            names,
            [
                "container-appA",
                "cell-agent-1",
                "syncer-2",
                "policy-store",
                "lock-server",
                "cloud-controller"
            ]
        );
    }
}
