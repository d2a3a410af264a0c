//! SPDY inside the messages of a WebSocket (streaming 6.6).

use std::collections::VecDeque;

use holdfast::proto::spdy::HeaderWriter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    pod::{Pod, accept, echo, read_all, url, with_pod},
    support::{
        Sandbox,
        raw_spdy::{self, PING, data, syn_stream},
        raw_ws::{self, BINARY, CLOSE, FIN, PONG, RawSession, TEXT},
        within,
    },
};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// A connection whose SPDY frames a test cuts into messages as it likes.
struct Tunnel {
    session: RawSession,
    headers: HeaderWriter,
    next_id: u32,
    /// Bytes of SPDY that have come.
    received: Vec<u8>,
    /// Frames of the WebSocket that carry none.
    control: VecDeque<raw_ws::Frame>,
}

/// The first word of a frame, its flags, its body.
type Frame = (u32, u8, Vec<u8>);

impl Tunnel {
    async fn open(sandbox: &Sandbox, pod: &Pod) -> Self {
        // The answer must name the protocol as it was offered, which `open` checks.
        let session = RawSession::open(&url(sandbox, pod).await, TUNNEL).await;
        Self { session, headers: HeaderWriter::new(), next_id: 1, received: Vec::new(), control: VecDeque::new() }
    }

    /// Both SYN_STREAM frames of a new pair, and the number of its error stream; the data stream's is 2 higher.
    fn pair(&mut self, port: u16) -> (Vec<u8>, u32) {
        let (id, port) = (self.next_id, port.to_string());
        self.next_id += 4;
        let request = id.to_string();
        let mut frames = Vec::new();
        for (id, flags, kind) in [(id, raw_spdy::FIN, "error"), (id + 2, 0, "data")] {
            let block = self.headers.write(&[("streamtype", kind), ("port", &port), ("requestid", &request)]);
            frames.extend(syn_stream(id, flags, &block));
        }
        (frames, id)
    }

    /// Sends bytes in messages of this size, with an empty one behind each.
    async fn send(&mut self, bytes: &[u8], size: usize) {
        for piece in bytes.chunks(size) {
            self.session.send(FIN | BINARY, piece).await;
            self.session.send(FIN | BINARY, b"").await;
        }
    }

    /// The next frame of SPDY; `None` once the WebSocket was closed or has ended.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some([a, b, c, d, flags, high, middle, low]) = self.received.first_chunk().copied() {
                let end = 8 + u32::from_be_bytes([0, high, middle, low]) as usize;
                if self.received.len() >= end {
                    let frame: Vec<_> = self.received.drain(..end).collect();
                    return Some((u32::from_be_bytes([a, b, c, d]), flags, frame[8..].to_vec()));
                }
            }
            let frame = self.session.next().await?;
            match frame.opcode {
                BINARY => {
                    assert!(frame.fin && (1..=8 + (32 << 10)).contains(&frame.payload.len()), "{frame:?}");
                    self.received.extend(frame.payload);
                }
                CLOSE => {
                    self.control.push_back(frame);
                    return None;
                }
                _ => self.control.push_back(frame),
            }
        }
    }

    /// The payload of a stream until its end.
    async fn output(&mut self, stream: u32) -> Vec<u8> {
        let mut payload = Vec::new();
        loop {
            let (word, flags, body) = self.next().await.expect("the end of the stream comes first");
            if word == stream {
                payload.extend(body);
                if flags & raw_spdy::FIN != 0 {
                    return payload;
                }
            }
        }
    }
}

#[test]
fn p121_where_messages_are_cut_means_nothing() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        for size in [1, 7, usize::MAX] {
            let mut tunnel = Tunnel::open(sandbox, pod).await;
            // Frames of two pairs, all in one message at the last size.
            let (first, first_error) = tunnel.pair(port);
            let (second, second_error) = tunnel.pair(port);
            let ids = [first_error + 2, second_error + 2];
            let sent = ids.map(|id| [data(id, 0, b"through the "), data(id, raw_spdy::FIN, b"tunnel")].concat());
            tunnel.send(&[first, second, sent.concat()].concat(), size).await;
            let mut payload = [Vec::new(), Vec::new()];
            let mut ended = 0;
            while ended < 2 {
                let (word, flags, body) = tunnel.next().await.expect("both come back");
                if let Some(index) = ids.iter().position(|id| *id == word) {
                    payload[index].extend(body);
                    ended += u32::from(flags & raw_spdy::FIN != 0);
                }
            }
            assert_eq!(payload, [b"through the tunnel".to_vec(), b"through the tunnel".to_vec()]);
        }
    });
}

