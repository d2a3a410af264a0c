//! The only door to the blocking pool.
//!
//! A call on a path can hang for ever when its file system is sick. So it runs in a thread of its own, nobody waits for
//! it longer than a deadline, and one device never gets more than a few threads: the pool is finite, and the other
//! devices need the rest of it.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::pool::Pool;

/// The jobs one device may have in flight. A job that waits for its turn waits on the loop, not in a thread.
const JOBS_PER_DEVICE: usize = 8;

/// The jobs in flight in directories whose device is not known yet. Without this limit, a frozen mount on which a new
/// directory is named with every request would in the end have all threads.
const JOBS_UNKNOWN: usize = 24;

/// How long to wait before a thread is tried to be made again, where there is none.
const THREAD_RETRY: Duration = Duration::from_millis(100);

/// The directories whose device is remembered. When there are more, all are forgotten and learnt again.
const DIRECTORIES_KNOWN: usize = 256;

/// Runs blocking calls. There is one for the whole daemon; a clone is the same one.
#[derive(Debug, Clone)]
pub(crate) struct Blocking(Rc<Lanes>);

#[derive(Debug)]
struct Lanes {
    pool: Arc<Pool>,
    devices: RefCell<HashMap<PathBuf, u64>>,
    /// Held by the jobs that run or wait in them.
    lanes: RefCell<HashMap<Lane, Weak<Semaphore>>>,
    unknown: Arc<Semaphore>,
}

/// What jobs share the limit of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    /// By `st_dev`.
    Device(u64),
    /// Until a job in it has learnt the device.
    Directory(PathBuf),
}

/// The right to be in flight. The job itself holds it, so it is given back when the job really ends.
struct Ticket {
    _lane: OwnedSemaphorePermit,
    _unknown: Option<OwnedSemaphorePermit>,
    /// The directory whose device is to be learnt.
    learn: Option<PathBuf>,
}

impl Blocking {
    pub(crate) fn new() -> Self {
        Self::with(Pool::new())
    }

    fn with(pool: Arc<Pool>) -> Self {
        Self(Rc::new(Lanes {
            pool,
            devices: RefCell::default(),
            lanes: RefCell::default(),
            unknown: Arc::new(Semaphore::new(JOBS_UNKNOWN)),
        }))
    }

    /// Waits for the jobs under way, but not for those that hang.
    pub(crate) fn finish(&self, limit: Duration) {
        self.0.pool.finish(limit);
    }

    /// Runs a job that works on `path`, and waits for it until the deadline.
    ///
    /// If nobody waits any more (the deadline has passed, or this future was dropped), a job that has not begun never
    /// runs, and the result of one that has goes to `undo`, in the pool. `op` is a verb for the error text.
    ///
    /// # Errors
    /// The job did not end in time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &Path,
        deadline: Duration,
        job: impl FnOnce() -> T + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, BlockingError> {
        let result = timeout(deadline, self.submit(path, job, undo)).await;
        let reason = match result {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => Reason::Stopped,
            Err(_) if self.0.pool.is_starved() => Reason::NoThread(deadline),
            Err(_) => Reason::NoAnswer(deadline),
        };
        Err(BlockingError { op, path: path.to_owned(), reason })
    }

    /// Runs a job and waits until it ends, however long that takes: for a caller with a clock of its own, whose job
    /// takes what it works on and gives it back. If this future is dropped, the result is dropped in the pool.
    ///
    /// # Errors
    /// The runtime shuts down and the job will not run.
    pub(crate) async fn run_to_end<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &Path,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BlockingError> {
        let result = self.submit(path, job, drop).await;
        result.ok_or_else(|| BlockingError { op, path: path.to_owned(), reason: Reason::Stopped })
    }

