//! SPDY: one end and any bytes, two ends and any operations, any header blocks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use holdfast::proto::spdy::{
    CONNECTION_BACKLOG, Connection, Event, GoAwayStatus, HeaderReader, HeaderWriter, MAX_PIECE, MAX_STREAMS, OUT_QUEUE,
    RstStatus, STREAM_BACKLOG, SendError, Side, StreamId,
};

/// Any bytes as what a peer sends. The first one is the side, and the size of the cuts: they change nothing but where
/// payload is cut into pieces.
pub(crate) fn bytes(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let side = if choice & 0x80 == 0 { Side::Server } else { Side::Client };
    let now = Instant::now();
    let whole = read(side, now, [data].into_iter());
    assert_eq!(read(side, now, data.chunks(usize::from(choice & 0x7f).max(1))), whole);
}

fn read<'a>(side: Side, now: Instant, parts: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut connection, mut input, mut seen) = (Connection::new(side), BytesMut::new(), Vec::new());
    let mut payload: Option<(StreamId, Vec<u8>)> = None;
    if side == Side::Client {
        for _ in 0..4 {
            connection.open(&[("streamtype", "data")], false).expect("nothing was said yet");
        }
    }
    for part in parts {
        input.extend_from_slice(part);
        loop {
            let event = match connection.next(now, &mut input) {
                Ok(Some(event)) => event,
                Ok(None) if connection.pause().is_some() => {
                    assert!(connection.poll_transmit().is_some(), "everything is consumed, so answers must wait");
                    continue;
                }
                Ok(None) => break,
                Err(error) => {
                    seen.push(format!("{payload:?}"));
                    seen.push(error.to_string());
                    return seen;
                }
            };
            match &event {
                Event::Opened { id, .. } => connection.accept(*id),
                Event::Data { id, bytes } => {
                    assert!((1..=MAX_PIECE).contains(&bytes.len()));
                    connection.consumed(*id, bytes.len());
                    match &mut payload {
                        Some((before, joined)) if before == id => joined.extend_from_slice(bytes),
                        other => seen.extend(other.replace((*id, bytes.to_vec())).map(|last| format!("{last:?}"))),
                    }
                    continue;
                }
                _ => {}
            }
            seen.extend(payload.take().map(|last| format!("{last:?}")));
            seen.push(format!("{event:?}"));
        }
        // What waits is a control frame that is not whole.
        assert!(input.len() <= (64 << 10) + 18);
        assert!(connection.open_streams().count() <= MAX_STREAMS);
    }
    seen.extend(payload.map(|last| format!("{last:?}")));
    seen
}

/// Any operations on two ends: both agree in the end, every byte arrives once and in order, and nothing grows.
pub(crate) fn operations(data: &[u8]) {
    let mut now = Instant::now();
    let mut ends = [End::new(Side::Client), End::new(Side::Server)];
    let mut count = 0_u8;
    for operation in data.chunks_exact(2) {
        let (which, argument) = (usize::from(operation[0] >> 7), operation[1]);
        let [client, server] = &mut ends;
        let (end, other) = if which == 0 { (client, server) } else { (server, client) };
        match operation[0] & 0x0f {
            0 => end.open(argument & 1 != 0),
            1..=4 => {
                count = count.wrapping_add(1);
                end.send(argument, &vec![count; 1 + usize::from(argument) * 97], false);
            }
            5 => end.send(argument, b"last words", true),
            6 => end.reset(argument),
            7 => {
                let _ = end.connection.ping();
            }
            8..=11 => {
                end.write_to(other, usize::from(argument) + 1);
            }
            12 | 13 => end.read(now),
            14 if argument < 8 => end.connection.go_away(GoAwayStatus::OK),
            14 => end.consume(),
            _ => now += Duration::from_millis(u64::from(argument)),
        }
        end.check();
    }
    for _ in 0..100_000 {
        let [client, server] = &mut ends;
        let moved = client.write_to(server, usize::MAX) + server.write_to(client, usize::MAX);
        for end in [client, server] {
            end.read(now);
            end.consume();
            end.check();
        }
        if moved == 0 && ends.iter().all(|end| end.input.is_empty() && end.connection.is_flushed()) {
            let [client, server] = &ends;
            client.agrees_with(server);
            server.agrees_with(client);
            return;
        }
    }
    panic!("the two ends never come to rest");
}

struct End {
    connection: Connection,
    input: BytesMut,
    /// Per stream: what was sent, what came, and how much of that is not consumed.
    sent: HashMap<StreamId, Vec<u8>>,
    received: HashMap<StreamId, Vec<u8>>,
    held: HashMap<StreamId, usize>,
    /// Streams on which the peer's FIN, or a reset from either side, was seen.
    finished: Vec<StreamId>,
    reset: Vec<StreamId>,
    known: Vec<StreamId>,
    /// A part of a frame that was not written yet.
    partly: BytesMut,
}

