//! What a container writes, on its way into a log.

use std::time::Duration;

use holdfast::format::line::{LineSplitter, MAX_LINE};
use holdfast::format::{Batch, Encoder, Record, Tally};
use holdfast::model::StdStream;
use serde_json::Value;

/// Any stream in any cuts through the line splitter: pieces and line feeds together are the input.
///
/// The first byte is the size of the cuts, the second how often each byte behind them is repeated: lines longer than one
/// piece come up without huge inputs.
pub(crate) fn line_splitter(data: &[u8]) {
    let [cut, repeat, data @ ..] = data else { return };
    let stream: Vec<u8> = data.iter().flat_map(|byte| std::iter::repeat_n(*byte, usize::from(*repeat) + 1)).collect();
    let (mut splitter, mut joined) = (LineSplitter::default(), Vec::new());
    for part in stream.chunks(usize::from(*cut) * 64 + 1) {
        let used = splitter.feed(part, |piece| {
            assert!(piece.bytes.len() <= MAX_LINE && !piece.bytes.contains(&b'\n'));
            assert!(piece.ends_line || piece.bytes.len() == MAX_LINE);
            joined.extend_from_slice(piece.bytes);
            joined.extend(piece.ends_line.then_some(b'\n'));
            true
        });
        assert_eq!(used, part.len());
    }
    let rest = splitter.finish().unwrap_or_default();
    assert!(rest.len() <= MAX_LINE);
    joined.extend(rest);
    assert_eq!(joined, stream);
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Cri,
    Json,
    Journal,
}

/// Any output through each encoder: what its readers take out of the records is the output, every byte is counted once,
/// and a batch ends with the record that reaches its limit. The first byte is the form; then come writes, each two bytes
/// (stream and length; how often each byte is repeated) and as many bytes.
pub(crate) fn records(data: &[u8]) {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let form = [Form::Cri, Form::Json, Form::Journal][usize::from(choice) % 3];
    let limit = if choice & 0x80 == 0 { usize::MAX } else { 1 + usize::from(choice & 0x7f) * 64 };
    let mut encoder = match form {
        Form::Cri => Encoder::cri(),
        Form::Json => Encoder::json(),
        Form::Journal => Encoder::journal(),
    };
    let (mut batch, mut wrote, mut counted) = (Batch::default(), [Vec::new(), Vec::new()], Tally::default());
    let mut read = [Vec::new(), Vec::new()];
    while let [head, repeat, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(usize::from(head & 0x7f).min(tail.len()));
        rest = tail;
        let stream = if head & 0x80 == 0 { StdStream::Stdout } else { StdStream::Stderr };
        let repeated = bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, usize::from(*repeat) + 1));
        let bytes: Vec<u8> = repeated.collect();
        wrote[stream as usize].extend_from_slice(&bytes);
        let mut left = &bytes[..];
        while !left.is_empty() {
            let used = encoder.append(Duration::from_secs(wrote[0].len() as u64), stream, left, limit, &mut batch);
            // None of them is used where the record of a full piece before them is all that fits.
            assert!(used > 0 || !batch.is_empty(), "an empty batch takes something");
            left = &left[used..];
            take_out(form, limit, &mut batch, &mut counted, &mut read);
        }
    }
    if choice & 0x40 == 0 {
        encoder.finish(Duration::ZERO, &mut batch);
        take_out(form, usize::MAX, &mut batch, &mut counted, &mut read);
    } else {
        let dropped = encoder.skip_rest();
        assert!(dropped.lines <= 2 && dropped.bytes <= 2 * (MAX_LINE as u64 + 3));
        counted += dropped;
    }
    assert_eq!(counted.bytes, wrote.iter().map(Vec::len).sum::<usize>() as u64);
    for (wrote, read) in wrote.iter().zip(&read) {
        let expected = match form {
            Form::Cri => wrote.clone(),
            Form::Json => String::from_utf8_lossy(wrote).into_owned().into_bytes(),
            Form::Journal => without_priorities(wrote),
        };
        // What was dropped at the end is missing there.
        assert!(expected.starts_with(read), "what is read is what was written");
        assert!(choice & 0x40 != 0 || expected.len() == read.len(), "{} of {}", read.len(), expected.len());
    }
}

/// Reads the records of a batch as the readers of such a log do, and empties it.
fn take_out(form: Form, limit: usize, batch: &mut Batch, counted: &mut Tally, read: &mut [Vec<u8>; 2]) {
    assert_eq!(batch.records.last().map_or(0, |record| record.end), batch.bytes.len());
    for (start, record) in batch.spans() {
        assert!(start < limit && start < record.end, "only the last record may pass the limit");
        let bytes = &batch.bytes[start..record.end];
        // Each character of a message is at most six in JSON.
        assert!(bytes.len() < 256 + 6 * (MAX_LINE + 3));
        let (text, partial) = match form {
            Form::Cri => cri(bytes, record),
            Form::Json => json(bytes, record),
            Form::Journal => journal(bytes, record),
        };
        assert_eq!(partial, record.partial);
        let read = &mut read[record.stream as usize];
        read.extend_from_slice(&text);
        read.extend((!partial).then_some(b'\n'));
    }
    *counted += batch.tally();
    batch.clear();
}

fn cri(bytes: &[u8], record: &Record) -> (Vec<u8>, bool) {
    let (head, text) = bytes.split_at(40);
    assert_eq!(
        (head[29], &head[30..38], text.last()),
        (b'Z', format!(" {} ", record.stream.name()).as_bytes(), Some(&b'\n'))
    );
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
    (text[..text.len() - 1].to_vec(), &head[38..] == b"P ")
}

fn json(bytes: &[u8], record: &Record) -> (Vec<u8>, bool) {
    assert_eq!(bytes.iter().position(|byte| *byte == b'\n'), Some(bytes.len() - 1));
    let object: Value = serde_json::from_slice(bytes).expect("each record is JSON");
    assert_eq!(object["pipe"], record.stream.name());
    let text = object["message"].as_str().expect("the message is a text");
    (text.as_bytes().to_vec(), object.get("partial").is_some())
}

/// By the length of a field where it has one.
fn journal(mut bytes: &[u8], record: &Record) -> (Vec<u8>, bool) {
    let (mut text, mut partial) = (None, false);
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("fields end with a line feed");
        let equals = bytes[..end].iter().position(|byte| *byte == b'=').expect("no piece has a line feed in it");
        let (name, value) = (&bytes[..equals], &bytes[equals + 1..end]);
        match name {
            b"PRIORITY" => assert!(matches!(value, [b'0'..=b'7'])),
            b"CONTAINER_STREAM" => assert_eq!(value, record.stream.name().as_bytes()),
            b"CONTAINER_PARTIAL_MESSAGE" => partial = true,
            b"MESSAGE" => assert!(text.replace(value.to_vec()).is_none()),
            other => panic!("no field of ours: {other:?}"),
        }
        bytes = &bytes[end + 1..];
    }
    (text.expect("every entry has a message"), partial)
}

/// The journal's priority of a line is no part of its message.
fn without_priorities(wrote: &[u8]) -> Vec<u8> {
    let lines = wrote.split_inclusive(|byte| *byte == b'\n');
    let strip = |line: &[u8]| match line {
        [b'<', b'0'..=b'7', b'>', rest @ ..] => rest.to_vec(),
        line => line.to_vec(),
    };
    lines.flat_map(strip).collect()
}
