use std::io::{self, Write};

use super::CliError;
use crate::model::StdStream;

/// Whether the reader of stdout or stderr is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    /// It closed the pipe, as `head` does: reason to stop, not to complain.
    Gone,
}

/// Writes all bytes to the caller's stdout or stderr, at once.
pub(super) fn write(stream: StdStream, bytes: &[u8]) -> Result<Reader, CliError> {
    let done = match stream {
        StdStream::Stdout => write_to(&mut io::stdout().lock(), bytes),
        StdStream::Stderr => write_to(&mut io::stderr().lock(), bytes),
    };
    match done {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(CliError::new(format!("cannot write to {}: {error}", stream.name()))),
    }
}

/// A remark for the user that is no reason to stop.
pub(super) fn note(text: impl std::fmt::Display) {
    // Where stderr is gone there is nobody to tell.
    let _ = write(StdStream::Stderr, format!("holdfastctl: {text}\n").as_bytes());
}

fn write_to(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
