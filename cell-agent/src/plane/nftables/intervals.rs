//! Arithmetic on ranges of addresses and ports.

use std::{collections::BTreeMap, net::IpAddr};

use model::rule::{AddressRange, PortRange};

/// The same addresses in as few ranges as possible, ascending, without overlap.
#[must_use]
pub fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable_by_key(|range| (range.first(), range.last()));
    let mut merged: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if touches(*last, range) => {
                let end = last.last().max(range.last());
                *last = AddressRange::try_new(last.first(), end).expect("of one family, in order");
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether `next`, which begins no earlier, overlaps or follows directly.
fn touches(range: AddressRange, next: AddressRange) -> bool {
    if range.first().is_ipv4() != next.first().is_ipv4() {
        return false;
    }
    next.first() <= range.last() || after(range.last()) == Some(next.first())
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// Cuts overlapping port ranges into disjoint ones, each with all values that apply to
/// it. `None` when the result would exceed `most` entries.
#[must_use]
pub fn disjoint<T: Copy>(
    ranges: &BTreeMap<PortRange, Vec<T>>,
    most: usize,
) -> Option<Vec<(PortRange, Vec<T>)>> {
    let mut cuts: Vec<u32> = ranges
        .keys()
        .flat_map(|range| [u32::from(range.first()), u32::from(range.last()) + 1])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut pieces, mut entries) = (Vec::new(), 0);
    let mut coming = ranges.iter().peekable();
    let mut open: Vec<(&PortRange, &Vec<T>)> = Vec::new();
    for ends in cuts.windows(2) {
        let port = |cut: u32| u16::try_from(cut).expect("a port, not the end behind the last");
        let piece = PortRange::new(port(ends[0]), port(ends[1] - 1)).expect("cuts ascend");
        open.retain(|(range, _)| range.contains(piece.first()));
        while let Some(next) = coming.next_if(|(range, _)| range.first() == piece.first()) {
            open.push(next);
        }
        entries += open.iter().map(|(_, values)| values.len()).sum::<usize>();
        if entries > most {
            return None;
        }
        if !open.is_empty() {
            let all = open.iter().flat_map(|(_, values)| values.iter().copied()).collect();
            pieces.push((piece, all));
        }
    }
    Some(pieces)
}

/// The range as nft writes it: an address, a CIDR, or first-last.
#[must_use]
pub fn text(range: AddressRange) -> String {
    let (first, last) = (range.first(), range.last());
    let prefix = match range {
        AddressRange::V4(a, b) => prefix(u32::from(a).into(), u32::from(b).into(), 32),
        AddressRange::V6(a, b) => prefix(a.into(), b.into(), 128),
    };
    match prefix {
        _ if first == last => first.to_string(),
        Some(length) => format!("{first}/{length}"),
        None => format!("{first}-{last}"),
    }
}

/// Whether the range covers the whole family.
#[must_use]
pub fn is_everything(range: AddressRange) -> bool {
    match range {
        AddressRange::V4(a, b) => u32::from(a) == 0 && u32::from(b) == u32::MAX,
        AddressRange::V6(a, b) => u128::from(a) == 0 && u128::from(b) == u128::MAX,
    }
}

/// The prefix length if `first..=last` is exactly one network.
fn prefix(first: u128, last: u128, bits: u32) -> Option<u32> {
    let host = first ^ last;
    let is_mask = host & host.wrapping_add(1) == 0;
    (is_mask && first & host == 0).then(|| bits - (u128::BITS - host.leading_zeros()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(first: u32, last: u32) -> AddressRange {
        AddressRange::V4(first.into(), last.into())
    }

    fn range(text: &str) -> AddressRange {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        AddressRange::try_new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn text_is_as_short_as_nft_writes_it() {
        for (given, written) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.0-10.255.255.255", "10.0.0.0/8"),
            ("10.0.0.0-10.0.0.1", "10.0.0.0/31"),
            ("10.0.0.1-10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("10.0.0.1-10.0.0.8", "10.0.0.1-10.0.0.8"),
            ("0.0.0.0-255.255.255.255", "0.0.0.0/0"),
            ("128.0.0.0-255.255.255.255", "128.0.0.0/1"),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
            ("2001:db8::-2001:db8::ffff", "2001:db8::/112"),
        ] {
            assert_eq!(text(range(given)), written);
        }
    }

    #[test]
    fn families_and_the_ends_of_the_space_do_not_merge() {
        let all =
            vec![range("255.255.255.0-255.255.255.255"), range("::-::1"), range("0.0.0.0-0.0.0.1")];
        assert_eq!(merge(all).len(), 3);
    }

    proptest! {
        #[test]
        fn merging_keeps_every_address_and_leaves_gaps(
            given in proptest::collection::vec((0_u32..60, 0_u32..10), 0..12),
        ) {
            let given: Vec<_> = given.into_iter().map(|(a, n)| v4(a, a + n)).collect();
            let merged = merge(given.clone());
            for address in 0..80_u32 {
                let address = IpAddr::V4(address.into());
                prop_assert_eq!(
                    given.iter().any(|range| range.contains(address)),
                    merged.iter().any(|range| range.contains(address))
                );
            }
            for pair in merged.windows(2) {
                prop_assert!(after(pair[0].last()).unwrap() < pair[1].first());
            }
        }

        #[test]
        fn disjoint_pieces_say_the_same(
            given in proptest::collection::vec((0_u16..40, 0_u16..10), 0..8),
        ) {
            let mut ranges: BTreeMap<PortRange, Vec<usize>> = BTreeMap::new();
            for (index, (first, more)) in given.into_iter().enumerate() {
                ranges.entry(PortRange::new(first, first + more).unwrap()).or_default().push(index);
            }
            let pieces = disjoint(&ranges, usize::MAX).unwrap();
            for pair in pieces.windows(2) {
                prop_assert!(pair[0].0.last() < pair[1].0.first());
            }
            for port in 0..60_u16 {
                let mut wanted: Vec<_> = ranges.iter().filter(|(range, _)| range.contains(port))
                    .flat_map(|(_, values)| values.clone()).collect();
                let mut found: Vec<_> = pieces.iter().filter(|(range, _)| range.contains(port))
                    .flat_map(|(_, values)| values.clone()).collect();
                wanted.sort_unstable();
                found.sort_unstable();
                prop_assert_eq!(wanted, found);
            }
        }
    }

    #[test]
    fn too_many_pieces_are_not_made() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        let nested: BTreeMap<_, _> =
            (0..100).map(|depth| (range(depth, 1000 - depth), vec![()])).collect();
        assert!(disjoint(&nested, 1000).is_none());
        let last = BTreeMap::from([(range(65535, 65535), vec![()])]);
        assert_eq!(disjoint(&last, 1).unwrap().len(), 1);
    }
}
