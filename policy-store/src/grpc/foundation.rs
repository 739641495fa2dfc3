//! `portcullis.policy.v1.Foundation`.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use jiff::Timestamp;
use proto::policy_v1::{
    AcceptRemovalRequest, AcceptRemovalResponse, AskCellRequest, AskCellResponse, CellsRequest,
    CellsResponse, ChangesRequest, ChangesResponse, ContainersRequest, ContainersResponse,
    DifferenceRequest, DifferenceResponse, ExplainRequest, ExplainResponse, FinishRolloutRequest,
    FinishRolloutResponse, FreezeRequest, FreezeResponse, HistoryRequest, HistoryResponse,
    ReachRequest, ReachResponse, RefusedRemoval, UnfreezeRequest, UnfreezeResponse, UnusedRequest,
    UnusedResponse, WhatIfRequest, WhatIfResponse,
    foundation_server::{self, FoundationServer},
};
use runtime::server::Entry;
use tonic::{Request, Response, Status};

use super::{
    Shared, ask, cells, changes, explain, history, release, removal,
    status::{Error, status},
    unused, what_if,
};
use crate::{
    access::Action,
    feed::cells::KnownCell,
    groups::{
        archive::{OperatorDecision, action},
        snapshot::Snapshot,
    },
};

type Changes = Pin<Box<dyn Stream<Item = Result<ChangesResponse, Status>> + Send>>;

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct Foundation(Arc<Shared>);

impl Foundation {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// An entry that admits operators.
    #[must_use]
    pub fn entry(self) -> Entry<FoundationServer<Self>> {
        let judge = Arc::clone(&self.0);
        Entry::judged(FoundationServer::new(self), move |head| {
            let judged = judge.check(head.peer.identity.as_deref(), Action::Inspect);
            judged.map_err(|error| status(&error))
        })
    }

    /// Computes an answer from the current snapshot and the known cells on a thread that may
    /// block: it may parse all rules or visit all containers.
    async fn compute<T: Send + 'static>(
        &self,
        compute: impl FnOnce(&Snapshot, &[KnownCell]) -> Result<T, Error> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        self.compute_on(self.0.feed.board.current(), compute).await
    }

    async fn compute_on<T: Send + 'static>(
        &self,
        snapshot: Arc<Snapshot>,
        compute: impl FnOnce(&Snapshot, &[KnownCell]) -> Result<T, Error> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let cells = self.0.feed.cells.known();
        let computed = tokio::task::spawn_blocking(move || compute(&snapshot, &cells)).await;
        let computed = computed.map_err(|error| Status::internal(error.to_string()))?;
        computed.map(Response::new).map_err(|error| status(&error))
    }
}

/// Subject of the client certificate.
fn subject<T>(request: &Request<T>) -> String {
    runtime::tls::peer(request).identity.map(|identity| identity.to_string()).unwrap_or_default()
}

