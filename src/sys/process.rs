//! Processes by pidfd, and the peek that finds orphans.

use std::{
    mem,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::errno::Errno;

use super::{SysError, fd::adopt};
use crate::model::ExitStatus;

/// Opens a pidfd (pidfd_open(2)); close-on-exec by the kernel's own rule.
///
/// # Errors
/// `ESRCH` when no such process exists.
pub(crate) fn pidfd_open(pid: u32) -> Result<OwnedFd, SysError> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let fd = libc::c_int::try_from(Errno::result(fd).map_err(|errno| SysError::new("open a pidfd", errno))?)
        .map_err(|_| SysError::new("open a pidfd", Errno::EMFILE))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { adopt(fd) })
}

/// Sends a signal to exactly the process the pidfd was opened for.
///
/// # Errors
/// `ESRCH` when it has been reaped, `EPERM` when it is not ours to signal.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), SysError> {
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is allowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0 as libc::c_uint,
        )
    };
    Errno::result(done).map(drop).map_err(|errno| SysError::new("signal a process", errno))
}

/// Sends a signal to a process group. Only for groups whose leader we hold unreaped, so that the number is still theirs.
///
/// # Errors
/// `ESRCH` when the group is empty.
pub(crate) fn kill_group(pgid: u32, signal: i32) -> Result<(), SysError> {
    let pgid =
        i32::try_from(pgid).ok().filter(|&p| p > 1).ok_or_else(|| SysError::new("signal a group", Errno::ESRCH))?;
    // SAFETY: kill takes two integers.
    let done = unsafe { libc::kill(-pgid, signal) };
    Errno::result(done).map(drop).map_err(|errno| SysError::new("signal a group", errno))
}

/// What a look at a child by pidfd shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// Still alive.
    Running,
    /// Ended; a reaping look has collected it.
    Ended(ExitStatus),
    /// Not a child of this process, or collected by somebody else.
    NotOurs,
}

/// Whether the process behind the pidfd is a living child, without collecting anything (waitid(2), `WNOWAIT`).
///
/// # Errors
/// Only on kernel trouble; "not a child" is an answer.
pub(crate) fn peek(pidfd: BorrowedFd<'_>) -> Result<ChildState, SysError> {
    wait_pidfd(pidfd, libc::WNOHANG | libc::WNOWAIT)
}

/// Collects the exit status of the process behind the pidfd if it has ended.
///
/// # Errors
/// Only on kernel trouble; "not a child" is an answer.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Result<ChildState, SysError> {
    wait_pidfd(pidfd, libc::WNOHANG)
}

fn wait_pidfd(pidfd: BorrowedFd<'_>, flags: libc::c_int) -> Result<ChildState, SysError> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| SysError::new("wait for a process", Errno::EBADF))?;
    match waitid(libc::P_PIDFD, id, flags) {
        Ok(Some((_, status))) => Ok(ChildState::Ended(status)),
        Ok(None) => Ok(ChildState::Running),
        Err(Errno::ECHILD) => Ok(ChildState::NotOurs),
        Err(errno) => Err(SysError::new("wait for a process", errno)),
    }
}

/// The pid of the first zombie among our children, left in place.
///
/// The kernel shows the same one again until it is collected, so whoever looks must look again after each reap.
#[must_use]
pub(crate) fn first_zombie() -> Option<u32> {
    waitid(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT).ok().flatten().map(|(pid, _)| pid)
}

/// Collects one zombie by its number. Only for a pid that [`first_zombie`] just named: it cannot have been reused, since
/// it has not been collected.
pub(crate) fn reap_pid(pid: u32) -> Option<ExitStatus> {
    waitid(libc::P_PID, pid, libc::WNOHANG).ok().flatten().map(|(_, status)| status)
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> Result<Option<(u32, ExitStatus)>, Errno> {
    loop {
        // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        // SAFETY: `info` outlives the call and is the only memory the kernel writes.
        let done = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | flags) };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            // SAFETY: waitid filled in the SIGCHLD member, or left zeroes when nothing had ended.
            Ok(_) => return Ok(unsafe { decode(&info) }),
        }
    }
}

/// # Safety
/// `info` must come from waitid(2).
unsafe fn decode(info: &libc::siginfo_t) -> Option<(u32, ExitStatus)> {
    // SAFETY: by the caller, the SIGCHLD member is the valid one.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    let pid = u32::try_from(pid).ok().filter(|&pid| pid != 0)?;
    let small = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let status = match info.si_code {
        libc::CLD_EXITED => ExitStatus::Exited(small),
        libc::CLD_KILLED | libc::CLD_DUMPED => ExitStatus::Signaled(small),
        _ => ExitStatus::Lost,
    };
    Some((pid, status))
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd as _, process::Command};

    use super::*;

    fn ended(command: &mut Command) -> ExitStatus {
        #[allow(clippy::zombie_processes)] // Collected through its pidfd below: that is what is tested.
        let child = command.spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let mut poll = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, 10_000u16).unwrap();
        assert!(matches!(peek(pidfd.as_fd()).unwrap(), ChildState::Ended(_)));
        let ChildState::Ended(status) = reap(pidfd.as_fd()).unwrap() else { panic!("not ended") };
        assert_eq!(reap(pidfd.as_fd()).unwrap(), ChildState::NotOurs);
        status
    }

    #[test]
    fn exit_codes_and_every_signal_are_told_apart() {
        assert_eq!(ended(Command::new("sh").args(["-c", "exit 42"])), ExitStatus::Exited(42));
        assert_eq!(ended(Command::new("sh").args(["-c", "kill -9 $$"])), ExitStatus::Signaled(9));
        // Real-time signals have no name in most libraries; the status must survive all the same.
        assert_eq!(ended(Command::new("sh").args(["-c", "kill -40 $$"])), ExitStatus::Signaled(40));
    }

    #[test]
    fn a_process_that_is_not_a_child_is_told_from_one_that_runs() {
        let pidfd = pidfd_open(1).unwrap();
        assert_eq!(peek(pidfd.as_fd()).unwrap(), ChildState::NotOurs);
    }

    #[test]
    fn a_pid_that_does_not_exist_is_refused() {
        assert_eq!(pidfd_open(u32::try_from(i32::MAX).unwrap()).unwrap_err().errno(), Errno::ESRCH);
    }
}
