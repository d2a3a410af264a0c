//! What a connection tells its driver.

use std::time::Instant;

use bytes::Bytes;

use super::error::{GoAwayStatus, RstStatus, StreamError};
use super::frame::StreamId;
use super::header::Headers;

/// Which end of the connection this is. Clients open streams with odd ids, and ping with odd numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

/// Something the peer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream and waits: [`accept`](super::Connection::accept) or [`reset`](super::Connection::reset) it at
    /// once, since clients open the next one only then.
    Opened {
        /// The new stream.
        id: StreamId,
        /// What it is for.
        headers: Headers,
    },
    /// The peer wanted to open a stream that was refused already, by this.
    Rejected {
        /// What it was to be called; an open stream of this id is not affected.
        id: StreamId,
        /// Whose fault and why.
        error: StreamError,
    },
    /// The peer accepted a stream we opened.
    Accepted(StreamId),
    /// Payload; never empty. It counts against the stream until [`consumed`](super::Connection::consumed).
    Data {
        /// The stream it came on.
        id: StreamId,
        /// At most [`MAX_PIECE`](super::MAX_PIECE) bytes.
        bytes: Bytes,
    },
    /// No more payload will come on this stream; it may still be sent on.
    Finished(StreamId),
    /// The stream is gone, and what was queued for it.
    Reset {
        /// The stream.
        id: StreamId,
        /// Why.
        status: RstStatus,
    },
    /// The peer answered our ping.
    Pong(u32),
    /// The peer opens no more streams, and takes none. What is open goes on, except for streams we opened with an id
    /// above `last_good`: those it never looked at, and they are gone.
    GoAway {
        /// The last of our streams it looked at; 0 for none.
        last_good: u32,
        /// Why.
        status: GoAwayStatus,
    },
}

/// Why nothing more is taken from the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The peer does not read its answers: go on when something was transmitted.
    Replies,
    /// Payload waits to be consumed: go on after the next [`consumed`](super::Connection::consumed).
    Backlog {
        /// The stream that has been full for longest, and since when; `None` if only their sum is too large.
        longest: Option<(StreamId, Instant)>,
    },
}
