//! Refusals by the kernel, and foreign changes: laws 6 to 8.

use std::fs;

use proto::cell_v1::{EffectiveRulesRequest, ReconcileRequest};
use serde_json::json;

use crate::{
    agent::{all, app, bound, eventually, global, listing, rule},
    lab::{Lab, lab, sh},
    packets::{Fate, connection},
    planes::{Plane, Programs, on_every_plane},
    silk::{BACKENDS, Silk},
    stage::{C1, C2, CLOSED, OPEN, OTHER, cell, lose_the_groups, restart_unknowing},
};

/// Simulates a kernel that refuses one of the destinations, and one of the containers:
/// on one plane its address, on the other its log rule.
pub(crate) const REFUSES: &str = "case \"$input\" in *10.66.6.6*|*10.255.6.6*|*DENY_bad*)
    echo 'Error: Could not process rule: Numerical result out of range' >&2; exit 1;;
esac";

#[test]
fn refused_rules_are_isolated_by_name() {
    on_every_plane(refused);
}

async fn refused(plane: Plane, lab: Lab) {
    let programs = Programs::new(plane, REFUSES, "");
    let config = programs.config(json!({"iptables_asg_logging": true, "force_timeout": "20s"}));
    let (mut cell, prober) = cell(&lab, config).await;
    let many = (0..40).map(|n| rule("tcp", &format!("10.7.{n}.0/24"), "80"));
    let mut rules: Vec<_> = many.chain([all("10.66.6.6")]).collect();
    rules.push(all("10.2.0.0/16"));
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")]), global("g2", rules)]);
    cell.caught_up().await;
    let fate = prober.probe(C1, OPEN, connection(80)).await;
    assert_eq!(fate, Fate::Accept, "{:#?}", plane.ours());
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
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

    cell.plug("bad", "10.255.6.6");
    cell.add_entry("bad", "10.255.6.6", &app("s1"));
    let (status, body) = cell.force("bad").await;
    assert_eq!(status, 500);
    assert!(body.contains("the kernel rejects the rules"), "{body}");
    cell.add_app("c2", "10.255.1.2", "s1").await;
    assert_eq!(prober.probe(C2, OPEN, connection(80)).await, Fate::Accept);
    cell.stop().await;
}

/// Law 5: a refused change removes nothing.
#[test]
fn while_the_kernel_refuses_everything_the_last_rules_stand() {
    on_every_plane(refusing);
}

async fn refusing(plane: Plane, lab: Lab) {
    let refuses =
        "[ -e works ] || [ -z \"$input\" ] || { echo 'Error: out of order' >&2; exit 1; }";
    let programs = Programs::new(plane, refuses, "");
    programs.write("works", "");
    let (mut cell, prober) = cell(&lab, programs.config(json!({}))).await;
    cell.settled().await;
    let whole = plane.ours();
    programs.remove("works");
    cell.store.set(vec![global("g2", vec![all("10.2.0.0/16")])]);
    let failed = async || cell.status().await.last_error.contains("out of order");
    eventually("the failure is told", failed).await;
    assert_eq!(plane.ours(), whole);
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
    assert!(!cell.log.text().contains("-isolated"), "nothing is to blame");
    programs.write("works", "");
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
    assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
    cell.stop().await;
}

#[test]
fn foreign_changes_are_undone() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        cell.store.set(vec![bound(
            "g1",
            "s1",
            vec![all("10.1.0.0/16"), rule("udp", "1.2.3.4", "53")],
        )]);
        cell.caught_up().await;
        cell.settled().await;
        let (whole, content) = (listing(), Plane::Nftables.ours());
        let chain = whole.lines().find_map(|line| {
            line.trim().strip_prefix("chain ").filter(|name| name.starts_with("policy-"))
        });
        let chain = chain.unwrap().trim_end_matches(" {").to_owned();
        let healed = async || cell.log.text().matches("drift-healed").count();
        let policy = format!(r#""place":"chain {chain}","#);
        let element = r#""place":"map policies","#;
        // The edit, and the first difference in its log line.
        for (done, (edit, place, difference)) in [
            ("nft flush table inet portcullis", r#""place":"chain "#, r#""expected":""#),
            ("nft delete table inet portcullis", r#""place":"table inet portcullis","#, ""),
            (&format!("nft flush chain inet portcullis {chain}"), &policy, r#""expected":""#),
            (
                &format!("nft insert rule inet portcullis {chain} accept"),
                &policy,
                r#""found":"accept""#,
            ),
            (
                "nft delete element inet portcullis policies { 10.255.1.1 }",
                element,
                r#""expected":"10.255.1.1 : jump "#,
            ),
            (
                &format!(
                    "nft add element inet portcullis policies {{ 10.255.7.7 : jump {chain} }}"
                ),
                element,
                r#""found":"10.255.7.7 : jump "#,
            ),
            (
                "nft add chain inet portcullis stranger && \
                 nft insert rule inet portcullis forward jump stranger",
                r#""place":"chain forward","#,
                r#""found":"jump stranger""#,
            ),
            (
                "nft add set inet portcullis strangers '{ type ipv4_addr; }'",
                r#""place":"set strangers","#,
                r#""found":"the definition""#,
            ),
            (
                "nft add map inet portcullis more '{ type ipv4_addr : verdict; }'",
                r#""place":"map more","#,
                r#""found":"the definition""#,
            ),
            (
                "nft delete table inet portcullis && nft add table inet portcullis && \
                 nft add set inet portcullis policies '{ type ipv4_addr; }'",
                r#""place":"chain "#,
                r#""expected":"the definition""#,
            ),
        ]
        .into_iter()
        .enumerate()
        {
            // After settling again, the agent rewrites its state file.
            let applied = cell.directory.path().join("state/applied");
            sh(edit);
            fs::remove_file(&applied).unwrap();
            eventually(&format!("healed: {edit}"), async || healed().await > done).await;
            cell.settled().await;
            assert_eq!(Plane::Nftables.ours(), content, "{edit}");
            let log = cell.log.text();
            let found = log.lines().rfind(|line| line.contains("drift-found")).unwrap();
            assert!(found.contains(place) && found.contains(difference), "{edit}: {found}");
            assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{edit}");
            assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject, "{edit}");
        }
        assert_eq!(cell.status().await.drift_healed, 10);
        cell.stop().await;
    });
}

