//! Changes that use netlink instead of nft ([`cell_agent::plane::nftables::netlink`]).

use serde_json::json;

use crate::{
    agent::{Cell, all, bound, eventually, global, listing},
    lab::{lab, sh},
    planes::{Plane, Programs},
};

const REFUSED: &str = "cfnetworking.vxlan-policy-agent.netlink-commit-rejected.falling-back-to-nft";

/// A container that is added or removed in a known space needs no process, a changed
/// rule one, and the kernel's table is the same as with nft.
#[test]
fn changes_of_jumps_start_no_process() {
    lab(async |_lab| {
        let count = "case \"$*\" in *'-f -') echo script >> scripts;; esac";
        let programs = Programs::new(Plane::Nftables, count, "");
        let mut cell = Cell::running(programs.config(json!({}))).await;
        let of_all = |destination: &str| global("g0", vec![all(destination), all("10.9.0.0/16")]);
        let of_space = || bound("g1", "s1", vec![all("10.1.0.0/16"), all("10.3.0.0/16")]);
        cell.store.set(vec![of_all("10.0.0.1"), of_space()]);
        cell.add_app("c1", "10.255.1.1", "s1").await;
        cell.settled().await;

        let scripts = programs.lines("scripts");
        cell.add_app("c2", "10.255.1.2", "s1").await;
        assert!(listing().contains("10.255.1.2 : jump policy-"), "{}", listing());
        cell.delete_entry("c2");
        let gone = async || !listing().contains("10.255.1.2");
        eventually("the container is gone from the kernel", gone).await;
        cell.settled().await;
        assert_eq!(programs.lines("scripts"), scripts, "a container");

        cell.store.set(vec![of_all("10.0.0.2"), of_space()]);
        cell.caught_up().await;
        cell.settled().await;
        assert_eq!(programs.lines("scripts"), scripts + 1, "a rule, and what is swept");
        assert_eq!(cell.log.data_of(REFUSED), None);

        // nft does not parse this word as it prints it.
        let content = || listing().replace("reject with icmp port-unreachable", "reject");
        let left = content();
        assert!(left.contains("10.0.0.2") && !left.contains("10.0.0.1"), "{left}");
        std::fs::write(cell.directory.path().join("left"), &left).unwrap();
        cell.stop().await;
        sh("nft delete table inet portcullis");
        sh(&format!("nft -f {}", cell.directory.path().join("left").display()));
        assert_eq!(content(), left);
    });
}
