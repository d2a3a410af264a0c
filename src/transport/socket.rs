//! One client's connection as both halves of its session use it.

#[cfg(feature = "tls")]
use std::cell::RefCell;
use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd as _,
    rc::Rc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut, buf::Chain};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::stream::Stream;
use crate::sys::{
    fd::siocoutq,
    socket::{is_connected, since_last_ack},
};

/// One read. Allocated when something is there, so an idle client costs no buffer.
const READ_CHUNK: usize = 16 * 1024;
/// A peer that has acknowledged nothing for so long, while something is to be acknowledged, is dead. A live one that does
/// not read is asked by the kernel whether it would, at most 120 s apart, and answers.
const DEAD_AFTER: Duration = Duration::from_secs(150);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often a connection is looked at that is not read from.
const LOST_LOOK: Duration = Duration::from_secs(1);
/// How long TLS may take to say good-bye.
#[cfg(feature = "tls")]
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A connection that one part of a task reads while another writes.
#[derive(Debug, Clone)]
pub(super) struct Socket(Rc<Inner>);

#[derive(Debug)]
enum Inner {
    Plain(TcpStream),
    /// Borrowed for one poll at a time.
    #[cfg(feature = "tls")]
    Tls(RefCell<Stream>),
}

impl Socket {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(match stream {
            Stream::Plain(stream) => Inner::Plain(stream),
            #[cfg(feature = "tls")]
            tls @ Stream::Tls(_) => Inner::Tls(RefCell::new(tls)),
        }))
    }

    /// Waits for bytes and appends them; 0 is the peer's end. Cancel safe.
    pub(super) async fn fill(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let read = match &*self.0 {
            Inner::Plain(stream) => fill_plain(stream, buffer).await,
            #[cfg(feature = "tls")]
            Inner::Tls(stream) => tls::fill(stream, buffer).await,
        };
        // tokio does not meter these reads: a peer that never stops sending would have the thread for itself.
        tokio::task::yield_now().await;
        read
    }

    /// Writes both parts, with one system call where the kernel takes them. Not cancel safe.
    pub(super) async fn write(&self, head: &[u8], body: Bytes) -> io::Result<()> {
        let frame = Bytes::copy_from_slice(head).chain(body);
        match &*self.0 {
            Inner::Plain(stream) => write_plain(stream, frame).await?,
            #[cfg(feature = "tls")]
            Inner::Tls(stream) => tls::write(stream, frame).await?,
        }
        // As above: a peer that reads as fast as we write.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn with_tcp<T>(&self, work: impl FnOnce(&TcpStream) -> T) -> T {
        match &*self.0 {
            Inner::Plain(stream) => work(stream),
            #[cfg(feature = "tls")]
            Inner::Tls(stream) => work(stream.borrow().tcp()),
        }
    }

    /// How many bytes the peer's kernel has not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.with_tcp(|tcp| siocoutq(tcp)).unwrap_or(0)
    }

    /// The session is over. TLS says so, or its client would take the end for an attack; TCP needs no word.
    pub(super) async fn close(&self) {
        #[cfg(feature = "tls")]
        if let Inner::Tls(stream) = &*self.0 {
            let _ = tokio::time::timeout(CLOSE_LIMIT, tls::close(stream)).await;
        }
    }

    /// Ends the connection at once, both ways: reading sees the end, writing fails. What the peer has not acknowledged is
    /// dropped: else the kernel would go on offering it for many minutes.
    pub(super) fn shut_down(&self) {
        let _ = self.with_tcp(TcpStream::set_zero_linger);
        let _ = self.with_tcp(|tcp| shutdown(tcp.as_raw_fd(), Shutdown::Both));
    }

    /// Resolves when the connection was reset, or ended by us. For whoever does not read, and so would not see it.
    pub(super) async fn lost(&self) {
        while self.with_tcp(is_connected).unwrap_or(true) {
            sleep(LOST_LOOK).await;
        }
    }

    /// Resolves when the peer acknowledges nothing any more. While data is on its way the keep-alive of TCP is silent, and
    /// `TCP_USER_TIMEOUT` would kill a live peer that merely does not read.
    pub(super) async fn peer_died(&self) {
        let mut silence = Silence::default();
        loop {
            sleep(LOOK).await;
            let unacknowledged = self.unacknowledged();
            let since_ack = self.with_tcp(since_last_ack).unwrap_or(Duration::ZERO);
            if silence.is_death(Instant::now(), unacknowledged, since_ack) {
                return;
            }
        }
    }
}

/// How long something has waited for an acknowledgement, look by look.
#[derive(Debug, Default)]
struct Silence {
    waiting_since: Option<Instant>,
}

