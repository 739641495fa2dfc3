//! Changes of JSON values.

use fastrand::Rng;
use serde_json::{Value, json};

/// Depth of lists that [`odd`] makes.
const DEEP: usize = 100;

/// Changes one value of a JSON text; returns false if the input is not JSON.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], tokens: &[&str], rng: &mut Rng) -> bool {
    let Ok(mut value) = serde_json::from_slice::<Value>(input) else { return false };
    let part = match serde_json::from_slice(other) {
        Ok(other) if rng.bool() => part_of(other, rng),
        _ => odd(tokens, rng),
    };
    change(&mut value, part, tokens, rng);
    *input = value.to_string().into_bytes();
    true
}

/// A random part of a value.
fn part_of(mut value: Value, rng: &mut Rng) -> Value {
    while rng.u8(..4) != 0 {
        let mut parts: Vec<Value> = match value {
            Value::Array(parts) => parts,
            Value::Object(parts) => parts.into_iter().map(|(_, part)| part).collect(),
            other => return other,
        };
        if parts.is_empty() {
            return Value::Null;
        }
        value = parts.swap_remove(rng.usize(..parts.len()));
    }
    value
}

/// Goes down to a random place, and puts `part` there.
fn change(value: &mut Value, part: Value, tokens: &[&str], rng: &mut Rng) {
    match value {
        Value::Array(parts) if !parts.is_empty() && rng.u8(..6) != 0 => {
            let at = rng.usize(..parts.len());
            match rng.u8(..8) {
                0 => drop(parts.remove(at)),
                1 => parts.insert(at, part),
                2 => parts.push(parts[at].clone()),
                _ => change(&mut parts[at], part, tokens, rng),
            }
        }
        Value::Object(parts) if !parts.is_empty() && rng.u8(..6) != 0 => {
            let keys: Vec<String> = parts.keys().cloned().collect();
            let key = &keys[rng.usize(..keys.len())];
            match rng.u8(..8) {
                0 => drop(parts.remove(key)),
                1 => drop(parts.insert(super::word(tokens, rng), part)),
                2 => {
                    let moved = parts.remove(key).unwrap_or_default();
                    parts.insert(super::word(tokens, rng), moved);
                }
                _ => parts.get_mut(key).into_iter().for_each(|value| {
                    change(value, part.clone(), tokens, rng);
                }),
            }
        }
        // JSON in a text.
        Value::String(text) if text.starts_with(['{', '[']) && rng.u8(..4) != 0 => {
            let Ok(mut inner) = serde_json::from_str(text) else { return };
            change(&mut inner, part, tokens, rng);
            *text = inner.to_string();
        }
        Value::String(text) if rng.u8(..4) != 0 => {
            let mut bytes = std::mem::take(text).into_bytes();
            super::bytes::mutate(&mut bytes, b"", tokens, rng);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        value => *value = part,
    }
}

fn odd(tokens: &[&str], rng: &mut Rng) -> Value {
    match rng.u8(..12) {
        0 => Value::Null,
        1 => json!(rng.bool()),
        2 => json!(rng.i64(..)),
        3 => json!(u64::MAX),
        4 => json!(rng.i64(-2..70_000)),
        5 => json!(1e300 * rng.f64()),
        6 => json!({}),
        7 => json!([]),
        8 => (0..rng.usize(..DEEP)).fold(Value::Null, |inner, _| json!([inner])),
        _ => json!(super::word(tokens, rng)),
    }
}
