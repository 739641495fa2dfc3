//! Fuzz test of the files of certificates and keys.

use fuzz::{Bounds, Fuzz, Language};

use super::*;

/// Each error names the file.
#[test]
fn fuzz_certificate_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file.pem");
    let bounds = Bounds { allocations: (5_000, 20), bytes: (256 << 10, 400), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "pem", Language::Text).bounds(bounds);
    let fuzz = fuzz.longest(8_192).tokens(&[
        "-----BEGIN CERTIFICATE-----",
        "-----END CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----",
        "-----",
        "MIIB",
        "=",
        "\r\n",
    ]);
    fuzz.expects(&["a certificate", "key true"]).run(|input| {
        fs::write(&path, input).unwrap();
        let key = load_key(&path);
        let chain = load_certificates(&path);
        let mut authorities = Authorities::empty();
        let added = authorities.add(&path);
        let facts = chain.as_ref().ok().map(|chain| own(&path, chain));
        let errors = [
            key.as_ref().err().map(ToString::to_string),
            chain.as_ref().err().map(ToString::to_string),
            added.as_ref().err().map(ToString::to_string),
            facts.as_ref().and_then(|facts| facts.as_ref().err()).map(ToString::to_string),
        ];
        for error in errors.iter().flatten() {
            assert!(error.contains("file.pem"), "{error}");
        }
        match (facts, key.is_ok()) {
            (Some(Ok(_)), key) => format!("a certificate, key {key}"),
            (_, key) => format!("key {key} {}", errors[1].clone().unwrap_or_default()),
        }
    });
}
