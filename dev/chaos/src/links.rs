//! The router's rules: the names of the services, and the links that are cut.

use std::fmt::Write;
use std::net::Ipv4Addr;

use cni::tools;

use crate::site::{LOCKS_NAME, STORE_NAME};

/// A direction in which packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) fault: u32,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) percent: u8,
}

/// Sends connections to the names to any of their instances.
pub(crate) fn install(
    router: &str,
    locks: &[Ipv4Addr],
    stores: &[Ipv4Addr],
) -> Result<(), tools::Error> {
    let text = format!(
        "table ip chaos {{
             chain names {{
                 type nat hook prerouting priority dstnat
                 ip daddr {LOCKS_NAME} dnat to {}
                 ip daddr {STORE_NAME} dnat to {}
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

/// Drops exactly these packets.
pub(crate) fn cut(router: &str, cuts: &[Cut]) -> Result<(), tools::Error> {
    let mut text = "flush chain ip chaos cuts\n".to_owned();
    for Cut { fault: _, from, to, percent } in cuts {
        let share = match percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent} "),
        };
        let _ = writeln!(text, "add rule ip chaos cuts ip saddr {from} ip daddr {to} {share}drop");
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
