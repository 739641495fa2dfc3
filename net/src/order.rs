//! The order in which addresses are tried. Pure.

use std::net::SocketAddr;

/// Interleaves both families, beginning with the family of the first address (RFC 8305, section 4);
/// removes duplicates; moves addresses that `failed` to the end. Otherwise keeps the order of the
/// resolver, which knows the preferences of the machine (RFC 6724).
pub(crate) fn order(
    resolved: &[SocketAddr],
    failed: impl Fn(&SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let first_is_v4 = resolved.first().is_some_and(SocketAddr::is_ipv4);
    let family = |is_v4: bool| resolved.iter().filter(move |address| address.is_ipv4() == is_v4);
    let (mut preferred, mut other) = (family(first_is_v4), family(!first_is_v4));
    let mut ordered: Vec<SocketAddr> = Vec::with_capacity(resolved.len());
    loop {
        let pair = [preferred.next(), other.next()];
        if pair == [None, None] {
            break;
        }
        for address in pair.into_iter().flatten() {
            if !ordered.contains(address) {
                ordered.push(*address);
            }
        }
    }
    // The sort is stable, so each part keeps its order.
    ordered.sort_by_key(failed);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    fn ordered(resolved: &str, failed: &str) -> Vec<SocketAddr> {
        let failed = addresses(failed);
        order(&addresses(resolved), |address| failed.contains(address))
    }

    #[test]
    fn families_take_turns() {
        assert_eq!(
            ordered("[::1]:1 [::2]:1 [::3]:1 1.0.0.1:1", ""),
            addresses("[::1]:1 1.0.0.1:1 [::2]:1 [::3]:1")
        );
        assert_eq!(
            ordered("1.0.0.1:1 1.0.0.2:1 [::1]:1", ""),
            addresses("1.0.0.1:1 [::1]:1 1.0.0.2:1")
        );
    }

    #[test]
    fn each_address_is_tried_once() {
        assert_eq!(ordered("1.0.0.1:1 1.0.0.1:1 1.0.0.2:1", ""), addresses("1.0.0.1:1 1.0.0.2:1"));
        assert_eq!(ordered("", ""), []);
    }

    #[test]
    fn failed_addresses_come_last_in_their_order() {
        assert_eq!(
            ordered("1.0.0.1:1 1.0.0.2:1 1.0.0.3:1", "1.0.0.1:1 1.0.0.2:1"),
            addresses("1.0.0.3:1 1.0.0.1:1 1.0.0.2:1")
        );
        let all = "1.0.0.1:1 1.0.0.2:1";
        assert_eq!(ordered(all, all), addresses(all));
    }
}
