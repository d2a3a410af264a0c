//! What is in the daemon, how much memory that may take, and how much it takes.
//!
//! ```text
//! memory of its own (RssAnon) <= base + containers * C + sessions * S + ... + the pools in use
//! ```
//! The terms are those of the table in docs/RELIABILITY.md, which says where each comes from.

use std::{cell::Cell, collections::VecDeque, fs, rc::Rc, time::Duration};

use crate::support::{figure, procfs};

/// What takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container with one log.
    Container,
    /// A run of the runtime: what it says is kept until it ends.
    Launch,
    /// An exec with a client, over either transport.
    Exec,
    /// An attach session of any form.
    Attach,
    /// A client's port forward with all its connections.
    Forward,
    /// An execSync without its output.
    ExecSync,
    /// An execSync whose output reaches the limit.
    Capture,
    /// A connection to the streaming server before its upgrade.
    Connection,
    /// A connection to the control socket or the descriptor socket.
    Control,
}

/// Each kind with its worst case in KiB.
const TERMS: [(Kind, &str, u64); 9] = [
    (Kind::Container, "container", 608),
    (Kind::Launch, "run of the runtime", 1024 + 64),
    (Kind::Exec, "exec session", 1024),
    (Kind::Attach, "attach session", 1024),
    (Kind::Forward, "port forward", 1024),
    (Kind::ExecSync, "execSync", 512),
    // The bytes, and their copy in the reply.
    (Kind::Capture, "execSync at its limit", 2 * 16 * 1024),
    (Kind::Connection, "connection before its upgrade", 128),
    (Kind::Control, "control connection", 128),
];

/// What all of a pod's share, in KiB: read-ahead for stdin (8 MiB) and for port forwards (8 MiB), stacks of the pool's
/// threads (64 of at most 24 KiB). Used only while there is load.
const POOLS: u64 = 2 * 8 * 1024 + 64 * 24;

/// What ended for a client may take the daemon a moment longer: a log is flushed, a process collected.
const LAG: Duration = Duration::from_secs(10);

type Counts = [u64; TERMS.len()];

/// How much of what there is.
#[derive(Debug, Default)]
pub(crate) struct Population {
    now: [Cell<u64>; TERMS.len()],
    /// The most since the last sample.
    most: [Cell<u64>; TERMS.len()],
    /// Of all time.
    ever: [Cell<u64>; TERMS.len()],
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    population: Rc<Population>,
    index: usize,
}

impl Population {
    pub(crate) fn count(self: &Rc<Self>, kind: Kind) -> Counted {
        let index = TERMS.iter().position(|term| term.0 == kind).expect("every kind has a term");
        let now = self.now[index].get() + 1;
        self.now[index].set(now);
        self.most[index].set(now.max(self.most[index].get()));
        self.ever[index].set(self.ever[index].get() + 1);
        Counted { population: self.clone(), index }
    }

    /// The most of each since the last call.
    fn take(&self) -> Counts {
        std::array::from_fn(|index| self.most[index].replace(self.now[index].get()))
    }

    /// How many of each there were.
    pub(crate) fn report(&self) {
        for (term, ever) in TERMS.iter().zip(&self.ever) {
            figure(&format!("soak: {}, how many", term.1), ever.get());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let now = &self.population.now[self.index];
        now.set(now.get() - 1);
    }
}

/// Compares what there is with what there may be.
#[derive(Debug)]
pub(crate) struct Watch {
    daemon: u32,
    base: u64,
    recent: VecDeque<Counts>,
    keep: usize,
    /// The largest seen, and what was allowed then.
    largest: (u64, u64),
    largest_shared: u64,
    /// Of all samples the one nearest to its bound, in per cent.
    nearest: u64,
    samples: u64,
    sum: u64,
}

impl Watch {
    pub(crate) fn new(daemon: u32, base: u64, every: Duration) -> Self {
        let keep = usize::try_from(LAG.as_millis() / every.as_millis()).expect("few");
        let recent = VecDeque::new();
        Self { daemon, base, recent, keep, largest: (0, 0), largest_shared: 0, nearest: 0, samples: 0, sum: 0 }
    }

    /// Takes a sample, which must be within the formula.
    pub(crate) fn sample(&mut self, population: &Population) {
        self.recent.push_back(population.take());
        if self.recent.len() > self.keep {
            self.recent.pop_front();
        }
        let most = |index: usize| self.recent.iter().map(|counts| counts[index]).max().unwrap_or_default();
        let terms: Vec<_> = TERMS.iter().enumerate().map(|(index, term)| (term.1, most(index), term.2)).collect();
        let bound = self.base + POOLS + terms.iter().map(|(_, count, each)| count * each).sum::<u64>();
        let is = anonymous_kib(self.daemon);
        assert!(is <= bound, "{is} KiB of memory where {bound} KiB are the bound: {terms:?}, base {}", self.base);
        if is > self.largest.0 {
            self.largest = (is, bound);
            self.largest_shared = proportional_kib(self.daemon);
        }
        self.nearest = self.nearest.max(100 * is / bound);
        self.samples += 1;
        self.sum += is;
    }

    pub(crate) fn report(&self) {
        figure("soak: samples of memory, all within the formula", self.samples);
        figure("soak: memory under load, mean", format!("{} KiB", self.sum / self.samples.max(1)));
        figure("soak: memory under load, most", format!("{} KiB of {} KiB allowed", self.largest.0, self.largest.1));
        figure("soak: the same with shared pages (Pss)", format!("{} KiB", self.largest_shared));
        figure("soak: the sample nearest to its bound", format!("{} %", self.nearest));
    }
}

/// What a process has in memory that is its own.
pub(crate) fn anonymous_kib(pid: u32) -> u64 {
    let line = procfs::status_line(pid, "RssAnon");
    line.trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// Its memory with its share of what it shares.
fn proportional_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the daemon lives");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}
