//! Encodes nf_tables messages (`linux/netfilter/nf_tables.h`) and decodes the kernel's
//! responses. Pure.

use std::{collections::BTreeMap, io, net::IpAddr};

use super::KernelGeneration;
use crate::{
    netlink::message::{CONFIRM, Draft, ERROR, HEADERS, REQUEST, code, head, value},
    plane::nftables::table::{Key, NAME},
};

/// nf_tables operations that need no rule compiler, all on our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftOp {
    /// Deletes all rules of a chain.
    Flush(String),
    /// Appends a jump to a chain.
    Jump {
        /// The chain to append to.
        from: String,
        /// The jump target.
        to: String,
    },
    /// Deletes an empty chain.
    Delete(String),
    /// Deletes elements of a verdict map.
    DeleteElements {
        /// The map.
        map: String,
        /// Their keys.
        keys: Vec<Key>,
    },
    /// Adds elements with jump verdicts to a verdict map.
    AddElements {
        /// The map.
        map: String,
        /// The jump target of each key.
        jumps: BTreeMap<Key, String>,
    },
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;

/// Message types; those of nf_tables are in its subsystem.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
pub(super) const fn of_subsystem(kind: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, kind])
}
const DELETE_CHAIN: u16 = of_subsystem(5);
pub(super) const NEW_RULE: u16 = of_subsystem(6);
const DELETE_RULE: u16 = of_subsystem(8);
pub(super) const NEW_ELEMENT: u16 = of_subsystem(12);
const DELETE_ELEMENT: u16 = of_subsystem(14);
const NEW_GENERATION: u16 = of_subsystem(15);
const GET_GENERATION: u16 = of_subsystem(16);

/// `NLM_F_CREATE`, `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NFT_JUMP`.
const JUMP: i32 = -3;
/// `NFTA_GEN_ID`, and `NFNL_BATCH_GENID`.
const GENERATION_ID: u16 = 1;
/// `IFNAMSIZ`.
const INTERFACE: usize = 16;
/// An attribute has at most 64 KiB; an element takes about a hundred bytes.
const ELEMENTS_MOST: usize = 256;

/// The request for the nf_tables generation.
pub(super) fn ask_generation() -> Vec<u8> {
    let mut draft = Draft::default();
    draft.message(GET_GENERATION, REQUEST, 0, 0, |_| {});
    draft.0
}

/// One transaction; the kernel accepts it only in this generation.
pub(super) fn batch(orders: &[NftOp], generation: KernelGeneration) -> Vec<u8> {
    let mut draft = Draft::default();
    draft.message(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, |draft| {
        draft.value(GENERATION_ID, &generation.number().to_be_bytes());
    });
    let mut last = 0;
    for order in orders {
        last = draft.order(order);
    }
    // Only the last message requests an acknowledgement.
    if let Some(flags) = draft.0.get_mut(last + 6..last + 8) {
        let all = u16::from_ne_bytes([flags[0], flags[1]]) | CONFIRM;
        flags.copy_from_slice(&all.to_ne_bytes());
    }
    draft.message(BATCH_END, REQUEST, 0, SUBSYSTEM, |_| {});
    draft.0
}

impl Draft {
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u8,
        body: impl FnOnce(&mut Self),
    ) {
        // The netfilter header's version is 0.
        self.request(kind, flags, &[family, 0, 0, resource], body);
    }

    /// Appends an operation; returns the offset of its last message.
    fn order(&mut self, order: &NftOp) -> usize {
        let start = self.0.len();
        match order {
            // Without a rule handle the message deletes all rules of the chain.
            NftOp::Flush(chain) => {
                self.message(DELETE_RULE, REQUEST, INET, 0, |draft| draft.rule_of(chain));
            }
            NftOp::Jump { from, to } => {
                self.message(NEW_RULE, REQUEST | CREATE | APPEND, INET, 0, |draft| {
                    draft.rule_of(from);
                    draft.nested(4, |draft| draft.nested(1, |draft| draft.immediate(to)));
                });
            }
            NftOp::Delete(chain) => self.message(DELETE_CHAIN, REQUEST, INET, 0, |draft| {
                draft.text(1, NAME);
                draft.text(3, chain);
            }),
            NftOp::DeleteElements { map, keys } => {
                let elements: Vec<_> = keys.iter().map(|key| (key, None)).collect();
                return self.elements(DELETE_ELEMENT, REQUEST, map, &elements);
            }
            NftOp::AddElements { map, jumps } => {
                let elements: Vec<_> =
                    jumps.iter().map(|(key, to)| (key, Some(to.as_str()))).collect();
                return self.elements(NEW_ELEMENT, REQUEST | CREATE, map, &elements);
            }
        }
        start
    }

    fn rule_of(&mut self, chain: &str) {
        self.text(1, NAME);
        self.text(2, chain);
    }

    /// Appends the expression that sets the verdict register.
    fn immediate(&mut self, to: &str) {
        self.text(1, "immediate");
        self.nested(2, |draft| {
            draft.value(1, &0_u32.to_be_bytes());
            draft.nested(2, |draft| draft.verdict(to));
        });
    }

    fn verdict(&mut self, to: &str) {
        self.nested(2, |draft| {
            draft.value(1, &JUMP.to_be_bytes());
            draft.text(2, to);
        });
    }

    /// Returns the offset of the last message.
    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        map: &str,
        elements: &[(&Key, Option<&str>)],
    ) -> usize {
        let mut start = self.0.len();
        for part in elements.chunks(ELEMENTS_MOST) {
            start = self.0.len();
            self.message(kind, flags, INET, 0, |draft| {
                draft.text(1, NAME);
                draft.text(2, map);
                draft.nested(3, |draft| {
                    part.iter().for_each(|(key, to)| draft.element(key, *to));
                });
            });
        }
        start
    }

    fn element(&mut self, key: &Key, to: Option<&str>) {
        self.nested(1, |draft| {
            draft.nested(1, |draft| {
                draft.attribute(1, |draft| match key {
                    Key::Address(IpAddr::V4(address)) => draft.bytes(&address.octets()),
                    Key::Address(IpAddr::V6(address)) => draft.bytes(&address.octets()),
                    Key::Interface(name) => {
                        let mut padded = [0; INTERFACE];
                        padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
                        draft.bytes(&padded);
                    }
                });
            });
            if let Some(to) = to {
                draft.nested(2, |draft| draft.verdict(to));
            }
        });
    }
}

