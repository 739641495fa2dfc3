//! What goes wrong, and that containers keep their rules: laws 4 to 8.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, time::Duration};

use cell_agent::{app::App, drift::KernelGeneration};
use proto::cell_v1::{
    EffectiveRulesRequest, Enforcement, ExplainRequest, ListContainersRequest, ReconcileRequest,
    explain_response::Verdict,
};
use runtime::process::{Process, Service as _};
use serde_json::{Value, json};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, listing, rule},
    lab::{Lab, lab, sh},
    packets::{Fate, Kind, Prober},
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
const OPEN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const CLOSED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

fn to(port: u16) -> Kind {
    use std::sync::atomic::{AtomicU16, Ordering};
    static SOURCE: AtomicU16 = AtomicU16::new(20_000);
    Kind::Tcp { port, source: SOURCE.fetch_add(1, Ordering::Relaxed), flags: 2 }
}

/// A cell with one container in s1, for which `OPEN` is open.
async fn cell(lab: &Lab, overrides: Value) -> (Cell, Prober) {
    lab.container(C1);
    lab.container(C2);
    let prober = Prober::new(lab);
    let mut cell = Cell::running(overrides).await;
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
    (cell, prober)
}

fn transactions() -> KernelGeneration {
    KernelGeneration::now().unwrap()
}

#[test]
fn a_torn_metadata_store_changes_nothing_and_is_told() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        for torn in ["{\"c1\":{\"handle\":\"c1\",", "", "[1]"] {
            fs::write(cell.store_path(), torn).unwrap();
            let told = || {
                let text = cell.log.text();
                text.matches("container-store-unreadable.keeping-last-good-state").count()
            };
            eventually("the torn store is told", async || told() > 0).await;
            assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept, "{torn:?}");
            let (status, body) = cell.force("c1").await;
            assert_eq!(status, 500, "{body}");
            assert!(body.starts_with("failed to update asgs for container c1: "), "{body}");
        }
        cell.add_app("c1", "10.255.1.1", "s1").await;
        assert!(cell.log.text().contains("container-store-readable-again"));
        cell.stop().await;
    });
}

