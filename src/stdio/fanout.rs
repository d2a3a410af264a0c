//! Output to many receivers: a bounded queue for each, and one written policy for the one that is too slow.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};

use crate::{
    io::queue::ByteQueue,
    model::{Chunk, StdStream},
};

/// The bound of one subscriber's queue, in bytes. Full: see [`Lag`].
const SUBSCRIBER_QUEUE: usize = 256 * 1024;

/// What happens when a subscriber's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lag {
    /// The pump pauses: for the one client of an exec, which must get every byte.
    Wait,
    /// The subscriber is cut and told how much it missed: a viewer must not stop a container.
    Disconnect,
    /// Its oldest output is dropped, and it is told how much, at the place where that is missing.
    Skip,
    /// The pump pauses, but each time no longer than this; then as [`Lag::Disconnect`].
    WaitAtMost(Duration),
}

/// Which streams a subscriber wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

impl Wants {
    fn includes(self, stream: StdStream) -> bool {
        match stream {
            StdStream::Stdout => self.stdout,
            StdStream::Stderr => self.stderr,
        }
    }
}

/// What a subscriber gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Chunk(Chunk),
    /// So many bytes are missing before the next chunk ([`Lag::Skip`]).
    Skipped {
        bytes: u64,
    },
    /// Nothing more will come, and all that came was taken.
    End,
    /// It was too slow; what was queued has been taken, this many bytes were not delivered.
    Cut {
        missed: u64,
    },
}

/// Distributes chunks. Stores nothing for nobody.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    subscribers: RefCell<Vec<Weak<Queue>>>,
    ended: Cell<bool>,
    /// Woken when a queue has room again or a subscriber left.
    room: Notify,
}

#[derive(Debug)]
struct Queue {
    wants: Wants,
    lag: Lag,
    bytes: RefCell<ByteQueue<StdStream>>,
    ended: Cell<bool>,
    /// Since when it has been full without a break.
    full_since: Cell<Option<Instant>>,
    /// What was dropped in front of the oldest piece, in bytes.
    skipped: Cell<u64>,
    missed: Cell<Option<u64>>,
    changed: Notify,
    /// Woken once, when the first byte is missed.
    cut: Notify,
}

impl Fanout {
    /// From now on, everything published goes to the new subscriber too. One that comes after the end sees the end.
    pub(crate) fn subscribe(self: &Rc<Self>, wants: Wants, lag: Lag) -> Subscriber {
        let queue = Rc::new(Queue {
            wants,
            lag,
            bytes: RefCell::new(ByteQueue::new()),
            ended: Cell::new(self.ended.get()),
            full_since: Cell::new(None),
            skipped: Cell::new(0),
            missed: Cell::new(None),
            changed: Notify::new(),
            cut: Notify::new(),
        });
        self.subscribers.borrow_mut().push(Rc::downgrade(&queue));
        Subscriber { queue, fanout: self.clone() }
    }

    /// Gives a chunk to all who want it. Never waits, never fails.
    pub(crate) fn publish(&self, chunk: &Chunk) {
        self.subscribers.borrow_mut().retain(|subscriber| {
            let Some(queue) = subscriber.upgrade() else { return false };
            queue.offer(chunk);
            true
        });
    }

    /// Whether a subscriber that is waited for has no room.
    pub(crate) fn blocked(&self) -> bool {
        self.subscribers.borrow().iter().filter_map(Weak::upgrade).any(|queue| queue.blocks())
    }

    /// When the first of those that are waited for has been waited for long enough.
    fn patience_ends(&self) -> Option<Instant> {
        self.subscribers.borrow().iter().filter_map(|queue| queue.upgrade()?.patience_ends()).min()
    }

    /// Whether somebody takes what is published; who was too slow does not any more.
    pub(crate) fn has_receivers(&self) -> bool {
        self.subscribers.borrow().iter().filter_map(Weak::upgrade).any(|queue| queue.receives())
    }

    /// Resolves when [`Fanout::blocked`] is false.
    pub(crate) async fn room(&self) {
        while self.blocked() {
            let patience = async {
                match self.patience_ends() {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.room.notified() => {}
                () = patience => {}
            }
        }
    }

    /// Nothing more will be published: subscribers see the end after what they have queued.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        for queue in self.subscribers.borrow_mut().drain(..).filter_map(|weak| weak.upgrade()) {
            queue.end();
        }
    }
}

