//! Changes of lines and words.

use fastrand::Rng;

/// Changes one line or word; returns false if the input has none.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], tokens: &[&str], rng: &mut Rng) -> bool {
    let lines = parts(input, b"\n");
    match rng.u8(..8) {
        0 if lines.len() > 1 => {
            drop(input.drain(lines[rng.usize(..lines.len())].clone()));
        }
        1 => {
            let from = parts(other, b"\n");
            let line = other[from[rng.usize(..from.len())].clone()].to_vec();
            let at = lines[rng.usize(..lines.len())].start;
            input.splice(at..at, line);
        }
        2 => {
            let line = input[lines[rng.usize(..lines.len())].clone()].to_vec();
            let at = lines[rng.usize(..lines.len())].start;
            input.splice(at..at, line);
        }
        _ => {
            let words = parts(input, b" \t\n,;:=/&?\"{}[]()");
            let word = words[rng.usize(..words.len())].clone();
            let end = if rng.bool() && word.end > word.start { word.end - 1 } else { word.end };
            input.splice(word.start..end, super::word(tokens, rng).into_bytes());
        }
    }
    true
}

/// Ranges of parts, each with the separator that ends it; at least one.
fn parts(text: &[u8], separators: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    text.split_inclusive(|byte| separators.contains(byte))
        .map(|part| {
            let range = start..start + part.len();
            start = range.end;
            range
        })
        .chain(text.is_empty().then_some(0..0))
        .collect()
}
