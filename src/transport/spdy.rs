//! SPDY connections: `proto::spdy` on a wire, towards the sessions.
//!
//! ```text
//! wire ─▶ Input ─▶ Connection ─▶ events ─▶ session        (one connection, two halves that share a Link)
//! wire ◀─ drive ◀─ Connection ◀─ send, finish ◀─ session
//! ```

pub(super) mod forward;
pub(super) mod remote_command;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    linger::linger,
    socket::Socket,
    websocket::{self, Out},
    wire::{TunnelReader, WireReader, WireWriter},
};
use crate::{
    proto::spdy::{Connection, Event, GoAwayStatus, RstStatus, SendError, Side, StreamId},
    session::client::Gone,
};

/// The answer to what is not wanted, and the end of what is wanted no more.
const CANCEL: RstStatus = RstStatus::CANCEL;
/// How long the last frames may take to be written when nothing more is waited for.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// What both halves of a connection share. The queues are the connection's own.
#[derive(Debug)]
struct Link {
    connection: RefCell<Connection>,
    /// A frame is between the connection and the wire.
    writing: Cell<bool>,
    /// Nothing can be written any more.
    dead: Cell<bool>,
    /// The session has said its last word, so the client's good-bye is waited for.
    finished: Cell<bool>,
    /// Woken when there may be a frame to write.
    work: Notify,
    /// Woken when something was written; passed on while there is room, so that all who wait have their turn.
    room: Notify,
    /// Woken when the reading side may go on.
    resumed: Notify,
}

impl Link {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            connection: RefCell::new(Connection::new(Side::Server)),
            writing: Cell::new(false),
            dead: Cell::new(false),
            finished: Cell::new(false),
            work: Notify::new(),
            room: Notify::new(),
            resumed: Notify::new(),
        })
    }

    /// Does something with the connection; whatever that queued will be written.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> T {
        let result = work(&mut self.connection.borrow_mut());
        self.work.notify_one();
        result
    }

    /// Sends payload, waiting for room. A stream that the client closed takes it and throws it away.
    async fn send(&self, id: StreamId, bytes: Bytes) -> Result<Sent, Gone> {
        loop {
            if self.dead.get() {
                return Err(Gone);
            }
            match self.with(|connection| connection.send(id, bytes.clone())) {
                Ok(()) => {
                    if self.connection.borrow().has_room() {
                        self.room.notify_one();
                    }
                    return Ok(Sent::Queued);
                }
                Err(SendError::Closed) => {
                    self.room.notify_one();
                    return Ok(Sent::Closed);
                }
                Err(SendError::Blocked) => self.room.notified().await,
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.dead.get() || (!self.writing.get() && self.connection.borrow().is_flushed())
    }

    async fn flushed(&self) {
        while !self.is_flushed() {
            self.room.notified().await;
        }
        // Others may be waiting for the same.
        self.room.notify_one();
    }

    fn die(&self) {
        self.dead.set(true);
        self.with(Connection::lost);
        self.room.notify_waiters();
        self.resumed.notify_one();
    }
}

/// An upgraded connection that is to speak SPDY.
#[derive(Debug)]
pub(super) enum Carrier {
    /// SPDY is on the socket itself. What was read behind the request's head comes first.
    Socket(Socket, Bytes),
    /// SPDY is in the messages of a WebSocket.
    Tunnel(Socket, Bytes),
}

/// Speaks SPDY on a connection while `work` has to do with its client, then waits for the client's good-bye.
async fn run(carrier: Carrier, work: impl AsyncFnOnce(&mut Input, &Rc<Link>)) {
    let link = Link::new();
    let (socket, out) = match &carrier {
        Carrier::Socket(socket, _) => (socket.clone(), None),
        Carrier::Tunnel(socket, _) => (socket.clone(), Some(Rc::new(Out::default()))),
    };
    let (reader, writer, buffer) = match (carrier, &out) {
        (Carrier::Tunnel(socket, early), Some(out)) => {
            let tunnel = TunnelReader::new(socket, out.clone(), &early);
            (WireReader::Tunnel(Box::new(tunnel)), WireWriter::Tunnel(out.clone()), BytesMut::new())
        }
        (Carrier::Socket(socket, early) | Carrier::Tunnel(socket, early), _) => {
            (WireReader::Socket(socket.clone()), WireWriter::Socket(socket), BytesMut::from(&early[..]))
        }
    };
    let mut input = Input { socket: socket.clone(), wire: reader, buffer, link: link.clone(), gone: false };
    let work = async {
        work(&mut input, &link).await;
        part(&mut input, &link, &socket, &writer).await;
    };
    let write = async {
        match &out {
            Some(out) => drop(tokio::join!(drive(&link, &writer), websocket::drive(out, &socket))),
            None => drive(&link, &writer).await,
        }
        // The session notices by itself that nothing can be sent any more.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = write => {}
    }
}

/// The end: what is queued is sent, the client's good-bye waited for, ours said.
async fn part(input: &mut Input, link: &Rc<Link>, socket: &Socket, wire: &WireWriter) {
    if !input.gone && link.finished.get() {
        wire.say_goodbye(link.is_flushed());
        linger(socket, || link.is_flushed() && wire.is_flushed(), input.discard()).await;
    }
    link.with(|connection| connection.go_away(GoAwayStatus::OK));
    let goodbye = async {
        link.flushed().await;
        wire.close().await;
    };
    let _ = timeout(FLUSH_LIMIT, goodbye).await;
}

/// What became of payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Queued,
    /// The client no longer wants this stream.
    Closed,
}

