//! Random changes of inputs.

mod bytes;
mod json;
mod message;
mod text;

use fastrand::Rng;

/// Form of the inputs, for mutations that keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Any bytes.
    Bytes,
    /// Lines of words.
    Text,
    /// A JSON value.
    Json,
    /// A protobuf message.
    Message,
    /// A byte that selects the method, and messages with gRPC's five-byte prefix.
    Grpc,
}

/// Changes an input; `other` is another one, parts of which are inserted. Some mutations break the
/// form of the language.
pub(crate) fn mutate(
    language: Language,
    input: &mut Vec<u8>,
    other: &[u8],
    tokens: &[&str],
    rng: &mut Rng,
) {
    let is_formless = rng.u8(..5) == 0;
    for _ in 0..=rng.u8(..4) {
        let is_changed = !is_formless
            && match language {
                Language::Bytes => false,
                Language::Text => text::mutate(input, other, tokens, rng),
                Language::Json => json::mutate(input, other, tokens, rng),
                Language::Message => message::mutate(input, other, tokens, rng),
                Language::Grpc => message::mutate_frames(input, other, tokens, rng),
            };
        if !is_changed {
            bytes::mutate(input, other, tokens, rng);
        }
    }
}

/// A token, or a text that decoders of texts may not expect.
fn word(tokens: &[&str], rng: &mut Rng) -> String {
    const ODD: [&str; 22] = [
        "",
        " ",
        "0",
        "-1",
        "+7",
        "007",
        "65535",
        "65536",
        "4294967296",
        "18446744073709551616",
        "9223372036854775807",
        "-9223372036854775808",
        "1e400",
        "0.1",
        "\0",
        "\u{85}",
        "\u{202e}",
        "é",
        "/",
        "..",
        "%zz",
        "\"",
    ];
    match rng.u8(..8) {
        0 => "x".repeat(rng.usize(..600)),
        1 | 2 => ODD[rng.usize(..ODD.len())].to_owned(),
        3 => rng.i64(..).to_string(),
        _ if tokens.is_empty() => ODD[rng.usize(..ODD.len())].to_owned(),
        _ => tokens[rng.usize(..tokens.len())].to_owned(),
    }
}
