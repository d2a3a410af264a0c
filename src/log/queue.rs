//! What waits between a container and its log, and every decision about it. No task, no file and no clock in here.
//!
//! Chunks are encoded into `filling` at once. When that is full they wait as they are in `backlog`, which also holds the
//! places where the path is to be opened anew. While a batch is being written, `filling` collects the next one.
//!
//! ```text
//!             fails                     fails
//!  Writing ───────────▶ Failing ◀────────────────── Stalled
//!   ▲ ▲ │                  │ ▲ │ fails again          │ ▲
//!   │ │ │                  │ └─┘                      │ │
//!   │ │ └──────────────────┼── no answer for LOG_STALL ─┘
//!   │ └────── succeeds ────┘                          │
//!   └──────────────────────── succeeds ───────────────┘
//! ```
//! Only in *Writing* does a full queue hold up the container. Else what has no room is dropped and counted; that is the
//! *gap*. From the first byte dropped until a record in the log tells the gap's size, nothing more is taken, so that each
//! gap has one such record, at the place where the bytes are missing.

mod losses;

use std::{collections::VecDeque, mem, path::PathBuf, time::Duration};

use bytes::Buf as _;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    format::{Batch, Encoder, Tally, line::MAX_LINE},
    model::Chunk,
};

use self::losses::rest_of;
use super::{LogError, LogTotals, file::Written};

/// Encoded bytes that may wait for the write in flight; the record that passes it is the last. Full: the pump waits.
/// Two such buffers are what one busy container may cost, and a batch of this size makes the pool's hop cheap.
const FILLING_BOUND: usize = 64 * 1024;

/// What `filling` can grow to, in CRI. (Escapes make a JSON record up to six times as long: then it grows once more.)
const FILLING_MAX: usize = FILLING_BOUND + MAX_LINE + 64;

/// Chunks that found `filling` full. The pump asks for room before each read, so there is rarely more than one. Full:
/// dropped and counted.
const BACKLOG_BOUND: usize = 256 * 1024;

/// The first pause before a failed write is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// At the end the rest of a torn record is tried until the next pause would be longer: 0.7 s in all, if that has just begun.
const LAST_PAUSE: Duration = Duration::from_millis(400);

/// Gets the outcome of a reopen. Whoever asked may have gone: then the old file stays.
pub(super) type Reply = oneshot::Sender<Result<(), LogError>>;

#[derive(Debug)]
pub(super) struct Queue {
    path: PathBuf,
    encoder: Encoder,
    filling: Batch,
    /// The emptied buffer of the last write, while there is more to write.
    spare: Batch,
    backlog: VecDeque<Item>,
    /// Bytes of the chunks in `backlog`.
    backlog_bytes: usize,
    in_flight: Option<InFlight>,
    /// The rest of a record whose begin is in the file.
    torn: Option<Batch>,
    /// Whether the last record in the file of each stream is a part of a line.
    unfinished: [bool; 2],
    /// Dropped and not yet told in the log. Not zero: `backlog` has no chunks.
    gap: Tally,
    cause: &'static str,
    state: State,
    /// The next attempt does not wait for its time.
    hurry: bool,
    /// The container's output has ended.
    ending: bool,
    totals: LogTotals,
}

/// See the picture above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    /// The write in flight has not returned in time.
    Stalled,
    /// The last write failed.
    Failing {
        pause: Duration,
        retry_at: Instant,
    },
}

#[derive(Debug)]
enum Item {
    /// Read at this time since the Unix epoch.
    Chunk(Duration, Chunk),
    Reopen(Reply),
}

/// What the write in flight would lose.
#[derive(Debug, Default)]
struct InFlight {
    tally: Tally,
    torn: bool,
    /// The record that tells a gap: where it begins, and the gap.
    report: Option<(usize, Tally)>,
}

/// What the task is to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Write, then call [`Queue::wrote`].
    Write { batch: Batch, torn: bool },
    /// Open the path anew, then call [`Queue::reopened`].
    Reopen(Reply),
    /// Nothing until somebody calls, or until this time.
    Wait(Option<Instant>),
    /// Everything is written and nothing will come.
    Finish,
}

