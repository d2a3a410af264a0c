use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, shutdown,
        socket, sockopt,
    },
};
use tokio::{io::Interest, net::UnixStream};

use super::within;

/// A client of an attach socket that sends and receives single packets.
#[derive(Debug)]
pub(crate) struct RawAttach {
    /// Of type `SOCK_SEQPACKET`: only used to wait until the socket is ready.
    stream: UnixStream,
}

/// What the server sent before it closed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// How many done packets came; nothing may come behind one.
    pub(crate) done: usize,
    /// The largest packet, with its first byte.
    pub(crate) largest: usize,
}

impl RawAttach {
    /// Connects at once, so that the server owes all output from here on.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let (parent, name) = (path.parent().expect("absolute"), path.file_name().expect("a file"));
        let directory = File::open(parent)?;
        let short: PathBuf = ["/proc/self/fd", &directory.as_raw_fd().to_string()].iter().collect();
        connect(fd.as_raw_fd(), &UnixAddr::new(&short.join(name))?)?;
        let stream = UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))?;
        Ok(Self { stream })
    }

    /// Lets single packets be as large as this, as far as the kernel allows it.
    pub(crate) fn raise_packet_limit(&self, bytes: usize) {
        setsockopt(&self.stream, sockopt::SndBuf, &(2 * bytes)).expect("a socket option");
    }

    /// Sends one packet, waiting until there is room for it.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        within(self.try_send(bytes)).await.expect("the server is there");
    }

    /// The same for one that may be refused or wait for ever.
    pub(crate) async fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.stream.writable().await?;
            let attempt = || Ok(send(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?);
            match self.stream.try_io(Interest::WRITABLE, attempt) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent.map(|count| assert_eq!(count, bytes.len(), "packets are sent whole")),
            }
        }
    }

    /// Sends all of it in packets of a size.
    pub(crate) async fn send_all(&self, bytes: &[u8], size: usize) {
        for packet in bytes.chunks(size) {
            self.send(packet).await;
        }
    }

    /// Says that nothing more will come.
    pub(crate) fn half_close(&self) {
        shutdown(self.stream.as_raw_fd(), Shutdown::Write).expect("connected");
    }

    /// The next packet: its first byte and the rest; `None` at the end.
    pub(crate) async fn next(&self) -> Option<(u8, Vec<u8>)> {
        within(async {
            let mut packet = vec![0; 64 * 1024];
            loop {
                self.stream.readable().await.expect("a socket");
                let attempt = || match recv(self.stream.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                    // Told once when the server closed over unread input; what it had sent is still there.
                    Err(Errno::ECONNRESET) => Err(Errno::EAGAIN.into()),
                    count => Ok(count?),
                };
                match self.stream.try_io(Interest::READABLE, attempt) {
                    Ok(0) => return None,
                    Ok(count) => return Some((packet[0], packet[1..count].to_vec())),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
                }
            }
        })
        .await
    }

    /// Reads until both streams together end with this text, which may be cut anywhere; returns all that came.
    pub(crate) async fn wait_output(&self, text: &str) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(text.as_bytes()) {
            let (_, bytes) = self.next().await.unwrap_or_else(|| panic!("{text:?} in {all:?}"));
            all.extend(bytes);
        }
        all
    }

    /// Everything until the server closes.
    pub(crate) async fn collect(self) -> Attached {
        let mut all = Attached::default();
        while let Some((kind, bytes)) = self.next().await {
            assert_eq!(all.done, 0, "a packet of type {kind} behind the done packet");
            all.largest = all.largest.max(1 + bytes.len());
            match kind {
                2 => all.stdout.extend(bytes),
                3 => all.stderr.extend(bytes),
                0 => all.done += 1,
                _ => panic!("a packet of type {kind}"),
            }
        }
        all
    }
}
