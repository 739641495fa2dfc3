//! The policy store with grpcurl: an operator, and clients without the role that they need.

use integration_tests::{
    grpcurl::{self, Target},
    services::ControlPlane,
};

#[test]
fn grpcurl_lists_describes_and_calls() {
    let plane = ControlPlane::start();
    let syncer = plane.syncer("syncer-a");
    plane.wait_until_synced();

    let target = Target::Tls(&plane.store_address, &plane.operator);
    let list = grpcurl::run(&target, None, &["list"]);
    for service in ["portcullis.policy.v1.PolicyStore", "grpc.health.v1.Health"] {
        assert!(list.stdout.contains(service), "{list:?}");
    }
    let service = grpcurl::run(&target, None, &["describe", "portcullis.policy.v1.PolicyStore"]);
    for method in ["rpc Replace", "rpc List", "rpc Watch", "rpc Status"] {
        assert!(service.stdout.contains(method), "{service:?}");
    }
    let status = plane.store_status();
    assert_eq!(status["writer"]["owner"], "syncer-a", "{status}");
    assert!(status["watermark"].is_string(), "{status}");
    drop(syncer);
}

#[test]
fn a_client_without_a_role_is_refused() {
    let plane = ControlPlane::start();
    let stranger = plane.site.certificate("stranger");
    let begin = r#"{"begin":{"owner":"x","watermark":"2026-01-01T00:00:00Z"}}"#;
    for (files, method, request) in [
        (&stranger, "Status", "{}"),
        (&stranger, "Replace", begin),
        (&plane.operator, "Replace", begin),
        (&plane.operator, "Watch", r#"{"hello":{"cell_id":"cell-1"}}"#),
    ] {
        let target = Target::Tls(&plane.store_address, files);
        let method = format!("portcullis.policy.v1.PolicyStore/{method}");
        let answer = grpcurl::run(&target, Some(request), &[&method]);
        assert!(answer.stderr.contains("PermissionDenied"), "{method}: {answer:?}");
    }
}

/// A cell's certificate allows only its own cell ID.
#[test]
fn a_cell_cannot_use_the_id_of_another() {
    let plane = ControlPlane::start();
    let cell = plane.site.cell_certificate("cell-1");
    let target = Target::Tls(&plane.store_address, &cell);
    let answer = grpcurl::run(
        &target,
        Some(r#"{"hello":{"cell_id":"cell-2"}}"#),
        &["portcullis.policy.v1.PolicyStore/Watch"],
    );
    assert!(answer.stderr.contains("PermissionDenied"), "{answer:?}");
}
