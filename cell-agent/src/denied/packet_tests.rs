use proptest::{collection::vec, prelude::*};

use super::*;

fn v4_packet(protocol: u8, offset: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0];
    packet.extend(offset.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 255, 1, 1, 192, 0, 2, 7]);
    packet.extend(body);
    packet
}

fn v6_packet(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(body);
    packet
}

/// A message as the kernel sends it.
fn message(interface: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 7];
    let mut attribute = |kind: u16, value: &[u8]| {
        body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    attribute(1, &[8, 0, 2, 0]);
    if let Some(index) = interface {
        attribute(INCOMING, &index.to_be_bytes());
    }
    attribute(PAYLOAD, payload);
    let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(PACKET.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(body);
    message
}

fn read(payload: &[u8]) -> (String, u8, Detail) {
    let (_, Target { destination, protocol, detail }) = packet(payload).unwrap();
    (destination.to_string(), protocol, detail)
}

const PORTS: [u8; 8] = [0x80, 0, 0x01, 0xbb, 0, 0, 0, 0];

#[test]
fn the_target_is_read_from_the_headers() {
    let v4 = |protocol, detail| ("192.0.2.7".to_owned(), protocol, detail);
    assert_eq!(read(&v4_packet(TCP, 0x4000, &PORTS)), v4(TCP, Detail::Port(443)));
    assert_eq!(read(&v4_packet(UDP, 0, &PORTS)), v4(UDP, Detail::Port(443)));
    assert_eq!(read(&v4_packet(ICMP, 0, &[8, 3, 0, 0])), v4(ICMP, Detail::Icmp(8, 3)));
    assert_eq!(read(&v4_packet(47, 0, &PORTS)), v4(47, Detail::None));
    assert_eq!(read(&v4_packet(UDP, 0x2001, &PORTS)), v4(UDP, Detail::None), "a later fragment");
    let mut options = v4_packet(TCP, 0, &[&[1, 1, 1, 0][..], &PORTS].concat());
    options[0] = 0x46;
    assert_eq!(read(&options), v4(TCP, Detail::Port(443)));
    let v6 = |protocol, detail| ("2001:db8::7".to_owned(), protocol, detail);
    assert_eq!(read(&v6_packet(TCP, &PORTS)), v6(TCP, Detail::Port(443)));
    assert_eq!(read(&v6_packet(ICMPV6, &[128, 0])), v6(ICMPV6, Detail::Icmp(128, 0)));
    let behind = |length: usize, first: [u8; 4]| {
        let mut body = first.to_vec();
        body.resize(length, 0);
        [body, PORTS.to_vec()].concat()
    };
    assert_eq!(
        read(&v6_packet(HOP_BY_HOP, &behind(16, [UDP, 1, 0, 0]))),
        v6(UDP, Detail::Port(443))
    );
    assert_eq!(
        read(&v6_packet(AUTHENTICATION, &behind(12, [TCP, 1, 0, 0]))),
        v6(TCP, Detail::Port(443))
    );
    assert_eq!(read(&v6_packet(FRAGMENT, &behind(8, [TCP, 0, 0, 1]))), v6(TCP, Detail::Port(443)));
    assert_eq!(read(&v6_packet(FRAGMENT, &behind(8, [TCP, 0, 0, 9]))), v6(TCP, Detail::None));
    let endless = [DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(40);
    assert_eq!(read(&v6_packet(DESTINATION_OPTIONS, &endless)).2, Detail::None);
}

#[test]
fn a_torn_packet_has_no_port_and_one_without_addresses_is_not_read() {
    for (whole, addresses) in [(v4_packet(TCP, 0, &PORTS), 20), (v6_packet(TCP, &PORTS), 40)] {
        for length in 0..whole.len() {
            let read = packet(&whole[..length]);
            assert_eq!(read.is_some(), length >= addresses, "{length}");
            let detail = read.map(|(_, target)| target.detail);
            let port = if length >= addresses + 4 { Detail::Port(443) } else { Detail::None };
            assert!(detail.is_none_or(|detail| detail == port), "{length}: {detail:?}");
        }
    }
}

#[test]
fn a_datagram_holds_several_messages() {
    let tcp = v4_packet(TCP, 0, &PORTS);
    let other = [&20_u32.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0; 14]].concat();
    let datagram =
        [message(Some(7), &tcp), other, message(None, &[]), message(None, &tcp)].concat();
    let found = denied(&datagram);
    let interfaces: Vec<u32> = found.iter().map(|packet| packet.interface).collect();
    assert_eq!(interfaces, [7, 0]);
    assert_eq!(found[0].source, IpAddr::from([10, 255, 1, 1]));
    for length in 0..datagram.len() {
        assert!(denied(&datagram[..length]).len() < 2, "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        _ = denied(&bytes);
        _ = packet(&bytes);
        prop_assert!(denied(&message(Some(1), &bytes)).len() <= 1);
    }

    #[test]
    fn any_change_of_a_datagram_is_read_without_a_panic(
        at in 0_usize..120,
        byte in any::<u8>(),
        cut in 0_usize..130,
        body in vec(any::<u8>(), 0..60),
        next in any::<u8>(),
    ) {
        let mut datagram = message(Some(1), &v6_packet(next, &body));
        if let Some(place) = datagram.get_mut(at) {
            *place = byte;
        }
        datagram.truncate(cut);
        prop_assert!(denied(&datagram).len() <= 8);
    }
}
