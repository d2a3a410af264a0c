//! Port forward over SPDY: which two streams are one forwarded connection (streaming spec 6.1).
//!
//! For each connection the client opens a stream of type `error`, ends its half of it, and opens one of type `data`. Both
//! carry the `port` and the same `requestid`; a client from before there were ids opens the data stream next, with an id 2
//! above. Either may come first, and pairs may be mixed. The data stream's port counts.
//!
//! What is wrong with one stream is answered on that stream, without a text: a text on an error stream makes kubectl give
//! up all its forwards (spec 6.3).

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::spdy::{Headers, RstStatus, StreamId};

/// Pairs open or incomplete on one connection. Full: RST_STREAM 3, which fails that one connection alone (spec 5.11).
pub const MAX_PAIRS: usize = 1024;
/// The longest request id taken, in bytes; they are decimal numbers.
const MAX_REQUEST_ID: usize = 256;

/// One forwarded connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Carries the bytes, both ways.
    pub data: StreamId,
    /// Carries a text to the client, if the connection fails.
    pub error: StreamId,
    /// The pod's port; never 0.
    pub port: u16,
}

/// The pairs of one connection. There are at most [`MAX_PAIRS`], those included that are incomplete.
#[derive(Debug)]
pub struct Pairs {
    /// How long a stream may wait for its partner.
    partner_limit: Duration,
    incomplete: HashMap<Key, Half>,
    open: HashMap<Key, Pair>,
    keys: HashMap<StreamId, Key>,
}

/// What two streams have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    RequestId(Rc<[u8]>),
    /// Without a request id: the number of the error stream.
    ErrorStream(u32),
}

#[derive(Debug)]
struct Half {
    stream: StreamId,
    role: Role,
    deadline: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Error,
    Data { port: u16 },
}

impl Pairs {
    /// No streams yet. A stream may wait for its partner for as long as `partner_limit`.
    #[must_use]
    pub fn new(partner_limit: Duration) -> Self {
        Self { partner_limit, incomplete: HashMap::new(), open: HashMap::new(), keys: HashMap::new() }
    }

    /// A stream was opened: accept it, or reset it with [`PairError::status`]. The pair is returned that it completes.
    ///
    /// # Errors
    /// The stream cannot be part of a pair; all others are unaffected.
    pub fn offer(&mut self, now: Instant, id: StreamId, headers: &Headers) -> Result<Option<Pair>, PairError> {
        let port = headers.value("port").and_then(port).ok_or(PairError::Port)?;
        let role = match headers.value("streamtype") {
            Some(b"error") => Role::Error,
            Some(b"data") => Role::Data { port },
            _ => return Err(PairError::StreamType),
        };
        let key = match (headers.value("requestid"), role) {
            (Some(request), _) if request.len() > MAX_REQUEST_ID => return Err(PairError::RequestId),
            (Some(request), _) => Key::RequestId(request.into()),
            (None, Role::Error) => Key::ErrorStream(id.number()),
            (None, Role::Data { .. }) => Key::ErrorStream(id.number().wrapping_sub(2)),
        };
        if self.open.contains_key(&key) {
            return Err(PairError::Taken);
        }
        let completed = match self.incomplete.get(&key) {
            None if self.incomplete.len() + self.open.len() >= MAX_PAIRS => return Err(PairError::TooMany),
            None => None,
            Some(Half { stream, role: partner, .. }) => Some(match (*partner, role) {
                (Role::Error, Role::Data { port }) => Pair { data: id, error: *stream, port },
                (Role::Data { port }, Role::Error) => Pair { data: *stream, error: id, port },
                _ => return Err(PairError::Taken),
            }),
        };
        self.keys.insert(id, key.clone());
        match completed {
            Some(pair) => {
                self.incomplete.remove(&key);
                self.open.insert(key, pair);
            }
            None => {
                self.incomplete.insert(key, Half { stream: id, role, deadline: now + self.partner_limit });
            }
        }
        Ok(completed)
    }

    /// The open pair of a stream.
    #[must_use]
    pub fn pair_of(&self, id: StreamId) -> Option<Pair> {
        self.open.get(self.keys.get(&id)?).copied()
    }

    /// Whether a stream waits for its partner.
    #[must_use]
    pub fn is_waiting(&self, id: StreamId) -> bool {
        self.keys.get(&id).is_some_and(|key| self.incomplete.contains_key(key))
    }

