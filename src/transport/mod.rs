//! Sockets of clients, seen by sessions as readers and writers.
//!
//! One listener for all streaming URLs of the pod, opened when the first URL is asked for. A connection is HTTP until its
//! upgrade, then one session. The legacy attach sockets stand beside it ([`AttachSockets`]).

mod attach_client;
mod attach_socket;
mod fd_socket;
mod http;
mod linger;
mod port_channels;
mod serve;
mod slots;
mod socket;
mod socket_file;
mod spdy;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod websocket;
mod wire;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::stream::Stream;
pub(crate) use self::{
    attach_socket::{AttachError, AttachSockets},
    fd_socket::{FdSocket, FdSocketError},
    http::{Agreed, agree},
    slots::Slots,
};
use crate::{
    container::{Container, Numbered, Pod},
    io::task::Scope,
    model::ContainerId,
    oci::ExecSpec,
    proto::{remotecommand::StreamKind, upgrade_head::Refusal},
    session::{
        ListedSession, SessionGuard, SessionTable, Subject,
        pending::{PendingRequests, Request, Token, Waiting},
        port_forward::Destination,
    },
    stdio::Wants,
    sys::{SysError, fd::room, random::random_hex},
};

/// How long a TLS handshake may take.
#[cfg(feature = "tls")]
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there can be no streaming server.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// TLS was asked for and cannot be had.
    #[cfg(feature = "tls")]
    #[error("TLS for streams cannot be served")]
    Tls(
        #[from]
        #[source]
        tls::TlsError,
    ),
}

/// Serves the streaming URLs of the pod.
#[derive(Debug)]
pub(crate) struct StreamServer {
    pod: Rc<Pod>,
    pending: RefCell<PendingRequests>,
    sessions: Rc<SessionTable>,
    /// Connections that have not been upgraded yet. Full: the oldest is closed, so that idle ones cannot lock users out.
    unupgraded: RefCell<VecDeque<(u64, CancellationToken)>>,
    next_connection: Cell<u64>,
    address: Cell<Option<SocketAddr>>,
    #[cfg(feature = "tls")]
    tls: Option<tls::Tls>,
    accepting: Scope,
    scope: Scope,
    /// Cancelled for those sessions that no container's end would end.
    ending: CancellationToken,
}

/// A request whose client has come.
#[derive(Debug)]
struct Claimed {
    request: Request,
    guard: SessionGuard,
}

/// A client whose request has been taken.
type Accepted = Agreed<Stream, Claimed>;

impl StreamServer {
    /// A server that does not listen yet. `sessions` counts clients of all transports together.
    ///
    /// # Errors
    /// TLS was asked for and cannot be had.
    pub(crate) fn new(pod: Rc<Pod>, sessions: Rc<SessionTable>) -> Result<Rc<Self>, StreamError> {
        let config = &pod.config.streams;
        Ok(Rc::new(Self {
            #[cfg(feature = "tls")]
            tls: config.tls.as_ref().map(|files| tls::Tls::new(files, pod.blocking.clone())).transpose()?,
            pending: RefCell::new(PendingRequests::new(
                config.pending_limit,
                config.token_lifetime,
                pod.counters.clone(),
            )),
            sessions,
            unupgraded: RefCell::default(),
            next_connection: Cell::new(0),
            address: Cell::new(None),
            accepting: pod.scope.child(),
            scope: pod.scope.child(),
            ending: CancellationToken::new(),
            pod,
        }))
    }

    /// The URL at which one client can run the command. Nothing runs before it comes.
    pub(crate) fn offer_exec(self: &Rc<Self>, spec: ExecSpec, wants: Wants) -> Result<String, SysError> {
        self.offer(StreamKind::Exec, Subject::Exec(spec.id.clone()), Request::Exec { spec, wants })
    }

    /// The URL at which one client can watch the container.
    pub(crate) fn offer_attach(
        self: &Rc<Self>,
        container: &Rc<Container>,
        stdin: bool,
        wants: Wants,
    ) -> Result<String, SysError> {
        let request = Request::Attach { container: Rc::downgrade(container), stdin, wants };
        self.offer(StreamKind::Attach, Subject::Attach(container.id.clone()), request)
    }

    /// The URL at which one client can reach ports. `ports` is for clients that cannot name them themselves.
    pub(crate) fn offer_port_forward(
        self: &Rc<Self>,
        destination: Destination,
        ports: Vec<u16>,
    ) -> Result<String, SysError> {
        let subject = Subject::PortForward(destination.pod.clone());
        self.offer(StreamKind::PortForward, subject, Request::PortForward { destination, ports })
    }

