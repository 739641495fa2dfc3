//! The faults of a run, chosen from a seed: alone and two at a time. Pure.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// The longest pause of a process.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How many choices are tried for a fault that fits beside the other one.
const TRIES: usize = 20;

/// A part of the foundation. Instances and cells are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    CloudController,
    LockServer(u8),
    PolicyStore(u8),
    Syncer(u8),
    Agent(u8),
    /// The database server that lock servers and policy stores share.
    Database,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloudController => f.write_str("cloud-controller"),
            Self::LockServer(number) => write!(f, "lock-server-{number}"),
            Self::PolicyStore(number) => write!(f, "policy-store-{number}"),
            Self::Syncer(number) => write!(f, "syncer-{number}"),
            Self::Agent(number) => write!(f, "cell-agent-{number}"),
            Self::Database => f.write_str("database"),
        }
    }
}

/// How many parts there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) lock_servers: u8,
    pub(crate) policy_stores: u8,
    pub(crate) syncers: u8,
    pub(crate) cells: u8,
    pub(crate) has_database: bool,
}

impl Shape {
    /// All parts that are processes of the services, and the Cloud Controller.
    pub(crate) fn parts(self) -> Vec<Part> {
        let mut parts = vec![Part::CloudController];
        parts.extend((1..=self.lock_servers).map(Part::LockServer));
        parts.extend((1..=self.policy_stores).map(Part::PolicyStore));
        parts.extend((1..=self.syncers).map(Part::Syncer));
        parts.extend((1..=self.cells).map(Part::Agent));
        parts
    }

    /// Pairs of parts, the client first.
    pub(crate) fn links(self) -> Vec<(Part, Part)> {
        let mut links = Vec::new();
        let stores = || (1..=self.policy_stores).map(Part::PolicyStore);
        let locks = || (1..=self.lock_servers).map(Part::LockServer);
        for syncer in (1..=self.syncers).map(Part::Syncer) {
            links.push((syncer, Part::CloudController));
            links.extend(stores().chain(locks()).map(|server| (syncer, server)));
        }
        for agent in (1..=self.cells).map(Part::Agent) {
            links.extend(stores().map(|store| (agent, store)));
        }
        if self.has_database {
            links.extend(stores().chain(locks()).map(|client| (client, Part::Database)));
        }
        links
    }
}

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `kill -9`; started again at the end.
    Kill(Part),
    /// SIGSTOP; SIGCONT at the end.
    Pause(Part),
    /// Packets from the first to the second part are dropped, and those back if `both`.
    Cut { from: Part, to: Part, both: bool, percent: u8 },
    /// Somebody removes the rules of a cell.
    Flush(u8),
    /// The certificate is replaced by a new one.
    Renew(Part),
    /// The certificate's file is half as long, until a new one is written.
    Tear(Part),
    /// The certificate has expired, until a new one is written.
    Expire(Part),
    /// The disk of a part with SQLite is full.
    Fill(Part),
    /// The Cloud Controller's responses are wrong in this way.
    Err(&'static str),
}

/// The ways in which the development Cloud Controller can err (docs/dev-cloud-controller.md#configuration).
const ERRORS: [&str; 10] =
    ["401", "404", "429", "500", "503", "empty", "html", "half", "cut", "fewer"];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(part) => write!(f, "kill -9 {part}"),
            Self::Pause(part) => write!(f, "SIGSTOP {part}"),
            Self::Cut { from, to, both, percent } => {
                let arrow = if *both { "<->" } else { "->" };
                write!(f, "drop {percent}% of {from} {arrow} {to}")
            }
            Self::Flush(cell) => write!(f, "flush the rules of cell-{cell}"),
            Self::Renew(part) => write!(f, "new certificate of {part}"),
            Self::Tear(part) => write!(f, "half a certificate of {part}"),
            Self::Expire(part) => write!(f, "expired certificate of {part}"),
            Self::Fill(part) => write!(f, "full disk of {part}"),
            Self::Err(way) => write!(f, "errors of the cloud-controller: {way}"),
        }
    }
}

impl Kind {
    /// The parts that are in trouble themselves; two faults do not share one.
    fn parts(self) -> Vec<Part> {
        match self {
            Self::Kill(part)
            | Self::Pause(part)
            | Self::Renew(part)
            | Self::Tear(part)
            | Self::Expire(part)
            | Self::Fill(part) => vec![part],
            Self::Err(_) => vec![Part::CloudController],
            Self::Cut { from, to, .. } => vec![from, to],
            Self::Flush(cell) => vec![Part::Agent(cell)],
        }
    }
}

/// A fault with its time since the begin of the trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) number: u32,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) kind: Kind,
}

