//! Answers `Denied`: the flows of the selected containers, with the reason.
//!
//! Pure, except for the route to destinations within the overlay.

use std::sync::Arc;

use model::{
    effective::{Probe, ProbeKind},
    ids::ContainerHandle,
};
use proto::cell_v1::{Container, DeniedFlow, DeniedRequest, DeniedResponse, NearMiss};
use tonic::Status;

use super::{
    packet::{Detail, ICMP, ICMPV6, TCP, Target, UDP},
    record::{Flow, Record},
};
use crate::{
    explain::{Explanation, Way},
    lookup::{resolve, verdict},
    reconcile::Enforced,
    wire,
};

/// Default and maximum number of flows in an answer.
const USUAL: usize = 100;
const MOST: usize = 1000;

/// A flow as it was when it was asked for.
pub type Found = (ContainerHandle, Arc<Container>, Target, Flow);

/// The flows that a request selects, without the reasons.
#[derive(Debug)]
pub struct Selected {
    flows: Vec<Found>,
    cursor: u64,
    recorded: u64,
    kept: std::time::Duration,
}

/// Selects flows, the most recent first.
///
/// # Errors
/// The limit is too high, or the handle is the beginning of several containers' handles.
pub fn select(
    record: &Record,
    enforced: &Enforced,
    request: &DeniedRequest,
) -> Result<Selected, Status> {
    let DeniedRequest { handle, app_guid, space_guid, cursor, limit } = request;
    let limit = match usize::try_from(*limit).unwrap_or(usize::MAX) {
        0 => USUAL,
        limit @ ..=MOST => limit,
        limit => {
            return Err(Status::invalid_argument(format!("limit: {limit} is more than {MOST}")));
        }
    };
    let handle = match handle.as_str() {
        "" => None,
        text => Some(resolve(enforced, text)?),
    };
    let is_selected = |of: &ContainerHandle, about: &Container| {
        handle.as_ref().is_none_or(|handle| of.as_str().starts_with(handle.as_str()))
            && (app_guid.is_empty() || about.app_guid == *app_guid)
            && (space_guid.is_empty() || about.space_guid == *space_guid)
    };
    let flows = record.after(*cursor);
    let flows = flows.filter(|(handle, about, _, _)| is_selected(handle, about)).take(limit);
    let flows = flows
        .map(|(handle, about, target, flow)| (handle.clone(), Arc::clone(about), target, flow));
    Ok(Selected {
        flows: flows.collect(),
        cursor: record.cursor(),
        recorded: record.recorded(),
        kept: record.kept(),
    })
}

/// The answer, with the reasons.
#[must_use]
pub fn answer(selected: Selected, enforced: &Enforced) -> DeniedResponse {
    let Selected { flows, cursor, recorded, kept } = selected;
    DeniedResponse {
        flows: flows.into_iter().map(|found| flow(found, enforced)).collect(),
        cursor,
        // The count of denied packets is read at intervals and may lag behind.
        not_recorded: enforced.recordable.saturating_sub(recorded),
        kept: prost_types::Duration::try_from(kept).ok(),
    }
}

fn flow((handle, about, target, flow): Found, enforced: &Enforced) -> DeniedFlow {
    let Target { destination, protocol, detail } = target;
    let (reason, nearest) = why(&handle, target, enforced);
    let (icmp_type, icmp_code) = match detail {
        Detail::Icmp(icmp_type, code) => (icmp_type.into(), code.into()),
        Detail::Port(_) | Detail::None => (0, 0),
    };
    DeniedFlow {
        container: Some(Container::clone(&about)),
        protocol: match protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            ICMP | ICMPV6 => "icmp".to_owned(),
            other => other.to_string(),
        },
        destination: destination.to_string(),
        port: if let Detail::Port(port) = detail { port.into() } else { 0 },
        icmp_type,
        icmp_code,
        packets: flow.packets,
        first: Some(flow.first.into()),
        last: Some(flow.last.into()),
        reason,
        nearest,
    }
}

/// Why the rules in force deny the target, and the rule that comes closest.
fn why(
    handle: &ContainerHandle,
    target: Target,
    enforced: &Enforced,
) -> (String, Option<NearMiss>) {
    let Target { destination, protocol, detail } = target;
    let kind = match (protocol, detail) {
        (TCP, Detail::Port(port)) => ProbeKind::Tcp(port),
        (UDP, Detail::Port(port)) => ProbeKind::Udp(port),
        (_, Detail::Icmp(icmp_type, code)) => ProbeKind::Icmp { icmp_type, code },
        (TCP | UDP, _) => return ("the packet has no port".to_owned(), None),
        _ => ProbeKind::Other,
    };
    let gone = || ("the container no longer exists".to_owned(), None);
    let Some(planned) = enforced.ruleset.containers.get(handle) else { return gone() };
    // A denied packet was forwarded; only for the overlay the route decides more.
    let overlay = enforced.ruleset.settings.overlay;
    let way = match overlay.contains(&destination) {
        true => Way::of(planned, destination),
        false => Way::Unknown,
    };
    let Some(explanation) = verdict(enforced, handle, Probe { destination, kind }, &way) else {
        return gone();
    };
    match explanation {
        Explanation::Denied { reason, nearest, isolated: _ } => {
            let nearest = nearest.into_iter().next();
            (reason, nearest.map(|(source, reason)| wire::near_miss(enforced, source, reason)))
        }
        Explanation::Allowed { reason, .. } | Explanation::AllowedAlways { reason } => {
            let limited = enforced.ruleset.settings.connection_limit.is_some() && protocol == TCP;
            let when = match limited {
                true => "it was above the connection limit, or denied before a change",
                false => "it was denied before a change",
            };
            (format!("{when}; now {reason}"), None)
        }
        Explanation::NotDecided { reason } | Explanation::Untold { reason } => (reason, None),
    }
}
