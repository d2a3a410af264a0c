//! One SPDY connection, either side: frames in, events out; calls in, frames out.
//!
//! # For the driver
//!
//! ```text
//! loop {
//!     write every poll_transmit()            one frame after the other, each whole
//!     act on next(now, buffer) until None    accept, reset, send, finish, consumed …
//!     read more into the buffer, unless pause() tells to wait
//! }
//! ```
//!
//! *Payload is not kept here.* A DATA event is a piece of at most [`MAX_PIECE`](super::MAX_PIECE) bytes; it waits with
//! whoever consumes it, and [`consumed`](Connection::consumed) tells when it is gone. Until then it is on the stream's
//! account. While an account is full ([`STREAM_BACKLOG`](super::STREAM_BACKLOG), [`CONNECTION_BACKLOG`](super::CONNECTION_BACKLOG)),
//! or while the peer does not read its answers, [`next`](Connection::next) takes nothing more, the rest stays in the
//! caller's buffer, and TCP does the rest.
//!
//! *An end of a stream is told once*, by `Finished` or `Reset`; after a `Reset` nothing of the stream is left, here or in
//! the out-queue. Calls about a stream that is closed already do nothing, or fail with `Closed`: it may have been closed by
//! a frame whose event has not been looked at yet.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::backlog::Backlog;
use super::error::{ConnectionError, StreamError};
use super::event::{Event, Pause, Side};
use super::frame::{Frame, FrameReader, StreamId};
use super::header::{HeaderReader, HeaderWriter};
use super::outbox::{End, Outbox};
use super::stream::{Agreement, Stream};

/// Streams open at a time; a port-forward connection has two for each of its 1024 pairs. Full: REFUSED_STREAM.
pub const MAX_STREAMS: usize = 2 * 1024 + 64;
/// Streams refused within [`REFUSAL_WINDOW`], after which the peer is given up (spec 5.11).
const MAX_REFUSALS: u32 = 1000;
const REFUSAL_WINDOW: Duration = Duration::from_secs(1);

/// ```text
///         go_away                lost, or the peer broke the protocol
///   Open ─────────▶ Leaving         any ─────────────────────────────▶ Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// We open and take no more streams.
    Leaving,
    /// There are no streams, and input is discarded.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    pub(super) phase: Phase,
    /// The peer said GOAWAY.
    pub(super) peer_leaving: bool,
    reader: FrameReader,
    headers_in: HeaderReader,
    pub(super) headers_out: HeaderWriter,
    pub(super) streams: HashMap<StreamId, Stream>,
    /// The highest id the peer has used; 0 for none.
    pub(super) highest_of_peer: u32,
    /// The id of our next stream.
    pub(super) next_id: u32,
    /// A stream whose FIN came with what was handed out last.
    finished: Option<StreamId>,
    pub(super) outbox: Outbox,
    pub(super) backlog: Backlog,
    /// Consumed bytes of all streams that the peer has not been told of.
    pub(super) credit: u32,
    /// The number of our next ping.
    pub(super) next_ping: u32,
    /// Our pings without an answer.
    pub(super) pings: HashSet<u32>,
    pub(super) refusals: Refusals,
}

impl Connection {
    /// A connection on which no byte was exchanged.
    #[must_use]
    pub fn new(side: Side) -> Self {
        let first = match side {
            Side::Client => 1,
            Side::Server => 2,
        };
        Self {
            side,
            phase: Phase::Open,
            peer_leaving: false,
            reader: FrameReader::default(),
            headers_in: HeaderReader::new(),
            headers_out: HeaderWriter::new(),
            streams: HashMap::new(),
            highest_of_peer: 0,
            next_id: first,
            finished: None,
            outbox: Outbox::default(),
            backlog: Backlog::default(),
            credit: 0,
            next_ping: first,
            pings: HashSet::new(),
            refusals: Refusals::default(),
        }
    }

    /// Takes the next event from the front of `input`; `None` needs more input, or [`pause`](Self::pause) says what.
    ///
    /// After an error, and after [`lost`](Self::lost), every byte is discarded, so that the caller can go on reading until
    /// the peer has closed; an error has queued its GOAWAY frame.
    ///
    /// # Errors
    /// The peer broke the protocol: transmit what is left, then close.
    pub fn next(&mut self, now: Instant, input: &mut BytesMut) -> Result<Option<Event>, ConnectionError> {
        let result = self.advance(now, input);
        if let Err(error) = &result {
            self.lost();
            self.outbox.say_goodbye(self.highest_of_peer, error.go_away_status());
        }
        result
    }

    fn advance(&mut self, now: Instant, input: &mut BytesMut) -> Result<Option<Event>, ConnectionError> {
        loop {
            if let Some(id) = self.finished.take().filter(|id| self.receives(*id)) {
                self.change(id, Stream::end_input);
                return Ok(Some(Event::Finished(id)));
            }
            if self.phase == Phase::Ended {
                input.clear();
                return Ok(None);
            }
            if self.pause().is_some() {
                return Ok(None);
            }
            let Some(frame) = self.reader.next(input)? else { return Ok(None) };
            if let Some(event) = self.handle(now, frame)? {
                return Ok(Some(event));
            }
        }
    }