/// Edits of the rules of c1; the fourth rule allows `OPEN`. Chain names are those of
/// the contract. The log line of an edit names the chain and the rule.
const EDITS: &[(&str, &str)] = &[
    ("-F asg-c1", r#"asg-c1","expected":""#),
    ("-I asg-c1 -j ACCEPT", r#"asg-c1","found":"-j ACCEPT"}"#),
    // Of equal size, so that the table's size does not reveal the change.
    (
        "-R asg-c1 4 -m iprange --dst-range 10.9.0.0-10.9.255.255 -j ACCEPT",
        "10.1.255.255 -j ACCEPT\",\"found\":\"-m iprange --dst-range 10.9.0.0",
    ),
    ("-D asg-c1 4", "10.1.255.255 -j ACCEPT\"}"),
    ("-A asg-c1 -j ACCEPT", r#"asg-c1","found":"-j ACCEPT"}"#),
    ("-D netout--c1 -j asg-c1", r#"netout--c1","expected":"-j asg-c1"}"#),
    ("-I netout--c1 -j ACCEPT", r#"netout--c1","found":"-j ACCEPT"}"#),
    ("-F netout--c1", r#"netout--c1","expected":"-j asg-c1"}"#),
    ("-N asg-stranger", ""),
];

#[test]
fn foreign_changes_in_chains_are_undone() {
    for silk in BACKENDS {
        lab(async move |lab| edited(silk, &lab).await);
    }
}

async fn edited(silk: Silk, lab: &Lab) {
    let (mut cell, prober) = cell(lab, silk.config(json!({}))).await;
    let rules = vec![all("10.1.0.0/16"), rule("udp", "1.2.3.4", "53")];
    cell.store.set(vec![bound("g1", "s1", rules)]);
    cell.caught_up().await;
    let whole = silk.ours();
    assert!(whole[4].contains("10.1.0.0-10.1.255.255"), "the fourth rule opens: {whole:?}");
    let deleted = ["-D netout--c1 -j asg-c1", "-F asg-c1", "-X asg-c1"];
    let edits = EDITS.iter().map(|(edit, line)| (std::slice::from_ref(edit), *line));
    for (edit, line) in edits.chain([(deleted.as_slice(), "c1")]) {
        let before = cell.status().await.drift_healed;
        for command in edit {
            silk.run(command);
        }
        eventually(&format!("healed: {edit:?}"), async || silk.ours() == whole).await;
        // An edit during the agent's read-back is repaired without being counted.
        let counted = async || cell.status().await.drift_healed > before;
        if *edit != ["-N asg-stranger"] {
            eventually(&format!("counted: {edit:?}"), counted).await;
            let log = cell.log.text();
            let found = log.lines().rfind(|line| line.contains("drift-found")).unwrap();
            assert!(found.contains(line), "{edit:?}: {found}");
        }
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{edit:?}");
        assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject, "{edit:?}");
    }
    cell.stop().await;
}

#[test]
fn foreign_changes_of_other_tables_are_ignored() {
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

/// Laws 5 and 7: chains that are flushed while the desired rules are unknown are
/// restored.
#[test]
fn a_flush_while_the_groups_are_unknown_allows_nothing() {
    lab(async |lab| {
        let (mut cell, prober) = cell(&lab, json!({})).await;
        restart_unknowing(&mut cell, lose_the_groups).await;
        sh("nft flush table inet portcullis");
        eventually("the drift is healed", async || cell.log.text().contains("drift-healed")).await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, CLOSED, connection(80)).await, Fate::Reject);
        cell.stop().await;
    });
}
