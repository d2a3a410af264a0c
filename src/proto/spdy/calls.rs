//! The calls of a driver: everything that leads to frames going out.

use bytes::Bytes;

use super::connection::{Connection, Phase};
use super::error::{GoAwayStatus, RstStatus, SendError};
use super::frame::{StreamId, Transmit};
use super::outbox::{End, Outbox};
use super::stream::{Agreement, Stream};
use super::{backlog::Backlog, connection::MAX_STREAMS};

/// Our own pings that were not answered yet. Full: no more are sent.
const MAX_PINGS: usize = 64;
/// Consumed bytes after which a WINDOW_UPDATE is sent: half the window that the specification starts with.
const CREDIT: u32 = 32 << 10;

impl Connection {
    /// Opens a stream; names are lower case. With `fin` nothing will be sent on it.
    ///
    /// # Errors
    /// `Closed` after GOAWAY of either side; `Blocked` while too many streams are open or too much waits.
    pub fn open(&mut self, headers: &[(&str, &str)], fin: bool) -> Result<StreamId, SendError> {
        if self.phase != Phase::Open || self.peer_leaving {
            return Err(SendError::Closed);
        }
        if self.streams.len() >= MAX_STREAMS || self.outbox.is_overfull() {
            return Err(SendError::Blocked);
        }
        let id = StreamId::new(self.next_id).ok_or(SendError::Closed)?;
        self.next_id += 2;
        self.streams.insert(id, Stream::new(Agreement::Requested));
        let block = self.headers_out.write(headers);
        self.outbox.push_reply(Transmit::syn_stream(id, fin, &block));
        if fin {
            self.change(id, Stream::end_output);
        }
        Ok(id)
    }

    /// Accepts a stream the peer opened; a second time does nothing. Sending on it accepts it, too.
    pub fn accept(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.agreement == Agreement::Offered
        {
            stream.agreement = Agreement::Agreed;
            let block = self.headers_out.write(&[]);
            self.outbox.push_reply(Transmit::syn_reply(id, &block));
        }
    }

    /// Queues payload.
    ///
    /// # Errors
    /// `Blocked` while [`has_room`](Self::has_room) is false; `Closed` if the stream is gone or was finished.
    pub fn send(&mut self, id: StreamId, bytes: Bytes) -> Result<(), SendError> {
        self.check_sends(id)?;
        if !self.outbox.has_room() {
            return Err(SendError::Blocked);
        }
        self.accept(id);
        self.outbox.push(id, bytes);
        Ok(())
    }

    /// Queues the last bytes of a stream, which may be none, and its end. They are taken however full the queue is: what
    /// ends a session must not wait for a reader.
    ///
    /// # Errors
    /// `Closed` if the stream is gone or was finished before.
    pub fn finish(&mut self, id: StreamId, last_words: Bytes) -> Result<(), SendError> {
        self.check_sends(id)?;
        self.accept(id);
        self.outbox.push(id, last_words);
        self.outbox.push_end(id, End::Fin);
        self.change(id, Stream::end_output);
        Ok(())
    }

    fn check_sends(&self, id: StreamId) -> Result<(), SendError> {
        let sends = self.streams.get(&id).is_some_and(Stream::sends);
        if sends { Ok(()) } else { Err(SendError::Closed) }
    }

    /// Refuses or ends a stream both ways: at once for what comes, behind the queued payload for what goes.
    pub fn reset(&mut self, id: StreamId, status: RstStatus) {
        self.backlog.forget(id);
        if let Some(stream) = self.streams.remove(&id) {
            self.outbox.push_end(id, End::Reset(status));
            self.refusals.count += u32::from(stream.agreement == Agreement::Offered);
        }
    }

    /// So many bytes of a stream's DATA events are consumed. Not needed for a stream that was reset.
    pub fn consumed(&mut self, id: StreamId, len: usize) {
        let len = self.backlog.release(id, len);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.credit = self.credit.saturating_add(len);
        // Only a hint, so what finds no room is told with the next one.
        let room = self.outbox.takes_hints();
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.receives()) {
            stream.credit = stream.credit.saturating_add(len);
            if room && stream.credit >= CREDIT {
                self.outbox.push_reply(Transmit::window_update(Some(id), std::mem::take(&mut stream.credit)));
            }
        }
        if room && self.credit >= CREDIT {
            self.outbox.push_reply(Transmit::window_update(None, std::mem::take(&mut self.credit)));
        }
    }

    /// Sends a ping, whose answer will be [`Event::Pong`](super::Event::Pong) with this number.
    ///
    /// # Errors
    /// `Blocked` while too many are not answered; `Closed` when the connection has ended.
    pub fn ping(&mut self) -> Result<u32, SendError> {
        if self.phase == Phase::Ended {
            return Err(SendError::Closed);
        }
        if self.pings.len() >= MAX_PINGS || !self.outbox.takes_hints() {
            return Err(SendError::Blocked);
        }
        let number = self.next_ping;
        self.next_ping = number.checked_add(2).ok_or(SendError::Closed)?;
        self.pings.insert(number);
        self.outbox.push_reply(Transmit::ping(number));
        Ok(number)
    }

    /// Opens and takes no more streams, and says so behind everything that is queued. Open ones go on.
    pub fn go_away(&mut self, status: GoAwayStatus) {
        if self.phase == Phase::Open {
            self.phase = Phase::Leaving;
            self.outbox.say_goodbye(self.highest_of_peer, status);
        }
    }

    /// The peer is gone, with or without a word: all streams end, nothing is sent any more, and no event tells.
    pub fn lost(&mut self) {
        self.phase = Phase::Ended;
        self.streams = Default::default();
        self.outbox = Outbox::default();
        self.backlog = Backlog::default();
    }

    /// The next frame to write.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.poll()
    }

    /// Whether [`send`](Self::send) would take payload.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Whether nothing waits to be transmitted.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Streams that are not closed, in no order.
    pub fn open_streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams.keys().copied()
    }
}
