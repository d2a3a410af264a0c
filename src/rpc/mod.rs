//! The Cap'n Proto edge: the control socket, one RPC system per connection, limits on both.

mod conmon;
mod decode;
mod error;
pub(crate) mod fuzzing;
mod gate;
mod holdfast;
mod network;
mod traced;

use std::{cell::RefCell, collections::VecDeque, io::ErrorKind, os::fd::AsRawFd as _, rc::Rc, time::Duration};

use capnp::message::ReaderOptions;
use capnp_rpc::{Disconnector, RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use futures_util::FutureExt as _;
use nix::sys::socket::{MsgFlags, recv};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    task::yield_now,
    time::sleep,
};
use tokio_util::compat::{TokioAsyncReadCompatExt as _, TokioAsyncWriteCompatExt as _};
use tracing::Instrument as _;

pub(crate) use self::gate::Connection;
use crate::{
    container::Pod,
    io::task::Scope,
    pause::Namespaces,
    session::{SessionTable, exec_sync::CaptureMemory},
    sys::fd::room,
    telemetry::traces::Traces,
    transport::{AttachSockets, FdSocket, StreamServer},
};

/// Control connections at once. Full: the oldest one without a call in flight is closed; clients dial again.
const CONNECTION_LIMIT: usize = 1024;
/// Control connections with a call in flight that may use the descriptors kept for what is there: their calls may be the end
/// of a container or the rotation of its log. Full: the new one is closed.
const SHORT_LIMIT: usize = 8;
/// The largest message, in 8-byte words: 8 MiB, enough for lists of 100 000 entries. Larger: the connection is closed.
const MESSAGE_LIMIT: usize = 8 * 1024 * 1024 / 8;
const NESTING_LIMIT: i32 = 64;
/// The pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What calls work on.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) pod: Rc<Pod>,
    pub(crate) streams: Rc<StreamServer>,
    pub(crate) attach: Rc<AttachSockets>,
    pub(crate) sessions: Rc<SessionTable>,
    pub(crate) captures: Rc<CaptureMemory>,
    pub(crate) namespaces: Rc<Namespaces>,
    pub(crate) fds: Rc<FdSocket>,
    pub(crate) traces: Rc<Traces>,
}

/// Serves the control socket.
#[derive(Debug)]
pub(crate) struct ControlServer {
    services: Rc<Services>,
    /// Oldest first.
    connections: RefCell<VecDeque<Rc<Connection>>>,
    scope: Scope,
}

impl ControlServer {
    pub(crate) fn new(services: Rc<Services>) -> Rc<Self> {
        Rc::new(Self { services, connections: RefCell::default(), scope: Scope::new() })
    }

    /// Accepts for ever.
    pub(crate) async fn run(self: &Rc<Self>, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.connected(stream);
                    // A connection closed for this one gives its descriptor back before the next is accepted.
                    yield_now().await;
                }
                Err(error) => {
                    self.evict("none can be accepted");
                    tracing::warn!(%error, "cannot accept a control client");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Ends all connections.
    pub(crate) fn close(&self) {
        self.scope.cancel();
    }

    /// Closes the oldest idle connection, if there is one. Who never said anything goes first: a crowd of those must not cost
    /// a client its connection.
    fn evict(&self, why: &'static str) -> bool {
        let mut connections = self.connections.borrow_mut();
        let silent = connections.iter().position(|connection| !connection.has_spoken());
        let idle = silent.or_else(|| connections.iter().position(|connection| connection.is_idle()));
        let Some(oldest) = idle.and_then(|idle| connections.remove(idle)) else { return false };
        self.services.pod.counters.control_connections_evicted.increment();
        tracing::debug!(why, "the oldest idle control connection is closed to make room");
        oldest.close();
        true
    }

    fn connected(self: &Rc<Self>, stream: UnixStream) {
        let connection = Rc::new(Connection::default());
        let is_short = room().is_err();
        let many = self.connections.borrow().len();
        let made_room = match (many >= CONNECTION_LIMIT, is_short) {
            (true, _) => self.evict("there are too many of them"),
            (false, true) => self.evict("too few descriptors are left"),
            (false, false) => false,
        };
        if is_short && !made_room && many >= SHORT_LIMIT {
            tracing::warn!("too few descriptors are left for another control connection: it is closed");
            return;
        }
        let mut connections = self.connections.borrow_mut();
        connections.push_back(connection.clone());
        drop(connections);
        let server = self.clone();
        let task = async move {
            tokio::select! {
                () = connection.closed() => {}
                () = connection.stalled() => tracing::warn!("a control client does not read its replies: closed"),
                () = serve(stream, &server.services, &connection) => {}
            }
            server.connections.borrow_mut().retain(|other| !Rc::ptr_eq(other, &connection));
            server.services.pod.heap.freed();
        };
        self.scope.spawn(task.instrument(tracing::debug_span!("control")));
    }
}

async fn serve(stream: UnixStream, services: &Rc<Services>, connection: &Rc<Connection>) {
    // Nothing is built for a client that says nothing.
    if !has_spoken(&stream).await {
        return;
    }
    connection.speaks();
    let (reader, writer) = stream.into_split();
    let reader = gate::GatedRead::new(reader, connection.clone()).compat();
    let writer = gate::WatchedWrite::new(writer, connection.clone()).compat_write();
    let network = VatNetwork::new(reader, writer, Side::Server, reader_options());
    let network = network::Network::new(network, connection.clone());
    let server = conmon::Server { services: services.clone(), connection: connection.clone() };
    let system = RpcSystem::new(Box::new(network), Some(capnp_rpc::new_client(server)));
    let _ending = Ending(system.get_disconnector());
    if let Err(error) = system.await {
        tracing::debug!(%error, "a control connection broke");
    }
}

/// Ends the RPC system also of a connection that we close: merely dropped, it and its calls in flight keep each other, and
/// with them the results of these calls, for ever.
struct Ending(Disconnector<Side>);

impl Drop for Ending {
    fn drop(&mut self) {
        // What it would wait for is that the last bytes are sent.
        let _ = (&mut self.0).now_or_never();
    }
}

/// The limits of one message.
fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MESSAGE_LIMIT)).nesting_limit(NESTING_LIMIT);
    options
}

/// Waits until the client has sent something; false when it ended without. `readable` alone is true too early: tokio takes
/// a new socket for ready until a read has failed.
async fn has_spoken(stream: &UnixStream) -> bool {
    let peek = || Ok(recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?);
    loop {
        if stream.readable().await.is_err() {
            return false;
        }
        match stream.try_io(Interest::READABLE, peek) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            peeked => return peeked.is_ok_and(|count| count > 0),
        }
    }
}
