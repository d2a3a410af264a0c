//! Log encoders, pure: (time, stream, bytes) to bytes.
//!
//! An [`Encoder`] cuts what a container writes into lines ([`mod@line`]), and appends each finished line as one *record* to a
//! [`Batch`]. A line that is not finished yet waits inside the encoder, at most 16 KiB of it per stream.

pub mod cri;
pub mod line;
pub mod timestamp;

use std::{iter, time::Duration};

use crate::model::StdStream;

use self::cri::Cri;

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

/// The format of a log. One encoder serves one log of one container: it remembers unfinished lines and the last time.
///
/// Times are given since the Unix epoch. A time before the last one is replaced by the last one, so that records never
/// go back in time when somebody sets the clock.
#[derive(Debug)]
pub enum Encoder {
    /// Kubernetes' container log format.
    Cri(Cri),
}

impl Encoder {
    /// An encoder for Kubernetes' container log format.
    #[must_use]
    pub fn cri() -> Self {
        Self::Cri(Cri::default())
    }

    /// Encodes what one read gave, until the batch has `limit` bytes or more. Returns how many of `bytes` were used; the
    /// others must come again, before anything else of this stream.
    pub fn append(&mut self, now: Duration, stream: StdStream, bytes: &[u8], limit: usize, batch: &mut Batch) -> usize {
        match self {
            Self::Cri(cri) => cri.append(now, stream, bytes, limit, batch),
        }
    }

    /// Takes in bytes whose records are not wanted, and returns how much was dropped. What is left of the last line is
    /// kept, so that the next record begins where a line begins.
    pub fn skip(&mut self, stream: StdStream, bytes: &[u8]) -> Tally {
        match self {
            Self::Cri(cri) => cri.skip(stream, bytes),
        }
    }

    /// The streams have ended: encodes what is left of their last lines.
    pub fn finish(&mut self, now: Duration, batch: &mut Batch) {
        match self {
            Self::Cri(cri) => cri.finish(now, batch),
        }
    }

    /// Like [`Encoder::finish`] without records: returns how much was dropped.
    pub fn skip_rest(&mut self) -> Tally {
        match self {
            Self::Cri(cri) => cri.skip_rest(),
        }
    }

    /// Appends one whole line that the container did not write. `text` holds no LF.
    pub fn remark(&mut self, now: Duration, stream: StdStream, text: &[u8], batch: &mut Batch) {
        match self {
            Self::Cri(cri) => cri.remark(now, stream, text, batch),
        }
    }
}