#[test]
fn what_the_kernel_refuses_is_isolated_by_name() {
    lab(async |lab| {
        let directory = tempfile::tempdir().unwrap();
        let nft = directory.path().join("nft");
        // Stands for a kernel that does not take two of the addresses.
        let script = "#!/bin/sh\ninput=$(cat)\ncase \"$input\" in *10.66.6.6*|*10.255.6.6*) \
                      echo 'Error: Could not process rule: Numerical result out of range' >&2; exit 1;; esac\n\
                      printf '%s' \"$input\" | exec nft \"$@\"\n";
        fs::write(&nft, script).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        let (mut cell, prober) = cell(&lab, json!({"nft_path": nft})).await;
        let many = (0..40).map(|n| rule("tcp", &format!("10.7.{n}.0/24"), "80"));
        let mut rules: Vec<_> = many.chain([all("10.66.6.6")]).collect();
        rules.push(all("10.2.0.0/16"));
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")]), global("g2", rules)]);
        cell.caught_up().await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Accept);
        let told = cell.log.data_of("cfnetworking.vxlan-policy-agent.rule-isolated").unwrap();
        assert_eq!(told["security-group"], "g2");
        assert_eq!(told["rule"], 40);
        assert_eq!(told["containers"], json!(["c1"]));
        assert!(told["error"].as_str().unwrap().contains("out of range"), "{told}");
        let request = EffectiveRulesRequest { handle: "c1".to_owned() };
        let rules = cell.client().effective_rules(request).await.unwrap().into_inner();
        let [isolated] = rules.isolated.as_slice() else { panic!("{rules:?}") };
        assert_eq!(isolated.rule.as_ref().unwrap().destination, "10.66.6.6");
        assert_eq!(cell.status().await.isolated_rules, 1);

        cell.add_entry("bad", "10.255.6.6", &app("s1"));
        let (status, body) = cell.force("bad").await;
        assert_eq!(status, 500);
        assert!(body.contains("the kernel refuses it"), "{body}");
        cell.add_app("c2", "10.255.1.2", "s1").await;
        assert_eq!(prober.probe(C2, OPEN, to(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

#[test]
fn what_others_change_is_put_back() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.store.set(vec![bound(
            "g1",
            "s1",
            vec![all("10.1.0.0/16"), rule("udp", "1.2.3.4", "53")],
        )]);
        cell.caught_up().await;
        cell.settled().await;
        let whole = listing();
        let chain = whole.lines().find_map(|line| {
            line.trim().strip_prefix("chain ").filter(|name| name.starts_with("policy-"))
        });
        let chain = chain.unwrap().trim_end_matches(" {").to_owned();
        let healed = async || cell.log.text().matches("drift-healed").count();
        for (done, edit) in [
            "nft flush table inet portcullis".to_owned(),
            "nft delete table inet portcullis".to_owned(),
            format!("nft flush chain inet portcullis {chain}"),
            format!("nft insert rule inet portcullis {chain} accept"),
            "nft delete element inet portcullis policies { 10.255.1.1 }".to_owned(),
            format!("nft add element inet portcullis policies {{ 10.255.7.7 : jump {chain} }}"),
            "nft add chain inet portcullis stranger && nft insert rule inet portcullis forward jump stranger".to_owned(),
            "nft add set inet portcullis strangers '{ type ipv4_addr; }'".to_owned(),
            "nft add map inet portcullis more '{ type ipv4_addr : verdict; }'".to_owned(),
            "nft delete table inet portcullis && nft add table inet portcullis && \
             nft add set inet portcullis policies '{ type ipv4_addr; }'".to_owned(),
        ]
        .into_iter()
        .enumerate()
        {
            // Settled again, the agent writes its state file anew.
            let applied = cell.directory.path().join("state/applied");
            sh(&edit);
            fs::remove_file(&applied).unwrap();
            eventually(&format!("healed: {edit}"), async || healed().await > done).await;
            cell.settled().await;
            assert_eq!(content(&listing()), content(&whole), "{edit}");
            assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept, "{edit}");
            assert_eq!(prober.probe(C1, CLOSED, to(80)).await, Fate::Reject, "{edit}");
        }
        assert_eq!(cell.status().await.drift_healed, 10);
        cell.stop().await;
    });
}

/// What a table holds, in any order; chains of rules get new names when they are
/// written again.
fn content(listing: &str) -> Vec<String> {
    let nameless = |line: &str| {
        let parts = line.split("rules-").enumerate();
        parts.map(|(n, part)| if n == 0 { part } else { &part[16..] }).collect()
    };
    let mut lines: Vec<String> = listing.lines().map(nameless).collect();
    lines.sort();
    lines
}

#[test]
fn what_others_do_elsewhere_is_none_of_ours() {
    lab(async |lab| {
        let (mut cell, _prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        for _ in 0..5 {
            sh("nft add table inet theirs; nft delete table inet theirs");
        }
        let repaired = cell.client().reconcile(ReconcileRequest {}).await.unwrap().into_inner();
        assert!(!repaired.repaired);
        assert_eq!(cell.status().await.drift_healed, 0);
        cell.stop().await;
    });
}

#[test]
fn a_restart_touches_nothing_that_is_right() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        let before = transactions();
        cell.stop().await;
        cell.start().await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        eventually("the store is watched", async || cell.status().await.store_connected).await;
        assert_eq!(transactions(), before, "the kernel was written to");
        cell.stop().await;
        // What changed in the meantime is the only change.
        cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16"), all("10.2.0.0/16")])]);
        cell.start().await;
        cell.caught_up().await;
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

#[test]
fn a_cell_fails_static_while_the_store_is_down() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        cell.stop().await;
        cell.store.down().await;
        cell.start().await;
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        assert!(!cell.status().await.store_connected);
        // A known space goes on working; an unknown one is closed, and says why.
        cell.add_app("c2", "10.255.1.2", "s1").await;
        assert_eq!(prober.probe(C2, OPEN, to(80)).await, Fate::Accept);
        cell.delete_entry("c2");
        cell.add_entry("c3", "10.255.1.2", &app("s2"));
        let (status, body) = cell.force("c3").await;
        assert_eq!(status, 500);
        assert!(body.contains("has not told the security groups of space s2"), "{body}");
        assert_eq!(prober.probe(C2, OPEN, to(80)).await, Fate::Reject);
        // A kernel that lost everything gets it back from disk.
        sh("nft delete table inet portcullis");
        eventually("healed", async || listing().contains("10.1.0.0/16")).await;
        cell.store.up().await;
        cell.store.set(vec![global("g1", vec![all("10.2.0.0/16")])]);
        cell.caught_up().await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Reject);
        assert_eq!(prober.probe(C2, OTHER, to(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

#[test]
fn a_store_that_lost_its_data_takes_nothing_away() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.store.forget();
        let told = async || cell.log.text().contains("policy-store-is-empty");
        eventually("the empty store is told", told).await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        cell.store.set(vec![global("g1", vec![all("10.2.0.0/16")])]);
        eventually("the next real state counts", async || listing().contains("10.2.0.0/16")).await;
        cell.stop().await;
    });
}

#[test]
fn without_its_state_the_agent_keeps_what_the_kernel_has() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        cell.stop().await;
        cell.store.down().await;
        fs::write(cell.directory.path().join("state/groups"), "damaged").unwrap();
        cell.start().await;
        let told = async || cell.log.text().contains("keeping-last-rules-until-groups-are-known");
        eventually("the agent waits", told).await;
        assert!(cell.log.text().contains("state-unreadable"));
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        cell.store.up().await;
        eventually("the store is watched", async || cell.status().await.store_connected).await;
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

/// Law 5: an agent that cannot read its containers at the start keeps their rules.
#[test]
fn a_metadata_store_that_is_torn_at_the_start_strips_nobody() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        cell.stop().await;
        fs::write(cell.store_path(), "{\"c1\":{").unwrap();
        cell.start().await;
        let told = async || cell.log.text().contains("keeping-last-rules-until-groups-are-known");
        eventually("the agent waits", told).await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, CLOSED, to(80)).await, Fate::Reject);
        cell.add_app("c1", "10.255.1.1", "s1").await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

