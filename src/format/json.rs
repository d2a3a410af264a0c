//! One JSON object per line, as conmon-rs writes them, with what its readers lacked behind its three keys:
//! `{"timestamp":1709251199,"pipe":"stdout","message":"text","time":"2024-02-29T23:59:59.000000005Z","partial":true}`.
//!
//! `message` is the line without its LF. JSON is Unicode text, so bytes that are none become U+FFFD, as the Unicode
//! Standard recommends ("substitution of maximal subparts"). `partial` stands only in a piece that had no LF; a character
//! that the cut between two pieces of a line would split is whole in the second one.

use std::{borrow::Cow, time::Duration};

use crate::model::StdStream;

use super::{Batch, line::Piece, timestamp::Timestamp};

/// At least the bytes of an object that are not its message.
const FRAME: usize = 128;

/// Records as JSON objects.
#[derive(Debug, Default)]
pub struct Json {
    timestamp: Timestamp,
    /// Of stdout and of stderr: the begin of a character that the last cut split, at most 3 bytes. They count with the
    /// record that shows them.
    carry: [Vec<u8>; 2],
}

impl Json {
    pub(super) fn record(&mut self, time: Duration, stream: StdStream, piece: Piece<'_>, batch: &mut Batch) {
        let (text, payload) = self.join(stream, piece);
        self.push(time, stream, &text, !piece.ends_line, batch);
        batch.close_record(stream, !piece.ends_line, payload);
    }

    /// The last piece of a stream, behind which no character goes on.
    pub(super) fn rest(&mut self, time: Duration, stream: StdStream, bytes: &[u8], batch: &mut Batch) {
        self.push(time, stream, bytes, true, batch);
        batch.close_record(stream, true, length(bytes));
    }

    pub(super) fn remark(&mut self, time: Duration, stream: StdStream, text: &[u8], batch: &mut Batch) {
        self.push(time, stream, text, false, batch);
        batch.close_record(stream, false, 0);
    }

    pub(super) fn skip(&mut self, stream: StdStream, piece: Piece<'_>) -> u16 {
        self.join(stream, piece).1
    }

    /// Puts what is carried before the rest of a stream.
    pub(super) fn take_rest(&mut self, stream: StdStream, rest: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let mut all = std::mem::take(&mut self.carry[stream as usize]);
        all.extend(rest.unwrap_or_default());
        Some(all).filter(|all| !all.is_empty())
    }

