//! The systemd journal as a log: a datagram for each record, and never a wait on the one thread.

use std::{io::IoSlice, os::fd::AsFd as _, path::PathBuf};

use nix::errno::Errno;

use crate::{
    format::Batch,
    io::fd::AsyncFile,
    sys::{SysError, datagram},
};

use super::file::Written;

/// A socket that is always ready gives others a turn after so many entries.
const YIELD_AFTER: usize = 64;

/// A way to journald, which need not be there.
#[derive(Debug)]
pub(super) struct JournalSocket {
    socket: AsyncFile,
    path: PathBuf,
    /// What every entry has.
    shared_fields: Vec<u8>,
    connected: bool,
}

impl JournalSocket {
    /// Whether the journal is there shows with the first entry.
    pub(super) fn new(path: PathBuf, shared_fields: Vec<u8>) -> Result<Self, SysError> {
        let socket = AsyncFile::datagram_sender(datagram::unbound()?)?;
        Ok(Self { socket, path, shared_fields, connected: false })
    }

    /// Sends records until the first error, each as one entry. Waits while the journal has no room.
    pub(super) async fn send(&mut self, batch: &Batch) -> Written {
        let mut written = Written::default();
        for (index, (start, record)) in batch.spans().enumerate() {
            if let Err(error) = self.send_entry(&batch.bytes[start..record.end]).await {
                written.error = Some(reason(error));
                break;
            }
            written.bytes = record.end;
            if index % YIELD_AFTER == YIELD_AFTER - 1 {
                tokio::task::yield_now().await;
            }
        }
        written
    }

    /// An entry for a journal that was restarted since the last one goes to the new one.
    async fn send_entry(&mut self, fields: &[u8]) -> Result<(), Errno> {
        if self.connected {
            match self.send_to_peer(fields).await {
                Err(error) if is_gone(error) => self.connected = false,
                done => return done,
            }
        }
        datagram::connect_to(&self.socket, &self.path)?;
        self.connected = true;
        self.send_to_peer(fields).await
    }

    async fn send_to_peer(&self, fields: &[u8]) -> Result<(), Errno> {
        let parts = [&self.shared_fields[..], fields];
        let sent = self.socket.when_writable(|fd| datagram::send(fd, &parts.map(IoSlice::new))).await;
        match sent.map_err(errno) {
            // Too large for the socket's buffer: journald takes the entry as a file as well.
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let file = datagram::sealed_file("journal-entry", &parts)?;
                self.socket.when_writable(|fd| datagram::send_fd(fd, file.as_fd())).await.map_err(errno)
            }
            done => done,
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTCONN)
}

/// Why an entry could not be sent, for people.
fn reason(error: Errno) -> &'static str {
    if is_gone(error) { "the journal is not there" } else { error.desc() }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _},
        os::unix::net::UnixDatagram,
        time::Duration,
    };

    use nix::sys::socket::{setsockopt, sockopt};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        format::{Encoder, line::MAX_LINE},
        model::StdStream,
        sys::socket::receive_fd,
    };

    fn batch(text: &[u8]) -> Batch {
        let mut batch = Batch::default();
        Encoder::journal().append(Duration::ZERO, StdStream::Stdout, text, usize::MAX, &mut batch);
        batch
    }

    fn journal() -> (TempDir, UnixDatagram, JournalSocket) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        server.set_nonblocking(true).unwrap();
        (dir, server, JournalSocket::new(path, b"A=b\n".to_vec()).unwrap())
    }

    fn receive(server: &UnixDatagram) -> String {
        let mut buffer = vec![0; 65536];
        let length = server.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn sent(batch: &Batch) -> Written {
        Written { bytes: batch.bytes.len(), ..Written::default() }
    }

    #[tokio::test(flavor = "local")]
    async fn each_record_is_an_entry_with_the_shared_fields_before_its_own() {
        let (_dir, server, mut journal) = journal();
        let batch = batch(b"one\ntwo\n");
        assert_eq!(journal.send(&batch).await, sent(&batch));
        for line in ["one", "two"] {
            assert_eq!(receive(&server), format!("A=b\nPRIORITY=6\nCONTAINER_STREAM=stdout\nMESSAGE={line}\n"));
        }
    }

    #[tokio::test(flavor = "local")]
    async fn an_entry_larger_than_a_datagram_is_sent_as_a_sealed_file() {
        let (_dir, server, mut journal) = journal();
        setsockopt(&journal.socket, sockopt::SndBuf, &1).unwrap();
        let line = "x".repeat(MAX_LINE);
        let batch = batch(format!("{line}\nshort\n").as_bytes());
        assert_eq!(journal.send(&batch).await, sent(&batch));
        let (mut file, mut text) = (File::from(receive_fd(server.as_fd()).unwrap().unwrap()), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("A=b\nPRIORITY=6\nCONTAINER_STREAM=stdout\nMESSAGE={line}\n"));
        assert!(receive(&server).ends_with("MESSAGE=short\n"));
    }

    #[tokio::test(flavor = "local")]
    async fn a_journal_that_is_not_there_takes_nothing_and_a_new_one_takes_all() {
        let (dir, server, mut journal) = journal();
        let batch = batch(b"one\ntwo\n");
        journal.send(&batch).await;
        let path = dir.path().join("socket");
        std::fs::remove_file(&path).unwrap();
        drop(server);
        let missing = Written { error: Some("the journal is not there"), ..Written::default() };
        for _ in 0..2 {
            assert_eq!(journal.send(&batch).await, missing);
        }
        for _ in 0..2 {
            let server = UnixDatagram::bind(&path).unwrap();
            assert_eq!(journal.send(&batch).await, sent(&batch), "also right after a restart");
            assert!(receive(&server).ends_with("MESSAGE=one\n"));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test(flavor = "local")]
    async fn a_full_journal_is_waited_for_and_gets_every_entry_once() {
        let (_dir, server, mut journal) = journal();
        let text: String = (0..5000).map(|n| format!("{n}\n")).collect();
        let (batch, server) = (batch(text.as_bytes()), tokio::net::UnixDatagram::from_std(server).unwrap());
        let mut received = Vec::new();
        let read = async {
            let mut buffer = vec![0; 4096];
            while received.len() < 5000 {
                let length = server.recv(&mut buffer).await.unwrap();
                let entry = String::from_utf8(buffer[..length].to_vec()).unwrap();
                received.push(entry.rsplit_once("MESSAGE=").unwrap().1.to_owned());
            }
        };
        let (written, ()) = tokio::join!(journal.send(&batch), read);
        assert_eq!(written, sent(&batch));
        assert_eq!(received.concat(), text);
    }
}