/// Laws 5 and 7: what is flushed while nobody can tell the rules is put back.
#[test]
fn a_flush_while_the_groups_are_unknown_opens_nothing() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.settled().await;
        cell.stop().await;
        cell.store.down().await;
        fs::write(cell.directory.path().join("state/groups"), "damaged").unwrap();
        cell.start().await;
        let told = async || cell.log.text().contains("keeping-last-rules-until-groups-are-known");
        eventually("the agent waits", told).await;
        sh("nft flush table inet portcullis");
        eventually("the drift is healed", async || cell.log.text().contains("drift-healed")).await;
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, CLOSED, to(80)).await, Fate::Reject);
        cell.stop().await;
    });
}

/// Killed at any point, the next agent brings what should be.
#[test]
fn a_killed_agent_leaves_nothing_that_the_next_cannot_mend() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        for round in 0..12_u16 {
            let groups = |n: u16| {
                let more = (0..n).map(|n| rule("tcp", &format!("10.3.{n}.0/24"), "80"));
                vec![bound("g1", "s1", [all("10.1.0.0/16")].into_iter().chain(more).collect())]
            };
            cell.store.set(groups(round % 5));
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 25)).await;
            cell.kill().await;
            assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Accept, "round {round}");
            assert_eq!(prober.probe(C1, CLOSED, to(80)).await, Fate::Reject, "round {round}");
            cell.start().await;
            cell.add_app("c1", "10.255.1.1", "s1").await;
        }
        cell.settled().await;
        let chains = listing().matches("chain rules-").count();
        assert_eq!(chains, 1, "leftovers were swept");
        cell.stop().await;
    });
}

