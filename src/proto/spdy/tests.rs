//! Stories of two ends in virtual time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::*;
use crate::proto::epoch;

const LATENCY: Duration = Duration::from_millis(10);

fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

/// What one end of a story sees; neighbouring pieces of payload are joined.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Opened(u32, String),
    Data(u32, Vec<u8>),
    Other(Event),
    Error(ConnectionError),
}

fn see(seen: &mut Vec<Seen>, event: Event) {
    match (event, seen.last_mut()) {
        (Event::Data { id, bytes }, Some(Seen::Data(before, joined))) if id.number() == *before => joined.extend(bytes),
        (Event::Data { id, bytes }, _) => seen.push(Seen::Data(id.number(), bytes.to_vec())),
        (Event::Opened { id, headers }, _) => {
            let kind = headers.value("streamtype").unwrap_or_default();
            seen.push(Seen::Opened(id.number(), String::from_utf8_lossy(kind).into_owned()));
        }
        (event, _) => seen.push(Seen::Other(event)),
    }
}

/// One end, with a driver that accepts every stream and consumes at once.
struct End {
    connection: Connection,
    input: BytesMut,
    /// What is on its way here, and when it arrives.
    wire: VecDeque<(Instant, Vec<u8>)>,
    seen: Vec<Seen>,
    consumes: bool,
}

impl End {
    fn new(side: Side) -> Self {
        let (connection, input) = (Connection::new(side), BytesMut::new());
        Self { connection, input, wire: VecDeque::new(), seen: Vec::new(), consumes: true }
    }

    fn read(&mut self, now: Instant) {
        while self.wire.front().is_some_and(|(due, _)| *due <= now) {
            self.input.extend_from_slice(&self.wire.pop_front().unwrap().1);
        }
        loop {
            match self.connection.next(now, &mut self.input) {
                Ok(None) => return,
                Ok(Some(event)) => {
                    match &event {
                        Event::Opened { id, .. } => self.connection.accept(*id),
                        Event::Data { id, bytes } if self.consumes => self.connection.consumed(*id, bytes.len()),
                        _ => {}
                    }
                    see(&mut self.seen, event);
                }
                Err(error) => self.seen.push(Seen::Error(error)),
            }
        }
    }

    fn written(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.connection.poll_transmit())
            .flat_map(|frame| [&frame.head[..], &frame.body].concat())
            .collect()
    }

    fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    fn send(&mut self, number: u32, bytes: &'static [u8]) {
        self.connection.send(id(number), Bytes::from_static(bytes)).unwrap();
    }
}

/// Lets one end act; what it writes is on its way then.
fn pass(now: Instant, from: &mut End, to: &mut End) {
    from.read(now);
    let written = from.written();
    if !written.is_empty() {
        to.wire.push_back((now + LATENCY, written));
    }
}

/// A client and a server, some way apart.
struct Pair {
    now: Instant,
    client: End,
    server: End,
}

impl Pair {
    fn new() -> Self {
        Self { now: epoch(), client: End::new(Side::Client), server: End::new(Side::Server) }
    }

    /// Lets time pass until nothing is on its way.
    fn settle(&mut self) {
        loop {
            pass(self.now, &mut self.client, &mut self.server);
            pass(self.now, &mut self.server, &mut self.client);
            if self.client.wire.is_empty() && self.server.wire.is_empty() {
                return;
            }
            self.now += LATENCY;
        }
    }

    /// A pair with one stream, that both have agreed on.
    fn with_stream(kind: &str) -> Self {
        let mut pair = Self::new();
        assert_eq!(pair.client.connection.open(&[("streamtype", kind)], false), Ok(id(1)));
        pair.settle();
        assert_eq!(pair.server.take_seen(), [Seen::Opened(1, kind.into())]);
        assert_eq!(pair.client.take_seen(), [Seen::Other(Event::Accepted(id(1)))]);
        pair
    }

    fn open_streams(&self) -> (usize, usize) {
        (self.client.connection.open_streams().count(), self.server.connection.open_streams().count())
    }
}