#[tonic::async_trait]
impl foundation_server::Foundation for Foundation {
    type ChangesStream = Changes;

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let request = request.into_inner();
        self.compute(move |snapshot, cells| explain::explain(snapshot, cells, request)).await
    }

    async fn reach(
        &self,
        request: Request<ReachRequest>,
    ) -> Result<Response<ReachResponse>, Status> {
        let request = request.into_inner();
        self.compute(move |snapshot, cells| explain::reach(snapshot, cells, request)).await
    }

    async fn cells(
        &self,
        request: Request<CellsRequest>,
    ) -> Result<Response<CellsResponse>, Status> {
        let (request, now) = (request.into_inner(), Timestamp::now());
        let released = self.0.feed.board.released_base();
        let answer = move |snapshot: &Snapshot, known: &[KnownCell]| {
            cells::cells(snapshot, known, &request, now)
        };
        self.compute_on(released, answer).await
    }

    async fn containers(
        &self,
        request: Request<ContainersRequest>,
    ) -> Result<Response<ContainersResponse>, Status> {
        let request = request.into_inner();
        self.compute(move |_, known| cells::containers(known, request)).await
    }

    async fn changes(
        &self,
        request: Request<ChangesRequest>,
    ) -> Result<Response<Self::ChangesStream>, Status> {
        let drain = self.0.drain(&request);
        let stream = changes::stream(&self.0.feed, drain, request.into_inner());
        stream.map(|stream| Response::new(Box::pin(stream) as _)).map_err(|error| status(&error))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryResponse>, Status> {
        let (request, now) = (request.into_inner(), Timestamp::now());
        let answer = history::history(&*self.0.store, request, now).await;
        answer.map(Response::new).map_err(|error| status(&error))
    }

    async fn difference(
        &self,
        request: Request<DifferenceRequest>,
    ) -> Result<Response<DifferenceResponse>, Status> {
        let (request, newest) = (request.into_inner(), self.0.feed.board.current());
        let answer = history::difference(&*self.0.store, &newest, request).await;
        answer.map(Response::new).map_err(|error| status(&error))
    }

    async fn freeze(
        &self,
        request: Request<FreezeRequest>,
    ) -> Result<Response<FreezeResponse>, Status> {
        let by = subject(&request);
        let parts = (&self.0.feed, &self.0.commits);
        let release = release::freeze(parts, &by, request.into_inner(), Timestamp::now()).await;
        let release = release.map_err(|error| status(&error))?;
        Ok(Response::new(FreezeResponse { release: Some(release) }))
    }

    async fn unfreeze(
        &self,
        request: Request<UnfreezeRequest>,
    ) -> Result<Response<UnfreezeResponse>, Status> {
        let by = subject(&request);
        let parts = (&self.0.feed, &self.0.commits);
        let release = release::unfreeze(parts, &by, request.into_inner(), Timestamp::now()).await;
        let release = release.map_err(|error| status(&error))?;
        Ok(Response::new(UnfreezeResponse { release: Some(release) }))
    }

    async fn finish_rollout(
        &self,
        request: Request<FinishRolloutRequest>,
    ) -> Result<Response<FinishRolloutResponse>, Status> {
        let by = subject(&request);
        let parts = (&self.0.feed, &self.0.commits);
        let release = release::finish(parts, &by, request.into_inner(), Timestamp::now()).await;
        let release = release.map_err(|error| status(&error))?;
        Ok(Response::new(FinishRolloutResponse { release: Some(release) }))
    }

    async fn ask_cell(
        &self,
        request: Request<AskCellRequest>,
    ) -> Result<Response<AskCellResponse>, Status> {
        let asker = ask::Asker::of(&request);
        let answer = ask::ask(&self.0.feed.cells, &asker, request.into_inner()).await;
        answer.map(Response::new).map_err(|error| status(&error))
    }

    async fn what_if(
        &self,
        request: Request<WhatIfRequest>,
    ) -> Result<Response<WhatIfResponse>, Status> {
        let request = request.into_inner();
        self.compute(move |snapshot, known| what_if::answer(snapshot, known, request)).await
    }

    async fn unused(
        &self,
        request: Request<UnusedRequest>,
    ) -> Result<Response<UnusedResponse>, Status> {
        let (request, now) = (request.into_inner(), Timestamp::now());
        let connected = self.0.feed.cells.connected();
        let recorded = self.0.store.uses().recorded().await;
        let recorded = recorded.map_err(|error| status(&error.into()))?;
        self.compute(move |snapshot, _| {
            unused::answer(snapshot, &recorded, connected, &request, now)
        })
        .await
    }

    async fn accept_removal(
        &self,
        request: Request<AcceptRemovalRequest>,
    ) -> Result<Response<AcceptRemovalResponse>, Status> {
        let (by, now) = (subject(&request), Timestamp::now());
        let identity = runtime::tls::peer(&request).identity;
        let removals = self.0.commits.removals();
        let accepted = removal::accept(removals, identity.as_ref(), request.into_inner(), now);
        let accepted = accepted.map_err(|error| status(&error))?;
        if let Some(RefusedRemoval { removed, stored, .. }) = &accepted.refused_removal {
            let decision = OperatorDecision {
                at: now,
                action: action::ACCEPT_REMOVAL.into(),
                by: by.into(),
                reason: format!("{removed} of {stored} groups").into(),
                generation: self.0.feed.board.current().state.generation,
            };
            history::record(&*self.0.store, decision).await;
        }
        Ok(Response::new(accepted))
    }
}
