//! The quick attacks of `portcullis-dev attack` on doors that strangers reach. The honest client
//! never fails, memory and files stay within their bounds, and what must be refused is refused.
//! Latency is not judged: other tests run at the same time.

use std::process::Command;

use integration_tests::binaries;

/// Runs attacks on a door; returns the table.
fn attack(door: &str, attacks: &[&str]) -> String {
    let mut command = Command::new(binaries::path("portcullis-dev"));
    command.args(["attack", "--quick", "--duration", "600ms", "--attacker-nice", "0"]);
    let output = command.args(["--only", door, "--attack", &attacks.join(",")]).output();
    let output = output.expect("portcullis-dev can be run");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}{errors}");
    assert_eq!(table.lines().count(), 2 + attacks.len(), "{table}");
    table
}

/// Whether the row of an attack says what the attacker got.
fn has(table: &str, attack: &str, got: &str) -> bool {
    let cell = format!("| {attack} |");
    table.lines().any(|row| row.contains(&cell) && row.contains(got))
}

#[test]
fn broken_http2_and_tls_harm_no_client_of_the_lock_server() {
    let attacks = ["continuation", "hpack-bomb", "header-list", "old-tls", "alpn", "certificates"];
    let table = attack("lock-server", &attacks);
    for attack in ["continuation", "hpack-bomb"] {
        assert!(has(&table, attack, "GOAWAY ENHANCE_YOUR_CALM"), "{table}");
    }
    assert!(has(&table, "old-tls", "TLS 1.0: alert"), "{table}");
    assert!(has(&table, "certificates", "expired: CertificateExpired"), "{table}");
}

#[test]
fn broken_http1_harms_no_client_of_the_policy_store() {
    let table = attack("policy-store-http", &["header-bomb", "bodies"]);
    assert!(has(&table, "header-bomb", "HTTP 431"), "{table}");
}

#[test]
fn broken_http1_harms_no_client_of_the_admin_port() {
    let table = attack("admin", &["slow-bodies", "header-bomb", "bodies"]);
    assert!(has(&table, "slow-bodies", "413"), "{table}");
    assert!(has(&table, "header-bomb", "HTTP 431"), "{table}");
}
