//! Rules that cannot be read back from the kernel do not count as in force.

use cell_agent::app::App;
use runtime::process::{Process, Service as _};
use serde_json::json;

use crate::{
    agent::{Cell, all, bound, eventually},
    foreign,
    lab::{Lab, lab, sh},
    packets::{Fate, Prober, connection},
    planes::{PLANES, Plane, Programs},
    silk::{BACKENDS, Silk},
    stage::{C1, OPEN, OTHER, cell},
};

/// The programs of iptables that write through nftables.
const NFT: Silk = BACKENDS[1];
/// A rule that iptables cannot print: iptables-save then prints one comment instead
/// of the table, with exit code 0.
const FOREIGN: &str = "nft insert rule ip filter FORWARD ct mark 5 accept";

fn clean() {
    let handle = sh("nft -a list chain ip filter FORWARD");
    let handle = handle.lines().find(|line| line.contains("ct mark")).unwrap();
    let handle = handle.rsplit(' ').next().unwrap();
    sh(&format!("nft delete rule ip filter FORWARD handle {handle}"));
}

/// The agent reports the unreadable kernel in all of its outputs.
async fn says(cell: &Cell, reason: &str) {
    let told = async || cell.status().await.last_error.contains(reason);
    eventually(&format!("last_error says {reason:?}"), told).await;
    let (status, body) = cell.debug("GET", "/readyz", "").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.starts_with("kernel: ") && body.contains(reason), "{body}");
}

async fn opens_only_other(cell: &Cell, prober: &Prober) {
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
    let ready = async || cell.debug("GET", "/readyz", "").await.0 == 200;
    eventually("ready", ready).await;
}

#[test]
fn a_table_that_iptables_cannot_print_is_no_empty_table() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, NFT.config(json!({}))).await;
        let before = cell.store.generation();
        sh(FOREIGN);
        cell.store.set(vec![bound("g1", "s1", vec![all("10.2.0.0/16")])]);
        says(&cell, "Table `filter' is incompatible").await;
        let enforced = cell.status().await.enforced_generation;
        assert_eq!(enforced, before, "the kernel has the old rules");
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        clean();
        opens_only_other(&cell, &prober).await;
        cell.stop().await;
    });
}

#[test]
fn an_agent_that_starts_beside_such_a_table_waits_and_takes_nothing_away() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, NFT.config(json!({}))).await;
        cell.stop().await;
        let whole = NFT.ours();
        sh(FOREIGN);
        cell.store.set(vec![bound("g1", "s1", vec![all("10.2.0.0/16")])]);
        cell.start().await;
        says(&cell, "Table `filter' is incompatible").await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        // The desired rules are unknown: the existing ones stay.
        cell.stop().await;
        crate::stage::lose_the_groups(&mut cell).await;
        cell.start().await;
        says(&cell, "Table `filter' is incompatible").await;
        clean();
        let told = async || cell.log.text().contains("keeping-last-rules-until-groups-are-known");
        eventually("the agent waits", told).await;
        assert_eq!(NFT.ours(), whole);
        cell.store.up().await;
        opens_only_other(&cell, &prober).await;
        cell.stop().await;
    });
}

/// Programs that report success and change nothing.
#[test]
fn a_change_that_the_kernel_does_not_show_is_an_error() {
    for plane in PLANES {
        lab(async move |lab| unchanged(plane, lab).await);
    }
}

async fn unchanged(plane: Plane, lab: Lab) {
    let pretends = "[ -e works ] || [ -z \"$input\" ] || exit 0";
    let programs = Programs::new(plane, pretends, "");
    programs.write("works", "");
    let (mut cell, prober) = cell(&lab, programs.config(json!({}))).await;
    cell.settled().await;
    let before = cell.store.generation();
    programs.remove("works");
    cell.store.set(vec![bound("g1", "s1", vec![all("10.2.0.0/16")])]);
    says(&cell, "but the kernel").await;
    assert_eq!(cell.status().await.enforced_generation, before, "{plane:?}");
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{plane:?}");
    assert!(!cell.log.text().contains("-isolated"), "no group is to blame");
    programs.write("works", "");
    opens_only_other(&cell, &prober).await;
    cell.stop().await;
}

