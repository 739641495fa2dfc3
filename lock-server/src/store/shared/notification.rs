//! Notifications between instances on PostgreSQL's channel.
//!
//! A payload is a list of lines `INSTANCE WHAT TOKEN KEY`. A lost notification only
//! delays: the next pass over the table finds the change.

use std::fmt;

use model::lock::{FencingToken, LockKey};

use super::view::End;

/// Name of the channel.
pub(super) const CHANNEL: &str = "portcullis_locks";
/// Length limit of a payload; PostgreSQL's limit is 8,000 bytes.
const MAX_PAYLOAD: usize = 7_000;

/// A changed lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notification {
    pub(super) key: LockKey,
    pub(super) token: FencingToken,
    /// How the lock ended; `None` when it has a new owner, value or kind.
    pub(super) end: Option<End>,
}

impl fmt::Display for Notification {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, token, end } = self;
        let what = match end {
            None => "changed",
            Some(End::Released) => "released",
            Some(End::Expired) => "expired",
        };
        let key = key.as_str().replace('\\', "\\\\").replace('\n', "\\n");
        write!(formatter, "{what} {} {key}", token.0)
    }
}

fn unescape(text: &str) -> String {
    let mut key = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => key.push('\n'),
                Some(other) => key.push(other),
                None => {}
            },
            other => key.push(other),
        }
    }
    key
}

fn parse_line(line: &str) -> Option<(&str, Notification)> {
    let mut parts = line.splitn(4, ' ');
    let (from, what, token, key) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let end = match what {
        "changed" => None,
        "released" => Some(End::Released),
        "expired" => Some(End::Expired),
        _ => return None,
    };
    let token = FencingToken(token.parse().ok()?);
    let key = LockKey::parse(&unescape(key)).ok()?;
    Some((from, Notification { key, token, end }))
}

/// Notifications of instances other than `instance`. Skips unknown lines: another
/// release sent them.
pub(super) fn parse(payload: &str, instance: &str) -> Vec<Notification> {
    payload
        .split('\n')
        .filter_map(parse_line)
        .filter(|(from, _)| *from != instance)
        .map(|(_, notice)| notice)
        .collect()
}

/// Packs the notifications into as few payloads as possible.
pub(super) fn payloads(instance: &str, notices: impl Iterator<Item = Notification>) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for notice in notices {
        let line = format!("{instance} {notice}");
        match payloads.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= MAX_PAYLOAD => {
                last.push('\n');
                last.push_str(&line);
            }
            Some(_) | None => payloads.push(line),
        }
    }
    payloads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notice() -> impl Strategy<Value = Notification> {
        let end = prop_oneof![Just(None), Just(Some(End::Released)), Just(Some(End::Expired))];
        ("(?s).{0,255}", any::<u64>(), end).prop_map(|(key, token, end)| Notification {
            key: LockKey::parse(&key).unwrap(),
            token: FencingToken(token),
            end,
        })
    }

    proptest! {
        #[test]
        fn what_is_told_is_heard(notices in prop::collection::vec(notice(), 0..40)) {
            let payloads = payloads("me", notices.clone().into_iter());
            prop_assert!(payloads.iter().all(|payload| payload.len() < 8_000));
            let heard: Vec<_> =
                payloads.iter().flat_map(|payload| parse(payload, "other")).collect();
            prop_assert_eq!(heard, notices);
            prop_assert!(payloads.iter().all(|payload| parse(payload, "me").is_empty()));
        }

        #[test]
        fn anything_may_be_told(payload in "(?s).{0,300}") {
            let _no_panic = parse(&payload, "me");
        }
    }
}
