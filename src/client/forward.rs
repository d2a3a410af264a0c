//! Port forward as its client: connections to ports of a pod over one stream connection; streaming.md 6.

use std::{cell::Cell, future::ready, io, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::{
    StreamError,
    halves::is_lost,
    spdy::{End, Received, Session, Stream, Wire, upgrade::upgrade},
    stream::{dial, websocket},
    url::Target,
};
use crate::proto::remotecommand::{StreamKind, TUNNEL};

const READ_CHUNK: usize = 16 << 10;
/// How long the server may take to say why a connection was broken off.
const REASON_LIMIT: Duration = Duration::from_secs(5);
/// What is kept of that, in bytes.
const MAX_REASON: usize = 4 << 10;

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// A WebSocket; for a port forward with SPDY in its messages.
    #[default]
    WebSocket,
    /// SPDY on the connection itself.
    Spdy,
}

/// A connected port forward. Dropping it ends every connection forwarded.
#[derive(Debug)]
pub struct ForwardClient {
    session: Rc<Session>,
    next_request: Cell<u64>,
}

/// One connection to a port of the pod.
#[derive(Debug)]
pub struct Forwarded {
    data: Stream,
    /// Says why when it fails.
    error: Stream,
}

/// How a forwarded connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardEnd {
    /// Both sides have sent everything.
    Done,
    /// One of them broke it off.
    Reset,
    /// It could not be made, or broke, and the server says why.
    Failed(String),
    /// The connection to the server is lost.
    Lost,
}

impl ForwardClient {
    /// Opens the session of a URL that a serve call returned. A URL is good for one connection.
    ///
    /// # Errors
    /// See [`StreamError`].
    ///
    /// # Panics
    /// Outside a tokio `LocalRuntime` or `LocalSet`.
    pub async fn connect(url: &str, transport: Transport) -> Result<Self, StreamError> {
        let wire = match transport {
            Transport::Spdy => {
                let target = Target::parse(url)?;
                let mut tcp = dial(&target).await?;
                let upgraded = upgrade(&mut tcp, &target, StreamKind::PortForward.spdy_names()).await?;
                let (reader, writer) = tcp.into_split();
                Wire { reader: Box::new(reader), writer: Box::new(writer), early: upgraded.early }
            }
            Transport::WebSocket => match websocket(url, &[TUNNEL]).await? {
                (socket, Some(protocol)) if protocol == TUNNEL => tunnel(socket),
                _ => return Err(StreamError::Broken("the server does not speak SPDY in a WebSocket".to_owned())),
            },
        };
        Ok(Self::over(wire))
    }

    fn over(wire: Wire) -> Self {
        Self { session: Session::new(wire), next_request: Cell::new(0) }
    }

    /// Begins a connection to a port. Whether anybody listens there turns out in [`Forwarded::copy`].
    ///
    /// # Errors
    /// The server takes no more connections, or is lost.
    pub async fn open(&self, port: u16) -> Result<Forwarded, StreamError> {
        let request = self.next_request.get();
        self.next_request.set(request + 1);
        let (port, request) = (port.to_string(), request.to_string());
        let headers = |kind| [("streamtype", kind), ("port", &*port), ("requestid", &*request)];
        // In the order of the clients in use; nothing is ever sent on the first.
        let error = self.session.open(&headers("error"), true, "error").await?;
        let data = self.session.open(&headers("data"), false, "data").await?;
        Ok(Forwarded { data, error })
    }

    /// Waits until the server has closed the connection, and returns its fault if it was one.
    pub async fn lost(&self) -> Option<StreamError> {
        self.session.ended().await;
        self.session.fault()
    }

    /// Ends the session in order.
    pub async fn close(&self) {
        self.session.goodbye().await;
    }
}

impl Forwarded {
    /// Copies between a connection of ours and the pod's until both directions have ended. A half-close of either is one
    /// of the other, and so is a reset.
    pub async fn copy(self, mut local: TcpStream) -> ForwardEnd {
        let end = self.copy_both(&mut local).await;
        if end != End::Finished {
            let _ = local.set_zero_linger();
        }
        drop(local);
        let reason = match end {
            // The server ends it when the pod has taken everything; a reset of ours would overtake what is on its way.
            End::Finished => self.reason().await,
            End::Reset | End::Lost => timeout(REASON_LIMIT, self.reason()).await.unwrap_or_default(),
        };
        match end {
            _ if !reason.is_empty() => ForwardEnd::Failed(reason),
            End::Finished => ForwardEnd::Done,
            End::Reset => ForwardEnd::Reset,
            End::Lost => ForwardEnd::Lost,
        }
    }

