//! What holds for every form.

use super::*;

const FORMS: [fn() -> Encoder; 3] = [Encoder::cri, Encoder::json, Encoder::journal];

/// Lines of all sorts, one longer than a record holds, with characters and with bytes that are none.
fn sample() -> Vec<u8> {
    let mut text = b"one\n\n<4>two\r\n\xff\xfe\0 raw\n".to_vec();
    text.extend("x".repeat(line::MAX_LINE - 1).bytes());
    text.extend("😀€ä".repeat(3000).bytes());
    text.extend(b"\n\xe2\x82\nthe end \xe2\x82");
    text
}

fn encode<'a>(mut encoder: Encoder, parts: impl Iterator<Item = &'a [u8]>, limit: usize) -> Batch {
    let mut all = Batch::default();
    for mut part in parts {
        while !part.is_empty() {
            let mut batch = Batch::default();
            let used = encoder.append(Duration::ZERO, StdStream::Stderr, part, limit, &mut batch);
            part = &part[used..];
            let shift = all.bytes.len();
            all.bytes.extend(batch.bytes);
            all.records.extend(batch.records.iter().map(|record| Record { end: record.end + shift, ..*record }));
        }
    }
    encoder.finish(Duration::ZERO, &mut all);
    all
}

#[test]
fn records_do_not_depend_on_how_the_bytes_were_split() {
    let text = sample();
    for form in FORMS {
        let whole = encode(form(), iter::once(&text[..]), usize::MAX);
        for size in [1, 2, 3, 7, 4096, line::MAX_LINE, line::MAX_LINE + 1] {
            assert!(encode(form(), text.chunks(size), usize::MAX) == whole, "{:?}: chunks of {size}", form());
        }
        assert!(encode(form(), text.chunks(5000), 1) == whole, "{:?}: one record at a time", form());
    }
}

#[test]
fn every_byte_is_counted_once_whether_it_is_recorded_or_skipped() {
    let text = sample();
    for form in FORMS {
        assert_eq!(encode(form(), iter::once(&text[..]), usize::MAX).tally().bytes, text.len() as u64);
        let (mut encoder, mut batch, mut total) = (form(), Batch::default(), Tally::default());
        for (n, part) in text.chunks(1000).enumerate() {
            if n % 3 == 0 {
                total += encoder.skip(StdStream::Stdout, part);
            } else {
                encoder.append(Duration::ZERO, StdStream::Stdout, part, usize::MAX, &mut batch);
            }
        }
        total += encoder.skip_rest();
        assert_eq!((total + batch.tally()).bytes, text.len() as u64, "{:?}", form());
    }
}

#[test]
fn a_remark_carries_nothing_of_the_container() {
    for form in FORMS {
        let mut batch = Batch::default();
        form().remark(Duration::ZERO, StdStream::Stderr, b"[lost]", &mut batch);
        assert_eq!((batch.tally(), batch.records[0].partial), (Tally::default(), false));
        assert!(batch.bytes.windows(6).any(|bytes| bytes == b"[lost]"));
    }
}
