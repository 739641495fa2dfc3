//! The process: crashes, signals, logs, failed starts.

use std::{collections::BTreeSet, io::Write as _, process::Output, time::Duration};

use nix::sys::signal::Signal;
use proto::policy_v1::{DifferenceRequest, HistoryEntry, HistoryRequest, history_entry};
use serde_json::{Value, json};
use storage::{server::Dialect, testing::TestServer};
use tokio::sync::watch;
use tonic::Code;

use crate::support::{
    client::{Cell, decoded, list_all, replace},
    http::Poller,
    process::{Program, command},
    sets::{fenced, named},
    site::{Client, Foundation, Site},
};

/// kill -9 during Replaces: after the restart there is one complete set, at least as
/// new as the last confirmed one, every confirmed token still fences, and the history leads
/// back to the first set.
#[tokio::test]
async fn a_crash_leaves_a_whole_set() {
    let site = Site::new();
    let confirmed = watch::Sender::new(0u64);
    let mut round = 0u64;
    for life in 0..8u64 {
        let mut program = Program::start(&site);
        let writer = site.client(&program.address, "syncer", None);
        if life > 0 {
            let name = the_only_name(&writer).await;
            let last = *confirmed.borrow();
            assert!((last..=round).contains(&name), "{name}, {last} confirmed, {round} sent");
            the_history_is_whole(&site.foundation(&program.address, "operator", None)).await;
            let old = fenced(&named(200, "0"), "old", life);
            let error = replace(&writer, &old).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        }
        let writes = async {
            loop {
                round += 1;
                let write = fenced(&named(200, &round.to_string()), "syncer-a", life + 1);
                match replace(&writer, &write).await {
                    Ok(_) => _ = confirmed.send_replace(round),
                    Err(status) => return status,
                }
            }
        };
        let enough = *confirmed.borrow() + 2;
        let killed = async {
            confirmed.subscribe().wait_for(|confirmed| *confirmed >= enough).await.unwrap();
            // Kill at a different moment of the next Replace in each run.
            tokio::time::sleep(Duration::from_millis(life * 3)).await;
            program.signal(Signal::SIGKILL);
        };
        tokio::join!(writes, killed);
        program.wait();
    }
}

/// Every generation has its entry, and the contents of the first one come back.
async fn the_history_is_whole(operator: &Foundation) {
    let request = HistoryRequest { page_size: 1_000, ..HistoryRequest::default() };
    let entries = operator.clone().history(request).await.unwrap().into_inner().entries;
    let generation = |entry: &HistoryEntry| match &entry.entry {
        Some(history_entry::Entry::Change(change)) => change.generation,
        other => panic!("{other:?}"),
    };
    let generations: Vec<u64> = entries.iter().map(generation).collect();
    let newest = generations[0];
    assert!(generations.iter().copied().eq((1..=newest).rev()), "{generations:?}");
    let (from_generation, to_generation) = (1, newest);
    let request =
        DifferenceRequest { from_generation, to_generation, page_size: 1_000, page_token: 0 };
    let groups = operator.clone().difference(request).await.unwrap().into_inner().groups;
    assert_eq!(groups.len(), 200);
    let first = proto::decode_group(groups[0].before.clone().into()).unwrap();
    assert_eq!(first.name, "1");
}

/// The common name of all 200 groups.
async fn the_only_name(client: &Client) -> u64 {
    let (_, groups) = list_all(client).await;
    let names: BTreeSet<_> = groups.iter().map(|stored| decoded(stored).name.clone()).collect();
    assert_eq!((groups.len(), names.len()), (200, 1), "a torn set: {names:?}");
    names.first().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_signal_sends_watchers_away_and_ends_in_order() {
    let site = Site::new();
    let mut program = Program::start(&site);
    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&named(3, "1"), "syncer-a", 9)).await.unwrap();
    let client = site.client(&program.address, "cell-1", Some("cell"));
    let mut cell = Cell::hello(&client, "cell-1", &[]).await;
    cell.until(1).await;
    program.signal(Signal::SIGTERM);
    assert_eq!(cell.end().await.code(), Code::Unavailable);
    assert!(program.wait().success());
    program.line("exited", 0);
}

