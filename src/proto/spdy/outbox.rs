//! What waits to be written to one connection.
//!
//! ```text
//!   replies (SYN_STREAM, SYN_REPLY, RST_STREAM, WINDOW_UPDATE) ─┐ first, in order: they share one zlib stream
//!   pongs ──────────────────────────────────────────────────────┤ then
//!   stream 1: chunks ─▶ FIN or RST ┐                            ├─▶ frames
//!   stream 3: chunks ─▶ FIN or RST ┴─ a frame each, by turns ───┤ then
//!   GOAWAY ─────────────────────────────────────────────────────┘ last
//! ```
//!
//! So an answer never waits behind output that the peer does not read, and an end never overtakes the bytes before it.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::error::{GoAwayStatus, RstStatus};
use super::frame::{StreamId, Transmit};

/// Payload waiting, in bytes, over all streams of a connection. Full: [`send`](super::Connection::send) takes nothing more,
/// its caller waits. The chunk that reaches the bound is taken whole, as are the last words of a stream.
pub const OUT_QUEUE: usize = 128 << 10;
/// Last words pass the bound, up to this sum. Full: nothing more is read from the peer, so no stream comes to its end.
const LAST_WORDS: usize = 128 << 10;
/// Replies waiting. Full: nothing more is read, so that no new ones are caused.
const MAX_REPLIES: usize = 256;
/// Distinct pings not answered yet. Full: nothing more is read (spec 5.11).
const MAX_PONGS: usize = 64;
/// Streams with something waiting, those closed meanwhile included. Full: nothing more is read.
const MAX_QUEUES: usize = 4096;

/// The longest payload of a DATA frame: the turn of a stream.
const MAX_FRAME: usize = 32 << 10;
/// Smaller chunks are copied together: a chunk of one byte would keep alive the whole buffer it was read into.
const SMALL: usize = 1 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    replies: VecDeque<Transmit>,
    pongs: VecDeque<u32>,
    /// One for each stream that has something waiting, never empty.
    queues: HashMap<StreamId, Queue>,
    /// The keys of `queues`, the next first.
    turns: VecDeque<StreamId>,
    /// Payload in all queues.
    bytes: usize,
    goodbye: Option<Transmit>,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small chunks behind `chunks`, copied together.
    small: BytesMut,
    end: Option<End>,
}

/// What follows the last byte of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Reset(RstStatus),
}

impl Queue {
    fn push(&mut self, chunk: Bytes) {
        if chunk.len() < SMALL {
            self.small.extend_from_slice(&chunk);
            if self.small.len() >= MAX_FRAME {
                self.chunks.push_back(self.small.split().freeze());
            }
            return;
        }
        if !self.small.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.small).freeze());
        }
        self.chunks.push_back(chunk);
    }

    /// At most a frame's payload.
    fn pop(&mut self) -> Option<Bytes> {
        let mut chunk = match self.chunks.pop_front() {
            Some(chunk) => chunk,
            None if self.small.is_empty() => return None,
            None => std::mem::take(&mut self.small).freeze(),
        };
        if chunk.len() > MAX_FRAME {
            self.chunks.push_front(chunk.split_off(MAX_FRAME));
        }
        Some(chunk)
    }

    fn has_payload(&self) -> bool {
        !self.chunks.is_empty() || !self.small.is_empty()
    }

    fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.small.len()
    }
}

impl Outbox {
    pub(super) fn has_room(&self) -> bool {
        self.bytes < OUT_QUEUE
    }

    /// Whether so much waits that the peer must read before it may cause more.
    pub(super) fn is_overfull(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
            || self.pongs.len() >= MAX_PONGS
            || self.queues.len() >= MAX_QUEUES
            || self.bytes >= OUT_QUEUE + LAST_WORDS
    }

    /// Whether replies have a good part of their room left.
    pub(super) fn takes_hints(&self) -> bool {
        self.replies.len() < MAX_REPLIES / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.pongs.is_empty() && self.queues.is_empty() && self.goodbye.is_none()
    }

    pub(super) fn push_reply(&mut self, frame: Transmit) {
        self.replies.push_back(frame);
    }

    /// Answers a ping, once however often it waits already.
    pub(super) fn push_pong(&mut self, number: u32) {
        if !self.pongs.contains(&number) {
            self.pongs.push_back(number);
        }
    }

