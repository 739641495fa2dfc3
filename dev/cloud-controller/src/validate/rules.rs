//! Validates the rules of a group in the Cloud Controller's two layers
//! (docs/compatibility/cloud-controller.md#rule-validation), and an additional one of
//! ours.
//!
//! The first layer validates the request, the second the stored rules; the second runs
//! only if the first finds no error. Each message and its position are part of the
//! contract: clients match on them.

use model::rule::{RuleSpec, Unenforceable};

use super::address::{self, Family};
use crate::json::{Json, Object};
use crate::ruby;

/// Validation options of the Cloud Controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// `cc.enable_ipv6`
    pub ipv6: bool,
    /// `cc.security_groups.enable_comma_delimited_destinations`
    pub comma_destinations: bool,
    /// Our own option: also refuse rules that agents cannot enforce.
    pub strict: bool,
}

const KEYS: [&str; 7] = ["code", "description", "destination", "log", "ports", "protocol", "type"];
const MAX_DESTINATIONS: usize = 6000;
const MAX_TEXT: usize = 16_777_215;

const BAD_PORTS: &str = "ports must be a valid single port, comma separated list of ports, or range or ports, formatted as a string";

/// The first layer: errors of the request's `rules`.
pub fn message_errors(rules: &Json, flags: Flags) -> Vec<String> {
    let Some(rules) = rules.as_array() else {
        return vec!["Rules must be an array".to_owned()];
    };
    let mut errors = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let mut found = Vec::new();
        match rule.as_object() {
            Some(rule) => check_request(rule, flags, &mut found),
            None => found.push("must be an object".to_owned()),
        }
        errors.extend(found.into_iter().map(|text| format!("Rules[{index}]: {text}")));
    }
    errors
}

/// The second layer: errors of rules that passed the first.
pub fn model_errors(rules: &Json, flags: Flags) -> Vec<String> {
    let mut errors = Vec::new();
    if rules.to_text().chars().count() > MAX_TEXT {
        errors.push(format!("rules length must not exceed {MAX_TEXT} characters"));
    }
    for (index, rule) in rules.as_array().unwrap_or_default().iter().enumerate() {
        let Some(rule) = rule.as_object() else { continue };
        let mut found = stored_errors(rule, flags);
        if found.is_empty() && flags.strict {
            found = poison(rule);
        }
        errors.extend(
            found.into_iter().map(|text| format!("rules rule number {} {text}", index + 1)),
        );
    }
    errors
}

fn check_request(rule: &Object, flags: Flags, errors: &mut Vec<String>) {
    let unknown: Vec<&str> = rule.keys().filter(|key| !KEYS.contains(key)).collect();
    if !unknown.is_empty() {
        errors.push(format!("unknown field(s): {}", ruby::inspect_all(unknown)));
    }
    let protocol = rule.get("protocol").and_then(Json::as_str).unwrap_or_default();
    if !matches!(protocol, "tcp" | "udp" | "icmp" | "icmpv6" | "all") {
        errors.push("protocol must be 'tcp', 'udp', 'icmp', 'icmpv6' or 'all'".to_owned());
    }
    check_destinations(protocol, rule.get("destination").unwrap_or(&Json::Null), flags, errors);
    let field = |key: &str| rule.get(key).unwrap_or(&Json::Null);
    if field("description").is_truthy() && field("description").as_str().is_none() {
        errors.push("description must be a string".to_owned());
    }
    if field("log").is_truthy() && field("log").as_bool().is_none() {
        errors.push("log must be a boolean".to_owned());
    }
    match protocol {
        "tcp" | "udp" => check_ports(field("ports"), errors),
        "icmpv6" if !flags.ipv6 => {
            errors.push("icmpv6 cannot be used if enable_ipv6 is false".to_owned());
            check_icmp(rule, errors);
        }
        "icmp" | "icmpv6" => check_icmp(rule, errors),
        "all" if field("ports").is_truthy() => {
            errors.push("ports are not allowed for protocols of type all".to_owned());
        }
        _ => {}
    }
}

fn check_ports(ports: &Json, errors: &mut Vec<String>) {
    if !ports.is_truthy() {
        errors.push("ports are required for protocols of type TCP and UDP".to_owned());
    }
    if !ports.as_str().is_some_and(are_ports) {
        errors.push(BAD_PORTS.to_owned());
    }
}

