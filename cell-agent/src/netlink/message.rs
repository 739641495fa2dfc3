//! Netlink messages (`linux/netlink.h`): a builder, and readers for the kernel's responses. Pure.

use std::{io, iter};

/// `NLMSG_ERROR`, which is also the acknowledgement, and `NLMSG_DONE`.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`.
pub(crate) const REQUEST: u16 = 1;
pub(crate) const CONFIRM: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
/// `NLA_F_NESTED`.
pub(crate) const NESTED: u16 = 0x8000;
/// Lengths of the netlink header and the netfilter header after it.
pub(crate) const HEADER: usize = 16;
pub(crate) const HEADERS: usize = HEADER + 4;

/// Netlink message builder.
#[derive(Debug, Default)]
pub(crate) struct Draft(pub(crate) Vec<u8>);

impl Draft {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends a message; `head` is the header of its family.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        head: &[u8],
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.0.len();
        self.bytes(&[0; 4]);
        self.bytes(&kind.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        // The kernel fills in sequence and sender.
        self.bytes(&[0; 8]);
        self.bytes(head);
        body(self);
        let length = u32::try_from(self.0.len() - start).expect("a few kilobytes");
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.0.len() - start).expect("lists are cut to fit");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(NESTED | kind, body);
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |draft| {
            draft.bytes(text.as_bytes());
            draft.bytes(&[0]);
        });
    }

    /// Appends an attribute with these bytes.
    pub(crate) fn value(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |draft| draft.bytes(value));
    }
}

/// The error of a negative code.
pub(crate) fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Length and type of the first message.
pub(crate) fn head(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    Some((usize::try_from(length).ok().filter(|length| *length >= HEADER)?, kind))
}

/// Type and bytes of each whole message of a datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let (length, kind) = head(datagram)?;
        let message = datagram.get(..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// The code of an error, of an acknowledgement, or of the end of a dump.
pub(crate) fn code(message: &[u8]) -> Option<i32> {
    let code = message.get(HEADER..HEADER + 4)?;
    Some(i32::from_ne_bytes(code.try_into().ok()?))
}

/// Finds an attribute's value.
pub(crate) fn value(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(attributes[..2].try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes[2..4].try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind & !NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
