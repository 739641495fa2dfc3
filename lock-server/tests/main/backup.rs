//! `--backup-to` while the server serves requests.

use proto::models::{FetchRequest, LockRequest, Resource, TypeCode};
use serde_json::json;

use crate::support::server::{Server, Site};

fn lock(key: &str) -> LockRequest {
    let resource = Resource {
        key: key.to_owned(),
        owner: "owner".to_owned(),
        type_code: TypeCode::Lock.into(),
        ..Resource::default()
    };
    LockRequest { resource: Some(resource), ttl_in_seconds: 3_600 }
}

/// The backup contains every change acknowledged before it began.
#[tokio::test]
async fn a_backup_has_the_locks_that_were_answered() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);
    for key in 0..50 {
        client.lock(lock(&format!("key-{key}"))).await.unwrap();
    }
    let to = site.path("backup.db");
    let output = site.command(&site.config()).arg("--backup-to").arg(&to).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    drop(server);

    let mut config = site.config();
    config["database_connection_string"] = json!(to);
    let server = Server::start(site.command(&config));
    let mut client = site.client(&server.address);
    for key in 0..50 {
        let fetched = client.fetch(FetchRequest { key: format!("key-{key}") }).await.unwrap();
        assert_eq!(fetched.into_inner().resource.unwrap().owner, "owner");
    }
}

#[test]
fn a_server_is_backed_up_by_its_own_tools() {
    let site = Site::new();
    let mut config = site.config();
    config["database_driver"] = json!("postgres");
    config["database_connection_string"] = json!("postgres://u:secret@127.0.0.1:1/d");
    let to = site.path("backup.db");
    let output = site.command(&config).arg("-backup-to").arg(&to).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("as with pg_dump") && !said.contains("secret"), "{said}");
}
