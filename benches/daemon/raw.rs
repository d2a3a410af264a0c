//! Streaming clients that do as little as possible, so that it is not they who are measured.

use std::time::Duration;

use bytes::BytesMut;
use holdfast::proto::spdy::{Connection, GoAwayStatus, Side, StreamId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::Result;

/// No step takes longer unless something is wrong.
const LIMIT: Duration = Duration::from_secs(120);
const BUFFER: usize = 256 * 1024;
/// How a successful exec ends, on either wire.
const STATUS: &[u8] = br#""status":"Success"}"#;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    WebSocket,
    Spdy,
}

impl Wire {
    pub(super) const BOTH: [Self; 2] = [Self::WebSocket, Self::Spdy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Spdy => "SPDY",
        }
    }
}

/// One session, open.
#[derive(Debug)]
pub(super) struct Raw {
    stream: TcpStream,
    wire: Wire,
    /// What has come and was not looked at.
    input: BytesMut,
    spdy: Option<(Connection, StreamId)>,
}

impl Raw {
    /// Opens a session. `streams` are those of SPDY besides the error stream; the last one is the one for input.
    pub(super) async fn connect(url: &str, wire: Wire, streams: &[&str]) -> Result<Self> {
        let (address, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).ok_or("no URL")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut raw = Self { stream, wire, input: BytesMut::new(), spdy: None };
        let head = match wire {
            Wire::WebSocket => format!(
                "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
            ),
            Wire::Spdy => format!(
                "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
                 X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
            ),
        };
        raw.stream.write_all(head.as_bytes()).await?;
        let end = loop {
            match raw.input.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => raw.fill().await?,
            }
        };
        let answer = raw.input.split_to(end);
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            return Err(String::from_utf8_lossy(&answer).into_owned().into());
        }
        if wire == Wire::Spdy {
            let mut connection = Connection::new(Side::Client);
            let mut last = connection.open(&[("streamtype", "error")], false)?;
            for name in streams {
                last = connection.open(&[("streamtype", name)], false)?;
            }
            raw.spdy = Some((connection, last));
            raw.flush().await?;
        }
        Ok(raw)
    }

    async fn fill(&mut self) -> Result<()> {
        match timeout(LIMIT, self.stream.read_buf(&mut self.input)).await?? {
            0 => Err("the connection ended".into()),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let Some((connection, _)) = &mut self.spdy else { return Ok(()) };
        let mut bytes = Vec::new();
        while let Some(frame) = connection.poll_transmit() {
            bytes.extend_from_slice(&frame.head);
            bytes.extend_from_slice(&frame.body);
        }
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// Reads to the status; returns the time from the first byte on, and how many bytes came, heads of frames included.
    pub(super) async fn drain(&mut self) -> Result<(Duration, usize)> {
        let mut buffer = vec![0; BUFFER];
        let (mut total, mut tail, mut start) = (0, Vec::new(), None);
        loop {
            let count = timeout(LIMIT, self.stream.read(&mut buffer)).await??;
            if count == 0 {
                return Err(format!("the connection ended after {total} bytes without a status").into());
            }
            let start = *start.get_or_insert_with(Instant::now);
            total += count;
            // A status may come in two reads.
            tail.extend_from_slice(&buffer[count.saturating_sub(1024)..count]);
            if tail.windows(STATUS.len()).any(|window| window == STATUS) {
                return Ok((start.elapsed(), total));
            }
            tail.drain(..tail.len().saturating_sub(STATUS.len()));
        }
    }

    /// Sends bytes to the process and waits for as many from it.
    pub(super) async fn echo(&mut self, payload: &[u8]) -> Result<()> {
        match self.wire {
            Wire::WebSocket => {
                // A mask of zeros changes nothing.
                let mut frame = vec![0x82, 0x80 | u8::try_from(payload.len() + 1)?, 0, 0, 0, 0, 0];
                frame.extend_from_slice(payload);
                self.stream.write_all(&frame).await?;
            }
            Wire::Spdy => {
                if let Some((connection, stdin)) = &mut self.spdy {
                    connection.send(*stdin, payload.to_vec().into())?;
                }
                self.flush().await?;
            }
        }
        let mut left = payload.len();
        while left > 0 {
            match self.payload() {
                Some(count) => left = left.checked_sub(count).ok_or("more came back than was sent")?,
                None => self.fill().await?,
            }
        }
        Ok(())
    }

    /// How much payload the next frame has; only output comes.
    fn payload(&mut self) -> Option<usize> {
        let (head, body, overhead) = match self.wire {
            Wire::WebSocket => match usize::from(*self.input.get(1)?) {
                126 => (4, usize::from(u16::from_be_bytes(self.input.get(2..4)?.try_into().ok()?)), 1),
                length => (2, length, 1),
            },
            Wire::Spdy => {
                let length = self.input.get(4..8)?;
                let is_data = self.input[0] & 0x80 == 0;
                let length = usize::from(length[1]) << 16 | usize::from(length[2]) << 8 | usize::from(length[3]);
                (8, length, if is_data { 0 } else { length })
            }
        };
        if self.input.len() < head + body {
            return None;
        }
        drop(self.input.split_to(head + body));
        Some(body - overhead)
    }

    /// Says good-bye.
    pub(super) async fn close(mut self) -> Result<()> {
        match self.wire {
            Wire::WebSocket => self.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).await?,
            Wire::Spdy => {
                if let Some((connection, _)) = &mut self.spdy {
                    connection.go_away(GoAwayStatus::OK);
                }
                self.flush().await?;
            }
        }
        Ok(())
    }
}
