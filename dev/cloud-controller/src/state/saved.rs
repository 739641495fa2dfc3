//! The state in its file format, so that it survives a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::users::User;
use super::{Group, Job, Organization, Role, Space, State};

/// The content of the state file, without the signing key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    next_number: u64,
    last_update: i64,
    quota_guid: String,
    groups: BTreeMap<u64, Group>,
    organizations: BTreeMap<u64, Organization>,
    spaces: BTreeMap<u64, Space>,
    roles: BTreeMap<u64, Role>,
    jobs: BTreeMap<u64, Job>,
    users: BTreeMap<u64, User>,
}

impl From<&State> for Saved {
    fn from(state: &State) -> Self {
        let State {
            next_number,
            groups,
            organizations,
            spaces,
            roles,
            jobs,
            users,
            last_update,
            quota_guid,
        } = state;
        Self {
            next_number: *next_number,
            last_update: *last_update,
            quota_guid: quota_guid.clone(),
            groups: owned(groups),
            organizations: owned(organizations),
            spaces: owned(spaces),
            roles: owned(roles),
            jobs: owned(jobs),
            users: owned(users),
        }
    }
}

impl From<Saved> for State {
    fn from(saved: Saved) -> Self {
        let Saved {
            next_number,
            last_update,
            quota_guid,
            groups,
            organizations,
            spaces,
            roles,
            jobs,
            users,
        } = saved;
        Self {
            next_number,
            groups: shared(groups),
            organizations: shared(organizations),
            spaces: shared(spaces),
            roles: shared(roles),
            jobs: shared(jobs),
            users: shared(users),
            last_update,
            quota_guid,
        }
    }
}

fn owned<T: Clone>(entries: &BTreeMap<u64, Arc<T>>) -> BTreeMap<u64, T> {
    entries.iter().map(|(number, entry)| (*number, T::clone(entry))).collect()
}

fn shared<T>(entries: BTreeMap<u64, T>) -> BTreeMap<u64, Arc<T>> {
    entries.into_iter().map(|(number, entry)| (number, Arc::new(entry))).collect()
}

/// Times in whole seconds, as in the state.
pub(super) mod seconds {
    use jiff::Timestamp;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.as_second().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        Timestamp::from_second(i64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
