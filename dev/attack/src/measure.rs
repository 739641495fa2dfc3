//! Memory and open files of a service, from `/proc`.

use std::fs;

use anyhow::Context;
use load::meter;

/// Usage of a process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// Its maximum since the last [`forget_peak`].
    pub(crate) peak: u64,
    /// Open file descriptors.
    pub(crate) files: usize,
}

/// Usage of a process now. Fails if it has ended.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let of = meter::usage(&pid.to_string()).context("the service has ended")?;
    let files = fs::read_dir(format!("/proc/{pid}/fd")).context("the service has ended")?.count();
    Ok(Usage { memory: of.resident, peak: of.peak, files })
}

/// Begins the maximum of the memory anew (proc(5), clear_refs).
pub(crate) fn forget_peak(pid: u32) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of the memory")
}
