//! Entries of the systemd journal in its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): fields, each
//! `NAME=value LF`, or `NAME LF`, the value's length as 64 bits in little-endian, the value, LF.
//!
//! An entry of a container has the fields of C conmon, and two more that say what a file's record would:
//! `CONTAINER_STREAM` (`stdout` or `stderr`), and for each piece of a line that has no LF `CONTAINER_PARTIAL_MESSAGE=true`.

use crate::model::StdStream;

use super::{Batch, line::Piece};

/// Where journald takes them.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest name taken, in bytes: every entry carries it. The longest that Kubernetes makes has about 500.
const MAX_NAME: usize = 1024;

/// How much of a container's id its short form has.
const SHORT_ID: usize = 12;

/// Appends a field. The value may be anything; the name is capitals, digits and underscores, at most 64.
pub fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The fields that every entry of a container has.
#[must_use]
pub fn shared_fields(id: &str, name: Option<&str>) -> Vec<u8> {
    let short = &id[..id.floor_char_boundary(SHORT_ID)];
    let name = name.map(|name| &name[..name.floor_char_boundary(MAX_NAME)]).filter(|name| !name.is_empty());
    let mut fields = Vec::new();
    push_field(&mut fields, "SYSLOG_IDENTIFIER", name.unwrap_or(short).as_bytes());
    push_field(&mut fields, "CONTAINER_ID", short.as_bytes());
    push_field(&mut fields, "CONTAINER_ID_FULL", id.as_bytes());
    if let Some(name) = name {
        push_field(&mut fields, "CONTAINER_NAME", name.as_bytes());
    }
    fields
}

/// The fields of one entry after the other.
#[derive(Debug, Default)]
pub struct Journal {
    /// Of stdout and of stderr: the priority of the line whose last piece did not end it.
    unfinished: [Option<u8>; 2],
}

impl Journal {
    pub(super) fn record(&mut self, stream: StdStream, piece: Piece<'_>, batch: &mut Batch) {
        let (priority, text) = self.prioritise(stream, piece);
        push(stream, priority, text, !piece.ends_line, batch);
        batch.close_record(stream, !piece.ends_line, piece.payload());
    }

    pub(super) fn skip(&mut self, stream: StdStream, piece: Piece<'_>) -> u16 {
        self.prioritise(stream, piece);
        piece.payload()
    }

    pub(super) fn remark(stream: StdStream, text: &[u8], batch: &mut Batch) {
        push(stream, usual_priority(stream), text, false, batch);
        batch.close_record(stream, false, 0);
    }

    /// The priority of a piece, and what is left of it. One prefix holds for all pieces of its line.
    fn prioritise<'a>(&mut self, stream: StdStream, piece: Piece<'a>) -> (u8, &'a [u8]) {
        let unfinished = &mut self.unfinished[stream as usize];
        let (priority, text) = match (*unfinished, piece.bytes) {
            (Some(priority), text) => (priority, text),
            (None, [b'<', priority @ b'0'..=b'7', b'>', text @ ..]) => (*priority, text),
            (None, text) => (usual_priority(stream), text),
        };
        *unfinished = (!piece.ends_line).then_some(priority);
        (priority, text)
    }
}

/// The digit of syslog(3): informational, error.
fn usual_priority(stream: StdStream) -> u8 {
    match stream {
        StdStream::Stdout => b'6',
        StdStream::Stderr => b'3',
    }
}

fn push(stream: StdStream, priority: u8, text: &[u8], partial: bool, batch: &mut Batch) {
    let out = &mut batch.bytes;
    push_field(out, "PRIORITY", &[priority]);
    push_field(out, "CONTAINER_STREAM", stream.name().as_bytes());
    if partial {
        push_field(out, "CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    push_field(out, "MESSAGE", text);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::format::{Encoder, line::MAX_LINE};

    fn entries(parts: &[(StdStream, &[u8])]) -> Vec<String> {
        let (mut journal, mut batch) = (Encoder::journal(), Batch::default());
        for (stream, part) in parts {
            journal.append(Duration::ZERO, *stream, part, usize::MAX, &mut batch);
        }
        journal.finish(Duration::ZERO, &mut batch);
        let entry = |(start, record): (usize, &crate::format::Record)| batch.bytes[start..record.end].to_vec();
        batch.spans().map(entry).map(|entry| String::from_utf8(entry).unwrap()).collect()
    }

    #[test]
    fn an_entry_has_priority_stream_and_message_and_a_mark_where_its_line_goes_on() {
        let entries = entries(&[(StdStream::Stdout, b" out \r\n\nrest"), (StdStream::Stderr, b"err\n")]);
        let expected = [
            "PRIORITY=6\nCONTAINER_STREAM=stdout\nMESSAGE= out \r\n",
            "PRIORITY=6\nCONTAINER_STREAM=stdout\nMESSAGE=\n",
            "PRIORITY=3\nCONTAINER_STREAM=stderr\nMESSAGE=err\n",
            "PRIORITY=6\nCONTAINER_STREAM=stdout\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=rest\n",
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_priority_at_the_begin_of_a_line_counts_for_all_its_pieces_and_is_taken_away() {
        let long = [b"<2>", &vec![b'x'; 2 * MAX_LINE][..], b"\n<7>seven\n"].concat();
        let told: Vec<_> =
            entries(&[(StdStream::Stderr, &long)]).iter().map(|e| (e[9..10].to_owned(), e.len())).collect();
        assert_eq!(told.iter().map(|(priority, _)| &priority[..]).collect::<Vec<_>>(), ["2", "2", "2", "7"]);
        for (line, priority, message) in
            [("<0>a", '0', "a"), ("<8>a", '6', "<8>a"), ("<1", '6', "<1"), (" <1>a", '6', " <1>a"), ("<1>", '1', "")]
        {
            let expected = format!("PRIORITY={priority}\nCONTAINER_STREAM=stdout\nMESSAGE={message}\n");
            assert_eq!(entries(&[(StdStream::Stdout, format!("{line}\n").as_bytes())]), [expected]);
        }
    }

    #[test]
    fn a_skipped_begin_of_a_line_gives_its_priority_to_what_follows() {
        let (mut journal, mut batch) = (Encoder::journal(), Batch::default());
        journal.skip(StdStream::Stdout, &[b"<1>", &vec![b'x'; MAX_LINE][..]].concat());
        journal.append(Duration::ZERO, StdStream::Stdout, b"<2>\n", usize::MAX, &mut batch);
        assert!(batch.bytes.starts_with(b"PRIORITY=1\n") && batch.bytes.ends_with(b"MESSAGE=xxx<2>\n"));
    }

    #[test]
    fn shared_fields_name_the_container_and_cannot_be_forged_by_its_name() {
        let id = "0123456789abcdef";
        let unnamed = "SYSLOG_IDENTIFIER=0123456789ab\nCONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL=0123456789abcdef\n";
        assert_eq!(shared_fields(id, None), unnamed.as_bytes());
        assert_eq!(shared_fields(id, Some("")), unnamed.as_bytes());
        assert!(shared_fields("c", Some("web")).ends_with(b"CONTAINER_ID_FULL=c\nCONTAINER_NAME=web\n"));
        let forged = shared_fields("c", Some("a\nPRIORITY=0"));
        assert!(forged.ends_with(b"CONTAINER_NAME\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"));
        assert!(shared_fields("c", Some(&"ä".repeat(10_000))).len() < 2 * MAX_NAME + 100);
    }
}
