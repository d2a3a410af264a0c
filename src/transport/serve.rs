//! What an upgraded connection becomes: which transport, which session.

use std::rc::Rc;

use bytes::Bytes;

use super::{
    Accepted, Claimed, StreamServer, port_channels,
    socket::Socket,
    spdy::{self, Carrier as SpdyCarrier},
    websocket,
};
use crate::{
    proto::{
        port_channels::ports_of_query,
        remotecommand::{Protocol, SpdyProtocol},
        stream_set::Requested,
        upgrade_head::Upgrade,
    },
    session::{
        self, Carrier, Session,
        client::{ClientReader, ClientWriter, ForwardReader, ForwardWriter},
        pending::Request,
        port_forward::{Destination, Surroundings},
    },
    stdio::Wants,
    sys::socket::tune_tcp,
};

impl StreamServer {
    /// Serves an upgraded connection to its end.
    pub(super) async fn serve(&self, accepted: Accepted) {
        let Accepted { stream, early, upgrade, query, claimed } = accepted;
        let Claimed { request, guard } = claimed;
        let listed = guard.session();
        listed.connected(carrier(&upgrade), stream.tcp().peer_addr().ok());
        if let Err(error) = tune_tcp(stream.tcp()) {
            tracing::debug!(%error, "keep-alive could not be set");
        }
        let socket = Socket::new(stream);
        let session = async {
            match upgrade {
                Upgrade::WebSocket { protocol, .. } => {
                    self.serve_websocket(socket.clone(), early, protocol, query.as_deref(), (request, listed)).await;
                }
                Upgrade::Spdy(protocol) => self.serve_spdy(socket.clone(), early, protocol, (request, listed)).await,
            }
        };
        let watched = async {
            socket.peer_died().await;
            tracing::info!("a client acknowledges nothing any more: its session ends");
            socket.shut_down();
            // Both halves see that now, and end as with any client that is gone.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = session => {}
            () = watched => {}
        }
        socket.close().await;
    }

    async fn serve_websocket(
        &self,
        socket: Socket,
        early: Bytes,
        protocol: Protocol,
        query: Option<&str>,
        (request, listed): (Request, &Rc<Session>),
    ) {
        match request {
            Request::PortForward { destination, .. } if protocol.is_tunnel() => {
                self.forward_spdy(SpdyCarrier::Tunnel(socket, early), destination, listed).await;
            }
            Request::PortForward { destination, mut ports } => {
                if ports.is_empty() {
                    // Whoever asked for the URL could not name them; its client may have.
                    ports = query.and_then(ports_of_query).unwrap_or_default();
                }
                port_channels::serve(socket, early, protocol.base64, &ports, async |reader, writer| {
                    self.forward(destination, listed, reader, writer).await;
                })
                .await;
            }
            request => {
                let requested = requested(&request);
                let wants = Wants { stdout: requested.stdout, stderr: requested.stderr };
                websocket::serve(socket, early, protocol, requested.stdin, wants, async |reader, writer| {
                    self.run_command(request, listed, reader, writer).await;
                })
                .await;
            }
        }
    }

    async fn serve_spdy(
        &self,
        socket: Socket,
        early: Bytes,
        protocol: SpdyProtocol,
        (request, listed): (Request, &Rc<Session>),
    ) {
        let carrier = SpdyCarrier::Socket(socket, early);
        match request {
            Request::PortForward { destination, .. } => self.forward_spdy(carrier, destination, listed).await,
            request => {
                let (requested, timeout) = (requested(&request), self.pod.config.streams.creation_timeout);
                spdy::remote_command::serve(carrier, protocol.version, requested, timeout, async |reader, writer| {
                    self.run_command(request, listed, reader, writer).await;
                })
                .await;
            }
        }
    }

    async fn forward_spdy(&self, carrier: SpdyCarrier, destination: Destination, listed: &Rc<Session>) {
        let timeout = self.pod.config.streams.creation_timeout;
        spdy::forward::serve(carrier, timeout, async |reader, writer| {
            self.forward(destination, listed, reader, writer).await;
        })
        .await;
    }

    async fn forward(
        &self,
        destination: Destination,
        listed: &Rc<Session>,
        reader: &mut impl ForwardReader,
        writer: impl ForwardWriter,
    ) {
        let surroundings = Surroundings {
            scope: &self.pod.scope,
            blocking: &self.pod.blocking,
            read_ahead: &self.pod.read_ahead,
            config: &self.pod.config.streams,
            ending: &self.ending,
            session: listed,
        };
        session::port_forward::run(surroundings, destination, reader, writer).await;
    }

    async fn run_command(
        &self,
        request: Request,
        listed: &Rc<Session>,
        reader: &mut impl ClientReader,
        writer: &mut impl ClientWriter,
    ) {
        match request {
            Request::Exec { spec, wants } => session::exec::run(&self.pod, listed, spec, wants, reader, writer).await,
            Request::Attach { container, stdin, wants } => {
                session::attach::run(&self.pod, listed, &container, stdin, wants, reader, writer).await;
            }
            // Its clients have neither stdin nor a status.
            Request::PortForward { .. } => {}
        }
    }
}

/// What a connection is listed as.
fn carrier(upgrade: &Upgrade) -> Carrier {
    match upgrade {
        Upgrade::WebSocket { protocol, .. } if protocol.is_tunnel() => Carrier::Tunnel,
        Upgrade::WebSocket { .. } => Carrier::WebSocket,
        Upgrade::Spdy(_) => Carrier::Spdy,
    }
}

/// What a client of an exec or attach gets.
fn requested(request: &Request) -> Requested {
    let (stdin, wants, tty) = match request {
        Request::Exec { spec, wants } => (spec.stdin, *wants, spec.terminal),
        Request::Attach { container, stdin, wants } => {
            (*stdin, *wants, container.upgrade().is_some_and(|container| container.stdio.is_terminal()))
        }
        Request::PortForward { .. } => (false, Wants { stdout: false, stderr: false }, false),
    };
    Requested { stdin, stdout: wants.stdout, stderr: wants.stderr, tty }
}
