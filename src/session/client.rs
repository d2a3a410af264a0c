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

    /// Resolves when the client can be reached no more. For the time in which the next event is not asked for, since the
    /// one that would say so waits behind what has no room. Where a transport cannot tell, never.
    async fn lost(&self) {
        std::future::pending().await
    }
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

/// One forwarded connection of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PairId(pub(crate) u64);

/// Something the client of a port forward did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardEvent {
    /// It wants a connection to a port.
    Opened { pair: PairId, port: u16 },
    /// Bytes for the pod.
    Data { pair: PairId, bytes: Bytes },
    /// No more will come; bytes from the pod are still wanted.
    HalfClosed(PairId),
    /// It has given the connection up.
    Reset(PairId),
    /// It is gone, or said good-bye.
    Gone,
}

/// How a forwarded connection ends, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PairEnd {
    /// As it should.
    Done,
    /// Broken: without a text, which would end the client's whole session (streaming 6.3).
    Reset,
    /// It never came about.
    Failed(String),
}

/// The side of a port forward's client that sends.
pub(crate) trait ForwardReader {
    /// The next event. After [`ForwardEvent::Gone`] always that. Cancel safe.
    async fn next(&mut self) -> ForwardEvent;
}

/// The side of a port forward's client that receives; each pair has a clone.
pub(crate) trait ForwardWriter: Clone + 'static {
    /// Whether a client can end its side of a connection and go on reading. Else the pod's end is the connection's.
    const HALF_CLOSE: bool;
    /// Whether clients end everything at the text of one failed connection.
    const TEXT_ENDS_ALL: bool;

    /// Sends bytes of the pod, waiting while the client is slow. `Gone`: the client, or just this pair of it.
    async fn write(&self, pair: PairId, bytes: Bytes) -> Result<(), Gone>;

    /// The pod sends no more, and what may go wrong from now on is not told.
    fn half_close(&self, pair: PairId);

    /// The pair has ended; nothing of it may be sent any more.
    fn end(&self, pair: PairId, end: PairEnd);

    /// Says good-bye. Returns when all of it has been handed to the kernel.
    async fn finish(&self);
}
