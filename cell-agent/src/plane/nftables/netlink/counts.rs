//! Requests for the packet counters of rules and of set elements, and the kernel's
//! responses. Pure.

use std::{collections::BTreeMap, io, ops::ControlFlow};

use super::message::{INET, NEW_ELEMENT, NEW_RULE, of_subsystem};
use crate::{
    netlink::message::{
        DONE, DUMP, Draft, ERROR, HEADERS, NESTED, REQUEST, code, messages, refusal, value,
    },
    plane::nftables::table::NAME,
};

const GET_RULE: u16 = of_subsystem(7);
const GET_ELEMENT: u16 = of_subsystem(13);
const NEW_OBJECT: u16 = of_subsystem(18);
const GET_OBJECT: u16 = of_subsystem(19);
/// `NLM_F_DUMP_INTR`: the state changed during the dump.
const INTERRUPTED: u16 = 0x10;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// The counters of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counters {
    /// The rule has none.
    None,
    /// Packets of the rule.
    Rule(u64),
    /// Packets of the elements of its set.
    Elements(BTreeMap<Vec<u8>, u64>),
}

/// The parts of a rule that count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FoundRule {
    /// Packets, if the rule has a counter.
    pub(super) packets: Option<u64>,
    /// The anonymous set that it looks up.
    pub(super) set: Option<String>,
}

/// The request for the named counters of our table.
pub(super) fn ask_counters() -> Vec<u8> {
    let mut draft = Draft::default();
    draft.message(GET_OBJECT, REQUEST | DUMP, INET, 0, |draft| {
        draft.text(1, NAME);
        // `NFT_OBJECT_COUNTER`.
        draft.value(3, &1_u32.to_be_bytes());
    });
    draft.0
}

/// The request for the rules of a chain.
pub(super) fn ask_rules(chain: &str) -> Vec<u8> {
    let mut draft = Draft::default();
    draft.message(GET_RULE, REQUEST | DUMP, INET, 0, |draft| {
        draft.text(1, NAME);
        draft.text(2, chain);
    });
    draft.0
}

/// The request for the elements of a set.
pub(super) fn ask_elements(set: &str) -> Vec<u8> {
    let mut draft = Draft::default();
    draft.message(GET_ELEMENT, REQUEST | DUMP, INET, 0, |draft| {
        draft.text(1, NAME);
        draft.text(2, set);
    });
    draft.0
}

/// Decodes one datagram of rules.
pub(super) fn rules(datagram: &[u8], found: &mut Vec<FoundRule>) -> ControlFlow<io::Result<()>> {
    dump(datagram, NEW_RULE, true, |attributes| {
        let expressions = list(value(attributes, 4).unwrap_or_default());
        let mut rule = FoundRule::default();
        for expression in expressions {
            let (name, data) = (text(value(expression, 1)), value(expression, 2));
            match (name.as_deref(), data) {
                (Some("counter"), Some(data)) => rule.packets = packets(data),
                (Some("lookup"), Some(data)) => {
                    let set = text(value(data, 1));
                    rule.set = set.filter(|set| set.starts_with("__set"));
                }
                _ => {}
            }
        }
        found.push(rule);
    })
}

/// Decodes one datagram of elements: the packets of each, by key.
pub(super) fn elements(
    datagram: &[u8],
    found: &mut BTreeMap<Vec<u8>, u64>,
) -> ControlFlow<io::Result<()>> {
    dump(datagram, NEW_ELEMENT, true, |attributes| {
        for element in list(value(attributes, 3).unwrap_or_default()) {
            let flags = value(element, 3).and_then(|flags| flags.try_into().ok());
            if flags.map_or(0, u32::from_be_bytes) & INTERVAL_END != 0 {
                continue;
            }
            let key = value(element, 1).and_then(|key| value(key, 1));
            let counter = value(element, 7)
                .or_else(|| list(value(element, 11)?).next())
                .and_then(|expression| packets(value(expression, 2)?));
            if let (Some(key), Some(packets)) = (key, counter) {
                found.insert(key.to_vec(), packets);
            }
        }
    })
}

