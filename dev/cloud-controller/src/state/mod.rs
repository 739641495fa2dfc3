//! The Cloud Controller's state, and every change of it.
//!
//! Pure: a change is a method that takes the state, the caller, the request and a
//! [`Moment`]. A refused change leaves the state and the stamp unchanged.
//!
//! The stamp (docs/compatibility/cloud-controller.md#last-update-stamp) rises with
//! every accepted change to a group: create, update (even without a difference),
//! delete, bind (even when bound already), unbind. The stamp is strictly monotonic: two
//! changes within one microsecond get two stamps, also when the clock went back.
//! Seeding and the deletion of spaces and organizations do not change the stamp, as in
//! the original.

pub mod access;
pub mod groups;
pub mod organizations;
pub mod saved;
mod seed;
pub mod users;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::json::Json;

/// Inputs of a change: the time, and GUIDs for new objects.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Now.
    pub now: Timestamp,
    /// A new GUID, for an object that the change creates.
    pub guid: String,
}

/// The whole state. Entries are numbered in creation order, which is the default order
/// of every listing.
#[derive(Debug, Clone, Default)]
pub struct State {
    next_number: u64,
    groups: BTreeMap<u64, Arc<Group>>,
    organizations: BTreeMap<u64, Arc<Organization>>,
    spaces: BTreeMap<u64, Arc<Space>>,
    roles: BTreeMap<u64, Arc<Role>>,
    jobs: BTreeMap<u64, Arc<Job>>,
    users: BTreeMap<u64, Arc<users::User>>,
    /// Microseconds since 1970; 0 before the first change.
    last_update: i64,
    quota_guid: String,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The GUID.
    pub guid: String,
    /// When it was created, in whole seconds.
    #[serde(with = "saved::seconds")]
    pub created_at: Timestamp,
    /// When name, rules or the global switches last changed.
    #[serde(with = "saved::seconds")]
    pub updated_at: Timestamp,
    /// Unique.
    pub name: String,
    /// The JSON array, exactly as sent.
    pub rules: Json,
    /// Applies to the running apps of all spaces.
    pub running: bool,
    /// Applies to the staging apps of all spaces.
    pub staging: bool,
    /// GUIDs of the spaces bound for running apps.
    pub running_spaces: Vec<String>,
    /// GUIDs of the spaces bound for staging apps.
    pub staging_spaces: Vec<String>,
}

/// The two kinds of app containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Running apps.
    Running,
    /// Staging apps.
    Staging,
}

impl Lifecycle {
    /// The name as in `running_spaces`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Staging => "staging",
        }
    }
}

impl Group {
    /// The spaces bound for one lifecycle.
    pub fn spaces(&self, lifecycle: Lifecycle) -> &[String] {
        match lifecycle {
            Lifecycle::Running => &self.running_spaces,
            Lifecycle::Staging => &self.staging_spaces,
        }
    }

    fn spaces_mut(&mut self, lifecycle: Lifecycle) -> &mut Vec<String> {
        match lifecycle {
            Lifecycle::Running => &mut self.running_spaces,
            Lifecycle::Staging => &mut self.staging_spaces,
        }
    }

    /// Whether the group applies to all spaces.
    pub fn is_global(&self, lifecycle: Lifecycle) -> bool {
        match lifecycle {
            Lifecycle::Running => self.running,
            Lifecycle::Staging => self.staging,
        }
    }
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Organization {
    /// The GUID.
    pub guid: String,
    /// When it was created.
    #[serde(with = "saved::seconds")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "saved::seconds")]
    pub updated_at: Timestamp,
    /// Unique.
    pub name: String,
    /// Members of a suspended organization cannot change anything.
    pub suspended: bool,
    /// Labels and annotations, if any were sent.
    pub metadata: Option<Json>,
}

/// A space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// The GUID.
    pub guid: String,
    /// When it was created.
    #[serde(with = "saved::seconds")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "saved::seconds")]
    pub updated_at: Timestamp,
    /// Unique within the organization.
    pub name: String,
    /// The GUID of its organization.
    pub organization: String,
    /// Labels and annotations, if any were sent.
    pub metadata: Option<Json>,
}

/// A role of a user in a space or an organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Role {
    /// The GUID.
    pub guid: String,
    /// When the role was granted.
    #[serde(with = "saved::seconds")]
    pub created_at: Timestamp,
    /// Such as `space_manager`.
    pub kind: String,
    /// The GUID of the user or client.
    pub user: String,
    /// The GUID of the organization, for organization roles.
    pub organization: Option<String>,
    /// The GUID of the space, for space roles.
    pub space: Option<String>,
}

/// A requested deletion. A job is complete before the response is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The GUID.
    pub guid: String,
    /// When the deletion was requested.
    #[serde(with = "saved::seconds")]
    pub created_at: Timestamp,
    /// Such as `security_group.delete`.
    pub operation: String,
}

impl State {
    /// An empty state with the two groups of a fresh deployment.
    pub fn fresh(now: Timestamp, mut guid: impl FnMut() -> String) -> Self {
        let mut state = Self { quota_guid: guid(), ..Self::default() };
        state.seed(now, guid);
        state
    }

    /// The stamp: microseconds since 1970, or 0 before the first change.
    pub fn last_update(&self) -> i64 {
        self.last_update
    }

    /// The GUID of the quota that all organizations share.
    pub fn quota_guid(&self) -> &str {
        &self.quota_guid
    }

    /// All groups, oldest first.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// All organizations, oldest first.
    pub fn organizations(&self) -> impl Iterator<Item = &Arc<Organization>> {
        self.organizations.values()
    }

    /// All spaces, oldest first.
    pub fn spaces(&self) -> impl Iterator<Item = &Arc<Space>> {
        self.spaces.values()
    }

    /// All roles, oldest first.
    pub fn roles(&self) -> impl Iterator<Item = &Arc<Role>> {
        self.roles.values()
    }

    /// A job by its GUID.
    pub fn job(&self, guid: &str) -> Option<&Arc<Job>> {
        self.jobs.values().find(|job| job.guid == guid)
    }

    fn touch(&mut self, now: Timestamp) {
        self.last_update = now.as_microsecond().max(self.last_update + 1);
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn record_job(&mut self, operation: &str, moment: &Moment) -> Arc<Job> {
        let job = Arc::new(Job {
            guid: moment.guid.clone(),
            created_at: whole_seconds(moment.now),
            operation: operation.to_owned(),
        });
        let number = self.number();
        self.jobs.insert(number, job.clone());
        job
    }
}

/// The resolution of `created_at` and `updated_at`.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
