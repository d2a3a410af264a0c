//! The caller's terminal and stdin.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::{AsFd, OwnedFd},
};

use bytes::Bytes;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use super::CliError;
use crate::{model::WindowSize, sys::pty};

const READ_SIZE: usize = 16 << 10;
/// Pieces of stdin read ahead; when they wait, the reading thread waits too.
const READ_AHEAD: usize = 4;

/// A terminal that passes every key on as it is, until this is dropped.
#[derive(Debug)]
pub(super) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Of the terminal that stdin is.
    pub(super) fn enter() -> Result<Self, CliError> {
        let next = "run it from a terminal, or leave out -t";
        if !io::stdin().is_terminal() {
            return Err(CliError::hint("-i with -t needs a terminal as stdin", next));
        }
        let failed = |error: io::Error| CliError::hint(format!("cannot set up the terminal: {error}"), next);
        let terminal = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let before = tcgetattr(&terminal).map_err(|errno| failed(errno.into()))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSADRAIN, &raw).map_err(|errno| failed(errno.into()))?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone away cannot be set and need not be.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of the caller's terminal, when there is one.
pub(super) fn window_size() -> Option<WindowSize> {
    let size = pty::window_size(io::stdin().as_fd()).or_else(|_| pty::window_size(io::stdout().as_fd())).ok()?;
    // A terminal that does not know its size says 0.
    (size.cols > 0 && size.rows > 0).then_some(size)
}

/// Reads stdin on a thread of its own and hands it over in pieces; the channel ends with stdin.
///
/// A thread, because stdin may be a file, which cannot be waited for, and because switching it to non-blocking would
/// do the same to the shell we share it with. It ends with the process: nothing can wake it.
pub(super) fn read_stdin() -> Result<mpsc::Receiver<Bytes>, CliError> {
    let failed = |error: io::Error| CliError::new(format!("cannot read stdin: {error}"));
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..read])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).map_err(failed)?;
    Ok(receiver)
}
