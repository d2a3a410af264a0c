//! The streams of an exec or attach session over SPDY (streaming spec 5.7, 5.8).
//!
//! The client opens one stream for each thing it asked for, named by the header `streamtype`, and waits for the answer to
//! each before the next. The session starts when all have come, in whatever order; before that nothing runs. A set that
//! does not become complete in time ends the connection.
//!
//! Input may come before the set is complete. It waits with the driver, on the stream's account.

use std::time::Instant;

use super::remotecommand::Version;
use super::spdy::{Headers, RstStatus, StreamId};

/// Refused streams, after which the client is given up: GOAWAY, close (spec 5.11).
const MAX_REFUSED: usize = 4;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamType {
    /// The status, to the client.
    Error,
    /// Input, to the process.
    Stdin,
    /// Output, to the client; all of it with a terminal.
    Stdout,
    /// Error output, to the client.
    Stderr,
    /// Sizes of the terminal, to the server: a stream of JSON objects.
    Resize,
}

impl StreamType {
    /// In the order in which clients open them.
    const ALL: [Self; 5] = [Self::Error, Self::Stdin, Self::Stdout, Self::Stderr, Self::Resize];

    /// The value of the header `streamtype`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Resize => "resize",
        }
    }
}

/// What the session was requested with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the flags of the request")]
pub struct Requested {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Error output; there is none with a terminal.
    pub stderr: bool,
    /// A terminal, which has sizes; of an attach it is the container's.
    pub tty: bool,
}

impl Requested {
    /// The streams to open, in this order.
    pub fn streams(self, version: Version) -> impl Iterator<Item = StreamType> {
        StreamType::ALL.into_iter().filter(move |stream| match stream {
            StreamType::Error => true,
            StreamType::Stdin => self.stdin,
            StreamType::Stdout => self.stdout,
            StreamType::Stderr => self.stderr && !self.tty,
            StreamType::Resize => self.tty && version.has_resize_stream(),
        })
    }
}

/// The streams of one session as they come.
#[derive(Debug)]
pub struct StreamSet {
    /// The expected ones, with the id of those that came; five at most.
    streams: Vec<(StreamType, Option<StreamId>)>,
    refused: usize,
    deadline: Instant,
}

impl StreamSet {
    /// A set of which no stream has come. At `deadline` it must be complete.
    #[must_use]
    pub fn new(version: Version, requested: Requested, deadline: Instant) -> Self {
        Self { streams: requested.streams(version).map(|stream| (stream, None)).collect(), refused: 0, deadline }
    }

    /// A stream was opened: accept it, or reset it with [`Unwanted::status`].
    ///
    /// # Errors
    /// The session has no use for it; [`is_hopeless`](Self::is_hopeless) tells whether that was one too many.
    pub fn offer(&mut self, id: StreamId, headers: &Headers) -> Result<StreamType, Unwanted> {
        let name = headers.value("streamtype").unwrap_or_default();
        let result = match self.streams.iter_mut().find(|(stream, _)| stream.name().as_bytes() == name) {
            Some((stream, came @ None)) => {
                *came = Some(id);
                Ok(*stream)
            }
            Some(_) => Err(Unwanted::Duplicate),
            None => Err(Unwanted::NotExpected),
        };
        self.refused += usize::from(result.is_err());
        result
    }

    /// The connection refused a stream by itself.
    pub fn count_rejected(&mut self) {
        self.refused += 1;
    }

    /// Whether more streams were refused than any client has reason to open.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.refused > MAX_REFUSED
    }

    /// Whether all have come: the session can start.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.streams.iter().all(|(_, id)| id.is_some())
    }

    /// When the client is given up; `None` once the set is complete.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        (!self.is_complete()).then_some(self.deadline)
    }

    /// The stream of this type, if it came.
    #[must_use]
    pub fn id_of(&self, stream: StreamType) -> Option<StreamId> {
        self.streams.iter().find(|(expected, _)| *expected == stream)?.1
    }

    /// What a stream is for; `None` for one that is not of the set.
    #[must_use]
    pub fn type_of(&self, id: StreamId) -> Option<StreamType> {
        self.streams.iter().find(|(_, came)| *came == Some(id)).map(|(stream, _)| *stream)
    }
}

