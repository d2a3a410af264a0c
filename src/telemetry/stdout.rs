//! The daemon's own log as lines of text: `2026-01-02T03:04:05.678901Z  INFO created a container container=web pid=42`.

use std::{
    fmt::Write as _,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime as _, SystemTime},
};

use super::record::Record;

/// What a pipe that has room takes whole, without waiting (`PIPE_BUF`, pipe(7)): longer lines are cut.
const MAX_LINE: usize = 4096;

/// Writes lines to a descriptor that may belong to a reader who does not read. Never waits for it.
#[derive(Debug)]
pub(crate) struct Lines(OwnedFd);

impl Lines {
    /// On a copy of standard output, which therefore stays open for as long as the daemon lives.
    pub(crate) fn stdout() -> io::Result<Self> {
        Ok(Self(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// Writes one line; false when there is no room now or no reader any more.
    pub(crate) fn write(&self, record: &Record) -> bool {
        let line = line(&now(), record);
        self.has_room() && nix::unistd::write(&self.0, line.as_bytes()) == Ok(line.len())
    }

    /// The descriptor may be shared with the starter, so it cannot be made non-blocking: that would change it there too.
    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
            && fds[0].revents().is_some_and(|found| found.contains(PollFlags::POLLOUT))
    }
}

fn now() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn line(time: &str, record: &Record) -> String {
    let mut line = format!("{time} {:>5} ", record.level.as_str());
    push_escaped(&mut line, &record.message);
    for (name, value) in record.fields.iter() {
        let _ = write!(line, " {name}=");
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=') {
            let _ = write!(line, "{value:?}");
        } else {
            line.push_str(value);
        }
    }
    line.truncate(line.floor_char_boundary(MAX_LINE - 1));
    line.push('\n');
    line
}

/// An event is one line whatever a peer has put into it.
fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tracing::Level;

    use super::*;
    use crate::telemetry::record::Fields;

    fn record(message: &str, fields: &[(&'static str, &str)]) -> Record {
        let mut recorded = Fields::default();
        fields.iter().for_each(|(name, value)| recorded.set(name, (*value).to_owned()));
        Record { level: Level::INFO, message: message.to_owned(), fields: recorded }
    }

    #[test]
    fn an_event_is_one_line_with_quoted_values_where_they_need_it() {
        let fields = [("id", "web"), ("empty", ""), ("error", "no such \"file\"\n"), ("pid", "42")];
        let text = line("T", &record("two\nlines", &fields));
        assert_eq!(text, "T  INFO two\\nlines id=web empty=\"\" error=\"no such \\\"file\\\"\\n\" pid=42\n");
    }

    #[test]
    fn a_line_is_cut_at_what_a_pipe_takes_at_once() {
        let text = line("T", &record(&"ä".repeat(MAX_LINE), &[]));
        assert!(text.len() <= MAX_LINE && text.len() > MAX_LINE - 3 && text.ends_with("ä\n"));
    }

    #[test]
    fn the_time_is_rfc_3339_in_utc() {
        let time = now();
        assert!(time.len() == "2026-01-02T03:04:05.678901Z".len() && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_reader_who_does_not_read_costs_lines_but_no_time() {
        let (read, write) = crate::sys::fd::pipe_cloexec().unwrap();
        let lines = Lines(write);
        let long = record(&"x".repeat(MAX_LINE), &[]);
        let written = (0..1000).take_while(|_| lines.write(&long)).count();
        assert!((1..1000).contains(&written), "{written} lines fitted");
        let mut read = std::fs::File::from(read);
        let mut text = vec![0; written * MAX_LINE];
        read.read_exact(&mut text).unwrap();
        assert!(text.chunks(MAX_LINE).all(|line| line.ends_with(b"x\n")), "lines are whole");
        assert!(lines.write(&long), "there is room again");
        drop(read);
        assert!(!lines.write(&long), "the reader is gone");
    }
}
