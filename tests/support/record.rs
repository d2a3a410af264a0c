use holdfast::model::StdStream;

/// One record of a CRI log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) timestamp: String,
    pub(crate) stream: StdStream,
    pub(crate) partial: bool,
    pub(crate) text: Vec<u8>,
}

/// The longest text of a record.
const MAX_TEXT: usize = 16 << 10;

/// Takes a log apart; panics where a byte is not as promised: UTC with 9 digits and never decreasing, `F` or `P`, texts
/// of at most 16 KiB, a newline at the end.
pub(crate) fn parse_log(log: &[u8]) -> Vec<Record> {
    assert!(log.is_empty() || log.ends_with(b"\n"), "the log ends within a record");
    let mut records: Vec<Record> = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let record = parse(&line[..line.len() - 1]);
        if let Some(before) = records.last() {
            assert!(before.timestamp <= record.timestamp, "time went back: {before:?}, {record:?}");
        }
        records.push(record);
    }
    records
}

fn parse(line: &[u8]) -> Record {
    let shown = String::from_utf8_lossy(line);
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut field = || fields.next().unwrap_or_else(|| panic!("too few fields: {shown:?}"));
    let timestamp = field();
    let pattern = b"0000-00-00T00:00:00.000000000Z";
    let fits = |(is, like): (&u8, &u8)| if *like == b'0' { is.is_ascii_digit() } else { is == like };
    assert!(timestamp.len() == pattern.len() && timestamp.iter().zip(pattern).all(fits), "bad time: {shown:?}");
    let stream = match field() {
        b"stdout" => StdStream::Stdout,
        b"stderr" => StdStream::Stderr,
        _ => panic!("bad stream: {shown:?}"),
    };
    let partial = match field() {
        b"F" => false,
        b"P" => true,
        _ => panic!("bad tag: {shown:?}"),
    };
    let text = field().to_vec();
    assert!(text.len() <= MAX_TEXT, "a record of {} bytes", text.len());
    Record { timestamp: String::from_utf8_lossy(timestamp).into_owned(), stream, partial, text }
}

/// The bytes that a process wrote to a stream, restored from its records.
pub(crate) fn text_of(records: &[Record], stream: StdStream) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        text.extend_from_slice(&record.text);
        if !record.partial {
            text.push(b'\n');
        }
    }
    text
}
