//! Limits of the machine that a foundation on one machine exceeds. They are those of the
//! whole machine, and stay raised.

use std::fs;
use std::io::Write;

use anyhow::Context;

/// Kernel parameters and the least value that 1,000 agents need.
const LEAST: [(&str, u64); 6] = [
    // Each agent watches its metadata store.
    ("fs/inotify/max_user_instances", 8_192),
    ("fs/inotify/max_user_watches", 65_536),
    // Each namespace has neighbours; the table is one for all.
    ("net/ipv4/neigh/default/gc_thresh1", 8_192),
    ("net/ipv4/neigh/default/gc_thresh2", 16_384),
    ("net/ipv4/neigh/default/gc_thresh3", 32_768),
    ("net/core/somaxconn", 4_096),
];

/// Number of real cells for which the defaults of the kernel are enough.
const FEW: u32 = 50;

/// Raises the limits for this number of real cells. Must run in the machine's own network
/// namespace, where the limits are.
pub(crate) fn raise(real: u32) -> anyhow::Result<()> {
    if real <= FEW {
        return Ok(());
    }
    for (name, least) in LEAST {
        let path = format!("/proc/sys/{name}");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let before: u64 = text.trim().parse().with_context(|| format!("{path}: {text}"))?;
        if before >= least {
            continue;
        }
        fs::write(&path, least.to_string())
            .with_context(|| format!("raising {path} from {before} to {least}: this needs root"))?;
        // If standard error is closed, the line cannot be printed.
        let _ = writeln!(std::io::stderr(), "raised {path} from {before} to {least}");
    }
    Ok(())
}
