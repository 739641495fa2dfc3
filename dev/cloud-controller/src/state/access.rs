//! Access control: which callers may see and change which objects
//! (docs/compatibility/cloud-controller.md#endpoints).

use std::collections::HashSet;

use super::{Group, Lifecycle, Organization, Space, State};
use crate::refusal::Refusal;

/// The caller, as in the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The GUID of the user, or the name of the client.
    pub id: String,
    /// The name, for the log.
    pub name: String,
    /// The authority of the scopes.
    pub authority: Authority,
}

/// The authority of a token's scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// `cloud_controller.admin`
    Admin,
    /// `cloud_controller.admin_read_only` or `.global_auditor`
    ReadEverything,
    /// Limited by roles, within `cloud_controller.read` and `.write`.
    Roles {
        /// Has the read scope.
        read: bool,
        /// Has the write scope.
        write: bool,
    },
}

impl Authority {
    /// From a token's scopes.
    pub fn from_scopes<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Self {
        let scopes: HashSet<&str> = scopes.into_iter().collect();
        let has = |name: &str| scopes.contains(name);
        if has("cloud_controller.admin") {
            Self::Admin
        } else if has("cloud_controller.admin_read_only") || has("cloud_controller.global_auditor")
        {
            Self::ReadEverything
        } else {
            let write = has("cloud_controller.write");
            Self::Roles { read: has("cloud_controller.read"), write }
        }
    }
}

/// A set of spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spaces {
    /// All spaces.
    All,
    /// These spaces, by GUID.
    Some(HashSet<String>),
}

impl Spaces {
    /// Whether the space is one of them.
    pub fn has(&self, guid: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(guids) => guids.contains(guid),
        }
    }
}

const SPACE_ROLES: [&str; 4] =
    ["space_developer", "space_manager", "space_auditor", "space_supporter"];

impl Caller {
    /// Requires an admin.
    pub fn require_admin(&self) -> Result<(), Refusal> {
        match self.authority {
            Authority::Admin => Ok(()),
            Authority::ReadEverything | Authority::Roles { .. } => Err(Refusal::NotAuthorized),
        }
    }

    /// Requires the scope for reading or writing.
    pub fn require_scope(&self, writes: bool) -> Result<(), Refusal> {
        match self.authority {
            Authority::Admin | Authority::ReadEverything => Ok(()),
            Authority::Roles { read, write } if (if writes { write } else { read }) => Ok(()),
            Authority::Roles { .. } => Err(Refusal::InsufficientScope),
        }
    }

    fn reads_everything(&self) -> bool {
        !matches!(self.authority, Authority::Roles { .. })
    }
}

impl State {
    /// The spaces that the caller can read.
    pub fn readable_spaces(&self, caller: &Caller) -> Spaces {
        if caller.reads_everything() {
            return Spaces::All;
        }
        let readable = |space: &&std::sync::Arc<Space>| {
            self.has_space_role(caller, &space.guid, &SPACE_ROLES)
                || self.is_organization_manager(caller, &space.organization)
        };
        Spaces::Some(self.spaces().filter(readable).map(|space| space.guid.clone()).collect())
    }

    /// Whether the caller can read the organization: any role in it is sufficient.
    pub fn can_read_organization(&self, caller: &Caller, organization: &Organization) -> bool {
        caller.reads_everything()
            || self.roles().any(|role| {
                role.user == caller.id
                    && match (&role.organization, &role.space) {
                        (Some(guid), _) => *guid == organization.guid,
                        (None, Some(guid)) => {
                            self.space(guid).is_some_and(|s| s.organization == organization.guid)
                        }
                        (None, None) => false,
                    }
            })
    }

    /// Whether the caller can see the group.
    pub fn can_see_group(&self, caller: &Caller, readable: &Spaces, group: &Group) -> bool {
        let bound = || group.running_spaces.iter().chain(&group.staging_spaces);
        caller.reads_everything()
            || group.is_global(Lifecycle::Running)
            || group.is_global(Lifecycle::Staging)
            || bound().any(|guid| readable.has(guid))
    }

    /// Requires that the caller may bind groups to the space: managers of the space or
    /// its organization, and admins.
    pub fn require_space_manager(&self, caller: &Caller, space: &Space) -> Result<(), Refusal> {
        match caller.authority {
            Authority::Admin => return Ok(()),
            Authority::ReadEverything => return Err(Refusal::NotAuthorized),
            Authority::Roles { .. } => {}
        }
        if !self.has_space_role(caller, &space.guid, &["space_manager"])
            && !self.is_organization_manager(caller, &space.organization)
        {
            return Err(Refusal::NotAuthorized);
        }
        let organization = self.organization(&space.organization);
        if organization.is_some_and(|organization| organization.suspended) {
            return Err(Refusal::OrgSuspended);
        }
        Ok(())
    }

    /// Requires an admin, or a manager of the organization while it is not suspended.
    pub fn require_organization_manager(
        &self,
        caller: &Caller,
        organization: &Organization,
    ) -> Result<(), Refusal> {
        match caller.authority {
            Authority::Admin => Ok(()),
            Authority::ReadEverything => Err(Refusal::NotAuthorized),
            Authority::Roles { .. }
                if !self.is_organization_manager(caller, &organization.guid) =>
            {
                Err(Refusal::NotAuthorized)
            }
            Authority::Roles { .. } if organization.suspended => Err(Refusal::OrgSuspended),
            Authority::Roles { .. } => Ok(()),
        }
    }

    fn has_space_role(&self, caller: &Caller, space: &str, kinds: &[&str]) -> bool {
        self.roles().any(|role| {
            role.user == caller.id
                && role.space.as_deref() == Some(space)
                && kinds.contains(&role.kind.as_str())
        })
    }

    fn is_organization_manager(&self, caller: &Caller, organization: &str) -> bool {
        self.roles().any(|role| {
            role.user == caller.id
                && role.organization.as_deref() == Some(organization)
                && role.kind == "organization_manager"
        })
    }
}
