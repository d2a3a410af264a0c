//! Sockets of packets (`SOCK_SEQPACKET`, unix(7)) as tokio sees them: every send is received whole or not at all.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use bytes::Bytes;
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{
    SysError, reactor,
    socket::{self, Received},
};

/// Accepts connections.
///
/// Like everything here it is not metered by tokio's budget: a loop over it yields by itself.
#[derive(Debug)]
pub(crate) struct SeqpacketListener {
    fd: AsyncFd<OwnedFd>,
}

impl SeqpacketListener {
    /// Registers a listening socket; see [`socket::listen_seqpacket`].
    ///
    /// # Errors
    /// Passed on from epoll_ctl(2).
    pub(crate) fn new(listening: OwnedFd) -> Result<Self, SysError> {
        Ok(Self { fd: reactor::watch(listening, Interest::READABLE)? })
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// Passed on from accept(2). Without free descriptors it fails again at once: pause before the next try.
    pub(crate) async fn accept(&self) -> io::Result<SeqpacketStream> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(accepted) = ready.try_io(|fd| Ok(socket::accept(fd.as_fd())?)) {
                return accepted.and_then(SeqpacketStream::accepted);
            }
        }
    }

    /// The next connection that waits already, if any does.
    ///
    /// # Errors
    /// As those of [`SeqpacketListener::accept`].
    pub(crate) fn accept_now(&self) -> io::Result<Option<SeqpacketStream>> {
        match socket::accept(self.fd.as_fd()) {
            Ok(accepted) => SeqpacketStream::accepted(accepted).map(Some),
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// One connection. Its halves are used side by side through a shared reference.
#[derive(Debug)]
pub(crate) struct SeqpacketStream {
    fd: AsyncFd<OwnedFd>,
}

impl SeqpacketStream {
    /// Registers a connected socket that does not block.
    ///
    /// # Errors
    /// Passed on from epoll_ctl(2).
    pub(crate) fn new(connected: OwnedFd) -> Result<Self, SysError> {
        Ok(Self { fd: reactor::watch(connected, Interest::READABLE | Interest::WRITABLE)? })
    }

    fn accepted(connected: OwnedFd) -> io::Result<Self> {
        Self::new(connected).map_err(|error| error.errno().into())
    }

    /// Sends one packet of two parts, waiting while the other side has too much unread. Cancel safe: it is sent whole or
    /// not at all.
    ///
    /// # Errors
    /// The other side is gone, or does not receive any more.
    pub(crate) async fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.fd.writable().await?;
            if let Ok(sent) = ready.try_io(|fd| Ok(socket::send_packet(fd.as_fd(), head, body)?)) {
                return sent;
            }
        }
    }

    /// The next packet, whole, of whatever size; `None` at the end of what the other side sends. Descriptors that it may
    /// carry are dropped by the kernel. Cancel safe.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) async fn receive(&self) -> io::Result<Option<Bytes>> {
        Ok(self.receive_some(false).await?.map(|(bytes, _)| bytes.into()))
    }

    /// The same with the descriptors that came with the packet: as many as one message can carry, or fewer where this
    /// process may have no more.
    ///
    /// # Errors
    /// As those of [`SeqpacketStream::receive`].
    pub(crate) async fn receive_with_fds(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.receive_some(true).await
    }

    async fn receive_some(&self, with_fds: bool) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| Ok(socket::receive_packet(fd.as_fd(), with_fds)?)) {
                Ok(Ok(Received::Packet(bytes, fds))) => return Ok(Some((bytes, fds))),
                Ok(Ok(Received::End)) => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Resolves when the other side has closed its socket, as opposed to only having sent everything.
    ///
    /// # Errors
    /// There is no descriptor left to watch it with.
    pub(crate) async fn closed(&self) -> io::Result<()> {
        // The registration of the halves cannot tell: readiness that is over stays set in it. A second one that asks for
        // urgent data, which these sockets do not have, is woken by the hang-up alone.
        let watched = reactor::watch(self.fd.get_ref().try_clone()?, Interest::PRIORITY);
        let watched = watched.map_err(|error| io::Error::from(error.errno()))?;
        let _ready = watched.ready(Interest::PRIORITY).await?;
        Ok(())
    }

    /// Ends both ways. The other side still gets everything that was sent.
    pub(crate) fn close(self) {
        socket::close_gently(self.fd.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
        path::Path,
        time::Duration,
    };

    use futures_util::FutureExt as _;
    use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, setsockopt, shutdown, sockopt};

    use super::*;
    use crate::{
        io::local,
        sys::socket::{connect_seqpacket, listen_seqpacket},
    };

    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), work).await.unwrap()
    }

    /// Both ends of a connection made over a file.
    async fn pair() -> (SeqpacketStream, SeqpacketStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = SeqpacketListener::new(listen_seqpacket(&path, 0o700).unwrap()).unwrap();
        let client = connect_seqpacket(&path).unwrap();
        let server = within(listener.accept()).await.unwrap();
        assert!(listener.accept_now().unwrap().is_none());
        (server, SeqpacketStream::new(client).unwrap())
    }

    fn file_mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_file_has_its_mode_and_a_path_may_be_longer_than_an_address() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        for path in [directory.path().join("s"), deep.join("attach")] {
            let _listening = listen_seqpacket(&path, 0o700).unwrap();
            assert_eq!(file_mode(&path), 0o700);
            connect_seqpacket(&path).unwrap();
        }
    }

    #[test]
    fn packets_arrive_whole_and_apart_also_empty_ones() {
        local(async {
            let (server, client) = pair().await;
            let bodies = [&b"one"[..], b"", b"\0two\0"];
            for body in bodies {
                client.send(b"#", body).await.unwrap();
            }
            client.send(b"", b"").await.unwrap();
            client.send(b"", b"last").await.unwrap();
            shutdown(client.fd.as_raw_fd(), Shutdown::Write).unwrap();
            let mut received = Vec::new();
            while let Some(packet) = within(server.receive()).await.unwrap() {
                received.push(packet);
            }
            assert_eq!(received, [&b"#one"[..], b"#", b"#\0two\0", b"", b"last"]);
            server.send(b"still", b" there").await.unwrap();
            assert_eq!(within(client.receive()).await.unwrap().unwrap(), &b"still there"[..]);
        });
    }

    #[test]
    fn a_packet_as_large_as_the_sender_may_send_is_not_cut() {
        local(async {
            let (server, client) = pair().await;
            let _ = setsockopt(&client.fd, sockopt::SndBuf, &(1024 * 1024));
            let mut largest = 1024 * 1024;
            let sent = loop {
                let bytes: Vec<u8> = (0..=250).cycle().take(largest).collect();
                match client.send(b"", &bytes).await {
                    Ok(()) => break bytes,
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE)),
                }
                largest = largest / 10 * 9;
            };
            assert!(sent.len() > 128 * 1024);
            assert_eq!(within(server.receive()).await.unwrap().unwrap(), sent);
        });
    }

    #[test]
    fn what_a_client_sent_before_it_closed_with_unread_packets_is_received() {
        local(async {
            let (server, client) = pair().await;
            server.send(b"never", b" read").await.unwrap();
            client.send(b"", b"input").await.unwrap();
            drop(client);
            assert_eq!(within(server.receive()).await.unwrap().unwrap(), &b"input"[..]);
            assert_eq!(within(server.receive()).await.unwrap(), None);
        });
    }

    #[test]
    fn a_full_receiver_makes_send_wait_and_nothing_is_lost_by_it() {
        local(async {
            let (server, client) = pair().await;
            server.send(&[0; 4], b"").await.unwrap();
            let mut sent = 1u32;
            while server.send(&sent.to_le_bytes(), &[0; 8000]).now_or_never().is_some() {
                sent += 1;
            }
            assert!(sent > 4);
            let rest = async {
                server.send(&sent.to_le_bytes(), b"").await.unwrap();
                server.close();
            };
            let read = async {
                for expected in 0..=sent {
                    let packet = client.receive().await.unwrap().unwrap();
                    assert_eq!(packet[..4], expected.to_le_bytes());
                }
                assert_eq!(client.receive().await.unwrap(), None);
            };
            within(async { tokio::join!(rest, read) }).await;
        });
    }

    #[test]
    fn closing_over_unread_input_spares_the_peer_an_error() {
        local(async {
            let (server, client) = pair().await;
            for _ in 0..3 {
                client.send(b"", b"nobody reads this").await.unwrap();
            }
            server.send(b"", b"bye").await.unwrap();
            server.close();
            assert_eq!(nix::unistd::read(&client.fd, &mut [0; 9]), Ok(3), "not ECONNRESET");
            assert_eq!(within(client.receive()).await.unwrap(), None);
        });
    }

    #[test]
    fn a_half_closed_client_is_still_there_and_a_closed_one_is_not() {
        local(async {
            let (server, client) = pair().await;
            shutdown(client.fd.as_raw_fd(), Shutdown::Write).unwrap();
            assert_eq!(within(server.receive()).await.unwrap(), None);
            let mut closed = Box::pin(server.closed());
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut closed).await.is_err());
            server.send(b"", b"output").await.unwrap();
            assert!((&mut closed).now_or_never().is_none());
            drop(client);
            within(closed).await.unwrap();
        });
    }

    fn send_fds(client: &SeqpacketStream, bytes: &[u8], fd: &OwnedFd, count: usize) {
        let fds = vec![fd.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(client.fd.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None).unwrap();
    }

    fn is_cloexec(fd: &OwnedFd) -> bool {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(fd, FcntlArg::F_GETFD).unwrap() == FdFlag::FD_CLOEXEC.bits()
    }

    #[test]
    fn descriptors_of_a_packet_arrive_all_253_and_close_on_exec() {
        local(async {
            let (server, client) = pair().await;
            let (end, _other) = crate::sys::fd::pipe_cloexec().unwrap();
            for (bytes, count) in [(&b"all"[..], 253), (b"", 2), (b"none", 0)] {
                send_fds(&client, bytes, &end, count);
                let (received, fds) = within(server.receive_with_fds()).await.unwrap().unwrap();
                assert_eq!((&received[..], fds.len()), (bytes, count));
                assert!(fds.iter().all(is_cloexec));
            }
            send_fds(&client, b"", &end, 1);
            drop(client);
            assert_eq!(within(server.receive_with_fds()).await.unwrap().unwrap().1.len(), 1);
            assert!(within(server.receive_with_fds()).await.unwrap().is_none());
        });
    }

    #[test]
    fn descriptors_nobody_asked_for_are_not_kept() {
        local(async {
            let (server, client) = pair().await;
            let (end, other) = crate::sys::fd::pipe_cloexec().unwrap();
            send_fds(&client, b"input", &other, 3);
            drop(other);
            assert_eq!(within(server.receive()).await.unwrap().unwrap(), &b"input"[..]);
            // No writer is left, so the pipe is at its end.
            crate::sys::fd::set_nonblocking(&end).unwrap();
            assert_eq!(nix::unistd::read(&end, &mut [0; 1]), Ok(0));
        });
    }
}
