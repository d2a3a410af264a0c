//! A log file: blocking calls only, made from jobs of the pool.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Write as _},
    num::NonZeroU64,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::{
    format::{Batch, Record},
    sys::SysError,
};

/// An open log. Its writes are counted exactly; nothing is buffered here.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes in the file; of a FIFO or a device, bytes written since it was opened.
    size: u64,
    /// The size that a record may not pass. Only for regular files: a rotation would replace a FIFO or a device.
    max_size: Option<NonZeroU64>,
    /// The file was not there before.
    made: Option<FileId>,
}

/// What stays the same of a file when its name changes: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    fn of(status: &Metadata) -> Self {
        Self(status.dev(), status.ino())
    }

    /// Removes the file if nobody has written to it, or put another one in its place.
    pub(super) fn remove_empty(self, path: &Path) -> io::Result<()> {
        let status = fs::symlink_metadata(path)?;
        if status.len() == 0 && Self::of(&status) == self { fs::remove_file(path) } else { Ok(()) }
    }
}

/// What became of a batch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// How many of its bytes are in the log.
    pub(super) bytes: usize,
    /// Why the others are not, for people.
    pub(super) error: Option<&'static str>,
    /// Why the size limit could not be kept, if so; the records went into the old file.
    pub(super) rotation_error: Option<&'static str>,
    /// How many records were written beyond the limit for that reason.
    pub(super) failed_rotations: u64,
}

impl LogFile {
    /// Opens a log for appending, or makes it with mode 0600. Nothing is ever truncated.
    ///
    /// Never waits for a peer: a FIFO without a reader is opened for both ways, so that its pipe takes what fits.
    pub(super) fn open(path: &Path, max_size: Option<NonZeroU64>) -> Result<Self, SysError> {
        let failed = |error: io::Error| SysError::io("open log", path, &error);
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let (file, new) = match options.create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let file = match options.create_new(false).create(true).open(path) {
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
                    other => other,
                };
                (file.map_err(failed)?, false)
            }
            other => (other.map_err(failed)?, true),
        };
        let status = file.metadata().map_err(failed)?;
        let max_size = max_size.filter(|_| status.is_file());
        let made = new.then(|| FileId::of(&status));
        Ok(Self { path: path.to_owned(), file, size: status.len(), max_size, made })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, if opening it made it.
    pub(super) fn made(&self) -> Option<FileId> {
        self.made
    }

    /// Writes records until the first error. A file never gets a record that would pass the size limit, except alone.
    ///
    /// `torn`: the first record is the rest of one whose begin is in this file, so it stays in this file.
    pub(super) fn write_batch(&mut self, batch: &Batch, torn: bool) -> Written {
        let mut written = Written::default();
        let mut records = &batch.records[..];
        while !records.is_empty() {
            let start = written.bytes;
            let mut fitting = self.count_fitting(records, start);
            if fitting == 0 && self.size > 0 && !(torn && start == 0) {
                match self.rotate() {
                    Ok(()) => fitting = self.count_fitting(records, start),
                    // A log that is too long is better than one with a hole; the next record tries again.
                    Err(error) => {
                        written.failed_rotations += 1;
                        written.rotation_error = Some(reason(&error));
                    }
                }
            }
            let (now, later) = records.split_at(fitting.max(1));
            let end = now.last().map_or(start, |record| record.end);
            written.bytes += self.write(&batch.bytes[start..end], &mut written.error);
            if written.error.is_some() {
                break;
            }
            records = later;
        }
        written
    }

    /// How many of these records, the first of which begins at `start`, can be added within the limit.
    fn count_fitting(&self, records: &[Record], start: usize) -> usize {
        let Some(max) = self.max_size else { return records.len() };
        records.partition_point(|record| self.size + (record.end - start) as u64 <= max.get())
    }

    /// Returns how many bytes are in the file: `write_all` could not tell.
    fn write(&mut self, bytes: &[u8], failure: &mut Option<&'static str>) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write(&bytes[done..]) {
                Ok(0) => {
                    *failure = Some(Errno::EIO.desc());
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    *failure = Some(reason(&error));
                    break;
                }
            }
        }
        self.size += done as u64;
        done
    }

    /// Goes on in a new file under the same path. Who has the old one open still reads all of it; there is no backup.
    fn rotate(&mut self) -> io::Result<()> {
        // Our own descriptor number makes the name unique among the logs of this process.
        let name = format!(".holdfast-{}-{}", std::process::id(), self.file.as_raw_fd());
        let beside = self.path.with_file_name(name);
        let file = match create_new(&beside) {
            // A process that died between the two calls has left it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&beside)?;
                create_new(&beside)?
            }
            other => other?,
        };
        if let Err(error) = fs::rename(&beside, &self.path) {
            fs::remove_file(&beside).ok();
            return Err(error);
        }
        self.file = file;
        self.size = 0;
        Ok(())
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

