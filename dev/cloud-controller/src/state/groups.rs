//! Security groups: all changes, with their authorization.

use std::sync::Arc;

use super::access::{Caller, Spaces};
use super::{Group, Job, Lifecycle, Moment, Space, State, whole_seconds};
use crate::json::{Json, Object};
use crate::refusal::Refusal;
use crate::ruby;
use crate::validate::group::{self, Globally};
use crate::validate::query::Query;
use crate::validate::rules::Flags;

const TITLE: &str = "Security group";

impl State {
    /// The group, if the caller can see it.
    pub fn visible_group(&self, caller: &Caller, guid: &str) -> Result<&Arc<Group>, Refusal> {
        let (_, group) = self.numbered_group(caller, guid)?;
        Ok(group)
    }

    fn numbered_group(&self, caller: &Caller, guid: &str) -> Result<(u64, &Arc<Group>), Refusal> {
        let readable = self.readable_spaces(caller);
        let mut groups = self.groups.iter();
        let group = groups.find(|(_, group)| group.guid == guid);
        let group = group.filter(|(_, group)| self.can_see_group(caller, &readable, group));
        let (number, group) = group.ok_or(Refusal::NotFound(TITLE))?;
        Ok((*number, group))
    }

    /// The groups that the caller can see and that match the query.
    pub fn select_groups(&self, caller: &Caller, query: &Query) -> Vec<Arc<Group>> {
        let readable = self.readable_spaces(caller);
        let wanted = |group: &&Arc<Group>| {
            let flag = |key, value| query.flag(key).is_none_or(|wanted| wanted == value);
            query.admits("guids", &group.guid)
                && query.admits("names", &group.name)
                && query.admits_any("running_space_guids", group.running_spaces.iter())
                && query.admits_any("staging_space_guids", group.staging_spaces.iter())
                && flag("globally_enabled_running", group.running)
                && flag("globally_enabled_staging", group.staging)
                && query.admits_times(group.created_at, group.updated_at)
                && self.can_see_group(caller, &readable, group)
        };
        self.groups().filter(wanted).cloned().collect()
    }

    /// The groups of one space: bound to the space, or enabled globally.
    pub fn select_space_groups(
        &self,
        space: &str,
        lifecycle: Lifecycle,
        query: &Query,
    ) -> Vec<Arc<Group>> {
        let wanted = |group: &&Arc<Group>| {
            (group.is_global(lifecycle) || group.spaces(lifecycle).iter().any(|guid| guid == space))
                && query.admits("guids", &group.guid)
                && query.admits("names", &group.name)
                && query.admits_times(group.created_at, group.updated_at)
        };
        self.groups().filter(wanted).cloned().collect()
    }

    /// `POST /v3/security_groups`
    pub fn create_group(
        &mut self,
        caller: &Caller,
        body: &Object,
        flags: Flags,
        moment: &Moment,
    ) -> Result<Arc<Group>, Refusal> {
        caller.require_admin()?;
        let request = group::create(body, flags).map_err(Refusal::Unprocessable)?;
        self.check_stored(None, &request.name, &request.rules, flags)?;
        let staging_spaces = self.existing_spaces(&request.staging_spaces)?;
        let running_spaces = self.existing_spaces(&request.running_spaces)?;
        let Globally { running, staging } = request.globally_enabled;
        let now = whole_seconds(moment.now);
        let group = Arc::new(Group {
            guid: moment.guid.clone(),
            created_at: now,
            updated_at: now,
            name: request.name,
            rules: request.rules,
            running: running.unwrap_or(false),
            staging: staging.unwrap_or(false),
            running_spaces,
            staging_spaces,
        });
        let number = self.number();
        self.groups.insert(number, group.clone());
        self.touch(moment.now);
        Ok(group)
    }

    /// `PATCH /v3/security_groups/:guid`
    pub fn update_group(
        &mut self,
        caller: &Caller,
        guid: &str,
        body: &Object,
        flags: Flags,
        moment: &Moment,
    ) -> Result<Arc<Group>, Refusal> {
        let (number, group) = self.numbered_group(caller, guid)?;
        caller.require_admin()?;
        let request = group::update(body, flags).map_err(Refusal::Unprocessable)?;
        let mut group = Group::clone(group);
        group.name = request.name.unwrap_or(group.name);
        group.rules = request.rules.unwrap_or(group.rules);
        group.running = request.globally_enabled.running.unwrap_or(group.running);
        group.staging = request.globally_enabled.staging.unwrap_or(group.staging);
        group.updated_at = whole_seconds(moment.now);
        self.check_stored(Some(number), &group.name, &group.rules, flags)?;
        Ok(self.put_group(number, group, moment))
    }

