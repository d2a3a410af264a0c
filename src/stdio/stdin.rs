//! Bytes on their way into a process.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::{Rc, Weak},
};

use bytes::{Buf as _, Bytes};
use tokio::sync::Notify;

use crate::io::{fd::AsyncFile, queue::ByteQueue};

/// What one process's queue may always hold, in bytes. Full: [`Stdin::write`] waits, so that its client is not read.
const STDIN_QUEUE: usize = 64 * 1024;
/// What it may hold while the pod's [`ReadAhead`] has room: pings arrive behind stdin, and must be read to be answered.
const STDIN_READ_AHEAD: usize = 1024 * 1024;
/// The pod's pool for that, in bytes. Used up: queues end at [`STDIN_QUEUE`].
const READ_AHEAD_POOL: usize = 8 * 1024 * 1024;

/// The memory that all stdin queues of a pod share beyond their own bound.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    used: Cell<usize>,
}

impl ReadAhead {
    /// Whether so many bytes more can be borrowed.
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.used.get() + length <= READ_AHEAD_POOL
    }

    /// Changes what one queue has borrowed.
    pub(crate) fn settle(&self, borrowed: &Cell<usize>, now: usize) {
        self.used.set(self.used.get() - borrowed.replace(now) + now);
    }
}

/// The stdin of one process: a bounded queue that exists before the process does.
#[derive(Debug)]
pub(crate) struct Stdin {
    queue: RefCell<ByteQueue<()>>,
    pool: Rc<ReadAhead>,
    /// What this queue has taken from the pool.
    borrowed: Cell<usize>,
    state: Cell<State>,
    /// Woken on every change that a writer or the task may wait for.
    room: Notify,
    work: Notify,
}

/// ```text
/// Open ──half-close──▶ Closing ──queue empty──▶ Closed
///   └──────────process gone, EPIPE───────────────▲
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing,
    Closed,
}

/// The process takes no more input. Not an error of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl Stdin {
    pub(crate) fn new(pool: Rc<ReadAhead>) -> Self {
        Self {
            queue: RefCell::new(ByteQueue::new()),
            pool,
            borrowed: Cell::new(0),
            state: Cell::new(State::Open),
            room: Notify::new(),
            work: Notify::new(),
        }
    }

    /// Queues bytes, waiting for room. Cancel safe: nothing is queued when dropped early.
    pub(crate) async fn write(&self, bytes: Bytes) -> Result<(), Closed> {
        while self.state.get() == State::Open {
            if self.has_room(bytes.len()) {
                self.queue.borrow_mut().push((), bytes);
                self.account();
                self.work.notify_one();
                return Ok(());
            }
            self.room.notified().await;
        }
        // Several clients of one container may wait here: each wakes the next.
        self.room.notify_one();
        Err(Closed)
    }

    /// No more input will come: what is queued is still written, then the process sees the end.
    pub(crate) fn half_close(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Closing);
            self.work.notify_one();
            self.room.notify_one();
        }
    }

    /// The process takes no more input: what is queued is dropped.
    pub(crate) fn close(&self) {
        self.state.set(State::Closed);
        self.queue.borrow_mut().clear();
        self.account();
        self.work.notify_one();
        self.room.notify_one();
    }

    fn has_room(&self, length: usize) -> bool {
        let cost = self.queue.borrow().cost();
        cost < STDIN_QUEUE || (cost + length <= STDIN_READ_AHEAD && self.pool.has_room(length))
    }

    /// Settles with the pool what the queue holds beyond its own bound.
    fn account(&self) {
        let beyond = self.queue.borrow().cost().saturating_sub(STDIN_QUEUE);
        self.pool.settle(&self.borrowed, beyond);
    }

    /// The next bytes to write; `None` when the process is to see the end, or is gone.
    async fn next(&self) -> Option<Bytes> {
        loop {
            let popped = self.queue.borrow_mut().pop();
            if let Some(((), bytes)) = popped {
                self.account();
                self.room.notify_one();
                return Some(bytes);
            }
            if self.state.get() != State::Open {
                self.state.set(State::Closed);
                return None;
            }
            self.work.notified().await;
        }
    }

    async fn closed(&self) {
        while self.state.get() != State::Closed {
            self.work.notified().await;
        }
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.pool.used.set(self.pool.used.get() - self.borrowed.get());
    }
}

