//! Unusable client certificates: the last good groups are in force, the CNI plugin is
//! served, and replaced files are reloaded.

use std::{fs, path::Path};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use runtime::tls::Files;
use serde_json::{Value, json};

use crate::{
    agent::eventually,
    lab::Lab,
    packets::{Fate, connection},
    planes::{Plane, on_every_plane},
    stage::{C1, C2, OPEN, OTHER, cell},
};

/// Puts unusable files into `folder`; returns a part of the expected error.
fn break_files(what: &str, good: &Files, cert: &Path, key: &Path) -> &'static str {
    fs::copy(&good.key, key).unwrap();
    match what {
        "missing" => {
            let _not_there = fs::remove_file(cert);
            "No such file"
        }
        "half-written" => {
            let text = fs::read_to_string(&good.cert).unwrap();
            fs::write(cert, &text[..text.len() / 2]).unwrap();
            "parsing"
        }
        _ => {
            let mut params = CertificateParams::new(vec!["cell-1".to_owned()]).unwrap();
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 2, 2);
            let own = KeyPair::generate().unwrap();
            fs::write(cert, params.self_signed(&own).unwrap().pem()).unwrap();
            fs::write(key, own.serialize_pem()).unwrap();
            "expired at 2002-02-02T00:00:00Z"
        }
    }
}

#[test]
fn without_a_valid_certificate_the_last_good_groups_are_in_force() {
    on_every_plane(without_certificate);
}

async fn without_certificate(plane: Plane, lab: Lab) {
    let (mut cell, prober) = cell(&lab, plane.config(json!({}))).await;
    let good = cell.store.files().clone();
    let (cert, key) =
        (cell.directory.path().join("own.crt"), cell.directory.path().join("own.key"));
    let paths = json!({"client_cert_file": cert, "client_key_file": key});
    cell.configure(paths.as_object().unwrap());
    for (round, what) in ["missing", "half-written", "expired"].into_iter().enumerate() {
        cell.settled().await;
        cell.stop().await;
        let reason = break_files(what, &good, &cert, &key);
        cell.start().await;
        eventually("the error is in the status", async || {
            cell.status().await.certificate_error.contains(reason)
        })
        .await;
        let (code, body) = cell.debug("GET", "/readyz", "").await;
        assert_eq!(code, 503);
        let line = body.lines().find(|line| line.starts_with("policy-store-certificate: "));
        assert!(line.is_some_and(|line| line.contains(reason)), "{what}: {body}");
        let unusable = "cfnetworking.vxlan-policy-agent.certificate-unusable";
        assert_eq!(cell.log.data_of(unusable).unwrap()["tls"], "policy-store-client");

        // The last good groups stay, also for a new container of a known space.
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept, "{what}");
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject, "{what}");
        let name = format!("c2-{round}");
        cell.add_app(&name, "10.255.1.2", "s1").await;
        assert_eq!(prober.probe(C2, OPEN, connection(80)).await, Fate::Accept, "{what}");
        cell.delete_entry(&name);

        for (from, to) in [(&good.key, &key), (&good.cert, &cert)] {
            fs::copy(from, to).unwrap();
        }
        eventually("the replaced files are taken up", async || {
            let status = cell.status().await;
            status.store_connected && status.certificate_error.is_empty()
        })
        .await;
        cell.caught_up().await;
        eventually("it is ready", async || cell.debug("GET", "/readyz", "").await.0 == 200).await;
    }
    let reloaded: Option<Value> =
        cell.log.data_of("cfnetworking.vxlan-policy-agent.tls-files-reloaded");
    assert!(reloaded.unwrap()["serial"].is_string());
    cell.stop().await;
}
