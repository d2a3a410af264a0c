//! Terminals: size and output flags of a PTY master.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use nix::{errno::Errno, sys::termios};

use super::SysError;
use crate::model::WindowSize;

/// Sets the size of a terminal (tty_ioctl(4), `TIOCSWINSZ`); its foreground group gets `SIGWINCH` when it changes.
///
/// # Errors
/// `ENOTTY` when the descriptor is no terminal.
pub(crate) fn set_window_size(fd: BorrowedFd<'_>, size: WindowSize) -> Result<(), SysError> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize through the pointer, which is valid for the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(done).map(drop).map_err(|errno| SysError::new("set the terminal size", errno))
}

/// The size of a terminal (`TIOCGWINSZ`).
///
/// # Errors
/// `ENOTTY` when the descriptor is no terminal.
pub(crate) fn window_size(fd: BorrowedFd<'_>) -> Result<WindowSize, SysError> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one winsize through the pointer, which is valid for the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(done).map_err(|errno| SysError::new("read the terminal size", errno))?;
    Ok(WindowSize { cols: size.ws_col, rows: size.ws_row })
}

/// Turns LF into CR LF on output (`ONLCR`), which every reader of a terminal expects (control-api.md 4.2). Nobody may be
/// using the terminal yet: a process that has turned it off would not be obeyed.
///
/// # Errors
/// `ENOTTY` when the descriptor is no terminal.
pub(crate) fn set_onlcr(fd: BorrowedFd<'_>) -> Result<(), SysError> {
    let set = || {
        let mut flags = termios::tcgetattr(fd.as_fd())?;
        flags.output_flags.insert(termios::OutputFlags::ONLCR);
        termios::tcsetattr(fd.as_fd(), termios::SetArg::TCSANOW, &flags)
    };
    set().map_err(|errno| SysError::new("set up the terminal", errno))
}
