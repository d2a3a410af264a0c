//! A log driver: the task that carries batches from the queue to the file or to the journal, one write at a time.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    num::NonZeroU64,
    path::PathBuf,
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
    format::Batch,
    io::{blocking::Blocking, task::Scope},
    model::Chunk,
};

use super::{
    LogConfig, LogError, LogTotals, Target,
    file::{FileId, LogFile},
    journal::JournalSocket,
    queue::{Queue, Reply, Step},
};

/// After a write, so long at most is waited for more to write: a busy container's reads come one by one, and a hop to
/// the pool for each would cost more than the write. The first write after a rest does not wait.
const GATHER: Duration = Duration::from_millis(1);

/// A sick log is reported at most this often, a journal that is not there once until it is back.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// How long a write that has not returned in time may hold up the end of its container: what it waits for is gone for longer.
const STUCK_FLUSH: Duration = Duration::from_secs(1);

/// One log of one container. Dropping it closes the log without writing what waits: call [`LogWriter::finish`] first.
#[derive(Debug)]
pub(crate) struct LogWriter {
    shared: Rc<Shared>,
}

/// What the driver's task and its user share.
#[derive(Debug)]
struct Shared {
    config: LogConfig,
    blocking: Blocking,
    /// The file, if this made it.
    made: Option<FileId>,
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
    /// A write has succeeded since the last warning.
    recovered: Cell<bool>,
}

/// Where batches go.
#[derive(Debug)]
enum Sink {
    File(LogFile),
    Journal(JournalSocket),
}

