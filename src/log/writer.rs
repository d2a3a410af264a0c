//! A log driver: the task that carries batches from the queue to the file, one write at a time.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    num::NonZeroU64,
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    format::{Batch, Encoder},
    io::{blocking::Blocking, task::Scope},
    model::Chunk,
};

use super::{
    LogConfig, LogError, LogTotals,
    file::{self, LogFile},
    queue::{Queue, Reply, Step},
};

/// After a write, so long at most is waited for more to write: a busy container's reads come one by one, and a hop to
/// the pool for each would cost more than the write. The first write after a rest does not wait.
const GATHER: Duration = Duration::from_millis(1);

/// A sick log is reported this often.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// One log of one container. Dropping it closes the log without writing what waits: call [`LogWriter::finish`] first.
#[derive(Debug)]
pub(crate) struct LogWriter {
    shared: Rc<Shared>,
}

/// What the driver's task and its user share.
#[derive(Debug)]
struct Shared {
    config: LogConfig,
    queue: RefCell<Queue>,
    /// The task has something to do.
    wake: Notify,
    /// The queue has room.
    room: Notify,
    /// The task is to end, whatever it waits for.
    abandoned: CancellationToken,
    /// The task has ended.
    ended: CancellationToken,
    warned: Cell<Option<Instant>>,
}

impl LogWriter {
    /// Opens a log, or makes it, and starts its task in the scope. What is in the file stays.
    ///
    /// # Errors
    /// The path cannot be opened, or not in time ([`LogConfig::stall`]).
    pub(crate) async fn open(scope: &Scope, blocking: &Blocking, config: LogConfig) -> Result<Self, LogError> {
        let (path, max_size) = (config.path.clone(), config.max_size);
        let open = move || LogFile::open(&path, max_size);
        let file = blocking.run("open log", &config.path, config.stall, open, drop).await??;
        let shared = Rc::new(Shared {
            queue: RefCell::new(Queue::new(config.path.clone(), Encoder::cri())),
            config,
            wake: Notify::new(),
            room: Notify::new(),
            abandoned: CancellationToken::new(),
            ended: CancellationToken::new(),
            warned: Cell::new(None),
        });
        let task = Task { shared: shared.clone(), blocking: blocking.clone() };
        scope.spawn(async move {
            let _ended = task.shared.ended.clone().drop_guard();
            let abandoned = task.shared.abandoned.clone();
            tokio::select! {
                () = abandoned.cancelled() => {}
                () = task.run(file) => {}
            }
        });
        Ok(Self { shared })
    }

    /// Takes what was read from the container at `now`. Never fails and never waits: ask [`LogWriter::has_room`] first.
    pub(crate) fn append(&self, now: SystemTime, chunk: &Chunk) {
        if self.shared.queue.borrow_mut().append(since_epoch(now), chunk) {
            self.shared.wake.notify_one();
        }
    }

    /// False while the pump should not read.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.queue.borrow().has_room()
    }

    /// Resolves when [`LogWriter::has_room`].
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.shared.room.notified().await;
        }
    }

    /// Opens the path anew, after somebody has moved the file away. When this returns, everything appended before is in
    /// the old file, and everything appended since goes to the new one. After an error the old file is still in use.
    ///
    /// # Errors
    /// What was appended cannot be written, the path cannot be opened, or neither was done in time
    /// ([`LogConfig::stall`]).
    pub(crate) async fn reopen(&self) -> Result<(), LogError> {
        let (reply, outcome) = oneshot::channel();
        self.shared.queue.borrow_mut().reopen(reply);
        self.shared.wake.notify_one();
        let path = || self.shared.config.path.clone();
        match timeout(self.shared.config.stall, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(LogError::Closed { path: path() }),
            Err(_) => Err(LogError::Failing { path: path(), cause: "the file system does not answer" }),
        }
    }

    /// The container's output has ended: writes all that was appended, with what is left of the last lines, and closes
    /// the log. What is not written at the deadline is given up and counted as lost. Later appends are ignored.
    pub(crate) async fn finish(&self, deadline: Duration) -> LogTotals {
        self.shared.queue.borrow_mut().end();
        self.shared.wake.notify_one();
        let late = timeout(deadline, self.shared.ended.cancelled()).await.is_err();
        let totals = self.shared.queue.borrow_mut().close();
        if late {
            self.shared.abandoned.cancel();
            tracing::warn!(
                path = %self.shared.config.path.display(),
                lost_bytes = totals.lost.bytes,
                "the log was given up before all was written"
            );
        }
        totals
    }

    #[cfg(test)]
    fn totals(&self) -> LogTotals {
        self.shared.queue.borrow().totals()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.abandoned.cancel();
    }
}

