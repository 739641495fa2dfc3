//! The operator's story: the main uses of Portcullis, played on a local cluster with
//! real packets.
//!
//! Each step shows the command of an operator and the observed result. The first
//! unexpected result is an error, and ends the story.

mod canary;
mod closing;
mod faults;
mod freeze;
mod leaders;
mod log_file;
pub(crate) mod many;
mod opening;
mod runner;
mod spaces;

use tokio::time::Instant;

use self::runner::Runner;
use crate::fixtures::Stage;
use crate::guide;
use crate::launch::Cluster;
use crate::terminal::say;

/// Plays all chapters.
pub(crate) async fn play(cluster: &mut Cluster, stage: Stage) -> anyhow::Result<()> {
    let began = Instant::now();
    let env = guide::write_env(cluster)?;
    say(&format!("\nShell variables below are those of {}.\n", env.display()))?;
    say(&format!("{} leads, fencing token {}.\n", stage.leader.owner, stage.leader.fencing_token))?;
    let mut runner = Runner::new(cluster, stage)?;
    opening::two_apps(&mut runner).await?;
    opening::close_and_open(&mut runner).await?;
    leaders::logs(&mut runner).await?;
    leaders::takeover(&mut runner).await?;
    spaces::one_space(&mut runner).await?;
    faults::store_away(&mut runner).await?;
    faults::flushed(&mut runner).await?;
    closing::why(&mut runner).await?;
    freeze::freeze(&mut runner).await?;
    canary::canary(&mut runner).await?;
    closing::account(&mut runner)?;
    say(&format!("\nEverything is as expected. {} s.\n", began.elapsed().as_secs()))
}
