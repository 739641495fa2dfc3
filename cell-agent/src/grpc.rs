//! The gRPC service `portcullis.cell.v1`, on a Unix socket that only root may use.

use std::sync::Arc;

use proto::cell_v1::{
    DeniedRequest, DeniedResponse, EffectiveRulesRequest, EffectiveRulesResponse, ExplainRequest,
    ExplainResponse, ListContainersRequest, ListContainersResponse, ReconcileRequest,
    ReconcileResponse, StatusRequest, StatusResponse, cell_server::Cell,
};
use tonic::{Request, Response, Status};

use crate::inspect::Inspector;

/// The service.
#[derive(Debug)]
pub struct Service(pub Arc<Inspector>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cell for Service {
    async fn list_containers(
        &self,
        _request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        Ok(Response::new(self.0.list_containers()))
    }

    async fn effective_rules(
        &self,
        request: Request<EffectiveRulesRequest>,
    ) -> Answer<EffectiveRulesResponse> {
        self.0.effective_rules(request.get_ref()).map(Response::new)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        self.0.explain(request.get_ref()).map(Response::new)
    }

    async fn reconcile(&self, _request: Request<ReconcileRequest>) -> Answer<ReconcileResponse> {
        self.0.reconcile().await.map(Response::new)
    }

    async fn denied(&self, request: Request<DeniedRequest>) -> Answer<DeniedResponse> {
        self.0.denied(request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Answer<StatusResponse> {
        Ok(Response::new(self.0.status()))
    }
}

#[cfg(test)]
#[path = "grpc_fuzz_tests.rs"]
mod fuzz_tests;