#[tokio::test]
async fn the_log_tells_of_each_replace_and_refusal() {
    let site = Site::new();
    let program = Program::start(&site);
    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&named(60, "1"), "syncer-a", 9)).await.unwrap();
    let line = program.line("replaced-security-groups", 0);
    assert_eq!(line["level"], "info");
    assert_eq!(line["source"], "cfnetworking.policy-server-internal");
    let mut data = line["data"].clone();
    assert!(data["milliseconds"].as_u64().is_some(), "{line}");
    data.as_object_mut().unwrap().remove("milliseconds");
    assert_eq!(
        data,
        json!({
            "added": 60, "changed": 0, "removed": 0, "unchanged": 0, "generation": 1,
            "fencing-token": 9, "writer": "syncer-a",
            "added-guids": (0..20).map(|i| format!("g{i:05}")).collect::<Vec<_>>(),
        })
    );

    replace(&writer, &fenced(&named(10, "1"), "syncer-a", 9)).await.unwrap_err();
    let line = program.line("refused-replace", 0);
    assert_eq!(
        (&line["level"], &line["data"]["reason"]),
        (&json!("error"), &json!("mass-removal"))
    );
    let error = line["data"]["error"].as_str().unwrap();
    assert!(error.starts_with("this would remove 50 of 60 security groups"), "{line}");

    replace(&writer, &fenced(&named(60, "2"), "syncer-b", 8)).await.unwrap_err();
    let line = program.line("refused-replace", 1);
    assert_eq!(line["data"]["reason"], "fenced");
    assert_eq!(line["data"]["fencing-token"], 8);

    let mut write = fenced(&named(60, "1"), "syncer-a", 9);
    write.watermark = model::generation::Watermark::try_new(0, 500_000_000).unwrap();
    replace(&writer, &write).await.unwrap();
    let line = program.line("watermark-regressed", 0);
    assert_eq!(
        line["data"],
        json!({ "given": "1970-01-01T00:00:00.5Z", "stored": "1970-01-01T00:00:01Z" })
    );

    let stranger = site.client(&program.address, "stranger", None);
    replace(&stranger, &write).await.unwrap_err();
    let line = program.line("permission-denied", 0);
    assert_eq!(line["data"]["error"], "the peer cn=stranger may not replace security groups");
}

fn run(site: &Site, config: &Value) -> Output {
    command(site, config).output().unwrap()
}

#[test]
fn a_bad_configuration_is_told_in_sentences() {
    let site = Site::new();
    let output = run(&site, &json!({ "database": { "type": "oracle" }, "log_level": "loud" }));
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    for text in
        ["database.type: must be sqlite, postgres or mysql", "ca_cert_file: missing", "log_level: "]
    {
        assert!(errors.contains(text), "{text} in {errors}");
    }
    assert_eq!(errors.lines().count(), 5, "{errors}");
    let prefix = "cfnetworking.policy-server-internal: could not read config file: ";
    assert!(errors.lines().all(|line| line.starts_with(prefix)), "{errors}");
}

/// A failure after the log is set up is one line that names the cause, and exit 1.
#[test]
fn what_cannot_be_bound_is_named() {
    let site = Site::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let nowhere = site.path().join("nowhere");
    for (key, value, texts) in [
        ("grpc_listen_address", json!(taken), vec!["grpc", taken.as_str()]),
        ("admin_listen_address", json!(taken), vec!["admin", taken.as_str()]),
        ("database", json!({ "type": "sqlite", "path": nowhere.join("db") }), vec!["nowhere/db"]),
    ] {
        let _held = std::net::TcpListener::bind(&taken);
        let mut config = site.config();
        config[key] = value;
        let output = run(&site, &config);
        assert_eq!(output.status.code(), Some(1), "{key}");
        let log = String::from_utf8(output.stdout).unwrap();
        let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert!(line["message"].as_str().unwrap().ends_with(".exited-with-failure"), "{line}");
        let error = line["data"]["error"].as_str().unwrap();
        for text in texts {
            assert!(error.contains(text), "{text} in {error}");
        }
    }
}

