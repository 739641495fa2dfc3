//! Decides which denied packets get a line in the agent's log and in the log of their app,
//! and renders the lines.
//!
//! Pure.

use std::collections::HashMap;

use model::ids::ContainerHandle;

use super::packet::{Denied, Detail, ICMP, ICMPV6, TCP, UDP};

/// Maximum prefix of the original, without the trailing blank.
const PREFIX_CHARS: usize = 28;

/// Which lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lines {
    /// In the agent's log.
    pub log: bool,
    /// In the logs of the apps.
    pub app_log: bool,
}

/// At most so many lines a second of each container.
#[derive(Debug, Default)]
pub struct Limiter {
    per_second: u32,
    second: u64,
    written: HashMap<ContainerHandle, u32>,
}

impl Limiter {
    /// A limiter.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { per_second, ..Self::default() }
    }

    /// Whether a packet gets a line; `second` is the second of the packet.
    pub fn allows(&mut self, handle: &ContainerHandle, second: u64) -> bool {
        if self.second != second {
            self.second = second;
            self.written.clear();
        }
        let written = self.written.entry(handle.clone()).or_default();
        *written += 1;
        *written <= self.per_second
    }
}

/// As the kernel logs the packet for the original, as far as the record knows it.
#[must_use]
pub fn kernel(handle: &ContainerHandle, packet: &Denied) -> String {
    let prefix: String = format!("DENY_{handle}").chars().take(PREFIX_CHARS).collect();
    let target = packet.target;
    let protocol = match target.protocol {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        ICMP => "ICMP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    };
    let detail = match target.detail {
        Detail::Port(port) => format!(" DPT={port}"),
        Detail::Icmp(icmp_type, code) => format!(" TYPE={icmp_type} CODE={code}"),
        Detail::None => String::new(),
    };
    let (source, destination) = (packet.source, target.destination);
    format!("{prefix} SRC={source} DST={destination} PROTO={protocol}{detail}")
}

/// For the developers of the app.
#[must_use]
pub fn app(packet: &Denied) -> String {
    let target = packet.target;
    let to = target.destination;
    let what = match (target.protocol, target.detail) {
        (TCP, Detail::Port(port)) => format!("tcp connection to {to} port {port}"),
        (UDP, Detail::Port(port)) => format!("udp packet to {to} port {port}"),
        (_, Detail::Icmp(icmp_type, code)) => {
            format!("icmp packet to {to}, type {icmp_type}, code {code}")
        }
        (protocol, _) => format!("packet of protocol {protocol} to {to}"),
    };
    format!("Security groups denied a {what}").replace("denied a icmp", "denied an icmp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denied::packet::Target;

    fn handle(text: &str) -> ContainerHandle {
        ContainerHandle::parse(text).unwrap()
    }

    fn packet(protocol: u8, detail: Detail) -> Denied {
        let destination = "192.0.2.1".parse().unwrap();
        let target = Target { destination, protocol, detail };
        Denied { interface: 0, source: "10.255.1.1".parse().unwrap(), target }
    }

    #[test]
    fn lines_say_what_was_denied() {
        let tcp = packet(TCP, Detail::Port(443));
        assert_eq!(
            kernel(&handle("00000001-aaaa-bbbb-cccc-0123456789ab"), &tcp),
            "DENY_00000001-aaaa-bbbb-cccc SRC=10.255.1.1 DST=192.0.2.1 PROTO=TCP DPT=443"
        );
        assert_eq!(app(&tcp), "Security groups denied a tcp connection to 192.0.2.1 port 443");
        let ping = packet(ICMP, Detail::Icmp(8, 0));
        let line = kernel(&handle("c"), &ping);
        assert!(line.ends_with("PROTO=ICMP TYPE=8 CODE=0"), "{line}");
        let text = "Security groups denied an icmp packet to 192.0.2.1, type 8, code 0";
        assert_eq!(app(&ping), text);
        let other = app(&packet(47, Detail::None));
        assert_eq!(other, "Security groups denied a packet of protocol 47 to 192.0.2.1");
    }

    #[test]
    fn each_container_has_its_own_limit() {
        let mut limiter = Limiter::new(2);
        let mut allows = |name, second| limiter.allows(&handle(name), second);
        assert_eq!([allows("a", 1), allows("a", 1), allows("a", 1)], [true, true, false]);
        assert!(allows("b", 1));
        assert!(allows("a", 2));
    }
}
