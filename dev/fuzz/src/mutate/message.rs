//! Changes of protobuf messages. Without the schema: a field with bytes that can be read as a
//! message is changed as one, or as bytes.

use fastrand::Rng;

/// Depth to which bytes are read as messages.
const DEPTH: usize = 6;

/// A field as it is encoded: its tag with the wire type, and its value.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Number(u64, u64),
    Fixed(u64, Vec<u8>),
    Bytes(u64, Vec<u8>),
    Message(u64, Vec<Field>),
}

/// Changes one field; returns false if the input is not a message.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], tokens: &[&str], rng: &mut Rng) -> bool {
    let Some(mut fields) = parse(input, DEPTH) else { return false };
    let others = parse(other, DEPTH).unwrap_or_default();
    change(&mut fields, &others, tokens, rng);
    *input = encode(&fields);
    true
}

/// The same for a byte and messages with gRPC's prefix. The messages may also be reordered.
pub(super) fn mutate_frames(
    input: &mut Vec<u8>,
    other: &[u8],
    tokens: &[&str],
    rng: &mut Rng,
) -> bool {
    let Some((method, mut frames)) = frames(input) else { return false };
    let others = frames_of(other);
    let at = rng.usize(..=frames.len());
    match rng.u8(..10) {
        0 if !others.is_empty() => frames.insert(at, others[rng.usize(..others.len())].clone()),
        1 if at < frames.len() => drop(frames.remove(at)),
        2 if at < frames.len() => frames.push(frames[at].clone()),
        3 if at < frames.len() => {
            let with = rng.usize(..frames.len());
            frames.swap(at, with);
        }
        _ if at < frames.len() => {
            let other = others.get(rng.usize(..=others.len()));
            let other = other.map(Vec::as_slice).unwrap_or_default();
            if !mutate(&mut frames[at], other, tokens, rng) {
                super::bytes::mutate(&mut frames[at], other, tokens, rng);
            }
        }
        _ => return false,
    }
    *input = vec![method];
    for frame in frames {
        input.push(0);
        input.extend(u32::try_from(frame.len()).expect("inputs are short").to_be_bytes());
        input.extend(frame);
    }
    true
}

fn frames_of(input: &[u8]) -> Vec<Vec<u8>> {
    frames(input).map(|(_, frames)| frames).unwrap_or_default()
}

fn frames(input: &[u8]) -> Option<(u8, Vec<Vec<u8>>)> {
    let (method, mut rest) = input.split_first()?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (head, body) = rest.split_at_checked(5)?;
        let length = u32::from_be_bytes(head[1..].try_into().ok()?);
        let (frame, after) = body.split_at_checked(usize::try_from(length).ok()?)?;
        frames.push(frame.to_vec());
        rest = after;
    }
    Some((*method, frames))
}

fn change(fields: &mut Vec<Field>, others: &[Field], tokens: &[&str], rng: &mut Rng) {
    let at = rng.usize(..=fields.len());
    match rng.u8(..12) {
        0 if !others.is_empty() => fields.insert(at, others[rng.usize(..others.len())].clone()),
        1 if at < fields.len() => drop(fields.remove(at)),
        2 if at < fields.len() => fields.push(fields[at].clone()),
        3 => {
            let tag = rng.u64(1..20);
            let field = match rng.u8(..4) {
                0 => Field::Bytes(tag << 3 | 2, super::word(tokens, rng).into_bytes()),
                1 => Field::Message(tag << 3 | 2, Vec::new()),
                2 => Field::Fixed(tag << 3 | 1, vec![rng.u8(..); 8]),
                _ => Field::Number(tag << 3, number(rng)),
            };
            fields.insert(at, field);
        }
        _ if at < fields.len() => change_field(&mut fields[at], others, tokens, rng),
        _ => {}
    }
}

fn change_field(field: &mut Field, others: &[Field], tokens: &[&str], rng: &mut Rng) {
    match field {
        Field::Number(_, value) => *value = number(rng),
        Field::Fixed(_, bytes) => bytes.iter_mut().for_each(|byte| *byte = rng.u8(..)),
        Field::Bytes(tag, bytes) => match rng.u8(..4) {
            0 => super::bytes::mutate(bytes, b"", tokens, rng),
            1 => *field = Field::Message(*tag, others.to_vec()),
            _ => *bytes = super::word(tokens, rng).into_bytes(),
        },
        Field::Message(tag, inner) => match rng.u8(..8) {
            0 => *field = Field::Bytes(*tag, super::word(tokens, rng).into_bytes()),
            _ => {
                // Messages of the same kind are often below a field with the same tag.
                let same = others.iter().find_map(|other| match other {
                    Field::Message(other, fields) if other == tag => Some(fields.as_slice()),
                    _ => None,
                });
                change(inner, same.unwrap_or(others), tokens, rng);
            }
        },
    }
}

fn number(rng: &mut Rng) -> u64 {
    const ODD: [u64; 10] =
        [0, 1, 2, 127, 128, 65_536, u32::MAX as u64, 1 << 32, i64::MAX as u64, u64::MAX];
    match rng.u8(..3) {
        0 => ODD[rng.usize(..ODD.len())],
        1 => rng.u64(..40),
        _ => rng.u64(..),
    }
}

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        if tag >> 3 == 0 {
            return None;
        }
        let mut take = |length: usize| {
            let (taken, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            Some(taken.to_vec())
        };
        fields.push(match tag & 7 {
            0 => Field::Number(tag, varint(&mut bytes)?),
            1 => Field::Fixed(tag, take(8)?),
            5 => Field::Fixed(tag, take(4)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                match depth.checked_sub(1).and_then(|depth| parse(taken, depth)) {
                    Some(inner) => Field::Message(tag, inner),
                    None => Field::Bytes(tag, taken.to_vec()),
                }
            }
            _ => return None,
        });
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Number(tag, value) => {
                put(&mut bytes, *tag);
                put(&mut bytes, *value);
            }
            Field::Fixed(tag, value) => {
                put(&mut bytes, *tag);
                bytes.extend(value);
            }
            Field::Bytes(tag, value) => put_bytes(&mut bytes, *tag, value),
            Field::Message(tag, inner) => put_bytes(&mut bytes, *tag, &encode(inner)),
        }
    }
    bytes
}

fn put_bytes(bytes: &mut Vec<u8>, tag: u64, value: &[u8]) {
    put(bytes, tag);
    put(bytes, value.len() as u64);
    bytes.extend(value);
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_encoded_as_it_was_read() {
        // 1: 300, 2: { 1: "é\xff" }, 3: fixed.
        let bytes = b"\x08\xac\x02\x12\x05\x0a\x03\xc3\xa9\xff\x1d\x01\x02\x03\x04";
        let fields = parse(bytes, DEPTH).unwrap();
        let inner = vec![Field::Bytes(10, b"\xc3\xa9\xff".to_vec())];
        let fixed = Field::Fixed(29, vec![1, 2, 3, 4]);
        assert_eq!(fields, [Field::Number(8, 300), Field::Message(18, inner), fixed]);
        assert_eq!(encode(&fields), bytes);
        assert_eq!(parse(&bytes[..4], DEPTH), None);
    }

    #[test]
    fn frames_stay_frames() {
        let input = b"\x03\0\0\0\0\x02\x08\x01\0\0\0\0\0".to_vec();
        let mut rng = Rng::with_seed(7);
        for _ in 0..1_000 {
            let mut changed = input.clone();
            mutate_frames(&mut changed, &input, &["a"], &mut rng);
            let (method, _) = frames(&changed).unwrap();
            assert_eq!(method, 3);
        }
    }
}
