//! SPDY by hand, frame by frame, where a test is about what is on the wire.
//!
//! Only header blocks are read and written with the daemon's own code; frames are put together here, so that a test can
//! send what no client would, and so that both ends cannot share a mistake.

use std::{collections::BTreeMap, io};

use holdfast::proto::spdy::{HeaderReader, HeaderWriter};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use super::{
    raw_ws::{Answer, Http, head},
    within,
};

pub(crate) const V4: &str = "v4.channel.k8s.io";
pub(crate) const FORWARD: &str = "portforward.k8s.io";

pub(crate) const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const HEADERS: u16 = 8;
pub(crate) const WINDOW_UPDATE: u16 = 9;

/// The flag of a frame that is the last of its stream.
pub(crate) const FIN: u8 = 1;
/// Statuses of RST_STREAM.
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const CANCEL: u32 = 5;

/// The lines of an upgrade to SPDY, without the protocol.
pub(crate) const UPGRADE: [&str; 3] = ["Content-Length: 0", "Connection: Upgrade", "Upgrade: SPDY/3.1"];

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Reply(u32),
    Data { id: u32, fin: bool, bytes: Vec<u8> },
    Reset { id: u32, status: u32 },
    Ping(u32),
    GoAway { last_good: u32, status: u32 },
}

/// One SPDY connection; its halves can be used at the same time.
#[derive(Debug)]
pub(crate) struct RawSpdy {
    pub(crate) reader: SpdyReader,
    pub(crate) writer: SpdyWriter,
}

/// The streams of an exec or attach by type.
pub(crate) type Ids = BTreeMap<&'static str, u32>;

/// The two streams of one forwarded connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) error: u32,
    pub(crate) data: u32,
}

/// What came on all streams.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) frames: Vec<Frame>,
}

