//! The operator's story: the main uses of Portcullis, played on a local cluster with
//! real packets.
//!
//! Each step shows the command of an operator and the observed result. The first
//! unexpected result is an error, and ends the story.

mod closing;
mod faults;
mod leaders;
mod log_file;
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
    let mut teller = Runner::new(cluster, stage)?;
    opening::two_apps(&mut teller).await?;
    opening::close_and_open(&mut teller).await?;
    leaders::logs(&mut teller).await?;
    leaders::takeover(&mut teller).await?;
    spaces::one_space(&mut teller).await?;
    faults::store_away(&mut teller).await?;
    faults::flushed(&mut teller).await?;
    closing::why(&mut teller).await?;
    closing::account(&mut teller)?;
    say(&format!("\nEverything is as told. {} s.\n", began.elapsed().as_secs()))
}