/// Why a session has no use for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwanted {
    /// Its type is unknown or missing, was not requested, or is not of this version.
    #[error("stream of a type that was not requested")]
    NotExpected,
    /// One of this type is there; also when the session runs.
    #[error("second stream of its type")]
    Duplicate,
}

impl Unwanted {
    /// The status for the RST_STREAM frame that answers it.
    #[must_use]
    pub fn status(self) -> RstStatus {
        RstStatus::CANCEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::epoch;
    use crate::proto::spdy::{HeaderReader, HeaderWriter};

    const ALL: Requested = Requested { stdin: true, stdout: true, stderr: true, tty: false };
    const TERMINAL: Requested = Requested { tty: true, ..ALL };

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        HeaderReader::new().read(&HeaderWriter::new().write(pairs)).unwrap().unwrap()
    }

    fn offer(set: &mut StreamSet, number: u32, kind: &str) -> Result<StreamType, Unwanted> {
        set.offer(StreamId::new(number).unwrap(), &headers(&[("streamtype", kind)]))
    }

    fn names(version: Version, requested: Requested) -> String {
        requested.streams(version).map(StreamType::name).collect::<Vec<_>>().join(" ")
    }

    // Spec 5.7 and items 58 and 95.
    #[test]
    fn version_and_request_decide_which_streams_are_expected() {
        assert_eq!(names(Version::V4, ALL), "error stdin stdout stderr");
        assert_eq!(names(Version::V4, TERMINAL), "error stdin stdout resize");
        assert_eq!(names(Version::V3, TERMINAL), "error stdin stdout resize");
        for old in [Version::V1, Version::V2] {
            assert_eq!(names(old, TERMINAL), "error stdin stdout");
        }
        let nothing = Requested { stdin: false, stdout: false, stderr: false, tty: false };
        assert_eq!(names(Version::V4, Requested { stderr: true, ..nothing }), "error stderr");
    }

    // Spec items 79 and 81.
    #[test]
    fn streams_come_in_any_order_and_once() {
        let start = epoch();
        let mut set = StreamSet::new(Version::V4, ALL, start);
        assert_eq!(offer(&mut set, 1, "stdout"), Ok(StreamType::Stdout));
        assert_eq!(offer(&mut set, 3, "stdout"), Err(Unwanted::Duplicate));
        assert_eq!(offer(&mut set, 5, "resize"), Err(Unwanted::NotExpected));
        assert_eq!(offer(&mut set, 7, "Error"), Err(Unwanted::NotExpected));
        for (number, kind) in [(9, "stderr"), (11, "error")] {
            assert!(offer(&mut set, number, kind).is_ok());
        }
        assert_eq!((set.is_complete(), set.deadline()), (false, Some(start)));
        assert_eq!(offer(&mut set, 13, "stdin"), Ok(StreamType::Stdin));
        assert_eq!((set.is_complete(), set.deadline()), (true, None));
        assert_eq!(set.id_of(StreamType::Stdout), StreamId::new(1));
        assert_eq!(set.type_of(StreamId::new(13).unwrap()), Some(StreamType::Stdin));
        assert_eq!((set.type_of(StreamId::new(3).unwrap()), set.id_of(StreamType::Resize)), (None, None));
    }

    // Spec item 75.
    #[test]
    fn a_client_that_opens_what_nobody_wants_is_given_up() {
        let mut set = StreamSet::new(Version::V4, ALL, epoch());
        for number in [1, 3, 5] {
            assert_eq!(set.offer(StreamId::new(number).unwrap(), &headers(&[])), Err(Unwanted::NotExpected));
        }
        set.count_rejected();
        assert!(!set.is_hopeless());
        assert!(offer(&mut set, 7, "x").is_err() && set.is_hopeless());
    }
}
