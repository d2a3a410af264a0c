//! Pipes and terminals as tokio sees them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use bytes::BytesMut;
use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{SysError, fd::set_nonblocking, reactor};

/// A descriptor that is read or written when it is ready. The one owner of its number.
///
/// Reads and writes through it are not metered by tokio's budget: a loop over a descriptor that is always ready never
/// lets another task run, so every such loop yields by itself.
#[derive(Debug)]
pub(crate) struct AsyncFile {
    fd: AsyncFd<OwnedFd>,
}

impl AsyncFile {
    /// Registers a descriptor for reading.
    pub(crate) fn reader(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::READABLE)
    }

    /// Registers a descriptor for writing.
    pub(crate) fn writer(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::WRITABLE)
    }

    /// Registers a descriptor for both, as a terminal needs.
    pub(crate) fn both(fd: OwnedFd) -> Result<Self, SysError> {
        Self::register(fd, Interest::READABLE | Interest::WRITABLE)
    }

    fn register(fd: OwnedFd, interest: Interest) -> Result<Self, SysError> {
        set_nonblocking(&fd)?;
        Ok(Self { fd: reactor::watch(fd, interest)? })
    }

    /// Reads once into the spare room of `buffer` (at most `limit` bytes), waiting until something is there.
    /// 0 is the end. Cancel safe.
    pub(crate) async fn read(&self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(done) = ready.try_io(|fd| read_some(fd.as_fd(), buffer, limit)) {
                return done;
            }
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
        loop {
            let mut ready = self.fd.writable().await?;
            let attempt = |fd: &AsyncFd<OwnedFd>| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from);
            if let Ok(done) = ready.try_io(attempt) {
                return done;
            }
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
    done.map_err(io::Error::from)
}
