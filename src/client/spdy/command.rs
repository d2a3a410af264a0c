//! Exec and attach over SPDY: a stream for each thing that was asked for; streaming.md 5.7 to 5.10.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{End, Received, Session, Stream, Wire, upgrade::upgrade};
use crate::{
    client::{StreamError, StreamMessage, status, url::Target},
    model::{Outcome, StdStream},
    proto::{
        remotecommand::{StreamKind, Version, choose_spdy},
        stream_set::{Requested, StreamType},
    },
};

/// What is kept of the error stream, in bytes; a status has some hundreds. What comes beyond is thrown away.
const MAX_STATUS: usize = 64 << 10;

/// The half that sends.
#[derive(Debug)]
pub(in crate::client) struct Sender {
    session: Rc<Session>,
    stdin: Option<Stream>,
    resize: Option<Stream>,
}

/// The half that receives.
#[derive(Debug)]
pub(in crate::client) struct Receiver {
    session: Rc<Session>,
    version: Version,
    /// `None` when it was not asked for, or has ended.
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    error: Option<Stream>,
    status: Vec<u8>,
    /// The connection ended before one of the outputs did.
    lost: bool,
}

/// Upgrades a connection and opens the streams of the session, which begins with the last of them.
pub(in crate::client) async fn connect(
    mut tcp: TcpStream,
    target: &Target<'_>,
    offers: &[&str],
    requested: Requested,
) -> Result<(Sender, Receiver, String), StreamError> {
    let upgraded = upgrade(&mut tcp, target, offers).await?;
    let protocol = choose_spdy(StreamKind::Exec, &[&upgraded.protocol])
        .map_err(|_| StreamError::Broken(format!("we do not speak {}", upgraded.protocol)))?;
    let (reader, writer) = tcp.into_split();
    let wire = Wire { reader: Box::new(reader), writer: Box::new(writer), early: upgraded.early };
    let (sender, receiver) = open(Session::new(wire), protocol.version, requested).await?;
    Ok((sender, receiver, upgraded.protocol))
}

async fn open(session: Rc<Session>, version: Version, requested: Requested) -> Result<(Sender, Receiver), StreamError> {
    let mut sender = Sender { session: session.clone(), stdin: None, resize: None };
    let mut receiver = Receiver {
        session: session.clone(),
        version,
        stdout: None,
        stderr: None,
        error: None,
        status: Vec::new(),
        lost: false,
    };
    for kind in requested.streams(version) {
        let stream = session.open(&[("streamtype", kind.name())], false, kind.name()).await?;
        let place = match kind {
            StreamType::Error => &mut receiver.error,
            StreamType::Stdin => &mut sender.stdin,
            StreamType::Stdout => &mut receiver.stdout,
            StreamType::Stderr => &mut receiver.stderr,
            StreamType::Resize => &mut sender.resize,
        };
        *place = Some(stream);
    }
    Ok((sender, receiver))
}

impl Sender {
    pub(in crate::client) async fn send_stdin(&self, bytes: &[u8]) -> Result<(), StreamError> {
        let stdin = self.stdin.as_ref().ok_or(StreamError::NoStream("stdin"))?;
        stdin.send(Bytes::copy_from_slice(bytes)).await
    }

    pub(in crate::client) fn close_stdin(&self) -> Result<(), StreamError> {
        self.stdin.as_ref().ok_or(StreamError::NoStream("stdin")).map(Stream::finish)
    }

    pub(in crate::client) async fn send_size(&self, json: &[u8]) -> Result<(), StreamError> {
        let resize = self.resize.as_ref().ok_or(StreamError::NoStream("resize"))?;
        resize.send(Bytes::copy_from_slice(json)).await
    }

    pub(in crate::client) async fn close(&self) {
        self.session.goodbye().await;
    }
}

impl Receiver {
    /// Output, then the status once all output has come, then the end. Cancel safe.
    pub(in crate::client) async fn next(&mut self) -> Result<StreamMessage, StreamError> {
        loop {
            let (output, received) = tokio::select! {
                received = next_of(self.stdout.as_ref()), if self.stdout.is_some() => (StdStream::Stdout, received),
                received = next_of(self.stderr.as_ref()), if self.stderr.is_some() => (StdStream::Stderr, received),
                // After a loss, a status would say that this was all.
                else => return if self.lost { self.end_lost() } else { self.next_status().await },
            };
            match (output, received) {
                (StdStream::Stdout, Received::Data(bytes)) => return Ok(StreamMessage::Stdout(bytes)),
                (StdStream::Stderr, Received::Data(bytes)) => return Ok(StreamMessage::Stderr(bytes)),
                (output, Received::End(end)) => {
                    // The other may still have something to tell.
                    self.lost |= end == End::Lost;
                    match output {
                        StdStream::Stdout => self.stdout = None,
                        StdStream::Stderr => self.stderr = None,
                    }
                }
            }
        }
    }

    async fn next_status(&mut self) -> Result<StreamMessage, StreamError> {
        while let Some(error) = &self.error {
            match error.next().await {
                Received::Data(bytes) => {
                    let room = MAX_STATUS.saturating_sub(self.status.len());
                    self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Received::End(End::Lost) => {
                    self.lost = true;
                    return self.end_lost();
                }
                Received::End(_) => {
                    self.error = None;
                    if !self.status.is_empty() {
                        return Ok(StreamMessage::Status(status::outcome(&self.status)));
                    }
                    // Before v4, silence is success.
                    if self.version < Version::V4 {
                        return Ok(StreamMessage::Status(Outcome::Exited(0)));
                    }
                }
            }
        }
        // The server waits for this before it closes.
        self.session.goodbye().await;
        Ok(StreamMessage::Closed { code: None })
    }

    fn end_lost(&self) -> Result<StreamMessage, StreamError> {
        self.session.fault().map_or(Ok(StreamMessage::Closed { code: None }), Err)
    }
}

/// What came on a stream; nothing ever where there is none.
async fn next_of(stream: Option<&Stream>) -> Received {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