#[test]
fn an_address_goes_with_its_container() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.store.set(vec![
            bound("g1", "s1", vec![all("10.1.0.0/16")]),
            bound("g2", "s2", vec![all("10.2.0.0/16")]),
        ]);
        let (status, body) = cell.get("/force-orphaned-asgs-cleanup?container=c1").await;
        assert_eq!(status, 500, "a live container: {body}");
        // Taken over in one write: never both, never none.
        cell.change_store(|entries| {
            entries.remove("c1");
            let entry = json!({"handle": "c2", "ip": "10.255.1.1", "metadata": app("s2")});
            entries.insert("c2".to_owned(), entry);
        });
        assert_eq!(cell.force("c2").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Reject);
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Accept);
        // Claimed twice, it belongs to nobody.
        cell.add_entry("c3", "10.255.1.1", &app("s2"));
        let (status, body) = cell.force("c3").await;
        assert_eq!(status, 500);
        assert!(body.contains("10.255.1.1 is claimed by c2 and c3"), "{body}");
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Reject);
        cell.delete_entry("c3");
        let (status, body) = cell.get("/force-orphaned-asgs-cleanup?container=c3").await;
        assert_eq!((status, body.as_str()), (200, "cleaned up ASGs for container c3"));
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Accept);
        cell.delete_entry("c2");
        assert_eq!(cell.get("/force-orphaned-asgs-cleanup?container=c2").await.0, 200);
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Reject);
        assert!(!listing().contains("10.255.1.1"));
        cell.stop().await;
    });
}

#[test]
fn the_endpoints_answer_as_the_original() {
    lab(async |lab| {
        let (mut cell, _prober) = cell(&lab, json!({})).await;
        for (path, status, body) in [
            ("/force-policy-poll-cycle", 200, ""),
            ("/force-asgs-for-container?container=c1", 200, "updated container c1"),
            ("/force-asgs-for-container?container=nobody", 200, "updated container nobody"),
            ("/force-asgs-for-container?a=b&container=c%31", 200, "updated container c1"),
            ("/force-asgs-for-container", 400, "no container specified"),
            ("/force-asgs-for-container?container=", 400, "no container specified"),
            ("/force-orphaned-asgs-cleanup", 400, "no container specified"),
            (
                "/force-orphaned-asgs-cleanup?container=nobody",
                200,
                "cleaned up ASGs for container nobody",
            ),
        ] {
            assert_eq!(cell.get(path).await, (status, body.to_owned()), "{path}");
        }
        assert_eq!(cell.get("/elsewhere").await.0, 404);
        assert_eq!(cell.debug("GET", "/log-level", "").await, (200, String::new()));
        assert_eq!(cell.debug("PUT", "/log-level", "debug").await.0, 200);
        assert_eq!(cell.debug("POST", "/log-level", "loud").await.0, 400);
        for (method, body, answer) in [
            ("GET", "", (200, "{\"enabled\":false}")),
            ("PUT", "{\"enabled\":true}", (200, "{\"enabled\":true}")),
            ("GET", "", (200, "{\"enabled\":true}")),
        ] {
            let (status, told) = cell.debug(method, "/iptables-c2c-logging", body).await;
            assert_eq!((status, told.as_str()), answer, "{method} {body}");
        }
        for bad in ["", "{}", "{\"enabled\":1}"] {
            let (status, told) = cell.debug("PUT", "/iptables-c2c-logging", bad).await;
            assert!(status == 400 && told.starts_with("{\"error\":"), "{bad:?}: {status} {told}");
        }
        assert_eq!(cell.debug("GET", "/readyz", "").await, (200, "ready\n".to_owned()));
        cell.stop().await;

        cell.configure(json!({"enable_asg_syncing": false}).as_object().unwrap());
        cell.start().await;
        for path in ["/force-asgs-for-container", "/force-orphaned-asgs-cleanup?container=c1"] {
            let disabled = "ASG syncing has been disabled administratively".to_owned();
            assert_eq!(cell.get(path).await, (405, disabled), "{path}");
        }
        assert_eq!(listing(), "", "others filter now");
        cell.stop().await;
    });
}

