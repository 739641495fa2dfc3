//! The User Account and Authentication server: the parts that the cf CLI, the syncer
//! and the policy API need (docs/compatibility/cloud-controller.md#uaa).

pub mod grant;
pub mod token;

/// An OAuth client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name.
    pub id: String,
    /// Its secret; `cf` has none.
    pub secret: String,
    /// Authorities in the client's own tokens.
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

    /// A client that gets tokens for itself.
    pub fn of_its_own(id: &str, secret: &str, authorities: Vec<String>) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned(), authorities, for_users: false }
    }
}

/// Lifetimes of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Access tokens of users, in seconds.
    pub access: i64,
    /// Refresh tokens, in seconds.
    pub refresh: i64,
    /// Tokens of clients, in seconds. Long, since the cf CLI does not store a client's
    /// secret and cannot request a new token.
    pub client: i64,
}