impl RawSpdy {
    /// Upgrades as client-go does; the server must agree on this protocol.
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let offer = format!("X-Stream-Protocol-Version: {protocol}");
        let (session, answer) = Self::upgrade(url, "POST", &[&UPGRADE[..], &[&offer]].concat(), b"").await;
        assert_eq!(answer.header("x-stream-protocol-version"), Some(protocol), "{answer:?}");
        session.unwrap_or_else(|| panic!("{answer:?}"))
    }

    /// Asks for an upgrade with these header lines; `early` are frames sent together with the head.
    pub(crate) async fn upgrade(url: &str, method: &str, lines: &[&str], early: &[u8]) -> (Option<Self>, Answer) {
        let mut http = Http::connect(url).await;
        let request = [&head(method, &http.path, lines)[..], early].concat();
        http.send(&request).await;
        let answer = http.answer(method).await;
        let session = (answer.status == 101).then(|| Self::on(http));
        (session, answer)
    }

    fn on(http: Http) -> Self {
        let (stream, buffer) = http.upgraded();
        let (reader, writer) = stream.into_split();
        let reader = SpdyReader { stream: reader, buffer, headers: HeaderReader::new(), was_reset: false };
        Self { reader, writer: SpdyWriter { stream: writer, headers: HeaderWriter::new(), next_id: 1 } }
    }

    /// Opens a stream and waits for the answer, as client-go does; nothing else may come before it.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.writer.offer(headers).await;
        assert_eq!(self.reader.next().await, Some(Frame::Reply(id)), "{headers:?}");
        id
    }

    /// Opens the streams of an exec or attach, one after the other.
    pub(crate) async fn open_all(&mut self, types: &[&'static str]) -> Ids {
        let mut ids = Ids::new();
        for name in types {
            ids.insert(name, self.open(&[("streamtype", name)]).await);
        }
        ids
    }

    /// Upgrades and opens the streams of a session.
    pub(crate) async fn session(url: &str, types: &[&'static str]) -> (Self, Ids) {
        let mut session = Self::connect(url, V4).await;
        let ids = session.open_all(types).await;
        (session, ids)
    }

    /// Opens both streams of a forwarded connection as client-go does: error first, whose own half ends at once.
    pub(crate) async fn open_pair(&mut self, port: u16, request: u32) -> Pair {
        let (port, request) = (port.to_string(), request.to_string());
        let common = [("port", &port[..]), ("requestid", &request)];
        let error = self.open(&[&[("streamtype", "error")], &common[..]].concat()).await;
        self.writer.fin(error).await;
        let data = self.open(&[&[("streamtype", "data")], &common[..]].concat()).await;
        Pair { error, data }
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let stream = self.reader.stream.reunite(self.writer.stream).expect("they are of one socket");
        setsockopt(&stream, sockopt::Linger, &linger).expect("any socket takes it");
    }

    /// What comes until all streams have ended that a client waits for; then says good-bye, as client-go does.
    pub(crate) async fn finish(mut self, ids: &Ids) -> Seen {
        let seen = self.reader.until_ended(ids).await;
        self.bye().await;
        seen
    }

    /// Says good-bye, upon which the server must do the same and close without a reset.
    pub(crate) async fn bye(mut self) {
        self.writer.goaway().await;
        let rest = self.reader.rest().await;
        assert!(matches!(rest.frames.last(), Some(Frame::GoAway { status: 0, .. })), "{rest:?}");
        assert!(!self.reader.was_reset, "the server closed with unread input");
    }
}

/// The half that receives.
#[derive(Debug)]
pub(crate) struct SpdyReader {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    headers: HeaderReader,
    /// The connection ended with a TCP reset.
    pub(crate) was_reset: bool,
}

impl SpdyReader {
    /// The next frame; `None` at the end of the connection. WINDOW_UPDATE is left out.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        within(self.read()).await
    }

    /// The next frame without a limit of time. Cancel safe.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(end) = self.buffered() {
                // Not by `drain(..).collect()`, which is slow in an unoptimised build: tests read many megabytes.
                let raw = self.buffer[..end].to_vec();
                self.buffer.drain(..end);
                if let Some(frame) = self.parse(&raw) {
                    return Some(frame);
                }
                continue;
            }
            self.buffer.reserve(32 << 10);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the end within a frame: {:?}", self.buffer);
                    return None;
                }
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    self.was_reset = true;
                    return None;
                }
            }
        }
    }

    /// The length of the first frame, once it is whole.
    fn buffered(&self) -> Option<usize> {
        let [_, _, _, _, _, high, middle, low] = *self.buffer.first_chunk()?;
        let end = 8 + u32::from_be_bytes([0, high, middle, low]) as usize;
        (self.buffer.len() >= end).then_some(end)
    }

    fn parse(&mut self, frame: &[u8]) -> Option<Frame> {
        let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        if frame[0] & 0x80 == 0 {
            assert!(frame.len() <= 8 + (32 << 10), "a DATA frame of {} bytes", frame.len());
            return Some(Frame::Data { id: word(0), fin: frame[4] & FIN != 0, bytes: frame[8..].to_vec() });
        }
        assert_eq!(frame[..2], [0x80, 3], "a control frame of SPDY/3");
        match u16::from_be_bytes([frame[2], frame[3]]) {
            SYN_REPLY => {
                assert_eq!(frame[4], 0, "flags of a SYN_REPLY");
                let headers = self.headers.read(&frame[12..]).expect("one zlib stream").expect("a header block");
                assert_eq!(headers, Default::default(), "no headers");
                Some(Frame::Reply(word(8)))
            }
            RST_STREAM => Some(Frame::Reset { id: word(8), status: word(12) }),
            PING => Some(Frame::Ping(word(8))),
            GOAWAY => Some(Frame::GoAway { last_good: word(8), status: word(12) }),
            WINDOW_UPDATE => None,
            other => panic!("a frame of type {other}"),
        }
    }

    /// What comes until the end of the connection.
    pub(crate) async fn rest(&mut self) -> Seen {
        let mut seen = Seen::default();
        while let Some(frame) = self.next().await {
            seen.push(frame);
        }
        seen
    }

    /// What comes until every stream that a client waits for has ended: output and status. GOAWAY must not come earlier.
    pub(crate) async fn until_ended(&mut self, ids: &Ids) -> Seen {
        let mut seen = Seen::default();
        let awaited = || ["error", "stdout", "stderr"].iter().filter_map(|name| ids.get(name));
        while !awaited().all(|id| seen.has_ended(*id)) {
            let frame = self.next().await.unwrap_or_else(|| panic!("the end before that of a stream: {seen:?}"));
            assert!(!matches!(frame, Frame::GoAway { .. }), "GOAWAY before the end of a stream: {seen:?}");
            seen.push(frame);
        }
        seen
    }

    /// Reads until this stream's payload, put together, ends with the text; everything else is dropped.
    pub(crate) async fn wait_output(&mut self, stream: u32, text: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            match self.next().await {
                Some(Frame::Data { id, bytes, .. }) if id == stream => seen.extend(bytes),
                Some(Frame::Data { .. } | Frame::Ping(_) | Frame::Reply(_)) => {}
                other => panic!("{other:?} before {text:?}, after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
    }

    /// Reads until this frame has come.
    pub(crate) async fn wait(&mut self, wanted: &Frame) -> Seen {
        let mut seen = Seen::default();
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the end before {wanted:?}: {seen:?}"));
            if frame == *wanted {
                return seen;
            }
            seen.push(frame);
        }
    }
}

