//! `version`: of this program.

use crate::{field::Field, report::Report};

/// A build.
#[derive(Debug)]
pub(crate) struct Build {
    version: &'static str,
    platform: String,
}

pub(crate) const VERSION: &[Field<Build>] = &[
    Field::text("version", |build| build.version.to_owned()),
    Field::text("platform", |build| build.platform.clone()),
];

/// The version of this program.
pub(crate) fn version() -> Report {
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    Report::record(VERSION, Build { version: env!("CARGO_PKG_VERSION"), platform })
}
