//! Development tools for Portcullis: a Cloud Controller with its UAA, certificates, a
//! local cluster of real processes, and load tools.
//!
//! Nothing here runs in production, and no service depends on it. The Cloud Controller
//! responds like the genuine one (same documents, same errors, same order of messages),
//! so that clients that work here also work with the genuine one.

pub mod load;
