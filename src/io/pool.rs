//! Threads for jobs that may hang.
//!
//! Not tokio's own, which panics when there is none and none can be made: where a pod has used up the processes it may have
//! (`pids.max`), the daemon would end with it. Here the job waits until a thread can be made.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Jobs that hang on a sick file system must not use up the threads: the limit per device keeps them below this.
const THREADS: usize = 64;
/// An idle daemon has one thread.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How often the end of the last jobs is looked for.
const END_LOOK: Duration = Duration::from_millis(5);

/// Address space for the stack of a thread, which uses 12 KiB of it. The C library keeps the stacks of ended threads, with
/// what they used, up to 40 MiB of address space: five of this size, where twenty of the usual one would be.
const STACK: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// How a thread is made; another one in tests, where none can be made.
type Make = fn(Job) -> io::Result<()>;

/// Threads that are made when there is work, and end a second after.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Mutex<Shared>,
    /// There is a job, or one has ended.
    changed: Condvar,
    most: usize,
    make: Make,
}

#[derive(Default)]
struct Shared {
    /// Bounded by the tickets of whoever hands jobs in: each job has one, and at most one that undoes it.
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// A job waits since no thread could be made for it.
    starved: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs wait, {} of {} threads idle", self.jobs.len(), self.idle, self.threads)
    }
}

impl Pool {
    pub(super) fn new() -> Arc<Self> {
        Self::of(THREADS)
    }

    pub(super) fn of(most: usize) -> Arc<Self> {
        Self::with(most, make)
    }

    pub(super) fn with(most: usize, make: Make) -> Arc<Self> {
        Arc::new(Self { shared: Mutex::default(), changed: Condvar::new(), most, make })
    }

    /// Has a job done as soon as there is a thread for it.
    ///
    /// # Errors
    /// No thread could be made. The job waits; [`Pool::start`] is to be called until it succeeds, for the threads that
    /// there are may hang.
    pub(super) fn push(self: &Arc<Self>, job: Job) -> io::Result<()> {
        #[cfg(test)]
        let job = holding_the_clock(job);
        self.lock().jobs.push_back(job);
        self.start()
    }

    /// Sees to it that there is one more thread for the jobs that wait, if they need one and may have it.
    ///
    /// # Errors
    /// No thread could be made.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let mut shared = self.lock();
        if shared.jobs.len() <= shared.idle {
            self.changed.notify_all();
            return Ok(());
        }
        if shared.threads == self.most {
            return Ok(());
        }
        let pool = self.clone();
        let made = (self.make)(Box::new(move || pool.work()));
        match &made {
            Ok(()) => shared.threads += 1,
            Err(error) if !shared.starved => tracing::warn!(%error, "no thread can be made: jobs wait"),
            Err(_) => {}
        }
        shared.starved = made.is_err();
        made
    }

    /// Whether a job waits since no thread could be made for it.
    pub(super) fn is_starved(&self) -> bool {
        self.lock().starved
    }

    /// Waits for the jobs under way, but not for those that hang.
    pub(super) fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut shared = self.lock();
        while shared.threads > shared.idle && Instant::now() < end {
            shared = self.changed.wait_timeout(shared, END_LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn work(&self) {
        let mut shared = self.lock();
        loop {
            if let Some(job) = shared.jobs.pop_front() {
                drop(shared);
                job();
                shared = self.lock();
                continue;
            }
            shared.idle += 1;
            shared.starved = false;
            let nothing = |shared: &mut Shared| shared.jobs.is_empty();
            let waited = self.changed.wait_timeout_while(shared, KEEP_ALIVE, nothing);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
            shared.idle -= 1;
            if shared.jobs.is_empty() {
                shared.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(work: Job) -> io::Result<()> {
    thread::Builder::new().name("job".to_owned()).stack_size(STACK).spawn(work).map(drop)
}

/// The clock of a test that stands still must do so while a job is under way, as tokio does for its own.
#[cfg(test)]
#[allow(clippy::disallowed_methods)]
fn holding_the_clock(job: Job) -> Job {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return job };
    let (done, wait) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || wait.recv());
    Box::new(move || {
        job();
        drop(done);
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn as_many_threads_as_jobs_up_to_the_limit_and_none_when_idle() {
        let pool = Pool::of(2);
        let (ran, runs) = mpsc::channel();
        let gates: Vec<_> = (0..3)
            .map(|number| {
                let ((gate, wait), ran) = (mpsc::channel::<()>(), ran.clone());
                let job = move || {
                    ran.send(number).unwrap();
                    wait.recv().ok();
                };
                pool.push(Box::new(job)).unwrap();
                gate
            })
            .collect();
        let mut first = [runs.recv().unwrap(), runs.recv().unwrap()];
        first.sort_unstable();
        assert_eq!((first, format!("{:?}", pool.lock())), ([0, 1], "1 jobs wait, 0 of 2 threads idle".to_owned()));
        pool.finish(Duration::from_millis(10));
        assert!(runs.try_recv().is_err(), "both threads hang, and nobody waits for them for ever");
        drop(gates);
        assert_eq!(runs.recv().unwrap(), 2);
        pool.finish(Duration::from_secs(30));
        assert!(!pool.is_starved());
        while pool.lock().threads > 0 {
            thread::yield_now();
        }
    }
}
