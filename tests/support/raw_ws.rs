//! HTTP and WebSocket by hand, where a test is about what is on the wire.

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::within;

pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;
/// The bit that says that a frame is the last of its message.
pub(crate) const FIN: u8 = 0x80;

/// One connection to the streaming server.
#[derive(Debug)]
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// What the URL says behind host and port.
    pub(crate) path: String,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.split_once(':').is_some_and(|(is, _)| is.eq_ignore_ascii_case(name));
        self.head.lines().find(named)?.split_once(':').map(|(_, value)| value.trim())
    }
}

impl Http {
    pub(crate) async fn connect(url: &str) -> Self {
        let (address, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("absolute");
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream: BufReader::new(stream), path: format!("/{path}") }
    }

    /// Sends a request and receives its answer, which must be delimited.
    pub(crate) async fn request(&mut self, method: &str, path: &str, headers: &[&str]) -> Answer {
        self.send(&head(method, path, headers)).await;
        self.answer(method).await
    }

    /// Receives the answer to a request.
    pub(crate) async fn answer(&mut self, method: &str) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = within(self.stream.read_line(&mut head)).await.expect("the head of an answer");
            assert!(read > 0, "the connection ended within the head {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let mut answer = Answer { status, head, body: String::new() };
        if status != 101 && method != "HEAD" {
            let length = answer.header("content-length").expect("a delimited answer").parse().expect("a number");
            let mut body = vec![0; length];
            within(self.stream.read_exact(&mut body)).await.expect("the body of an answer");
            answer.body = String::from_utf8(body).expect("bodies are text");
        }
        answer
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.get_mut().write_all(bytes)).await.expect("the server reads");
    }

    /// The connection itself, and what was read from it behind the last answer.
    pub(crate) fn upgraded(self) -> (TcpStream, Vec<u8>) {
        let early = self.stream.buffer().to_vec();
        (self.stream.into_inner(), early)
    }
}

/// The head of a request.
pub(crate) fn head(method: &str, path: &str, headers: &[&str]) -> Vec<u8> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: elsewhere.example\r\n{lines}\r\n").into()
}

/// The lines of a WebSocket upgrade, and its `Sec-WebSocket-Accept`, which are the example of RFC 6455 section 1.3.
pub(crate) const UPGRADE: [&str; 4] = [
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a Close frame.
    pub(crate) fn close_code(&self) -> Option<u16> {
        (self.opcode == CLOSE).then(|| self.payload.first_chunk().map(|code| u16::from_be_bytes(*code)))?
    }
}

/// A session frame by frame.
#[derive(Debug)]
pub(crate) struct RawSession(Http);

impl RawSession {
    pub(crate) async fn open(url: &str, protocol: &str) -> Self {
        let mut http = Http::connect(url).await;
        let offer = format!("Sec-WebSocket-Protocol: {protocol}");
        let path = http.path.clone();
        let answer = http.request("GET", &path, &[&UPGRADE[..], &[&offer]].concat()).await;
        assert_eq!((answer.status, answer.header("sec-websocket-accept")), (101, Some(ACCEPT)), "{answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), Some(protocol));
        Self(http)
    }

    /// Sends a masked frame; `first` is its first byte.
    pub(crate) async fn send(&mut self, first: u8, payload: &[u8]) {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | u8::try_from(length).expect("checked")),
            length @ 126..65536 => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).expect("checked").to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.send(&frame).await;
    }

    /// Sends bytes as they are.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.0.send(bytes).await;
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.0.stream.get_ref(), sockopt::Linger, &linger).expect("any socket takes it");
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        within(self.read()).await
    }

    async fn read(&mut self) -> Option<Frame> {
        let stream = &mut self.0.stream;
        let (first, second) = (stream.read_u8().await.ok()?, stream.read_u8().await.ok()?);
        assert_eq!((first & 0x70, second & 0x80), (0, 0), "no extension, not masked");
        let length = match second {
            126 => usize::from(stream.read_u16().await.ok()?),
            127 => usize::try_from(stream.read_u64().await.ok()?).expect("a length"),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.ok()?;
        Some(Frame { opcode: first & 0x0f, fin: first & FIN != 0, payload })
    }

    /// The next frame that is no pong.
    pub(crate) async fn next_message(&mut self) -> Option<Frame> {
        loop {
            match self.next().await {
                Some(frame) if frame.opcode == PONG => {}
                frame => return frame,
            }
        }
    }

    /// What comes until the Close frame, which is the last.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
            if frames.last().is_some_and(|frame| frame.opcode == CLOSE) {
                break;
            }
        }
        frames
    }

    /// Reads until the messages of a channel, put together, end with the text.
    pub(crate) async fn wait_output(&mut self, channel: u8, text: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let frame = self.next_message().await.unwrap_or_else(|| panic!("{seen:?} and the end before {text:?}"));
            assert_eq!(frame.opcode, BINARY, "{frame:?} after {:?}", String::from_utf8_lossy(&seen));
            if frame.payload[0] == channel {
                seen.extend_from_slice(&frame.payload[1..]);
            }
        }
    }
}

/// The messages of one channel in some frames, put together.
pub(crate) fn channel(frames: &[Frame], channel: u8) -> Vec<u8> {
    let data = frames.iter().filter(|frame| frame.opcode == BINARY && frame.payload.first() == Some(&channel));
    data.flat_map(|frame| frame.payload[1..].iter().copied()).collect()
}
