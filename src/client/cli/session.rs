//! A streaming session between the caller's standard streams and a container.

use std::convert::Infallible;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::{
    signal::unix::{Signal as SignalStream, SignalKind, signal},
    sync::mpsc,
};

use super::{
    BROKEN_PIPE, CliError,
    output::{self, Reader},
    terminal,
};
use crate::{
    client::{
        Requested, SPDY_PROTOCOLS, STREAM_PROTOCOLS, StreamClient, StreamMessage, StreamReceiver, StreamSender,
        Transport,
    },
    model::{Outcome, StdStream},
};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With a status.
    Status(Outcome),
    /// The connection was closed without one.
    Lost,
    /// Nobody reads our stdout or stderr any more.
    ReaderGone,
}

/// Opens the session of a URL by the transport that the user chose.
pub(super) async fn connect(url: &str, transport: Transport, requested: Requested) -> Result<StreamClient, CliError> {
    let stream = match transport {
        Transport::WebSocket => StreamClient::connect(url, &STREAM_PROTOCOLS).await,
        Transport::Spdy => StreamClient::connect_spdy(url, &SPDY_PROTOCOLS, requested).await,
    };
    Ok(stream?)
}

/// The exit code of a session of one command, or of a container.
pub(super) fn code(end: End) -> Result<u8, CliError> {
    match end {
        End::Status(Outcome::Exited(code)) => Ok(code),
        End::Status(Outcome::Failed(text)) => Err(CliError::new(text)),
        End::Lost => {
            let what = "the session ended without a status, so the exit code is not known";
            Err(CliError::hint(what, "see the daemon's log"))
        }
        End::ReaderGone => Ok(BROKEN_PIPE),
    }
}

/// Copies between the session and the caller's streams until the server ends it.
///
/// `stdin` is closed in the session when it ends; `tty` sends the terminal's size now and whenever it changes.
pub(super) async fn copy(
    stream: StreamClient,
    stdin: Option<mpsc::Receiver<Bytes>>,
    tty: bool,
) -> Result<End, CliError> {
    let (sender, receiver) = stream.split();
    let resizes = tty
        .then(|| signal(SignalKind::window_change()))
        .transpose()
        .map_err(|error| CliError::new(format!("cannot watch the size of the terminal: {error}")))?;
    // Both halves at once: a process that echoes takes no more input while its output is not read.
    tokio::select! {
        end = copy_output(receiver) => end,
        never = copy_input(sender, stdin, resizes) => match never {},
    }
}

async fn copy_output(mut receiver: StreamReceiver) -> Result<End, CliError> {
    let mut status = None;
    loop {
        let reader = match receiver.next().await? {
            StreamMessage::Stdout(bytes) => output::write(StdStream::Stdout, &bytes)?,
            StreamMessage::Stderr(bytes) => output::write(StdStream::Stderr, &bytes)?,
            StreamMessage::Status(outcome) => {
                status = Some(outcome);
                Reader::There
            }
            StreamMessage::Closed { .. } => return Ok(status.map_or(End::Lost, End::Status)),
        };
        if reader == Reader::Gone {
            return Ok(End::ReaderGone);
        }
    }
}

/// Runs until it is dropped; that the connection is lost is for the output half to tell.
async fn copy_input(
    mut sender: StreamSender,
    mut stdin: Option<mpsc::Receiver<Bytes>>,
    mut resizes: Option<SignalStream>,
) -> Infallible {
    if resizes.is_some() {
        send_size(&mut sender).await;
    }
    loop {
        tokio::select! {
            Some(piece) = next_piece(&mut stdin) => match piece {
                Some(bytes) => {
                    if sender.send_stdin(&bytes).await.is_err() {
                        stdin = None;
                    }
                }
                None => {
                    // Protocols before v5 cannot say it; the process then waits for input that will not come.
                    let _ = sender.close_stdin().await;
                    stdin = None;
                }
            },
            Some(()) = next_resize(&mut resizes) => send_size(&mut sender).await,
            else => std::future::pending().await,
        }
    }
}

/// A piece of stdin, or its end (`Some(None)`); nothing when stdin is not copied.
async fn next_piece(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Option<Bytes>> {
    match stdin {
        Some(stdin) => Some(stdin.recv().await),
        None => None,
    }
}

async fn next_resize(resizes: &mut Option<SignalStream>) -> Option<()> {
    match resizes {
        Some(resizes) => resizes.recv().await,
        None => None,
    }
}

async fn send_size(sender: &mut StreamSender) {
    if let Some(size) = terminal::window_size() {
        // A lost connection is told by the output half.
        let _ = sender.resize(size).await;
    }
}

/// The signals that ask this process to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hang_up: SignalStream,
}

impl Signals {
    /// From now on they are handed out by [`Signals::next`] instead of ending the process.
    pub(super) fn watch() -> Result<Self, CliError> {
        let watch = |kind| signal(kind).map_err(|error| CliError::new(format!("cannot watch for signals: {error}")));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hang_up: watch(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        }
    }
}

/// The exit code that shells give a process which a signal ended.
pub(super) fn signal_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