/// The kernel's response to a batch, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Answer {
    confirmed: bool,
    error: Option<i32>,
}

impl Answer {
    /// Decodes one datagram.
    pub(super) fn read(&mut self, mut datagram: &[u8]) {
        while let Some((length, kind)) = head(datagram) {
            match (kind, code(datagram)) {
                (ERROR, Some(0)) => self.confirmed = true,
                (ERROR, Some(code)) => self.error = self.error.or(Some(code.saturating_neg())),
                _ => {}
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    /// Whether the whole transaction was applied.
    pub(super) fn outcome(&self) -> io::Result<()> {
        match (self.error, self.confirmed) {
            (Some(code), _) => Err(io::Error::from_raw_os_error(code)),
            (None, true) => Ok(()),
            (None, false) => Err(io::Error::other("the kernel does not confirm the transaction")),
        }
    }
}

/// Decodes the generation from the kernel's response.
pub(super) fn generation(answer: &[u8]) -> Option<KernelGeneration> {
    let (_, kind) = head(answer)?;
    if kind != NEW_GENERATION {
        return None;
    }
    let number = value(answer.get(HEADERS..)?, GENERATION_ID)?;
    Some(KernelGeneration::new(u32::from_be_bytes(number.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::{HEADER, NESTED};

    #[test]
    fn the_kernels_number_is_read() {
        let mut answer = vec![0; HEADERS];
        answer[..4].copy_from_slice(&36_u32.to_ne_bytes());
        answer[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        answer.extend([6_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat());
        answer.extend(*b"x\0\0\0");
        answer.extend([8_u16.to_ne_bytes(), GENERATION_ID.to_ne_bytes()].concat());
        answer.extend(77_u32.to_be_bytes());
        assert_eq!(generation(&answer), Some(KernelGeneration::new(77)));
        for length in 0..answer.len() {
            assert_eq!(generation(&answer[..length]), None, "cut at {length}");
        }
    }

    fn answer(codes: &[i32]) -> Answer {
        let mut answer = Answer::default();
        for code in codes {
            let mut datagram = vec![0; HEADERS];
            datagram[..4].copy_from_slice(&20_u32.to_ne_bytes());
            datagram[4..6].copy_from_slice(&ERROR.to_ne_bytes());
            datagram[HEADER..].copy_from_slice(&code.to_ne_bytes());
            answer.read(&datagram);
            answer.read(&datagram[..HEADER]);
        }
        answer
    }

    #[test]
    fn only_an_acknowledged_batch_is_applied() {
        answer(&[0]).outcome().unwrap();
        assert!(answer(&[]).outcome().is_err());
        for codes in [&[-16, 0][..], &[0, -16], &[-16]] {
            assert_eq!(answer(codes).outcome().unwrap_err().raw_os_error(), Some(16));
        }
    }

    /// Each message starts where the previous one ends, and all attributes fit into it;
    /// the last one before the end requests an acknowledgement.
    #[test]
    fn a_batch_is_well_formed() {
        let address = |n: u32| Key::from(IpAddr::from((0x0aff_0000 + n).to_be_bytes()));
        let orders = [
            NftOp::Flush("policy-a".to_owned()),
            NftOp::Jump { from: "policy-a".to_owned(), to: "rules-a".to_owned() },
            NftOp::DeleteElements { map: "policies".to_owned(), keys: vec![address(1)] },
            NftOp::AddElements {
                map: "policies".to_owned(),
                jumps: (2..602).map(|n| (address(n), "policy-a".to_owned())).collect(),
            },
            NftOp::Delete("rules-b".to_owned()),
        ];
        let batch = batch(&orders, KernelGeneration::new(7));
        let (mut rest, mut kinds, mut flags) = (batch.as_slice(), Vec::new(), Vec::new());
        while let Some((length, kind)) = head(rest) {
            kinds.push(kind);
            flags.push(u16::from_ne_bytes([rest[6], rest[7]]) & CONFIRM);
            well_formed(&rest[HEADERS..length]);
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        let elements = [NEW_ELEMENT; 3];
        let begin = [BATCH_BEGIN, DELETE_RULE, NEW_RULE, DELETE_ELEMENT];
        assert_eq!(kinds, [&begin[..], &elements, &[DELETE_CHAIN, BATCH_END]].concat());
        assert_eq!(flags, [0, 0, 0, 0, 0, 0, 0, CONFIRM, 0]);
    }

    fn well_formed(mut attributes: &[u8]) {
        while !attributes.is_empty() {
            let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
            let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
            assert!(length > 4, "{attributes:?}");
            if kind & NESTED != 0 {
                well_formed(&attributes[4..length]);
            }
            attributes = &attributes[length.next_multiple_of(4)..];
        }
    }
}
