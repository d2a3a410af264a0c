//! Bytes on their way from a client to a port in the pod.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use tokio::sync::Notify;

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
    memory: Rc<ConnectionMemory>,
    work: Notify,
}

/// ```text
/// Open ──client's half-close──▶ Closing ──queue empty──▶ (the end is taken)
///   └────socket broken──▶ Discarding
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing,
    Discarding,
}

impl Inbound {
    pub(super) fn new(memory: Rc<ConnectionMemory>) -> Self {
        Self { queue: RefCell::new(ByteQueue::new()), state: Cell::new(State::Open), memory, work: Notify::new() }
    }

    /// Queues bytes, waiting for room. Cancel safe: nothing is queued when dropped early.
    pub(super) async fn push(&self, bytes: Bytes) {
        while self.state.get() == State::Open {
            if self.queue.borrow().cost() < PAIR_QUEUE && self.memory.has_room(bytes.len()) {
                self.change(|queue| queue.push((), bytes));
                self.work.notify_one();
                return;
            }
            // Only the reading loop of this connection waits here.
            self.memory.room.notified().await;
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

    /// The next bytes; `None` at the client's end.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            if let Some(((), bytes)) = self.change(ByteQueue::pop) {
                return Some(bytes);
            }
            if self.state.get() != State::Open {
                return None;
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