#[test]
fn a_good_configuration_can_be_checked() {
    let site = Site::new();
    let output = command(&site, &site.config()).arg("--check-config").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Both ports and the readiness wait for the certificate.
#[tokio::test]
async fn without_a_usable_certificate_it_starts_and_waits_for_one() {
    let site = Site::new();
    let mut config = site.config();
    let files = site.certificate("torn", None);
    let whole = std::fs::read_to_string(&files.cert).unwrap();
    std::fs::write(&files.cert, &whole[..whole.len() / 2]).unwrap();
    config["server_cert_file"] = json!(files.cert);
    config["server_key_file"] = json!(files.key);
    let program = Program::start_with(&site, &config);
    let line = program.line("certificate-unusable", 0);
    assert_eq!((&line["level"], &line["data"]["tls"]), (&json!("error"), &json!("server")));
    assert!(line["data"]["error"].as_str().unwrap().contains("torn.crt"), "{line}");
    let started = program.line("started", 0);
    let address = |key: &str| started["data"][key].as_str().unwrap().to_owned();
    let ready = format!("http://{}/readyz", address("admin-address"));
    let answer = reqwest::get(&ready).await.unwrap();
    assert_eq!(answer.status(), 503);
    let text = answer.text().await.unwrap();
    assert!(text.contains("certificate: parsing"), "{text}");

    std::fs::write(&files.cert, whole).unwrap();
    program.line("tls-files-reloaded", 0);
    let client = site.client(&program.address, "syncer", None);
    replace(&client, &fenced(&named(3, "1"), "syncer-a", 9)).await.unwrap();
    let poller = Poller::new(&site, &address("internal-address"), "poller");
    assert!(
        poller
            .get("/networking/v1/internal/security_groups_last_updated")
            .await
            .status()
            .is_success()
    );
    assert_eq!(reqwest::get(&ready).await.unwrap().status(), 200);
}

/// A full disk: the store is readable, and not ready until a Replace is stored again.
/// A small write that succeeds meanwhile proves nothing.
#[tokio::test]
async fn a_full_disk_is_not_ready_and_heals() {
    let site = Site::new();
    let disk = site.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut config = site.config();
    config["database"]["path"] = json!(disk.join("store.db"));
    let program = Program::start_on_disk(&site, &config, &disk, 16 << 20);
    let writer = site.client(&program.address, "syncer", None);
    let readyz = async || {
        let answer = reqwest::get(format!("http://{}/readyz", program.admin())).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    replace(&writer, &fenced(&named(100, "1"), "syncer-a", 1)).await.unwrap();
    assert_eq!(readyz().await, (200, "ready\n".to_owned()));

    let filler = program.path(&disk.join("filler"));
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write(&[1; 64 << 10]).is_ok_and(|written| written > 0) {}
    let large = fenced(&named(5_000, "2"), "syncer-a", 1);
    for _ in 0..2 {
        let error = replace(&writer, &large).await.expect_err("there is no room");
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        let (code, text) = readyz().await;
        assert_eq!(code, 503, "{text}");
        assert!(text.starts_with("database writes: the last Replace was not stored: "), "{text}");
        assert!(text.contains("the disk is full"), "{text}");
    }
    assert_eq!(list_all(&writer).await.0, 1, "what is stored is served");

    std::fs::remove_file(filler).unwrap();
    drop(file);
    replace(&writer, &large).await.unwrap();
    assert_eq!(readyz().await, (200, "ready\n".to_owned()));
}

/// `--reset-fencing`, as documented, on each database.
#[tokio::test]
async fn fencing_is_reset_by_a_command() {
    let on = |dialect| Site::on(TestServer::shared(dialect));
    for site in [on(Dialect::Postgres), on(Dialect::MySql), Site::new()] {
        let config = site.config();
        let reset = || {
            let mut command = command(&site, &config);
            let output = command.arg("--reset-fencing").output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let mut program = Program::start_with(&site, &config);
        let writer = site.client(&program.address, "syncer", None);
        replace(&writer, &fenced(&named(3, "1"), "syncer-a", 7)).await.unwrap();
        let old = fenced(&named(3, "2"), "syncer-b", 1);
        let error = replace(&writer, &old).await.expect_err("fenced");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        if config["database"]["type"] == "sqlite" {
            // The file of a running store is not modified.
            let (code, _, error) = reset();
            assert_eq!(code, Some(1), "{error}");
            assert!(error.starts_with("reset-fencing: resetting the fencing token: "), "{error}");
            program.signal(Signal::SIGTERM);
            program.wait();
            let said = "forgot fencing token 7 of syncer-a: the next writer is let in\n".to_owned();
            assert_eq!(reset(), (Some(0), said, String::new()));
            program = Program::start_with(&site, &config);
        } else {
            let (code, said, error) = reset();
            assert_eq!((code, &*error), (Some(0), ""), "{said}");
            assert!(said.starts_with("forgot fencing token 7 of syncer-a"), "{said}");
        }
        let writer = site.client(&program.address, "syncer", None);
        let done = replace(&writer, &old).await.unwrap();
        assert_eq!((done.generation, done.changed), (2, 3), "the groups are as they were");
        // The fence works again.
        let older = replace(&writer, &fenced(&named(3, "3"), "syncer-a", 0)).await;
        assert_eq!(older.unwrap_err().code(), Code::FailedPrecondition);
    }
}