    /// What this piece shows (what was carried before it, but no character that goes on in the next one), and how many
    /// bytes of the stream that is.
    fn join<'a>(&mut self, stream: StdStream, piece: Piece<'a>) -> (Cow<'a, [u8]>, u16) {
        let carry = &mut self.carry[stream as usize];
        let mut text = Cow::Borrowed(piece.bytes);
        if !carry.is_empty() {
            carry.extend_from_slice(piece.bytes);
            text = Cow::Owned(std::mem::take(carry));
        }
        if !piece.ends_line {
            let whole = text.len() - split_character(&text);
            *carry = text[whole..].to_vec();
            match &mut text {
                Cow::Borrowed(bytes) => *bytes = &bytes[..whole],
                Cow::Owned(bytes) => bytes.truncate(whole),
            }
        }
        let payload = length(&text) + u16::from(piece.ends_line);
        (text, payload)
    }

    fn push(&mut self, time: Duration, stream: StdStream, text: &[u8], partial: bool, batch: &mut Batch) {
        let out = &mut batch.bytes;
        out.reserve(FRAME + text.len());
        out.extend_from_slice(br#"{"timestamp":"#);
        // Writing numbers and text to memory never fails.
        let _ = serde_json::to_writer(&mut *out, &time.as_secs());
        out.extend_from_slice(br#","pipe":""#);
        out.extend_from_slice(stream.name().as_bytes());
        out.extend_from_slice(br#"","message":"#);
        let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(text));
        out.extend_from_slice(br#","time":""#);
        out.extend_from_slice(self.timestamp.format(time));
        out.extend_from_slice(if partial { b"\",\"partial\":true}\n" } else { b"\"}\n" });
    }
}

#[allow(clippy::cast_possible_truncation)] // A piece has at most 16 KiB, and 3 bytes are carried.
fn length(bytes: &[u8]) -> u16 {
    bytes.len() as u16
}

/// How many bytes at the end are the begin of a character that more bytes could complete.
fn split_character(bytes: &[u8]) -> usize {
    let begins = |count: &usize| {
        let end = std::str::from_utf8(&bytes[bytes.len() - count..]);
        end.is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Encoder, Tally, line::MAX_LINE};

    const T1: Duration = Duration::new(1_709_251_199, 5);

    fn encode(parts: &[&[u8]]) -> Batch {
        let (mut json, mut batch) = (Encoder::json(), Batch::default());
        for part in parts {
            json.append(T1, StdStream::Stdout, part, usize::MAX, &mut batch);
        }
        json.finish(T1, &mut batch);
        batch
    }

    fn messages(batch: &Batch) -> Vec<(String, bool)> {
        let text = std::str::from_utf8(&batch.bytes).unwrap();
        let objects = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        objects.map(|o| (o["message"].as_str().unwrap().to_owned(), o["partial"] == true)).collect()
    }

    #[test]
    fn a_record_has_the_keys_of_the_contract_in_their_order_and_then_ours() {
        let (mut json, mut batch) = (Encoder::json(), Batch::default());
        json.append(T1, StdStream::Stdout, b" a \"b\" \\ \t\0\x7f \n\nhalf", usize::MAX, &mut batch);
        json.append(T1, StdStream::Stderr, "ä\r\n".as_bytes(), usize::MAX, &mut batch);
        json.finish(T1, &mut batch);
        let time = r#""time":"2024-02-29T23:59:59.000000005Z""#;
        let expected = [
            format!(r#"{{"timestamp":1709251199,"pipe":"stdout","message":" a \"b\" \\ \t\u0000{} ",{time}}}"#, '\x7f'),
            format!(r#"{{"timestamp":1709251199,"pipe":"stdout","message":"",{time}}}"#),
            format!(r#"{{"timestamp":1709251199,"pipe":"stderr","message":"ä\r",{time}}}"#),
            format!(r#"{{"timestamp":1709251199,"pipe":"stdout","message":"half",{time},"partial":true}}"#),
        ];
        assert_eq!(std::str::from_utf8(&batch.bytes).unwrap().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let cases: [(&[u8], &str); 6] = [
            (b"a\xffb", "a\u{fffd}b"),
            (b"\xe2\x82", "\u{fffd}"),
            (b"\xe2\x82x", "\u{fffd}x"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xf0\x9f\x98\x80", "😀"),
            (b"\xc0\x80", "\u{fffd}\u{fffd}"),
        ];
        for (bytes, text) in cases {
            let line = [bytes, b"\n"].concat();
            assert_eq!(messages(&encode(&[&line])), [(text.to_owned(), false)], "{bytes:?}");
            assert_eq!(messages(&encode(&[bytes])), [(text.to_owned(), true)], "{bytes:?} without a line end");
        }
    }

    #[test]
    fn a_character_on_the_cut_of_a_long_line_is_whole_in_the_next_piece_and_counted_there() {
        for (character, before) in [("ä", 1), ("€", 1), ("€", 2), ("😀", 1), ("😀", 3)] {
            let text = format!("{}{character}end\n", "x".repeat(MAX_LINE - before));
            let batch = encode(&[text.as_bytes()]);
            let expected = [("x".repeat(MAX_LINE - before), true), (format!("{character}end"), false)];
            assert_eq!(messages(&batch), expected);
            let tail = u16::try_from(character.len()).unwrap() + 4;
            assert_eq!(batch.records[1].payload, tail);
            assert_eq!(batch.tally().bytes, text.len() as u64);
        }
    }

    #[test]
    fn a_character_that_the_end_of_the_stream_cuts_is_neither_lost_nor_uncounted() {
        let text = [&vec![b'x'; MAX_LINE - 2][..], b"\xe2\x82"].concat();
        let batch = encode(&[&text, b""]);
        assert_eq!(messages(&batch)[0], (format!("{}\u{fffd}", "x".repeat(MAX_LINE - 2)), true));
        let more = [&text[..], b"\n"].concat();
        assert_eq!(messages(&encode(&[&more])).len(), 1);
        let (mut json, mut batch) = (Encoder::json(), Batch::default());
        // One byte more than a piece: the first piece is out when the stream ends.
        let long = [b"y", &text[..], b"\x82"].concat();
        json.append(T1, StdStream::Stdout, &long, usize::MAX, &mut batch);
        let written = batch.tally().bytes;
        assert_eq!(json.skip_rest(), Tally { bytes: long.len() as u64 - written, lines: 1 });
    }

    #[test]
    fn skipped_pieces_carry_too() {
        let (mut json, mut batch) = (Encoder::json(), Batch::default());
        let long = format!("{}€", "x".repeat(MAX_LINE - 1));
        assert_eq!(json.skip(StdStream::Stdout, long.as_bytes()), Tally { bytes: MAX_LINE as u64 - 1, lines: 1 });
        json.append(T1, StdStream::Stdout, b"!\n", usize::MAX, &mut batch);
        assert_eq!(messages(&batch), [("€!".to_owned(), false)]);
        assert_eq!(batch.tally(), Tally { bytes: 5, lines: 1 });
    }
}