#[test]
fn the_cell_service_tells_what_is_enforced_and_why() {
    lab(async |lab| {
        let (mut cell, _prober) = cell(&lab, json!({})).await;
        cell.add_entry("lost", "nowhere", &app("s1"));
        cell.add_entry("odd", "10.255.1.9", &json!({"policy_group_id": "p", "space_id": "s1"}));
        assert_eq!(cell.force("odd").await.0, 200);
        let mut client = cell.client();
        let containers =
            client.list_containers(ListContainersRequest {}).await.unwrap().into_inner();
        let told: Vec<_> = containers
            .containers
            .iter()
            .map(|container| (container.handle.as_str(), container.enforcement(), container.rules))
            .collect();
        assert_eq!(
            told,
            [
                ("c1", Enforcement::Enforced, 1),
                ("lost", Enforcement::DeniedBadEntry, 0),
                ("odd", Enforcement::DeniedNoGroups, 0),
            ]
        );
        let ask = |handle: &str, destination: &str| ExplainRequest {
            handle: handle.to_owned(),
            protocol: "tcp".to_owned(),
            destination: destination.to_owned(),
            port: 80,
            ..Default::default()
        };
        let allowed = client.explain(ask("c1", "10.1.0.1")).await.unwrap().into_inner();
        assert_eq!(allowed.verdict(), Verdict::Allowed);
        assert_eq!(allowed.decisive.unwrap().source.unwrap().group_guid, "g1");
        let denied = client.explain(ask("c1", "10.2.0.1")).await.unwrap().into_inner();
        assert_eq!((denied.verdict(), denied.near_misses.len()), (Verdict::Denied, 1));
        let unknown = client.explain(ask("nobody", "10.2.0.1")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let bad = client.explain(ask("c1", "10.2.0.1/8")).await.unwrap_err();
        assert_eq!(bad.code(), tonic::Code::InvalidArgument);
        let status = cell.status().await;
        assert_eq!((status.cell_id.as_str(), status.containers), ("cell-1", 3));
        assert_eq!(status.enforced_generation, cell.store.generation());
        assert_eq!(status.last_error, "");
        cell.stop().await;
    });
}

#[test]
fn a_burst_of_changes_ends_in_the_last_one() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        let applied = |cell: &Cell| cell.log.text().matches("rules-applied").count();
        let before = applied(&cell);
        for n in 0..300 {
            cell.store.set(vec![bound("g1", "s1", vec![all(&format!("10.{}.0.0/16", n % 2 + 1))])]);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cell.caught_up().await;
        assert_eq!(prober.probe(C1, OTHER, to(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OPEN, to(80)).await, Fate::Reject);
        let transactions = applied(&cell) - before;
        assert!((2..150).contains(&transactions), "{transactions} transactions for 300 changes");
        cell.stop().await;
    });
}

#[test]
fn what_cannot_work_is_told_before_anything_is_served() {
    lab(async |_lab| {
        let cell = Cell::new(json!({})).await;
        for (key, value, told) in [
            (
                "nft_path",
                "/nonexistent/nft",
                "there is no /nonexistent/nft: install nftables, or set nft_path",
            ),
            ("cni_datastore_path", "/nonexistent/store.json", "there is no directory /nonexistent"),
            ("state_directory", "/proc/none", "the state directory /proc/none cannot be used"),
            ("ca_cert_file", "/nonexistent/ca.crt", "mutual tls config"),
        ] {
            let error = cell.bind_with(key, json!(value)).await;
            assert!(error.contains(told), "{key}: {error}");
        }
        let error = cell.bind_with("underlay_ips", json!(["203.0.113.7"])).await;
        assert!(error.contains("looking up interface names: no interface has"), "{error}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = cell.bind_with("force_policy_poll_cycle_port", json!(port)).await;
        assert!(error.contains("the control endpoints") && error.contains("in use"), "{error}");
    });
}

impl Cell {
    /// The error of a start with one key changed.
    async fn bind_with(&self, key: &str, value: Value) -> String {
        let config = self.config_with(key, value);
        let bound = App::bind(config, &Process::detached()).await;
        format!("{:#}", bound.err().unwrap_or_else(|| panic!("it starts with this {key}")))
    }
}