    fn offer(self: &Rc<Self>, kind: StreamKind, subject: Subject, request: Request) -> Result<String, SysError> {
        let address = match self.address.get() {
            Some(address) => address,
            None => self.listen()?,
        };
        let token = Token::new(random_hex()?);
        let scheme = if self.pod.config.streams.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}/{}/{}", kind.path_word(), token.as_str());
        let waiting = Waiting { opening: self.sessions.opening(subject), request };
        self.pending.borrow_mut().insert(Instant::now(), token, waiting);
        Ok(url)
    }

    fn listen(self: &Rc<Self>) -> Result<SocketAddr, SysError> {
        let config = &self.pod.config.streams;
        let wanted = SocketAddr::new(config.address, config.port);
        let what = "listen for streaming clients (--stream-address, --stream-port) on";
        let fail = |e: &std::io::Error| SysError::io(what, wanted.to_string(), e);
        let listener = std::net::TcpListener::bind(wanted).map_err(|e| fail(&e))?;
        listener.set_nonblocking(true).map_err(|e| fail(&e))?;
        let address = dialable(listener.local_addr().map_err(|e| fail(&e))?);
        let listener = TcpListener::from_std(listener).map_err(|e| fail(&e))?;
        tracing::info!(%address, "serving streams");
        self.address.set(Some(address));
        self.accepting.spawn(self.clone().accept(listener));
        self.accepting.spawn(self.clone().expire());
        Ok(address)
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    self.connected(stream, peer);
                    // A connection closed for this one gives its descriptor back before the next is accepted.
                    yield_now().await;
                }
                Err(error) => {
                    if let Some((_, oldest)) = self.unupgraded.borrow_mut().pop_front() {
                        oldest.cancel();
                    }
                    tracing::warn!(%error, "cannot accept a streaming client");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Forgets requests whose time is over, also when no new one comes.
    async fn expire(self: Rc<Self>) {
        loop {
            let next = self.pending.borrow().next_expiry();
            sleep_until(next.unwrap_or_else(|| Instant::now() + self.pod.config.streams.token_lifetime)).await;
            self.pending.borrow_mut().expire(Instant::now());
            if next.is_some() {
                self.pod.heap.freed();
            }
        }
    }

    fn connected(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        let evicted = CancellationToken::new();
        let mut waiting = self.unupgraded.borrow_mut();
        let many = waiting.len() >= self.pod.config.streams.connection_limit;
        let crowded = many || room().is_err();
        if crowded && let Some((_, oldest)) = waiting.pop_front() {
            self.pod.counters.connections_closed_early.increment();
            let why = if many { "there are too many of them" } else { "too few descriptors are left" };
            tracing::debug!(why, "the oldest connection that waits for its upgrade is closed to make room");
            oldest.cancel();
        }
        waiting.push_back((number, evicted.clone()));
        drop(waiting);
        let place = Place { number, server: Rc::downgrade(self) };
        let span = tracing::debug_span!("stream", %peer);
        let server = self.clone();
        let task = async move {
            let accepted = tokio::select! {
                () = evicted.cancelled() => None,
                accepted = server.accept_request(stream) => accepted,
            };
            drop(place);
            if let Some(accepted) = accepted {
                server.serve(accepted).await;
            }
            server.pod.heap.freed();
        };
        self.scope.spawn(task.instrument(span));
    }

    async fn accept_request(&self, stream: TcpStream) -> Option<Accepted> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the TLS handshake of a streaming client failed");
                    return None;
                }
                Err(_) => return None,
            };
            return http::serve(Stream::Tls(Box::new(stream)), self).await;
        }
        http::serve(Stream::Plain(stream), self).await
    }

    /// Takes the request behind a token. At the session limit the token stays good.
    fn claim(&self, kind: StreamKind, token: &str) -> Result<Claimed, Refusal> {
        if self.sessions.is_full() {
            self.pod.counters.sessions_refused.increment();
            return Err(Refusal::service_unavailable("too many streaming sessions: try again later"));
        }
        if let Err(error) = room() {
            self.pod.counters.sessions_refused.increment();
            return Err(Refusal::service_unavailable(&error.to_string()));
        }
        let waiting = self.pending.borrow_mut().claim(Instant::now(), kind, token).ok_or_else(Refusal::not_found)?;
        Ok(Claimed { request: waiting.request, guard: self.sessions.enter(waiting.opening) })
    }

    /// The sessions, by number: those that wait for their client too. Only of this container, and with larger numbers.
    pub(crate) fn list(&self, id: Option<&ContainerId>, after: u64) -> Vec<ListedSession> {
        let mut all = self.sessions.list(id, after);
        all.extend(self.pending.borrow().list().filter(|session| session.is_wanted(id, after)));
        all.sort_unstable_by_key(Numbered::number);
        all
    }

    /// No new connection and no waiting request from now on; sessions go on.
    pub(crate) fn stop_accepting(&self) {
        self.accepting.cancel();
        self.pending.borrow_mut().clear();
        for (_, waiting) in self.unupgraded.borrow_mut().drain(..) {
            waiting.cancel();
        }
    }

    /// Waits for the sessions to end: those of containers have seen the ends of these, the others are told.
    pub(crate) async fn sessions_ended(&self) {
        self.ending.cancel();
        self.scope.join().await;
    }
}

/// What a client on this host can connect to: "all addresses" is none (streaming 1.1).
fn dialable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// A connection's place among those not upgraded yet.
struct Place {
    number: u64,
    server: Weak<StreamServer>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(server) = self.server.upgrade() {
            let mut waiting = server.unupgraded.borrow_mut();
            if let Ok(index) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
                waiting.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_never_name_the_wildcard_address() {
        let dialled = |text: &str| dialable(text.parse().unwrap()).to_string();
        assert_eq!(dialled("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(dialled("[::]:80"), "[::1]:80");
        assert_eq!(dialled("10.0.0.1:80"), "10.0.0.1:80");
    }
}
