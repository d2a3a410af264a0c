//! The daemon's own log in the systemd journal, by its native protocol: one datagram per event.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use tracing::Level;

use super::record::Record;
use crate::format::journal::push_field;

const IDENTIFIER: &str = "holdfast";

/// Sends events as datagrams. Never waits for journald.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    /// Not connected to: journald may be restarted, which makes a new socket at the same path.
    path: PathBuf,
}

impl Journal {
    /// Fails when nothing listens at the path.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // An empty datagram is ignored by journald, but tells whether it is there. One that is busy is there.
        match socket.send_to(b"", path) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Self { socket, path: path.to_owned() }),
        }
    }

    /// Sends one event; false when journald is gone or does not keep up.
    pub(crate) fn write(&self, record: &Record) -> bool {
        self.socket.send_to(&datagram(record), &self.path).is_ok()
    }
}

fn datagram(record: &Record) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(256);
    push_field(&mut datagram, "PRIORITY", priority(record.level).as_bytes());
    push_field(&mut datagram, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
    push_field(&mut datagram, "MESSAGE", record.message.as_bytes());
    for (name, value) in record.fields.iter() {
        push_field(&mut datagram, &format!("HOLDFAST_{}", variable(name)), value.as_bytes());
    }
    datagram
}

/// syslog(3): err, warning, info, debug.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// Journal names are capitals, digits and underscores.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::record::Fields;

    /// A journald of our own: its socket and the sink that sends there.
    pub(in crate::telemetry) fn journald() -> (tempfile::TempDir, UnixDatagram, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(receive(&server), "", "the probe");
        (dir, server, journal)
    }

    pub(in crate::telemetry) fn receive(server: &UnixDatagram) -> String {
        let mut buffer = vec![0; 65536];
        let length = server.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn record(level: Level, message: &str) -> Record {
        let mut fields = Fields::default();
        fields.set("error.kind", "a=b".to_owned());
        Record { level, message: message.to_owned(), fields }
    }

    #[test]
    fn an_event_carries_its_priority_our_name_and_its_fields() {
        let (_dir, server, journal) = journald();
        assert!(journal.write(&record(Level::WARN, "disk full")));
        let text = "PRIORITY=4\nSYSLOG_IDENTIFIER=holdfast\nMESSAGE=disk full\nHOLDFAST_ERROR_KIND=a=b\n";
        assert_eq!(receive(&server), text);
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), ["3", "4", "6", "7", "7"]);
    }

    #[test]
    fn a_value_with_a_line_end_is_sent_with_its_length() {
        let sent = datagram(&record(Level::INFO, "a\nPRIORITY=0"));
        let form = b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nHOLDFAST_";
        assert!(sent.windows(form.len()).any(|window| window == form), "{:?}", String::from_utf8_lossy(&sent));
    }

    #[test]
    fn a_journal_that_is_not_there_is_reported_and_one_that_comes_back_is_used() {
        let (dir, server, journal) = journald();
        let path = dir.path().join("socket");
        drop(server);
        assert!(!journal.write(&record(Level::INFO, "lost")));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Journal::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let server = UnixDatagram::bind(&path).unwrap();
        assert!(journal.write(&record(Level::INFO, "back")));
        assert!(receive(&server).contains("MESSAGE=back\n"));
    }

    #[test]
    fn a_journal_that_does_not_keep_up_costs_events_but_no_time() {
        let (_dir, _server, journal) = journald();
        assert!((0..10_000).any(|_| !journal.write(&record(Level::INFO, "x"))));
    }
}
