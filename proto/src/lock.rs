//! Conversions between Locket's messages and the model.

use prost::bytes::BufMut;

use model::lock::{self, Claim, Lock, LockKey, LockKind, LockValue, Owner, Release, Selector, Ttl};

use crate::{Error, lock_v1, models};

impl TryFrom<models::TypeCode> for LockKind {
    type Error = lock::Error;

    fn try_from(code: models::TypeCode) -> Result<Self, lock::Error> {
        match code {
            models::TypeCode::Lock => Ok(Self::Lock),
            models::TypeCode::Presence => Ok(Self::Presence),
            models::TypeCode::Unknown => Err(lock::Error::InvalidType),
        }
    }
}

/// A code outside the enum is as invalid as `UNKNOWN`.
fn kind(code: i32) -> Result<LockKind, lock::Error> {
    models::TypeCode::try_from(code).map_err(|_| lock::Error::InvalidType)?.try_into()
}

impl TryFrom<&models::LockRequest> for Claim {
    type Error = Error;

    /// Checks in the original's order: type, ttl, owner; `type` is ignored.
    fn try_from(request: &models::LockRequest) -> Result<Self, Error> {
        let models::LockRequest { resource, ttl_in_seconds } = request;
        let resource = resource.as_ref().ok_or(Error::Missing("resource"))?;
        let kind = kind(resource.type_code)?;
        let ttl = Ttl::try_from_seconds(*ttl_in_seconds)?;
        let owner = Owner::parse(&resource.owner)?;
        let key = LockKey::parse(&resource.key)?;
        let value = LockValue::parse(&resource.value)?;
        Ok(Self { key, owner, value, kind, ttl })
    }
}

impl TryFrom<models::ReleaseRequest> for Release {
    type Error = Error;

    fn try_from(request: models::ReleaseRequest) -> Result<Self, Error> {
        let resource = request.resource.ok_or(Error::Missing("resource"))?;
        Ok(Self { key: resource.key, owner: resource.owner })
    }
}

impl TryFrom<models::FetchAllRequest> for LockKind {
    type Error = Error;

    fn try_from(request: models::FetchAllRequest) -> Result<Self, Error> {
        Ok(kind(request.type_code)?)
    }
}

impl From<&Lock> for models::Resource {
    #[expect(deprecated, reason = "the original still fills `type` in answers")]
    fn from(lock: &Lock) -> Self {
        let Lock { key, owner, value, kind, ttl: _, token: _ } = lock;
        Self {
            key: key.as_str().to_owned(),
            owner: owner.as_str().to_owned(),
            value: value.as_str().to_owned(),
            r#type: kind.as_str().to_owned(),
            type_code: kind.type_code(),
        }
    }
}

/// Number of bytes that [`put_fetch_all`] writes.
pub fn fetch_all_len<'a>(locks: impl Iterator<Item = &'a Lock>) -> usize {
    locks.map(|lock| field_len(resource_len(lock))).sum()
}

/// Encodes a `FetchAllResponse` with these locks directly from their texts, without intermediate
/// copies.
pub fn put_fetch_all<'a>(locks: impl Iterator<Item = &'a Lock>, buffer: &mut impl BufMut) {
    for lock in locks {
        buffer.put_u8(LENGTH_DELIMITED | 1 << 3);
        put_length(resource_len(lock), buffer);
        for (number, text) in texts(lock) {
            if !text.is_empty() {
                buffer.put_u8(LENGTH_DELIMITED | number << 3);
                put_length(text.len(), buffer);
                buffer.put_slice(text.as_bytes());
            }
        }
        let code = lock.kind.type_code();
        buffer.put_slice(&[TYPE_CODE << 3, u8::try_from(code).expect("1 or 2")]);
    }
}

const LENGTH_DELIMITED: u8 = 2;
/// Field number of `type_code`; its value takes one byte.
const TYPE_CODE: u8 = 5;

/// The texts of a `Resource` with their field numbers; empty ones are omitted.
fn texts(lock: &Lock) -> [(u8, &str); 4] {
    let Lock { key, owner, value, kind, ttl: _, token: _ } = lock;
    [(1, key.as_str()), (2, owner.as_str()), (3, value.as_str()), (4, kind.as_str())]
}

fn resource_len(lock: &Lock) -> usize {
    let texts = texts(lock).into_iter().filter(|(_, text)| !text.is_empty());
    texts.map(|(_, text)| field_len(text.len())).sum::<usize>() + 2
}