    async fn submit<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl FnOnce() -> T + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> Option<T> {
        let directory = directory_of(path);
        let ticket = self.0.enter(directory).await;
        let (reply, result) = oneshot::channel();
        let job = move || {
            if reply.is_closed() {
                return;
            }
            let device = ticket.learn.as_deref().and_then(|directory| fs::metadata(directory).ok());
            let done = Done { value: job(), undo, device: device.map(|found| found.dev()) };
            if let Err(late) = reply.send(done) {
                late.undo();
            }
            drop(ticket);
        };
        let mut needs_thread = self.0.pool.push(Box::new(job)).is_err();
        let mut pending = Pending { result, pool: self.0.pool.clone() };
        let done = loop {
            tokio::select! {
                done = &mut pending.result => break done.ok()?,
                // Also where there are threads: they may hang on another device.
                () = sleep(THREAD_RETRY), if needs_thread => needs_thread = self.0.pool.start().is_err(),
            }
        };
        if let Some(device) = done.device {
            self.0.learn(directory, device);
        }
        Some(done.value)
    }
}

impl Lanes {
    async fn enter(&self, directory: &Path) -> Ticket {
        loop {
            let lane = self.lane_of(directory);
            let permit = acquire(self.semaphore(&lane)).await;
            // Those who waited while the first job learnt the device go on in the device's lane.
            if self.lane_of(directory) != lane {
                continue;
            }
            return match lane {
                Lane::Device(_) => Ticket { _lane: permit, _unknown: None, learn: None },
                Lane::Directory(directory) => {
                    let unknown = acquire(self.unknown.clone()).await;
                    Ticket { _lane: permit, _unknown: Some(unknown), learn: Some(directory) }
                }
            };
        }
    }

    fn lane_of(&self, directory: &Path) -> Lane {
        let device = self.devices.borrow().get(directory).copied();
        device.map_or_else(|| Lane::Directory(directory.to_owned()), Lane::Device)
    }

    fn semaphore(&self, lane: &Lane) -> Arc<Semaphore> {
        let mut lanes = self.lanes.borrow_mut();
        if let Some(semaphore) = lanes.get(lane).and_then(Weak::upgrade) {
            return semaphore;
        }
        lanes.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(JOBS_PER_DEVICE));
        lanes.insert(lane.clone(), Arc::downgrade(&semaphore));
        semaphore
    }

    fn learn(&self, directory: &Path, device: u64) {
        let mut devices = self.devices.borrow_mut();
        if devices.len() >= DIRECTORIES_KNOWN {
            devices.clear();
        }
        devices.insert(directory.to_owned(), device);
    }
}

async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("these semaphores are never closed")
}

/// The directory that a name is looked up in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

/// What a job sends back.
struct Done<T, U> {
    value: T,
    undo: U,
    device: Option<u64>,
}

impl<T, U: FnOnce(T)> Done<T, U> {
    fn undo(self) {
        (self.undo)(self.value);
    }
}

/// Waits for a job. Dropping it between the job's end and the loop's next turn must not lose the result.
struct Pending<T: Send + 'static, U: FnOnce(T) + Send + 'static> {
    result: oneshot::Receiver<Done<T, U>>,
    pool: Arc<Pool>,
}

impl<T: Send + 'static, U: FnOnce(T) + Send + 'static> Drop for Pending<T, U> {
    fn drop(&mut self) {
        self.result.close();
        if let Ok(done) = self.result.try_recv() {
            // Where no thread can be made now, the next job brings one.
            let _ = self.pool.push(Box::new(move || done.undo()));
        }
    }
}

/// A blocking call gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op} {}: {reason}", path.display())]
pub(crate) struct BlockingError {
    op: &'static str,
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("file system did not answer within {} s", .0.as_secs_f64())]
    NoAnswer(Duration),
    #[error("no thread could be made for {} s: the limit of processes (pids.max, RLIMIT_NPROC) is reached", .0.as_secs_f64())]
    NoThread(Duration),
    #[error("the daemon is shutting down")]
    Stopped,
}

#[cfg(test)]
mod tests;
