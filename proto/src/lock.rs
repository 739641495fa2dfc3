//! Conversions between Locket's messages and the model.

use prost::{Message as _, bytes::BufMut};

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
    fn from(lock: &Lock) -> Self {
        let mut resource = Self::default();
        fill(&mut resource, lock);
        resource
    }
}

/// Sets all fields, and reuses the allocated texts.
#[expect(deprecated, reason = "the original still fills `type` in answers")]
fn fill(resource: &mut models::Resource, lock: &Lock) {
    let Lock { key, owner, value, kind, ttl: _, token: _ } = lock;
    let models::Resource { key: to_key, owner: to_owner, value: to_value, r#type, type_code } =
        resource;
    key.as_str().clone_into(to_key);
    owner.as_str().clone_into(to_owner);
    value.as_str().clone_into(to_value);
    kind.as_str().clone_into(r#type);
    *type_code = kind.type_code();
}

/// Number of bytes that [`put_fetch_all`] writes.
pub fn fetch_all_len<'a>(locks: impl Iterator<Item = &'a Lock>) -> usize {
    let mut len = 0;
    for_each(locks, |one| len += one.encoded_len());
    len
}

/// Encodes a `FetchAllResponse` with these locks, without a message for all of them.
pub fn put_fetch_all<'a>(locks: impl Iterator<Item = &'a Lock>, buffer: &mut impl BufMut) {
    for_each(locks, |one| one.encode(buffer).expect("the buffer grows"));
}

/// Visits a response for each lock, all in the same allocations. The encodings of the single
/// responses concatenate to the encoding of one response with all locks.
fn for_each<'a>(
    locks: impl Iterator<Item = &'a Lock>,
    mut visit: impl FnMut(&models::FetchAllResponse),
) {
    let mut one = models::FetchAllResponse { resources: vec![models::Resource::default()] };
    for lock in locks {
        fill(&mut one.resources[0], lock);
        visit(&one);
    }
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
        /// Concatenated responses are one response.
        #[test]
        fn locks_encoded_one_by_one_are_one_response(
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