    /// Queues payload of a stream that has not ended; an empty chunk is nothing.
    pub(super) fn push(&mut self, id: StreamId, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.queue(id).push(chunk);
        }
    }

    /// Queues the end of a stream behind its payload.
    pub(super) fn push_end(&mut self, id: StreamId, end: End) {
        match (end, self.queues.contains_key(&id)) {
            // Nothing to wait for.
            (End::Reset(status), false) => self.push_reply(Transmit::rst_stream(id, status)),
            _ => self.queue(id).end = Some(end),
        }
    }

    fn queue(&mut self, id: StreamId) -> &mut Queue {
        self.queues.entry(id).or_insert_with(|| {
            self.turns.push_back(id);
            Queue::default()
        })
    }

    /// Drops what waits of a stream: the peer has reset it.
    pub(super) fn forget(&mut self, id: StreamId) {
        if let Some(queue) = self.queues.remove(&id) {
            self.bytes -= queue.len();
            self.turns.retain(|turn| *turn != id);
        }
    }

    /// Ends the connection behind everything else.
    pub(super) fn say_goodbye(&mut self, last_good: u32, status: GoAwayStatus) {
        self.goodbye = Some(Transmit::go_away(last_good, status));
    }

    pub(super) fn poll(&mut self) -> Option<Transmit> {
        let reply = self.replies.pop_front().or_else(|| self.pongs.pop_front().map(Transmit::ping));
        reply.or_else(|| self.poll_streams()).or_else(|| self.goodbye.take())
    }

    fn poll_streams(&mut self) -> Option<Transmit> {
        let id = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&id)?;
        let payload = queue.pop();
        self.bytes -= payload.as_ref().map_or(0, Bytes::len);
        let frame = match (payload, queue.end) {
            (None, Some(End::Reset(status))) => Transmit::rst_stream(id, status),
            (payload, end) => {
                let fin = end == Some(End::Fin) && !queue.has_payload();
                Transmit::data(id, fin, payload.unwrap_or_default())
            }
        };
        let reset_follows = matches!(queue.end, Some(End::Reset(_))) && !frame_is_control(&frame);
        if queue.has_payload() || reset_follows {
            self.turns.push_back(id);
        } else {
            self.queues.remove(&id);
        }
        Some(frame)
    }
}

fn frame_is_control(frame: &Transmit) -> bool {
    frame.head[0] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> StreamId {
        StreamId::new(number).unwrap()
    }

    fn drain(outbox: &mut Outbox) -> Vec<Transmit> {
        std::iter::from_fn(|| outbox.poll()).collect()
    }

    #[test]
    fn answers_go_first_and_goodbye_last() {
        let mut outbox = Outbox::default();
        outbox.say_goodbye(3, GoAwayStatus::OK);
        outbox.push(id(1), Bytes::from_static(b"out"));
        outbox.push_pong(7);
        outbox.push_pong(7);
        outbox.push_end(id(3), End::Reset(RstStatus::CANCEL));
        let expected = [
            Transmit::rst_stream(id(3), RstStatus::CANCEL),
            Transmit::ping(7),
            Transmit::data(id(1), false, Bytes::from_static(b"out")),
            Transmit::go_away(3, GoAwayStatus::OK),
        ];
        assert_eq!(drain(&mut outbox), expected);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn streams_take_turns_and_an_end_overtakes_nothing() {
        let mut outbox = Outbox::default();
        outbox.push(id(1), vec![1; MAX_FRAME + SMALL].into());
        outbox.push_end(id(1), End::Reset(RstStatus::CANCEL));
        outbox.push(id(3), vec![3; SMALL].into());
        outbox.push_end(id(3), End::Fin);
        outbox.push_end(id(5), End::Fin);
        let expected = [
            Transmit::data(id(1), false, vec![1; MAX_FRAME].into()),
            Transmit::data(id(3), true, vec![3; SMALL].into()),
            Transmit::data(id(5), true, Bytes::new()),
            Transmit::data(id(1), false, vec![1; SMALL].into()),
            Transmit::rst_stream(id(1), RstStatus::CANCEL),
        ];
        assert_eq!(drain(&mut outbox), expected);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn small_chunks_are_copied_together_in_order() {
        let mut outbox = Outbox::default();
        for byte in 0..3 {
            outbox.push(id(1), vec![byte; 1].into());
        }
        outbox.push(id(1), vec![3; SMALL].into());
        outbox.push(id(1), vec![4; 1].into());
        let payloads: Vec<_> = drain(&mut outbox).into_iter().map(|frame| frame.body.to_vec()).collect();
        assert_eq!(payloads, [vec![0, 1, 2], vec![3; SMALL], vec![4]]);
    }

    #[test]
    fn what_the_peer_reset_is_dropped() {
        let mut outbox = Outbox::default();
        outbox.push(id(1), vec![0; OUT_QUEUE].into());
        assert!(!outbox.has_room());
        outbox.forget(id(1));
        outbox.forget(id(3));
        assert!(outbox.has_room() && outbox.is_empty() && outbox.poll().is_none());
    }

    #[test]
    fn each_bound_stops_reading() {
        let fill = |act: fn(&mut Outbox, u32)| {
            let mut outbox = Outbox::default();
            (1..10_000).take_while(|number| (act(&mut outbox, *number), !outbox.is_overfull()).1).count() + 1
        };
        assert_eq!(fill(|outbox, number| outbox.push_pong(number)), MAX_PONGS);
        assert_eq!(fill(|outbox, number| outbox.push_end(id(number), End::Reset(RstStatus::CANCEL))), MAX_REPLIES);
        assert_eq!(fill(|outbox, number| outbox.push_end(id(number), End::Fin)), MAX_QUEUES);
        assert_eq!(fill(|outbox, number| outbox.push(id(number), vec![0; 2 << 10].into())), 128);
    }
}
