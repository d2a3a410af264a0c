use holdfast::model::StdStream;
use serde_json::Value;

use crate::support::parse_log;

/// What a log tells to be missing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) bytes: u64,
    pub(super) lines: u64,
}

impl std::ops::Add for Lost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, lines: self.lines + other.lines }
    }
}

/// A record of a log, in whatever form it has.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) stream: StdStream,
    pub(super) partial: bool,
    pub(super) text: String,
}

impl Entry {
    /// What is told to be missing here, and why; none if the container wrote this.
    pub(super) fn lost(&self) -> Option<(Lost, &str)> {
        let text = self.text.strip_prefix("[holdfast: lost ")?.strip_suffix(']')?;
        let (bytes, rest) = text.split_once(" bytes in ")?;
        let (lines, cause) = rest.split_once(" lines: ")?;
        assert_eq!((self.stream, self.partial), (StdStream::Stderr, false), "{self:?}");
        Some((Lost { bytes: bytes.parse().ok()?, lines: lines.parse().ok()? }, cause))
    }
}

/// The records of a log in either form; every one is whole.
pub(super) fn entries(log: &[u8]) -> Vec<Entry> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("these containers write text");
    if !log.starts_with(b"{") {
        let records = parse_log(log).into_iter();
        return records.map(|r| Entry { stream: r.stream, partial: r.partial, text: text(r.text) }).collect();
    }
    assert!(log.ends_with(b"\n"), "the log ends within an object");
    let parse = |line: &[u8]| {
        let object: Value = serde_json::from_slice(line).expect("an object on each line");
        let stream = if object["pipe"] == "stdout" { StdStream::Stdout } else { StdStream::Stderr };
        let text = object["message"].as_str().expect("text").to_owned();
        Entry { stream, partial: object["partial"] == true, text }
    };
    log[..log.len() - 1].split(|byte| *byte == b'\n').map(parse).collect()
}

/// What the numbered lines from the first to before the second number are.
pub(super) fn lines_between(from: u64, to: u64) -> Lost {
    (from..to).fold(Lost::default(), |sum, number| sum + Lost { bytes: number.to_string().len() as u64 + 1, lines: 1 })
}

/// What a log of numbered lines says.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Of each record that tells a gap, in their order.
    pub(super) told: Vec<Lost>,
    /// What is missing at the end, and not told.
    pub(super) untold: Lost,
}

impl Account {
    /// Everything that is missing.
    pub(super) fn lost(&self) -> Lost {
        self.told.iter().fold(self.untold, |sum, lost| sum + *lost)
    }
}

/// Goes through a log of a container that wrote the numbers from 1 to `last`: each is there once and in order, or within a
/// gap that is told exactly, at its place, with this cause.
pub(super) fn settle(log: &[u8], last: u64, cause: &str) -> Account {
    let (mut account, mut next, mut pending) = (Account::default(), 1, None::<Lost>);
    for entry in entries(log) {
        if let Some((lost, why)) = entry.lost() {
            // One gap may follow the other: the record that tells the first found room where the next line did not.
            pending = Some(pending.unwrap_or_default() + lost);
            assert_eq!(why, cause);
            account.told.push(lost);
            continue;
        }
        let number: u64 = entry.text.parse().unwrap_or_else(|_| panic!("not a number: {entry:?}"));
        assert!(!entry.partial && number >= next && number <= last, "{entry:?} where {next} of {last} is to come");
        assert_eq!(pending.take().unwrap_or_default(), lines_between(next, number), "between {next} and {number}");
        next = number + 1;
    }
    let missing = lines_between(next, last + 1);
    match pending {
        Some(told) => assert_eq!(told, missing, "between {next} and the end"),
        None => account.untold = missing,
    }
    account
}
