//! Organizations, spaces and the roles in them.

use std::sync::Arc;

use super::access::{Caller, Spaces};
use super::users::find_user;
use super::{Job, Moment, Organization, Role, Space, State, whole_seconds};
use crate::json::{Json, Object};
use crate::refusal::Refusal;
use crate::validate::query::Query;
use crate::validate::resources::{self, Place, UserReference};

const BAD_ORGANIZATION: &str =
    "Invalid organization. Ensure the organization exists and you have access to it.";
const BAD_SPACE: &str = "Invalid space. Ensure that the space exists and you have access to it.";

impl State {
    /// An organization by its GUID.
    pub fn organization(&self, guid: &str) -> Option<&Arc<Organization>> {
        self.organizations().find(|organization| organization.guid == guid)
    }

    /// A space by its GUID.
    pub fn space(&self, guid: &str) -> Option<&Arc<Space>> {
        self.spaces().find(|space| space.guid == guid)
    }

    /// The organization, if the caller can see it.
    pub fn visible_organization(
        &self,
        caller: &Caller,
        guid: &str,
    ) -> Result<&Arc<Organization>, Refusal> {
        let organization = self.organization(guid);
        let organization = organization.filter(|o| self.can_read_organization(caller, o));
        organization.ok_or(Refusal::NotFound("Organization"))
    }

    /// The space, if the caller can see it.
    pub fn visible_space(&self, caller: &Caller, guid: &str) -> Result<&Arc<Space>, Refusal> {
        let space = self.space(guid).filter(|space| self.readable_spaces(caller).has(&space.guid));
        space.ok_or(Refusal::NotFound("Space"))
    }

    /// The organizations that the caller can see and that match the query.
    pub fn select_organizations(&self, caller: &Caller, query: &Query) -> Vec<Arc<Organization>> {
        let wanted = |organization: &&Arc<Organization>| {
            query.admits("guids", &organization.guid)
                && query.admits("names", &organization.name)
                && query.admits_times(organization.created_at, organization.updated_at)
                && self.can_read_organization(caller, organization)
        };
        self.organizations().filter(wanted).cloned().collect()
    }

    /// The spaces that the caller can see and that match the query.
    pub fn select_spaces(&self, caller: &Caller, query: &Query) -> Vec<Arc<Space>> {
        let readable: Spaces = self.readable_spaces(caller);
        let wanted = |space: &&Arc<Space>| {
            query.admits("guids", &space.guid)
                && query.admits("names", &space.name)
                && query.admits("organization_guids", &space.organization)
                && query.admits_times(space.created_at, space.updated_at)
                && readable.has(&space.guid)
        };
        self.spaces().filter(wanted).cloned().collect()
    }

    /// The roles that the caller can see and that match the query.
    pub fn select_roles(&self, caller: &Caller, query: &Query) -> Vec<Arc<Role>> {
        let readable = self.readable_spaces(caller);
        let visible = |role: &Role| match (&role.organization, &role.space) {
            (Some(guid), _) => self.visible_organization(caller, guid).is_ok(),
            (None, Some(guid)) => readable.has(guid),
            (None, None) => false,
        };
        let wanted = |role: &&Arc<Role>| {
            query.admits("guids", &role.guid)
                && query.admits("types", &role.kind)
                && query.admits("user_guids", &role.user)
                && query.admits_any("organization_guids", role.organization.iter())
                && query.admits_any("space_guids", role.space.iter())
                && query.admits_times(role.created_at, role.created_at)
                && visible(role)
        };
        self.roles().filter(wanted).cloned().collect()
    }