impl Queue {
    pub(super) fn new(path: PathBuf, encoder: Encoder) -> Self {
        Self {
            path,
            encoder,
            filling: Batch::default(),
            spare: Batch::default(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            in_flight: None,
            torn: None,
            unfinished: [false; 2],
            gap: Tally::default(),
            cause: "",
            state: State::Writing,
            hurry: false,
            ending: false,
            totals: LogTotals::default(),
        }
    }

    /// Whether the container may write on.
    pub(super) fn has_room(&self) -> bool {
        self.state != State::Writing || (self.gap.is_zero() && self.takes_more())
    }

    /// Whether there is something to write, but little, and nobody waits for it.
    pub(super) fn is_worth_gathering(&self) -> bool {
        let little = !self.filling.is_empty() && self.filling.bytes.len() < FILLING_BOUND / 2;
        little && self.takes_more() && self.state == State::Writing && !self.hurry && !self.ending
    }

    /// Takes a chunk, or counts it as lost. Returns whether the task has something to do that it does not know of.
    pub(super) fn append(&mut self, now: Duration, chunk: &Chunk) -> bool {
        if self.ending {
            return false;
        }
        let full = match self.state {
            State::Writing => self.backlog_bytes > 0 && self.backlog_bytes + chunk.bytes.len() > BACKLOG_BOUND,
            _ => !self.takes_more(),
        };
        if full || !self.gap.is_zero() {
            self.drop_chunk(chunk);
            return false;
        }
        let used = if self.backlog.is_empty() { self.encode(now, chunk) } else { 0 };
        if used < chunk.bytes.len() {
            let rest = Chunk { stream: chunk.stream, bytes: chunk.bytes.slice(used..) };
            self.backlog_bytes += rest.bytes.len();
            self.backlog.push_back(Item::Chunk(now, rest));
        }
        self.in_flight.is_none() && self.state == State::Writing && !self.filling.is_empty()
    }

    /// Asks for the path to be opened anew behind everything appended before.
    pub(super) fn reopen(&mut self, reply: Reply) {
        // If the caller is gone, there is nobody to tell.
        if self.ending {
            return drop(reply.send(Err(LogError::Closed { path: self.path.clone() })));
        }
        if self.state == State::Stalled {
            return drop(reply.send(Err(self.failing())));
        }
        self.backlog.push_back(Item::Reopen(reply));
        self.hurry = true;
    }

    /// Whether a write has not returned in time.
    pub(super) fn is_stuck(&self) -> bool {
        self.state == State::Stalled
    }

    /// The container's output has ended.
    pub(super) fn end(&mut self) {
        self.ending = true;
        self.hurry = true;
    }

    pub(super) fn totals(&self) -> LogTotals {
        self.totals
    }

    /// Nobody will write any more: counts what is left as lost. Returns the totals.
    pub(super) fn close(&mut self) -> LogTotals {
        self.ending = true;
        let left = self.in_flight.take().map(|write| write.tally).unwrap_or_default()
            + self.torn.take().map(|rest| rest.tally()).unwrap_or_default()
            + mem::take(&mut self.filling).tally();
        self.lose(left);
        self.drop_backlog();
        while let Some(reply) = self.take_reopen() {
            drop(reply.send(Err(self.failing())));
        }
        let rest = self.encoder.skip_rest();
        self.lose(rest);
        self.totals
    }

    /// What to do now that nothing is in flight. `wall` is the time since the Unix epoch.
    pub(super) fn next(&mut self, now: Instant, wall: Duration) -> Step {
        debug_assert!(self.in_flight.is_none());
        let hurry = mem::take(&mut self.hurry);
        if let State::Failing { pause, retry_at } = self.state
            && now < retry_at
            && !hurry
        {
            // The file was tried just now for its sake. One that takes nothing may be gone for ever, with its file system.
            if let Some(reply) = self.take_reopen() {
                self.in_flight = Some(InFlight::default());
                return Step::Reopen(reply);
            }
            // At the end at most the record that tells the gap is owed, or the rest of a torn one. Only the latter is worth
            // holding up an exit, and not for long: without it the log ends within a record.
            let tried = self.torn.is_none() || pause > LAST_PAUSE;
            return if self.ending && tried { Step::Finish } else { Step::Wait(Some(retry_at)) };
        }
        self.refill();
        let (mut batch, torn) = self.take_batch();
        let report = self.report_gap(wall, &mut batch);
        if self.ending && self.backlog.is_empty() {
            self.encoder.finish(wall, &mut batch);
        }
        if !batch.is_empty() {
            self.in_flight = Some(InFlight { tally: batch.tally(), torn, report });
            return Step::Write { batch, torn };
        }
        if let Some(reply) = self.take_reopen() {
            self.in_flight = Some(InFlight::default());
            return Step::Reopen(reply);
        }
        if self.ending {
            return Step::Finish;
        }
        // At rest: a container that is silent costs no buffer.
        (self.filling, self.backlog) = Default::default();
        Step::Wait(None)
    }

    /// The write in flight has not returned in time: from now on it does not hold up the container.
    pub(super) fn stall(&mut self, cause: &'static str) {
        if self.state == State::Writing {
            self.state = State::Stalled;
            self.cause = cause;
        }
    }

    /// The write in flight has returned.
    pub(super) fn wrote(&mut self, now: Instant, mut batch: Batch, written: &Written) {
        let Some(InFlight { torn, report, .. }) = self.in_flight.take() else { return };
        self.totals.failed_rotations += written.failed_rotations;
        if let Some(cause) = written.error {
            self.fail(now, cause);
        } else {
            self.state = State::Writing;
        }
        for (start, record) in batch.spans() {
            if record.end <= written.bytes {
                self.totals.written += record.tally();
                self.unfinished[record.stream as usize] = record.partial;
            } else if start < written.bytes || (torn && start == 0) {
                self.torn = Some(rest_of(&batch, written.bytes, *record));
            } else {
                self.lose(record.tally());
            }
        }
        if let Some((_, gap)) = report.filter(|(start, _)| *start >= written.bytes) {
            self.gap += gap;
        }
        if written.error.is_some() {
            let unwritten = self.filling.tally();
            self.lose(unwritten);
            self.filling.clear();
            self.drop_backlog();
        } else {
            batch.clear();
            self.spare = batch;
        }
    }

    /// The attempt to open the path anew has returned. Whether there is a new file now: if the old one has failed, the new
    /// one is tried at once, and tells the gap.
    pub(super) fn reopened(&mut self, anew: bool) {
        self.in_flight = None;
        match self.state {
            State::Stalled => self.state = State::Writing,
            State::Failing { .. } if anew => {
                self.hurry = true;
                // Its begin is in a file that takes no end.
                let torn = self.torn.take().map(|rest| rest.tally()).unwrap_or_default();
                self.lose(torn);
            }
            State::Writing | State::Failing { .. } => {}
        }
    }

    fn fail(&mut self, now: Instant, cause: &'static str) {
        let pause = match self.state {
            State::Failing { pause, .. } => (2 * pause).min(RETRY_MAX),
            State::Writing | State::Stalled => RETRY_FIRST,
        };
        self.state = State::Failing { pause, retry_at: now + pause };
        self.cause = cause;
    }

    fn takes_more(&self) -> bool {
        self.filling.bytes.len() < FILLING_BOUND && self.backlog.is_empty()
    }

    /// Encodes what there is room for; returns how many bytes that is.
    fn encode(&mut self, now: Duration, chunk: &Chunk) -> usize {
        let out = &mut self.filling.bytes;
        // Small amounts grow as Vec does. A busy log gets its final size at once, which doubling would overshoot.
        if out.len() + chunk.bytes.len() > FILLING_BOUND / 8 && out.capacity() < FILLING_MAX {
            out.reserve_exact(FILLING_MAX - out.len());
        }
        self.encoder.append(now, chunk.stream, &chunk.bytes, FILLING_BOUND, &mut self.filling)
    }

    /// Encodes the backlog up to the next reopen or as far as there is room.
    fn refill(&mut self) {
        while let Some(item) = self.backlog.pop_front() {
            match item {
                Item::Reopen(reply) if reply.is_closed() => {}
                Item::Reopen(_) => return self.backlog.push_front(item),
                Item::Chunk(stamp, mut chunk) => {
                    let used = self.encode(stamp, &chunk);
                    self.backlog_bytes -= used;
                    chunk.bytes.advance(used);
                    if !chunk.bytes.is_empty() {
                        return self.backlog.push_front(Item::Chunk(stamp, chunk));
                    }
                }
            }
        }
    }

    /// The next thing in the backlog, if that is a reopen that somebody waits for.
    fn take_reopen(&mut self) -> Option<Reply> {
        while let Some(Item::Reopen(reply)) = self.backlog.pop_front_if(|item| matches!(item, Item::Reopen(_))) {
            if !reply.is_closed() {
                return Some(reply);
            }
        }
        None
    }

    fn failing(&self) -> LogError {
        LogError::Failing { path: self.path.clone(), cause: self.cause }
    }
}

#[cfg(test)]
mod tests;
