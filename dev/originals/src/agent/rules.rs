//! The rules of a container's asg chain, docs/compatibility/vxlan-policy-agent.md#rule-order
//! and #rule-arguments. Pure.

use std::net::Ipv4Addr;

use anyhow::{Context, bail};

use crate::groups::{Group, Rule};

/// The kind of workload: its groups are the running or the staging ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    Running,
    Staging,
}

impl Workload {
    /// Of `container_workload`; any other text has no rules.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "app" | "task" => Some(Self::Running),
            "staging" => Some(Self::Staging),
            _ => None,
        }
    }
}

/// The arguments of each rule of the chain, from the top.
pub(super) fn chain(
    workload: Option<Workload>,
    space: &str,
    groups: &[Group],
) -> anyhow::Result<Vec<String>> {
    let mut arguments: Vec<String> = Vec::new();
    for group in workload.map(|workload| of_container(workload, space, groups)).unwrap_or_default()
    {
        let rules: Vec<Rule> =
            runtime::json::from_str(&group.rules).context("json unmarshal: invalid syntax")?;
        for rule in &rules {
            for one in rule_arguments(rule)? {
                // Equal rules are kept once, at the first place.
                if !arguments.contains(&one) {
                    arguments.push(one);
                }
            }
        }
    }
    let mut chain = vec![
        "-m state --state RELATED,ESTABLISHED -j ACCEPT".to_owned(),
        "-p tcp -m state --state INVALID -j DROP".to_owned(),
    ];
    chain.extend(arguments.into_iter().rev());
    chain.push(REJECT.to_owned());
    Ok(chain)
}

/// The last rule of the asg chain and of the netout chain.
pub(super) const REJECT: &str = "-j REJECT --reject-with icmp-port-unreachable";

/// Global groups, then those of the space, each in the server's order.
fn of_container<'a>(workload: Workload, space: &str, groups: &'a [Group]) -> Vec<&'a Group> {
    let reach = |group: &'a Group| match workload {
        Workload::Running => (group.running_default, &group.running_space_guids),
        Workload::Staging => (group.staging_default, &group.staging_space_guids),
    };
    let global = groups.iter().filter(|group| reach(group).0);
    let bound = groups.iter().filter(|group| {
        let (is_global, spaces) = reach(group);
        !is_global && spaces.iter().any(|bound| bound == space)
    });
    global.chain(bound).collect()
}

/// The arguments of one rule for each of its destinations and ports.
fn rule_arguments(rule: &Rule) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for destination in rule.destination.split(',') {
        let range = range(destination)?;
        let matches = format!("-m iprange --dst-range {range}");
        let with_range = format!("-m iprange -p {} --dst-range {range}", rule.protocol);
        match rule.protocol.as_str() {
            "all" if rule.ports.is_empty() => all.push(format!("{matches} -j ACCEPT")),
            "icmp" if rule.ports.is_empty() => {
                // Both numbers are cut to 8 bits; iptables takes type 255 for any.
                let [kind, code] = [rule.r#type, rule.code].map(|number| number & 0xff);
                all.push(format!("{with_range} -m icmp --icmp-type {kind}/{code} -j ACCEPT"));
            }
            protocol @ ("tcp" | "udp") => {
                let ports = rule.ports.split(',').filter_map(port_range);
                all.extend(ports.map(|(from, to)| {
                    format!("{with_range} -m {protocol} --destination-port {from}:{to} -j ACCEPT")
                }));
            }
            _void => {}
        }
    }
    Ok(all)
}

