//! The program `portcullis-dev`: the development Cloud Controller, and the launcher of the
//! local cluster. The launcher needs root, or user namespaces with all capabilities
//! (`unshare -rnm` with a tmpfs on /run); if they are missing, its tests fail with a
//! message.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod cloud_controller;
mod launcher;
