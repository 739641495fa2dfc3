//! The network of the cluster on the real kernel. Needs root, or user namespaces with all
//! capabilities (`unshare -rnm` with a tmpfs on /run); if they are missing, these tests
//! fail with a message.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod network;
