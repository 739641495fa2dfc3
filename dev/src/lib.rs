//! What a developer needs around Portcullis: a Cloud Controller with its UAA
//! to talk to, certificates, a local cluster of real processes, and load for the
//! services.
//!
//! Nothing here runs in production, and no service depends on it. The
//! controller answers as the genuine one does (same documents, same refusals,
//! same order of messages), so that what works here works there.

pub mod certificates;
pub mod cloud_controller;
pub mod cluster;
pub mod cluster_command;
pub mod load;
pub mod story;
