//! TLS verification of the database server.

use std::{error::Error as _, fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use storage::{
    Error, Kind,
    server::{Dialect, Options, Server, Tls},
    testing::{Certificate, TestServer},
};
use tempfile::TempDir;

use super::{SCHEMA, balances, on_both};

on_both! {
    certificates_are_verified
    unusual_certificates_are_accepted_or_explained
    a_wrong_password_is_refused_and_not_repeated_in_the_error
    a_server_without_tls_is_refused_where_an_authority_is_named
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

fn authority(place: &TempDir, name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    let file = place.path().join(name);
    fs::write(&file, certificate.pem()).unwrap();
    Authority { issuer: Issuer::new(parameters, key), file }
}

fn certificate(place: &TempDir, authority: &Authority, host: &str) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let made = parameters.signed_by(&key, &authority.issuer).unwrap();
    let files =
        Certificate { certificate: place.path().join("crt"), key: place.path().join("key") };
    fs::write(&files.certificate, made.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// The server's certificate is for `localhost`: it matches that name, but not the IP address.
async fn certificates_are_verified(dialect: Dialect) {
    let place = TempDir::new().unwrap();
    let (ours, foreign) = (authority(&place, "ours"), authority(&place, "foreign"));
    let server = TestServer::start_with_tls(dialect, &certificate(&place, &ours, "localhost"));
    server.sql("CREATE DATABASE d");
    let tries = [
        (&ours, "localhost", true, true),
        (&ours, "127.0.0.1", true, false),
        (&ours, "127.0.0.1", false, true),
        (&foreign, "localhost", true, false),
        (&foreign, "localhost", false, false),
        (&foreign, "127.0.0.1", false, false),
    ];
    for (authority, host, verify_identity, taken) in tries {
        let mut options = Options::new(dialect, server.connection_string(host, "d"));
        options.tls = Some(Tls { ca: authority.file.clone(), verify_identity });
        let what = format!("{} {host} {verify_identity}", authority.file.display());
        match Server::connect(&options, &SCHEMA).await {
            Ok(connected) => {
                assert!(taken, "{what}");
                assert_eq!(balances(&connected).await, [100, 100]);
                let encrypted = match dialect {
                    Dialect::Postgres => {
                        "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
                    }
                    Dialect::MySql => {
                        "SELECT VARIABLE_VALUE FROM information_schema.SESSION_STATUS
                         WHERE VARIABLE_NAME = 'Ssl_version'"
                    }
                };
                let rows = connected.query(encrypted, &[]).await.unwrap();
                assert!(rows[0].get::<&str>(0).unwrap().starts_with("TLSv1"), "{what}");
            }
            Err(error) => {
                assert!(!taken, "{what}: {error:?}");
                assert_eq!(error.kind(), Kind::Refused, "{what}: {error:?}");
                assert!(matches!(error, Error::Connect { .. }), "{what}: {error:?}");
            }
        }
    }
}

/// Certificate of the server, CA file, and whether the host is verified.
struct Unusual {
    shown: Certificate,
    ca: PathBuf,
    verify_identity: bool,
    /// Part of the error; `None` where the certificate is accepted.
    refused: Option<&'static str>,
}

/// Certificates that OpenSSL accepts and webpki does not: accepted where that is safe, otherwise an
/// error says what to change.
async fn unusual_certificates_are_accepted_or_explained(dialect: Dialect) {
    let place = TempDir::new().unwrap();
    let ours = authority(&place, "ours");
    for unusual in unusual(&place, &ours, dialect) {
        let Unusual { shown, ca, verify_identity, refused } = unusual;
        let what = format!("{}, {verify_identity}", shown.certificate.display());
        let server = TestServer::start_with_tls(dialect, &shown);
        server.sql("CREATE DATABASE d");
        let mut options = Options::new(dialect, server.connection_string("localhost", "d"));
        options.tls = Some(Tls { ca, verify_identity });
        match (Server::connect(&options, &SCHEMA).await, refused) {
            (Ok(connected), None) => assert_eq!(balances(&connected).await, [100, 100]),
            (Err(error), Some(part)) => {
                let text = format!(
                    "{error}: {}",
                    error.source().map_or_else(String::new, |s| s.to_string())
                );
                assert!(text.contains(part) && !text.contains("Other("), "{what}: {text}");
                assert_eq!(error.kind(), Kind::Refused, "{what}: {text}");
            }
            (Ok(_), Some(part)) => panic!("{what}: taken, instead of {part}"),
            (Err(error), None) => panic!("{what}: {error:?}"),
        }
    }
}

fn unusual(place: &TempDir, ours: &Authority, dialect: Dialect) -> Vec<Unusual> {
    let write = |name: &str, cert: String, key: String| {
        let path = |end: &str| place.path().join(format!("{name}.{end}"));
        let files = Certificate { certificate: path("crt"), key: path("key") };
        fs::write(&files.certificate, cert).unwrap();
        fs::write(&files.key, key).unwrap();
        files
    };
    let issued = |name: &str, change: &dyn Fn(&mut CertificateParams)| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let own = params.signed_by(&key, &ours.issuer).unwrap().pem();
        let root = fs::read_to_string(&ours.file).unwrap();
        write(name, format!("{own}{root}"), key.serialize_pem())
    };
    let self_signed = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap().pem();
        write("self-signed", cert, key.serialize_pem())
    };
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../trust/fixtures");
    let fixture = |name: &str| fs::read_to_string(format!("{fixtures}/{name}")).unwrap();
    let only_cn = |params: &mut CertificateParams| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    };
    let own = self_signed();
    let own_ca = own.certificate.clone();
    // The client library for MySQL verifies with webpki alone.
    let pinned = match dialect {
        Dialect::Postgres => None,
        Dialect::MySql => Some("CA:FALSE"),
    };
    let ca = || ours.file.clone();
    vec![
        Unusual { shown: own, ca: own_ca, verify_identity: true, refused: pinned },
        Unusual {
            shown: issued("with-root", &|_| ()),
            ca: ca(),
            verify_identity: true,
            refused: None,
        },
        Unusual {
            shown: issued("authority", &|params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            ca: ca(),
            verify_identity: false,
            refused: Some("issue it with CA:FALSE"),
        },
        Unusual {
            shown: issued("only-cn", &only_cn),
            ca: ca(),
            verify_identity: true,
            refused: Some("subject alternative name localhost"),
        },
        Unusual {
            shown: issued("only-cn-unverified", &only_cn),
            ca: ca(),
            verify_identity: false,
            refused: None,
        },
        Unusual {
            shown: write("v1", fixture("v1.crt"), fixture("v1.key")),
            ca: format!("{fixtures}/ca.crt").into(),
            verify_identity: false,
            refused: Some("X.509 version 1"),
        },
    ]
}

async fn a_wrong_password_is_refused_and_not_repeated_in_the_error(dialect: Dialect) {
    let mut options = TestServer::shared(dialect).database();
    options.connection_string = options.connection_string.replace("secret", "hunter2");
    let error = Server::connect(&options, &SCHEMA).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error:?}");
    assert!(!format!("{error} {error:?} {options:?}").contains("hunter2"));
}

async fn a_server_without_tls_is_refused_where_an_authority_is_named(dialect: Dialect) {
    let place = TempDir::new().unwrap();
    let mut options = TestServer::shared(dialect).database();
    options.tls = Some(Tls { ca: authority(&place, "ours").file, verify_identity: false });
    let error = Server::connect(&options, &SCHEMA).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}