/// Decodes one datagram of named counters: the packets that each counted.
pub(super) fn counters(
    datagram: &[u8],
    counted: &mut BTreeMap<String, u64>,
) -> ControlFlow<io::Result<()>> {
    dump(datagram, NEW_OBJECT, false, |attributes| counted.extend(counter(attributes)))
}

/// Name and packet count of a counter.
fn counter(attributes: &[u8]) -> Option<(String, u64)> {
    Some((text(value(attributes, 2))?, packets(value(attributes, 4)?)?))
}

/// Calls `each` with the attributes of each message of a dump. Breaks at the end of the dump, with
/// the error if there is one. `whole`: a dump during which the state changed is an error.
fn dump(
    datagram: &[u8],
    wanted: u16,
    whole: bool,
    mut each: impl FnMut(&[u8]),
) -> ControlFlow<io::Result<()>> {
    for (kind, message) in messages(datagram) {
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        match (kind, code(message)) {
            (DONE | ERROR, Some(code)) if code < 0 => {
                return ControlFlow::Break(Err(refusal(code)));
            }
            _ if whole && flags & INTERRUPTED != 0 => {
                return ControlFlow::Break(Err(io::ErrorKind::Interrupted.into()));
            }
            (DONE, _) => return ControlFlow::Break(Ok(())),
            (kind, _) if kind == wanted => each(message.get(HEADERS..).unwrap_or_default()),
            _ => {}
        }
    }
    ControlFlow::Continue(())
}

/// The values of a list of attributes of one kind.
fn list(mut attributes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        (kind & !NESTED == 1).then_some(value)
    })
}

fn text(value: Option<&[u8]>) -> Option<String> {
    Some(std::str::from_utf8(value?).ok()?.trim_end_matches('\0').to_owned())
}

/// The packets of a counter.
fn packets(counter: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value(counter, 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut all = u16::try_from(body.len() + 4).unwrap().to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend(body);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    }

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut all = vec![0; HEADERS];
        all[..4].copy_from_slice(&u32::try_from(HEADERS + body.len()).unwrap().to_ne_bytes());
        all[4..6].copy_from_slice(&kind.to_ne_bytes());
        all[6..8].copy_from_slice(&flags.to_ne_bytes());
        all.extend(body);
        all
    }

    fn element(key: [u8; 4], flags: u32, packets: u64) -> Vec<u8> {
        let counter = attribute(NESTED | 2, &attribute(2, &packets.to_be_bytes()));
        let parts = [
            attribute(NESTED | 1, &attribute(1, &key)),
            attribute(3, &flags.to_be_bytes()),
            attribute(NESTED | 7, &[attribute(1, b"counter\0"), counter].concat()),
        ];
        attribute(NESTED | 1, &parts.concat())
    }

    #[test]
    fn elements_have_packets_and_ends_of_intervals_do_not() {
        let all = [element([10, 0, 0, 0], 0, 7), element([11, 0, 0, 0], 1, 9)].concat();
        let datagram = message(NEW_ELEMENT, 0, &attribute(NESTED | 3, &all));
        let mut found = BTreeMap::new();
        assert!(elements(&datagram, &mut found).is_continue());
        assert_eq!(found, BTreeMap::from([(vec![10, 0, 0, 0], 7)]));
        let interrupted = message(NEW_ELEMENT, INTERRUPTED, &[]);
        assert!(matches!(elements(&interrupted, &mut found), ControlFlow::Break(Err(_))));
    }

    proptest! {
        #[test]
        fn torn_responses_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let datagram = message(NEW_ELEMENT, 0, &bytes);
            let _end = elements(&datagram, &mut BTreeMap::new());
            let datagram = message(NEW_RULE, 0, &bytes);
            let _end = rules(&datagram, &mut Vec::new());
        }
    }
}
