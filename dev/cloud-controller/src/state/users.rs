//! The users of the UAA.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Moment, State};

/// A user. This is a development tool: the password is stored in plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The GUID, `user_id` in tokens.
    pub guid: String,
    /// The name, `user_name` in tokens.
    pub name: String,
    /// The identity provider; `uaa` here.
    pub origin: String,
    /// Plain-text password.
    pub password: String,
    /// Scopes of the user's tokens.
    pub scopes: Vec<String>,
}

/// Default scopes of a user.
pub const USER_SCOPES: [&str; 6] = [
    "openid",
    "cloud_controller.read",
    "cloud_controller.write",
    "password.write",
    "uaa.user",
    "network.write",
];

/// A user by name; user names are compared without case.
pub fn find_user<'a>(state: &'a State, name: &str) -> Option<&'a Arc<User>> {
    state.users().find(|user| user.name.eq_ignore_ascii_case(name))
}

impl State {
    /// All users, oldest first.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values()
    }

    /// The name of a user.
    pub fn user_name(&self, guid: &str) -> Option<&String> {
        self.users().find(|user| user.guid == guid).map(|user| &user.name)
    }

    /// Adds a user; `None` when the name is taken.
    pub fn add_user(
        &mut self,
        name: &str,
        password: &str,
        scopes: Vec<String>,
        moment: &Moment,
    ) -> Option<Arc<User>> {
        if find_user(self, name).is_some() {
            return None;
        }
        let user = Arc::new(User {
            guid: moment.guid.clone(),
            name: name.to_owned(),
            origin: "uaa".to_owned(),
            password: password.to_owned(),
            scopes,
        });
        let number = self.number();
        self.users.insert(number, user.clone());
        Some(user)
    }

    /// Adds the configured user, or updates its password and scopes.
    pub fn configure_user(
        &mut self,
        name: &str,
        password: &str,
        scopes: &[String],
        moment: &Moment,
    ) {
        let known = self.users.values_mut().find(|user| user.name.eq_ignore_ascii_case(name));
        match known {
            Some(user) => {
                let user = Arc::make_mut(user);
                password.clone_into(&mut user.password);
                user.scopes = scopes.to_vec();
            }
            None => {
                self.add_user(name, password, scopes.to_vec(), moment);
            }
        }
    }
}