fn check_icmp(rule: &Object, errors: &mut Vec<String>) {
    for key in ["code", "type"] {
        let value = rule.get(key).unwrap_or(&Json::Null);
        if !value.is_truthy() {
            errors.push(format!("{key} is required for protocols of type ICMP"));
        }
        if !is_icmp_number(value) {
            errors.push(format!("{key} must be an integer between -1 and 255 (inclusive)"));
        }
    }
}

fn is_icmp_number(value: &Json) -> bool {
    value.as_integer().is_some_and(|number| (-1..=255).contains(&number))
}

fn check_destinations(protocol: &str, destination: &Json, flags: Flags, errors: &mut Vec<String>) {
    let text = match destination {
        Json::Null => {
            errors.push(absent_destination(flags).to_owned());
            return;
        }
        Json::String(text) => text,
        _ => {
            errors.push("destination must be a string".to_owned());
            return;
        }
    };
    if text.contains(ruby::is_space) {
        errors.push("destination must not contain whitespace".to_owned());
        return;
    }
    if text.contains(',') && !flags.comma_destinations {
        errors.push(absent_destination(flags).to_owned());
        return;
    }
    if text.is_empty() {
        return; // Nothing to look at here; the second layer refuses it.
    }
    let members: Vec<&str> = text.split(',').collect();
    if members.len() > MAX_DESTINATIONS {
        errors.push(format!(
            "maximum destinations per rule exceeded - must be under {MAX_DESTINATIONS}"
        ));
    }
    for member in members {
        check_destination(protocol, member, flags, errors);
    }
}

fn absent_destination(flags: Flags) -> &'static str {
    if flags.comma_destinations {
        "nil destination; destination must be a comma-delimited list of valid CIDRs, IP addresses, or IP address ranges"
    } else {
        "destination must be a valid CIDR, IP address, or IP address range"
    }
}

fn bad_destination(flags: Flags) -> &'static str {
    if flags.comma_destinations {
        "destination must contain valid CIDR(s), IP address(es), or IP address range(s)"
    } else {
        "destination must be a valid CIDR, IP address, or IP address range"
    }
}

fn check_destination(protocol: &str, member: &str, flags: Flags, errors: &mut Vec<String>) {
    if member.is_empty() {
        errors.push("empty destination specified in comma-delimited list".to_owned());
    }
    let parts = ruby::split(member, '-');
    if parts.iter().any(|part| has_leading_zeros(part)) {
        errors.push("destination octets cannot contain leading zeros".to_owned());
    }
    let family = match read_member(&parts, flags) {
        Ok(Member { family, inverted }) => {
            if inverted {
                errors.push("beginning of IP address range is numerically greater than the end of its range (range endpoints are inverted)".to_owned());
            }
            family
        }
        Err(BadMember::Range) => {
            errors.push("destination IP address range is invalid".to_owned());
            return;
        }
        Err(BadMember::Other) => {
            errors.push(bad_destination(flags).to_owned());
            return;
        }
    };
    let wanted = match protocol {
        "icmp" => Family::V4,
        "icmpv6" => Family::V6,
        _ => family,
    };
    if family != wanted {
        let version = family.version();
        errors.push(format!("for protocol \"{protocol}\" you cannot use IPv{version} addresses"));
    }
}

/// A valid member of the list.
struct Member {
    family: Family,
    inverted: bool,
}

enum BadMember {
    Range,
    Other,
}

fn read_member(parts: &[&str], flags: Flags) -> Result<Member, BadMember> {
    let usable = |family: Family| family == Family::V4 || flags.ipv6;
    match parts {
        [single] => match address::parse(&address::without_leading_zeros(single)) {
            Some(net) if usable(net.family) => Ok(Member { family: net.family, inverted: false }),
            _ => Err(BadMember::Other),
        },
        [first, last] => match (address::parse_end(first), address::parse_end(last)) {
            (Some(first), Some(last)) if first.family == last.family && usable(first.family) => {
                Ok(Member { family: first.family, inverted: first.address > last.address })
            }
            _ => Err(BadMember::Range),
        },
        _ => Err(BadMember::Other),
    }
}

