//! A connection as users write it: `10.0.0.5:5432/tcp`.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use proto::policy_v1::Connection;

/// A destination with its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// Address, type and code.
    Icmp(IpAddr, u8, u8),
}

/// ICMP type and code of an echo request.
const ECHO: (u8, u8) = (8, 0);

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            "not ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE, such \
             as 10.0.0.5:5432/tcp or [fd00::5]:53/udp"
                .to_owned()
        })
    }
}

fn parse(text: &str) -> Option<Target> {
    let mut parts = text.split('/');
    let (to, protocol) = (parts.next()?, parts.next()?);
    let target = match protocol {
        "tcp" => Target::Tcp(to.parse().ok()?),
        "udp" => Target::Udp(to.parse().ok()?),
        "icmp" => {
            let (icmp_type, code) = match (parts.next(), parts.next()) {
                (None, None) => ECHO,
                (Some(icmp_type), Some(code)) => (icmp_type.parse().ok()?, code.parse().ok()?),
                _ => return None,
            };
            Target::Icmp(to.parse().ok()?, icmp_type, code)
        }
        _ => return None,
    };
    parts.next().is_none().then_some(target)
}

impl From<Target> for Connection {
    fn from(target: Target) -> Self {
        let to_port = |protocol: &str, to: SocketAddr| Self {
            protocol: protocol.to_owned(),
            destination: to.ip().to_string(),
            port: to.port().into(),
            ..Self::default()
        };
        match target {
            Target::Tcp(to) => to_port("tcp", to),
            Target::Udp(to) => to_port("udp", to),
            Target::Icmp(to, icmp_type, code) => Self {
                protocol: "icmp".to_owned(),
                destination: to.to_string(),
                icmp_type: icmp_type.into(),
                icmp_code: code.into(),
                ..Self::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let socket = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (text, target) in [
            ("10.0.0.5:5432/tcp", Target::Tcp(socket("10.0.0.5:5432"))),
            ("[fd00::5]:53/udp", Target::Udp(socket("[fd00::5]:53"))),
            ("10.0.0.5/icmp", Target::Icmp(address("10.0.0.5"), 8, 0)),
            ("fd00::5/icmp/1/4", Target::Icmp(address("fd00::5"), 1, 4)),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        for text in [
            "",
            "10.0.0.5",
            "10.0.0.5:5432",
            "10.0.0.5/tcp",
            "10.0.0.5:5432/sctp",
            "db:5432/tcp",
            "10.0.0.5/icmp/8",
            "10.0.0.5/icmp/8/0/0",
            "10.0.0.5:5432/tcp/x",
            "10.0.0.5:70000/tcp",
        ] {
            text.parse::<Target>().unwrap_err();
        }
    }
}
