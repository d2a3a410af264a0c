//! Who did what wrong: the peer for good ([`ConnectionError`]), the peer with one stream ([`StreamError`]), or we with a
//! call ([`SendError`]). The first two know their codes on the wire.

use std::fmt;

use super::frame::StreamId;

/// The reason in a RST_STREAM frame. Any number may come from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RstStatus(pub u32);

impl RstStatus {
    /// The peer broke the protocol on this stream.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The stream was not looked at, for want of room; another one may be opened later.
    pub const REFUSED_STREAM: Self = Self(3);
    /// Not wanted, or wanted no more: the one reason in everyday use.
    pub const CANCEL: Self = Self(5);
    /// Something failed on the sender's side.
    pub const INTERNAL_ERROR: Self = Self(6);
}

impl fmt::Display for RstStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "protocol error",
            2 => "invalid stream",
            3 => "refused stream",
            4 => "unsupported version",
            5 => "cancel",
            6 => "internal error",
            7 => "flow control error",
            8 => "stream in use",
            9 => "stream already closed",
            10 => "invalid credentials",
            11 => "frame too large",
            other => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}

/// The reason in a GOAWAY frame. Any number may come from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoAwayStatus(pub u32);

impl GoAwayStatus {
    /// Nothing is wrong.
    pub const OK: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(2);
}

/// How a peer broke the protocol so that nothing it sends can be believed any more: GOAWAY, then close (spec 5.4, 5.11).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The control bit is set and the version is not 3: this is no SPDY/3.
    #[error("frame of SPDY version {0} instead of 3")]
    Version(u16),
    /// Streams are numbered from 1.
    #[error("frame for stream 0")]
    StreamZero,
    /// A frame whose type fixes or bounds its length has another.
    #[error("{kind} frame with a length of {length} bytes")]
    Length {
        /// The name of the frame.
        kind: &'static str,
        /// Bytes behind its head.
        length: usize,
    },
    /// More settings announced than the frame can hold.
    #[error("SETTINGS frame with {0} entries in less room")]
    SettingsCount(u32),
    /// The header stream cannot be inflated; nor can any later block be.
    #[error("header block that cannot be inflated")]
    Inflate,
    /// A small block that becomes large.
    #[error("header block larger than 64 KiB when inflated")]
    HeaderBomb,
    /// More streams refused within a second than any client has reason to open.
    #[error("more than 1000 refused streams in a second")]
    RefusalFlood,
}

impl ConnectionError {
    /// The status for the GOAWAY frame that answers it.
    #[must_use]
    pub fn go_away_status(&self) -> GoAwayStatus {
        GoAwayStatus::PROTOCOL_ERROR
    }
}

/// Why a stream that the peer wanted to open was refused here; the connection lives on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Ids grow, and each side has its own parity.
    #[error("stream id {0} used before, or of the wrong parity")]
    Id(StreamId),
    /// Its headers make no sense.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// As many are open as one connection may have.
    #[error("too many streams on one connection")]
    TooMany,
    /// The peer said GOAWAY before.
    #[error("stream opened after GOAWAY")]
    AfterGoAway,
}

impl StreamError {
    /// The status for the RST_STREAM frame that answers it.
    #[must_use]
    pub fn status(&self) -> RstStatus {
        match self {
            Self::Id(_) | Self::Headers(_) => RstStatus::PROTOCOL_ERROR,
            Self::TooMany | Self::AfterGoAway => RstStatus::REFUSED_STREAM,
        }
    }
}

/// What is wrong with the headers of a stream. The block was inflated whole, so the next one can be read (spec 5.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Its lengths do not add up.
    #[error("header block whose lengths do not fit")]
    Malformed,
    /// More than 64 headers.
    #[error("more than 64 headers")]
    TooMany,
    /// Empty, longer than 256 bytes, with capitals or what is no ASCII letter, digit or sign; or one that SPDY forbids.
    #[error("invalid header name")]
    Name,
    /// Longer than 8 KiB.
    #[error("header value longer than 8 KiB")]
    Value,
    /// Several values of a header are joined by NUL, so a name comes once.
    #[error("header given twice")]
    Duplicate,
}

/// Why nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The out-queue is full: try again when [`has_room`](super::Connection::has_room).
    #[error("the connection's queue is full")]
    Blocked,
    /// The stream, or the connection, takes no more.
    #[error("the stream is closed")]
    Closed,
}