impl LogWriter {
    /// Opens a log, or makes it, and starts its task in the scope. What is in the file stays.
    ///
    /// # Errors
    /// The path cannot be opened, or not in time ([`LogConfig::stall`]).
    pub(crate) async fn open(scope: &Scope, blocking: &Blocking, config: LogConfig) -> Result<Self, LogError> {
        let (sink, made) = match &config.target {
            Target::File { path, max_size, .. } => {
                let file = open_file(blocking, &config, path.clone(), *max_size).await?;
                let made = file.made();
                (Sink::File(file), made)
            }
            Target::Journal { socket, shared_fields } => {
                (Sink::Journal(JournalSocket::new(socket.clone(), shared_fields.clone())?), None)
            }
        };
        let shared = Rc::new(Shared {
            queue: RefCell::new(Queue::new(config.target.path().to_owned(), config.target.encoder())),
            config,
            blocking: blocking.clone(),
            made,
            wake: Notify::new(),
            room: Notify::new(),
            abandoned: CancellationToken::new(),
            ended: CancellationToken::new(),
            warned: Cell::new(None),
            recovered: Cell::new(false),
        });
        let task = Task { shared: shared.clone() };
        scope.spawn(async move {
            let _ended = task.shared.ended.clone().drop_guard();
            let abandoned = task.shared.abandoned.clone();
            tokio::select! {
                () = abandoned.cancelled() => {}
                () = task.run(sink) => {}
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

    /// Closes a log that nothing was written to, and removes the file if opening it made it.
    pub(crate) async fn discard(&self) {
        self.finish(Duration::ZERO).await;
        let Some(made) = self.shared.made else { return };
        let path = self.shared.config.target.path();
        let job_path = path.to_owned();
        let removed = self.shared.blocking.run(
            "remove log",
            path,
            self.shared.config.stall,
            move || made.remove_empty(&job_path),
            drop,
        );
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(path = %path.display(), %error, "the unused log was not removed"),
            Err(error) => tracing::debug!(%error, "the unused log was not removed"),
        }
    }

    /// Opens the path anew, after somebody has moved the file away. When this returns, everything appended before is in
    /// the old file, and everything appended since goes to the new one. What the old file does not take is lost, and the new
    /// one begins with the record that tells so. After an error the old file is still in use. The journal has no file, so
    /// there is nothing to do.
    ///
    /// # Errors
    /// The path cannot be opened, or not in time ([`LogConfig::stall`]).
    pub(crate) async fn reopen(&self) -> Result<(), LogError> {
        if let Target::Journal { .. } = self.shared.config.target {
            return Ok(());
        }
        let (reply, outcome) = oneshot::channel();
        self.shared.queue.borrow_mut().reopen(reply);
        self.shared.wake.notify_one();
        let path = || self.shared.config.target.path().to_owned();
        match timeout(self.shared.config.stall, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(LogError::Closed { path: path() }),
            Err(_) => Err(LogError::Failing { path: path(), cause: self.shared.stuck() }),
        }
    }

    /// The container's output has ended: writes all that was appended, with what is left of the last lines, and closes
    /// the log. What is not written at the deadline, or soon if the log is stuck already, is given up and counted as lost.
    /// Later appends are ignored.
    pub(crate) async fn finish(&self, deadline: Duration) -> LogTotals {
        self.shared.queue.borrow_mut().end();
        self.shared.wake.notify_one();
        let stuck = self.shared.queue.borrow().is_stuck();
        let deadline = if stuck { deadline.min(STUCK_FLUSH) } else { deadline };
        let late = timeout(deadline, self.shared.ended.cancelled()).await.is_err();
        let totals = self.shared.queue.borrow_mut().close();
        if late {
            self.shared.abandoned.cancel();
            tracing::warn!(
                path = %self.shared.config.target.path().display(),
                lost_bytes = totals.lost.bytes,
                "the log was given up before all was written"
            );
        }
        totals
    }

    /// What became of what was appended, as far as that is decided.
    pub(crate) fn totals(&self) -> LogTotals {
        self.shared.queue.borrow().totals()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.abandoned.cancel();
    }
}

impl Shared {
    /// Why a write that does not return does not.
    fn stuck(&self) -> &'static str {
        match self.config.target {
            Target::File { .. } => "the file system does not answer",
            Target::Journal { .. } => "the journal does not keep up",
        }
    }
}

struct Task {
    shared: Rc<Shared>,
}

impl Task {
    /// Moves the sink into one job after the other. Ends early only when the runtime does.
    async fn run(self, mut sink: Sink) {
        loop {
            let step = self.shared.queue.borrow_mut().next(Instant::now(), since_epoch(SystemTime::now()));
            // It has emptied the queue, if only of bytes that make no record yet.
            self.announce_room();
            sink = match step {
                Step::Write { batch, torn } => {
                    let Some(sink) = self.write(sink, batch, torn).await else { return };
                    self.announce_room();
                    self.gather().await;
                    sink
                }
                Step::Reopen(reply) => {
                    let Some((sink, anew)) = self.reopen(sink, reply).await else { return };
                    self.shared.queue.borrow_mut().reopened(anew);
                    sink
                }
                Step::Wait(until) => {
                    self.wait(until).await;
                    sink
                }
                Step::Finish => return self.close(sink).await,
            };
            self.announce_room();
        }
    }

    async fn write(&self, sink: Sink, batch: Batch, torn: bool) -> Option<Sink> {
        let path = self.shared.config.target.path();
        let (sink, batch, written) = match sink {
            Sink::File(mut file) => {
                let job = self.shared.blocking.run_to_end("write log", path, move || {
                    let written = file.write_batch(&batch, torn);
                    (Sink::File(file), batch, written)
                });
                self.with_stall_clock(job).await.ok()?
            }
            Sink::Journal(mut journal) => {
                let written = self.with_stall_clock(journal.send(&batch)).await;
                (Sink::Journal(journal), batch, written)
            }
        };
        self.shared.queue.borrow_mut().wrote(Instant::now(), batch, &written);
        if let Some(error) = written.error {
            self.warn(error, "the log cannot be written, so output is dropped until it can");
        } else {
            self.shared.recovered.set(true);
        }
        if let Some(error) = written.rotation_error {
            self.warn(error, "the log is larger than its limit because no new file can be made");
        }
        Some(sink)
    }

    async fn reopen(&self, sink: Sink, reply: Reply) -> Option<(Sink, bool)> {
        let (Sink::File(file), Target::File { path, max_size, .. }) = (sink, &self.shared.config.target) else {
            // A journal is never asked to.
            return None;
        };
        let max_size = *max_size;
        let job = self.shared.blocking.run_to_end("reopen log", path, move || reopen(file, max_size, reply));
        self.with_stall_clock(job).await.ok().map(|(file, anew)| (Sink::File(file), anew))
    }

    async fn close(&self, sink: Sink) {
        let Sink::File(file) = sink else { return };
        // On a network file system closing is work, too.
        let job = self.shared.blocking.run_to_end("close log", self.shared.config.target.path(), move || drop(file));
        job.await.unwrap_or_default();
    }

    /// Waits for a job. When it takes too long, the container is no longer held up by it.
    async fn with_stall_clock<T>(&self, job: impl Future<Output = T>) -> T {
        let mut job = pin!(job);
        if let Ok(result) = timeout(self.shared.config.stall, &mut job).await {
            return result;
        }
        self.shared.queue.borrow_mut().stall(self.shared.stuck());
        self.announce_room();
        self.warn(self.shared.stuck(), "the log is stuck, so output is dropped while it is");
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
        let Shared { config, warned, recovered, .. } = &*self.shared;
        let now = Instant::now();
        let may_repeat = matches!(config.target, Target::File { .. }) || recovered.get();
        if warned.get().is_some_and(|before| now < before + WARN_PAUSE || !may_repeat) {
            return;
        }
        warned.set(Some(now));
        recovered.set(false);
        let lost = self.shared.queue.borrow().totals().lost;
        tracing::warn!(path = %config.target.path().display(), error, lost_bytes = lost.bytes, "{message}");
    }
}

async fn open_file(
    blocking: &Blocking,
    config: &LogConfig,
    path: PathBuf,
    max_size: Option<NonZeroU64>,
) -> Result<LogFile, LogError> {
    // Who gave up waiting for it will not use it, and it may have been made for him.
    let undo_path = path.clone();
    let undo = move |late: Result<LogFile, _>| {
        if let Some(made) = late.ok().and_then(|file| file.made()) {
            // Somebody may use it by now, or the file system is as sick as it was.
            let _ = made.remove_empty(&undo_path);
        }
    };
    let open = move || LogFile::open(&path, max_size);
    Ok(blocking.run("open log", config.target.path(), config.stall, open, undo).await??)
}

/// Opens the path of a log anew and tells the caller, in the pool. Returns the file to go on with, and whether it is the new
/// one. If the caller has gone meanwhile, it was told of an error and may put the old file back in its place: then the old
/// file must go on.
fn reopen(old: LogFile, max_size: Option<NonZeroU64>, reply: Reply) -> (LogFile, bool) {
    let (outcome, new) = match LogFile::open(old.path(), max_size) {
        Ok(new) => (Ok(()), Some(new)),
        Err(error) => (Err(error.into()), None),
    };
    let told = reply.send(outcome).is_ok();
    new.filter(|_| told).map_or((old, false), |new| (new, true))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