    /// `POST /v3/organizations`
    pub fn create_organization(
        &mut self,
        caller: &Caller,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Organization>, Refusal> {
        caller.require_admin()?;
        let (named, suspended) = resources::organization(body).map_err(Refusal::Unprocessable)?;
        self.check_organization_name(&named.name, "")?;
        let now = whole_seconds(moment.now);
        let organization = Arc::new(Organization {
            guid: moment.guid.clone(),
            created_at: now,
            updated_at: now,
            name: named.name,
            suspended,
            metadata: named.metadata,
        });
        let number = self.number();
        self.organizations.insert(number, organization.clone());
        Ok(organization)
    }

    /// `PATCH /v3/organizations/:guid`
    pub fn update_organization(
        &mut self,
        caller: &Caller,
        guid: &str,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Organization>, Refusal> {
        let organization = self.visible_organization(caller, guid)?;
        self.require_organization_manager(caller, organization)?;
        let (name, metadata) =
            resources::rename(body, &["suspended"]).map_err(Refusal::Unprocessable)?;
        let mut organization = Organization::clone(organization);
        if let Some(suspended) = body.get("suspended").and_then(Json::as_bool) {
            caller.require_admin()?;
            organization.suspended = suspended;
        }
        organization.name = name.unwrap_or(organization.name);
        organization.metadata = metadata.or(organization.metadata);
        organization.updated_at = whole_seconds(moment.now);
        self.check_organization_name(&organization.name, guid)?;
        let organization = Arc::new(organization);
        if let Some(place) = self.organizations.values_mut().find(|o| o.guid == guid) {
            *place = organization.clone();
        }
        Ok(organization)
    }

    /// `DELETE /v3/organizations/:guid`, with its spaces and roles.
    pub fn delete_organization(
        &mut self,
        caller: &Caller,
        guid: &str,
        moment: &Moment,
    ) -> Result<Arc<Job>, Refusal> {
        self.visible_organization(caller, guid)?;
        caller.require_admin()?;
        let spaces = self.spaces().filter(|space| space.organization == guid);
        for space in spaces.map(|space| space.guid.clone()).collect::<Vec<_>>() {
            self.forget_space(&space);
        }
        self.organizations.retain(|_, organization| organization.guid != guid);
        self.roles.retain(|_, role| role.organization.as_deref() != Some(guid));
        Ok(self.record_job("organization.delete", moment))
    }

    /// `POST /v3/spaces`
    pub fn create_space(
        &mut self,
        caller: &Caller,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Space>, Refusal> {
        let (named, organization) = resources::space(body).map_err(Refusal::Unprocessable)?;
        let visible = self.visible_organization(caller, &organization);
        let visible = visible.map_err(|_| Refusal::unprocessable(BAD_ORGANIZATION))?;
        self.require_organization_manager(caller, visible)?;
        self.check_space_name(&named.name, &organization, "")?;
        let now = whole_seconds(moment.now);
        let space = Arc::new(Space {
            guid: moment.guid.clone(),
            created_at: now,
            updated_at: now,
            name: named.name,
            organization,
            metadata: named.metadata,
        });
        let number = self.number();
        self.spaces.insert(number, space.clone());
        Ok(space)
    }

    /// `PATCH /v3/spaces/:guid`
    pub fn update_space(
        &mut self,
        caller: &Caller,
        guid: &str,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Space>, Refusal> {
        let space = self.visible_space(caller, guid)?;
        self.require_space_manager(caller, space)?;
        let (name, metadata) = resources::rename(body, &[]).map_err(Refusal::Unprocessable)?;
        let mut space = Space::clone(space);
        space.name = name.unwrap_or(space.name);
        space.metadata = metadata.or(space.metadata);
        space.updated_at = whole_seconds(moment.now);
        self.check_space_name(&space.name, &space.organization, guid)?;
        let space = Arc::new(space);
        if let Some(place) = self.spaces.values_mut().find(|space| space.guid == guid) {
            *place = space.clone();
        }
        Ok(space)
    }

    /// `DELETE /v3/spaces/:guid`, with its bindings and roles.
    pub fn delete_space(
        &mut self,
        caller: &Caller,
        guid: &str,
        moment: &Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let space = self.visible_space(caller, guid)?;
        let organization = self.organization(&space.organization);
        let organization = organization.ok_or(Refusal::NotFound("Space"))?;
        self.require_organization_manager(caller, organization)?;
        self.forget_space(guid);
        Ok(self.record_job("space.delete", moment))
    }

    /// `POST /v3/roles`
    pub fn create_role(
        &mut self,
        caller: &Caller,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Role>, Refusal> {
        let request = resources::role(body).map_err(Refusal::Unprocessable)?;
        let user = self.role_user(&request.user)?;
        let (organization, space) = match request.place {
            Place::Organization(guid) => {
                let organization = self.visible_organization(caller, &guid);
                let organization =
                    organization.map_err(|_| Refusal::unprocessable(BAD_ORGANIZATION))?;
                self.require_organization_manager(caller, organization)?;
                (Some(guid), None)
            }
            Place::Space(guid) => {
                let space = self.visible_space(caller, &guid);
                let space = space.map_err(|_| Refusal::unprocessable(BAD_SPACE))?;
                self.require_space_manager(caller, space)?;
                self.check_membership(&user, space)?;
                (None, Some(guid))
            }
        };
        let role = Role {
            guid: moment.guid.clone(),
            created_at: whole_seconds(moment.now),
            kind: request.kind,
            user,
            organization,
            space,
        };
        self.check_new_role(&role, &request.user)?;
        let number = self.number();
        let role = Arc::new(role);
        self.roles.insert(number, role.clone());
        Ok(role)
    }

    /// `DELETE /v3/roles/:guid`
    pub fn delete_role(
        &mut self,
        caller: &Caller,
        guid: &str,
        moment: &Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let missing = Refusal::NotFound("Role");
        let role = self.roles().find(|role| role.guid == guid).ok_or(missing.clone())?;
        match (&role.organization, &role.space) {
            (Some(guid), _) => {
                let organization =
                    self.visible_organization(caller, guid).map_err(|_| missing.clone())?;
                self.require_organization_manager(caller, organization)?;
            }
            (None, Some(guid)) => {
                let space = self.visible_space(caller, guid).map_err(|_| missing.clone())?;
                self.require_space_manager(caller, space)?;
            }
            (None, None) => return Err(missing),
        }
        self.roles.retain(|_, role| role.guid != guid);
        Ok(self.record_job("role.delete", moment))
    }

    fn forget_space(&mut self, guid: &str) {
        self.forget_bindings(guid);
        self.spaces.retain(|_, space| space.guid != guid);
        self.roles.retain(|_, role| role.space.as_deref() != Some(guid));
    }

    fn check_organization_name(&self, name: &str, own: &str) -> Result<(), Refusal> {
        // Names of organizations and spaces are compared without case.
        let taken =
            |o: &Arc<Organization>| o.name.to_lowercase() == name.to_lowercase() && o.guid != own;
        if self.organizations().any(taken) {
            let text = format!("Organization '{name}' already exists.");
            return Err(Refusal::unprocessable(text));
        }
        Ok(())
    }

    fn check_space_name(&self, name: &str, organization: &str, own: &str) -> Result<(), Refusal> {
        let taken = |space: &Arc<Space>| {
            space.name.to_lowercase() == name.to_lowercase()
                && space.organization == organization
                && space.guid != own
        };
        if self.spaces().any(taken) {
            return Err(Refusal::unprocessable("Name must be unique per organization"));
        }
        Ok(())
    }

    fn role_user(&self, user: &UserReference) -> Result<String, Refusal> {
        match user {
            UserReference::Guid(guid) => Ok(guid.clone()),
            UserReference::Name(name, origin) => {
                let found = find_user(self, name)
                    .filter(|user| origin.as_ref().is_none_or(|origin| *origin == user.origin));
                found.map(|user| user.guid.clone()).ok_or_else(|| {
                    let text = match origin {
                        Some(origin) => {
                            format!(
                                "No user exists with the username '{name}' and origin '{origin}'."
                            )
                        }
                        None => format!("No user exists with the username '{name}'."),
                    };
                    Refusal::unprocessable(text)
                })
            }
        }
    }

    /// A role in a space requires a role in its organization.
    fn check_membership(&self, user: &str, space: &Space) -> Result<(), Refusal> {
        let member = self.roles().any(|role| {
            role.user == user && role.organization.as_deref() == Some(&space.organization)
        });
        if member {
            return Ok(());
        }
        Err(Refusal::unprocessable(
            "Users cannot be assigned roles in a space if they do not have a role in that space's organization.",
        ))
    }

    fn check_new_role(&self, new: &Role, named: &UserReference) -> Result<(), Refusal> {
        let same = |role: &Arc<Role>| {
            (&role.kind, &role.user, &role.organization, &role.space)
                == (&new.kind, &new.user, &new.organization, &new.space)
        };
        if !self.roles().any(same) {
            return Ok(());
        }
        let place = match (&new.organization, &new.space) {
            (Some(guid), _) => {
                let name = self.organization(guid).map(|o| o.name.clone()).unwrap_or_default();
                format!("organization '{name}'")
            }
            (None, guid) => {
                let space = guid.as_ref().and_then(|guid| self.space(guid));
                format!("space '{}'", space.map(|space| space.name.clone()).unwrap_or_default())
            }
        };
        let user = match named {
            UserReference::Guid(guid) => self.user_name(guid).unwrap_or(guid),
            UserReference::Name(name, _) => name,
        };
        let kind = &new.kind;
        Err(Refusal::unprocessable(format!("User '{user}' already has '{kind}' role in {place}.")))
    }
}