impl Queue {
    fn offer(&self, chunk: &Chunk) {
        if !self.wants.includes(chunk.stream) || self.ended.get() {
            return;
        }
        let length = chunk.bytes.len() as u64;
        if let Some(missed) = self.missed.get() {
            self.missed.set(Some(missed + length));
            return;
        }
        if self.is_full() && !self.makes_room() {
            self.missed.set(Some(length));
            self.cut.notify_one();
        } else {
            self.bytes.borrow_mut().push(chunk.stream, chunk.bytes.clone());
            if self.is_full() && self.full_since.get().is_none() {
                self.full_since.set(Some(Instant::now()));
            }
        }
        self.changed.notify_one();
    }

    fn receives(&self) -> bool {
        self.missed.get().is_none() && !self.ended.get()
    }

    fn is_full(&self) -> bool {
        self.bytes.borrow().cost() >= SUBSCRIBER_QUEUE
    }

    /// Whether one more chunk may be queued although the queue is full. Who is waited for may pass the bound by the chunk
    /// that was on its way.
    fn makes_room(&self) -> bool {
        match self.lag {
            Lag::Wait => true,
            Lag::WaitAtMost(_) => self.patience_ends().is_some_and(|end| Instant::now() < end),
            Lag::Disconnect => false,
            Lag::Skip => {
                let mut bytes = self.bytes.borrow_mut();
                while bytes.cost() >= SUBSCRIBER_QUEUE
                    && let Some((_, oldest)) = bytes.pop()
                {
                    self.skipped.set(self.skipped.get() + oldest.len() as u64);
                }
                true
            }
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.changed.notify_one();
    }

    fn blocks(&self) -> bool {
        let waited_for = match self.lag {
            Lag::Wait => true,
            Lag::WaitAtMost(_) => self.patience_ends().is_some_and(|end| Instant::now() < end),
            Lag::Disconnect | Lag::Skip => false,
        };
        waited_for && self.receives() && self.is_full()
    }

    /// When it has been full for as long as it may be.
    fn patience_ends(&self) -> Option<Instant> {
        let Lag::WaitAtMost(limit) = self.lag else { return None };
        self.full_since.get().map(|since| since + limit)
    }

    fn pop(&self) -> Option<(StdStream, bytes::Bytes)> {
        let popped = self.bytes.borrow_mut().pop();
        if !self.is_full() {
            self.full_since.set(None);
        }
        popped
    }
}

/// The receiving end of one subscription. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscriber {
    queue: Rc<Queue>,
    fanout: Rc<Fanout>,
}

/// A hold on one subscription beside its [`Subscriber`].
#[derive(Debug)]
pub(crate) struct Subscription(Rc<Queue>);

impl Subscription {
    /// Ends it: the subscriber still gets what is queued.
    pub(crate) fn stop(&self) {
        self.0.end();
    }

    /// Resolves when it was too slow for the first time.
    pub(crate) async fn cut(&self) {
        while self.0.missed.get().is_none() {
            self.0.cut.notified().await;
        }
    }

    /// What is queued for it, in bytes.
    pub(crate) fn queued(&self) -> u64 {
        self.0.bytes.borrow().iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// What it has missed so far, in bytes.
    pub(crate) fn missed(&self) -> u64 {
        self.0.missed.get().unwrap_or(0)
    }
}

impl Subscriber {
    pub(crate) fn wants(&self) -> Wants {
        self.queue.wants
    }

    pub(crate) fn subscription(&self) -> Subscription {
        Subscription(self.queue.clone())
    }

    /// The next chunk. Cancel safe.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            let skipped = self.queue.skipped.take();
            if skipped > 0 {
                return Next::Skipped { bytes: skipped };
            }
            if let Some((stream, bytes)) = self.queue.pop() {
                self.fanout.room.notify_one();
                return Next::Chunk(Chunk { stream, bytes });
            }
            if let Some(missed) = self.queue.missed.get() {
                return Next::Cut { missed };
            }
            if self.queue.ended.get() {
                return Next::End;
            }
            self.queue.changed.notified().await;
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.queue.bytes.borrow_mut().clear();
        self.fanout.room.notify_one();
    }
}

#[cfg(test)]
mod tests;