/// An iptables-save whose output has a form that no version has.
const SPELLS: &str = "[ -z \"$input\" ] || echo x >> writes
case \"$0\" in *-save) \"${0##*/}\" \"$@\" | sed 's/--dst-range/--destinations/'; exit 0;; esac";

#[test]
fn an_unknown_form_is_learned_without_a_rewrite() {
    for silk in BACKENDS {
        lab(async move |lab| spelled(silk, &lab).await);
    }
}

async fn spelled(silk: Silk, lab: &Lab) {
    let programs = Programs::new(Plane::Iptables(silk), SPELLS, "");
    let (mut cell, prober) = cell(lab, programs.config(json!({}))).await;
    let learned = cell.log.data_of("cfnetworking.vxlan-policy-agent.unknown-rule-format-learned");
    let learned = learned.expect("the spelling is reported");
    assert!(learned["printed"].as_str().unwrap().contains("--destinations 10.1.0.0"), "{learned}");
    let writes = programs.lines("writes");
    for _ in 0..5 {
        // Each request makes the agent read the kernel.
        let request = proto::cell_v1::ReconcileRequest {};
        let answer = cell.client().reconcile(request).await.unwrap().into_inner();
        assert!(!answer.repaired);
    }
    assert_eq!(programs.lines("writes"), writes, "written again");
    assert_eq!(cell.status().await.drift_healed, 0);
    // Foreign changes are still detected.
    let whole = silk.ours();
    silk.run("-R asg-c1 3 -m iprange --dst-range 10.9.0.0-10.9.255.255 -j ACCEPT");
    assert_ne!(silk.ours(), whole);
    eventually("healed", async || silk.ours() == whole).await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    cell.stop().await;
}

/// nft 1.0.6 crashes before each rule that it adds when another table has a set of a
/// type that only newer versions know. iptables does not look at other tables.
#[test]
fn a_table_of_a_newer_nft_is_named_and_takes_nothing_away() {
    for plane in PLANES {
        lab(async move |lab| {
            let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
            cell.settled().await;
            foreign::table_of_a_newer_nft();
            cell.store.set(vec![bound("g1", "s1", vec![all("10.2.0.0/16")])]);
            if let Plane::Nftables = plane {
                says(&cell, "a table of a newer nft").await;
                assert!(!cell.log.text().contains("-isolated"), "no group is to blame");
                assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
                // nft itself cannot delete it.
                foreign::take_away();
            }
            opens_only_other(&cell, &prober).await;
            cell.stop().await;
        });
    }
}

/// On a stemcell without nft.
#[test]
fn without_nft_the_chains_of_iptables_are_used_unless_a_plane_is_named() {
    for silk in BACKENDS {
        lab(async move |_lab| {
            let mut config = silk.config(json!({"nft_path": "/nonexistent/nft"}));
            config.as_object_mut().unwrap().remove("data_plane");
            let mut cell = Cell::running(config).await;
            let source = "cfnetworking.vxlan-policy-agent.nft-not-found.using-iptables";
            assert_eq!(cell.log.data_of(source).expect("it is logged")["nft"], "/nonexistent/nft");
            cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
            silk.add("c1", "10.255.1.1", &json!({}));
            cell.add_app("c1", "10.255.1.1", "s1").await;
            let rules = silk.ours();
            assert!(rules.iter().any(|rule| rule.contains("10.1.0.0-10.1.255.255")), "{rules:?}");
            cell.stop().await;
            let named = cell.config_with("data_plane", json!("nftables"));
            let bound = App::bind(named, &Process::detached()).await;
            let error = format!("{:#}", bound.err().expect("there is no nft"));
            let sentence = "there is no /nonexistent/nft: install nftables, or set nft_path, or data_plane to iptables";
            assert_eq!(error, sentence);
        });
    }
}
