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
        self.0.pool.push(Box::new(job));
        let mut pending = Pending { result, pool: self.0.pool.clone() };
        while self.0.pool.is_starved() {
            sleep(THREAD_RETRY).await;
            // As above: it is tried again.
            let _ = self.0.pool.start();
        }
        let done = (&mut pending.result).await.ok()?;
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
            self.pool.push(Box::new(move || done.undo()));
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
mod tests {
    use std::{future::Future, sync::mpsc, task::Poll};

    use tokio::{task::yield_now, time::advance};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// A job that says when it begins, and ends when the sender is used or dropped.
    fn held() -> (mpsc::Receiver<()>, mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let ((begin, begun), (release, gate)) = (mpsc::channel(), mpsc::channel());
        let job = move || {
            begin.send(()).unwrap();
            gate.recv().ok();
        };
        (begun, release, job)
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }

    async fn make_known(blocking: &Blocking, path: &Path) {
        blocking.run("test", path, DEADLINE, || (), drop).await.unwrap();
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_job_past_its_deadline_is_left_behind_and_its_late_result_undone() {
        let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
        let (path, (begun, release, job)) = (dir.path().join("file"), held());
        let (undone, undo_seen) = mpsc::channel();
        let mut run = Box::pin(blocking.run("open", &path, DEADLINE, job, move |()| undone.send(()).unwrap()));
        assert!(poll_once(&mut run).await.is_none());
        begun.recv().unwrap();
        advance(DEADLINE).await;
        let error = run.await.unwrap_err();
        assert_eq!(error.to_string(), format!("open {}: file system did not answer within 5 s", path.display()));
        release.send(()).unwrap();
        undo_seen.recv().unwrap();
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_result_of_a_caller_that_went_away_is_undone() {
        let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("file");
        for job_ends_first in [true, false] {
            let ((begun, release, job), (undone, undo_seen)) = (held(), mpsc::channel());
            let mut run = Box::pin(blocking.run("open", &path, DEADLINE, job, move |()| undone.send(()).unwrap()));
            assert!(poll_once(&mut run).await.is_none());
            begun.recv().unwrap();
            if job_ends_first {
                release.send(()).unwrap();
                while blocking.0.unknown.available_permits() < JOBS_UNKNOWN {
                    std::thread::yield_now();
                }
            }
            drop(run);
            drop(release);
            undo_seen.recv().unwrap();
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_device_has_eight_jobs_in_flight_and_a_place_is_free_when_a_job_really_ends() {
        let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("file");
        make_known(&blocking, &path).await;
        let mut stuck = Vec::new();
        for _ in 0..JOBS_PER_DEVICE {
            let (begun, release, job) = held();
            let mut run = Box::pin(blocking.run("read", &path, DEADLINE, job, drop));
            assert!(poll_once(&mut run).await.is_none());
            begun.recv().unwrap();
            stuck.push((release, run));
        }
        let mut ninth = Box::pin(blocking.run("read", &path, DEADLINE, || (), drop));
        assert!(poll_once(&mut ninth).await.is_none());
        advance(DEADLINE).await;
        assert!(ninth.await.is_err(), "the ninth job had no place");

        let mut tenth = Box::pin(blocking.run("read", &path, DEADLINE, || (), drop));
        assert!(poll_once(&mut tenth).await.is_none());
        let (release, abandoned) = stuck.swap_remove(0);
        assert!(abandoned.await.is_err(), "its deadline has passed");
        release.send(()).unwrap();
        tenth.await.unwrap();
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn directories_of_one_device_share_its_places() {
        let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
        let paths: Vec<_> = (0..2 * JOBS_PER_DEVICE).map(|n| dir.path().join(format!("{n}/file"))).collect();
        for path in &paths {
            fs::create_dir(directory_of(path)).unwrap();
            make_known(&blocking, path).await;
        }
        assert_eq!(blocking.0.devices.borrow().len(), paths.len());
        let lanes: Vec<_> = paths.iter().map(|path| blocking.0.lane_of(directory_of(path))).collect();
        assert!(lanes.iter().all(|lane| matches!(lane, Lane::Device(_)) && *lane == lanes[0]));
        assert!(blocking.0.lanes.borrow().len() <= 2, "lanes that nobody uses are forgotten");
    }

    #[test]
    fn a_job_that_waited_for_a_thread_beyond_its_deadline_never_runs() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let (blocking, dir) = (Blocking::with(Pool::of(1)), tempfile::tempdir().unwrap());
            let (path, (_begun, release, job)) = (dir.path().join("file"), held());
            let (ran, job_ran) = mpsc::channel();
            let mut first = Box::pin(blocking.run_to_end("write", &path, job));
            let mut second = Box::pin(blocking.run("write", &path, DEADLINE, move || ran.send(()).unwrap(), drop));
            assert!(poll_once(&mut first).await.is_none());
            assert!(poll_once(&mut second).await.is_none());
            advance(DEADLINE).await;
            assert!(second.await.is_err());
            release.send(()).unwrap();
            first.await.unwrap();
            yield_now().await;
            assert!(job_ran.recv().is_err(), "it was dropped without running");
        });
    }
}