impl Seen {
    /// Keeps a frame. Payload of one stream without a gap is put together: many megabytes come in these tests.
    fn push(&mut self, frame: Frame) {
        if let (Some(Frame::Data { id, fin: end @ false, bytes }), Frame::Data { id: same, fin, bytes: more }) =
            (self.frames.last_mut(), &frame)
            && id == same
        {
            bytes.extend(more);
            *end = *fin;
            return;
        }
        self.frames.push(frame);
    }

    /// The payload of a stream.
    pub(crate) fn payload(&self, stream: u32) -> Vec<u8> {
        let data = self.frames.iter().filter_map(|frame| match frame {
            Frame::Data { id, bytes, .. } if *id == stream => Some(&bytes[..]),
            _ => None,
        });
        data.flatten().copied().collect()
    }

    /// The same as text.
    pub(crate) fn text(&self, stream: u32) -> String {
        String::from_utf8(self.payload(stream)).expect("text")
    }

    /// Whether the server has ended a stream.
    pub(crate) fn has_ended(&self, stream: u32) -> bool {
        self.frames.iter().any(|frame| match frame {
            Frame::Data { id, fin: true, .. } | Frame::Reset { id, .. } => *id == stream,
            _ => false,
        })
    }

    /// The place of the last frame of a kind.
    pub(crate) fn last(&self, is: impl Fn(&Frame) -> bool) -> Option<usize> {
        self.frames.iter().rposition(is)
    }
}

/// The half that sends. That the server has closed is no failure here: what it said before is what tests look at.
#[derive(Debug)]
pub(crate) struct SpdyWriter {
    stream: OwnedWriteHalf,
    headers: HeaderWriter,
    /// The id of the next stream.
    pub(crate) next_id: u32,
}

impl SpdyWriter {
    /// Sends bytes as they are.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = within(self.stream.write_all(bytes)).await;
    }

    /// The same without a limit of time; whether the server took them.
    pub(crate) async fn raw_slowly(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Sends SYN_STREAM for a stream of the next id and does not wait.
    pub(crate) async fn offer(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next_id;
        self.offer_as(id, 0, headers).await;
        id
    }

    /// The same with an id and flags of its own.
    pub(crate) async fn offer_as(&mut self, id: u32, flags: u8, headers: &[(&str, &str)]) {
        self.next_id = self.next_id.max(id + 2);
        let block = self.headers.write(headers);
        self.raw(&syn_stream(id, flags, &block)).await;
    }

    /// The next header block, for frames that a test puts together by itself.
    pub(crate) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        self.headers.write(headers)
    }

    pub(crate) async fn data(&mut self, id: u32, bytes: &[u8]) {
        self.raw(&data(id, 0, bytes)).await;
    }

    pub(crate) async fn fin(&mut self, id: u32) {
        self.raw(&data(id, FIN, b"")).await;
    }

    pub(crate) async fn rst(&mut self, id: u32, status: u32) {
        self.raw(&control(RST_STREAM, 0, &[id, status], b"")).await;
    }

    pub(crate) async fn ping(&mut self, number: u32) {
        self.raw(&control(PING, 0, &[number], b"")).await;
    }

    pub(crate) async fn goaway(&mut self) {
        self.raw(&control(GOAWAY, 0, &[0, 0], b"")).await;
    }
}

/// A DATA frame.
pub(crate) fn data(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(id.to_be_bytes(), flags, bytes)
}

/// A SYN_STREAM frame.
pub(crate) fn syn_stream(id: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    control(SYN_STREAM, flags, &[id, 0], &[&[0, 0], block].concat())
}

/// A control frame whose body begins with words.
pub(crate) fn control(kind: u16, flags: u8, words: &[u32], rest: &[u8]) -> Vec<u8> {
    let [high, low] = kind.to_be_bytes();
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    body.extend(rest);
    frame([0x80, 3, high, low], flags, &body)
}

fn frame(begin: [u8; 4], flags: u8, body: &[u8]) -> Vec<u8> {
    let [.., high, middle, low] = body.len().to_be_bytes();
    assert!(body.len() < 1 << 24, "the length of a frame has 24 bits");
    [&begin[..], &[flags, high, middle, low], body].concat()
}
