//! Words the whole daemon shares. Plain values: no clock, no descriptors, no tasks.

use std::fmt;

use bytes::Bytes;

/// The id of a container: chosen by the caller, used in the runtime's argv and in file names.
///
/// Holding one means it was checked: see [`ContainerId::parse`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(std::rc::Rc<str>);

impl ContainerId {
    /// The longest id taken, in bytes: an id becomes a file name, which Linux limits to 255 bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks the form of an id.
    ///
    /// The OCI runtimes take letters, digits, `_`, `+`, `-`, `.`; anything else here would be a path (`/`), an option of
    /// the runtime (leading `-`) or trouble in a log (control characters).
    ///
    /// # Errors
    /// One sentence that says what is wrong with the id.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() {
            return Err(InvalidId("the container id is empty"));
        }
        if text.len() > Self::MAX_LEN {
            return Err(InvalidId("the container id is longer than 255 bytes"));
        }
        if text.starts_with('-') {
            return Err(InvalidId("the container id starts with \"-\", so the runtime would take it for an option"));
        }
        if text == "." || text == ".." {
            return Err(InvalidId("the container id is a directory name"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.')) {
            return Err(InvalidId(
                "the container id has a character other than letters, digits, \"_\", \"+\", \"-\", \".\"",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(&'static str);

/// One of the two output streams of a process. A terminal has only [`StdStream::Stdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl StdStream {
    /// The name that log records carry.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The bytes of one read from a process's output. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where they were read.
    pub stream: StdStream,
    /// At least one byte.
    pub bytes: Bytes,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns (width).
    pub cols: u16,
    /// Rows (height).
    pub rows: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code.
    Exited(u8),
    /// This signal killed it.
    Signaled(u8),
    /// The kernel no longer knew (somebody else reaped it).
    Lost,
}

impl ExitStatus {
    /// The number written to exit files and answered to exec calls: the code, 128 + signal, or -1 when lost.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Signaled(signal) => 128 + i32::from(signal),
            Self::Lost => -1,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::Lost => f.write_str("exit status lost"),
        }
    }
}

/// How a streaming session ended, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An exec ended; a code of 0 is success. Attach sessions end with code 0 whatever the container returned.
    Exited(u8),
    /// It could not be run, or its status is not known: the text is shown to the user.
    Failed(String),
}

/// An error and its causes, joined by colons: errors here print only their own level.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace('\n', " ")
}

/// A text of at most `limit` bytes (and a few for the mark): its beginning, and above all its end, where a runtime says what
/// went wrong.
#[must_use]
pub fn trimmed(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let mut head = limit / 4;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - (limit - head);
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} […] {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end_and_never_splits_a_character() {
        let text = trimmed(format!("start {} end", "ä".repeat(10_000)), 4096);
        assert!(text.starts_with("start ä") && text.ends_with("ä end") && text.len() <= 4096 + 16);
        assert_eq!(trimmed("short".to_owned(), 5), "short");
    }

    #[test]
    fn ids_that_are_paths_options_or_control_characters_are_refused() {
        for bad in ["", "-a", "a/b", "..", ".", "a\0b", "a\nb", "a b", "ä", &"x".repeat(256)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "A-1_b.c+d", &"x".repeat(255)] {
            assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_signal_is_reported_as_128_plus_its_number() {
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
        assert_eq!(ExitStatus::Exited(42).code(), 42);
        assert_eq!(ExitStatus::Lost.code(), -1);
    }
}
