//! The network that a plan of [`super::topology`] describes, built out of
//! namespaces.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, anyhow};

use super::namespace::{self, Namespace};
use super::state::State;
use super::tools;
use super::topology::{self, Cell, Name, Seat};

/// Router, outside and cells.
#[derive(Debug)]
pub struct Network {
    name: Name,
    router: Option<Namespace>,
    outside: Option<Namespace>,
    cells: BTreeMap<Cell, Namespace>,
    seats: BTreeMap<Cell, Vec<Seat>>,
}

/// A container's place in the network.
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
    /// Nothing yet.
    pub fn new(name: Name) -> Self {
        let (cells, seats) = (BTreeMap::new(), BTreeMap::new());
        Self { name, router: None, outside: None, cells, seats }
    }

    /// Builds everything but containers. What was built before a failure is
    /// there for [`Network::lower`].
    pub async fn raise(&mut self, cells: u8, state: &mut State) -> anyhow::Result<()> {
        self.router = Some(create(&self.name.router(), state)?);
        self.outside = Some(create(&self.name.outside(), state)?);
        namespace::build(&topology::backbone(&self.name))?;
        forward(self.router.as_ref()).await?;
        for cell in Cell::all(cells) {
            let namespace = create(&self.name.cell(cell), state)?;
            let namespace = self.cells.entry(cell).insert_entry(namespace).into_mut();
            namespace::build(&topology::cell(&self.name, cell))?;
            forward(Some(namespace)).await?;
        }
        Ok(())
    }

    /// Takes everything down again. Goes on after a failure, and tells the
    /// first.
    pub fn lower(&mut self, state: &mut State) -> anyhow::Result<()> {
        let cells = std::mem::take(&mut self.cells).into_values();
        let all = cells.chain(self.outside.take()).chain(self.router.take());
        let mut result = Ok(());
        for namespace in all {
            result = result.and(delete(namespace, state));
        }
        result
    }

    /// The namespace of the outside.
    pub fn outside(&self) -> anyhow::Result<&Namespace> {
        self.outside.as_ref().context("the outside does not exist yet")
    }

    /// The namespace of a cell.
    pub fn cell(&self, cell: Cell) -> anyhow::Result<&Namespace> {
        self.cells.get(&cell).ok_or_else(|| anyhow!("there is no {}", cell.name()))
    }

    /// The cells, in order.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        self.cells.keys().copied()
    }

    /// Gives a container a namespace and an address on a cell.
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
        let built = namespace::build(&links).map_err(anyhow::Error::from);
        // Any user of the container may ping, so that probes can.
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

    /// Takes a container's namespace and address away.
    pub fn detach(&mut self, attachment: Attachment, state: &mut State) -> anyhow::Result<()> {
        let Attachment { cell, address: _, namespace, seat } = attachment;
        // The kernel takes a dead namespace apart when it finds the time, and the
        // seat's interface with it; the next container may want the seat at once.
        let interface = seat.cell_interface();
        let unplugged = tools::run("ip", ["-n", &self.name.cell(cell), "link", "del", &interface]);
        self.seats.entry(cell).or_default().retain(|taken| *taken != seat);
        delete(namespace, state)?;
        Ok(unplugged.map(drop)?)
    }
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

/// Lets a namespace pass packets on, whichever way their answers take.
async fn forward(namespace: Option<&Namespace>) -> anyhow::Result<()> {
    let resident = namespace.context("no such namespace")?.resident();
    resident.set("net/ipv4/ip_forward", "1").await?;
    resident.set("net/ipv4/conf/all/rp_filter", "0").await?;
    resident.set("net/ipv4/conf/default/rp_filter", "0").await
}

