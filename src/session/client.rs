//! What a session needs of a client. Transports implement it; sessions never name one.

use bytes::Bytes;

use crate::model::{Chunk, Outcome, WindowSize};

/// Something the client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientEvent {
    /// Input for the process.
    Stdin(Bytes),
    /// No more input will come; the session goes on.
    StdinClosed,
    /// The client's window changed.
    Resize(WindowSize),
    /// The client is gone, or said good-bye: nothing can be delivered to it any more.
    Gone,
}

/// The client's side that sends.
pub(crate) trait ClientReader {
    /// The next event. After [`ClientEvent::Gone`] always that. Cancel safe.
    async fn next(&mut self) -> ClientEvent;
}

/// The client is gone; nobody is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// The client's side that receives.
pub(crate) trait ClientWriter {
    /// Sends output, waiting while the client is slow.
    async fn write(&mut self, chunk: Chunk) -> Result<(), Gone>;

    /// Sends how the session ended, as the last word, and says good-bye. Returns when all of it has been handed to the
    /// kernel; the transport then waits for the client's own good-bye.
    async fn finish(&mut self, outcome: &Outcome) -> Result<(), Gone>;
}
