//! Responses of the agent's endpoints, and requests about addresses.

use cell_agent::app::App;
use proto::cell_v1::{
    Enforcement, ExplainRequest, ListContainersRequest, explain_response::Verdict,
};
use runtime::process::{Process, Service as _};
use serde_json::{Value, json};

use crate::{
    agent::{Cell, all, app, bound, listing},
    lab::lab,
    packets::{Fate, connection},
    silk::BACKENDS,
    stage::{C1, OPEN, OTHER, cell},
};

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
        // The address moves in one write: never both, never none.
        cell.change_store(|entries| {
            entries.remove("c1");
            let entry = json!({"handle": "c2", "ip": "10.255.1.1", "metadata": app("s2")});
            entries.insert("c2".to_owned(), entry);
        });
        assert_eq!(cell.force("c2").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
        // An address that is claimed twice belongs to no container.
        cell.add_entry("c3", "10.255.1.1", &app("s2"));
        let (status, body) = cell.force("c3").await;
        assert_eq!(status, 500);
        assert!(body.contains("10.255.1.1 is claimed by c2 and c3"), "{body}");
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
        cell.delete_entry("c3");
        let (status, body) = cell.get("/force-orphaned-asgs-cleanup?container=c3").await;
        assert_eq!((status, body.as_str()), (200, "cleaned up ASGs for container c3"));
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
        cell.delete_entry("c2");
        assert_eq!(cell.get("/force-orphaned-asgs-cleanup?container=c2").await.0, 200);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
        assert!(!listing().contains("10.255.1.1 : jump"));
        cell.stop().await;
    });
}

/// Beside the plugin, packets are identified by its chains: a stale entry with a reused
/// address does not harm the address's new container.
#[test]
fn a_stale_entry_does_no_harm_beside_the_plugin() {
    for silk in BACKENDS {
        lab(async move |lab| {
            let (mut cell, prober) = cell(&lab, silk.config(json!({}))).await;
            silk.delete("c1", "10.255.1.1");
            cell.plug("c2", "10.255.1.1");
            cell.add_entry("c2", "10.255.1.1", &app("s1"));
            assert_eq!(cell.force("c2").await, (200, "updated container c2".to_owned()));
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
            assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
            assert!(cell.log.text().contains("address-claimed-twice"));
            let (status, body) = cell.force("c1").await;
            assert_eq!(status, 500);
            assert!(body.contains("its chain netout--c1 is not in iptables yet"), "{body}");
            cell.stop().await;
        });
    }
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
            let (status, told) = cell.debug("POST", "/iptables-c2c-logging", bad).await;
            assert_eq!((status, told.as_str()), (200, "{\"enabled\":true}"), "only PUT turns it");
        }
        assert_eq!(cell.debug("GET", "/readyz", "").await, (200, "ready\n".to_owned()));
        cell.stop().await;

        let off = json!({"enable_asg_syncing": false, "iptables_c2c_logging": true});
        cell.configure(off.as_object().unwrap());
        cell.start().await;
        let (_, told) = cell.debug("GET", "/iptables-c2c-logging", "").await;
        assert_eq!(told, "{\"enabled\":true}", "as configured");
        for path in ["/force-asgs-for-container", "/force-orphaned-asgs-cleanup?container=c1"] {
            let disabled = "ASG syncing has been disabled administratively".to_owned();
            assert_eq!(cell.get(path).await, (405, disabled), "{path}");
        }
        assert_eq!(listing(), "", "others filter now");
        cell.stop().await;
    });
}

/// Chains that the CNI plugin recreated for an unchanged entry.
#[test]
fn a_promise_beside_the_plugin_is_about_the_chains_of_now() {
    for silk in BACKENDS {
        lab(async move |lab| {
            let config = silk.config(json!({"drift_interval": "1h", "asg_poll_interval": 3600}));
            let (mut cell, prober) = cell(&lab, config).await;
            silk.delete("c1", "10.255.1.1");
            silk.add("c1", "10.255.1.1", &json!({}));
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
            assert_eq!(cell.force("c1").await.0, 200);
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
            cell.stop().await;
        });
    }
}

#[test]
fn the_cell_service_reports_enforcement_and_reasons() {
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
fn an_unusable_configuration_fails_at_bind() {
    lab(async |_lab| {
        let cell = Cell::new(json!({"data_plane": "nftables"})).await;
        for (key, value, told) in [
            (
                "nft_path",
                "/nonexistent/nft",
                "there is no /nonexistent/nft: install nftables, or set nft_path",
            ),
            ("cni_datastore_path", "/nonexistent/store.json", "there is no directory /nonexistent"),
            ("state_directory", "/proc/none", "the state directory /proc/none cannot be used"),
        ] {
            let error = cell.bind_with(key, json!(value)).await;
            assert!(error.contains(told), "{key}: {error}");
        }
        let error = cell.bind_with("underlay_ips", json!(["203.0.113.7"])).await;
        assert!(error.contains("looking up interface names: no interface has"), "{error}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = cell.bind_with("force_policy_poll_cycle_port", json!(port)).await;
        assert!(error.contains("control: listening on") && error.contains("in use"), "{error}");
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

/// Same as Go's net/http.
#[test]
fn an_unknown_path_is_not_found_in_the_words_of_the_original() {
    lab(async |_lab| {
        let mut cell = Cell::running(json!({})).await;
        for (head, body) in cell.heads("/unknown").await {
            assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
            let head = head.to_ascii_lowercase();
            assert!(head.contains("\r\ncontent-type: text/plain; charset=utf-8"), "{head}");
            assert!(head.contains("\r\nx-content-type-options: nosniff"), "{head}");
            assert_eq!(body, "404 page not found\n");
        }
        cell.stop().await;
    });
}
