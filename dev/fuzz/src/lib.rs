//! Harness of the fuzz tests of all crates.
//!
//! A target feeds one decoder, or one server, with the bytes of an input, asserts the properties of
//! the result, and returns the outcome as a text. [`Fuzz::run`] first replays the corpus, the files
//! in `tests/corpus/NAME` of the crate, and then random mutations of these inputs for
//! `PORTCULLIS_FUZZ_SECONDS`. An input with a new outcome, or with another order of magnitude of
//! allocations, becomes a source of further mutations: the build needs no instrumentation.
//!
//! For each input the harness checks that the decoder does not panic, and that time, allocations
//! and memory stay within [`Bounds`] that grow linearly with the length of the input. A failing
//! input is written to the temporary directory, and its path and the seed are printed: copied to
//! the corpus, it is the regression test.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `PORTCULLIS_FUZZ_SECONDS` | 1 | time for mutations, per target |
//! | `PORTCULLIS_FUZZ_KEEP` | none | directory: the smallest input of each new outcome is written to `NAME` below |
//!
//! The crate counts allocations with a global allocator, so only test binaries may link it.
#![expect(clippy::print_stdout, reason = "the report of a test")]

mod cost;
mod examples;
pub mod grpc;
mod mutate;

use std::{
    collections::{HashMap, HashSet},
    env,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

use fastrand::Rng;

pub use self::{cost::Bounds, mutate::Language};

/// Maximum number of inputs that are mutated, and of those that are kept.
const POOL_MOST: usize = 4_000;

/// A fuzz target.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    corpus: PathBuf,
    language: Language,
    tokens: &'static [&'static str],
    longest: usize,
    bounds: Bounds,
    expected: &'static [&'static str],
}

impl Fuzz {
    /// The target `name` of the crate in the directory `manifest` (`CARGO_MANIFEST_DIR`).
    #[must_use]
    pub fn new(manifest: &str, name: &'static str, language: Language) -> Self {
        Self {
            name,
            corpus: Path::new(manifest).join("tests/corpus").join(name),
            language,
            tokens: &[],
            longest: 4_096,
            bounds: Bounds::default(),
            expected: &[],
        }
    }

    /// Words of the language, which mutations insert.
    #[must_use]
    pub fn tokens(mut self, tokens: &'static [&'static str]) -> Self {
        self.tokens = tokens;
        self
    }

    /// Maximum length of an input, in bytes.
    #[must_use]
    pub fn longest(mut self, longest: usize) -> Self {
        self.longest = longest;
        self
    }

    /// Limits of the cost of an input.
    #[must_use]
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Beginnings of outcomes that the corpus must produce: a corpus that is lost, or that the
    /// decoder refuses as a whole, fails the test.
    #[must_use]
    pub fn expects(mut self, expected: &'static [&'static str]) -> Self {
        self.expected = expected;
        self
    }

    /// Replays the corpus, then random mutations. `decode` returns the outcome, such as `ok` or an
    /// error text.
    ///
    /// # Panics
    /// When an input violates a property.
    pub fn run(self, mut decode: impl FnMut(&[u8]) -> String) {
        let seed = fastrand::u64(..);
        let mut run = Run::new(&self, seed);
        let corpus = examples::load(&self.corpus);
        let replayed: Vec<_> = corpus.iter().map(|input| run.feed(input, &mut decode)).collect();
        for expected in self.expected {
            let is_there = replayed.iter().any(|outcome| outcome.starts_with(expected));
            assert!(is_there, "no input of {:?} ends with {expected:?}: {replayed:?}", self.corpus);
        }
        (run.pool, run.found) = (corpus, HashMap::new());
        run.replayed.clone_from(&run.outcomes);
        let end = cost::now() + seconds();
        while cost::now() < end {
            let input = run.mutated();
            run.feed(&input, &mut decode);
        }
        let Run { executions, outcomes, found, .. } = run;
        let kept = examples::keep(self.name, found.into_values());
        let (name, outcomes) = (self.name, outcomes.len());
        println!("fuzz {name}: {executions} executions, {outcomes} outcomes, {kept} kept");
    }
}

/// The state of a run.
struct Run<'a> {
    fuzz: &'a Fuzz,
    seed: u64,
    rng: Rng,
    pool: Vec<Vec<u8>>,
    /// Outcomes without numbers and quoted texts.
    outcomes: HashSet<u64>,
    /// Outcomes and orders of magnitude of the cost.
    seen: HashSet<u64>,
    /// The smallest input of each outcome that the corpus has not.
    found: HashMap<u64, Vec<u8>>,
    replayed: HashSet<u64>,
    executions: u64,
}

impl<'a> Run<'a> {
    fn new(fuzz: &'a Fuzz, seed: u64) -> Self {
        Self {
            fuzz,
            seed,
            rng: Rng::with_seed(seed),
            pool: Vec::new(),
            outcomes: HashSet::new(),
            seen: HashSet::new(),
            found: HashMap::new(),
            replayed: HashSet::new(),
            executions: 0,
        }
    }

    /// A mutation of an input of the pool; new inputs are preferred.
    fn mutated(&mut self) -> Vec<u8> {
        let newest = self.pool.len().saturating_sub(16);
        let from = if self.rng.u8(..4) == 0 { newest } else { 0 };
        let mut input = self.pool[self.rng.usize(from..self.pool.len())].clone();
        let other = &self.pool[self.rng.usize(..self.pool.len())];
        let Fuzz { language, tokens, longest, .. } = self.fuzz;
        mutate::mutate(*language, &mut input, other, tokens, &mut self.rng);
        input.truncate(*longest);
        input
    }

    /// Decodes an input, checks its cost, and records its outcome, which is returned.
    fn feed(&mut self, input: &[u8], decode: &mut impl FnMut(&[u8]) -> String) -> String {
        let guard = examples::Guard { name: self.fuzz.name, seed: self.seed, input };
        let (outcome, cost) = cost::measure(|| decode(input));
        self.fuzz.bounds.check(input, cost, || cost::measure(|| decode(input)).1);
        drop(guard);
        self.executions += 1;
        let class = hash(&class(&outcome));
        self.outcomes.insert(class);
        let signature = hash(&(class, cost.magnitude()));
        if self.pool.len() < POOL_MOST && self.seen.insert(signature) {
            self.pool.push(input.to_owned());
        }
        let is_smallest = self.found.get(&class).is_none_or(|before| input.len() < before.len());
        if is_smallest && !self.replayed.contains(&class) && self.found.len() < POOL_MOST {
            self.found.insert(class, input.to_owned());
        }
        outcome
    }
}

/// An outcome without numbers and quoted texts: errors repeat values of the input.
fn class(outcome: &str) -> String {
    let mut class = String::new();
    let mut quote = None;
    let mut characters = outcome.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => drop(characters.next()),
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(character),
            (None, '0'..='9') if class.ends_with('0') => {}
            (None, '0'..='9') => class.push('0'),
            (None, other) => class.push(other),
        }
    }
    class
}

fn seconds() -> Duration {
    let seconds = env::var("PORTCULLIS_FUZZ_SECONDS").map(|text| text.parse());
    let seconds = seconds.unwrap_or(Ok(1.0)).expect("PORTCULLIS_FUZZ_SECONDS is a number");
    Duration::from_secs_f64(seconds)
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_do_not_make_a_class() {
        let one = class("group \"a\\\"1\": rule 12: ports: 'x' has 3 digits");
        assert_eq!(one, class("group \"b\": rule 7: ports: '' has 55 digits"));
        assert_ne!(one, class("group \"b\": rule 7: type: '' has 55 digits"));
    }
}