impl End {
    fn new(side: Side) -> Self {
        Self {
            connection: Connection::new(side),
            input: BytesMut::new(),
            sent: HashMap::new(),
            received: HashMap::new(),
            held: HashMap::new(),
            finished: Vec::new(),
            reset: Vec::new(),
            known: Vec::new(),
            partly: BytesMut::new(),
        }
    }

    fn open(&mut self, fin: bool) {
        if let Ok(id) = self.connection.open(&[("streamtype", "data"), ("requestid", "7")], fin) {
            self.known.push(id);
        }
    }

    fn pick(&self, argument: u8) -> Option<StreamId> {
        self.known.get(usize::from(argument) % self.known.len().max(1)).copied()
    }

    fn send(&mut self, argument: u8, bytes: &[u8], last: bool) {
        let Some(id) = self.pick(argument) else { return };
        let payload = Bytes::copy_from_slice(bytes);
        let had_room = self.connection.has_room();
        let sent = if last { self.connection.finish(id, payload) } else { self.connection.send(id, payload) };
        match sent {
            Ok(()) => self.sent.entry(id).or_default().extend_from_slice(bytes),
            Err(SendError::Blocked) => assert!(!had_room && !last),
            Err(SendError::Closed) => {}
        }
    }

    fn reset(&mut self, argument: u8) {
        if let Some(id) = self.pick(argument) {
            self.connection.reset(id, RstStatus::CANCEL);
            self.reset.push(id);
            self.held.remove(&id);
        }
    }

    /// Moves at most so many bytes to the other end.
    fn write_to(&mut self, other: &mut Self, most: usize) -> usize {
        while self.partly.len() < most.min(OUT_QUEUE) {
            let Some(frame) = self.connection.poll_transmit() else { break };
            self.partly.extend_from_slice(&frame.head);
            self.partly.extend_from_slice(&frame.body);
        }
        let moved = self.partly.split_to(self.partly.len().min(most));
        other.input.extend_from_slice(&moved);
        moved.len()
    }

    fn read(&mut self, now: Instant) {
        while let Some(event) = self.connection.next(now, &mut self.input).expect("the other end keeps the protocol") {
            match event {
                Event::Opened { id, headers } => {
                    assert_eq!(headers.value("streamtype"), Some(&b"data"[..]));
                    self.known.push(id);
                    self.connection.accept(id);
                }
                Event::Data { id, bytes } => {
                    assert!(!self.finished.contains(&id) && !self.reset.contains(&id));
                    *self.held.entry(id).or_default() += bytes.len();
                    self.received.entry(id).or_default().extend_from_slice(&bytes);
                }
                Event::Finished(id) => {
                    assert!(!self.finished.contains(&id) && !self.reset.contains(&id));
                    self.finished.push(id);
                }
                Event::Reset { id, .. } => {
                    assert!(!self.reset.contains(&id));
                    self.reset.push(id);
                    self.held.remove(&id);
                }
                Event::GoAway { .. } | Event::Accepted(_) | Event::Rejected { .. } | Event::Pong(_) => {}
            }
        }
    }

    fn consume(&mut self) {
        for (id, len) in self.held.drain() {
            self.connection.consumed(id, len);
        }
    }

    fn check(&self) {
        assert!(self.connection.open_streams().count() <= MAX_STREAMS);
        assert!(self.held.values().sum::<usize>() < CONNECTION_BACKLOG + MAX_PIECE);
        assert!(self.held.values().all(|held| *held < STREAM_BACKLOG + MAX_PIECE));
    }

    /// What came here is what the other end sent: all of it, unless the stream was cut off.
    fn agrees_with(&self, other: &Self) {
        for (id, received) in &self.received {
            assert!(other.sent.get(id).is_some_and(|sent| sent.starts_with(received)), "bytes of stream {id}");
        }
        for id in &self.finished {
            let (sent, received) = (other.sent.get(id), self.received.get(id));
            assert_eq!(received.map_or(0, Vec::len), sent.map_or(0, Vec::len), "stream {id} ended early");
        }
    }
}

/// Any bytes as header blocks: an error ends the stream of blocks, what was read obeys its limits, and what is written
/// can be read.
pub(crate) fn headers(data: &[u8]) {
    let mut reader = HeaderReader::new();
    for block in data.chunks(64) {
        match reader.read(block) {
            Ok(Ok(headers)) => assert_eq!(headers.value("Streamtype"), None),
            Ok(Err(_)) => {}
            Err(_) => break,
        }
    }
    let text: String = data.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
    for (name, value) in [("streamtype", text.as_str()), ("port", "1"), ("requestid", &text)] {
        let value = &value[..value.len().min(8 << 10)];
        let headers = reader.read(&writer.write(&[(name, value)])).expect("it inflates").expect("it is within limits");
        assert_eq!(headers.value(name), Some(value.as_bytes()));
    }
}