/// Octets with leading zeros. A group of an IPv6 address may have them, but in mixed
/// notation the part before the first dot counts as an octet.
fn has_leading_zeros(part: &str) -> bool {
    part.contains('.')
        && ruby::split(part, '.').into_iter().any(|octet| {
            let parts = ruby::split(octet, '/');
            let zero_first = |text: &str| text.len() > 1 && text.starts_with('0');
            zero_first(octet) && (parts.len() < 2 || zero_first(parts[0]))
        })
}

/// One port, a list, or one range `lo-hi` with `lo < hi`; spaces around numbers.
fn are_ports(text: &str) -> bool {
    if text.chars().any(|c| !(c.is_ascii_digit() || ruby::is_space(c) || c == '-' || c == ',')) {
        return false;
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Some(first), Some(last)) = (digits(first), digits(last))
    {
        return matches!((port(first), port(last)), (Some(first), Some(last)) if first < last);
    }
    let ports = ruby::split(text, ',');
    !ports.is_empty() && ports.into_iter().all(|item| digits(item).and_then(port).is_some())
}

fn digits(text: &str) -> Option<&str> {
    let text = text.trim_matches(ruby::is_space);
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

fn port(digits: &str) -> Option<u16> {
    digits.trim_start_matches('0').parse().ok().filter(|port| *port > 0)
}

/// The second layer for one rule. A `null` field counts as present.
fn stored_errors(rule: &Object, flags: Flags) -> Vec<String> {
    let protocol = rule.get("protocol").and_then(Json::as_str).unwrap_or_default();
    let required: &[&str] = match protocol {
        "tcp" | "udp" => &["protocol", "destination", "ports"],
        "icmp" | "icmpv6" => &["protocol", "destination", "code", "type"],
        "all" => &["protocol", "destination"],
        _ => return vec!["contains an unsupported protocol".to_owned()],
    };
    let known = |key: &str| required.contains(&key) || matches!(key, "log" | "description");
    let missing = required.iter().filter(|key| !rule.has(key));
    let mut errors: Vec<String> =
        missing.map(|key| format!("missing required field '{key}'")).collect();
    let invalid = rule.keys().filter(|key| !known(key));
    errors.extend(invalid.map(|key| format!("contains the invalid field '{key}'")));
    if errors.is_empty() {
        errors = stored_value_errors(rule, flags);
    }
    errors
}

fn stored_value_errors(rule: &Object, flags: Flags) -> Vec<String> {
    let destination = rule.get("destination").and_then(Json::as_str).unwrap_or_default();
    let checks = [
        ("contains invalid destination", is_destination(destination, flags)),
        ("contains invalid log value", rule.get("log").is_none_or(|log| log.as_bool().is_some())),
        (
            "contains invalid description",
            rule.get("description").is_none_or(|text| text.as_str().is_some()),
        ),
        (
            "contains invalid ports",
            rule.get("ports").is_none_or(|ports| ports.as_str().is_some_and(are_ports)),
        ),
        ("contains invalid type", rule.get("type").is_none_or(is_icmp_number)),
        ("contains invalid code", rule.get("code").is_none_or(is_icmp_number)),
    ];
    checks.into_iter().filter(|(_, good)| !good).map(|(text, _)| text.to_owned()).collect()
}

fn is_destination(text: &str, flags: Flags) -> bool {
    if text.is_empty() || text.contains(ruby::is_space) {
        return false;
    }
    if text.contains(',') && !flags.comma_destinations {
        return false;
    }
    text.split(',').all(|member| {
        read_member(&ruby::split(member, '-'), flags).is_ok_and(|member| !member.inverted)
    })
}

/// Destinations that pass in Ruby but that no agent can parse: the original agent then
/// skips the whole container.
fn poison(rule: &Object) -> Vec<String> {
    let text = |key: &str| rule.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let number = |key: &str| {
        let number = rule.get(key).and_then(Json::as_integer).unwrap_or_default();
        i32::try_from(number).unwrap_or_default()
    };
    let spec = RuleSpec {
        protocol: text("protocol"),
        destination: text("destination"),
        ports: text("ports"),
        icmp_type: number("type"),
        icmp_code: number("code"),
        description: text("description"),
        log: false,
    };
    let problems = spec.read().problems.into_iter();
    problems
        .filter(|problem| matches!(problem, Unenforceable::Destination(..)))
        .map(|problem| format!("cannot be enforced: {problem}"))
        .collect()
}