    /// Forgets the pair of a stream, complete or not: its connection is over, or the stream was reset. The request id may
    /// be used again.
    pub fn remove(&mut self, id: StreamId) {
        let Some(key) = self.keys.remove(&id) else { return };
        self.incomplete.remove(&key);
        if let Some(pair) = self.open.remove(&key) {
            self.keys.remove(&pair.data);
            self.keys.remove(&pair.error);
        }
    }

    /// How many pairs are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// When the next stream has waited too long for its partner.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.incomplete.values().map(|half| half.deadline).min()
    }

    /// Forgets the streams that have waited too long, and returns them: reset each with [`RstStatus::CANCEL`].
    pub fn expire(&mut self, now: Instant) -> Vec<StreamId> {
        let overdue = self.incomplete.values().filter(|half| half.deadline <= now);
        let lonely: Vec<_> = overdue.map(|half| half.stream).collect();
        lonely.iter().for_each(|id| self.remove(*id));
        lonely
    }
}

/// A decimal number from 1 to 65535.
pub(super) fn port(text: &[u8]) -> Option<u16> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(text).ok().filter(|_| digits)?;
    number.parse().ok().filter(|port| *port > 0)
}

/// Why a stream is no part of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// Missing, or no number from 1 to 65535.
    #[error("stream without a valid port")]
    Port,
    /// Neither `error` nor `data`.
    #[error("stream of an unknown type")]
    StreamType,
    /// Longer than 256 bytes.
    #[error("request id longer than 256 bytes")]
    RequestId,
    /// The pair has a stream of this type.
    #[error("second stream of its type in an open pair")]
    Taken,
    /// [`MAX_PAIRS`] are there.
    #[error("too many connections forwarded at a time")]
    TooMany,
}

impl PairError {
    /// The status for the RST_STREAM frame that answers it.
    #[must_use]
    pub fn status(self) -> RstStatus {
        match self {
            Self::TooMany => RstStatus::REFUSED_STREAM,
            _ => RstStatus::CANCEL,
        }
    }
}

