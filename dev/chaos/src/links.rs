//! The router's rules: the names of the services, and the links that are cut or slow.

use std::fmt::Write;
use std::net::Ipv4Addr;

use cni::tools;

use crate::delay::{DEVICE, MARK};
use crate::site::{LOCKS_NAME, STORE_NAME};

/// A direction in which packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) fault: u32,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) percent: u8,
}

/// Two ends between which packets are delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) fault: u32,
    pub(crate) ends: [Ipv4Addr; 2],
}

/// Sends connections to the names to any of their instances. A packet that returns from the delay
/// has its addresses already: connection tracking must not see it twice.
pub(crate) fn install(
    router: &str,
    locks: &[Ipv4Addr],
    stores: &[Ipv4Addr],
) -> Result<(), tools::Error> {
    let text = format!(
        "table ip chaos {{
             chain delayed {{
                 type filter hook prerouting priority raw
                 iifname {DEVICE} notrack
             }}
             chain names {{
                 type nat hook prerouting priority dstnat
                 ip daddr {LOCKS_NAME} dnat to {}
                 ip daddr {STORE_NAME} dnat to {}
             }}
             chain delays {{ }}
             chain after_names {{
                 type filter hook prerouting priority dstnat + 10
                 iifname != {DEVICE} jump delays
             }}
             chain cuts {{ }}
             chain through {{ type filter hook forward priority filter; jump cuts; }}
             chain here {{ type filter hook input priority filter; jump cuts; }}
             chain back {{ type filter hook output priority filter; jump cuts; }}
         }}\n",
        any(locks),
        any(stores)
    );
    nft(router, &text)
}

/// Drops and delays exactly these packets.
pub(crate) fn harm(router: &str, cuts: &[Cut], slow: &[Slow]) -> Result<(), tools::Error> {
    let mut text = "flush chain ip chaos cuts\nflush chain ip chaos delays\n".to_owned();
    for Cut { fault: _, from, to, percent } in cuts {
        let share = match percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent} "),
        };
        let _ = writeln!(text, "add rule ip chaos cuts ip saddr {from} ip daddr {to} {share}drop");
    }
    for Slow { fault: _, ends: [a, b] } in slow {
        for (from, to) in [(a, b), (b, a)] {
            let ends = format!("ip saddr {from} ip daddr {to}");
            let _ = writeln!(text, "add rule ip chaos delays {ends} meta mark set {MARK}");
        }
    }
    nft(router, &text)
}
fn nft(namespace: &str, text: &str) -> Result<(), tools::Error> {
    let exec = ["netns", "exec", namespace, "nft", "-f", "-"];
    tools::run_with_input("ip", exec, text).map(drop)
}

/// One of the addresses.
fn any(addresses: &[Ipv4Addr]) -> String {
    if let [only] = addresses {
        return only.to_string();
    }
    let pairs: Vec<String> =
        (0..).zip(addresses).map(|(number, address)| format!("{number} : {address}")).collect();
    format!("numgen random mod {} map {{ {} }}", addresses.len(), pairs.join(", "))
}
