//! Parts that the service, `--once` and `render` share.

use std::{io, sync::Arc, time::Duration};

use anyhow::Context as _;
use nix::errno::Errno;
use runtime::{
    client,
    tls::{ClientTls, Role},
};
use tokio::sync::{mpsc, watch};

use crate::{
    config::{Config, DataPlane, Source},
    containers::Containers,
    denied::nflog::Nflog,
    groups,
    groups::{Asked, Connectivity, GroupSource, Refresh},
    metrics::Times,
    plan::{Known, RecordDenied, Settings},
    plane::{
        Error, Plane,
        iptables::{IptablesPlane, programs::Iptables},
        nftables::{NftablesPlane, diff, nft::Nft},
    },
    reconcile::{Enforced, Inputs},
    state::StateDirectory,
    uses::RuleUse,
};

/// Prefix of the metrics.
pub(crate) const METRICS: &str = "cell_agent";
/// The certificate for the policy store.
pub(crate) const CERTIFICATE: Role = Role { service: METRICS, name: "policy-store-client" };
/// Timeout for the metadata store's lock.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn open_state(config: &Config) -> anyhow::Result<StateDirectory> {
    let directory = &config.state_directory;
    StateDirectory::open(directory)
        .with_context(|| format!("the state directory {} cannot be used", directory.display()))
}

/// The socket for denied packets, or why they are not recorded. Without a socket the rules
/// send no packets: a kernel without NFLOG would refuse them.
pub(crate) fn nflog(settings: &mut Settings) -> Result<Nflog, String> {
    let Some(RecordDenied { group, .. }) = settings.records_denied() else {
        let reason =
            "denied packets are not recorded on this cell: denied_connections.record is false";
        return Err(reason.to_owned());
    };
    Nflog::open(group).map_err(|error| {
        settings.record_denied = None;
        let hint = if is_held(&error) { ": another process receives it" } else { "" };
        let reason = format!("NFLOG group {group} cannot be bound{hint} ({error})");
        tracing::error!(group, error = reason, "denied-packets-not-recorded");
        format!("denied packets are not recorded: {reason}")
    })
}

/// Leaves the record out of the rules if the kernel has no NFLOG; an agent may hold the group.
pub(crate) fn only_with_nflog(settings: &mut Settings) {
    let opened = settings.records_denied().map(|record| Nflog::open(record.group));
    if let Some(Err(error)) = opened
        && !is_held(&error)
    {
        settings.record_denied = None;
    }
}

fn is_held(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw);
    matches!(error, Some(Errno::EBUSY | Errno::EPERM))
}

/// Deletes our table from the kernel.
pub(crate) async fn take_away(nft: &mut Nft) -> anyhow::Result<()> {
    nft.apply(&diff::remove()).await.context("taking our table out of the kernel")
}

/// The data plane, if it is usable; changes nothing.
pub(crate) async fn open_plane(
    config: &Config,
    state: StateDirectory,
) -> Result<Box<dyn Plane>, Error> {
    Ok(match &config.plane {
        DataPlane::Nftables => Box::new(NftablesPlane::open(Nft::new(&config.nft), state).await?),
        DataPlane::Iptables { path, lock } => {
            Box::new(IptablesPlane::open(Iptables::new(path, lock)).await?)
        }
    })
}

/// The data plane, if it is usable. Deletes our table if the plane is iptables.
pub(crate) async fn plane(config: &Config, state: StateDirectory) -> Result<Box<dyn Plane>, Error> {
    let plane = open_plane(config, state).await?;
    if let DataPlane::Iptables { .. } = config.plane {
        // An existing table of ours would go on rejecting packets. The table only ever
        // rejects, so deleting it allows nothing that the iptables chains deny.
        match Nft::new(&config.nft).apply(&diff::remove()).await {
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(error) => {
                tracing::error!(error = %error, "table-of-the-other-plane-not-removed");
            }
        }
    }
    Ok(plane)
}

/// Parameters of the group source.
pub(crate) struct Groups {
    pub(crate) containers: watch::Receiver<Containers>,
    pub(crate) enforced: watch::Receiver<Arc<Enforced>>,
    pub(crate) known: watch::Sender<Option<Arc<Known>>>,
    pub(crate) times: Times,
    /// Where the store's questions go; `None` if none are answered.
    pub(crate) questions: Option<mpsc::Sender<Asked>>,
    /// Uses of rules for the store, if they are counted.
    pub(crate) uses: Option<RuleUse>,
}

/// Inputs of the reconciler.
pub(crate) fn inputs(
    config: &Config,
    containers: watch::Receiver<Containers>,
    groups: watch::Receiver<Option<Arc<Known>>>,
    times: Times,
) -> Inputs {
    Inputs {
        settings: Arc::new(config.settings.clone()),
        containers,
        groups,
        drift_interval: config.drift_interval,
        full_interval: config.full_interval,
        times,
    }
}

/// The group source, its connectivity, and a trigger for requests.
pub(crate) fn learner(
    config: &Config,
    tls: &ClientTls,
    Groups { containers, enforced, known, times, questions, uses }: Groups,
) -> anyhow::Result<(GroupSource, watch::Receiver<Connectivity>, Refresh)> {
    let tls = tls.clone();
    match &config.source {
        Source::Grpc(address) => {
            let channel = client::channel(address.as_str(), Some(tls), client::Options::default())
                .context("policy_store_address")?;
            let (cell, plane) = (config.cell.clone(), config.plane.name());
            let about = groups::About { cell, plane, questions, uses };
            let (client, link) = groups::Client::new(about, channel, containers, enforced, known);
            Ok((GroupSource::Watch(Box::new(client)), link, Refresh::pushed()))
        }
        Source::Http { url, timeout } => {
            let (url, timeout, interval) = (url.clone(), *timeout, config.full_interval);
            let server = groups::Server { url, timeout, interval };
            let (poller, link, refresh) =
                groups::Poller::new(server, tls, containers, known, times);
            Ok((GroupSource::Poll(Box::new(poller)), link, refresh))
        }
    }
}
