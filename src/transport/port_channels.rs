//! Port forward over the channels of a WebSocket (streaming 6.5): the ports are known, each has one connection.

use std::{cell::Cell, rc::Rc};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::{
    linger::linger,
    socket::Socket,
    websocket::{self, CLOSE_LIMIT, NORMAL, Out},
};
use crate::{
    proto::{
        port_channels::{PortChannel, PortDecoder, greetings, port_message},
        ws_frame::{FrameReader, Inbound},
    },
    session::client::{ForwardEvent, ForwardReader, ForwardWriter, Gone, PairEnd, PairId},
};

/// Serves one upgraded connection: opens all ports at once, runs the session until all have ended, then waits for the
/// client's good-bye.
pub(super) async fn serve(
    socket: Socket,
    early: Bytes,
    base64: bool,
    ports: &[u16],
    session: impl AsyncFnOnce(&mut Reader, Writer),
) {
    let out = Rc::new(Out::default());
    // Clients insist that this is the first on each channel.
    for (head, body) in greetings(base64, ports) {
        out.push(head.to_vec(), body);
    }
    let left = Rc::new(Left { count: Cell::new(ports.len()), changed: Notify::new() });
    let mut reader = Reader {
        socket: socket.clone(),
        buffer: BytesMut::from(&early[..]),
        frames: FrameReader::new(),
        decoder: PortDecoder::new(base64, ports.len()),
        unopened: ports.iter().copied().enumerate().collect(),
        left: left.clone(),
        out: out.clone(),
        gone: false,
    };
    let writer = Writer { base64, left, out: out.clone() };
    let work = async {
        session(&mut reader, writer).await;
        if !reader.gone {
            out.close(NORMAL, "");
            linger(&socket, || out.is_flushed(), reader.discard()).await;
        }
        let _ = tokio::time::timeout(CLOSE_LIMIT, out.flushed()).await;
    };
    let drive = async {
        websocket::drive(&out, &socket).await;
        // The session notices by itself that nothing can be sent any more.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = drive => {}
    }
}

/// How many ports have not ended.
#[derive(Debug)]
struct Left {
    count: Cell<usize>,
    changed: Notify,
}

impl Left {
    async fn none(&self) {
        while self.count.get() > 0 {
            self.changed.notified().await;
        }
    }
}

/// The client's messages as events.
#[derive(Debug)]
pub(super) struct Reader {
    socket: Socket,
    buffer: BytesMut,
    frames: FrameReader,
    decoder: PortDecoder,
    /// Ports to open, with their indexes: all of them, before anything else.
    unopened: std::collections::VecDeque<(usize, u16)>,
    left: Rc<Left>,
    out: Rc<Out>,
    gone: bool,
}

impl ForwardReader for Reader {
    async fn next(&mut self) -> ForwardEvent {
        if let Some((index, port)) = self.unopened.pop_front() {
            return ForwardEvent::Opened { pair: PairId(index as u64), port };
        }
        let left = self.left.clone();
        tokio::select! {
            event = self.next_data() => event,
            // There is nobody left to talk to.
            () = left.none() => ForwardEvent::Gone,
        }
    }
}

impl Reader {
    /// Cancel safe: what has been read stays in the buffer.
    async fn next_data(&mut self) -> ForwardEvent {
        while !self.gone {
            match self.frames.next(&mut self.buffer) {
                Ok(None) => self.fill().await,
                Ok(Some(Inbound::Data { first, last, bytes })) => {
                    if let Some((index, bytes)) = self.decoder.handle(first, last, bytes) {
                        return ForwardEvent::Data { pair: PairId(index as u64), bytes };
                    }
                }
                Ok(Some(Inbound::Ping(payload))) => self.out.pong(&payload),
                Ok(Some(Inbound::Pong)) => {}
                Ok(Some(Inbound::Close(code))) => {
                    self.out.close(code.unwrap_or(NORMAL), "");
                    self.gone = true;
                }
                Err(error) => {
                    tracing::debug!(%error, "a client broke the WebSocket protocol");
                    self.out.close(error.close_code(), &error.to_string());
                    self.gone = true;
                }
            }
        }
        ForwardEvent::Gone
    }

    async fn fill(&mut self) {
        match self.socket.fill(&mut self.buffer).await {
            Ok(count) if count > 0 => {}
            _ => self.gone = true,
        }
    }

    /// Reads until the client is gone, keeping nothing.
    async fn discard(&mut self) {
        while self.next_data().await != ForwardEvent::Gone {}
    }
}

/// The connections' way to the client.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    base64: bool,
    left: Rc<Left>,
    out: Rc<Out>,
}

impl Writer {
    fn push(&self, pair: PairId, channel: PortChannel, bytes: Bytes) {
        // Pairs of this transport are indexes of ports.
        let Ok(index) = usize::try_from(pair.0) else { return };
        let (head, body) = port_message(self.base64, index, channel, bytes);
        self.out.push(head.to_vec(), body);
    }
}

impl ForwardWriter for Writer {
    const HALF_CLOSE: bool = false;
    const TEXT_ENDS_ALL: bool = false;

    async fn write(&self, pair: PairId, bytes: Bytes) -> Result<(), Gone> {
        self.out.has_room().await?;
        self.push(pair, PortChannel::Data, bytes);
        Ok(())
    }

    /// There is no word for it here; the end of the connection is all that can be told.
    fn half_close(&self, _: PairId) {}

    fn end(&self, pair: PairId, end: PairEnd) {
        if let PairEnd::Failed(text) = end {
            self.push(pair, PortChannel::Error, text.into());
        }
        self.left.count.set(self.left.count.get().saturating_sub(1));
        self.left.changed.notify_one();
    }

    async fn finish(&self) {
        let _ = self.out.flushed().await;
    }
}
