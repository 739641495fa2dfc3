//! Fuzz test of the saved groups: a file that is accepted is the same after it was written again.

use fuzz::{Fuzz, Language};

use super::*;

/// The content of a file: the frames of the input as messages with their lengths.
fn content(input: &[u8]) -> Vec<u8> {
    let (mut rest, mut content) = (input.get(1..).unwrap_or_default(), Vec::new());
    while let Some((head, body)) = rest.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let (message, after) = body.split_at((length as usize).min(body.len()));
        prost::encode_length_delimiter(message.len(), &mut content).unwrap();
        content.extend(message);
        rest = after;
    }
    content.extend(rest);
    content
}

#[test]
fn fuzz_saved_groups() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "saved_groups", Language::Grpc);
    let fuzz = fuzz.tokens(&["g1", "s1", "tcp", "10.0.0.0/8", "1-65535", "all", "icmp"]);
    fuzz.expects(&["ok", "error"]).run(|input| {
        let known = match decode(&content(input)) {
            Ok(known) => known,
            Err(error) => return format!("error: {error}"),
        };
        let back = decode(&encode(&known)).unwrap();
        assert_eq!((back.generation, back.stamp), (known.generation, known.stamp));
        assert_eq!((&back.spaces, &back.groups), (&known.spaces, &known.groups));
        format!("ok, {} groups", known.groups.len())
    });
}
