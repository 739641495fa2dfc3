//! Explains the verdict of rules on one connection: which rules nearly match, and which rules
//! cannot be enforced but were meant for the connection. Nothing here affects packets.

mod intended;
mod near;

pub use self::{
    intended::{Fit, fit},
    near::near_misses,
};
use crate::effective::{Permit, Service};

/// What a permit allows, for a sentence: `tcp port 443 to 10.0.0.0/8`.
#[must_use]
pub fn describe(permit: &Permit) -> String {
    format!("{} to {}", service(permit.service), permit.destination)
}

fn service(service: Service) -> String {
    let name = service.protocol();
    match service {
        Service::All => "everything".to_owned(),
        Service::Tcp(ports) | Service::Udp(ports) => format!("{name} port {ports}"),
        Service::Icmp(wanted) | Service::Icmpv6(wanted) => match wanted.exact() {
            None => name.to_owned(),
            Some((icmp_type, code)) => format!("{name} type {icmp_type} code {code}"),
        },
    }
}
