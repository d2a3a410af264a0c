//! The two halves of a connected session, and what comes through them; streaming.md 2.2 and 2.3.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use super::{StreamError, spdy::command, status};
use crate::model::{Outcome, WindowSize};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How long the end of the closing handshake is awaited after the server's Close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What a session brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamMessage {
    /// Output. The first message of a session has no bytes: it says that the handshake is over.
    Stdout(Bytes),
    /// Error output.
    Stderr(Bytes),
    /// How it ended.
    Status(Outcome),
    /// The server closed the session with this code; `None` when there was no Close frame, and over SPDY, which has none.
    Closed {
        /// 1000 is the normal end; RFC 6455 section 7.4.
        code: Option<u16>,
    },
}

/// Everything a session brought until it was closed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Bytes of stdout.
    pub stdout: Vec<u8>,
    /// Bytes of stderr.
    pub stderr: Vec<u8>,
    /// Every status in order: a server must send exactly one.
    pub statuses: Vec<Outcome>,
    /// The code of the Close frame.
    pub close_code: Option<u16>,
}

/// The half that sends. Use the two halves at the same time: a process that echoes stops reading when nobody reads it.
#[derive(Debug)]
pub struct StreamSender {
    pub(super) half: SendHalf,
    pub(super) protocol: Option<String>,
}

#[derive(Debug)]
pub(super) enum SendHalf {
    WebSocket(SplitSink<WebSocketStream<TcpStream>, Message>),
    Spdy(command::Sender),
}

/// The half that receives; it also answers pings.
#[derive(Debug)]
pub struct StreamReceiver {
    pub(super) half: ReceiveHalf,
}

#[derive(Debug)]
pub(super) enum ReceiveHalf {
    WebSocket(SplitStream<WebSocketStream<TcpStream>>),
    Spdy(Box<command::Receiver>),
}

impl StreamSender {
    /// Sends bytes of stdin, of any number. Waits while the server takes no more.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn send_stdin(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.send(STDIN, bytes).await
    }

    /// Says that no more stdin will come; output goes on.
    ///
    /// # Errors
    /// On a WebSocket before v5 always; else when the connection is lost.
    pub async fn close_stdin(&mut self) -> Result<(), StreamError> {
        if let SendHalf::Spdy(spdy) = &self.half {
            return spdy.close_stdin();
        }
        if self.protocol.as_deref() != Some("v5.channel.k8s.io") {
            return Err(StreamError::NoHalfClose);
        }
        self.send(CLOSE, &[STDIN]).await
    }

    /// Tells the size of the client's terminal.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn resize(&mut self, size: WindowSize) -> Result<(), StreamError> {
        self.send(RESIZE, format!("{{\"Width\":{},\"Height\":{}}}\n", size.cols, size.rows).as_bytes()).await
    }

    /// Sends any message, for tests of what a server must put up with. Over SPDY there are no other channels than those of
    /// stdin and resize.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn send(&mut self, channel: u8, payload: &[u8]) -> Result<(), StreamError> {
        let socket = match &mut self.half {
            SendHalf::WebSocket(socket) => socket,
            SendHalf::Spdy(spdy) => {
                return match channel {
                    STDIN => spdy.send_stdin(payload).await,
                    RESIZE => spdy.send_size(payload).await,
                    _ => Err(StreamError::NoStream("such channel")),
                };
            }
        };
        let mut message = BytesMut::with_capacity(1 + payload.len());
        message.put_u8(channel);
        message.put_slice(payload);
        socket.send(Message::Binary(message.freeze())).await.map_err(|error| broken(&error))
    }

    /// Begins the closing handshake with code 1000, or says good-bye over SPDY; the session's process is then dealt with as
    /// streaming.md 4.5 says.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        let socket = match &mut self.half {
            SendHalf::WebSocket(socket) => socket,
            SendHalf::Spdy(spdy) => {
                spdy.close().await;
                return Ok(());
            }
        };
        let frame = tungstenite::protocol::CloseFrame {
            code: tungstenite::protocol::frame::coding::CloseCode::Normal,
            reason: "".into(),
        };
        socket.send(Message::Close(Some(frame))).await.map_err(|error| broken(&error))
    }
}

impl StreamReceiver {
    /// The next message; after [`StreamMessage::Closed`] there are none.
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub async fn next(&mut self) -> Result<StreamMessage, StreamError> {
        let socket = match &mut self.half {
            ReceiveHalf::WebSocket(socket) => socket,
            ReceiveHalf::Spdy(spdy) => return spdy.next().await,
        };
        loop {
            let message = match socket.next().await {
                None => return Ok(StreamMessage::Closed { code: None }),
                Some(Err(error)) if is_lost(&error) => return Ok(StreamMessage::Closed { code: None }),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(message)) => message,
            };
            match message {
                Message::Binary(bytes) => {
                    if let Some(message) = decode(bytes) {
                        return Ok(message);
                    }
                }
                Message::Text(text) => {
                    if let Some(message) = decode(text.into()) {
                        return Ok(message);
                    }
                }
                Message::Close(frame) => {
                    // Reading on is what sends our half of the handshake. A server that keeps TCP open may do so.
                    let _ = tokio::time::timeout(CLOSE_LIMIT, socket.next()).await;
                    return Ok(StreamMessage::Closed { code: frame.map(|frame| frame.code.into()) });
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Receives until the server closes the session.
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub async fn collect(&mut self) -> Result<Collected, StreamError> {
        let mut all = Collected::default();
        loop {
            match self.next().await? {
                StreamMessage::Stdout(bytes) => all.stdout.extend_from_slice(&bytes),
                StreamMessage::Stderr(bytes) => all.stderr.extend_from_slice(&bytes),
                StreamMessage::Status(outcome) => all.statuses.push(outcome),
                StreamMessage::Closed { code } => {
                    all.close_code = code;
                    return Ok(all);
                }
            }
        }
    }
}

/// `None` for what a client ignores: a message without a channel, an unknown channel; streaming.md 2.2.
fn decode(mut message: Bytes) -> Option<StreamMessage> {
    if message.is_empty() {
        return None;
    }
    let channel = message.split_to(1)[0];
    match channel {
        STDOUT => Some(StreamMessage::Stdout(message)),
        STDERR => Some(StreamMessage::Stderr(message)),
        // When neither output was asked for, the first empty message is on this channel.
        ERROR if !message.is_empty() => Some(StreamMessage::Status(status::outcome(&message))),
        _ => None,
    }
}

pub(super) fn broken(error: &tungstenite::Error) -> StreamError {
    StreamError::Broken(error.to_string())
}

/// A connection that just ended, as opposed to one whose other end sent nonsense.
pub(super) fn is_lost(error: &tungstenite::Error) -> bool {
    use tungstenite::{Error, error::ProtocolError};
    matches!(
        error,
        Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Io(_)
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
    )
}
