//! Log encoders, pure: (time, stream, bytes) to bytes.
//!
//! An [`Encoder`] cuts what a container writes into lines ([`mod@line`]), and appends each finished line as one *record*, in
//! one of three forms, to a [`Batch`]. A line that is not finished yet waits inside the encoder, at most 16 KiB of it per stream.

pub mod cri;
pub mod journal;
pub mod json;
pub mod line;
pub mod timestamp;

use std::{iter, time::Duration};

use crate::model::StdStream;

use self::{
    cri::Cri,
    journal::Journal,
    json::Json,
    line::{LineSplitter, Piece},
};

/// Encoded records, one behind the other, ready to be written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The records as they go into the log.
    pub bytes: Vec<u8>,
    /// Where each record ends in `bytes`, ascending; the last one ends where `bytes` ends.
    pub records: Vec<Record>,
}

impl Batch {
    /// True if there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The bytes the container wrote that are in these records.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.records.iter().fold(Tally::default(), |tally, record| tally + record.tally())
    }

    /// Each record with the offset where it begins.
    pub fn spans(&self) -> impl Iterator<Item = (usize, &Record)> {
        let starts = iter::once(0).chain(self.records.iter().map(|record| record.end));
        starts.zip(&self.records)
    }

    /// Takes away all records, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }

    /// Marks what was appended to `bytes` since the last record as a record.
    fn close_record(&mut self, stream: StdStream, partial: bool, payload: u16) {
        self.records.push(Record { end: self.bytes.len(), payload, stream, partial });
    }
}

/// One log entry of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The offset behind its last byte.
    pub end: usize,
    /// How many bytes of the container it carries, a line's LF included; 0 if it is a remark of our own.
    pub payload: u16,
    /// The stream it names.
    pub stream: StdStream,
    /// It is a piece of a line that goes on in the stream's next record (`P` in CRI).
    pub partial: bool,
}

impl Record {
    /// What losing this record would lose.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { bytes: self.payload.into(), lines: u64::from(self.payload > 0) }
    }
}

/// An amount of what a container wrote.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Bytes as the container wrote them, line feeds included.
    pub bytes: u64,
    /// Log lines they make: a line of more than 16 KiB makes several.
    pub lines: u64,
}

impl Tally {
    /// True if it is nothing at all.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, lines: self.lines + other.lines }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What writes one log of one container. It remembers unfinished lines and the last time.
///
/// Times are given since the Unix epoch. A time before the last one is replaced by the last one, so that records never
/// go back in time when somebody sets the clock.
#[derive(Debug)]
pub struct Encoder {
    /// Of stdout and of stderr.
    lines: [LineSplitter; 2],
    /// The time of the latest record: none may have an earlier one.
    last: Duration,
    form: Form,
}

/// The form of a record.
#[derive(Debug)]
enum Form {
    Cri(Cri),
    Json(Json),
    Journal(Journal),
}

impl Encoder {
    /// An encoder for Kubernetes' container log format.
    #[must_use]
    pub fn cri() -> Self {
        Self::new(Form::Cri(Cri::default()))
    }

    /// An encoder for one JSON object per line.
    #[must_use]
    pub fn json() -> Self {
        Self::new(Form::Json(Json::default()))
    }

    /// An encoder for fields of journal entries: each record is what its entry has beside the fields that all entries of a
    /// container share, see [`journal::shared_fields`].
    #[must_use]
    pub fn journal() -> Self {
        Self::new(Form::Journal(Journal::default()))
    }

    fn new(form: Form) -> Self {
        Self { lines: Default::default(), last: Duration::ZERO, form }
    }

    /// Encodes what one read gave, until the batch has `limit` bytes or more. Returns how many of `bytes` were used; the
    /// others must come again, before anything else of this stream.
    pub fn append(&mut self, now: Duration, stream: StdStream, bytes: &[u8], limit: usize, batch: &mut Batch) -> usize {
        if batch.bytes.len() >= limit {
            return 0;
        }
        let time = self.advance(now);
        let Self { lines, form, .. } = self;
        lines[stream as usize].feed(bytes, |piece| {
            form.record(time, stream, piece, batch);
            batch.bytes.len() < limit
        })
    }

    /// Takes in bytes whose records are not wanted, and returns how much was dropped. What is left of the last line is
    /// kept, so that the next record begins where a line begins.
    pub fn skip(&mut self, stream: StdStream, bytes: &[u8]) -> Tally {
        let mut dropped = Tally::default();
        let Self { lines, form, .. } = self;
        lines[stream as usize].feed(bytes, |piece| {
            dropped += Tally { bytes: form.skip(stream, piece).into(), lines: 1 };
            true
        });
        dropped
    }

    /// The streams have ended: encodes what is left of their last lines.
    pub fn finish(&mut self, now: Duration, batch: &mut Batch) {
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            if let Some(rest) = self.take_rest(stream) {
                let time = self.advance(now);
                self.form.rest(time, stream, &rest, batch);
            }
        }
    }

    /// Like [`Encoder::finish`] without records: returns how much was dropped.
    pub fn skip_rest(&mut self) -> Tally {
        let rests = [StdStream::Stdout, StdStream::Stderr].map(|stream| self.take_rest(stream));
        let tally = |rest: Vec<u8>| Tally { bytes: rest.len() as u64, lines: 1 };
        rests.into_iter().flatten().map(tally).fold(Tally::default(), std::ops::Add::add)
    }

    /// Appends one whole line that the container did not write. `text` holds no LF.
    pub fn remark(&mut self, now: Duration, stream: StdStream, text: &[u8], batch: &mut Batch) {
        debug_assert!(!text.contains(&b'\n'));
        let time = self.advance(now);
        match &mut self.form {
            Form::Cri(cri) => cri.remark(time, stream, text, batch),
            Form::Json(json) => json.remark(time, stream, text, batch),
            Form::Journal(_) => Journal::remark(stream, text, batch),
        }
    }

    fn take_rest(&mut self, stream: StdStream) -> Option<Vec<u8>> {
        let rest = self.lines[stream as usize].finish();
        match &mut self.form {
            Form::Json(json) => json.take_rest(stream, rest),
            Form::Cri(_) | Form::Journal(_) => rest,
        }
    }

    fn advance(&mut self, now: Duration) -> Duration {
        self.last = self.last.max(now);
        self.last
    }
}

impl Form {
    fn record(&mut self, time: Duration, stream: StdStream, piece: Piece<'_>, batch: &mut Batch) {
        match self {
            Self::Cri(cri) => cri.record(time, stream, piece, batch),
            Self::Json(json) => json.record(time, stream, piece, batch),
            Self::Journal(journal) => journal.record(stream, piece, batch),
        }
    }

    /// The last piece of a stream, which has no LF.
    fn rest(&mut self, time: Duration, stream: StdStream, bytes: &[u8], batch: &mut Batch) {
        let piece = Piece { bytes, ends_line: false };
        match self {
            Self::Cri(cri) => cri.record(time, stream, piece, batch),
            Self::Json(json) => json.rest(time, stream, bytes, batch),
            Self::Journal(journal) => journal.record(stream, piece, batch),
        }
    }

    /// Takes in a piece without a record. Returns the bytes that record would have carried.
    fn skip(&mut self, stream: StdStream, piece: Piece<'_>) -> u16 {
        match self {
            Self::Cri(_) => piece.payload(),
            Self::Json(json) => json.skip(stream, piece),
            Self::Journal(journal) => journal.skip(stream, piece),
        }
    }
}

#[cfg(test)]
mod tests;
