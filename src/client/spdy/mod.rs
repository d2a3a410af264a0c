//! SPDY as its client: `proto::spdy` on a connection of ours.
//!
//! ```text
//! wire ─▶ read ─▶ Connection ─▶ Inbox of each stream ─▶ Stream::next       one task reads and writes,
//! wire ◀─ write ◀─ Connection ◀──────────────────────── Stream::send       whoever holds a Stream uses it
//! ```
//!
//! [`command`] is exec and attach on it, [`super::forward`] port forward.

pub(super) mod command;
#[cfg(test)]
pub(super) mod testing;
pub(super) mod upgrade;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    time::timeout,
};

use super::StreamError;
use crate::{
    io::task::Scope,
    proto::spdy::{Connection, Event, GoAwayStatus, RstStatus, SendError, Side, StreamId},
};

/// How long the server may take to answer a stream; that of the clients in use.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the last frames may take to leave.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
const READ_CHUNK: usize = 16 << 10;

/// What carries the frames, after the upgrade.
pub(super) struct Wire {
    pub(super) reader: Box<dyn AsyncRead + Unpin>,
    pub(super) writer: Box<dyn AsyncWrite + Unpin>,
    /// What came behind the head of the upgrade's answer.
    pub(super) early: BytesMut,
}

/// One connection; dropping it closes it.
#[derive(Debug)]
pub(super) struct Session {
    link: Rc<Link>,
    _task: Scope,
}

/// What the task and the streams share.
#[derive(Debug)]
struct Link {
    connection: RefCell<Connection>,
    /// One for each [`Stream`]. What waits in them is on the connection's accounts, which stop the reading.
    inboxes: RefCell<HashMap<StreamId, Rc<Inbox>>>,
    /// A frame is between the connection and the wire.
    writing: Cell<bool>,
    /// How the connection ended, once it has.
    end: RefCell<Option<ConnectionEnd>>,
    /// Woken when there may be a frame to write.
    work: Notify,
    /// All are woken when something was written, and at the end.
    progress: Notify,
    /// Woken when the reading may go on.
    resumed: Notify,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ConnectionEnd {
    /// The server closed it, or the network did.
    Lost,
    /// The server made no sense.
    Broken(String),
}

/// What has come of one stream and is not taken yet.
#[derive(Debug, Default)]
struct Inbox {
    accepted: Cell<bool>,
    pieces: RefCell<VecDeque<Bytes>>,
    end: Cell<Option<End>>,
    /// The stream is gone, whether it had ended before or not.
    reset: Cell<bool>,
    changed: Notify,
}

/// How what the server sends on a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It has sent everything.
    Finished,
    /// It sends no more, and takes no more.
    Reset,
    /// The connection is lost.
    Lost,
}

/// What [`Stream::next`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Received {
    Data(Bytes),
    End(End),
}

impl Session {
    /// Begins to speak SPDY.
    pub(super) fn new(wire: Wire) -> Rc<Self> {
        let link = Rc::new(Link {
            connection: RefCell::new(Connection::new(Side::Client)),
            inboxes: RefCell::default(),
            writing: Cell::new(false),
            end: RefCell::default(),
            work: Notify::new(),
            progress: Notify::new(),
            resumed: Notify::new(),
        });
        let task = Scope::new();
        let shared = link.clone();
        task.spawn(async move {
            let Wire { reader, writer, early } = wire;
            let write = async {
                let _ = shared.write(writer).await;
                // What came before is still to be read, and reading tells how the connection ended.
                std::future::pending().await
            };
            let end = tokio::select! {
                end = shared.read(reader, early) => end,
                never = write => never,
            };
            shared.end(end);
        });
        Rc::new(Self { link, _task: task })
    }