#[test]
fn streams_are_opened_used_and_half_closed() {
    let mut pair = Pair::with_stream("stdin");
    pair.client.send(1, b"in");
    pair.client.connection.finish(id(1), Bytes::from_static(b"put")).unwrap();
    assert_eq!(pair.client.connection.send(id(1), Bytes::new()), Err(SendError::Closed));
    pair.settle();
    assert_eq!(pair.server.take_seen(), [Seen::Data(1, b"input".into()), Seen::Other(Event::Finished(id(1)))]);
    // The other direction goes on.
    pair.server.send(1, b"out");
    pair.settle();
    assert_eq!((pair.client.take_seen(), pair.open_streams()), (vec![Seen::Data(1, b"out".into())], (1, 1)));
    pair.server.connection.finish(id(1), Bytes::new()).unwrap();
    pair.settle();
    assert_eq!((pair.client.take_seen(), pair.open_streams()), (vec![Seen::Other(Event::Finished(id(1)))], (0, 0)));
}

// Spec 5.7, and item 65.
#[test]
fn a_stream_opened_with_fin_is_half_closed_from_the_start() {
    let mut pair = Pair::new();
    pair.client.connection.open(&[("streamtype", "error")], true).unwrap();
    pair.settle();
    assert_eq!(pair.server.take_seen(), [Seen::Opened(1, "error".into()), Seen::Other(Event::Finished(id(1)))]);
    pair.server.connection.finish(id(1), Bytes::from_static(b"status")).unwrap();
    pair.settle();
    let finished = Seen::Other(Event::Finished(id(1)));
    assert_eq!(pair.client.take_seen()[1..], [Seen::Data(1, b"status".into()), finished]);
    assert_eq!(pair.open_streams(), (0, 0));
}

#[test]
fn a_reset_comes_behind_the_data_before_it_and_ends_both_ways() {
    let mut pair = Pair::with_stream("data");
    pair.server.send(1, b"last");
    pair.server.connection.reset(id(1), RstStatus::CANCEL);
    // On its way already when the reset comes.
    pair.client.send(1, b"late");
    pair.settle();
    let reset = Event::Reset { id: id(1), status: RstStatus::CANCEL };
    assert_eq!(pair.client.take_seen(), [Seen::Data(1, b"last".into()), Seen::Other(reset)]);
    assert_eq!((pair.server.take_seen(), pair.open_streams()), (vec![], (0, 0)));
    assert_eq!(pair.client.connection.finish(id(1), Bytes::new()), Err(SendError::Closed));
}

#[test]
fn a_reset_by_the_peer_drops_what_is_queued_for_it() {
    let mut pair = Pair::with_stream("stdout");
    pair.server.connection.send(id(1), vec![0; OUT_QUEUE].into()).unwrap();
    assert!(!pair.server.connection.has_room());
    assert_eq!(pair.server.connection.send(id(1), Bytes::from_static(b"x")), Err(SendError::Blocked));
    pair.client.connection.reset(id(1), RstStatus::CANCEL);
    let written = pair.client.written();
    pair.server.input.extend_from_slice(&written);
    pair.server.read(pair.now);
    assert!(pair.server.connection.has_room() && pair.server.connection.is_flushed());
}

#[test]
fn last_words_pass_a_full_queue() {
    let mut pair = Pair::with_stream("error");
    pair.client.connection.open(&[("streamtype", "stdout")], false).unwrap();
    pair.settle();
    pair.server.connection.send(id(3), vec![0; OUT_QUEUE].into()).unwrap();
    assert_eq!(pair.server.connection.finish(id(1), Bytes::from_static(b"status")), Ok(()));
    // By turns: the status is not behind all of the output.
    let (written, status) = (pair.server.written(), b"status");
    let at = written.windows(status.len()).position(|window| window == status).unwrap();
    assert!(at < OUT_QUEUE / 2, "{at}");
}

// Spec item 77.
#[test]
fn after_goaway_streams_finish_and_none_is_opened() {
    let mut pair = Pair::with_stream("data");
    pair.client.send(1, b"x");
    pair.client.connection.go_away(GoAwayStatus::OK);
    assert_eq!(pair.client.connection.open(&[], false), Err(SendError::Closed));
    pair.settle();
    let goaway = Event::GoAway { last_good: 0, status: GoAwayStatus::OK };
    assert_eq!(pair.server.take_seen(), [Seen::Data(1, b"x".into()), Seen::Other(goaway)]);
    pair.server.connection.finish(id(1), Bytes::from_static(b"rest")).unwrap();
    pair.server.connection.go_away(GoAwayStatus::OK);
    pair.settle();
    let goaway = Event::GoAway { last_good: 1, status: GoAwayStatus::OK };
    let finished = Seen::Other(Event::Finished(id(1)));
    assert_eq!(pair.client.take_seen(), [Seen::Data(1, b"rest".into()), finished, Seen::Other(goaway)]);
}

