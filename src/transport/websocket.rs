//! WebSocket connections of exec and attach: frames on the socket, events and chunks towards the session.
//!
//! ```text
//! socket ─▶ Reader (frames, channels) ─▶ session ─▶ Writer ─▶ Out (queue, latest pong) ─▶ drive ─▶ socket
//!              └──────────────pong, close─────────────────────▲
//! ```

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{sync::Notify, time::timeout};

use super::{linger::linger, socket::Socket};
use crate::{
    model::{Chunk, Outcome},
    proto::{
        channel::{self, ChannelEvent, Decoder, ERROR_CHANNEL},
        remotecommand::Protocol,
        status,
        ws_frame::{self, ControlOpcode, FrameReader, Inbound},
    },
    session::client::{ClientEvent, ClientReader, ClientWriter, Gone},
    stdio::Wants,
};

/// Frames waiting for the socket, in bytes of memory. Full: the session waits, so that the pump does.
const OUT_QUEUE: usize = 32 * 1024;
/// What a waiting frame costs beside its bytes: its place in the queue and the allocation of its head.
const FRAME_OVERHEAD: usize = 96;
/// How long an answer to the client's own Close may take to be sent.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(5);

pub(super) const NORMAL: u16 = 1000;

/// Serves one upgraded connection: runs the session, then waits for the client's good-bye.
pub(super) async fn serve(
    socket: Socket,
    early: Bytes,
    protocol: Protocol,
    stdin: bool,
    wants: Wants,
    session: impl AsyncFnOnce(&mut Reader, &mut Writer),
) {
    let out = Rc::new(Out::default());
    let mut reader = Reader {
        socket: socket.clone(),
        buffer: BytesMut::from(&early[..]),
        frames: FrameReader::new(),
        decoder: Decoder::new(protocol, stdin),
        events: VecDeque::new(),
        out: out.clone(),
        gone: false,
    };
    let mut writer = Writer { protocol, out: out.clone() };
    // Tells the client that the stream is open, which a silent command would not (streaming 2.5).
    out.push_message(protocol, channel::greeting_channel(wants.stdout, wants.stderr), Bytes::new());
    let work = async {
        session(&mut reader, &mut writer).await;
        reader.linger().await;
    };
    let drive = async {
        drive(&out, &socket).await;
        // The session notices by itself that nothing can be sent any more.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = drive => {}
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Out {
    frames: RefCell<VecDeque<(Vec<u8>, Bytes)>>,
    /// What all of them cost.
    cost: Cell<usize>,
    /// The latest ping's answer: more than one waiting would only say the same later.
    pong: RefCell<Option<Bytes>>,
    writing: Cell<bool>,
    dead: Cell<bool>,
    close_sent: Cell<bool>,
    work: Notify,
    room: Notify,
}

impl Out {
    /// Queues a frame; nothing goes out behind a Close.
    pub(super) fn push(&self, head: Vec<u8>, body: Bytes) {
        if !self.dead.get() && !self.close_sent.get() {
            self.cost.set(self.cost.get() + cost(&head, &body));
            self.frames.borrow_mut().push_back((head, body));
            self.work.notify_one();
        }
    }

    fn push_message(&self, protocol: Protocol, channel: u8, data: Bytes) {
        let (head, body) = channel::message(protocol.base64, channel, data);
        self.push(head.to_vec(), body);
    }

    pub(super) fn close(&self, code: u16, reason: &str) {
        self.push(Vec::new(), ws_frame::close(code, reason));
        self.close_sent.set(true);
    }

    pub(super) fn pong(&self, payload: &Bytes) {
        if !self.close_sent.get() {
            *self.pong.borrow_mut() = Some(ws_frame::control(ControlOpcode::Pong, payload));
            self.work.notify_one();
        }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.cost.get() == 0 && !self.writing.get()
    }

    pub(super) async fn has_room(&self) -> Result<(), Gone> {
        while self.cost.get() >= OUT_QUEUE && !self.dead.get() {
            self.room.notified().await;
        }
        if self.dead.get() { Err(Gone) } else { Ok(()) }
    }

    pub(super) async fn flushed(&self) -> Result<(), Gone> {
        while !self.is_flushed() && !self.dead.get() {
            self.room.notified().await;
        }
        if self.dead.get() { Err(Gone) } else { Ok(()) }
    }

    async fn next(&self) -> (Vec<u8>, Bytes) {
        loop {
            let pong = self.pong.borrow_mut().take();
            if let Some(pong) = pong {
                return (Vec::new(), pong);
            }
            let frame = self.frames.borrow_mut().pop_front();
            if let Some((head, body)) = frame {
                self.cost.set(self.cost.get() - cost(&head, &body));
                return (head, body);
            }
            self.work.notified().await;
        }
    }
}

fn cost(head: &[u8], body: &[u8]) -> usize {
    head.len() + body.len() + FRAME_OVERHEAD
}

/// Writes what is queued, until the socket fails.
pub(super) async fn drive(out: &Out, socket: &Socket) {
    loop {
        let (head, body) = out.next().await;
        out.writing.set(true);
        let written = socket.write(&head, body).await;
        out.writing.set(false);
        if let Err(error) = written {
            tracing::debug!(%error, "a client can no longer be written to");
            out.dead.set(true);
            out.frames.borrow_mut().clear();
            out.cost.set(0);
        }
        out.room.notify_one();
        if out.dead.get() {
            out.room.notify_waiters();
            return;
        }
    }
}

/// The client's frames as events.
#[derive(Debug)]
pub(super) struct Reader {
    socket: Socket,
    buffer: BytesMut,
    frames: FrameReader,
    decoder: Decoder,
    events: VecDeque<ChannelEvent>,
    out: Rc<Out>,
    /// The client has said good-bye, vanished, or broken the protocol.
    gone: bool,
}

impl ClientReader for Reader {
    async fn next(&mut self) -> ClientEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return match event {
                    ChannelEvent::Stdin(bytes) => ClientEvent::Stdin(bytes),
                    ChannelEvent::StdinClosed => ClientEvent::StdinClosed,
                    ChannelEvent::Resize(size) => ClientEvent::Resize(size),
                };
            }
            if self.gone {
                return ClientEvent::Gone;
            }
            if !self.decode_one() {
                self.fill().await;
            }
        }
    }

    async fn lost(&self) {
        self.socket.lost().await;
    }
}