    /// Opens a stream and waits until the server has accepted it. With `fin` nothing will be sent on it.
    pub(super) async fn open(
        self: &Rc<Self>,
        headers: &[(&str, &str)],
        fin: bool,
        name: &'static str,
    ) -> Result<Stream, StreamError> {
        let opening = async {
            let id = loop {
                match self.link.with(|connection| connection.open(headers, fin)) {
                    Ok(id) => break id,
                    Err(SendError::Blocked) => self.link.progress.notified().await,
                    Err(SendError::Closed) => return Err(self.broken()),
                }
            };
            let inbox = Rc::<Inbox>::default();
            self.link.inboxes.borrow_mut().insert(id, inbox.clone());
            let stream = Stream { session: self.clone(), id, inbox };
            match stream.answered().await {
                Ok(()) => Ok(stream),
                Err(End::Lost) => Err(self.broken()),
                Err(End::Finished | End::Reset) => Err(StreamError::StreamRefused(name)),
            }
        };
        timeout(ANSWER_LIMIT, opening).await.unwrap_or(Err(StreamError::NoAnswer(name)))
    }

    /// Says good-bye, and waits a little for it to leave.
    pub(super) async fn goodbye(&self) {
        self.link.with(|connection| connection.go_away(GoAwayStatus::OK));
        let _ = timeout(GOODBYE_LIMIT, self.link.flushed()).await;
    }

    /// Waits for the end of the connection.
    pub(super) async fn ended(&self) {
        while self.link.end.borrow().is_none() {
            self.link.progress.notified().await;
        }
    }

    /// The server's fault, if it was one that the connection ended.
    pub(super) fn fault(&self) -> Option<StreamError> {
        match &*self.link.end.borrow() {
            Some(ConnectionEnd::Broken(why)) => Some(StreamError::Broken(why.clone())),
            _ => None,
        }
    }

    fn broken(&self) -> StreamError {
        self.fault().unwrap_or_else(|| StreamError::Broken("the server closed it".to_owned()))
    }
}

impl Link {
    /// Does something with the connection; whatever that queued will be written.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> T {
        let result = work(&mut self.connection.borrow_mut());
        self.work.notify_one();
        result
    }

    async fn read(&self, mut wire: impl AsyncRead + Unpin, mut buffer: BytesMut) -> ConnectionEnd {
        loop {
            match self.with(|connection| connection.next(Instant::now(), &mut buffer)) {
                Ok(Some(event)) => self.handle(event),
                Err(error) => return ConnectionEnd::Broken(error.to_string()),
                Ok(None) if self.connection.borrow().pause().is_some() => self.resumed.notified().await,
                Ok(None) => {
                    buffer.reserve(READ_CHUNK);
                    if !matches!(wire.read_buf(&mut buffer).await, Ok(1..)) {
                        return ConnectionEnd::Lost;
                    }
                }
            }
        }
    }

    async fn write(&self, mut wire: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        loop {
            let frame = self.connection.borrow_mut().poll_transmit();
            let Some(frame) = frame else {
                wire.flush().await?;
                self.writing.set(false);
                self.progress.notify_waiters();
                self.work.notified().await;
                continue;
            };
            self.writing.set(true);
            // In one piece: in a tunnel every write becomes a message.
            bytes.clear();
            bytes.extend_from_slice(&frame.head);
            bytes.extend_from_slice(&frame.body);
            wire.write_all(&bytes).await?;
            self.progress.notify_waiters();
            self.resumed.notify_one();
        }
    }

    fn handle(&self, event: Event) {
        match event {
            Event::Accepted(id) => self.tell(id, |inbox| inbox.accepted.set(true)),
            Event::Data { id, bytes } => {
                let length = bytes.len();
                let mut taken = false;
                self.tell(id, |inbox| {
                    inbox.pieces.borrow_mut().push_back(bytes);
                    taken = true;
                });
                if !taken {
                    self.with(|connection| connection.consumed(id, length));
                }
            }
            Event::Finished(id) => self.tell(id, |inbox| inbox.end(End::Finished)),
            Event::Reset { id, .. } => self.tell(id, Inbox::reset),
            // Nothing that a server opens is of use to us.
            Event::Opened { id, .. } => self.with(|connection| connection.reset(id, RstStatus::REFUSED_STREAM)),
            Event::GoAway { .. } => {
                let open: Vec<_> = self.connection.borrow().open_streams().collect();
                for (id, inbox) in &*self.inboxes.borrow() {
                    if !open.contains(id) {
                        inbox.lose();
                    }
                }
            }
            Event::Rejected { .. } | Event::Pong(_) => {}
        }
    }

    fn tell(&self, id: StreamId, change: impl FnOnce(&Inbox)) {
        if let Some(inbox) = self.inboxes.borrow().get(&id) {
            change(inbox);
            inbox.changed.notify_waiters();
        }
    }

    fn end(&self, end: ConnectionEnd) {
        self.with(Connection::lost);
        *self.end.borrow_mut() = Some(end);
        self.inboxes.borrow().values().for_each(|inbox| inbox.lose());
        self.progress.notify_waiters();
    }

    async fn flushed(&self) {
        while self.end.borrow().is_none() && (self.writing.get() || !self.connection.borrow().is_flushed()) {
            self.progress.notified().await;
        }
    }
}

