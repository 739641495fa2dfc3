//! Parses addresses like the Cloud Controller, that is, like Ruby's `IPAddr`.
//!
//! Ruby accepts more than the agents: dotted netmasks, IPv6 in brackets and IPv6 with a
//! zone. Exactly the same texts must be accepted, so the standard library's parser
//! alone is not enough.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The IP version: 4 or 6.
    pub fn version(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An address and its netmask, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    /// Its family.
    pub family: Family,
    /// The address with its host bits, as written.
    pub address: u128,
    mask: u128,
}

/// Parses an address, or an address with `/` and a prefix length or netmask.
pub fn parse(text: &str) -> Option<Net> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let (family, address) = parse_plain(address)?;
    let mask = match mask {
        Some(mask) => parse_mask(mask, family)?,
        None => ones(family.bits()),
    };
    Some(Net { family, address, mask })
}

/// Parses an address without a mask: the end of a range.
pub fn parse_end(text: &str) -> Option<Net> {
    if text.contains('/') { None } else { parse(text) }
}

/// Removes leading zeros of IPv4 numbers, which have an error message of their own and
/// must not cause a second one. The prefix length is unchanged.
pub fn without_leading_zeros(text: &str) -> String {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let octets: Vec<&str> = address.split('.').collect();
    if octets.len() != 4 || !octets.iter().all(|octet| is_digits(octet)) {
        return text.to_owned();
    }
    let octets: Vec<&str> = octets
        .into_iter()
        .map(|octet| match octet.trim_start_matches('0') {
            "" => "0",
            digits => digits,
        })
        .collect();
    match mask {
        Some(mask) => format!("{}/{mask}", octets.join(".")),
        None => octets.join("."),
    }
}

fn parse_plain(text: &str) -> Option<(Family, u128)> {
    let (text, only_v6) = without_brackets(text);
    let (text, only_v6) = match without_zone(text) {
        Some(rest) => (rest, true),
        None => (text, only_v6),
    };
    if !only_v6 && let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some((Family::V4, u128::from(u32::from(address))));
    }
    let address = text.parse::<Ipv6Addr>().ok()?;
    Some((Family::V6, u128::from(address)))
}

fn without_brackets(text: &str) -> (&str, bool) {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => (inner, true),
        None => (text, false),
    }
}

/// `fe80::1%eth0` without its zone, when the zone is made of word characters.
fn without_zone(text: &str) -> Option<&str> {
    let (address, zone) = text.rsplit_once('%')?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!zone.is_empty() && zone.chars().all(word)).then_some(address)
}

/// Parses a prefix length without leading zeros, or a contiguous netmask.
fn parse_mask(text: &str, family: Family) -> Option<u128> {
    if is_digits(text) && (text == "0" || !text.starts_with('0')) {
        let length: u32 = text.parse().ok()?;
        return (length <= family.bits()).then(|| prefix_mask(length, family));
    }
    let net = parse(text)?;
    if net.family != family {
        return None;
    }
    let address = net.address & net.mask;
    let holes = address ^ net.mask;
    (holes & holes.wrapping_add(1) == 0).then_some(address)
}

fn prefix_mask(length: u32, family: Family) -> u128 {
    ones(family.bits()) & !ones(family.bits() - length)
}

fn ones(bits: u32) -> u128 {
    1u128.checked_shl(bits).map_or(u128::MAX, |power| power - 1)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_ipaddr_accepts() {
        for text in [
            "10.0.0.1",
            "10.0.0.1/0",
            "10.0.0.1/32",
            "10.0.0.1/255.255.0.0",
            "10.0.0.1/0.0.0.0",
            "10.0.0.1/255.255.255.255",
            "2001:db8::1",
            "2001:db8::/128",
            "2001:db8::/ffff:ffff::",
            "[2001:db8::1]",
            "[2001:db8::]/32",
            "fe80::1%eth0",
            "fe80::1%eth0/64",
            "::ffff:10.0.0.1",
            "::",
            "1:2:3:4:5:6:7::",
        ] {
            assert!(parse(text).is_some(), "{text}");
        }
    }

    #[test]
    fn refuses_what_ipaddr_refuses() {
        for text in [
            "",
            "/24",
            "10.0.0.1/",
            "10.0.0.1/33",
            "10.0.0.1/08",
            "10.0.0.1/+8",
            "10.0.0.1/24/24",
            "10.0.0.1/255.0.255.0",
            "10.0.0.1/0.0.0.255",
            "10.0.0.1/2001::",
            "10.0.0.256",
            "10.0.0.01",
            "10.0.0",
            "10.0.0.1.2",
            "[10.0.0.1]",
            "10.0.0.1%eth0",
            "fe80::1%",
            "fe80::1%eth-0",
            "2001:db8::/129",
            "2001::db8::1",
            "2001",
            "1:2:3:4:5:6:7:8:9",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn keeps_the_host_bits() {
        assert_eq!(parse("0.0.1.2/24").map(|net| net.address), Some(258));
    }

    #[test]
    fn drops_zeros_of_octets_only() {
        assert_eq!(without_leading_zeros("010.000.0.1/08"), "10.0.0.1/08");
        assert_eq!(without_leading_zeros("010.0.0"), "010.0.0");
        assert_eq!(without_leading_zeros("2001:0db8::1"), "2001:0db8::1");
    }
}
