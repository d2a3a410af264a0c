//! Reading a CRI log while it is written, through rotation.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    CliError,
    output::{self, Reader},
    record::{Lines, Record},
};

const READ_SIZE: usize = 64 << 10;
/// Records are 16 KiB and a little; a line far beyond that comes from another kind of file.
const MAX_LINE: usize = 1 << 20;

/// What is done with each record.
type Take<'a> = dyn FnMut(&Record<'_>) -> Result<Reader, CliError> + 'a;

/// A reader of a log that remembers where it was.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    lines: Lines,
    /// Lines that were no records; the first is reported.
    pub(super) foreign: u64,
    timestamps: bool,
}

impl Follower {
    /// A log that is not there yet is waited for.
    pub(super) fn new(path: &Path, timestamps: bool) -> Self {
        Self { path: path.into(), file: None, lines: Lines::default(), foreign: 0, timestamps }
    }

    /// Prints the records that are in the log by now: stdout's to stdout, stderr's to stderr.
    ///
    /// The container's bytes are restored exactly: a partial record has no newline of its own.
    pub(super) fn print_available(&mut self) -> Result<Reader, CliError> {
        let timestamps = self.timestamps;
        self.read_available(&mut |record| print(record, timestamps))
    }

    fn read_available(&mut self, take: &mut Take<'_>) -> Result<Reader, CliError> {
        loop {
            if let Reader::Gone = self.read_file(take)? {
                return Ok(Reader::Gone);
            }
            if !self.next_file().map_err(|error| self.failed(&error))? {
                return Ok(Reader::There);
            }
        }
    }

    fn read_file(&mut self, take: &mut Take<'_>) -> Result<Reader, CliError> {
        let mut buffer = vec![0; READ_SIZE];
        while let Some(file) = &mut self.file {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(&error)),
            };
            self.lines.feed(&buffer[..read]);
            while let Some(range) = self.lines.next() {
                match Record::parse(self.lines.line(range)) {
                    Some(record) => {
                        if let Reader::Gone = take(&record)? {
                            return Ok(Reader::Gone);
                        }
                    }
                    None => self.foreign += 1,
                }
            }
            if self.lines.pending() > MAX_LINE {
                let what = format!("{} is not a CRI log", self.path.display());
                return Err(CliError::hint(what, "only logs of the containerRuntimeInterface driver can be shown"));
            }
        }
        Ok(Reader::There)
    }

    /// Turns to what is under the path now, once the open file is at its end. False when there is nothing new.
    ///
    /// A new file is under the path only after the writer's last write to the old one, so once the old one has been
    /// read to its end after that, nothing of it can be missed.
    fn next_file(&mut self) -> io::Result<bool> {
        let now = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            now => now?,
        };
        let Some(file) = &mut self.file else {
            self.file = Some(now);
            return Ok(true);
        };
        let (old, new) = (file.metadata()?, now.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            // The same file, shorter than what was read of it: somebody truncated it.
            if file.stream_position()? > new.len() {
                file.seek(SeekFrom::Start(0))?;
                self.lines.clear();
                return Ok(true);
            }
            return Ok(false);
        }
        // What was written between the last read and the rename is still to come from the old file.
        if file.stream_position()? < old.len() {
            return Ok(true);
        }
        self.file = Some(now);
        self.lines.clear();
        Ok(true)
    }

    /// Whether the log was there at any time.
    pub(super) fn found(&self) -> bool {
        self.file.is_some()
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::new(format!("cannot read the log {}: {error}", self.path.display()))
    }
}

fn print(record: &Record<'_>, timestamps: bool) -> Result<Reader, CliError> {
    let mut line = Vec::with_capacity(record.timestamp.len() + record.text.len() + 2);
    if timestamps {
        line.extend_from_slice(record.timestamp);
        line.push(b' ');
    }
    line.extend_from_slice(record.text);
    // With timestamps every record is a line: else the stamp of the next would stand in the middle of one.
    if timestamps || !record.partial {
        line.push(b'\n');
    }
    output::write(record.stream, &line)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    /// What a follower takes from its log now, as lines.
    fn available(follower: &mut Follower) -> Vec<String> {
        let mut texts = Vec::new();
        let mut take = |record: &Record<'_>| {
            texts.push(String::from_utf8(record.text.to_vec()).unwrap());
            Ok(Reader::There)
        };
        follower.read_available(&mut take).unwrap();
        texts
    }

    #[test]
    fn a_log_is_followed_from_before_it_is_there_through_rotation_and_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut follower = Follower::new(&path, false);
        assert!(available(&mut follower).is_empty());
        assert!(!follower.found());
        let mut log = File::create(&path).unwrap();
        log.write_all(b"t stdout F one\nt stdout F tw").unwrap();
        assert_eq!(available(&mut follower), ["one"]);
        log.write_all(b"o\n").unwrap();
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        fs::write(&path, "t stderr F three\nno record\n").unwrap();
        assert_eq!(available(&mut follower), ["two", "three"]);
        assert_eq!(follower.foreign, 1);
        fs::write(&path, "t stdout F 4\n").unwrap();
        assert_eq!(available(&mut follower), ["4"]);
        assert!(available(&mut follower).is_empty());
    }
}
