//! Fuzz test of the decoder and the handlers with raw bytes.
//!
//! An input is a byte that selects the method, and the body of a request with its
//! five-byte gRPC prefix. It passes through the generated service: framing,
//! decoding, handler and encoding. Allowed results are a list of codes; a panic fails
//! the test. Inputs are stored in `tests/corpus`; every run replays them, and then
//! mutates them at random for `LOCK_SERVER_FUZZ_SECONDS` (2). With
//! `LOCK_SERVER_FUZZ_KEEP` set to a directory, an input with a new outcome is written
//! there.

use std::{
    collections::HashSet,
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use lock_server::{
    feed::Feed,
    grpc::{PreEncoded, Service},
    locks::Locks,
    store::memory::Memory,
};
use proto::{lock_v1::lock_watch_server::LockWatchServer, models::locket_server::LocketServer};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, body::Body};
use tower::ServiceExt as _;

use crate::support::PATIENCE;

const METHODS: [&str; 6] = [
    "/models.Locket/Lock",
    "/models.Locket/Fetch",
    "/models.Locket/Release",
    "/models.Locket/FetchAll",
    "/portcullis.lock.v1.LockWatch/Watch",
    "/models.Locket/Steal",
];
/// Codes that clients may get for any input.
const EXPECTED: [Code; 8] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::Unimplemented,
    Code::Internal,
    // A frame whose length exceeds 4 MiB; the server in front returns
    // RESOURCE_EXHAUSTED.
    Code::OutOfRange,
    // A body that ends in the middle of a frame.
    Code::Unknown,
];
/// The locks are discarded after this number of inputs.
const LIFE: usize = 2_000;
const LONGEST: usize = 4_096;

struct Target {
    locket: PreEncoded<LocketServer<Service<Memory>>>,
    watch: LockWatchServer<Service<Memory>>,
}

impl Target {
    fn new() -> Self {
        let store = Memory::new(Feed::default());
        let service = Service::new(Locks::new(store, PATIENCE), CancellationToken::new());
        let (locket, watch) = service.servers();
        Self { locket: locket.into_service(), watch: watch.into_service() }
    }

    /// Outcome of an input: method, code and text.
    async fn feed(&self, input: &[u8]) -> (usize, Code, String) {
        let (first, body) = input.split_first().unwrap_or((&0, &[]));
        let method = usize::from(*first) % METHODS.len();
        let path = METHODS[method];
        let body = Body::new(Full::new(Bytes::copy_from_slice(body)));
        let request = Request::post(path).header("content-type", "application/grpc");
        let request = request.body(body).unwrap();
        let answer = if method == 4 {
            self.watch.clone().oneshot(request).await.unwrap()
        } else {
            self.locket.clone().oneshot(request).await.unwrap()
        };
        let mut status = tonic::Status::from_header_map(answer.headers());
        if status.is_none() && method != 4 {
            let body = answer.into_body().collect().await.unwrap();
            status = body.trailers().and_then(tonic::Status::from_header_map);
        }
        // The stream of a watch has no end: a started stream is a success.
        let status = status.unwrap_or_else(|| tonic::Status::new(Code::Ok, ""));
        (method, status.code(), status.message().to_owned())
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= METHODS.len(), "the corpus is lost");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// xorshift64*: the same seed gives the same sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Varint ends, lengths, field tags, and any other byte.
        const ODD: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x0a, 0x12, 0x1a, 0x22, 0x28, 0x10];
        if self.below(2) == 0 { ODD[self.below(ODD.len())] } else { self.roll() as u8 }
    }
}

/// Mutates an input in up to eight places, and usually repairs its frame.
fn mutate(input: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _change in 0..=dice.below(8) {
        let at = dice.below(input.len() + 1);
        match dice.below(7) {
            0 => input.insert(at, dice.byte()),
            1 if at < input.len() => drop(input.remove(at)),
            2 if at < input.len() => input[at] ^= 1 << dice.below(8),
            3 if at < input.len() => input[at] = dice.byte(),
            4 => {
                let end = at + dice.below(input.len() - at + 1);
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            5 => {
                let end = at + dice.below(input.len() - at + 1);
                input.drain(at..end);
            }
            _ => {
                let start = dice.below(other.len() + 1);
                let end = start + dice.below(other.len() - start + 1);
                input.splice(at..at, other[start..end].iter().copied());
            }
        }
        input.truncate(LONGEST);
    }
    if dice.below(8) != 0 && input.len() >= 6 {
        let length = u32::try_from(input.len() - 6).unwrap();
        input[1] = 0;
        input[2..6].copy_from_slice(&length.to_be_bytes());
    }
}

/// Stores an input under a name that derives from its content.
fn keep(input: &[u8]) {
    let Some(directory) = env::var_os("LOCK_SERVER_FUZZ_KEEP") else { return };
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let name = format!("{:016x}", hasher.finish());
    fs::write(Path::new(&directory).join(name), input).unwrap();
}

#[tokio::test]
async fn bytes_hurt_nobody() {
    let seconds = env::var("LOCK_SERVER_FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let seed = u64::from(std::process::id()) << 32 | 0x5eed;
    let (mut dice, mut inputs) = (Dice(seed), corpus());
    let mut seen = HashSet::new();
    let mut target = Target::new();
    for input in &inputs {
        let outcome = timeout(PATIENCE, target.feed(input)).await.expect("an answer");
        assert!(EXPECTED.contains(&outcome.1), "{outcome:?} for {input:02x?}");
        seen.insert(outcome);
    }
    let codes: HashSet<i32> = seen.iter().map(|(_, code, _)| *code as i32).collect();
    let wanted = [Code::Ok, Code::InvalidArgument, Code::NotFound, Code::AlreadyExists];
    assert!(wanted.iter().all(|code| codes.contains(&(*code as i32))), "a poor corpus: {seen:?}");

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut executions = 0_usize;
    while Instant::now() < end {
        if executions.is_multiple_of(LIFE) {
            target = Target::new();
        }
        let mut input = inputs[dice.below(inputs.len())].clone();
        let other = dice.below(inputs.len());
        mutate(&mut input, &inputs[other], &mut dice);
        let outcome = timeout(PATIENCE, target.feed(&input)).await.expect("an answer");
        assert!(EXPECTED.contains(&outcome.1), "{outcome:?} for {input:02x?}, seed {seed}");
        if seen.len() < 2_000 && seen.insert(outcome) {
            keep(&input);
            inputs.push(input);
        }
        executions += 1;
    }
    println!("{executions} executions, {} outcomes, seed {seed}", seen.len());
}