    /// Why [`next`](Self::next) takes nothing, if it does not.
    #[must_use]
    pub fn pause(&self) -> Option<Pause> {
        if self.outbox.is_overfull() {
            return Some(Pause::Replies);
        }
        self.backlog.is_full().then(|| Pause::Backlog { longest: self.backlog.longest_full() })
    }

    fn handle(&mut self, now: Instant, frame: Frame) -> Result<Option<Event>, ConnectionError> {
        let event = match frame {
            Frame::Data { id, fin, bytes } => return Ok(self.handle_data(now, id, fin, bytes)),
            Frame::SynStream { id, fin, block } => {
                let headers = self.headers_in.read(&block)?;
                self.refusals.check(now)?;
                if self.phase == Phase::Leaving {
                    return Ok(None);
                }
                match self.admit(id).and_then(|()| Ok(headers?)) {
                    Ok(headers) => {
                        self.streams.insert(id, Stream::new(Agreement::Offered));
                        self.finished = fin.then_some(id);
                        Event::Opened { id, headers }
                    }
                    Err(error) => return Ok(Some(self.reject(id, error))),
                }
            }
            Frame::SynReply { id, fin, block } => {
                // Its headers say nothing, but the next block needs this one inflated.
                let _ = self.headers_in.read(&block)?;
                let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
                if stream.agreement != Agreement::Requested {
                    return Ok(None);
                }
                stream.agreement = Agreement::Agreed;
                self.finished = fin.then_some(id);
                Event::Accepted(id)
            }
            Frame::Headers { id, fin, block } => {
                let _ = self.headers_in.read(&block)?;
                self.finished = fin.then_some(id);
                return Ok(None);
            }
            Frame::RstStream { id, status } => {
                self.outbox.forget(id);
                if self.streams.remove(&id).is_none() {
                    return Ok(None);
                }
                self.backlog.forget(id);
                Event::Reset { id, status }
            }
            Frame::Ping(number) => return Ok(self.handle_ping(number)),
            Frame::GoAway { last_good, status } => {
                self.peer_leaving = true;
                self.forget_unseen(last_good);
                Event::GoAway { last_good, status }
            }
        };
        Ok(Some(event))
    }

    fn handle_data(&mut self, now: Instant, id: StreamId, fin: bool, bytes: Bytes) -> Option<Event> {
        // What comes for a finished or unknown stream is on its way since before its end.
        if !self.receives(id) {
            return None;
        }
        self.finished = fin.then_some(id);
        if bytes.is_empty() {
            return None;
        }
        self.backlog.add(now, id, bytes.len());
        Some(Event::Data { id, bytes })
    }

    /// Whether the peer may open this stream now.
    fn admit(&mut self, id: StreamId) -> Result<(), StreamError> {
        let of_client = self.side == Side::Server;
        if id.is_odd() != of_client || id.number() <= self.highest_of_peer {
            return Err(StreamError::Id(id));
        }
        self.highest_of_peer = id.number();
        if self.peer_leaving {
            return Err(StreamError::AfterGoAway);
        }
        if self.streams.len() >= MAX_STREAMS { Err(StreamError::TooMany) } else { Ok(()) }
    }

    /// Refuses a stream. For its peer, RST_STREAM also ends an open stream of the same id, so it ends here as well.
    fn reject(&mut self, id: StreamId, error: StreamError) -> Event {
        let status = error.status();
        let was_open = self.streams.remove(&id).is_some();
        self.backlog.forget(id);
        self.outbox.forget(id);
        self.outbox.push_end(id, End::Reset(status));
        self.refusals.count += 1;
        if was_open { Event::Reset { id, status } } else { Event::Rejected { id, error } }
    }

    fn handle_ping(&mut self, number: u32) -> Option<Event> {
        if self.pings.remove(&number) {
            return Some(Event::Pong(number));
        }
        // A ping of our parity that we never sent is answered all the same (spec 5.6); a late answer is not, or two of our
        // kind would send it to and fro for ever.
        let was_ours = number % 2 == self.next_ping % 2 && number < self.next_ping;
        if number != 0 && !was_ours {
            self.outbox.push_pong(number);
        }
        None
    }

    fn forget_unseen(&mut self, last_good: u32) {
        let parity = self.next_id % 2;
        let unseen = |id: &StreamId| id.number() % 2 == parity && id.number() > last_good;
        let gone: Vec<_> = self.streams.keys().copied().filter(unseen).collect();
        for id in gone {
            self.streams.remove(&id);
            self.backlog.forget(id);
            self.outbox.forget(id);
        }
    }

    fn receives(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(Stream::receives)
    }

    /// Lets a stream end a direction.
    pub(super) fn change(&mut self, id: StreamId, end: impl FnOnce(&mut Stream) -> bool) {
        if self.streams.get_mut(&id).is_some_and(end) {
            self.streams.remove(&id);
        }
    }
}

/// Streams refused lately: by us, or by the driver.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    since: Option<Instant>,
    pub(super) count: u32,
}

impl Refusals {
    fn check(&mut self, now: Instant) -> Result<(), ConnectionError> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= REFUSAL_WINDOW {
            *self = Self { since: Some(now), count: 0 };
        }
        if self.count > MAX_REFUSALS { Err(ConnectionError::RefusalFlood) } else { Ok(()) }
    }
}