    /// `DELETE /v3/security_groups/:guid`; the job is complete when this returns.
    pub fn delete_group(
        &mut self,
        caller: &Caller,
        guid: &str,
        moment: &Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let (number, _) = self.numbered_group(caller, guid)?;
        caller.require_admin()?;
        self.groups.remove(&number);
        self.touch(moment.now);
        Ok(self.record_job("security_group.delete", moment))
    }

    /// `POST /v3/security_groups/:guid/relationships/{running,staging}_spaces`
    pub fn bind_group(
        &mut self,
        caller: &Caller,
        guid: &str,
        lifecycle: Lifecycle,
        body: &Object,
        moment: &Moment,
    ) -> Result<Arc<Group>, Refusal> {
        let (number, group) = self.numbered_group(caller, guid)?;
        let wanted = group::bind(body).map_err(Refusal::Unprocessable)?;
        for space in wanted.iter().filter_map(|guid| self.space(guid)) {
            self.require_space_manager(caller, space)?;
        }
        self.check_bindable(&wanted, &self.readable_spaces(caller))?;
        let mut group = Group::clone(group);
        let bound = group.spaces_mut(lifecycle);
        for guid in wanted {
            if !bound.contains(&guid) {
                bound.push(guid);
            }
        }
        Ok(self.put_group(number, group, moment))
    }

    /// `DELETE /v3/security_groups/:guid/relationships/{running,staging}_spaces/:space`
    pub fn unbind_group(
        &mut self,
        caller: &Caller,
        guid: &str,
        lifecycle: Lifecycle,
        space: &str,
        moment: &Moment,
    ) -> Result<(), Refusal> {
        let (number, group) = self.numbered_group(caller, guid)?;
        let not_bound = || {
            Refusal::unprocessable(format!(
                "Unable to unbind security group from space with guid '{space}'. \
                 Ensure the space is bound to this security group."
            ))
        };
        self.require_space_manager(caller, self.space(space).ok_or_else(not_bound)?)?;
        let mut group = Group::clone(group);
        let bound = group.spaces_mut(lifecycle);
        let place = bound.iter().position(|guid| guid == space).ok_or_else(not_bound)?;
        bound.remove(place);
        self.put_group(number, group, moment);
        Ok(())
    }

    /// Removes a space from all groups, without a change of the stamp.
    pub(super) fn forget_bindings(&mut self, space: &str) {
        for group in self.groups.values_mut() {
            let bound = |guids: &[String]| guids.iter().any(|guid| guid == space);
            if bound(&group.running_spaces) || bound(&group.staging_spaces) {
                let group = Arc::make_mut(group);
                group.running_spaces.retain(|guid| guid != space);
                group.staging_spaces.retain(|guid| guid != space);
            }
        }
    }

    fn put_group(&mut self, number: u64, group: Group, moment: &Moment) -> Arc<Group> {
        let group = Arc::new(group);
        self.groups.insert(number, group.clone());
        self.touch(moment.now);
        group
    }

    fn check_stored(
        &self,
        number: Option<u64>,
        name: &str,
        rules: &Json,
        flags: Flags,
    ) -> Result<(), Refusal> {
        let mut others = self.groups.iter().filter(|(other, _)| Some(**other) != number);
        if others.any(|(_, group)| group.name == name) {
            return Err(Refusal::unprocessable(format!(
                "Security group with name '{name}' already exists."
            )));
        }
        let errors = group::model_errors(name, rules, flags);
        if errors.is_empty() { Ok(()) } else { Err(Refusal::Unprocessable(errors)) }
    }

    /// Each space once, if all exist.
    fn existing_spaces(&self, guids: &[String]) -> Result<Vec<String>, Refusal> {
        let unknown: Vec<&str> = self.unknown_spaces(guids).collect();
        if !unknown.is_empty() {
            let list = ruby::inspect_all(unknown);
            return Err(Refusal::unprocessable(format!("Spaces with guids {list} do not exist.")));
        }
        let mut once: Vec<String> = Vec::new();
        for guid in guids {
            if !once.contains(guid) {
                once.push(guid.clone());
            }
        }
        Ok(once)
    }

    fn check_bindable(&self, guids: &[String], readable: &Spaces) -> Result<(), Refusal> {
        let existing = self.spaces().filter(|space: &&Arc<Space>| guids.contains(&space.guid));
        let unreadable = existing.map(|space| space.guid.as_str()).filter(|g| !readable.has(g));
        let refused: Vec<&str> = self.unknown_spaces(guids).chain(unreadable).collect();
        if refused.is_empty() {
            return Ok(());
        }
        Err(Refusal::unprocessable(format!(
            "Spaces with guids {} do not exist, or you do not have access to them.",
            ruby::inspect_all(refused)
        )))
    }

    fn unknown_spaces<'a>(&'a self, guids: &'a [String]) -> impl Iterator<Item = &'a str> {
        guids.iter().map(String::as_str).filter(|guid| self.space(guid).is_none())
    }
}
