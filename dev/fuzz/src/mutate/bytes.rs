//! Changes of bytes without any form.

use fastrand::Rng;

/// Inserts, deletes, replaces or repeats bytes at one place.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], tokens: &[&str], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let end = at + rng.usize(..=(input.len() - at).min(64));
    match rng.u8(..8) {
        0 => input.insert(at, byte(rng)),
        1 if at < input.len() => drop(input.remove(at)),
        2 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
        3 if at < input.len() => input[at] = byte(rng),
        4 => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        5 => drop(input.drain(at..end)),
        6 => drop(input.splice(at..end, super::word(tokens, rng).into_bytes())),
        _ => {
            let start = rng.usize(..=other.len());
            let end = start + rng.usize(..=other.len() - start);
            input.splice(at..at, other[start..end].iter().copied());
        }
    }
}

/// Ends of ranges, and tags and lengths of protobuf, more often than other bytes.
fn byte(rng: &mut Rng) -> u8 {
    const ODD: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x0a, 0x12, 0x1a, 0x22, 0x28, 0x10];
    if rng.bool() { ODD[rng.usize(..ODD.len())] } else { rng.u8(..) }
}