/// Writes what the connection has to say, until the wire fails.
async fn drive(link: &Link, wire: &WireWriter) {
    loop {
        let frame = link.connection.borrow_mut().poll_transmit();
        let Some(frame) = frame else {
            // The client may have reset what waited, and with it all that somebody waited for.
            link.room.notify_one();
            link.work.notified().await;
            continue;
        };
        link.writing.set(true);
        let written = wire.write(&frame.head, frame.body).await;
        link.writing.set(false);
        if let Err(error) = written {
            tracing::debug!(%error, "a client can no longer be written to");
            link.die();
            return;
        }
        link.room.notify_one();
        link.resumed.notify_one();
    }
}

/// The client's frames as events.
#[derive(Debug)]
struct Input {
    socket: Socket,
    wire: WireReader,
    buffer: BytesMut,
    link: Rc<Link>,
    /// The client has said good-bye, vanished, or broken the protocol.
    gone: bool,
}

impl Input {
    /// The next event; `None` when the client is gone. Cancel safe.
    async fn next(&mut self) -> Option<Event> {
        while !self.gone {
            let now = Instant::now().into_std();
            let event = self.link.with(|connection| connection.next(now, &mut self.buffer));
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            match event {
                Ok(Some(event)) => return Some(event),
                Ok(None) => self.more().await,
                Err(error) => {
                    tracing::debug!(%error, "a client broke the SPDY protocol");
                    self.gone = true;
                }
            }
        }
        None
    }

    /// Waits until there may be another event.
    async fn more(&mut self) {
        if self.link.dead.get() {
            self.gone = true;
            return;
        }
        let paused = self.link.connection.borrow().pause().is_some();
        if paused {
            self.link.resumed.notified().await;
            return;
        }
        match self.wire.fill(&mut self.buffer).await {
            Ok(count) if count > 0 => {}
            end => {
                if let Err(error) = end {
                    tracing::debug!(%error, "a client's connection broke");
                }
                self.gone = true;
                self.link.die();
            }
        }
    }

    /// Reads until the client is gone or says good-bye, keeping nothing.
    async fn discard(&mut self) {
        while let Some(event) = self.next().await {
            match event {
                Event::Opened { id, .. } => self.link.with(|connection| connection.reset(id, CANCEL)),
                Event::Data { id, bytes } => self.link.with(|connection| connection.consumed(id, bytes.len())),
                Event::GoAway { .. } => self.gone = true,
                _ => {}
            }
        }
    }
}