/// The faults of that time, in the order of their begin. `heal` is how long an agent needs to
/// restore flushed rules.
pub(crate) fn schedule(seed: u64, shape: Shape, time: Duration, heal: Duration) -> Vec<Fault> {
    let mut random = Rng::with_seed(seed);
    let mut faults: Vec<Fault> = Vec::new();
    for lane in 0..2 {
        // The second lane is idle half of the time, so that there are also single faults.
        let longest_rest = Duration::from_secs(if lane == 0 { 3 } else { 8 });
        let mut at = rest(&mut random, longest_rest);
        while at < time {
            let mut end = at;
            for _try in 0..TRIES {
                let kind = kind(&mut random, shape);
                let to = at + length(&mut random, kind, heal);
                let overlaps = |other: &&Fault| other.from < to && at < other.to;
                let parts = kind.parts();
                let collides =
                    |other: &Fault| other.kind.parts().iter().any(|part| parts.contains(part));
                if to <= time && !faults.iter().filter(overlaps).any(collides) {
                    faults.push(Fault { number: 0, from: at, to, kind });
                    end = to;
                    break;
                }
            }
            at = end + rest(&mut random, longest_rest);
        }
    }
    faults.sort_by_key(|fault| fault.from);
    for (number, fault) in (1..).zip(&mut faults) {
        fault.number = number;
    }
    faults
}

fn rest(random: &mut Rng, longest: Duration) -> Duration {
    Duration::from_millis(500) + longest.mul_f64(random.f64())
}

fn length(random: &mut Rng, kind: Kind, heal: Duration) -> Duration {
    let second = Duration::from_secs(1);
    match kind {
        Kind::Flush(_) => heal,
        Kind::Renew(_) => second / 10,
        Kind::Pause(_) => second / 2 + (LONGEST_PAUSE - second / 2).mul_f64(random.f64()),
        Kind::Kill(_) => second / 10 + (second * 5).mul_f64(random.f64()),
        Kind::Cut { .. } | Kind::Tear(_) | Kind::Expire(_) | Kind::Fill(_) | Kind::Err(_) => {
            second + (second * 8).mul_f64(random.f64())
        }
    }
}

fn kind(random: &mut Rng, shape: Shape) -> Kind {
    let (parts, links) = (shape.parts(), shape.links());
    let part = parts[random.usize(..parts.len())];
    let with_certificate = |part| {
        if part == Part::CloudController { Part::Syncer(1) } else { part }
    };
    match random.u8(..16) {
        0..=3 => Kind::Kill(part),
        4..=5 => Kind::Pause(part),
        6 if shape.has_database => {
            if random.bool() {
                Kind::Kill(Part::Database)
            } else {
                Kind::Pause(Part::Database)
            }
        }
        6 => {
            let parts = [Part::LockServer(1), Part::PolicyStore(1)];
            Kind::Fill(parts[random.usize(..parts.len())])
        }
        7..=10 => {
            let (client, server) = links[random.usize(..links.len())];
            let (from, to) = if random.bool() { (client, server) } else { (server, client) };
            let percent = if random.u8(..3) == 0 { 40 } else { 100 };
            Kind::Cut { from, to, both: random.bool(), percent }
        }
        11 => Kind::Flush(random.u8(1..=shape.cells)),
        12 => Kind::Renew(with_certificate(part)),
        13 => Kind::Tear(with_certificate(part)),
        14 => Kind::Expire(with_certificate(part)),
        _ => Kind::Err(ERRORS[random.usize(..ERRORS.len())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { lock_servers: 3, policy_stores: 3, syncers: 3, cells: 5, has_database: true };
    const HEAL: Duration = Duration::from_secs(10);
    const TIME: Duration = Duration::from_secs(3600);

    #[test]
    fn a_seed_names_one_schedule() {
        assert_eq!(schedule(1, SHAPE, TIME, HEAL), schedule(1, SHAPE, TIME, HEAL));
        assert_ne!(schedule(1, SHAPE, TIME, HEAL), schedule(2, SHAPE, TIME, HEAL));
    }

    #[test]
    fn two_faults_at_a_time_concern_different_parts_and_end_in_time() {
        for seed in 0..20 {
            let faults = schedule(seed, SHAPE, TIME, HEAL);
            let mut pairs = 0;
            for (place, one) in faults.iter().enumerate() {
                assert!(one.from < one.to && one.to <= TIME, "{one:?}");
                let beside = faults[place + 1..].iter().filter(|other| other.from < one.to);
                for other in beside {
                    pairs += 1;
                    let shared =
                        one.kind.parts().iter().any(|part| other.kind.parts().contains(part));
                    assert!(!shared, "{one:?} and {other:?}");
                }
            }
            assert!(pairs > 20, "seed {seed} has {pairs} pairs");
        }
    }

    #[test]
    fn an_hour_has_every_kind_of_fault_on_every_part() {
        let faults = schedule(3, SHAPE, TIME, HEAL);
        for part in SHAPE.parts().into_iter().chain([Part::Database]) {
            assert!(faults.iter().any(|fault| fault.kind.parts().contains(&part)), "{part}");
        }
        let names = ["kill", "SIGSTOP", "drop 100%", "drop 40%", "flush", "new", "half", "expired"];
        for name in names {
            let has = faults.iter().any(|fault| fault.kind.to_string().starts_with(name));
            assert!(has, "{name}");
        }
        for way in ERRORS {
            assert!(faults.iter().any(|fault| fault.kind == Kind::Err(way)), "{way}");
        }
    }
}