struct Task {
    shared: Rc<Shared>,
    blocking: Blocking,
}

impl Task {
    /// Moves the file into one job after the other. Ends early only when the runtime does.
    async fn run(self, mut file: LogFile) {
        let path = &self.shared.config.path;
        loop {
            let step = self.shared.queue.borrow_mut().next(Instant::now(), since_epoch(SystemTime::now()));
            file = match step {
                Step::Write { batch, torn } => {
                    let Some(file) = self.write(file, batch, torn).await else { return };
                    self.announce_room();
                    self.gather().await;
                    file
                }
                Step::Reopen(reply) => {
                    let max_size = self.shared.config.max_size;
                    let job = self.blocking.run_to_end("reopen log", path, move || reopen(file, max_size, reply));
                    let Ok(file) = self.with_stall_clock(job).await else { return };
                    self.shared.queue.borrow_mut().reopened();
                    file
                }
                Step::Wait(until) => {
                    self.wait(until).await;
                    file
                }
                Step::Finish => {
                    // On a network file system closing is work, too.
                    let closed = self.blocking.run_to_end("close log", path, move || drop(file)).await;
                    return closed.unwrap_or_default();
                }
            };
            self.announce_room();
        }
    }

    async fn write(&self, mut file: LogFile, batch: Batch, torn: bool) -> Option<LogFile> {
        let job = self.blocking.run_to_end("write log", &self.shared.config.path, move || {
            let written = file.write_batch(&batch, torn);
            (file, batch, written)
        });
        let (file, batch, written) = self.with_stall_clock(job).await.ok()?;
        self.shared.queue.borrow_mut().wrote(Instant::now(), batch, &written);
        if let Some(error) = written.error {
            self.warn(file::reason(error), "the log cannot be written, so output is dropped until it can");
        } else if let Some(error) = written.rotation_error {
            self.warn(file::reason(error), "the log is larger than its limit because no new file can be made");
        }
        Some(file)
    }

    /// Waits for a job. When it takes too long, the container is no longer held up by it.
    async fn with_stall_clock<T>(&self, job: impl Future<Output = T>) -> T {
        let mut job = pin!(job);
        if let Ok(result) = timeout(self.shared.config.stall, &mut job).await {
            return result;
        }
        self.shared.queue.borrow_mut().stall();
        self.announce_room();
        self.warn("the file system does not answer", "the log is stuck, so output is dropped while it is");
        job.await
    }

    async fn gather(&self) {
        let deadline = Instant::now() + GATHER;
        while self.shared.queue.borrow().is_worth_gathering() && Instant::now() < deadline {
            self.wait(Some(deadline)).await;
        }
    }

    async fn wait(&self, until: Option<Instant>) {
        let woken = self.shared.wake.notified();
        match until {
            None => woken.await,
            Some(time) => tokio::select! {
                () = woken => {}
                () = sleep_until(time) => {}
            },
        }
    }

    fn announce_room(&self) {
        if self.shared.queue.borrow().has_room() {
            self.shared.room.notify_waiters();
        }
    }

    fn warn(&self, error: &'static str, message: &'static str) {
        let now = Instant::now();
        if self.shared.warned.get().is_some_and(|before| now < before + WARN_PAUSE) {
            return;
        }
        self.shared.warned.set(Some(now));
        let lost = self.shared.queue.borrow().totals().lost;
        tracing::warn!(path = %self.shared.config.path.display(), error, lost_bytes = lost.bytes, "{message}");
    }
}

/// Opens the path of a log anew and tells the caller, in the pool. If the caller has gone meanwhile, it was told of an
/// error and may put the old file back in its place: then the old file must go on.
fn reopen(old: LogFile, max_size: Option<NonZeroU64>, reply: Reply) -> LogFile {
    let (outcome, new) = match LogFile::open(old.path(), max_size) {
        Ok(new) => (Ok(()), Some(new)),
        Err(error) => (Err(error.into()), None),
    };
    let told = reply.send(outcome).is_ok();
    new.filter(|_| told).unwrap_or(old)
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