impl Silence {
    /// Whether the peer must be dead. `since_ack` alone does not tell: the last acknowledgement may be older than what now
    /// waits for one.
    fn is_death(&mut self, now: Instant, unacknowledged: usize, since_ack: Duration) -> bool {
        if unacknowledged == 0 {
            self.waiting_since = None;
            return false;
        }
        let waited = now - *self.waiting_since.get_or_insert(now);
        waited.min(since_ack) >= DEAD_AFTER
    }
}

async fn fill_plain(stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match read_once(stream, buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        if buffer.is_empty() {
            *buffer = BytesMut::new();
        }
    }
}

/// By way of the stack, so that the buffer grows by what came and an idle client has none. Read into the buffer itself, each
/// small message would have a buffer of its own, for as long as it waits in a queue that counts its bytes.
fn read_once(stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut space = [0; READ_CHUNK];
    let count = stream.try_read(&mut space)?;
    buffer.extend_from_slice(&space[..count]);
    Ok(count)
}

async fn write_plain(stream: &TcpStream, mut frame: Chain<Bytes, Bytes>) -> io::Result<()> {
    while frame.has_remaining() {
        let parts = [IoSlice::new(frame.first_ref().chunk()), IoSlice::new(frame.last_ref().chunk())];
        match stream.try_write_vectored(&parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => frame.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A TLS connection keeps what it has decrypted, so readiness of the socket says nothing: it is asked by polling. Both
/// parts of the task poll with the same waker, so none can take the other's wake-up.
#[cfg(feature = "tls")]
mod tls {
    use std::{
        future::poll_fn,
        mem::MaybeUninit,
        pin::Pin,
        task::{Poll, ready},
    };

    use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

    use super::*;

    pub(super) async fn fill(stream: &RefCell<Stream>, buffer: &mut BytesMut) -> io::Result<usize> {
        poll_fn(|context| {
            // On the stack for the time of one poll, so that an idle client costs no buffer here either.
            let mut space = [MaybeUninit::uninit(); READ_CHUNK];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut *stream.borrow_mut()).poll_read(context, &mut read))?;
            buffer.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        })
        .await
    }

    pub(super) async fn close(stream: &RefCell<Stream>) -> io::Result<()> {
        poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_shutdown(context)).await
    }

    pub(super) async fn write(stream: &RefCell<Stream>, mut frame: Chain<Bytes, Bytes>) -> io::Result<()> {
        while frame.has_remaining() {
            let wrote =
                poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_write(context, frame.chunk())).await?;
            match wrote {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => frame.advance(written),
            }
        }
        poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_flush(context)).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::io::local;

    /// Looks as often as a connection is looked at, at a peer whose last acknowledgement and whose unacknowledged bytes
    /// are told in seconds since the begin; returns when it is taken for dead.
    fn death(looks: u64, last_ack: impl Fn(u64) -> u64, unacknowledged: impl Fn(u64) -> usize) -> Option<u64> {
        let (begin, mut silence) = (Instant::now(), Silence::default());
        (1..=looks).map(|look| look * LOOK.as_secs()).find(|&second| {
            let since_ack = Duration::from_secs(second - last_ack(second));
            silence.is_death(begin + Duration::from_secs(second), unacknowledged(second), since_ack)
        })
    }

    #[test]
    fn a_small_message_kept_the_whole_of_a_read_buffer() {
        local(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (client, socket) = (client.unwrap(), Socket::new(Stream::Plain(accepted.unwrap().0)));
            let (mut buffer, mut queued, mut pinned) = (BytesMut::new(), Vec::new(), 0);
            for _ in 0..20 {
                client.try_write(&[b'x'; 1100]).unwrap();
                while buffer.len() < 1100 {
                    socket.fill(&mut buffer).await.unwrap();
                }
                queued.push(buffer.split().freeze());
            }
            drop(buffer);
            // The last piece of each allocation gives all of it.
            while let Some(piece) = queued.pop() {
                pinned += piece.try_into_mut().map_or(0, |piece| piece.capacity());
            }
            assert!(pinned < 2 * 20 * 1100, "{pinned}");
        });
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_is_dead_within_three_minutes() {
        // An hour of idleness before counts for nothing; the first look comes up to 10 s after what waits.
        assert_eq!(death(1000, |_| 0, |second| usize::from(second > 3600)), Some(3610 + 150));
        assert!(LOOK + DEAD_AFTER < Duration::from_secs(180));
    }

    #[test]
    fn a_peer_that_is_idle_or_acknowledges_now_and_then_lives() {
        assert_eq!(death(1000, |_| 0, |_| 0), None);
        // A live peer that does not read answers the kernel's question at most 120 s apart.
        assert_eq!(death(1000, |second| second / 120 * 120, |_| 1), None);
        // What was acknowledged in between starts the time anew.
        assert_eq!(death(1000, |_| 0, |second| usize::from(second % 100 != 0)), None);
    }
}
