//! JSON text of a group in the original's response
//! (docs/compatibility/policy-server-internal.md#routes), byte for byte as Go's encoder writes it.
//!
//! `rules` is a string that contains JSON. Its readers unquote it with Go's
//! `strconv.Unquote`, which supports fewer escapes than JSON: the inner text has every
//! control character escaped already, so that the outer string needs only `\"` and
//! `\\`, which both support.

use std::io;

use proto::policy_v1;
use serde::Serialize;
use serde_json::{
    Serializer,
    ser::{CharEscape, Formatter},
};

/// One rule, with all keys in the original's order.
#[derive(Serialize)]
struct Rule<'a> {
    protocol: &'a str,
    destination: &'a str,
    ports: &'a str,
    #[serde(rename = "type")]
    icmp_type: i32,
    #[serde(rename = "code")]
    icmp_code: i32,
    description: &'a str,
    log: bool,
}

/// One group, with all keys in the original's order.
#[derive(Serialize)]
struct Group<'a> {
    guid: &'a str,
    name: &'a str,
    rules: &'a str,
    staging_default: bool,
    running_default: bool,
    staging_space_guids: &'a [String],
    running_space_guids: &'a [String],
}

/// The JSON text of a group.
#[must_use]
pub fn to_text(group: &policy_v1::SecurityGroup) -> String {
    let policy_v1::SecurityGroup {
        guid,
        name,
        rules,
        running_default,
        staging_default,
        running_space_guids,
        staging_space_guids,
    } = group;
    let rules: Vec<Rule<'_>> = rules.iter().map(Into::into).collect();
    encode(&Group {
        guid,
        name,
        rules: &encode(&rules),
        staging_default: *staging_default,
        running_default: *running_default,
        staging_space_guids,
        running_space_guids,
    })
}

impl<'a> From<&'a policy_v1::Rule> for Rule<'a> {
    fn from(rule: &'a policy_v1::Rule) -> Self {
        let policy_v1::Rule { protocol, destination, ports, r#type, code, description, log } = rule;
        Self {
            protocol,
            destination,
            ports,
            icmp_type: *r#type,
            icmp_code: *code,
            description,
            log: *log,
        }
    }
}

/// Encodes like Go's `json.Marshal`.
pub(crate) fn encode(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut text, Go))
        .expect("texts, numbers and booleans are JSON");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Go escapes characters that could end a script in HTML, and two JavaScript line ends.
struct Go;

impl Formatter for Go {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: io::Write + ?Sized,
    {
        let mut rest = fragment;
        // Both line ends begin with this byte, as few other characters do.
        let may_be_special = |byte: u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
        while rest.bytes().any(may_be_special) {
            let is_special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
            let Some((at, special)) = rest.char_indices().find(|(_, c)| is_special(*c)) else {
                break;
            };
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(special))?;
            rest = &rest[at + special.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()>
    where
        W: io::Write + ?Sized,
    {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::Backspace => writer.write_all(b"\\u0008"),
            CharEscape::FormFeed => writer.write_all(b"\\u000c"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_originals_keys_in_their_order() {
        let group = policy_v1::SecurityGroup {
            guid: "594afa3a".to_owned(),
            name: "asg-00000".to_owned(),
            rules: vec![policy_v1::Rule {
                protocol: "tcp".to_owned(),
                destination: "10.88.139.92".to_owned(),
                ports: "57506".to_owned(),
                description: "rule 0".to_owned(),
                log: true,
                ..policy_v1::Rule::default()
            }],
            running_default: true,
            staging_default: true,
            running_space_guids: vec!["s1".to_owned(), "s2".to_owned()],
            staging_space_guids: Vec::new(),
        };
        let expected = r#"{"guid":"594afa3a","name":"asg-00000","rules":"[{\"protocol\":\"tcp\",\"destination\":\"10.88.139.92\",\"ports\":\"57506\",\"type\":0,\"code\":0,\"description\":\"rule 0\",\"log\":true}]","staging_default":true,"running_default":true,"staging_space_guids":[],"running_space_guids":["s1","s2"]}"#;
        assert_eq!(to_text(&group), expected);
        let none = policy_v1::SecurityGroup { rules: Vec::new(), ..group };
        assert!(to_text(&none).contains(r#""rules":"[]""#));
    }

    #[test]
    fn special_characters_are_written_as_go_writes_them() {
        let text =
            "<a href='x'>&\u{2028}\u{2029}é\u{20ac}\u{1f600}\u{7f}\"\\/\n\r\t\u{8}\u{c}\u{1}";
        assert_eq!(
            encode(&text),
            "\"\\u003ca href='x'\\u003e\\u0026\\u2028\\u2029é\u{20ac}\u{1f600}\u{7f}\\\"\\\\/\\n\\r\\t\\u0008\\u000c\\u0001\""
        );
    }
}
