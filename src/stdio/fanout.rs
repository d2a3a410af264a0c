//! Output to many receivers: a bounded queue for each, and one written policy for the one that is too slow.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use tokio::sync::Notify;

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

    /// Whether a subscriber that must get everything has no room.
    pub(crate) fn blocked(&self) -> bool {
        self.subscribers.borrow().iter().filter_map(Weak::upgrade).any(|queue| queue.blocks())
    }

    pub(crate) fn has_subscribers(&self) -> bool {
        self.subscribers.borrow().iter().any(|queue| queue.strong_count() > 0)
    }

    /// Resolves when [`Fanout::blocked`] is false.
    pub(crate) async fn room(&self) {
        while self.blocked() {
            self.room.notified().await;
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
        if self.lag == Lag::Disconnect && self.bytes.borrow().cost() >= SUBSCRIBER_QUEUE {
            self.missed.set(Some(length));
            self.cut.notify_one();
        } else {
            self.bytes.borrow_mut().push(chunk.stream, chunk.bytes.clone());
        }
        self.changed.notify_one();
    }

    fn end(&self) {
        self.ended.set(true);
        self.changed.notify_one();
    }

    fn blocks(&self) -> bool {
        self.lag == Lag::Wait && self.bytes.borrow().cost() >= SUBSCRIBER_QUEUE
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
    pub(crate) fn subscription(&self) -> Subscription {
        Subscription(self.queue.clone())
    }

    /// The next chunk. Cancel safe.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            let popped = self.queue.bytes.borrow_mut().pop();
            if let Some((stream, bytes)) = popped {
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
mod tests {
    use bytes::Bytes;

    use super::*;

    const BOTH: Wants = Wants { stdout: true, stderr: true };

    fn chunk(size: usize) -> Chunk {
        Chunk { stream: StdStream::Stdout, bytes: Bytes::from(vec![b'x'; size]) }
    }

    async fn taken(subscriber: &mut Subscriber) -> (u64, Next) {
        let mut total = 0;
        loop {
            match subscriber.next().await {
                Next::Chunk(chunk) => total += chunk.bytes.len() as u64,
                end => return (total, end),
            }
        }
    }

    #[tokio::test]
    async fn a_full_lossless_subscriber_blocks_until_it_takes_something() {
        let fanout = Rc::new(Fanout::default());
        let mut subscriber = fanout.subscribe(BOTH, Lag::Wait);
        let mut sent = 0u64;
        while !fanout.blocked() {
            fanout.publish(&chunk(16 * 1024));
            sent += 16 * 1024;
        }
        assert!(sent <= SUBSCRIBER_QUEUE as u64 + 16 * 1024);
        subscriber.next().await;
        subscriber.next().await;
        fanout.room().await;
        fanout.end();
        assert_eq!(taken(&mut subscriber).await, (sent - 32 * 1024, Next::End));
    }

    #[tokio::test]
    async fn a_slow_viewer_is_cut_and_told_exactly_what_it_missed() {
        let fanout = Rc::new(Fanout::default());
        let mut slow = fanout.subscribe(BOTH, Lag::Disconnect);
        for _ in 0..100 {
            fanout.publish(&chunk(16 * 1024));
            assert!(!fanout.blocked());
        }
        slow.subscription().cut().await;
        let (got, end) = taken(&mut slow).await;
        assert_eq!(end, Next::Cut { missed: 100 * 16 * 1024 - got });
    }

    #[tokio::test]
    async fn a_stopped_subscriber_gets_what_is_queued_and_nothing_more() {
        let fanout = Rc::new(Fanout::default());
        let mut leaving = fanout.subscribe(BOTH, Lag::Disconnect);
        fanout.publish(&chunk(1000));
        leaving.subscription().stop();
        fanout.publish(&chunk(1000));
        assert_eq!(taken(&mut leaving).await, (1000, Next::End));
    }

    #[tokio::test]
    async fn a_subscriber_that_comes_after_the_end_does_not_wait_for_ever() {
        let fanout = Rc::new(Fanout::default());
        fanout.end();
        let mut late = fanout.subscribe(BOTH, Lag::Disconnect);
        assert_eq!(taken(&mut late).await, (0, Next::End));
    }

    #[tokio::test]
    async fn leaving_unblocks_and_streams_not_wanted_are_not_queued() {
        let fanout = Rc::new(Fanout::default());
        let mut stderr = fanout.subscribe(Wants { stdout: false, stderr: true }, Lag::Wait);
        let greedy = fanout.subscribe(BOTH, Lag::Wait);
        for _ in 0..20 {
            fanout.publish(&chunk(16 * 1024));
        }
        assert!(fanout.blocked());
        drop(greedy);
        assert!(!fanout.blocked());
        fanout.end();
        assert_eq!(taken(&mut stderr).await, (0, Next::End));
    }
}