    async fn copy_both(&self, local: &mut TcpStream) -> End {
        let (mut from_local, mut to_local) = local.split();
        let up = self.copy_up(&mut from_local);
        let down = self.copy_down(&mut to_local);
        tokio::pin!(up, down);
        tokio::select! {
            end = &mut down => {
                if end == End::Finished {
                    // The pod may still take what comes; the server says when no more.
                    tokio::select! {
                        () = up => {}
                        () = self.data.gone() => {}
                    }
                }
                end
            }
            () = &mut up => down.await,
        }
    }

    /// To the pod, until our side's end.
    async fn copy_up(&self, from_local: &mut ReadHalf<'_>) {
        loop {
            let mut bytes = BytesMut::with_capacity(READ_CHUNK);
            match from_local.read_buf(&mut bytes).await {
                Ok(0) => return self.data.finish(),
                // That the pod takes no more shows in the other direction.
                Ok(_) if self.data.send(bytes.freeze()).await.is_err() => return,
                Ok(_) => {}
                Err(_) => return self.data.reset(),
            }
        }
    }

    /// From the pod, until its end.
    async fn copy_down(&self, to_local: &mut WriteHalf<'_>) -> End {
        loop {
            match self.data.next().await {
                Received::Data(bytes) => {
                    if to_local.write_all(&bytes).await.is_err() {
                        self.data.reset();
                        return End::Reset;
                    }
                }
                Received::End(end) => {
                    if end == End::Finished {
                        let _ = to_local.shutdown().await;
                    }
                    return end;
                }
            }
        }
    }

