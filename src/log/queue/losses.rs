//! What is lost, how it is counted, and the record that tells it.

use std::{mem, time::Duration};

use crate::{
    format::{Batch, Record, Tally},
    model::{Chunk, StdStream},
};

use super::{Item, Queue, State};

impl Queue {
    /// What is to be written, and whether it begins with the rest of a torn record.
    pub(super) fn take_batch(&mut self) -> (Batch, bool) {
        let batch = mem::replace(&mut self.filling, mem::take(&mut self.spare));
        let Some(mut torn) = self.torn.take() else { return (batch, false) };
        let shift = torn.bytes.len();
        torn.bytes.extend(batch.bytes);
        torn.records.extend(batch.records.iter().map(|record| Record { end: record.end + shift, ..*record }));
        (torn, true)
    }

    /// Adds the record that tells how much is missing, if something is. Returns where it begins, and what it tells.
    pub(super) fn report_gap(&mut self, wall: Duration, batch: &mut Batch) -> Option<(usize, Tally)> {
        if self.gap.is_zero() {
            return None;
        }
        let gap = mem::take(&mut self.gap);
        let mut unfinished = self.unfinished;
        for record in &batch.records {
            unfinished[record.stream as usize] = record.partial;
        }
        // A reader joins a part with the next record of its stream: without an end, two lines would become one.
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            if unfinished[stream as usize] {
                self.encoder.remark(wall, stream, b"", batch);
            }
        }
        let start = batch.bytes.len();
        let text = format!("[holdfast: lost {} bytes in {} lines: {}]", gap.bytes, gap.lines, self.cause);
        self.encoder.remark(wall, StdStream::Stderr, text.as_bytes(), batch);
        Some((start, gap))
    }

    /// Drops a chunk behind all that is in the queue.
    pub(super) fn drop_chunk(&mut self, chunk: &Chunk) {
        if self.state == State::Writing && self.gap.is_zero() {
            self.cause = "more came than could be kept";
        }
        // The encoder must see all bytes in their order.
        if self.backlog_bytes > 0 {
            self.drop_backlog();
        }
        let lost = self.encoder.skip(chunk.stream, &chunk.bytes);
        self.lose(lost);
    }

    /// Drops the chunks that wait. What is to be opened anew stays.
    pub(super) fn drop_backlog(&mut self) {
        self.backlog_bytes = 0;
        for item in mem::take(&mut self.backlog) {
            match item {
                Item::Chunk(_, chunk) => {
                    let lost = self.encoder.skip(chunk.stream, &chunk.bytes);
                    self.lose(lost);
                }
                Item::Reopen(_) => self.backlog.push_back(item),
            }
        }
    }

    pub(super) fn lose(&mut self, lost: Tally) {
        self.gap += lost;
        self.totals.lost += lost;
    }
}

/// The part of a record that is not in the file, as a batch of its own.
pub(super) fn rest_of(batch: &Batch, from: usize, record: Record) -> Batch {
    let bytes = batch.bytes[from..record.end].to_vec();
    let records = vec![Record { end: bytes.len(), ..record }];
    Batch { bytes, records }
}