/// An address, a CIDR or `a-b` as iptables' range.
fn range(text: &str) -> anyhow::Result<String> {
    let parsed = || {
        if let Some((first, last)) = text.split_once('-') {
            return Some((first.parse().ok()?, last.parse().ok()?));
        }
        let Some((address, bits)) = text.split_once('/') else {
            let address: Ipv4Addr = text.parse().ok()?;
            return Some((address, address));
        };
        let address: Ipv4Addr = address.parse().ok()?;
        let hosts = u32::MAX.checked_shr(bits.parse().ok().filter(|bits| *bits <= 32)?);
        let hosts = hosts.unwrap_or(0);
        let first = address.to_bits() & !hosts;
        Some((Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first | hosts)))
    };
    match parsed() {
        Some((first, last)) => Ok(format!("{first}-{last}")),
        None => bail!("failed to convert destination to ip range: {text}"),
    }
}

/// One port or a range; cut to 16 bits. An unreadable item is dropped.
fn port_range(item: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.trim().parse::<u64>().ok().map(|number| number as u16);
    match item.split_once('-') {
        None => number(item).map(|port| (port, port)),
        Some((from, to)) => Some((number(from)?, number(to)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::rules_text;

    fn rule(protocol: &str, destination: &str, ports: &str) -> Rule {
        let [protocol, destination, ports] = [protocol, destination, ports].map(str::to_owned);
        Rule { protocol, destination, ports, ..Rule::default() }
    }

    fn group(rules: &[Rule], running_default: bool, spaces: &[&str]) -> Group {
        Group {
            guid: "g".to_owned(),
            name: "g".to_owned(),
            rules: rules_text(rules).unwrap(),
            staging_default: false,
            running_default,
            staging_space_guids: Vec::new(),
            running_space_guids: spaces.iter().map(|&space| space.to_owned()).collect(),
        }
    }

    #[test]
    fn the_operators_order_is_reversed_and_space_groups_come_first() {
        let groups = [
            group(&[rule("tcp", "10.0.0.0/30,10.1.0.1", "80,90-91")], false, &["s1"]),
            group(&[rule("all", "1.1.1.1-1.1.1.9", ""), rule("all", "2.2.2.2", "80")], true, &[]),
            group(&[rule("udp", "3.3.3.3", "53")], false, &["s2"]),
        ];
        let chain = chain(Some(Workload::Running), "s1", &groups).unwrap();
        let tcp = |range, ports| {
            format!(
                "-m iprange -p tcp --dst-range {range} -m tcp --destination-port {ports} -j ACCEPT"
            )
        };
        let expected = [
            "-m state --state RELATED,ESTABLISHED -j ACCEPT".to_owned(),
            "-p tcp -m state --state INVALID -j DROP".to_owned(),
            tcp("10.1.0.1-10.1.0.1", "90:91"),
            tcp("10.1.0.1-10.1.0.1", "80:80"),
            tcp("10.0.0.0-10.0.0.3", "90:91"),
            tcp("10.0.0.0-10.0.0.3", "80:80"),
            "-m iprange --dst-range 1.1.1.1-1.1.1.9 -j ACCEPT".to_owned(),
            REJECT.to_owned(),
        ];
        assert_eq!(chain, expected);
    }

    #[test]
    fn an_unknown_workload_has_no_rules_and_a_bad_destination_fails() {
        let all = [group(&[rule("all", "0.0.0.0/0", "")], true, &[])];
        assert_eq!(chain(None, "s1", &all).unwrap().len(), 3);
        assert_eq!(range("0.0.0.0/0").unwrap(), "0.0.0.0-255.255.255.255");
        assert!(range("10.9.0.0/255.255.0.0").is_err());
        assert!(range("10.9.0.0/33").is_err());
    }

    #[test]
    fn numbers_are_cut() {
        assert_eq!(port_range("65616"), Some((80, 80)));
        assert_eq!(port_range(" 1 - 2"), Some((1, 2)));
        assert_eq!(port_range("http"), None);
        let icmp = Rule { r#type: -1, code: -1, ..rule("icmp", "1.1.1.1", "") };
        let arguments = rule_arguments(&icmp).unwrap();
        assert!(arguments[0].contains("--icmp-type 255/255"), "{arguments:?}");
    }
}
