//! One client's connection as both halves of its session use it.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd as _,
    rc::Rc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::sys::{fd::siocoutq, socket::since_last_ack};

/// One read. Allocated when something is there, so an idle client costs no buffer.
const READ_CHUNK: usize = 16 * 1024;
/// A peer that has acknowledged nothing for so long, while something is to be acknowledged, is dead. A live one that does
/// not read is asked by the kernel whether it would, at most 120 s apart, and answers.
const DEAD_AFTER: Duration = Duration::from_secs(150);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A connection that one task reads while another part of it writes.
#[derive(Debug, Clone)]
pub(super) struct Socket(Rc<TcpStream>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Rc::new(stream))
    }

    /// Waits for bytes and appends them; 0 is the peer's end. Cancel safe.
    pub(super) async fn fill(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.0.readable().await?;
            buffer.reserve(READ_CHUNK);
            let read = self.0.try_read_buf(buffer);
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
            match read {
                Ok(count) => {
                    // tokio does not meter these reads: a peer that never stops sending would have the thread for itself.
                    tokio::task::yield_now().await;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes both parts, with one system call where the kernel takes them. Not cancel safe.
    pub(super) async fn write(&self, head: &[u8], body: Bytes) -> io::Result<()> {
        let mut frame = Bytes::copy_from_slice(head).chain(body);
        while frame.has_remaining() {
            let parts = [IoSlice::new(frame.first_ref().chunk()), IoSlice::new(frame.last_ref().chunk())];
            self.0.writable().await?;
            match self.0.try_write_vectored(&parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => frame.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // As above: a peer that reads as fast as we write.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// How many bytes the peer's kernel has not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        siocoutq(&*self.0).unwrap_or(0)
    }

    /// Ends the connection at once, both ways: reading sees the end, writing fails.
    pub(super) fn shut_down(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Resolves when the peer acknowledges nothing any more. While data is on its way the keep-alive of TCP is silent, and
    /// `TCP_USER_TIMEOUT` would kill a live peer that merely does not read.
    pub(super) async fn peer_died(&self) {
        let mut waiting_since = None;
        loop {
            sleep(LOOK).await;
            if self.unacknowledged() == 0 {
                waiting_since = None;
                continue;
            }
            // The last acknowledgement may be older than what now waits for one.
            let waited = waiting_since.get_or_insert_with(Instant::now).elapsed();
            let silent = since_last_ack(&*self.0).unwrap_or(Duration::ZERO);
            if waited.min(silent) >= DEAD_AFTER {
                return;
            }
        }
    }
}