impl Inbox {
    fn end(&self, end: End) {
        // The first one counts: a reset may follow a stream's end.
        self.end.set(self.end.get().or(Some(end)));
    }

    fn reset(&self) {
        self.reset.set(true);
        self.end(End::Reset);
    }

    fn lose(&self) {
        self.reset.set(true);
        self.end(End::Lost);
        self.changed.notify_waiters();
    }
}

/// One stream that we opened. Dropping it resets what has not ended.
#[derive(Debug)]
pub(super) struct Stream {
    session: Rc<Session>,
    id: StreamId,
    inbox: Rc<Inbox>,
}

impl Stream {
    async fn answered(&self) -> Result<(), End> {
        loop {
            if self.inbox.accepted.get() {
                return Ok(());
            }
            if let Some(end) = self.inbox.end.get() {
                return Err(end);
            }
            self.inbox.changed.notified().await;
        }
    }

    /// Sends bytes, waiting for room.
    ///
    /// # Errors
    /// The server takes nothing more on this stream.
    pub(super) async fn send(&self, bytes: Bytes) -> Result<(), StreamError> {
        let link = &self.session.link;
        loop {
            match link.with(|connection| connection.send(self.id, bytes.clone())) {
                Ok(()) => return Ok(()),
                Err(SendError::Blocked) => link.progress.notified().await,
                Err(SendError::Closed) => return Err(self.session.broken()),
            }
        }
    }

    /// Nothing more will be sent; what comes goes on.
    pub(super) fn finish(&self) {
        // It may be closed already, which is as good.
        let _ = self.session.link.with(|connection| connection.finish(self.id, Bytes::new()));
    }

    /// Ends it both ways at once.
    pub(super) fn reset(&self) {
        let link = &self.session.link;
        link.with(|connection| connection.reset(self.id, RstStatus::CANCEL));
        link.tell(self.id, Inbox::reset);
        link.resumed.notify_one();
    }

    /// The next bytes, or the end, however often it is asked for. Cancel safe.
    pub(super) async fn next(&self) -> Received {
        loop {
            let piece = self.inbox.pieces.borrow_mut().pop_front();
            if let Some(bytes) = piece {
                let link = &self.session.link;
                link.with(|connection| connection.consumed(self.id, bytes.len()));
                link.resumed.notify_one();
                return Received::Data(bytes);
            }
            if let Some(end) = self.inbox.end.get() {
                return Received::End(end);
            }
            self.inbox.changed.notified().await;
        }
    }

    /// Waits until the server takes nothing more, whether it had ended its own direction before or not.
    pub(super) async fn gone(&self) {
        while !self.inbox.reset.get() {
            self.inbox.changed.notified().await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let link = &self.session.link;
        link.inboxes.borrow_mut().remove(&self.id);
        // What was not taken is forgotten with it.
        link.with(|connection| connection.reset(self.id, RstStatus::CANCEL));
        link.resumed.notify_one();
    }
}
