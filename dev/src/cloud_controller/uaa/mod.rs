//! The User Account and Authentication server, as far as the cf CLI, the syncer
//! and the policy API need it (docs/compatibility/cloud-controller.md#uaa).

pub mod grant;
pub mod token;

/// A program that may ask for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name.
    pub id: String,
    /// Its password; `cf` has none.
    pub secret: String,
    /// What its own tokens say.
    pub authorities: Vec<String>,
    /// Whether users may log in through it.
    pub for_users: bool,
}

impl Client {
    /// The cf CLI.
    pub fn cf() -> Self {
        Self {
            id: "cf".to_owned(),
            secret: String::new(),
            authorities: vec!["uaa.none".to_owned()],
            for_users: true,
        }
    }

    /// A client with tokens of its own.
    pub fn of_its_own(id: &str, secret: &str, authorities: Vec<String>) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned(), authorities, for_users: false }
    }
}

/// How long tokens live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Access tokens of users, in seconds.
    pub access: i64,
    /// Refresh tokens, in seconds.
    pub refresh: i64,
    /// Tokens of clients, in seconds. Long, since the cf CLI does not keep a
    /// client's secret and cannot ask again.
    pub client: i64,
}
