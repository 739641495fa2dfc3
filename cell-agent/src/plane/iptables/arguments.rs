//! Single rules in the format of `iptables -S`
//! (docs/compatibility/vxlan-policy-agent.md#rule-order, #rule-arguments).
//!
//! iptables does not print its input but the kernel's state: rates are rounded to the
//! kernel's units, and matches of everything are left out.

use std::fmt::Write as _;

use model::{
    effective::{Permit, Service},
    ids::ContainerHandle,
    rule::PortRange,
};

use crate::{
    plan::{COPIED, ConnectionLimit, RecordDenied},
    plane::TO_STRING,
};

pub(super) const ESTABLISHED: &str = "-m state --state RELATED,ESTABLISHED -j ACCEPT";
pub(super) const INVALID: &str = "-p tcp -m state --state INVALID -j DROP";
/// Maximum log prefix of the original, without the trailing blank.
const PREFIX_CHARS: usize = 28;
/// Units per second of the modules `limit` and `hashlimit`.
pub(crate) const LIMIT_SCALE: u64 = 10_000;
pub(crate) const HASHLIMIT_SCALE: u64 = 1_000_000;
/// Default of `limit`; iptables does not print it.
const DEFAULT_BURST: u32 = 5;

/// Appends the rule for a permit; a logging rule jumps to `log_chain`, which ends in an
/// accept.
pub(super) fn permit(text: &mut String, permit: &Permit, log_chain: &str) {
    let (first, last) = (permit.destination.first(), permit.destination.last());
    let range = format_args!("-m iprange --dst-range {first}-{last}");
    let done = match permit.service {
        Service::All => write!(text, "{range}"),
        Service::Tcp(ports) => write!(text, "-p tcp {range} -m tcp{}", to(ports)),
        Service::Udp(ports) => write!(text, "-p udp {range} -m udp{}", to(ports)),
        Service::Icmp(icmp) => match icmp.exact() {
            None => write!(text, "-p icmp {range} -m icmp --icmp-type any"),
            Some((icmp_type, code)) => {
                write!(text, "-p icmp {range} -m icmp --icmp-type {icmp_type}/{code}")
            }
        },
        Service::Icmpv6(icmp) => match icmp.exact() {
            None => write!(text, "-p ipv6-icmp {range}"),
            Some((icmp_type, code)) => {
                write!(text, "-p ipv6-icmp {range} -m icmp6 --icmpv6-type {icmp_type}/{code}")
            }
        },
    };
    done.expect(TO_STRING);
    let target = if permit.log { ("-g", log_chain) } else { ("-j", "ACCEPT") };
    write!(text, " {} {}", target.0, target.1).expect(TO_STRING);
}

fn to(ports: PortRange) -> String {
    match (ports.first(), ports.last()) {
        (0, u16::MAX) => String::new(),
        (first, last) if first == last => format!(" --dport {first}"),
        (first, last) => format!(" --dport {first}:{last}"),
    }
}

/// The match for new connections over the limit.
pub(super) fn over_limit(limit: &ConnectionLimit, handle: &ContainerHandle) -> String {
    let ConnectionLimit { per_second, burst, log: _, destinations: _ } = limit;
    let (rate, unit) = rate(HASHLIMIT_SCALE, *per_second);
    // The default expiry, which follows from the rate's unit, is not printed.
    let expire = match u64::from(burst.div_ceil(*per_second)) {
        seconds if seconds == unit => String::new(),
        seconds => format!(" --hashlimit-htable-expire {}", 1000 * seconds),
    };
    format!(
        "-p tcp -m conntrack --ctstate NEW -m hashlimit --hashlimit-above {rate} \
         --hashlimit-burst {burst} --hashlimit-mode dstip,dstport --hashlimit-name {handle}{expire}"
    )
}

