//! Conversion of a new connection, as messages describe it, to the model.

use std::net::IpAddr;

use model::effective::{Probe, ProbeKind};

use crate::Error;

/// A new connection: `protocol` is tcp, udp or icmp; the port is that of tcp and udp, type and
/// code those of icmp.
///
/// # Errors
/// A field has an invalid value; fields that the protocol does not have are not read.
pub fn probe(
    protocol: &str,
    destination: &str,
    port: u32,
    icmp_type: u32,
    icmp_code: u32,
) -> Result<Probe, Error> {
    let address = destination.parse::<IpAddr>().map_err(|_| {
        Error::invalid("destination", format_args!("{destination:?} is not an address"))
    })?;
    let to_port = || {
        let problem = format_args!("{port} is more than 65535");
        u16::try_from(port).map_err(|_| Error::invalid("port", problem))
    };
    let byte = |field, value: u32| {
        let problem = format_args!("{value} is more than 255");
        u8::try_from(value).map_err(|_| Error::invalid(field, problem))
    };
    let kind = match protocol {
        "tcp" => ProbeKind::Tcp(to_port()?),
        "udp" => ProbeKind::Udp(to_port()?),
        "icmp" => ProbeKind::Icmp {
            icmp_type: byte("icmp_type", icmp_type)?,
            code: byte("icmp_code", icmp_code)?,
        },
        other => {
            let problem = format_args!("{other:?} is not tcp, udp or icmp");
            return Err(Error::invalid("protocol", problem));
        }
    };
    // An IPv4-mapped address means the IPv4 address.
    Ok(Probe { destination: address.to_canonical(), kind })
}
