//! Which certificates of peers are accepted, and why one is not.
//!
//! rustls verifies each chain with webpki. Two things are added here:
//! - [`ServerVerifier`] and [`ClientVerifier`] accept a certificate that the
//!   operator has put into the file of authorities itself, also when it is marked as
//!   an authority (`CA:TRUE`, as `openssl req -x509` makes it); OpenSSL and Go accept
//!   it too.
//! - [`explain()`] turns errors that rustls only names into sentences.

mod explain;
mod pinned;

pub use explain::{explain, explain_all, explain_cause};
pub use pinned::{ClientVerifier, ServerVerifier};