/// Why a call failed, for people.
fn reason(error: &io::Error) -> &'static str {
    match Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) {
        Errno::EAGAIN => "the reader does not keep up",
        other => other.desc(),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;
    use crate::{format::Encoder, model::StdStream};

    /// A record of an empty line.
    const EMPTY: usize = 41;

    fn batch(text: &[u8]) -> Batch {
        let mut batch = Batch::default();
        Encoder::cri().append(Duration::ZERO, StdStream::Stdout, text, usize::MAX, &mut batch);
        batch
    }

    fn open(dir: &TempDir, max_size: u64) -> (PathBuf, LogFile) {
        let path = dir.path().join("log");
        let file = LogFile::open(&path, NonZeroU64::new(max_size)).unwrap();
        (path, file)
    }

    fn all_of(batch: &Batch) -> Written {
        Written { bytes: batch.bytes.len(), ..Written::default() }
    }

    #[test]
    fn a_log_is_made_for_its_owner_alone_and_appended_to_if_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(b"one\n");
        for _ in 0..2 {
            let (_, mut log) = open(&dir, 0);
            assert_eq!(log.write_batch(&batch, false), all_of(&batch));
        }
        let path = dir.path().join("log");
        assert_eq!(fs::read(&path).unwrap(), batch.bytes.repeat(2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_was_made_in_vain_is_removed_unless_somebody_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = open(&dir, 0);
        let made = log.made().unwrap();
        assert_eq!(open(&dir, 0).1.made(), None, "it was there");
        fs::write(&path, "x").unwrap();
        made.remove_empty(&path).unwrap();
        assert!(path.exists(), "it is in use");
        let other = dir.path().join("other");
        fs::rename(&path, &other).unwrap();
        fs::write(&path, "").unwrap();
        made.remove_empty(&path).unwrap();
        assert!(path.exists(), "it is another file");
        fs::rename(&other, &path).unwrap();
        fs::write(&path, "").unwrap();
        made.remove_empty(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_error_says_what_was_opened_and_why_it_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent/log");
        let error = LogFile::open(&path, None).unwrap_err().to_string();
        assert_eq!(error, format!("open log {}: No such file or directory", path.display()));
        assert_eq!(LogFile::open(dir.path(), None).unwrap_err().errno(), Errno::EISDIR);
    }

    #[test]
    fn no_file_passes_the_limit_and_all_files_together_have_every_record() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut log) = open(&dir, 3 * EMPTY as u64);
        let (mut files, mut input) = (vec![], vec![]);
        for n in 0..40 {
            // A link made before each write keeps every file that a rotation replaces.
            let link = dir.path().join(format!("link-{n}"));
            fs::hard_link(&path, &link).unwrap();
            files.push(link);
            let batch = batch(&b"\n".repeat(1 + n % 2));
            assert_eq!(log.write_batch(&batch, false), all_of(&batch));
            input.extend(batch.bytes);
        }
        files.push(path);
        let mut contents: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let inode = |file: &PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap());
        let inodes: Vec<_> = files.iter().map(inode).collect();
        for at in (1..files.len()).rev() {
            if inodes[at] == inodes[at - 1] {
                contents.remove(at);
            }
        }
        assert!(contents[..contents.len() - 1].iter().all(|file| (2..=3).contains(&(file.len() / EMPTY))));
        assert_eq!(contents.concat(), input);
        assert!(fs::read_dir(dir.path()).unwrap().count() == files.len(), "nothing is left beside the log");
    }

    #[test]
    fn a_record_larger_than_the_limit_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut log) = open(&dir, 100);
        let large = [vec![b'x'; 200], b"\n".to_vec()].concat();
        for (text, len) in [(&b"\n"[..], EMPTY), (&large, 200 + EMPTY), (b"\n", EMPTY), (b"\n", 2 * EMPTY)] {
            let batch = batch(text);
            assert_eq!(log.write_batch(&batch, false), all_of(&batch));
            assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
        }
        assert_eq!(log.write_batch(&batch(&[large.clone(), large].concat()), false).failed_rotations, 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), 200 + EMPTY as u64);
    }

    #[test]
    fn the_rest_of_a_torn_record_stays_in_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut log) = open(&dir, EMPTY as u64);
        log.write_batch(&batch(b"\n"), false);
        let old = dir.path().join("old");
        fs::hard_link(&path, &old).unwrap();
        log.write_batch(&batch(b"\n\n"), true);
        assert_eq!(fs::metadata(old).unwrap().len(), 2 * EMPTY as u64);
        assert_eq!(fs::metadata(path).unwrap().len(), EMPTY as u64);
    }

    #[test]
    fn without_its_directory_a_log_goes_on_in_the_old_file_and_tries_the_limit_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut log) = open(&dir, 2 * EMPTY as u64);
        let link = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        fs::hard_link(&path, link.path().join("old")).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        let written = log.write_batch(&batch(&b"\n".repeat(5)), false);
        assert_eq!((written.bytes, written.error), (5 * EMPTY, None));
        assert_eq!((written.failed_rotations, written.rotation_error), (3, Some(Errno::ENOENT.desc())));
        assert_eq!(fs::metadata(link.path().join("old")).unwrap().len(), 5 * EMPTY as u64);
        fs::create_dir(dir.path()).unwrap();
        assert_eq!(log.write_batch(&batch(b"\n"), false).failed_rotations, 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), EMPTY as u64);
    }

    #[test]
    fn a_full_device_takes_nothing_and_is_never_replaced() {
        let mut log = LogFile::open(Path::new("/dev/full"), NonZeroU64::new(1)).unwrap();
        let written = log.write_batch(&batch(b"one\ntwo\n"), false);
        assert_eq!(written, Written { error: Some(Errno::ENOSPC.desc()), ..Written::default() });
        assert!(!fs::metadata("/dev/full").unwrap().is_file());
    }

    #[test]
    fn a_fifo_without_a_reader_takes_what_its_pipe_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut log = LogFile::open(&path, None).unwrap();
        let written = log.write_batch(&batch(&b"0123456789\n".repeat(10_000)), false);
        assert_eq!(written.error, Some("the reader does not keep up"));
        assert!(written.bytes >= 4096, "{written:?}");
    }
}
