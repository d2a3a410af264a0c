//! The fuzz targets in every run of the tests: each body takes what is in its corpus, and as it is or in parts thousands of
//! changed forms of that. What libFuzzer finds beyond that is for `contrib/fuzz`.

#![allow(clippy::print_stderr, reason = "what a body was given when it panicked goes to whom runs the tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

#[path = "../fuzz/entries/mod.rs"]
mod entries;

/// Changed forms per target, and after which time no more are made: some bodies do a lot.
const CHANGED: usize = 1500;
const ENOUGH: Duration = Duration::from_millis(400);
/// The longest input that changes make.
const LONGEST: usize = 4096;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The files of a target's corpus, in the same order everywhere.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder().join("corpus").join(name)).expect("every target has a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("it can be read"))).collect()
}

/// Says what was running when a body panics: the bytes, for a seed.
struct Running<'a>(&'a str, &'a [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, input \"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn run((name, body): entries::Target, input: &[u8]) {
    let _running = Running(name, input);
    body(input);
}

/// Deterministic pseudo-random numbers (xorshift64): a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).expect("it is below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.below(256).to_le_bytes()[0]
    }

    /// One of the inputs with some changes, or bytes that mean nothing.
    fn changed(&mut self, inputs: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
        let mut input = match self.below(8) {
            0 => (0..self.below(200)).map(|_| self.byte()).collect(),
            _ => inputs[self.below(inputs.len())].1.clone(),
        };
        for _ in 0..self.below(4) {
            let at = self.below(input.len());
            match (self.below(5), input.is_empty()) {
                (0, false) => input[at] = self.byte(),
                (1, false) => input[at] ^= 1 << self.below(8),
                (2, false) => drop(input.drain(at..(at + 1 + self.below(16)).min(input.len()))),
                (3, _) => {
                    // The end of another one.
                    let other = &inputs[self.below(inputs.len())].1;
                    input.truncate(at);
                    input.extend_from_slice(&other[self.below(other.len())..]);
                }
                _ => input.insert(at, self.byte()),
            }
        }
        input.truncate(LONGEST);
        input
    }
}

/// The targets by turns, so that the tests share the work.
fn every(nth: usize) {
    for target in entries::TARGETS.into_iter().skip(nth).step_by(4) {
        let inputs = corpus(target.0);
        for (path, input) in &inputs {
            assert!(input.len() <= 64 << 10, "{}: the corpora stay small", path.display());
            run(target, input);
        }
        let (mut random, start) = (Random(0x5eed), Instant::now());
        for _ in 0..CHANGED {
            if start.elapsed() > ENOUGH {
                break;
            }
            let input = random.changed(&inputs);
            run(target, &input);
        }
    }
}

#[test]
fn inputs_of_the_corpora_break_no_promise() {
    every(0);
}

#[test]
fn inputs_of_the_corpora_break_no_promise_second_part() {
    every(1);
}

#[test]
fn inputs_of_the_corpora_break_no_promise_third_part() {
    every(2);
}

#[test]
fn inputs_of_the_corpora_break_no_promise_fourth_part() {
    every(3);
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("it is there");
    let (_, programs) = manifest.split_once("[[bin]]").expect("there are programs");
    let names = programs.lines().filter_map(|line| line.strip_prefix("name = "));
    let programs: BTreeSet<_> = names.map(|name| name.trim_matches('"').to_owned()).collect();
    let targets: BTreeSet<_> = entries::TARGETS.into_iter().map(|(name, _)| name.to_owned()).collect();
    let folders = fs::read_dir(folder().join("corpus")).expect("it is there");
    let folders: BTreeSet<_> = folders
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("names are text"))
        .collect();
    assert_eq!(programs, targets);
    assert_eq!(folders, targets);
    assert!(targets.iter().all(|name| !corpus(name).is_empty()));
}