#[test]
fn p121_much_goes_through_both_ways() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut tunnel = Tunnel::open(sandbox, pod).await;
        let (frames, error) = tunnel.pair(port);
        tunnel.send(&frames, usize::MAX).await;
        let mut server = accept(&listener).await;
        let large = vec![b'x'; 3 << 20];
        let received = async {
            // The head of a frame of 3 MiB and its payload, in messages of another size.
            tunnel.send(&data(error + 2, raw_spdy::FIN, &large), 100_000).await;
            tunnel
        };
        let (mut tunnel, taken) = tokio::join!(received, read_all(&mut server));
        assert!(taken == large);
        let answer = async {
            within(server.write_all(&large)).await.expect("the daemon reads");
            drop(server);
        };
        let ((), back) = tokio::join!(answer, tunnel.output(error + 2));
        assert!(back == large);
    });
}

#[test]
fn p122_a_text_message_is_a_breach_of_the_protocol() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut tunnel = Tunnel::open(sandbox, pod).await;
        let mut server = connected(&mut tunnel, &listener, port).await;
        tunnel.session.send(FIN | TEXT, b"hello").await;
        while tunnel.next().await.is_some() {}
        let code = tunnel.control.pop_back().and_then(|frame| frame.close_code());
        assert!(matches!(code, Some(1002 | 1003)), "{code:?}");
        assert_eq!(tunnel.session.next().await, None);
        assert_eq!(read_all(&mut server).await, b"");
    });
}

#[test]
fn p122_a_close_ends_all_connections_and_both_kinds_of_ping_are_answered() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut tunnel = Tunnel::open(sandbox, pod).await;
        let mut servers =
            [connected(&mut tunnel, &listener, port).await, connected(&mut tunnel, &listener, port).await];
        tunnel.session.send(FIN | raw_ws::PING, b"outside").await;
        tunnel.send(&raw_spdy::control(PING, 0, &[5], b""), 3).await;
        loop {
            let (word, _, body) = tunnel.next().await.expect("it stays open");
            if word == 0x8003_0000 | u32::from(PING) {
                assert_eq!(body, 5u32.to_be_bytes());
                break;
            }
        }
        if tunnel.control.is_empty() {
            let frame = tunnel.session.next().await.expect("it stays open");
            tunnel.control.push_back(frame);
        }
        let pong = tunnel.control.pop_front().expect("a pong");
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"outside"[..]));
        // A Close in the middle of what a frame announced is an end like any other.
        tunnel.send(&data(3, 0, &[b'x'; 1000])[..500], 500).await;
        tunnel.session.send(FIN | CLOSE, &1000u16.to_be_bytes()).await;
        while tunnel.next().await.is_some() {}
        assert_eq!(tunnel.control.pop_back().and_then(|frame| frame.close_code()), Some(1000));
        assert_eq!(tunnel.session.next().await, None);
        let ends = [read_all(&mut servers[0]).await.len(), read_all(&mut servers[1]).await.len()];
        assert_eq!(ends, [492, 0]);
    });
}

#[test]
fn p122_the_servers_own_end_is_goaway_then_close() {
    with_pod(async |sandbox, pod| {
        let mut tunnel = Tunnel::open(sandbox, pod).await;
        pod.remove();
        let (frames, error) = tunnel.pair(80);
        tunnel.send(&frames, usize::MAX).await;
        let mut last = None;
        let mut told = Vec::new();
        while let Some((word, _, body)) = tunnel.next().await {
            if word == error {
                told.extend(&body);
            }
            last = Some(word);
        }
        assert!(String::from_utf8_lossy(&told).starts_with("error forwarding port 80 to pod "));
        assert_eq!(last, Some(0x8003_0000 | u32::from(raw_spdy::GOAWAY)));
        assert_eq!(tunnel.control.pop_back().and_then(|frame| frame.close_code()), Some(1000));
        tunnel.session.send(FIN | CLOSE, &1000u16.to_be_bytes()).await;
        assert_eq!(tunnel.session.next().await, None);
    });
}

/// Opens a pair; returns the pod's end, once a byte has come there.
async fn connected(tunnel: &mut Tunnel, listener: &TcpListener, port: u16) -> tokio::net::TcpStream {
    let (frames, error) = tunnel.pair(port);
    tunnel.send(&[frames, data(error + 2, 0, b"!")].concat(), usize::MAX).await;
    let mut server = accept(listener).await;
    assert_eq!(within(server.read_u8()).await.ok(), Some(b'!'));
    server
}
