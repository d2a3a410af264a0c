//! The task that reads a process's output: sole owner of the read ends.
//!
//! It reads only while its receivers have room, goes on after the process ended until everything it wrote is here, and
//! never stops because a log or a client failed.

use std::{
    io,
    os::fd::AsFd as _,
    rc::Rc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use tokio::time::{Instant, sleep};

use super::{DrainLimits, Stdio};
use crate::{
    io::fd::{AsyncFile, Output},
    log::Log,
    model::{Chunk, StdStream},
    sys::{SysError, fd::fionread},
};

/// One read. Allocated when something is there, so an idle container holds no buffer. As large as the largest message that
/// every streaming client takes (streaming 1.9); half of it costs half as much again of the processor.
const READ_CHUNK: usize = 32 * 1024;
/// While nobody receives what it reads, the pump lets other tasks run after so many bytes; else after every chunk.
const YIELD_AFTER: usize = 64 * 1024;
/// Retries while nobody has the terminal's other end open.
const HANGUP_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How the output of an ended process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Another process still held the pipes when the drain limits were reached.
    pub(crate) still_held: bool,
}

/// Reads one process's output.
#[derive(Debug)]
pub(crate) struct Pump {
    stdio: Rc<Stdio>,
    log: Option<Rc<Log>>,
    sources: Vec<Source>,
    limits: DrainLimits,
    since_yield: usize,
}

/// ```text
/// Live ──EIO (terminal that nobody has open)──▶ HungUp ──bytes, or open again──▶ Live
///   └──────────end, error, EIO after exit──▶ (removed) ◀──exit────┘
/// ```
#[derive(Debug)]
struct Source {
    file: Rc<AsyncFile>,
    /// A second registration of the same terminal, made after a hang-up ended; see [`Source::renew`].
    renewed: Option<AsyncFile>,
    stream: StdStream,
    terminal: bool,
    hung_up: Option<Duration>,
    /// What the process had written when its end was seen: read in any case.
    owed: usize,
}

/// What one step of reading gave.
enum Read {
    Bytes(usize, BytesMut),
    Retry,
    Ended(usize),
    /// It will not work the next time either.
    Failed(usize),
}

impl Pump {
    /// Returns the pump, and for a terminal its master end, which the pump keeps open.
    pub(super) fn new(
        stdio: Rc<Stdio>,
        output: Output,
        log: Option<Rc<Log>>,
        limits: DrainLimits,
    ) -> Result<(Self, Option<Rc<AsyncFile>>), SysError> {
        let source = |file, stream, terminal| Source { file, renewed: None, stream, terminal, hung_up: None, owed: 0 };
        let (sources, master) = match output {
            Output::Pipes { stdout, stderr } => (
                vec![
                    source(Rc::new(stdout), StdStream::Stdout, false),
                    source(Rc::new(stderr), StdStream::Stderr, false),
                ],
                None,
            ),
            Output::Terminal(master) => {
                let master = Rc::new(AsyncFile::terminal(master)?);
                (vec![source(master.clone(), StdStream::Stdout, true)], Some(master))
            }
        };
        Ok((Self { stdio, log, sources, limits, since_yield: 0 }, master))
    }

    /// Reads until all output is here. `early` was read already and goes first; `exited` resolves when the process ended.
    pub(crate) async fn run(mut self, early: Vec<Chunk>, exited: impl Future<Output = ()>) -> Drained {
        for chunk in early {
            self.room().await;
            self.deliver(&chunk);
        }
        let abandoned = self.stdio.abandoned.clone();
        let still_held = tokio::select! {
            biased;
            () = abandoned.cancelled() => false,
            still_held = self.read_all(exited) => still_held,
        };
        self.stdio.fanout.end();
        self.stdio.stdin.close();
        Drained { still_held }
    }

    async fn read_all(&mut self, exited: impl Future<Output = ()>) -> bool {
        tokio::pin!(exited);
        while !self.sources.is_empty() {
            tokio::select! {
                biased;
                () = &mut exited => return self.drain().await,
                read = Self::next(&mut self.sources, &self.log, &self.stdio) => self.took(read, false).await,
            }
        }
        exited.await;
        false
    }

    /// After the exit: what the dead process wrote is in the pipes now, and read in any case; see [`Pump::drain_owed`].
    async fn drain(&mut self) -> bool {
        for source in &mut self.sources {
            // A terminal hands its bytes over with a delay: there only the end or the quiet time tell.
            source.owed = if source.terminal { 0 } else { fionread(&*source.file).unwrap_or(0) };
            source.hung_up = None;
        }
        self.drain_owed().await
    }