impl Reader {
    /// Takes one thing from the buffer; false when more bytes are needed.
    fn decode_one(&mut self) -> bool {
        match self.frames.next(&mut self.buffer) {
            Ok(None) => return false,
            Ok(Some(Inbound::Data { first, last, bytes })) => {
                if let Err(error) = self.decoder.handle(first, last, bytes, &mut self.events) {
                    self.violated(error.close_code(), &error);
                }
            }
            Ok(Some(Inbound::Ping(payload))) => self.out.pong(&payload),
            Ok(Some(Inbound::Pong)) => {}
            Ok(Some(Inbound::Close(code))) => {
                self.out.close(code.unwrap_or(NORMAL), "");
                self.gone = true;
            }
            Err(error) => self.violated(error.close_code(), &error),
        }
        true
    }

    fn violated(&mut self, code: u16, error: &dyn std::error::Error) {
        tracing::debug!(%error, "a client broke the WebSocket protocol");
        self.out.close(code, &error.to_string());
        self.gone = true;
    }

    /// Waits for bytes and reads once.
    async fn fill(&mut self) {
        match self.socket.fill(&mut self.buffer).await {
            Ok(0) => self.vanished(),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a client's connection broke");
                self.vanished();
            }
        }
    }

    fn vanished(&mut self) {
        self.gone = true;
        self.out.close_sent.set(true);
    }

    /// After the session: sends what is queued, then waits for the client's Close, end or reset.
    async fn linger(&mut self) {
        if self.gone {
            let _ = timeout(CLOSE_LIMIT, self.out.flushed()).await;
            return;
        }
        if !self.out.close_sent.get() {
            // The session gave its client up: there is no good-bye to wait for.
            return;
        }
        let (socket, out) = (self.socket.clone(), self.out.clone());
        linger(&socket, || out.is_flushed(), self.discard()).await;
        let _ = timeout(CLOSE_LIMIT, self.out.flushed()).await;
    }

    /// Reads until the client is gone, keeping nothing.
    async fn discard(&mut self) {
        while !self.gone {
            if self.decode_one() {
                self.events.clear();
            } else {
                self.fill().await;
            }
        }
    }
}

/// The session's output as messages.
#[derive(Debug)]
pub(super) struct Writer {
    protocol: Protocol,
    out: Rc<Out>,
}

impl ClientWriter for Writer {
    async fn write(&mut self, chunk: Chunk) -> Result<(), Gone> {
        self.out.has_room().await?;
        self.out.push_message(self.protocol, channel::channel_of(chunk.stream), chunk.bytes);
        Ok(())
    }

    async fn finish(&mut self, outcome: &Outcome) -> Result<(), Gone> {
        if let Some(status) = status::encode(outcome, self.protocol.version) {
            self.out.push_message(self.protocol, ERROR_CHANNEL, status);
        }
        self.out.close(NORMAL, "");
        self.out.flushed().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn thousands_of_tiny_frames_passed_the_bound_of_the_queue() {
        let out = Out::default();
        let mut count = 0;
        while out.has_room().now_or_never().is_some() {
            out.push(vec![0x82, 2, 1], Bytes::from_static(b"x"));
            count += 1;
        }
        assert!(count * (FRAME_OVERHEAD + 4) <= OUT_QUEUE + FRAME_OVERHEAD + 4, "{count} frames");
        for _ in 0..count {
            out.next().now_or_never().expect("queued");
        }
        assert!(out.is_flushed(), "what was taken costs nothing");
    }
}