/// Length of a length-delimited field, including its tag and length.
fn field_len(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

fn put_length(len: usize, buffer: &mut impl BufMut) {
    prost::encode_length_delimiter(len, buffer).expect("the buffer grows");
}

impl TryFrom<lock_v1::WatchRequest> for Selector {
    type Error = Error;

    fn try_from(request: lock_v1::WatchRequest) -> Result<Self, Error> {
        use lock_v1::watch_request::Selector as Wire;
        match request.selector.ok_or(Error::Missing("selector"))? {
            Wire::Key(key) => Ok(Self::Key(LockKey::parse(&key)?)),
            Wire::TypeCode(code) => Ok(Self::Kind(kind(code)?)),
        }
    }
}

#[cfg(test)]
#[expect(deprecated, reason = "the deprecated `type` is part of the contract")]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn resource() -> models::Resource {
        models::Resource {
            key: "wire".to_owned(),
            owner: "o1".to_owned(),
            value: "val".to_owned(),
            r#type: String::new(),
            type_code: 1,
        }
    }

    /// Bytes recorded from the original, docs/compatibility/locket.md#wire.
    #[test]
    fn the_wire_is_the_originals() {
        let request = models::LockRequest { resource: Some(resource()), ttl_in_seconds: 30 };
        let recorded = b"\x0a\x11\x0a\x04wire\x12\x02o1\x1a\x03val\x28\x01\x10\x1e";
        assert_eq!(request.encode_to_vec(), recorded);

        let claim = Claim::try_from(&request).unwrap();
        let lock = Lock {
            key: claim.key,
            owner: claim.owner,
            value: claim.value,
            kind: claim.kind,
            ttl: claim.ttl,
            token: lock::FencingToken(7),
        };
        let answer = models::FetchResponse { resource: Some((&lock).into()) };
        let recorded = b"\x0a\x17\x0a\x04wire\x12\x02o1\x1a\x03val\x22\x04lock\x28\x01";
        assert_eq!(answer.encode_to_vec(), recorded);
    }

    /// Clients without the fencing token field decode an empty response.
    #[test]
    fn the_fencing_token_is_an_unknown_field_to_old_clients() {
        let bytes = models::LockResponse { fencing_token: 5 }.encode_to_vec();
        assert!(models::ReleaseResponse::decode(bytes.as_slice()).is_ok());
    }

    proptest! {
        /// The hand-written encoder and the generated code produce the same bytes.
        #[test]
        fn all_locks_are_written_as_their_message(
            fields in prop::collection::vec(("(?s).{0,200}", ".{1,9}", ".{0,300}", 1..3i32), 0..9),
        ) {
            let claim = |(key, owner, value, type_code)| {
                let resource = models::Resource { key, owner, value, type_code, ..resource() };
                let request = models::LockRequest { resource: Some(resource), ttl_in_seconds: 9 };
                Claim::try_from(&request).unwrap()
            };
            let lock = |claim: Claim| {
                let Claim { key, owner, value, kind, ttl } = claim;
                Lock { key, owner, value, kind, ttl, token: lock::FencingToken(1) }
            };
            let locks: Vec<_> = fields.into_iter().map(claim).map(lock).collect();
            let resources = locks.iter().map(models::Resource::from).collect();
            let expected = models::FetchAllResponse { resources }.encode_to_vec();
            let mut bytes = Vec::new();
            put_fetch_all(locks.iter(), &mut bytes);
            prop_assert_eq!(fetch_all_len(locks.iter()), bytes.len());
            prop_assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn checks_run_in_the_originals_order() {
        let refused = |type_code, ttl_in_seconds, owner: &str| {
            let resource = models::Resource {
                type_code,
                owner: owner.to_owned(),
                r#type: "lock".to_owned(),
                ..resource()
            };
            let request = models::LockRequest { resource: Some(resource), ttl_in_seconds };
            Claim::try_from(&request).unwrap_err().to_string()
        };
        assert_eq!(refused(0, 0, ""), "invalid-type");
        assert_eq!(refused(3, 0, ""), "invalid-type");
        assert_eq!(refused(1, 0, ""), "invalid-ttl");
        assert_eq!(refused(2, 1, ""), "invalid-owner");

        let nothing = models::LockRequest { resource: None, ttl_in_seconds: 0 };
        assert_eq!(Claim::try_from(&nothing), Err(Error::Missing("resource")));
    }

    #[test]
    fn a_watch_names_a_key_or_a_kind() {
        use lock_v1::watch_request::Selector as Wire;
        let read = |selector| Selector::try_from(lock_v1::WatchRequest { selector });
        assert_eq!(read(None), Err(Error::Missing("selector")));
        assert_eq!(read(Some(Wire::TypeCode(2))), Ok(Selector::Kind(LockKind::Presence)));
        assert!(read(Some(Wire::TypeCode(9))).is_err());
        assert!(matches!(read(Some(Wire::Key(String::new()))), Ok(Selector::Key(_))));
    }
}
