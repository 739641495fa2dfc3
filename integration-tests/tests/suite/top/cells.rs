//! Simulated cells: they watch a real policy store and report as agents do, some of them
//! late or with problems.

use std::time::Duration;

use proto::policy_v1::{
    WatchRequest,
    policy_store_client::PolicyStoreClient,
    watch_request::{Counters, Hello, Report, Step},
};
use runtime::{
    client::{self, Options},
    tls::{ClientTls, Files},
};
use tokio::{runtime::Runtime, sync::mpsc, task::JoinSet, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Cells on one connection.
const ON_ONE_CONNECTION: u32 = 50;

/// How a cell behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Enforces each generation after this time.
    After(Duration),
    /// Its reconciles fail.
    Failing,
    /// Cannot enforce a rule.
    Isolating,
    /// Enforces only its first generation.
    Stuck,
    /// Disconnects after its first generation.
    Leaving,
}

/// The 8th cell of each 50 has a habit of its own.
fn habit(number: u32) -> Habit {
    let index = number - 1;
    match (index % 50, index / 50 % 5) {
        (7, 0) => Habit::Isolating,
        (7, 1) => Habit::Stuck,
        (7, 2) => Habit::Failing,
        (7, 3) => Habit::Leaving,
        (7, _) => Habit::After(Duration::from_millis(1_500)),
        _ => Habit::After(Duration::from_millis(u64::from(20 + index * 7 % 90))),
    }
}

/// Cells that watch until they are dropped.
pub(super) struct Cells {
    runtime: Runtime,
    running: JoinSet<Result<(), tonic::Status>>,
    address: String,
    tls: ClientTls,
    count: u32,
}

impl Cells {
    /// None yet. The store must accept any cell id of this certificate.
    pub(super) fn new(address: &str, files: &certificates::Files) -> Self {
        let certificates::Files { ca, cert, key } = files;
        let files = Files { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
        Self {
            runtime: Runtime::new().expect("a runtime can be made"),
            running: JoinSet::new(),
            address: address.to_owned(),
            tls: ClientTls::load(&files).expect("the certificate is valid"),
            count: 0,
        }
    }

    /// Adds cells up to this number.
    pub(super) fn grow(&mut self, count: u32) {
        let mut channel = None;
        for number in self.count + 1..=count {
            if channel.is_none() || number % ON_ONE_CONNECTION == 0 {
                let _context = self.runtime.enter();
                let made =
                    client::channel(&self.address, Some(self.tls.clone()), Options::default());
                channel = Some(made.expect("the address is valid"));
            }
            let channel = channel.clone().expect("it was just made");
            self.running.spawn_on(keep(channel, number), self.runtime.handle());
        }
        self.count = count;
    }

    /// Panics if a cell ended with an error.
    pub(super) fn check(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            ended.expect("a cell does not panic").expect("a cell watches until it leaves");
        }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        let _context = self.runtime.enter();
        self.running.abort_all();
    }
}

/// Watches again after the store was away.
async fn keep(channel: Channel, number: u32) -> Result<(), tonic::Status> {
    loop {
        match watch(channel.clone(), number).await {
            Ok(()) => return Ok(()),
            Err(status) if is_away(&status) => sleep(Duration::from_millis(200)).await,
            Err(status) => return Err(status),
        }
    }
}

fn is_away(status: &tonic::Status) -> bool {
    use tonic::Code::{Aborted, Cancelled, Internal, Unavailable, Unknown};
    matches!(status.code(), Aborted | Cancelled | Internal | Unavailable | Unknown)
}

/// One stream; `Ok` when a cell leaves by itself.
async fn watch(channel: Channel, number: u32) -> Result<(), tonic::Status> {
    let (steps, requests) = mpsc::channel(4);
    let hello = Hello {
        cell_id: format!("cell-{number}"),
        version: "0.1.0".to_owned(),
        plane: "nftables".to_owned(),
        ..Hello::default()
    };
    let send = async |step| {
        let sent = steps.send(WatchRequest { step: Some(step) }).await;
        sent.map_err(|_| tonic::Status::unavailable("the stream ended"))
    };
    send(Step::Hello(hello)).await?;
    let mut client = PolicyStoreClient::new(channel).max_decoding_message_size(64 << 20);
    let mut answers = client.watch(ReceiverStream::new(requests)).await?.into_inner();
    let (habit, mut reports) = (habit(number), 0_u64);
    while let Some(answer) = answers.message().await? {
        if !answer.complete {
            continue;
        }
        match habit {
            Habit::Leaving if reports > 0 => return Ok(()),
            Habit::Stuck if reports > 0 => continue,
            Habit::After(delay) if reports > 0 => sleep(delay).await,
            _ => {}
        }
        reports += 1;
        let packets = u64::from(number) * reports;
        send(Step::Report(Report {
            enforced_generation: answer.generation,
            containers: 25,
            isolated_rules: u32::from(habit == Habit::Isolating),
            last_error: match habit {
                Habit::Failing => "nft: No space left on device".to_owned(),
                _ => String::new(),
            },
            counters: Some(Counters {
                allowed: Some(packets * 100),
                denied: Some(packets),
                unattributed: 0,
            }),
            ..Report::default()
        }))
        .await?;
    }
    Err(tonic::Status::unavailable("the store ended the watch"))
}