/// Takes away the namespaces that an earlier launcher left.
pub fn remove_leftovers(names: &[String]) -> Result<(), tools::Error> {
    let mut left = names.iter().filter(|name| namespace::exists(name));
    left.try_for_each(|name| tools::run("ip", ["netns", "del", name]).map(drop))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::time::Duration;

    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::super::outside::Outside;
    use super::super::probe::{self, Kept, Outcome, Target, probe};
    use super::*;

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);
    const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);
    const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    /// A network without an agent, with one container on each of two cells.
    struct Fixture {
        network: Network,
        state: State,
        containers: Vec<Attachment>,
        serving: tokio::task::JoinSet<anyhow::Result<()>>,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        async fn raise(purpose: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (mut state, _before) = State::take(directory.path()).unwrap();
            let name = Name::parse(&format!("t{}-{purpose}", std::process::id())).unwrap();
            let mut network = Network::new(name);
            network.raise(2, &mut state).await.unwrap();
            let outside = Outside::bind(network.outside().unwrap()).await.unwrap();
            let mut serving = tokio::task::JoinSet::new();
            serving.spawn(outside.serve(CancellationToken::new()));
            let mut containers = Vec::new();
            for cell in Cell::all(2) {
                containers.push(network.attach(cell, "app", &mut state).await.unwrap());
            }
            Self { network, state, containers, serving, _directory: directory }
        }

        async fn lower(mut self) {
            let names = self.namespaces();
            self.serving.shutdown().await;
            for container in self.containers.drain(..) {
                self.network.detach(container, &mut self.state).unwrap();
            }
            self.network.lower(&mut self.state).unwrap();
            assert!(names.iter().all(|name| !namespace::exists(name)), "{names:?}");
        }

        fn namespaces(&self) -> Vec<String> {
            let containers = self.containers.iter().map(|c| c.namespace.name().to_owned());
            let name = &self.network.name;
            containers
                .chain([name.router(), name.outside()])
                .chain(Cell::all(2).map(|cell| name.cell(cell)))
                .collect()
        }

        fn in_container(&self) -> &namespace::Resident {
            self.containers[0].namespace.resident()
        }

        fn on_cell(&self, rules: &str) {
            let cell = self.network.name.cell(self.containers[0].cell);
            let exec = ["netns", "exec", cell.as_str(), "nft", "-f", "-"];
            tools::run_with_input("ip", exec, rules).unwrap();
        }
    }

    #[tokio::test]
    async fn the_outside_answers_on_all_its_addresses_and_ports() {
        let fixture = Fixture::raise("out").await;
        for container in &fixture.containers {
            let from = container.namespace.resident();
            for address in topology::OUTSIDE {
                for target in [
                    Target::tcp(address, 80),
                    Target::tcp(address, 54_321),
                    Target::udp(address, 53),
                    Target::Ping(address),
                ] {
                    let seen = probe(from, target).await.unwrap();
                    assert_eq!(seen, Outcome::Open, "{target} from {}", container.address);
                }
            }
        }
        fixture.lower().await;
    }

    #[tokio::test]
    async fn a_probe_tells_open_refused_and_silent_apart() {
        let fixture = Fixture::raise("see").await;
        let from = fixture.in_container();
        let all = [Target::tcp(PUBLIC, 80), Target::udp(PUBLIC, 53), Target::Ping(PUBLIC)];
        let table = |verdict: &str| {
            format!(
                "table inet t\ndelete table inet t\ntable inet t {{ chain f {{ \
                 type filter hook forward priority filter; ip daddr {PUBLIC} {verdict}; }}; }}\n"
            )
        };
        for (verdict, wanted) in [
            ("accept", Outcome::Open),
            ("reject with icmp type port-unreachable", Outcome::Refused),
            ("reject with icmp type host-unreachable", Outcome::Unreachable),
            ("drop", Outcome::Silent),
        ] {
            fixture.on_cell(&table(verdict));
            // Only a TCP socket learns of an unreachable host: to the others that may pass.
            let told = if wanted == Outcome::Unreachable { &all[..1] } else { &all };
            for target in told {
                assert_eq!(probe(from, *target).await.unwrap(), wanted, "{verdict}: {target}");
            }
            let other = Target::tcp(PRIVATE, 80);
            assert_eq!(probe(from, other).await.unwrap(), Outcome::Open, "{verdict}");
        }
        let nobody = Target::tcp(NOBODY, 80);
        assert_ne!(probe(from, nobody).await.unwrap(), Outcome::Open);
        fixture.lower().await;
    }

    #[tokio::test]
    async fn a_kept_connection_outlives_a_rule_that_lets_established_packets_pass() {
        let fixture = Fixture::raise("keep").await;
        let to = SocketAddrV4::new(PUBLIC, 80);
        let table = |verdict: &str| {
            format!(
                "table inet t\ndelete table inet t\ntable inet t {{ chain f {{ \
                 type filter hook forward priority filter; ct state established accept; \
                 ip daddr {PUBLIC} {verdict}; }}; }}\n"
            )
        };
        fixture.on_cell(&table("accept"));
        let mut kept = Kept::open(fixture.in_container(), to).await.unwrap();
        assert!(kept.echoes().await);
        let since = Instant::now();
        fixture.on_cell(&table("reject with icmp type port-unreachable"));
        let limit = Duration::from_secs(5);
        let closed =
            probe::until(fixture.in_container(), Target::Tcp(to), Outcome::Refused, since, limit);
        assert!(closed.await.unwrap().unwrap() < limit);
        assert!(kept.echoes().await);
        let open = probe::until(
            fixture.in_container(),
            Target::Tcp(to),
            Outcome::Open,
            Instant::now(),
            Duration::from_millis(50),
        );
        assert_eq!(open.await.unwrap(), Err(Outcome::Refused));
        fixture.lower().await;
    }

    #[tokio::test]
    async fn who_comes_and_goes_disturbs_nobody() {
        let mut fixture = Fixture::raise("calm").await;
        let cell = fixture.containers[0].cell;
        let inside = fixture.containers[0].namespace.name().to_owned();
        // A single packet: a connection would try again until it gets through.
        let once = Target::Ping(PUBLIC);
        for round in 0..8 {
            // What is learnt of the gateway beside the guest has to hold without it.
            let state = &mut fixture.state;
            let guest = fixture.network.attach(cell, &format!("g{round}"), state).await.unwrap();
            tools::run("ip", ["-n", &inside, "neigh", "flush", "dev", "eth0"]).unwrap();
            let seen = probe(fixture.in_container(), once).await.unwrap();
            assert_eq!(seen, Outcome::Open, "beside guest {round}");
            fixture.network.detach(guest, &mut fixture.state).unwrap();
            let seen = probe(fixture.in_container(), once).await.unwrap();
            assert_eq!(seen, Outcome::Open, "after guest {round}");
        }
        fixture.lower().await;
    }

    #[tokio::test]
    async fn a_seat_is_free_again_at_once() {
        let mut fixture = Fixture::raise("seat").await;
        for _round in 0..5 {
            let container = fixture.containers.remove(0);
            let (cell, address) = (container.cell, container.address);
            fixture.network.detach(container, &mut fixture.state).unwrap();
            let again = fixture.network.attach(cell, "app", &mut fixture.state).await.unwrap();
            assert_eq!(again.address, address);
            fixture.containers.insert(0, again);
            let seen = probe(fixture.in_container(), Target::tcp(PUBLIC, 80)).await.unwrap();
            assert_eq!(seen, Outcome::Open);
        }
        fixture.lower().await;
    }

    #[test]
    fn what_a_killed_launcher_left_is_removed_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let (mut state, _before) = State::take(directory.path()).unwrap();
        let names = ["one", "two"].map(|name| format!("t{}-left-{name}", std::process::id()));
        state.note_namespace("never-made").unwrap();
        for name in &names {
            state.note_namespace(name).unwrap();
            tools::run("ip", ["netns", "add", name]).unwrap();
        }
        drop(state);
        let (_state, before) = State::take(directory.path()).unwrap();
        remove_leftovers(&before.namespaces).unwrap();
        assert!(names.iter().all(|name| !namespace::exists(name)));
    }
}