#[test]
fn a_stream_that_goaway_never_saw_is_gone() {
    let mut pair = Pair::with_stream("data");
    pair.server.connection.go_away(GoAwayStatus::OK);
    pair.client.connection.open(&[("streamtype", "data")], false).unwrap();
    pair.settle();
    assert_eq!((pair.server.take_seen(), pair.open_streams()), (vec![], (1, 1)));
    assert_eq!(pair.client.connection.send(id(3), Bytes::new()), Err(SendError::Closed));
}

// Spec item 69.
#[test]
fn pings_are_answered_and_ours_are_told() {
    let mut pair = Pair::with_stream("data");
    for number in [1, 3] {
        assert_eq!(pair.client.connection.ping(), Ok(number));
    }
    assert_eq!(pair.server.connection.ping(), Ok(2));
    pair.settle();
    assert_eq!(pair.client.take_seen(), [1, 3].map(|number| Seen::Other(Event::Pong(number))));
    assert_eq!(pair.server.take_seen(), [Seen::Other(Event::Pong(2))]);

    // Of our own parity, but never sent: answered. A late answer to ours: not.
    let pings = [Transmit::ping(6), Transmit::ping(2), Transmit::ping(0), Transmit::ping(7)];
    let bytes = pings.iter().flat_map(|frame| [&frame.head[..], &frame.body].concat()).collect::<Vec<_>>();
    pair.server.input.extend_from_slice(&bytes);
    pair.server.read(pair.now);
    let answers = [Transmit::ping(6), Transmit::ping(7)];
    assert_eq!(pair.server.written(), answers.iter().flat_map(|f| [&f.head[..], &f.body].concat()).collect::<Vec<_>>());
}

#[test]
fn pings_that_nobody_reads_the_answers_of_stop_reading() {
    let mut end = End::new(Side::Server);
    for number in (1..=200_001).step_by(2) {
        let frame = Transmit::ping(number);
        end.input.extend_from_slice(&[&frame.head[..], &frame.body].concat());
    }
    let now = epoch();
    end.read(now);
    assert_eq!(end.connection.pause(), Some(Pause::Replies));
    let waiting = end.input.len();
    assert!(end.connection.poll_transmit().is_some());
    end.read(now);
    assert_eq!((end.connection.pause(), waiting - end.input.len()), (Some(Pause::Replies), 12));
}

#[test]
fn a_lost_peer_ends_everything() {
    let mut pair = Pair::with_stream("stdout");
    pair.server.send(1, b"never read");
    pair.server.connection.lost();
    assert_eq!(pair.open_streams(), (1, 0));
    assert!(pair.server.connection.is_flushed());
    assert_eq!(pair.server.connection.send(id(1), Bytes::new()), Err(SendError::Closed));
    assert_eq!(pair.server.connection.ping(), Err(SendError::Closed));
    pair.client.send(1, b"x");
    pair.settle();
    assert!(pair.server.input.is_empty() && pair.server.take_seen().is_empty());
}

// Spec items 86, 87 and 90: what is not consumed stops the reading, nothing else.
#[test]
fn a_full_account_pauses_and_consuming_goes_on() {
    let mut pair = Pair::with_stream("stdin");
    pair.server.consumes = false;
    let sent = STREAM_BACKLOG + 3 * MAX_PIECE;
    while pair.client.connection.send(id(1), vec![7; MAX_PIECE].into()).is_ok() {}
    for _ in 0..(sent - OUT_QUEUE) / MAX_PIECE {
        pair.settle();
        pair.client.connection.send(id(1), vec![7; MAX_PIECE].into()).unwrap();
    }
    pair.client.connection.ping().unwrap();
    pair.settle();
    let Some(Pause::Backlog { longest: Some((full, since)) }) = pair.server.connection.pause() else { panic!() };
    assert!(full == id(1) && since <= pair.now);
    assert!(pair.server.connection.send(id(1), Bytes::from_static(b"output flows")).is_ok());
    pair.settle();
    assert_eq!(pair.client.take_seen(), [Seen::Data(1, b"output flows".into())]);

    pair.server.consumes = true;
    pair.server.connection.consumed(id(1), STREAM_BACKLOG);
    pair.settle();
    let [Seen::Data(1, received)] = &pair.server.take_seen()[..] else { panic!() };
    assert_eq!((received.len(), pair.server.connection.pause()), (sent, None));
    assert_eq!(pair.client.take_seen(), [Seen::Other(Event::Pong(1))]);
}