/// The text for the error stream when nobody can be reached on `port`: tools look for the port, and for "connection
/// refused" or "failed to connect to localhost" (spec 6.3). `v4` and `v6` say why either address failed.
#[must_use]
pub fn dial_error_text(port: u16, pod: &str, namespace: &str, v4: &str, v6: &str) -> String {
    format!(
        "error forwarding port {port} to pod {pod}, uid : failed to execute portforward in network namespace \
         \"{namespace}\": failed to connect to localhost:{port} inside namespace \"{namespace}\", IPv4: dial tcp4 \
         127.0.0.1:{port}: {v4} IPv6 dial tcp6 [::1]:{port}: {v6}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::epoch;
    use crate::proto::spdy::{HeaderReader, HeaderWriter};

    const PARTNER_LIMIT: Duration = Duration::from_secs(30);

    fn id(number: u32) -> StreamId {
        StreamId::new(number).unwrap()
    }

    fn offer(
        pairs: &mut Pairs,
        now: Instant,
        number: u32,
        headers: &[(&str, &str)],
    ) -> Result<Option<Pair>, PairError> {
        let headers = HeaderReader::new().read(&HeaderWriter::new().write(headers)).unwrap().unwrap();
        pairs.offer(now, id(number), &headers)
    }

    fn headers<'a>(kind: &'a str, request: &'a str) -> [(&'a str, &'a str); 3] {
        [("streamtype", kind), ("port", "8080"), ("requestid", request)]
    }

    // Spec item 102.
    #[test]
    fn streams_find_their_partner_in_any_order() {
        let (mut pairs, now) = (Pairs::new(PARTNER_LIMIT), epoch());
        assert_eq!(offer(&mut pairs, now, 1, &headers("error", "0")), Ok(None));
        assert_eq!(offer(&mut pairs, now, 3, &headers("data", "1")), Ok(None));
        assert_eq!(offer(&mut pairs, now, 5, &[("streamtype", "error"), ("port", "80")]), Ok(None));
        let old = Pair { data: id(7), error: id(5), port: 81 };
        assert_eq!(offer(&mut pairs, now, 7, &[("streamtype", "data"), ("port", "81")]), Ok(Some(old)));
        let second = Pair { data: id(3), error: id(9), port: 8080 };
        let other_port = [("streamtype", "error"), ("port", "99"), ("requestid", "1")];
        assert_eq!(offer(&mut pairs, now, 9, &other_port), Ok(Some(second)));
        let first = Pair { data: id(11), error: id(1), port: 8080 };
        assert_eq!(offer(&mut pairs, now, 11, &headers("data", "0")), Ok(Some(first)));
        assert_eq!((pairs.open_count(), pairs.deadline(), pairs.pair_of(id(9))), (3, None, Some(second)));
    }

    // Spec item 103.
    #[test]
    fn what_cannot_be_a_pair_is_refused_alone() {
        let (mut pairs, now) = (Pairs::new(PARTNER_LIMIT), epoch());
        for port in ["0", "65536", "abc", "", "+80", " 80", "-1"] {
            let headers = [("streamtype", "data"), ("port", port)];
            assert_eq!(offer(&mut pairs, now, 1, &headers), Err(PairError::Port), "{port:?}");
        }
        assert_eq!(offer(&mut pairs, now, 1, &[("streamtype", "data")]), Err(PairError::Port));
        assert_eq!(offer(&mut pairs, now, 1, &[("port", "1")]), Err(PairError::StreamType));
        assert_eq!(offer(&mut pairs, now, 1, &headers("stdin", "0")), Err(PairError::StreamType));
        assert_eq!(offer(&mut pairs, now, 1, &headers("data", &"9".repeat(257))), Err(PairError::RequestId));
        assert_eq!(PairError::Port.status(), RstStatus::CANCEL);
        assert_eq!(offer(&mut pairs, now, 1, &headers("error", "0")), Ok(None));
        assert_eq!(offer(&mut pairs, now, 3, &headers("error", "0")), Err(PairError::Taken));
        assert!(offer(&mut pairs, now, 5, &headers("data", "0")).unwrap().is_some());
        assert_eq!(offer(&mut pairs, now, 7, &headers("data", "0")), Err(PairError::Taken));
        // When the pair is over, its id is free.
        pairs.remove(id(5));
        assert!(pairs.keys.is_empty() && pairs.open_count() == 0);
        assert_eq!(offer(&mut pairs, now, 9, &headers("data", "0")), Ok(None));
    }

    // Spec item 104.
    #[test]
    fn a_stream_without_a_partner_expires() {
        let (mut pairs, start) = (Pairs::new(PARTNER_LIMIT), epoch());
        offer(&mut pairs, start, 1, &headers("error", "0")).unwrap();
        let later = start + Duration::from_secs(1);
        offer(&mut pairs, later, 3, &headers("error", "1")).unwrap();
        assert_eq!(pairs.deadline(), Some(start + PARTNER_LIMIT));
        assert_eq!(pairs.expire(start + PARTNER_LIMIT), [id(1)]);
        // A late one starts a new pair.
        assert_eq!(offer(&mut pairs, later, 5, &headers("data", "0")), Ok(None));
        pairs.remove(id(3));
        assert_eq!(pairs.expire(later + PARTNER_LIMIT), [id(5)]);
        assert!(pairs.deadline().is_none() && pairs.keys.is_empty());
    }

    // Spec item 110.
    #[test]
    fn the_number_of_pairs_is_bounded() {
        let (mut pairs, now) = (Pairs::new(PARTNER_LIMIT), epoch());
        for number in 0..MAX_PAIRS {
            let stream = u32::try_from(2 * number + 1).unwrap();
            assert_eq!(offer(&mut pairs, now, stream, &headers("error", &number.to_string())), Ok(None));
        }
        let refused = offer(&mut pairs, now, 5001, &headers("error", "more"));
        assert_eq!(refused.unwrap_err().status(), RstStatus::REFUSED_STREAM);
        assert!(offer(&mut pairs, now, 5003, &headers("data", "7")).unwrap().is_some());
    }

    #[test]
    fn the_text_of_a_refused_dial_has_what_tools_look_for() {
        let refused = "connect: connection refused";
        let text = dial_error_text(8080, "pod1", "/run/netns/x", refused, refused);
        assert!(text.starts_with("error forwarding port 8080 to pod pod1, uid : "));
        assert!(
            text.contains("failed to connect to localhost:8080")
                && text.ends_with("[::1]:8080: connect: connection refused")
        );
    }
}
