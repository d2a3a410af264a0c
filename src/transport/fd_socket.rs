//! The descriptor socket: clients hand over descriptors for containers to come. One for the daemon, made when it is first
//! asked for. The packets are those of [`crate::proto::fd_message`].

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use tokio::{task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::slots::Slots;
use crate::{
    container::Pod,
    io::{
        seqpacket::{SeqpacketListener, SeqpacketStream},
        task::Scope,
    },
    proto::fd_message::{Reply, Request},
    sys::{
        SysError,
        fd::{NoRoom, is_of_reserve, room},
        socket,
        socket_file::SocketFile,
    },
};

/// Whoever may connect may give a container whatever he has open.
const MODE: u32 = 0o700;
/// Connections at once. Full: the oldest one that has nothing waiting here is closed, or if all have, the newest.
const CONNECTION_LIMIT: usize = 256;
/// The pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the descriptor socket.
#[derive(Debug)]
pub(crate) struct FdSocket {
    pod: Rc<Pod>,
    pub(crate) slots: Slots,
    state: RefCell<State>,
    /// Oldest first.
    connections: RefCell<VecDeque<(u64, CancellationToken)>>,
    next_connection: Cell<u64>,
    scope: Scope,
}

/// ```text
/// Idle ──start()──▶ Open ──close()──▶ Closed
///   └────────────close()────────────────▲
/// ```
#[derive(Debug)]
enum State {
    Idle,
    Open(SocketFile),
    Closed,
}

/// Why there is no descriptor socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FdSocketError {
    #[error("the daemon is shutting down")]
    Closing,
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl FdSocket {
    pub(crate) fn new(pod: Rc<Pod>) -> Rc<Self> {
        Rc::new(Self {
            pod,
            slots: Slots::new(),
            state: RefCell::new(State::Idle),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            scope: Scope::new(),
        })
    }

    /// Listens, if it does not yet, and answers where.
    pub(crate) fn start(self: &Rc<Self>) -> Result<PathBuf, FdSocketError> {
        let mut state = self.state.borrow_mut();
        match &*state {
            State::Open(file) => return Ok(file.path().to_owned()),
            State::Closed => return Err(FdSocketError::Closing),
            State::Idle => {}
        }
        let path = self.pod.config.fd_socket();
        let listening = socket::listen_seqpacket(&path, MODE)?;
        let file = SocketFile::bound(path.clone());
        let listener = SeqpacketListener::new(listening)?;
        *state = State::Open(file);
        let server = self.clone();
        self.scope.spawn(async move { server.accept(listener).await });
        Ok(path)
    }

    /// Ends all connections and removes the socket's file.
    pub(crate) fn close(&self) {
        self.scope.cancel();
        *self.state.borrow_mut() = State::Closed;
    }

    async fn accept(self: Rc<Self>, listener: SeqpacketListener) {
        loop {
            match listener.accept().await {
                Ok(stream) => self.connected(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the descriptor socket");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            yield_now().await;
        }
    }

    fn connected(self: &Rc<Self>, stream: SeqpacketStream) {
        let mut connections = self.connections.borrow_mut();
        let many = connections.len() >= CONNECTION_LIMIT;
        if many || room().is_err() {
            let why = if many { "there are too many of them" } else { "too few descriptors are left" };
            let Some(idle) = connections.iter().position(|(number, _)| !self.slots.has_of(*number)) else {
                tracing::warn!(why, "no connection to the descriptor socket is idle: the newest is closed");
                return;
            };
            if let Some((_, cancel)) = connections.remove(idle) {
                tracing::debug!(why, "the oldest idle connection to the descriptor socket is closed to make room");
                cancel.cancel();
            }
        }
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        let cancel = CancellationToken::new();
        connections.push_back((number, cancel.clone()));
        let server = self.clone();
        let task = async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = server.serve(number, &stream) => {}
            }
            server.connections.borrow_mut().retain(|(other, _)| *other != number);
            server.pod.close_fds(server.slots.forget(number)).await;
            server.pod.heap.freed();
        };
        self.scope.spawn(task.instrument(tracing::debug_span!("descriptors", connection = number)));
    }

    /// Until the client goes.
    async fn serve(&self, connection: u64, stream: &SeqpacketStream) {
        while let Ok(Some((packet, fds))) = stream.receive_with_fds().await {
            let (reply, useless) = self.answer(connection, &packet, fds);
            self.pod.close_fds(useless).await;
            // Who does not read its replies is not read either.
            if let Some(reply) = reply
                && stream.send(&reply, &[]).await.is_err()
            {
                return;
            }
            yield_now().await;
        }
    }

    /// The reply, if there is one, and the descriptors that are not kept.
    fn answer(&self, connection: u64, packet: &[u8], fds: Vec<OwnedFd>) -> (Option<Vec<u8>>, Vec<OwnedFd>) {
        let refused = |id: u32, reason: String, fds: Vec<OwnedFd>| {
            tracing::warn!(reason, "descriptors are refused");
            (Some(Reply::Refused(reason).packet(id)), fds)
        };
        match Request::parse(packet) {
            Err(error) => refused(error.id, error.to_string(), fds),
            Ok(Request::Forget) => {
                let mut forgotten = self.slots.forget(connection);
                forgotten.extend(fds);
                (None, forgotten)
            }
            Ok(Request::Keep { id, count }) if u32::try_from(fds.len()) != Ok(count) => {
                let reason = format!("the request announces {count} descriptors, but {} arrived", fds.len());
                refused(id, reason, fds)
            }
            Ok(Request::Keep { id, .. }) if fds.iter().any(is_of_reserve) => refused(id, NoRoom.to_string(), fds),
            Ok(Request::Keep { id, .. }) => match self.slots.keep(connection, fds) {
                Ok(slots) => (Some(Reply::Kept(slots).packet(id)), Vec::new()),
                Err((full, fds)) => refused(id, full.to_string(), fds),
            },
        }
    }
}