/// The rule that logs denied packets.
pub(super) fn log_denied(per_second: u32, handle: &ContainerHandle) -> String {
    let (rate, _) = rate(LIMIT_SCALE, per_second);
    let burst = match per_second {
        DEFAULT_BURST => String::new(),
        burst => format!(" --limit-burst {burst}"),
    };
    let prefix: String = format!("DENY_{handle}").chars().take(PREFIX_CHARS).collect();
    format!("-m limit --limit {rate}{burst} -j LOG --log-prefix \"{prefix} \"")
}

/// The rule that sends denied packets to the agent, within the rate of their source address and
/// of the cell.
pub(super) fn record(record: RecordDenied, name: &str) -> String {
    let (each, unit) = rate(HASHLIMIT_SCALE, record.per_second);
    // The burst fills up again within a second.
    let expire = if unit == 1 { "" } else { " --hashlimit-htable-expire 1000" };
    let (all, _) = rate(LIMIT_SCALE, record.cell_per_second());
    let burst = |flag: &str, burst: u32| match burst {
        DEFAULT_BURST => String::new(),
        burst => format!(" {flag} {burst}"),
    };
    let (each_burst, all_burst) = (
        burst("--hashlimit-burst", record.per_second),
        burst("--limit-burst", record.cell_per_second()),
    );
    let group = record.group;
    format!(
        "-m hashlimit --hashlimit-upto {each}{each_burst} --hashlimit-mode srcip \
         --hashlimit-name {name}{expire} -m limit --limit {all}{all_burst} \
         -j NFLOG --nflog-group {group} --nflog-size {COPIED}"
    )
}

/// A rate as iptables prints it: in the smallest lossless unit after the kernel's
/// rounding, with the seconds of the unit.
fn rate(scale: u64, per_second: u32) -> (String, u64) {
    let period = (scale / u64::from(per_second)).max(1);
    let units = [("day", 86_400), ("hour", 3600), ("min", 60), ("sec", 1)];
    let mut shown = units[0];
    for unit in &units[1..] {
        let most = scale * unit.1;
        if period > most || most / period < most % period {
            break;
        }
        shown = *unit;
    }
    (format!("{}/{}", scale * shown.1 / period, shown.0), shown.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of iptables 1.8.9.
    #[test]
    fn rates_are_rounded_as_the_kernel_does() {
        for (per_second, printed) in
            [(1, "1/sec"), (3, "3/sec"), (100, "100/sec"), (300, "303/sec"), (7000, "10000/sec")]
        {
            assert_eq!(rate(LIMIT_SCALE, per_second).0, printed);
        }
        for (per_second, printed) in [(100, "100/sec"), (300, "300/sec"), (3000, "3003/sec")] {
            assert_eq!(rate(HASHLIMIT_SCALE, per_second).0, printed);
        }
    }

    /// Output of iptables 1.8.9.
    #[test]
    fn the_time_that_follows_from_the_rate_is_not_printed() {
        let handle = ContainerHandle::parse("h").unwrap();
        let expire = |burst, per_second| {
            let rule = over_limit(
                &ConnectionLimit { per_second, burst, log: false, destinations: 9 },
                &handle,
            );
            rule.split_once("--hashlimit-name h").unwrap().1.to_owned()
        };
        for (burst, per_second) in [(1, 1), (1, 3), (99, 100), (100, 100)] {
            assert_eq!(expire(burst, per_second), "", "{burst} {per_second}");
        }
        assert_eq!(expire(101, 100), " --hashlimit-htable-expire 2000");
        assert_eq!(expire(1000, 3), " --hashlimit-htable-expire 334000");
    }

    #[test]
    fn the_burst_that_iptables_assumes_is_not_printed() {
        let handle = ContainerHandle::parse("00000001-aaaa-bbbb-cccc-0123456789ab").unwrap();
        assert_eq!(
            log_denied(5, &handle),
            "-m limit --limit 5/sec -j LOG --log-prefix \"DENY_00000001-aaaa-bbbb-cccc \""
        );
    }
}
