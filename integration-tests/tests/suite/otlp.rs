//! Spans for an OpenTelemetry collector: a dead collector delays nothing, and the spans of one
//! sync belong together. The collector here keeps the spans; its service is made from the published
//! protocol definitions.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use integration_tests::{
    services::{ControlPlane, Surroundings, free_port},
    wait,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::Span,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// A running collector; dropping it ends the collector.
#[derive(Debug)]
struct Collector {
    received: Received,
    _runtime: Runtime,
}

/// Spans with the name of their service.
#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes);
            let name = attributes.into_iter().flatten().find(|entry| entry.key == "service.name");
            let name = match name.and_then(|entry| entry.value?.value) {
                Some(any_value::Value::StringValue(name)) => name,
                other => return Err(Status::invalid_argument(format!("service.name: {other:?}"))),
            };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            received.extend(spans.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector on this address.
    ///
    /// # Panics
    /// The address cannot be bound.
    fn start(address: SocketAddr) -> Self {
        let runtime = Runtime::new().expect("tokio can be started");
        let listener = std::net::TcpListener::bind(address).expect("the address is free");
        listener.set_nonblocking(true).expect("a socket can be nonblocking");
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener);
            let incoming = listener.expect("the socket is nonblocking");
            let incoming = TcpIncoming::from(incoming);
            Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        Self { received, _runtime: runtime }
    }

    /// The received spans with the names of their services.
    fn spans(&self) -> Vec<(String, Span)> {
        self.received.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[test]
fn a_sync_is_one_trace_over_the_services() {
    let mut plane = ControlPlane::start();
    let collector = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let section = json!({ "address": collector.to_string() });
    let file = plane.site.path("policy-store.json");
    let text = fs::read_to_string(&file).expect("the configuration can be read");
    let mut config: Value = serde_json::from_str(&text).expect("the configuration is JSON");
    config["otlp"] = section.clone();
    fs::write(&file, config.to_string()).expect("the configuration can be written");
    plane.policy_store.terminate();
    plane.restart_store();
    let surroundings = Surroundings { otlp: Some(section), ..plane.surroundings() };
    let syncer = plane.syncer_among("syncer-1", &surroundings);
    plane.cloud.create_group("before", "10.0.0.1");
    plane.wait_until_synced();
    syncer.wait_for("otlp-export-failed");

    let collector = Collector::start(collector);
    plane.cloud.create_group("after", "10.0.0.2");
    plane.wait_until_synced();
    syncer.wait_for("otlp-export-resumed");
    wait::until("a trace with the spans of syncer and store", || {
        let spans = collector.spans();
        let has_family = |(service, root): &(String, Span)| {
            let has = |wanted: (&str, &str)| {
                spans.iter().any(|(service, span)| {
                    (service.as_str(), span.name.as_str()) == wanted
                        && span.trace_id == root.trace_id
                        && span.parent_span_id == root.span_id
                        && span.start_time_unix_nano >= root.start_time_unix_nano
                })
            };
            service == "syncer"
                && root.name == "sync"
                && root.parent_span_id.is_empty()
                && has(("syncer", "read-security-groups"))
                && has(("policy-store", "replace-security-groups"))
        };
        if spans.iter().any(has_family) { Ok(()) } else { Err(format!("{spans:?}")) }
    });
}
