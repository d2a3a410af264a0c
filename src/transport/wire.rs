//! What carries SPDY frames: a TCP connection, or the binary messages of a WebSocket (the tunnel of streaming 6.6).

use std::{io, rc::Rc};

use bytes::{Bytes, BytesMut};

use super::{
    socket::Socket,
    websocket::{NORMAL, Out},
};
use crate::proto::ws_frame::{self, FrameReader, Inbound};

/// Where frames come from.
#[derive(Debug)]
pub(super) enum WireReader {
    Socket(Socket),
    Tunnel(Box<TunnelReader>),
}

impl WireReader {
    /// Waits for bytes of SPDY and appends them; 0 is the client's end. Cancel safe.
    pub(super) async fn fill(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.fill(buffer).await,
            Self::Tunnel(tunnel) => tunnel.fill(buffer).await,
        }
    }
}

/// Where frames go.
#[derive(Debug)]
pub(super) enum WireWriter {
    Socket(Socket),
    /// Somebody else writes what waits here, and its pongs.
    Tunnel(Rc<Out>),
}

impl WireWriter {
    /// Writes one frame.
    pub(super) async fn write(&self, head: &[u8], body: Bytes) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.write(head, body).await,
            Self::Tunnel(out) => {
                let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
                out.has_room().await.map_err(gone)?;
                let mut message = ws_frame::data_head(head.len() + body.len()).to_vec();
                message.extend_from_slice(head);
                out.push(message, body);
                Ok(())
            }
        }
    }

    /// Says good-bye where the carrier has a word of its own for that; `spdy_has` said its own before.
    pub(super) fn say_goodbye(&self, spdy_has: bool) {
        if let Self::Tunnel(out) = self
            && spdy_has
        {
            out.close(NORMAL, "");
        }
    }

    /// The same, and waits until everything is on its way.
    pub(super) async fn close(&self) {
        self.say_goodbye(true);
        if let Self::Tunnel(out) = self {
            let _ = out.flushed().await;
        }
    }

    /// Whether nothing waits behind [`WireWriter::write`].
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tunnel(out) => out.is_flushed(),
        }
    }
}

/// Unwraps WebSocket messages; where one ends means nothing.
#[derive(Debug)]
pub(super) struct TunnelReader {
    socket: Socket,
    out: Rc<Out>,
    frames: FrameReader,
    /// What has come and is not unwrapped yet.
    wrapped: BytesMut,
    ended: bool,
}

impl TunnelReader {
    pub(super) fn new(socket: Socket, out: Rc<Out>, early: &[u8]) -> Self {
        Self { socket, out, frames: FrameReader::binary(), wrapped: BytesMut::from(early), ended: false }
    }

    async fn fill(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        while !self.ended {
            match self.frames.next(&mut self.wrapped) {
                Ok(None) => {
                    self.ended = self.socket.fill(&mut self.wrapped).await? == 0;
                }
                // client-go sends empty messages too.
                Ok(Some(Inbound::Data { bytes, .. })) if bytes.is_empty() => {}
                Ok(Some(Inbound::Data { bytes, .. })) => {
                    buffer.extend_from_slice(&bytes);
                    return Ok(bytes.len());
                }
                Ok(Some(Inbound::Ping(payload))) => self.out.pong(&payload),
                Ok(Some(Inbound::Pong)) => {}
                Ok(Some(Inbound::Close(code))) => {
                    self.out.close(code.unwrap_or(NORMAL), "");
                    self.ended = true;
                }
                Err(error) => {
                    self.out.close(error.close_code(), &error.to_string());
                    self.ended = true;
                    return Err(io::Error::other(error));
                }
            }
        }
        Ok(0)
    }
}
