//! A client of the streaming server that sends any bytes.

use std::{io, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::DEADLINE;

pub(crate) struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// `127.0.0.1:port` and the path of a URL.
pub(crate) fn parts(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("URLs are absolute");
    rest.split_at(rest.find('/').expect("URLs have a path"))
}

/// The head of a good upgrade, ready for more lines and its end.
pub(crate) fn upgrade(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    )
}

/// A masked frame; a mask of zeros changes nothing.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).expect("below 126")),
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

impl Raw {
    pub(crate) async fn connect(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("the server listens"), buffer: Vec::new() }
    }

    /// A session of a URL, past its head.
    pub(crate) async fn session(url: &str) -> Self {
        let (address, path) = parts(url);
        let mut raw = Self::connect(address).await;
        raw.send(format!("{}\r\n", upgrade(path, "v5.channel.k8s.io")).as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw
    }

    /// Sends bytes; that the server has closed meanwhile is no failure here.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        drop(timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("the server reads or closes"));
    }

    /// The head of the answer, with the empty line; empty if there is none.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return String::from_utf8(head).expect("heads are text");
            }
            if !self.fill().await {
                return String::new();
            }
        }
    }

    /// The head and the body of the answer to a request.
    pub(crate) async fn ask(&mut self, request: &str) -> (String, String) {
        self.send(request.as_bytes()).await;
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.unwrap_or_else(|| panic!("no length in {head:?}"));
        while self.buffer.len() < length {
            assert!(self.fill().await, "the body is too short");
        }
        let body = self.buffer.drain(..length).collect();
        (head, String::from_utf8(body).expect("bodies are text"))
    }

    /// Everything until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    /// The opcode and the payload of the next frame; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.bytes(2).await?;
        let length = match first[1] {
            126 => self.bytes(2).await?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
            127 => self.bytes(8).await?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
            length => usize::from(length),
        };
        Some((first[0] & 0x0f, self.bytes(length).await?))
    }

    /// The code of the server's Close frame, after which it must close the connection.
    pub(crate) async fn close_code(&mut self) -> u16 {
        loop {
            let (opcode, payload) = self.frame().await.expect("a Close frame before the end");
            if opcode == 8 {
                assert!(self.rest().await.is_empty(), "something came behind the Close frame");
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &linger).expect("any socket takes it");
    }

    async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    async fn fill(&mut self) -> bool {
        let read: Result<io::Result<usize>, _> = timeout(DEADLINE, self.stream.read_buf(&mut self.buffer)).await;
        // An error is a reset: the server had not read everything.
        read.expect("the server sends or closes").is_ok_and(|count| count > 0)
    }

    /// Whether the server has closed, waiting a little.
    pub(crate) async fn is_closed_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|read| read.is_ok_and(|n| n == 0))
    }
}
