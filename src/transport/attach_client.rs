//! One client of an attach socket: packets towards the session and back.

use tokio::task::yield_now;

use crate::{
    io::seqpacket::SeqpacketStream,
    model::{Chunk, Outcome, StdStream},
    proto::attach_packet::{DONE, head, payloads},
    session::client::{ClientEvent, ClientReader, ClientWriter, Gone},
};

/// Everything the client sends is input.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    stream: &'a SeqpacketStream,
    state: State,
}

/// ```text
/// Sending ──half-close──▶ Listening ──close──▶ Gone
///    └──────────────broken──────────────────────▲
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    Listening,
    Gone,
}

impl<'a> Reader<'a> {
    pub(super) fn new(stream: &'a SeqpacketStream) -> Self {
        Self { stream, state: State::Sending }
    }
}

impl ClientReader for Reader<'_> {
    async fn next(&mut self) -> ClientEvent {
        while self.state == State::Sending {
            // Before, not after: a packet that has been received must not be lost where this future is dropped.
            yield_now().await;
            match self.stream.receive().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => return ClientEvent::Stdin(bytes),
                Ok(None) => {
                    self.state = State::Listening;
                    return ClientEvent::StdinClosed;
                }
                Err(error) => {
                    tracing::debug!(%error, "an attach client can no longer be read");
                    self.state = State::Gone;
                }
            }
        }
        if self.state == State::Listening {
            if let Err(error) = self.stream.closed().await {
                // The next output will tell.
                tracing::debug!(%error, "an attach client cannot be watched");
                std::future::pending::<()>().await;
            }
            self.state = State::Gone;
        }
        ClientEvent::Gone
    }
}

/// Output in packets; the last word is the done packet, or a text without it.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    stream: &'a SeqpacketStream,
    terminal: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(stream: &'a SeqpacketStream, terminal: bool) -> Self {
        Self { stream, terminal }
    }

    async fn send(&self, head: [u8; 1], body: &[u8]) -> Result<(), Gone> {
        self.stream.send(&head, body).await.map_err(|error| {
            tracing::debug!(%error, "an attach client can no longer be written to");
            Gone
        })
    }
}

impl ClientWriter for Writer<'_> {
    async fn write(&mut self, chunk: Chunk) -> Result<(), Gone> {
        for payload in payloads(chunk.bytes) {
            self.send(head(chunk.stream), &payload).await?;
            // A client that always has room must not have the thread for itself.
            yield_now().await;
        }
        Ok(())
    }

    async fn finish(&mut self, outcome: &Outcome) -> Result<(), Gone> {
        match (outcome, self.terminal) {
            (Outcome::Exited(_), _) => self.send(DONE, b"").await,
            // It may stand behind half a line; a raw terminal needs both characters.
            (Outcome::Failed(reason), true) => {
                self.send(head(StdStream::Stdout), format!("\r\n{reason}\r\n").as_bytes()).await
            }
            (Outcome::Failed(reason), false) => {
                self.send(head(StdStream::Stderr), format!("{reason}\n").as_bytes()).await
            }
        }
    }
}
