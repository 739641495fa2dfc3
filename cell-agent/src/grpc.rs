//! The gRPC service `portcullis.cell.v1`, on a Unix socket that only root may use.

use std::sync::Arc;

use model::{
    effective::{Probe, Source},
    ids::{CellId, ContainerHandle, GroupGuid},
};
use proto::cell_v1::{
    Container, EffectiveRule, EffectiveRulesRequest, EffectiveRulesResponse, Enforcement,
    ExplainRequest, ExplainResponse, IsolatedRule, Lifecycle, ListContainersRequest,
    ListContainersResponse, NearMiss, ReconcileRequest, ReconcileResponse, RuleSource,
    StatusRequest, StatusResponse, cell_server::Cell, explain_response,
};
use runtime::tls::ClientTls;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use crate::{
    explain::{Explanation, NotEnforced, Way, denied, explain, in_force, why_denied},
    groups::Connectivity,
    plan::{Assignment, Known, Planned, Policy},
    reconcile::{Enforced, Trigger},
};

/// The service.
#[derive(Debug)]
pub struct Service {
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
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cell for Service {
    async fn list_containers(
        &self,
        _request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let enforced = self.enforced.borrow().clone();
        let handles = enforced.ruleset.containers.keys();
        let containers = handles.filter_map(|handle| container(&enforced, handle)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn effective_rules(
        &self,
        request: Request<EffectiveRulesRequest>,
    ) -> Answer<EffectiveRulesResponse> {
        let EffectiveRulesRequest { handle } = request.into_inner();
        let enforced = self.enforced.borrow().clone();
        let handle = resolve(&enforced, &handle)?;
        let container = container(&enforced, &handle).ok_or_else(|| unknown(&enforced, &handle))?;
        let policy = policy(&enforced, &handle);
        Ok(Response::new(EffectiveRulesResponse {
            container: Some(container),
            rules: policy.map(|policy| effective(&enforced, policy)).unwrap_or_default(),
            isolated: policy.map(|policy| isolated(&enforced, policy)).unwrap_or_default(),
        }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        let request = request.into_inner();
        let probe =
            parse_probe(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let enforced = self.enforced.borrow().clone();
        let handle = resolve(&enforced, &request.handle)?;
        let planned = enforced.ruleset.containers.get(&handle);
        let planned = planned.ok_or_else(|| unknown(&enforced, &handle))?;
        let way = Way::of(planned, probe.destination);
        let mut explanation = explain(&enforced.ruleset, &enforced.known, &handle, probe, &way)
            .ok_or_else(|| unknown(&enforced, &handle))?;
        if matches!(explanation, Explanation::NotDecided { .. }) {
            // The chain of an earlier process decides, so the container's own rules do
            // not matter.
        } else if enforced.kept.contains(&handle) {
            explanation = Explanation::Untold { reason: reason(&enforced, &handle) };
        } else if let Some(reason) = enforced.waiting.get(&handle) {
            // The container's rules are not in the kernel, so they do not matter.
            explanation = denied(reason.clone());
        }
        let container = container(&enforced, &handle);
        Ok(Response::new(ExplainResponse { container, ..explained(&enforced, explanation) }))
    }

    async fn reconcile(&self, _request: Request<ReconcileRequest>) -> Answer<ReconcileResponse> {
        let (answer, answered) = oneshot::channel();
        let ending = || Status::unavailable("the agent is shutting down");
        let nudge = Trigger { thoroughly: true, answer };
        self.nudge.send(nudge).await.map_err(|_| ending())?;
        let repaired = answered.await.map_err(|_| ending())?.map_err(Status::internal)?;
        let generation = self.enforced.borrow().generation().0;
        Ok(Response::new(ReconcileResponse { generation, repaired }))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let enforced = self.enforced.borrow().clone();
        let received = self.known.borrow().as_ref().map_or(0, |known| known.generation.0);
        let limit_full = enforced.limit_full.iter();
        let link = self.link.borrow().clone();
        let errors: Vec<String> = enforced.error.iter().cloned().chain(link.problem()).collect();
        Ok(Response::new(StatusResponse {
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
        }))
    }
}

/// Maximum number of candidates in the error for an ambiguous handle.
const CANDIDATES: usize = 5;

/// Finds the container with this handle, or the only one with this handle prefix. If
/// there is none, returns the handle unchanged.
fn resolve(enforced: &Enforced, text: &str) -> Result<ContainerHandle, Status> {
    let handle = ContainerHandle::parse(text)
        .map_err(|error| Status::invalid_argument(format!("handle: {error}")))?;
    let containers = &enforced.ruleset.containers;
    if containers.contains_key(&handle) {
        return Ok(handle);
    }
    let candidates = containers.range(handle.clone()..).map(|(candidate, _)| candidate);
    let candidates = candidates.take_while(|candidate| candidate.as_str().starts_with(text));
    let candidates: Vec<_> = candidates.take(CANDIDATES + 1).collect();
    match candidates.as_slice() {
        [] => Ok(handle),
        [only] => Ok((*only).clone()),
        many => {
            let named: Vec<_> =
                many.iter().take(CANDIDATES).map(|handle| handle.as_str()).collect();
            let more = if many.len() > CANDIDATES { " and more" } else { "" };
            Err(Status::invalid_argument(format!(
                "handle: {text:?} is the beginning of several containers' handles: {}{more}",
                named.join(", ")
            )))
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

fn policy<'a>(enforced: &'a Enforced, handle: &ContainerHandle) -> Option<&'a Policy> {
    match &enforced.ruleset.containers.get(handle)?.assignment {
        Assignment::Bound(belongs) => enforced.ruleset.policies.get(belongs).map(Arc::as_ref),
        _ => None,
    }
}

fn container(enforced: &Enforced, handle: &ContainerHandle) -> Option<Container> {
    let Planned { address, more: _, assignment } = enforced.ruleset.containers.get(handle)?;
    let entry = enforced.snapshot.containers.get(handle)?;
    let waits = enforced.waiting.get(handle);
    let enforcement = match assignment {
        Assignment::Bound(_) if waits.is_some() => Enforcement::DeniedUntilKnown,
        Assignment::Bound(_) => Enforcement::Enforced,
        Assignment::Unknown(_) if enforced.kept.contains(handle) => Enforcement::KeptUntilKnown,
        Assignment::Unknown(_) => Enforcement::DeniedUntilKnown,
        Assignment::Ungrouped(_) => Enforcement::DeniedNoGroups,
        Assignment::Isolated(_) => Enforcement::DeniedBadEntry,
    };
    let belongs = entry.belongs.as_ref().ok();
    let lifecycle = belongs.map(|belongs| Lifecycle::from(belongs.lifecycle));
    let policy = policy(enforced, handle);
    let rules = policy.map_or(0, |policy| in_force(policy).len());
    let isolated = policy.map_or(0, Policy::isolated);
    Some(Container {
        handle: handle.as_str().to_owned(),
        ip: address.map(|address| address.to_string()).unwrap_or_default(),
        space_guid: belongs.map(|belongs| belongs.space.as_str().to_owned()).unwrap_or_default(),
        app_guid: entry.app.clone(),
        workload: entry.workload.clone(),
        lifecycle: lifecycle.unwrap_or_default().into(),
        enforcement: enforcement.into(),
        rules: count(rules),
        reason: reason(enforced, handle),
        isolated_rules: count(isolated),
    })
}

/// Why the container's rules are not in force; empty if they are.
fn reason(enforced: &Enforced, handle: &ContainerHandle) -> String {
    if let Some(waits) = enforced.waiting.get(handle) {
        return waits.clone();
    }
    let planned = enforced.ruleset.containers.get(handle);
    let reason = planned.map(|planned| why_denied(&planned.assignment)).unwrap_or_default();
    match enforced.kept.contains(handle) {
        true => format!("{reason}; it keeps the rules that it had when the agent started"),
        false => reason,
    }
}

fn effective(enforced: &Enforced, policy: &Policy) -> Vec<EffectiveRule> {
    in_force(policy).into_iter().map(|source| rule(enforced, source)).collect()
}

fn rule(enforced: &Enforced, source: &Source) -> EffectiveRule {
    let (rule, source) = written(enforced, &source.group, source.rule);
    EffectiveRule { rule, source: Some(source) }
}

/// A rule as written, with its source.
fn written(
    enforced: &Enforced,
    group: &GroupGuid,
    index: usize,
) -> (Option<proto::policy_v1::Rule>, RuleSource) {
    let read = enforced.known.groups.get(group);
    let source = RuleSource {
        group_guid: group.as_str().to_owned(),
        group_name: read.map(|read| read.stored.group.name.clone()).unwrap_or_default(),
        rule_index: count(index),
    };
    (read.and_then(|read| read.rule(index)).cloned().map(Into::into), source)
}

fn isolated(enforced: &Enforced, policy: &Policy) -> Vec<IsolatedRule> {
    let unreadable = policy.rules.isolated.iter();
    let unreadable = unreadable.map(|(problem, at)| (&at.group, at.rule, problem.to_string()));
    let refused = policy.refused.iter();
    let refused = refused.map(|(group, rule, reason)| (group, *rule, reason.clone()));
    let isolated = unreadable.chain(refused).map(|(group, index, reason)| {
        let (rule, source) = written(enforced, group, index);
        IsolatedRule { rule, source: Some(source), reason }
    });
    isolated.collect()
}

fn explained(enforced: &Enforced, explanation: Explanation<'_>) -> ExplainResponse {
    use explain_response::Verdict;
    let answer = |verdict: Verdict, reason| ExplainResponse {
        verdict: verdict.into(),
        reason,
        ..ExplainResponse::default()
    };
    match explanation {
        Explanation::Allowed { permit, source, reason } => {
            let verdict = if permit.log { Verdict::AllowedAndLogged } else { Verdict::Allowed };
            let decisive = Some(rule(enforced, source));
            ExplainResponse { decisive, ..answer(verdict, reason) }
        }
        Explanation::Untold { reason } => answer(Verdict::Unspecified, reason),
        Explanation::AllowedAlways { reason } => answer(Verdict::Allowed, reason),
        Explanation::NotDecided { reason } => answer(Verdict::NotDecided, reason),
        Explanation::Denied { reason, nearest, isolated } => {
            let nearest = nearest.into_iter();
            let nearest = nearest
                .map(|(source, reason)| NearMiss { rule: Some(rule(enforced, source)), reason });
            let isolated = isolated.into_iter().map(|NotEnforced { group, rule, reason }| {
                let (rule, source) = written(enforced, &group, rule);
                IsolatedRule { rule, source: Some(source), reason }
            });
            ExplainResponse {
                near_misses: nearest.collect(),
                isolated: isolated.collect(),
                ..answer(Verdict::Denied, reason)
            }
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
