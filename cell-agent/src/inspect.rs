//! Answers operators: those on the cell (`grpc`), and those who ask the policy store
//! (`questions`).

use std::sync::Arc;

use model::{
    effective::Probe,
    ids::{CellId, ContainerHandle},
};
use proto::{
    cell_v1::{
        DeniedRequest, DeniedResponse, EffectiveRulesRequest, EffectiveRulesResponse,
        ExplainRequest, ExplainResponse, ListContainersResponse, ReconcileResponse, StatusResponse,
    },
    policy_v1::{CellRequest, CellResponse, cell_request, cell_response},
};
use runtime::tls::ClientTls;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{
    denied::{Denials, answer},
    explain::Way,
    groups::Connectivity,
    lookup::{resolve, verdict},
    plan::Known,
    reconcile::{Enforced, Trigger},
    wire::{container, count, effective, explained, isolated, policy},
};

/// Reads the state of the agent.
#[derive(Debug)]
pub struct Inspector {
    /// The cell's name.
    pub cell: CellId,
    /// The state in force.
    pub enforced: watch::Receiver<Arc<Enforced>>,
    /// The last known groups.
    pub known: watch::Receiver<Option<Arc<Known>>>,
    /// Whether the store can be reached.
    pub link: watch::Receiver<Connectivity>,
    /// The certificate for the store.
    pub certificate: ClientTls,
    /// The reconcile loop.
    pub nudge: mpsc::Sender<Trigger>,
    /// The record of denied packets, or why there is none.
    pub denials: Result<Denials, String>,
}

impl Inspector {
    /// Answers any request.
    ///
    /// # Errors
    /// The same as the method of the request.
    pub async fn answer(&self, request: CellRequest) -> Result<CellResponse, Status> {
        use cell_request::Request;
        use cell_response::Response;
        let CellRequest { request } = request;
        let request = request.ok_or_else(|| Status::invalid_argument("request is missing"))?;
        let response = match request {
            Request::ListContainers(_) => Response::ListContainers(self.list_containers()),
            Request::EffectiveRules(request) => {
                Response::EffectiveRules(self.effective_rules(&request)?)
            }
            Request::Explain(request) => Response::Explain(self.explain(&request)?),
            Request::Reconcile(_) => Response::Reconcile(self.reconcile().await?),
            Request::Status(_) => Response::Status(self.status()),
            Request::Denied(request) => Response::Denied(self.denied(request).await?),
        };
        Ok(CellResponse { response: Some(response) })
    }

    /// The containers of this cell.
    pub fn list_containers(&self) -> ListContainersResponse {
        let enforced = self.enforced.borrow().clone();
        let handles = enforced.ruleset.containers.keys();
        let containers = handles.filter_map(|handle| container(&enforced, handle)).collect();
        ListContainersResponse { containers }
    }

    /// The rules of a container.
    ///
    /// # Errors
    /// There is no such container.
    pub fn effective_rules(
        &self,
        request: &EffectiveRulesRequest,
    ) -> Result<EffectiveRulesResponse, Status> {
        let EffectiveRulesRequest { handle } = request;
        let enforced = self.enforced.borrow().clone();
        let handle = resolve(&enforced, handle)?;
        let container = container(&enforced, &handle).ok_or_else(|| unknown(&enforced, &handle))?;
        let policy = policy(&enforced, &handle);
        Ok(EffectiveRulesResponse {
            container: Some(container),
            rules: policy.map(|policy| effective(&enforced, policy)).unwrap_or_default(),
            isolated: policy.map(|policy| isolated(&enforced, policy)).unwrap_or_default(),
        })
    }

    /// What happens to a new connection.
    ///
    /// # Errors
    /// The connection is invalid, or there is no such container.
    pub fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, Status> {
        let probe =
            parse_probe(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let enforced = self.enforced.borrow().clone();
        let handle = resolve(&enforced, &request.handle)?;
        let planned = enforced.ruleset.containers.get(&handle);
        let planned = planned.ok_or_else(|| unknown(&enforced, &handle))?;
        let way = Way::of(planned, probe.destination);
        let explanation =
            verdict(&enforced, &handle, probe, &way).ok_or_else(|| unknown(&enforced, &handle))?;
        let container = container(&enforced, &handle);
        Ok(ExplainResponse { container, ..explained(&enforced, explanation) })
    }

    /// Compares with the kernel and repairs now.
    ///
    /// # Errors
    /// The kernel differs still.
    pub async fn reconcile(&self) -> Result<ReconcileResponse, Status> {
        let (answer, answered) = oneshot::channel();
        let ending = || Status::unavailable("the agent is shutting down");
        let nudge = Trigger { thoroughly: true, answer };
        self.nudge.send(nudge).await.map_err(|_| ending())?;
        let repaired = answered.await.map_err(|_| ending())?.map_err(Status::internal)?;
        let generation = self.enforced.borrow().generation().0;
        Ok(ReconcileResponse { generation, repaired })
    }

    /// The denied packets of containers.
    ///
    /// # Errors
    /// They are not recorded, or the request is invalid.
    pub async fn denied(&self, request: DeniedRequest) -> Result<DeniedResponse, Status> {
        let denials = self.denials.clone().map_err(Status::failed_precondition)?;
        let enforced = self.enforced.borrow().clone();
        let selected = answer::select(&denials.lock(), &enforced, &request)?;
        // A thousand explanations with many rules take a while.
        let answered = tokio::task::spawn_blocking(move || answer::answer(selected, &enforced));
        answered.await.map_err(|_| Status::internal("the agent failed to answer; its log says why"))
    }

    /// The state of the agent.
    pub fn status(&self) -> StatusResponse {
        let enforced = self.enforced.borrow().clone();
        let received = self.known.borrow().as_ref().map_or(0, |known| known.generation.0);
        let limit_full = enforced.limit_full.iter();
        let link = self.link.borrow().clone();
        let errors: Vec<String> = enforced.error.iter().cloned().chain(link.problem()).collect();
        StatusResponse {
            cell_id: self.cell.as_str().to_owned(),
            received_generation: received,
            enforced_generation: enforced.generation().0,
            enforced_at: enforced.at.map(Into::into),
            store_connected: link == Connectivity::Up,
            containers: count(enforced.ruleset.containers.len()),
            isolated_rules: count(enforced.ruleset.isolated_rules()),
            drift_healed: enforced.drift_healed,
            unattributed_packets: enforced.unattributed,
            connection_limit_full: limit_full.map(|handle| handle.as_str().to_owned()).collect(),
            last_error: errors.join("; "),
            certificate_error: self.certificate.problem().unwrap_or_default(),
        }
    }
}

fn unknown(enforced: &Enforced, handle: &ContainerHandle) -> Status {
    if enforced.at.is_none() {
        let problem = "this agent has put nothing in force yet: the kernel keeps what it has";
        return Status::unavailable(problem);
    }
    Status::not_found(format!("there is no container {handle} on this cell"))
}

/// The connection to explain.
fn parse_probe(request: &ExplainRequest) -> Result<Probe, proto::Error> {
    let ExplainRequest { handle: _, protocol, destination, port, icmp_type, icmp_code } = request;
    proto::probe(protocol, destination, *port, *icmp_type, *icmp_code)
}
