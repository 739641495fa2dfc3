//! A change by another process in the middle of an own change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, mpsc},
    thread,
};

use cell_agent::{
    containers::Belongs,
    plan::{Assignment, DenyNetworks, Planned, Policy, Ruleset, Settings},
    plane::{
        Plane as _,
        nftables::{
            NftablesPlane,
            netlink::{Netlink, NftOp},
            nft::Nft,
            table::Key,
        },
    },
    state::StateDirectory,
};
use model::{
    effective::EffectiveRules,
    group::Lifecycle,
    ids::{ContainerHandle, SpaceGuid},
};

use crate::{agent::listing, lab::lab};

const FIRST: [u8; 4] = [10, 255, 1, 1];
const SECOND: [u8; 4] = [10, 255, 1, 2];
const ROUNDS: u64 = 50;

/// Containers of one space without rules.
fn ruleset(addresses: &[[u8; 4]]) -> Ruleset {
    let settings = Settings {
        overlay: "10.255.0.0/16".parse().unwrap(),
        by_address: true,
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks::default(),
        log_all: false,
        denied_logs_per_second: 3,
        udp_logs_per_second: 100,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    };
    let space = SpaceGuid::parse("s1").unwrap();
    let belongs = Belongs { space, lifecycle: Lifecycle::Running };
    let planned = |address: &[u8; 4]| {
        let address = IpAddr::from(*address);
        let assignment = Assignment::Bound(belongs.clone());
        let planned = Planned { address: Some(address), more: BTreeSet::new(), assignment };
        (ContainerHandle::parse(&format!("at-{address}")).unwrap(), planned)
    };
    let (deny, segments, refused) = (Vec::new(), Vec::new(), Vec::new());
    let policy = Policy { deny, segments, rules: EffectiveRules::default(), refused };
    Ruleset {
        containers: addresses.iter().map(planned).collect(),
        policies: BTreeMap::from([(belongs.clone(), Arc::new(policy))]),
        ..Ruleset::empty(Arc::new(settings))
    }
}

/// Takes the rules of the first container away, after so many requests to the kernel.
fn intrude(after: u64, ready: &mpsc::Sender<()>) {
    let netlink = Netlink::open().unwrap();
    let keys = vec![Key::from(IpAddr::from(FIRST))];
    let orders = [NftOp::DeleteElements { map: "policies".to_owned(), keys }];
    ready.send(()).unwrap();
    for _ in 0..after {
        netlink.generation().unwrap();
    }
    let mut tries = 0;
    while let Err(error) = netlink.commit(&orders, netlink.generation().unwrap()) {
        tries += 1;
        assert!(tries < 1_000, "the element is not deleted: {error}");
    }
}

/// Law 4: the kernel rejects the netlink transaction, nft applies the change instead, and what
/// the other process did is still noticed.
#[test]
fn a_foreign_change_at_any_moment_of_an_own_change_is_noticed() {
    lab(async |_lab| {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let mut plane = NftablesPlane::open(Nft::new("nft".as_ref()), state).await.unwrap();
        let (one, both) = (ruleset(&[FIRST]), ruleset(&[FIRST, SECOND]));
        plane.apply(&one).await.unwrap();
        plane.sweep(&one).await.unwrap();
        assert!(plane.settle().await.unwrap());
        let mut noticed = 0;
        for round in 0..ROUNDS {
            let wanted = if round % 2 == 0 { &both } else { &one };
            // The thread is in the same namespace.
            let (ready, is_ready) = mpsc::channel();
            let intruder = thread::spawn(move || intrude(round, &ready));
            is_ready.recv().unwrap();
            plane.apply(wanted).await.unwrap();
            intruder.join().unwrap();
            if plane.settle().await.unwrap() {
                assert!(listing().contains("10.255.1.1 : jump"), "round {round}: {}", listing());
            } else {
                noticed += 1;
                plane.sweep(wanted).await.unwrap();
                assert!(plane.settle().await.unwrap());
            }
            assert!(listing().contains("10.255.1.1 : jump"), "round {round}: {}", listing());
            let second = listing().contains("10.255.1.2 : jump");
            assert_eq!(second, round % 2 == 0, "round {round}: {}", listing());
        }
        println!("noticed after the change: {noticed} of {ROUNDS}");
        assert!(noticed > 0);
    });
}