    /// Reads what is owed, then on until the end, or until the limits are reached. Returns whether the output is still held
    /// by somebody. The clocks stand while the pump waits for room, and only then: a survivor that never stops writing is
    /// no reason to go on either.
    async fn drain_owed(&mut self) -> bool {
        let mut left = self.limits.max;
        while !self.sources.is_empty() {
            self.room().await;
            let owed = self.sources.iter().any(|source| source.owed > 0);
            if !owed && left.is_zero() {
                return true;
            }
            // Owed bytes are there, so they come at once, unless somebody else has taken them out of the pipe.
            let patience = if owed { self.limits.quiet } else { self.limits.quiet.min(left) };
            let start = Instant::now();
            let waited = tokio::time::timeout(patience, Self::next(&mut self.sources, &self.log, &self.stdio)).await;
            match waited {
                Ok(read) => self.took(read, true).await,
                Err(_) => return true,
            }
            left = left.saturating_sub(start.elapsed());
        }
        false
    }

    /// Waits for room and for output, and reads once.
    async fn next(sources: &mut [Source], log: &Option<Rc<Log>>, stdio: &Stdio) -> Read {
        room(log, stdio).await;
        match sources {
            [one] => one.read(0).await,
            [first, second] => tokio::select! {
                read = first.read(0) => read,
                read = second.read(1) => read,
            },
            _ => std::future::pending().await,
        }
    }

    async fn took(&mut self, read: Read, exited: bool) {
        match read {
            Read::Retry => {}
            Read::Bytes(index, bytes) => {
                let source = &mut self.sources[index];
                source.owed = source.owed.saturating_sub(bytes.len());
                let chunk = Chunk { stream: source.stream, bytes: bytes.freeze() };
                self.since_yield += chunk.bytes.len();
                self.deliver(&chunk);
                if self.since_yield >= YIELD_AFTER || self.stdio.fanout.has_receivers() {
                    self.since_yield = 0;
                    tokio::task::yield_now().await;
                }
            }
            Read::Failed(index) => drop(self.sources.remove(index)),
            Read::Ended(index) => {
                let source = &mut self.sources[index];
                if source.terminal && !exited {
                    source.hang_up();
                } else {
                    self.sources.remove(index);
                }
            }
        }
    }

    fn deliver(&self, chunk: &Chunk) {
        if let Some(log) = &self.log {
            log.append(SystemTime::now(), chunk);
        }
        self.stdio.fanout.publish(chunk);
    }

    async fn room(&self) {
        room(&self.log, &self.stdio).await;
    }
}

/// Resolves when the log and every lossless subscriber have room at once.
async fn room(log: &Option<Rc<Log>>, stdio: &Stdio) {
    loop {
        if let Some(log) = log {
            log.room().await;
        }
        stdio.fanout.room().await;
        if log.as_ref().is_none_or(|log| log.has_room()) {
            return;
        }
    }
}

impl Source {
    async fn read(&mut self, index: usize) -> Read {
        if let Some(pause) = self.hung_up {
            // The reactor would report a hung-up terminal as readable without end: leave it and ask by timer.
            sleep(pause).await;
            return self.retry(index, pause);
        }
        let mut bytes = BytesMut::new();
        match self.input().read(&mut bytes, READ_CHUNK).await {
            Ok(0) => Read::Ended(index),
            Ok(_) => Read::Bytes(index, bytes),
            Err(error) => self.failed(index, &error),
        }
    }

    fn retry(&mut self, index: usize, pause: Duration) -> Read {
        let mut bytes = BytesMut::new();
        match self.input().read_now(&mut bytes, READ_CHUNK) {
            Ok(Some(count)) if count > 0 => {
                self.hung_up = None;
                self.renew();
                Read::Bytes(index, bytes)
            }
            Ok(Some(_)) => Read::Ended(index),
            Ok(None) => {
                // Open again, and quiet.
                self.hung_up = None;
                self.renew();
                Read::Retry
            }
            Err(error) => {
                self.hung_up = Some((pause * 2).min(HANGUP_RETRY.1));
                if error.raw_os_error() == Some(libc::EIO) { Read::Retry } else { self.failed(index, &error) }
            }
        }
    }

    fn failed(&self, index: usize, error: &io::Error) -> Read {
        if self.terminal && error.raw_os_error() == Some(libc::EIO) {
            return Read::Ended(index);
        }
        tracing::warn!(%error, stream = self.stream.name(), "output can no longer be read");
        Read::Failed(index)
    }

    fn hang_up(&mut self) {
        self.hung_up = Some(HANGUP_RETRY.0);
    }

    /// A registration that once saw a hang-up reports it for ever: register the terminal anew under another number.
    /// The writer and the resizer keep the first one, which this source keeps open with it.
    fn renew(&mut self) {
        let again = self.file.as_fd().try_clone_to_owned().map_err(|e| SysError::from_io("register a terminal", &e));
        match again.and_then(AsyncFile::terminal) {
            Ok(file) => self.renewed = Some(file),
            Err(error) => tracing::warn!(%error, "a terminal could not be registered again"),
        }
    }

    fn input(&self) -> &AsyncFile {
        self.renewed.as_ref().unwrap_or(&self.file)
    }
}

#[cfg(test)]
mod tests;
