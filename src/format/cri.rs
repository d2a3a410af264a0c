//! Kubernetes' container log format: `<time> SP stdout|stderr SP F|P SP <bytes> LF`.
//!
//! `F` ends a line, `P` says that the line goes on in the next record of its stream. The bytes are the container's own,
//! in any encoding (Kubernetes, "CRI: log management"; kubelet reads it in `pkg/kubelet/kuberuntime/logs`).

use std::time::Duration;

use crate::model::StdStream;

use super::{
    Batch,
    line::Piece,
    timestamp::{self, Timestamp},
};

/// What stands before the bytes of a line: time, stream name, tag and three spaces.
const HEAD_LEN: usize = timestamp::LEN + " stdout F ".len();

/// Records in Kubernetes' format.
#[derive(Debug, Default)]
pub struct Cri {
    timestamp: Timestamp,
}

impl Cri {
    pub(super) fn record(&mut self, time: Duration, stream: StdStream, piece: Piece<'_>, batch: &mut Batch) {
        self.push(time, stream, piece, batch);
        batch.close_record(stream, !piece.ends_line, piece.payload());
    }

    pub(super) fn remark(&mut self, time: Duration, stream: StdStream, text: &[u8], batch: &mut Batch) {
        self.push(time, stream, Piece { bytes: text, ends_line: true }, batch);
        batch.close_record(stream, false, 0);
    }

    fn push(&mut self, time: Duration, stream: StdStream, piece: Piece<'_>, batch: &mut Batch) {
        let tag: &[u8; 10] = match (stream, piece.ends_line) {
            (StdStream::Stdout, true) => b" stdout F ",
            (StdStream::Stdout, false) => b" stdout P ",
            (StdStream::Stderr, true) => b" stderr F ",
            (StdStream::Stderr, false) => b" stderr P ",
        };
        let out = &mut batch.bytes;
        out.reserve(HEAD_LEN + piece.bytes.len() + 1);
        out.extend_from_slice(self.timestamp.format(time));
        out.extend_from_slice(tag);
        out.extend_from_slice(piece.bytes);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Encoder, Tally, line::MAX_LINE};

    const T1: Duration = Duration::new(1_709_251_199, 5);

    fn text(batch: &Batch) -> String {
        String::from_utf8(batch.bytes.clone()).unwrap()
    }

    #[test]
    fn a_record_is_time_stream_tag_and_the_bytes_of_the_line() {
        let (mut cri, mut batch) = (Encoder::cri(), Batch::default());
        assert_eq!(cri.append(T1, StdStream::Stdout, b"hello\n\nwor", usize::MAX, &mut batch), 10);
        cri.append(T1, StdStream::Stderr, b" oops \n", usize::MAX, &mut batch);
        cri.append(T1, StdStream::Stdout, b"ld", usize::MAX, &mut batch);
        cri.finish(T1, &mut batch);
        let expected = "2024-02-29T23:59:59.000000005Z stdout F hello\n\
                        2024-02-29T23:59:59.000000005Z stdout F \n\
                        2024-02-29T23:59:59.000000005Z stderr F  oops \n\
                        2024-02-29T23:59:59.000000005Z stdout P world\n";
        assert_eq!(text(&batch), expected);
        assert_eq!(batch.tally(), Tally { bytes: 19, lines: 4 });
    }

    #[test]
    fn records_end_where_their_line_feed_is() {
        let (mut cri, mut batch) = (Encoder::cri(), Batch::default());
        let long = [vec![b'a'; MAX_LINE + 3], b"\nshort\n".to_vec()].concat();
        cri.append(T1, StdStream::Stdout, &long, usize::MAX, &mut batch);
        let lens: Vec<_> = batch.spans().map(|(start, r)| (r.end - start, r.payload, r.partial)).collect();
        let over = HEAD_LEN + 1;
        assert_eq!(lens, [(MAX_LINE + over, 16_384, true), (3 + over, 4, false), (5 + over, 6, false)]);
        assert!(batch.records.iter().all(|record| batch.bytes[record.end - 1] == b'\n'));
        assert_eq!(batch.bytes.len(), batch.records.last().unwrap().end);
    }

    #[test]
    fn times_never_go_back_even_between_the_streams() {
        let (mut cri, mut batch) = (Encoder::cri(), Batch::default());
        cri.append(T1, StdStream::Stdout, b"a\n", usize::MAX, &mut batch);
        cri.append(T1 - Duration::from_secs(9), StdStream::Stderr, b"b\n", usize::MAX, &mut batch);
        cri.remark(Duration::ZERO, StdStream::Stderr, b"c", &mut batch);
        let text = text(&batch);
        let times: Vec<_> = text.lines().map(|line| &line[..timestamp::LEN]).collect();
        assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
    }

    #[test]
    fn encoding_stops_at_the_first_record_that_reaches_the_limit() {
        let (mut cri, mut batch) = (Encoder::cri(), Batch::default());
        let input = b"\n".repeat(1000);
        let used = cri.append(T1, StdStream::Stdout, &input, 100, &mut batch);
        assert_eq!((used, batch.records.len()), (3, 3));
        assert_eq!(cri.append(T1, StdStream::Stdout, &input[used..], 100, &mut batch), 0);
    }

    #[test]
    fn skipped_bytes_are_counted_and_the_next_record_begins_at_a_line() {
        let (mut cri, mut batch) = (Encoder::cri(), Batch::default());
        cri.append(T1, StdStream::Stdout, b"begin ", usize::MAX, &mut batch);
        assert_eq!(cri.skip(StdStream::Stdout, b"end\nlost\nkept "), Tally { bytes: 15, lines: 2 });
        cri.append(T1, StdStream::Stdout, b"whole\n", usize::MAX, &mut batch);
        assert!(text(&batch).ends_with(" stdout F kept whole\n"), "{}", text(&batch));
        cri.skip(StdStream::Stderr, b"xyz");
        assert_eq!(cri.skip_rest(), Tally { bytes: 3, lines: 1 });
    }
}
