//! Pipes and terminals as tokio sees them.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use bytes::BytesMut;
use nix::errno::Errno;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::queue::compact;
use crate::sys::{SysError, fd::set_nonblocking, reactor};

/// Between attempts on a descriptor that says it is ready and answers `EAGAIN`; doubled from the first to the second.
const STALE_RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Waits out readiness that is none: a registration that has once seen a hang-up reports it for ever, and a terminal whose
/// other end is closed, or was, can still have no room for input and nothing to be read. Asking again at once would be
/// asking for ever, and nobody else's turn would come.
#[derive(Debug)]
struct Stale(Duration);

impl Stale {
    fn new() -> Self {
        Self(STALE_RETRY.0)
    }

    async fn wait(&mut self, closed: bool) {
        if closed {
            sleep(self.0).await;
            self.0 = (self.0 * 2).min(STALE_RETRY.1);
        }
    }
}

/// A descriptor that is read or written when it is ready. The one owner of its number.
///
/// Reads and writes through it are not metered by tokio's budget: a loop over a descriptor that is always ready never
/// lets another task run, so every such loop yields by itself.
#[derive(Debug)]
pub(crate) struct AsyncFile {
    fd: AsyncFd<OwnedFd>,
    /// A read that gives less than asked for has emptied it, so asking again is of no use before the next event.
    is_pipe: bool,
}

impl AsyncFile {
    /// Registers the read end of a pipe.
    pub(crate) fn pipe_reader(fd: OwnedFd) -> Result<Self, SysError> {
        Ok(Self { is_pipe: true, ..Self::register(fd, Interest::READABLE)? })
    }