    /// What the server says about the end; empty when nothing.
    async fn reason(&self) -> String {
        let mut text = Vec::new();
        while let Received::Data(bytes) = self.error.next().await {
            let room = MAX_REASON.saturating_sub(text.len());
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

/// The messages of a WebSocket as bytes; where one ends means nothing (streaming.md 6.6).
fn tunnel(socket: WebSocketStream<TcpStream>) -> Wire {
    let (sink, stream) = socket.split();
    let incoming = stream.filter_map(|message| ready(payload(message)));
    let outgoing = sink.with(|bytes: Bytes| ready(Ok::<_, tungstenite::Error>(Message::Binary(bytes))));
    let outgoing = outgoing.sink_map_err(io::Error::other);
    Wire {
        reader: Box::new(StreamReader::new(incoming)),
        writer: Box::new(SinkWriter::new(CopyToBytes::new(outgoing))),
        early: BytesMut::new(),
    }
}

fn payload(message: Result<Message, tungstenite::Error>) -> Option<io::Result<Bytes>> {
    match message {
        // An empty piece would be taken for the end.
        Ok(Message::Binary(bytes)) => (!bytes.is_empty()).then_some(Ok(bytes)),
        Ok(Message::Text(_)) => Some(Err(io::Error::other("a text message in a tunnel"))),
        Ok(_) => None,
        Err(error) if is_lost(&error) => None,
        Err(error) => Some(Err(io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        client::spdy::testing::Server,
        proto::spdy::{Event, RstStatus, StreamId},
    };

    /// A forwarded connection: the program's end of it, its copying, and the two streams at the server.
    async fn forwarded(client: &ForwardClient, server: &mut Server) -> (TcpStream, ForwardedTask, [StreamId; 2]) {
        let accept = async {
            let mut ids = Vec::new();
            for kind in ["error", "data"] {
                let (id, headers) = server.opened().await;
                let values = ["streamtype", "port"].map(|name| headers.value(name));
                assert_eq!(values, [Some(kind.as_bytes()), Some(&b"80"[..])]);
                ids.push(id);
                if kind == "error" {
                    assert_eq!(server.next().await, Some(Event::Finished(id)), "nothing is sent on it");
                }
            }
            [ids[0], ids[1]]
        };
        let (forwarded, ids) = tokio::join!(client.open(80), accept);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let local = listener.accept().await.unwrap().0;
        let (sent, ended) = tokio::sync::oneshot::channel();
        let scope = crate::io::task::Scope::new();
        let forwarded = forwarded.unwrap();
        scope.spawn(async move { drop(sent.send(forwarded.copy(local).await)) });
        (program, ForwardedTask { ended, _scope: scope }, ids)
    }

    struct ForwardedTask {
        ended: tokio::sync::oneshot::Receiver<ForwardEnd>,
        _scope: crate::io::task::Scope,
    }

    fn with_server(test: impl AsyncFnOnce(ForwardClient, Server)) {
        crate::io::local(async {
            let (wire, server) = Server::new();
            test(ForwardClient::over(wire), server).await;
        });
    }

    async fn rest(program: &mut TcpStream) -> io::Result<String> {
        let mut text = String::new();
        program.read_to_string(&mut text).await.map(|_| text)
    }

    #[test]
    fn each_direction_ends_by_itself() {
        with_server(async |client, mut server| {
            // The program ends first, and still gets the answer.
            let (mut program, task, [error, data]) = forwarded(&client, &mut server).await;
            program.write_all(b"ask").await.unwrap();
            program.shutdown().await.unwrap();
            server.until(|event| *event == Event::Data { id: data, bytes: "ask".into() }).await;
            server.until(|event| *event == Event::Finished(data)).await;
            server.connection.finish(data, "answer".into()).unwrap();
            server.connection.finish(error, "".into()).unwrap();
            server.flush().await;
            assert_eq!(rest(&mut program).await.unwrap(), "answer");
            assert_eq!(task.ended.await.unwrap(), ForwardEnd::Done);

            // The pod ends first, and still takes what comes.
            let (mut program, task, [error, data]) = forwarded(&client, &mut server).await;
            server.connection.finish(data, "first".into()).unwrap();
            server.flush().await;
            assert_eq!(rest(&mut program).await.unwrap(), "first");
            program.write_all(b"late").await.unwrap();
            server.until(|event| *event == Event::Data { id: data, bytes: "late".into() }).await;
            drop(program);
            server.until(|event| *event == Event::Finished(data)).await;
            server.connection.finish(error, "".into()).unwrap();
            server.flush().await;
            assert_eq!(task.ended.await.unwrap(), ForwardEnd::Done);
        });
    }

    #[test]
    fn a_reset_is_passed_on_as_one_and_other_connections_go_on() {
        with_server(async |client, mut server| {
            let (mut other, _task, [_, others]) = forwarded(&client, &mut server).await;
            let (mut program, task, [error, data]) = forwarded(&client, &mut server).await;
            server.connection.reset(data, RstStatus::CANCEL);
            server.connection.finish(error, "".into()).unwrap();
            server.flush().await;
            assert_eq!(rest(&mut program).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(task.ended.await.unwrap(), ForwardEnd::Reset);
            // The program's is one of the stream.
            let (program, _task, [_, data]) = forwarded(&client, &mut server).await;
            program.set_zero_linger().unwrap();
            drop(program);
            server.until(|event| matches!(event, Event::Reset { id, .. } if *id == data)).await;
            server.connection.send(others, "still".into()).unwrap();
            server.flush().await;
            let mut text = [0; 5];
            other.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"still");
        });
    }

    #[test]
    fn what_the_server_says_about_a_failure_is_told() {
        with_server(async |client, mut server| {
            let (mut program, task, [error, data]) = forwarded(&client, &mut server).await;
            server.connection.reset(data, RstStatus::CANCEL);
            server.connection.finish(error, "nobody listens\n".into()).unwrap();
            server.flush().await;
            assert!(rest(&mut program).await.is_err());
            assert_eq!(task.ended.await.unwrap(), ForwardEnd::Failed("nobody listens".to_owned()));
        });
    }

    #[test]
    fn a_lost_server_ends_everything() {
        with_server(async |client, mut server| {
            let (mut program, task, _) = forwarded(&client, &mut server).await;
            drop(server);
            assert!(client.lost().await.is_none());
            assert!(rest(&mut program).await.is_err());
            assert_eq!(task.ended.await.unwrap(), ForwardEnd::Lost);
            assert!(client.open(80).await.is_err());
        });
    }
}
