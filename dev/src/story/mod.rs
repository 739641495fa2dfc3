//! The operator's story.

use crate::cluster::launch::Cluster;
use crate::cluster::stage::Stage;

/// Plays the story.
pub async fn play(_cluster: &mut Cluster, _stage: Stage) -> anyhow::Result<()> {
    Ok(())
}
