//! The foundation: its processes, its network and its containers. A job runs the original's
//! stand-in or ours.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use cluster::control;
use cluster::network::{Attachment, Network};
use cluster::process::{Death, Processes};
use cluster::state::State;
use cluster::topology::{Cell, Name, UNDERLAY};
use cni::metadata::{Entry, Store};
use cni::namespace::{Namespace, Resident};
use cni::tools;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::site::{CELLS, Job, Side, Site};

/// Timeout of a start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks meanwhile.
const GLANCE: Duration = Duration::from_millis(20);

/// A container, and the space of its app.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) attachment: Attachment,
    pub(crate) handle: String,
    /// The number of its space.
    pub(crate) space: usize,
}

/// All parts; [`Foundation::end`] stops and removes them from any state.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) site: Site,
    pub(crate) network: Network,
    pub(crate) containers: Vec<Container>,
    here: Resident,
    state: State,
    processes: Processes,
    deaths: Arc<Mutex<Vec<String>>>,
    _notes: JoinSet<()>,
    iptables: String,
}

impl Foundation {
    pub(crate) fn new(
        name: Name,
        site: Site,
        state: State,
        iptables: &str,
    ) -> anyhow::Result<Self> {
        let (sender, mut receiver) = mpsc::channel::<Death>(16);
        let deaths: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&deaths);
        let mut notes = JoinSet::new();
        notes.spawn(async move {
            while let Some(death) = receiver.recv().await {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(death.report());
            }
        });
        Ok(Self {
            site,
            network: Network::new(name),
            containers: Vec::new(),
            here: Resident::here()?,
            state,
            processes: Processes::new(sender),
            deaths,
            _notes: notes,
            iptables: iptables.to_owned(),
        })
    }

    /// Processes that ended by themselves.
    pub(crate) fn deaths(&self) -> Vec<String> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The namespace of the control plane.
    pub(crate) fn here(&self) -> &Resident {
        &self.here
    }

    pub(crate) fn outside(&self) -> anyhow::Result<&Namespace> {
        self.network.outside()
    }

    /// Builds the network of all cells.
    pub(crate) async fn raise(&mut self) -> anyhow::Result<()> {
        self.network.raise(CELLS, &mut self.state).await?;
        for cell in Cell::all(CELLS) {
            // Every rejected packet is answered: the kernel limits these answers by default.
            let resident = self.network.cell(cell)?.resident();
            resident.set("net/ipv4/icmp_ratemask", "0").await?;
        }
        Ok(())
    }

    /// Starts a job, and waits until it serves.
    pub(crate) async fn start(&mut self, job: Job, side: Side) -> anyhow::Result<()> {
        let program = self.site.program(job, side);
        if !program.executable.is_file() {
            bail!("{} is not there; build it, or name its directory", program.executable.display());
        }
        let resident = match job {
            Job::Agent(cell) => self.network.cell(cell)?.resident(),
            _ => &self.here,
        };
        self.processes.start(&program, resident, &mut self.state).await?;
        let since = Instant::now();
        while !self.serves(job, side).await? {
            if let Some(death) = self.deaths().last() {
                bail!("{death}");
            }
            if since.elapsed() > TIMEOUT {
                bail!("{} does not serve; its log is {}", job.name(), self.site.log(job).display());
            }
            sleep(GLANCE).await;
        }
        Ok(())
    }

    async fn serves(&self, job: Job, side: Side) -> anyhow::Result<bool> {
        let ports = &self.site.ports;
        let wanted = match job {
            Job::CloudController => vec![ports.api, ports.uaa, ports.internal_api],
            Job::Locket(number) => vec![ports.lockets[number]],
            // It listens nowhere.
            Job::Syncer(_) => vec![],
            Job::Policies(number) if side == Side::Original => vec![ports.policies[number]],
            Job::Policies(number) => vec![ports.policies[number], ports.stores[number]],
            Job::Agent(cell) => {
                let socket = self.network.cell(cell)?.resident().tcp().await?;
                let address = (Ipv4Addr::LOCALHOST, control::PORT).into();
                return Ok(socket.connect(address).await.is_ok());
            }
        };
        for port in wanted {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Stops a job with SIGTERM, as monit does.
    pub(crate) async fn stop(&mut self, job: Job) -> anyhow::Result<()> {
        if !self.processes.stop(&job.name(), &mut self.state).await? {
            bail!("{} did not end within 10 s after SIGTERM", job.name());
        }
        Ok(())
    }

    /// Stops a job and starts it as `side`.
    pub(crate) async fn replace(&mut self, job: Job, side: Side) -> anyhow::Result<()> {
        self.stop(job).await?;
        self.start(job, side).await
    }

    /// Adds a container in the order of the CNI plugin: entry, chains, forced sync.
    pub(crate) async fn add_container(
        &mut self,
        cell: Cell,
        name: &str,
        space: (usize, &str),
    ) -> anyhow::Result<()> {
        let attachment = self.network.attach(cell, name, &mut self.state).await?;
        let (number, space) = space;
        let [handle, app] = [(); 2].map(|()| uuid::Uuid::new_v4().to_string());
        let address = attachment.address;
        self.containers.push(Container { attachment, handle: handle.clone(), space: number });
        let entry = Entry::app(&handle, address, &app, space);
        Store::at(self.site.metadata(cell)).add(entry)?;
        self.add_chains(cell, &handle, address)?;
        control::force_asgs(self.network.cell(cell)?.resident(), &handle).await
    }

    /// The chain that the CNI plugin makes (docs/compatibility/vxlan-policy-agent.md#cni-chains).
    fn add_chains(&self, cell: Cell, handle: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let netout: String = format!("netout--{handle}").chars().take(28).collect();
        let text = format!(
            "*filter\n:{netout} - [0:0]\n-A FORWARD -s {address} -o {UNDERLAY} -j {netout}\n\
             -A {netout} -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n"
        );
        let restore = format!("{}-restore", self.iptables);
        let namespace = self.network.cell(cell)?.name().to_owned();
        let command = ["netns", "exec", &namespace, &restore, "--noflush", "--wait"];
        tools::run_with_input("ip", command, &text)?;
        Ok(())
    }

    /// Stops and removes everything; continues after a failure and returns the first error.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        let mut names = self.processes.names();
        // Clients before the services that they use.
        let order = ["vxlan-", "policy-server-asg-", "policy-server-int", "locket-"];
        names.sort_by_key(|name| order.iter().position(|start| name.starts_with(start)));
        // Those without a place in the order, such as the Cloud Controller, come last.
        names.sort_by_key(|name| !order.iter().any(|start| name.starts_with(start)));
        for name in names {
            let stopped = self.processes.stop(&name, &mut self.state).await;
            result = result.and(stopped.map(drop));
        }
        for container in std::mem::take(&mut self.containers) {
            result = result.and(self.network.detach(container.attachment, &mut self.state));
        }
        result.and(self.network.lower(&mut self.state)).context("removing the foundation")
    }
}
