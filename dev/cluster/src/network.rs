//! Builds the network of a [`super::topology`] plan from namespaces.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, anyhow};
use cni::namespace::{self, Namespace};
use cni::tools;

use super::state::State;
use super::topology::{self, Cell, Links, Name, Seat};

/// Router, simulated internet and cells.
#[derive(Debug)]
pub struct Network {
    name: Name,
    router: Option<Namespace>,
    outside: Option<Namespace>,
    cells: BTreeMap<Cell, Namespace>,
    seats: BTreeMap<Cell, Vec<Seat>>,
}

/// A container's attachment to the network.
#[derive(Debug)]
pub struct Attachment {
    /// Its cell.
    pub cell: Cell,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its own namespace.
    pub namespace: Namespace,
    seat: Seat,
}

impl Network {
    /// A network without namespaces.
    pub fn new(name: Name) -> Self {
        let (cells, seats) = (BTreeMap::new(), BTreeMap::new());
        Self { name, router: None, outside: None, cells, seats }
    }

    /// Builds everything but containers. After a failure, [`Network::lower`] deletes
    /// the parts that were built.
    pub async fn raise(&mut self, cells: u8, state: &mut State) -> anyhow::Result<()> {
        self.router = Some(create(&self.name.router(), state)?);
        self.outside = Some(create(&self.name.outside(), state)?);
        build(&topology::backbone(&self.name))?;
        forward(self.router.as_ref()).await?;
        for cell in Cell::all(cells) {
            self.add_cell(cell, state).await?;
        }
        Ok(())
    }

    /// Builds a cell's namespace and its link to the router.
    pub async fn add_cell(&mut self, cell: Cell, state: &mut State) -> anyhow::Result<()> {
        let namespace = create(&self.name.cell(cell), state)?;
        let namespace = self.cells.entry(cell).insert_entry(namespace).into_mut();
        build(&topology::cell(&self.name, cell))?;
        forward(Some(namespace)).await
    }

    /// Deletes a cell without containers.
    pub fn remove_cell(&mut self, cell: Cell, state: &mut State) -> anyhow::Result<()> {
        let namespace = self.cells.remove(&cell);
        let namespace = namespace.with_context(|| format!("there is no {}", cell.name()))?;
        // The kernel deletes the interfaces of a dead namespace later; a new cell of
        // the same number may need the router's interface at once.
        let interface = cell.router_interface();
        let unplugged = tools::run("ip", ["-n", &self.name.router(), "link", "del", &interface]);
        delete(namespace, state)?;
        Ok(unplugged.map(drop)?)
    }

    /// The lowest free cell number.
    pub fn free_cell(&self) -> Option<Cell> {
        Cell::all(topology::MOST_CELLS).find(|cell| !self.cells.contains_key(cell))
    }

    /// Deletes everything. Continues after a failure, and returns the first error.
    pub fn lower(&mut self, state: &mut State) -> anyhow::Result<()> {
        let cells = std::mem::take(&mut self.cells).into_values();
        let all = cells.chain(self.outside.take()).chain(self.router.take());
        let mut result = Ok(());
        for namespace in all {
            result = result.and(delete(namespace, state));
        }
        result
    }

    /// The namespace of the simulated internet.
    pub fn outside(&self) -> anyhow::Result<&Namespace> {
        self.outside.as_ref().context("the outside does not exist yet")
    }

    /// The namespace between the cells and the simulated internet.
    pub fn router(&self) -> anyhow::Result<&Namespace> {
        self.router.as_ref().context("the router does not exist yet")
    }

    /// The namespace of a cell.
    pub fn cell(&self, cell: Cell) -> anyhow::Result<&Namespace> {
        self.cells.get(&cell).ok_or_else(|| anyhow!("there is no {}", cell.name()))
    }

    /// The cells, in order.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        self.cells.keys().copied()
    }

    /// Creates a container's namespace and address on a cell.
    pub async fn attach(
        &mut self,
        cell: Cell,
        container: &str,
        state: &mut State,
    ) -> anyhow::Result<Attachment> {
        self.cell(cell)?;
        let taken = self.seats.entry(cell).or_default();
        let seat = Seat::free(taken).with_context(|| format!("{} is full", cell.name()))?;
        let namespace = create(&self.name.container(cell, container), state)?;
        let links = topology::container(&self.name, cell, seat, container);
        let built = build(&links).map_err(anyhow::Error::from);
        // Any user of the container may send pings, so that probes work.
        let opened = match built {
            Ok(()) => namespace.resident().set("net/ipv4/ping_group_range", "0 0").await,
            Err(error) => Err(error),
        };
        if let Err(error) = opened {
            delete(namespace, state)?;
            return Err(error);
        }
        taken.push(seat);
        Ok(Attachment { cell, address: seat.address(cell), namespace, seat })
    }

    /// Deletes a container's namespace and address.
    pub fn detach(&mut self, attachment: Attachment, state: &mut State) -> anyhow::Result<()> {
        let Attachment { cell, address: _, namespace, seat } = attachment;
        // The kernel deletes a dead namespace and its interface later; the next
        // container may need the interface at once.
        let interface = seat.cell_interface();
        let unplugged = tools::run("ip", ["-n", &self.name.cell(cell), "link", "del", &interface]);
        self.seats.entry(cell).or_default().retain(|taken| *taken != seat);
        delete(namespace, state)?;
        Ok(unplugged.map(drop)?)
    }
}

/// Builds the links of a plan.
fn build(links: &Links) -> Result<(), tools::Error> {
    links.blocks.iter().try_for_each(|(namespace, lines)| {
        let batch = lines.join("\n") + "\n";
        tools::run_with_input("ip", ["-n", namespace, "-batch", "-"], &batch).map(drop)
    })
}

fn create(name: &str, state: &mut State) -> anyhow::Result<Namespace> {
    state.note_namespace(name)?;
    Namespace::create(name)
}

fn delete(namespace: Namespace, state: &mut State) -> anyhow::Result<()> {
    let name = namespace.name().to_owned();
    namespace.delete()?;
    Ok(state.forget_namespace(&name)?)
}

/// Enables forwarding in a namespace, also for asymmetric routes. Every denied packet gets its ICMP
/// error: with the kernel's rate limit a prober sees a change later than it is in force.
async fn forward(namespace: Option<&Namespace>) -> anyhow::Result<()> {
    let resident = namespace.context("no such namespace")?.resident();
    resident.set("net/ipv4/ip_forward", "1").await?;
    resident.set("net/ipv4/conf/all/rp_filter", "0").await?;
    resident.set("net/ipv4/conf/default/rp_filter", "0").await?;
    resident.set("net/ipv4/icmp_ratelimit", "0").await
}

/// Deletes the namespaces of an earlier launcher.
pub fn remove_leftovers(names: &[String]) -> Result<(), tools::Error> {
    let mut left = names.iter().filter(|name| namespace::exists(name));
    left.try_for_each(|name| tools::run("ip", ["netns", "del", name]).map(drop))
}
