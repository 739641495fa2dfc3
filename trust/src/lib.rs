//! Verification of peer certificates, with explanations of rejections.
//!
//! rustls verifies each chain with webpki. This crate adds:
//! - [`ServerVerifier`] and [`ClientVerifier`] accept a certificate that is itself in the
//!   operator's CA file, even when it is marked as a CA (`CA:TRUE`, as `openssl req -x509` creates
//!   it); OpenSSL and Go accept it too.
//! - [`explain()`] turns errors that rustls only names into sentences, and [`chain()`] formats an
//!   error with its causes.
//!
//! Not in this crate: certificate files and their reloading, see
//! [`runtime`](../runtime/index.html), and access control by certificate, which is in each service.
//! Users: `runtime` and [`storage`](../storage/index.html).
//!
//! # Example
//!
//! ```
//! use rustls::{CertificateError, Error};
//!
//! let error = Error::InvalidCertificate(CertificateError::InvalidPurpose);
//! let sentence = trust::explain(&error).expect("rustls only names this error");
//! assert!(sentence.contains("issue it with"), "{sentence}");
//! ```

mod explain;
mod pinned;

pub use explain::{chain, explain, explain_all, explain_cause};
pub use pinned::{ClientVerifier, ServerVerifier};
