//! A process for tests that bind a service themselves.

use std::io;

use super::{Ending, Process};
use crate::{lager, metrics};

impl Process {
    /// A process whose log level and metrics are not connected to anything.
    pub fn detached() -> Self {
        let options = lager::Options {
            source: "detached".into(),
            level: lager::Level::Info,
            format: lager::TimeFormat::Rfc3339,
        };
        let (_layer, log) = lager::layer(options, io::sink());
        let (_recorder, metrics) = metrics::recorder("detached", "0");
        Self { log, metrics, ending: Ending::default(), flags: Vec::new() }
    }
}
