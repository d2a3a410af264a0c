//! Back-pressure on a control connection: capnp-rpc itself reads without limit and queues replies without bound, so its
//! socket stops giving bytes while too many calls are in flight or a reply cannot be written.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Calls in flight on one connection. Full: the connection is not read.
const CALLS_LIMIT: usize = 256;
/// What calls of one connection may leave behind in capnp-rpc, about 1 KiB each. Full: the connection is closed.
const REMNANTS_LIMIT: usize = 10_000;

/// What a client may leave unread of large replies, in bytes: all that captures may hold at once, and half as much again.
/// Full: the connection is closed.
const UNSENT_LIMIT: usize = 96 * 1024 * 1024;
/// A client that takes nothing of a reply for so long loses its connection, and with it what it left unread.
const REPLY_STALL: Duration = Duration::from_secs(60);

/// The state of one control connection.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    calls: Cell<usize>,
    remnants: Cell<usize>,
    unsent: Cell<usize>,
    /// Its client has sent something.
    spoken: Cell<bool>,
    /// Since when the client has taken nothing of what is to be written.
    blocked_since: Cell<Option<Instant>>,
    blocked: Notify,
    reader: RefCell<Option<Waker>>,
    cancel: CancellationToken,
}

impl Connection {
    /// Counts a call for as long as the guard lives.
    pub(super) fn call(self: &Rc<Self>) -> Call {
        self.calls.set(self.calls.get() + 1);
        Call(self.clone())
    }

    /// Counts a reply until the guard is dropped, when it has been sent.
    pub(super) fn owes(self: &Rc<Self>, bytes: usize) -> Unsent {
        self.unsent.set(self.unsent.get() + bytes);
        if self.unsent.get() > UNSENT_LIMIT {
            tracing::warn!(
                bytes = self.unsent.get(),
                "a control client leaves too much unread: its connection is closed"
            );
            self.close();
        }
        Unsent { connection: self.clone(), bytes }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.get() == 0
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.spoken.get()
    }

    pub(super) fn speaks(&self) {
        self.spoken.set(true);
    }

    pub(super) fn close(&self) {
        self.cancel.cancel();
    }

    pub(super) async fn closed(&self) {
        self.cancel.cancelled().await;
    }

    /// Resolves when the client has not taken its replies for too long.
    pub(super) async fn stalled(&self) {
        loop {
            match self.blocked_since.get().map(|since| since + REPLY_STALL) {
                None => self.blocked.notified().await,
                Some(end) if end <= Instant::now() => return,
                Some(end) => sleep_until(end).await,
            }
        }
    }

    fn wrote(&self, pending: bool) {
        self.blocked_since.set(pending.then(|| self.blocked_since.get().unwrap_or_else(Instant::now)));
        if pending {
            self.blocked.notify_one();
        }
        self.wake_reader();
    }

    fn may_read(&self) -> bool {
        self.calls.get() < CALLS_LIMIT && self.blocked_since.get().is_none()
    }

    fn wake_reader(&self) {
        if self.may_read()
            && let Some(waker) = self.reader.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// A call in flight.
#[derive(Debug)]
pub(super) struct Call(Rc<Connection>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
        self.0.wake_reader();
    }
}

/// A large reply that has not been sent yet.
#[derive(Debug)]
pub(super) struct Unsent {
    connection: Rc<Connection>,
    bytes: usize,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.connection.unsent.set(self.connection.unsent.get() - self.bytes);
    }
}

/// What capnp-rpc keeps of a call: nothing of one that succeeds; of one that fails, and of a bootstrap, the answer until the
/// client says Finish; of one that the client cancelled, for ever. Which of them are still there is not to be seen from
/// outside, so all are counted. The contract's own client closes its connection after each failed call.
#[derive(Debug)]
pub(super) struct Remnant(Option<Rc<Connection>>);

impl Remnant {
    /// Counts when it is dropped.
    pub(super) fn of(connection: &Rc<Connection>) -> Self {
        Self(Some(connection.clone()))
    }

    /// It succeeded.
    pub(super) fn none(mut self) {
        self.0 = None;
    }
}

impl Drop for Remnant {
    fn drop(&mut self) {
        let Some(connection) = &self.0 else { return };
        let count = connection.remnants.get() + 1;
        connection.remnants.set(count);
        if count == REMNANTS_LIMIT {
            tracing::warn!(
                "a control connection is closed after {count} calls that failed or were cancelled: dial again"
            );
            connection.close();
        }
    }
}

/// Gives bytes only while the connection may be read.
#[derive(Debug)]
pub(super) struct GatedRead {
    socket: OwnedReadHalf,
    connection: Rc<Connection>,
}

impl GatedRead {
    pub(super) fn new(socket: OwnedReadHalf, connection: Rc<Connection>) -> Self {
        Self { socket, connection }
    }
}

impl AsyncRead for GatedRead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.connection.may_read() {
            *self.connection.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

/// Notes whether the peer takes its replies.
#[derive(Debug)]
pub(super) struct WatchedWrite {
    socket: OwnedWriteHalf,
    connection: Rc<Connection>,
}

impl WatchedWrite {
    pub(super) fn new(socket: OwnedWriteHalf, connection: Rc<Connection>) -> Self {
        Self { socket, connection }
    }
}

impl AsyncWrite for WatchedWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.connection.wrote(done.is_pending());
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::{net::UnixStream, time::sleep};

    use super::*;

    async fn write(writer: &mut WatchedWrite) -> usize {
        poll_fn(|cx| Pin::new(&mut *writer).poll_write(cx, &[0; 4096])).await.unwrap()
    }

    /// Writes as long as that does not wait.
    fn fill(writer: &mut WatchedWrite) -> usize {
        let mut sent = 0;
        while let Some(count) = write(writer).now_or_never() {
            sent += count;
        }
        sent
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_client_that_takes_nothing_of_a_reply_has_a_minute() {
        let connection = Rc::<Connection>::default();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut writer = WatchedWrite::new(ours.into_split().1, connection.clone());
        let start = Instant::now();
        let sent = fill(&mut writer);
        assert!(!connection.may_read());
        sleep(REPLY_STALL / 2).await;
        theirs.readable().await.unwrap();
        theirs.try_read(&mut vec![0; sent]).unwrap();
        // It takes some, which the runtime is told.
        write(&mut writer).await;
        fill(&mut writer);
        assert!(!connection.may_read());
        connection.stalled().await;
        assert_eq!(start.elapsed(), REPLY_STALL * 3 / 2);
    }

    #[test]
    fn a_connection_is_closed_when_too_much_of_its_replies_is_not_sent() {
        let connection = Rc::<Connection>::default();
        drop(connection.owes(UNSENT_LIMIT));
        let _unsent = connection.owes(UNSENT_LIMIT);
        assert!(!connection.cancel.is_cancelled());
        drop(connection.owes(1));
        assert!(connection.cancel.is_cancelled());
    }

    #[test]
    fn a_connection_is_closed_when_too_many_of_its_calls_did_not_succeed() {
        let connection = Rc::<Connection>::default();
        for _ in 1..REMNANTS_LIMIT {
            drop(Remnant::of(&connection));
            Remnant::of(&connection).none();
        }
        assert!(!connection.cancel.is_cancelled());
        drop(Remnant::of(&connection));
        assert!(connection.cancel.is_cancelled());
    }
}
