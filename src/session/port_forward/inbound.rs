//! Bytes on their way from a client to a port in the pod.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};

use crate::{io::queue::ByteQueue, stdio::ReadAhead};

/// What one pair's queue holds, in bytes. Full: the client's whole connection is not read, since SPDY as it is spoken has
/// no windows; a pair that stays full for too long is reset.
const PAIR_QUEUE: usize = 256 * 1024;
/// What the pairs of one connection may always hold together, in bytes. Full: as above.
const CONNECTION_QUEUE: usize = 256 * 1024;
/// What they may hold while the pod's [`ReadAhead`] has room.
const CONNECTION_READ_AHEAD: usize = 4 * 1024 * 1024;

/// What the pairs of one connection hold.
#[derive(Debug)]
pub(super) struct ConnectionMemory {
    used: Cell<usize>,
    /// What of it comes from the pool.
    borrowed: Cell<usize>,
    pool: Rc<ReadAhead>,
    /// Woken when it holds less.
    room: Notify,
}

impl ConnectionMemory {
    pub(super) fn new(pool: Rc<ReadAhead>) -> Rc<Self> {
        Rc::new(Self { used: Cell::new(0), borrowed: Cell::new(0), pool, room: Notify::new() })
    }

    /// Waits until it holds less. For the reading loop of the connection alone.
    pub(super) async fn changed(&self) {
        self.room.notified().await;
    }

    fn has_room(&self, length: usize) -> bool {
        let used = self.used.get();
        used < CONNECTION_QUEUE || (used + length <= CONNECTION_READ_AHEAD && self.pool.has_room(length))
    }

    fn change(&self, from: usize, to: usize) {
        self.used.set(self.used.get() - from + to);
        let beyond = self.used.get().saturating_sub(CONNECTION_QUEUE);
        self.pool.settle(&self.borrowed, beyond);
        self.room.notify_one();
    }
}

/// The queue of one pair. One task pushes, one takes.
#[derive(Debug)]
pub(super) struct Inbound {
    queue: RefCell<ByteQueue<()>>,
    /// The client sends no more, or nobody takes any more.
    state: Cell<State>,
    /// When something was taken last, or came into the empty queue.
    taken_at: Cell<Instant>,
    memory: Rc<ConnectionMemory>,
    work: Notify,
}

/// ```text
/// Open ──client's half-close──▶ Closing ──all delivered──▶ Delivered
///   └────socket broken──▶ Discarding
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing,
    Delivered,
    Discarding,
}

impl Inbound {
    pub(super) fn new(memory: Rc<ConnectionMemory>) -> Self {
        Self {
            queue: RefCell::new(ByteQueue::new()),
            state: Cell::new(State::Open),
            taken_at: Cell::new(Instant::now()),
            memory,
            work: Notify::new(),
        }
    }

    /// Queues bytes, waiting for room. Cancel safe: nothing is queued when dropped early.
    pub(super) async fn push(&self, bytes: Bytes) {
        while self.state.get() == State::Open {
            if self.queue.borrow().cost() < PAIR_QUEUE && self.memory.has_room(bytes.len()) {
                if self.is_taken() {
                    self.taken_at.set(Instant::now());
                }
                self.change(|queue| queue.push((), bytes));
                self.work.notify_one();
                return;
            }
            self.memory.changed().await;
        }
    }

    /// The client sends no more: what is queued is still taken.
    pub(super) fn half_close(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Closing);
            self.work.notify_one();
        }
    }

    /// Nobody takes it any more: drops what is queued and what will come.
    pub(super) fn discard(&self) {
        self.state.set(State::Discarding);
        self.change(ByteQueue::clear);
    }

    /// Whether the pod has everything of a client that sends no more, or will never have it.
    pub(super) fn is_delivered(&self) -> bool {
        matches!(self.state.get(), State::Delivered | State::Discarding)
    }

    /// Whether nothing waits.
    pub(super) fn is_taken(&self) -> bool {
        self.queue.borrow().cost() == 0
    }

    /// Whether something waits, and nothing was taken for so long.
    pub(super) fn is_stuck(&self, limit: Duration) -> bool {
        !self.is_taken() && self.taken_at.get().elapsed() >= limit
    }

    /// The next bytes; `None` at the client's end. Whoever asks has delivered what it got before.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            if let Some(((), bytes)) = self.change(ByteQueue::pop) {
                self.taken_at.set(Instant::now());
                return Some(bytes);
            }
            match self.state.get() {
                State::Open => {}
                State::Closing => {
                    self.state.set(State::Delivered);
                    self.memory.room.notify_one();
                    return None;
                }
                State::Delivered | State::Discarding => return None,
            }
            self.work.notified().await;
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut ByteQueue<()>) -> T) -> T {
        let mut queue = self.queue.borrow_mut();
        let before = queue.cost();
        let result = work(&mut queue);
        self.memory.change(before, queue.cost());
        result
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.memory.change(self.queue.get_mut().cost(), 0);
    }
}
