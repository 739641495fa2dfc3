//! HTTP/2 frames (RFC 9113) and header blocks (RFC 7541) as bytes, for connections that break
//! the protocol. Pure.

/// Begins a connection.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
pub(crate) const HEAD: usize = 9;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;
/// Of DATA and HEADERS.
pub(crate) const END_STREAM: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub(crate) const END_HEADERS: u8 = 4;

/// Setting: the initial window of each stream.
const INITIAL_WINDOW: u16 = 4;

/// Error code CANCEL.
pub(crate) const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// The head of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, _stream @ ..] = bytes;
        Self { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A frame.
///
/// # Panics
/// The payload is longer than a frame can be.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are short");
    let [_, a, b, c] = length.to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The preface and the client's settings.
pub(crate) fn opening(initial_window: Option<u32>) -> Vec<u8> {
    let mut settings = Vec::new();
    if let Some(window) = initial_window {
        settings.extend(INITIAL_WINDOW.to_be_bytes());
        settings.extend(window.to_be_bytes());
    }
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// A header field that is not added to the table.
pub(crate) fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    text(&mut bytes, name.as_bytes());
    text(&mut bytes, value);
    bytes
}

/// A header field that is added to the table, where its index is 62.
pub(crate) fn indexed_literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = literal(name, value);
    bytes[0] = 0x40;
    bytes
}

/// The newest field of the table: one byte.
pub(crate) const NEWEST: u8 = 0x80 | 62;

/// A string without Huffman code.
fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    const LARGEST: usize = 127;
    if text.len() < LARGEST {
        bytes.push(u8::try_from(text.len()).expect("below 127"));
    } else {
        bytes.push(127);
        let mut rest = text.len() - LARGEST;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).expect("below 128") | 0x80);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).expect("below 128"));
    }
    bytes.extend(text);
}

/// The fields of a gRPC call, or of a GET if there is no gRPC on this door.
pub(crate) fn request(path: &str, is_grpc: bool) -> Vec<u8> {
    let method: &[u8] = if is_grpc { b"POST" } else { b"GET" };
    let mut block = [
        literal(":method", method),
        literal(":scheme", b"https"),
        literal(":path", path.as_bytes()),
        literal(":authority", b"localhost"),
    ]
    .concat();
    if is_grpc {
        block.extend(literal("content-type", b"application/grpc"));
        block.extend(literal("te", b"trailers"));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_form_of_the_standard() {
        let bytes = frame(PING, ACK, 0, &[7; 8]);
        assert_eq!(bytes[..9], [0, 0, 8, 6, 1, 0, 0, 0, 0]);
        let head = Head::parse(bytes[..9].try_into().unwrap());
        assert_eq!(head, Head { length: 8, kind: PING, flags: ACK });
        assert!(head.has(ACK) && !head.has(END_HEADERS));
        assert_eq!(opening(Some(0))[24..], [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn long_texts_have_a_length_of_several_bytes() {
        assert_eq!(literal("a", b"b"), [0, 1, b'a', 1, b'b']);
        // RFC 7541, appendix C.1.2: 1337 - 31 has the same bytes with another prefix.
        let long = literal("a", &[b'x'; 127 + 1306]);
        assert_eq!(long[3..6], [127, 154, 10]);
        assert_eq!(indexed_literal("a", b"")[0], 0x40);
    }
}