/// Where the writer's bytes go.
#[derive(Debug)]
pub(crate) enum Target {
    /// Owned: dropping it is the end that the process sees.
    Pipe(AsyncFile),
    /// Borrowed from the pump: dropping the master would hang the terminal up, so the end of input does nothing to it.
    Terminal(Weak<AsyncFile>),
}

/// Writes the queue to the process until either ends.
pub(crate) async fn write_out(stdin: &Stdin, target: Target) {
    while let Some(mut bytes) = stdin.next().await {
        while !bytes.is_empty() {
            let done = tokio::select! {
                biased;
                // While a write waits, the process may end or the client's session be given up.
                () = stdin.closed() => return,
                done = write_once(&target, &bytes) => done,
            };
            match done {
                Ok(count) => bytes.advance(count),
                Err(error) => {
                    if error.raw_os_error() != Some(libc::EPIPE) {
                        tracing::debug!(%error, "input can no longer be written");
                    }
                    stdin.close();
                    return;
                }
            }
            // A pipe that always has room must not keep everybody else waiting.
            tokio::task::yield_now().await;
        }
    }
}

async fn write_once(target: &Target, bytes: &[u8]) -> io::Result<usize> {
    match target {
        Target::Pipe(file) => file.write(bytes).await,
        Target::Terminal(master) => match master.upgrade() {
            Some(master) => master.write(bytes).await,
            None => Err(io::Error::from_raw_os_error(libc::EPIPE)),
        },
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn fill(stdin: &Stdin) -> usize {
        let mut total = 0;
        while stdin.write(Bytes::from(vec![0; 16 * 1024])).now_or_never() == Some(Ok(())) {
            total += 16 * 1024;
        }
        total
    }

    #[test]
    fn a_queue_reads_ahead_one_mebibyte_and_then_waits() {
        let stdin = Stdin::new(Rc::default());
        let total = fill(&stdin);
        assert!((STDIN_READ_AHEAD - 32 * 1024..=STDIN_READ_AHEAD).contains(&total), "{total}");
    }

    #[test]
    fn a_pool_that_is_used_up_leaves_every_queue_its_own_bound() {
        let pool = Rc::<ReadAhead>::default();
        let queues: Vec<Stdin> = (0..12).map(|_| Stdin::new(pool.clone())).collect();
        let totals: Vec<usize> = queues.iter().map(fill).collect();
        assert!(totals.iter().sum::<usize>() <= READ_AHEAD_POOL + 12 * (STDIN_QUEUE + 16 * 1024));
        assert!(*totals.last().unwrap() >= STDIN_QUEUE);
        drop(queues);
        assert_eq!(pool.used.get(), 0);
    }

    #[test]
    fn half_close_delivers_what_is_queued_first_and_refuses_what_comes_later() {
        let stdin = Stdin::new(Rc::default());
        stdin.write(Bytes::from_static(b"x")).now_or_never().unwrap().unwrap();
        stdin.half_close();
        assert_eq!(stdin.write(Bytes::from_static(b"y")).now_or_never(), Some(Err(Closed)));
        assert_eq!(stdin.next().now_or_never(), Some(Some(Bytes::from_static(b"x"))));
        assert_eq!(stdin.next().now_or_never(), Some(None));
    }

    #[test]
    fn a_writer_that_waits_is_told_when_the_process_is_gone() {
        let stdin = Stdin::new(Rc::default());
        fill(&stdin);
        let mut waiting = Box::pin(stdin.write(Bytes::from(vec![0; 16 * 1024])));
        assert!((&mut waiting).now_or_never().is_none());
        stdin.close();
        assert_eq!(waiting.now_or_never(), Some(Err(Closed)));
    }
}