// Spec item 64.
#[test]
fn ids_must_grow_and_have_the_parity_of_the_peer() {
    let mut pair = Pair::with_stream("data");
    let mut raw = HeaderWriter::new();
    let _ = raw.write(&[]);
    for number in [1, 4, 9, 7] {
        let frame = Transmit::syn_stream(id(number), false, &raw.write(&[("streamtype", "x")]));
        pair.server.input.extend_from_slice(&[&frame.head[..], &frame.body].concat());
    }
    pair.server.read(pair.now);
    let rejected = |number| Seen::Other(Event::Rejected { id: id(number), error: StreamError::Id(id(number)) });
    let reset = Seen::Other(Event::Reset { id: id(1), status: RstStatus::PROTOCOL_ERROR });
    assert_eq!(pair.server.take_seen(), [reset, rejected(4), Seen::Opened(9, "x".into()), rejected(7)]);
}

// Spec items 61 and 83: the next stream is read right.
#[test]
fn a_stream_with_bad_headers_is_refused_alone() {
    let mut pair = Pair::new();
    pair.client.connection.open(&[("Streamtype", "error")], false).unwrap();
    pair.client.connection.open(&[("streamtype", "error")], false).unwrap();
    pair.settle();
    let rejected = Event::Rejected { id: id(1), error: HeaderError::Name.into() };
    assert_eq!(pair.server.take_seen(), [Seen::Other(rejected), Seen::Opened(3, "error".into())]);
    let reset = Event::Reset { id: id(1), status: RstStatus::PROTOCOL_ERROR };
    assert_eq!(pair.client.take_seen(), [Seen::Other(reset), Seen::Other(Event::Accepted(id(3)))]);
}

// Spec item 75.
#[test]
fn streams_without_end_are_refused_then_given_up() {
    let mut pair = Pair::new();
    let mut raw = HeaderWriter::new();
    let mut refused = 0;
    for number in (1..200_001).step_by(2) {
        let frame = Transmit::syn_stream(id(number), false, &raw.write(&[]));
        pair.server.wire.push_back((pair.now, [&frame.head[..], &frame.body].concat()));
        pair.server.read(pair.now);
        let _ = pair.server.written();
        match pair.server.seen.pop() {
            Some(Seen::Error(error)) => {
                assert_eq!((error, pair.open_streams()), (ConnectionError::RefusalFlood, (0, 0)));
                assert_eq!(refused, 1001);
                return;
            }
            Some(Seen::Other(Event::Rejected { error: StreamError::TooMany, .. })) => refused += 1,
            _ => assert!(pair.server.connection.open_streams().count() <= MAX_STREAMS),
        }
    }
    panic!("100 000 streams were taken");
}

#[test]
fn after_an_error_the_rest_is_discarded_and_goaway_is_sent() {
    let mut pair = Pair::with_stream("data");
    pair.server.send(1, b"dropped");
    pair.server.input.extend_from_slice(b"\0\0\0\0\0\0\0\x01x");
    pair.settle();
    assert_eq!(pair.server.take_seen(), [Seen::Error(ConnectionError::StreamZero)]);
    let goaway = Event::GoAway { last_good: 1, status: GoAwayStatus::PROTOCOL_ERROR };
    assert_eq!(pair.client.take_seen(), [Seen::Other(goaway)]);
    pair.server.input.extend_from_slice(b"\0\0\0\0\0\0\0\x01x");
    pair.settle();
    assert!(pair.server.input.is_empty() && pair.server.seen.is_empty());
}

mod golden;
