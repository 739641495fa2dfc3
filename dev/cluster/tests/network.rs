//! The network of a cluster without agents: connectivity, probe outcomes, and leftovers
//! of a killed launcher.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cluster::internet::Outside;
use cluster::network::{Attachment, Network, remove_leftovers};
use cluster::probe::{self, Kept, Outcome, Target, probe};
use cluster::state::State;
use cluster::topology::{self, Cell, Name};
use cni::namespace::{self, Resident};
use cni::tools;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PUBLIC: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);
const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// A network without an agent, with one container on each of two cells.
struct Fixture {
    name: Name,
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
        let mut network = Network::new(name.clone());
        network.raise(2, &mut state).await.unwrap();
        let outside = Outside::bind(network.outside().unwrap()).await.unwrap();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(outside.serve(CancellationToken::new()));
        let mut containers = Vec::new();
        for cell in Cell::all(2) {
            containers.push(network.attach(cell, "app", &mut state).await.unwrap());
        }
        Self { name, network, state, containers, serving, _directory: directory }
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
        let name = &self.name;
        containers
            .chain([name.router(), name.outside()])
            .chain(Cell::all(2).map(|cell| name.cell(cell)))
            .collect()
    }

    fn in_container(&self) -> &Resident {
        self.containers[0].namespace.resident()
    }

    fn on_cell(&self, rules: &str) {
        let cell = self.name.cell(self.containers[0].cell);
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
        // Only a TCP socket reports an unreachable host: for the others the error may
        // be temporary.
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
async fn added_and_removed_containers_do_not_disturb_others() {
    let mut fixture = Fixture::raise("calm").await;
    let cell = fixture.containers[0].cell;
    let inside = fixture.containers[0].namespace.name().to_owned();
    // A single packet, since a connection would retransmit.
    let once = Target::Ping(PUBLIC);
    for round in 0..8 {
        // The ARP entry of the gateway must stay valid after the other container is
        // removed.
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
fn leftovers_of_a_killed_launcher_are_removed_by_name() {
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
