//! The console socket: where the runtime hands over a new terminal's master end.

use std::{
    env, fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use tokio::{io::Interest, net::UnixListener};

use crate::sys::{SysError, random::random_hex, socket};

/// A listening socket that exists as long as this value.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens under a name nobody can guess, reachable by root alone, short enough for any runtime's `connect`.
    pub(crate) fn listen() -> Result<Self, SysError> {
        let directory =
            env::var_os("TMPDIR").map(PathBuf::from).filter(|d| d.is_absolute() && d.as_os_str().len() < 50);
        let name = format!("conmon-term-{}.sock", random_hex()?);
        let path = directory.unwrap_or_else(|| "/tmp".into()).join(name);
        let listener = socket::listen_stream(&path, 0o700)?;
        let listener = UnixListener::from_std(listener).map_err(|e| SysError::io("listen on", &path, &e))?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the runtime and receives the terminal. Cancel safe until the runtime has connected.
    pub(crate) async fn receive(&self) -> Result<OwnedFd, SysError> {
        let fail = |e: &std::io::Error| SysError::io("receive the terminal on", &self.path, e);
        let (stream, _) = self.listener.accept().await.map_err(|e| fail(&e))?;
        loop {
            stream.readable().await.map_err(|e| fail(&e))?;
            let attempt = || socket::receive_fd(stream.as_fd()).map_err(|e| std::io::Error::from(e.errno()));
            match stream.try_io(Interest::READABLE, attempt) {
                Ok(Some(master)) => return Ok(master),
                Ok(None) => return Err(SysError::at("receive the terminal on", &self.path, Errno::EPROTO)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(fail(&e)),
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