    /// Registers the write end of a pipe.
    pub(crate) fn pipe_writer(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::WRITABLE)
    }

    /// Registers the master end of a terminal, for both ways.
    pub(crate) fn terminal(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// Registers a datagram socket that is sent to.
    pub(crate) fn datagram_sender(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::WRITABLE)
    }

    fn register(fd: OwnedFd, interest: Interest) -> Result<Self, SysError> {
        set_nonblocking(&fd)?;
        Ok(Self { fd: reactor::watch(fd, interest)?, is_pipe: false })
    }

    /// Reads once into the spare room of `buffer` (at most `limit` bytes), waiting until something is there.
    /// 0 is the end. Cancel safe.
    pub(crate) async fn read(&self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        let mut stale = Stale::new();
        loop {
            let mut ready = self.fd.readable().await?;
            let closed = ready.ready().is_read_closed();
            match ready.try_io(|fd| read_some(fd.as_fd(), buffer, limit)) {
                Ok(Ok(count)) => {
                    if self.is_pipe && count < limit && count > 0 {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Ok(Err(error)) => return Err(error),
                // Whoever waits must not hold a buffer meanwhile.
                Err(_) if buffer.is_empty() => *buffer = BytesMut::new(),
                Err(_) => {}
            }
            stale.wait(closed).await;
        }
    }

    /// Reads once if something is there now; `None` when not. Does not rely on a readiness seen before: it asks the kernel.
    pub(crate) fn read_now(&self, buffer: &mut BytesMut, limit: usize) -> io::Result<Option<usize>> {
        match read_some(self.fd.as_fd(), buffer, limit) {
            Ok(count) => Ok(Some(count)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes once, waiting until there is room. Cancel safe: nothing is written when dropped early.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.when_writable(|fd| nix::unistd::write(fd, bytes)).await
    }

    /// Makes a call that takes output, again and again while it answers `EAGAIN`, waiting between. Cancel safe: when dropped
    /// early, no attempt has succeeded.
    pub(crate) async fn when_writable<T>(
        &self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> nix::Result<T>,
    ) -> io::Result<T> {
        let mut stale = Stale::new();
        loop {
            let mut ready = self.fd.writable().await?;
            let closed = ready.ready().is_write_closed();
            let attempt = |fd: &AsyncFd<OwnedFd>| attempt(fd.as_fd()).map_err(io::Error::from);
            if let Ok(done) = ready.try_io(attempt) {
                return done;
            }
            stale.wait(closed).await;
        }
    }
}

impl AsFd for AsyncFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Our ends of a process's output.
#[derive(Debug)]
pub(crate) enum Output {
    Pipes {
        stdout: AsyncFile,
        stderr: AsyncFile,
    },
    /// The master end, which is its input too.
    Terminal(OwnedFd),
}

fn read_some(fd: BorrowedFd<'_>, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
    let start = buffer.len();
    // Zeroing costs less than a page fault here and keeps uninitialised memory out of safe code.
    buffer.resize(start + limit, 0);
    let done = loop {
        match nix::unistd::read(fd, &mut buffer[start..]) {
            Err(Errno::EINTR) => {}
            done => break done,
        }
    };
    buffer.truncate(start + done.unwrap_or(0));
    if start == 0 {
        *buffer = compact(mem::take(buffer));
    }
    done.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{io::local, sys::fd::pipe_cloexec};

    #[test]
    fn data_and_the_end_that_come_after_a_short_read_are_noticed() {
        local(async {
            let (reader, writer) = pipe_cloexec().unwrap();
            let (reader, writer) = (AsyncFile::pipe_reader(reader).unwrap(), AsyncFile::pipe_writer(writer).unwrap());
            for text in [&b"one"[..], b"two"] {
                writer.write(text).await.unwrap();
                let mut buffer = BytesMut::new();
                assert_eq!(reader.read(&mut buffer, 1024).await.unwrap(), text.len());
                assert!(buffer.capacity() < 64, "no more room than it needs: {}", buffer.capacity());
                assert_eq!(buffer, text);
            }
            writer.write(b"last").await.unwrap();
            drop(writer);
            let mut buffer = BytesMut::new();
            assert_eq!(reader.read(&mut buffer, 1024).await.unwrap(), 4);
            assert_eq!(reader.read(&mut buffer, 1024).await.unwrap(), 0);
        });
    }

    #[test]
    fn input_for_a_terminal_that_is_full_and_hung_up_kept_everybody_else_waiting() {
        local(async {
            let pty = nix::pty::openpty(None, None).unwrap();
            let path = nix::unistd::ttyname(&pty.slave).unwrap();
            let mut raw = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
            nix::sys::termios::cfmakeraw(&mut raw);
            nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
            let master = AsyncFile::terminal(pty.master).unwrap();
            // The kernel moves what it has taken from one buffer to the next when it comes to it, which makes room once more.
            let fill = async || {
                let write = || tokio::time::timeout(Duration::from_millis(300), master.write(&[b'x'; 4096]));
                while let Ok(written) = write().await {
                    written.unwrap();
                }
            };
            fill().await;
            drop(pty.slave);
            fill().await;
            // Comes back, and before its time: another write and a read wait, and cost next to nothing.
            let both = async { tokio::join!(master.write(b"more"), master.write(b"more")) };
            assert!(tokio::time::timeout(Duration::from_millis(100), both).await.is_err());
            // Open again, with the old input in it: readiness is stale for good, but a write goes on when there is room.
            let slave = std::fs::File::options().read(true).write(true).open(path).unwrap();
            let mut buffer = BytesMut::new();
            let quiet = tokio::time::timeout(Duration::from_millis(100), master.read(&mut buffer, 1024));
            assert!(quiet.await.is_err(), "nothing to be read");
            nix::sys::termios::tcflush(&slave, nix::sys::termios::FlushArg::TCIFLUSH).unwrap();
            let empty = async {
                let slave = AsyncFile::terminal(slave.into()).unwrap();
                loop {
                    slave.read(&mut BytesMut::new(), 1024).await.unwrap();
                }
            };
            tokio::select! {
                written = master.write(b"more") => assert_eq!(written.unwrap(), 4),
                () = empty => {}
            }
        });
    }

    #[test]
    fn a_reader_that_waits_holds_no_buffer() {
        local(async {
            let (reader, _writer) = pipe_cloexec().unwrap();
            let reader = AsyncFile::pipe_reader(reader).unwrap();
            let mut buffer = BytesMut::new();
            assert!(reader.read(&mut buffer, 16 * 1024).now_or_never().is_none());
            assert_eq!(buffer.capacity(), 0);
        });
    }
}
