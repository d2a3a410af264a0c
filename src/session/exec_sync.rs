//! An exec whose output is captured and answered as one piece.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Session, table::NOT_STARTED};
use crate::{
    container::Pod,
    model::{Chunk, StdStream, one_line},
    oci::{ExecSpec, LaunchError},
    stdio::{Lag, Next, Subscriber, Wants},
    telemetry::counters::Counters,
};

/// The most kept of each stream. Beyond: read and discarded, counted, and told in the reply.
const STREAM_LIMIT: usize = 16 * 1024 * 1024;
/// The most all captures of a pod keep together. Beyond: as above.
const POD_LIMIT: usize = 64 * 1024 * 1024;
/// The exit code of what ran too long, which no process has (control-api 4.3).
const TIMED_OUT: i32 = -3;
/// What stands for "no limit" in the arithmetic of deadlines.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The answer to an execSync.
#[derive(Debug)]
pub(crate) struct Reply {
    /// 0 to 255, or -1 status lost, -2 not started, -3 timed out.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) timed_out: bool,
    /// Keeps the pod's account until the reply is dropped.
    _account: Account,
}

/// An answer that somebody is owed: dropped before it was given, it is an end that nobody was told.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(crate) reply: Reply,
    session: Rc<Session>,
    told: bool,
}

impl Owed {
    /// It is on its way to the caller.
    pub(crate) fn told(mut self) {
        self.told = true;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.told {
            self.session.untold(self.reply.code);
        }
    }
}

/// What all captures of the pod hold, in bytes.
#[derive(Debug, Default)]
pub(crate) struct CaptureMemory {
    used: Cell<usize>,
}

/// The share of one capture.
#[derive(Debug)]
struct Account {
    memory: Rc<CaptureMemory>,
    bytes: usize,
}

impl Account {
    fn room(&self) -> usize {
        POD_LIMIT.saturating_sub(self.memory.used.get())
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.memory.used.set(self.memory.used.get() + bytes);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.memory.used.set(self.memory.used.get() - self.bytes);
    }
}

/// Runs a command and collects its output. `timeout` covers the whole call; zero is none. To be run by a task that does not
/// end with its client, so that the command is always watched.
pub(crate) async fn run(
    pod: &Rc<Pod>,
    memory: &Rc<CaptureMemory>,
    session: Rc<Session>,
    spec: ExecSpec,
    timeout: Duration,
) -> Owed {
    let reply = capture(pod, memory, &session, spec, timeout).await;
    Owed { reply, session, told: false }
}

async fn capture(
    pod: &Rc<Pod>,
    memory: &Rc<CaptureMemory>,
    session: &Session,
    spec: ExecSpec,
    timeout: Duration,
) -> Reply {
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout.min(CENTURY));
    // With a timeout, a kill is to be expected.
    let mut exec = pod.exec(spec, deadline, deadline.is_some());
    session.runs(&exec);
    // Before anything is awaited: the process does not exist yet, so nothing can be missed.
    let mut output = exec.stdio.subscribe(Wants { stdout: true, stderr: true }, Lag::Wait);
    let mut capture = Capture::new(memory, pod.counters.clone());
    let expired = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, capture.collect(&mut output)).await.is_err(),
        None => {
            capture.collect(&mut output).await;
            false
        }
    };
    if expired {
        // Ended in time, but a child of it still holds the pipes: its own code counts.
        let Some(status) = exec.exit_status() else {
            exec.kill();
            return capture.reply(TIMED_OUT);
        };
        exec.stdio.abandon();
        return capture.reply(status.code());
    }
    match exec.ended().await {
        Ok(status) => capture.reply(status.code()),
        Err(error) => {
            if matches!(*error, LaunchError::TimedOut { .. }) && deadline.is_some_and(|d| d <= Instant::now()) {
                return capture.reply(TIMED_OUT);
            }
            capture.keep(&Chunk { stream: StdStream::Stderr, bytes: Bytes::from(one_line(&*error)) });
            capture.reply(NOT_STARTED)
        }
    }
}

/// The output kept so far.
#[derive(Debug)]
struct Capture {
    account: Account,
    counters: Rc<Counters>,
    stdout: Kept,
    stderr: Kept,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Capture {
    fn new(memory: &Rc<CaptureMemory>, counters: Rc<Counters>) -> Self {
        let account = Account { memory: memory.clone(), bytes: 0 };
        Self { account, counters, stdout: Kept::default(), stderr: Kept::default() }
    }

    async fn collect(&mut self, output: &mut Subscriber) {
        while let Next::Chunk(chunk) = output.next().await {
            self.keep(&chunk);
        }
    }

    /// Keeps what the limits allow: the stream stays exact up to its first dropped byte.
    fn keep(&mut self, chunk: &Chunk) {
        let kept = match chunk.stream {
            StdStream::Stdout => &mut self.stdout,
            StdStream::Stderr => &mut self.stderr,
        };
        let room = if kept.dropped > 0 { 0 } else { (STREAM_LIMIT - kept.bytes.len()).min(self.account.room()) };
        let taken = room.min(chunk.bytes.len());
        kept.bytes.extend_from_slice(&chunk.bytes[..taken]);
        kept.dropped += (chunk.bytes.len() - taken) as u64;
        self.account.add(taken);
    }

    fn reply(mut self, code: i32) -> Reply {
        let dropped = self.stdout.dropped + self.stderr.dropped;
        let mut stderr = std::mem::take(&mut self.stderr.bytes);
        if dropped > 0 {
            self.counters.exec_cut_bytes.add(dropped);
            tracing::warn!(dropped, "the output of an exec was larger than what a reply may carry");
            if stderr.last().is_some_and(|&last| last != b'\n') {
                stderr.push(b'\n');
            }
            stderr.extend_from_slice(format!("[holdfast: {dropped} bytes of output dropped]\n").as_bytes());
        }
        Reply {
            code,
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr,
            timed_out: code == TIMED_OUT,
            _account: self.account,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(memory: &Rc<CaptureMemory>) -> Capture {
        Capture::new(memory, Rc::default())
    }

    fn chunk(size: usize) -> Chunk {
        Chunk { stream: StdStream::Stdout, bytes: Bytes::from(vec![b'x'; size]) }
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_counted_and_told() {
        let memory = Rc::<CaptureMemory>::default();
        let mut capture = capture(&memory);
        capture.keep(&chunk(STREAM_LIMIT - 1));
        capture.keep(&chunk(10));
        capture.keep(&chunk(10));
        let reply = capture.reply(0);
        assert_eq!(reply.stdout.len(), STREAM_LIMIT);
        assert_eq!(reply.stderr, b"[holdfast: 19 bytes of output dropped]\n");
        assert_eq!(memory.used.get(), STREAM_LIMIT);
        drop(reply);
        assert_eq!(memory.used.get(), 0);
    }

    #[test]
    fn all_captures_together_are_bounded() {
        let memory = Rc::<CaptureMemory>::default();
        let mut all: Vec<Capture> = (0..6).map(|_| capture(&memory)).collect();
        for capture in &mut all {
            capture.keep(&chunk(STREAM_LIMIT));
        }
        assert_eq!(memory.used.get(), POD_LIMIT);
    }
}
