//! Descriptors: the one way from a number to an owner, flags, and how much waits in a pipe or socket.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::SysError;

/// The first descriptor behind the standard ones.
pub(crate) const FIRST: RawFd = 3;

/// A limit of the number of open descriptors (`RLIMIT_NOFILE`, getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileLimit {
    /// What the kernel enforces.
    pub(crate) soft: u64,
    /// How far the soft limit may be raised.
    pub(crate) hard: u64,
}

/// Becomes the owner of a descriptor that the kernel gave us as a number. No other code makes an owner of a number.
///
/// # Safety
/// The number is an open descriptor, and nothing else owns it.
pub(crate) unsafe fn adopt(raw: RawFd) -> OwnedFd {
    #[allow(clippy::disallowed_methods)] // The one place that may.
    // SAFETY: what this function asks of its caller.
    unsafe {
        OwnedFd::from_raw_fd(raw)
    }
}

/// Closes every descriptor above standard error: what a careless parent left open would otherwise live as long as the
/// pod (a mount that cannot be unmounted, a pipe that never ends).
///
/// To be called first thing in `main`: it also closes what this process itself has opened before.
///
/// # Errors
/// Where neither close_range(2) (Linux 5.9) nor /proc is there.
pub fn close_inherited() -> Result<(), SysError> {
    let first = FIRST.unsigned_abs();
    // SAFETY: takes no pointers. The descriptors are nobody's: this is called before anything owns one.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    match Errno::result(done) {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS | Errno::EPERM) => close_listed(), // An old kernel, or a seccomp filter that is older.
        Err(errno) => Err(SysError::new("close inherited descriptors", errno)),
    }
}

fn close_listed() -> Result<(), SysError> {
    const LIST: &str = "/proc/self/fd";
    let error = |error: std::io::Error| SysError::io("list", LIST, &error);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(LIST).map_err(error)? {
        numbers.extend(entry.map_err(error)?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers.into_iter().filter(|number| *number >= FIRST) {
        // SAFETY: nobody's, as above. The one that listed them is closed already, which answers EBADF.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Makes reads and writes of this open file return `EAGAIN` instead of waiting. Holds for every descriptor of it.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> Result<(), SysError> {
    let error = |errno| SysError::new("set O_NONBLOCK", errno);
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(error)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(error)?;
    Ok(())
}

/// How many bytes wait to be read (`FIONREAD`, ioctl_tty(2), pipe(7)).
pub(crate) fn fionread(fd: impl AsFd) -> Result<usize, SysError> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which is valid for that.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    Errno::result(done).map_err(|errno| SysError::new("ask for waiting input", errno))?;
    Ok(usize::try_from(waiting).unwrap_or(0))
}

/// How many bytes of a socket's output the peer's kernel has not acknowledged (`SIOCOUTQ`, tcp(7), unix(7)).
pub(crate) fn siocoutq(fd: impl AsFd) -> Result<usize, SysError> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the pointer, which is valid for that.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
    Errno::result(done).map_err(|errno| SysError::new("ask for waiting output", errno))?;
    Ok(usize::try_from(waiting).unwrap_or(0))
}

/// A pipe whose ends children do not inherit: (read end, write end).
pub(crate) fn pipe_cloexec() -> Result<(OwnedFd, OwnedFd), SysError> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| SysError::new("make a pipe", errno))
}

/// A second descriptor of the same open file, numbered `least` or higher and not inherited by children.
pub(crate) fn duplicate_from(fd: impl AsFd, least: RawFd) -> Result<OwnedFd, SysError> {
    let raw = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(least))
        .map_err(|errno| SysError::new("duplicate a descriptor", errno))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { adopt(raw) })
}

/// Raises the soft limit of open descriptors to the hard one, and returns what both were: a pod with many streams needs
/// more than the usual 1024, but programs that use select(2) break above it, so children get the old one back.
pub(crate) fn raise_nofile() -> Result<FileLimit, SysError> {
    let error = |errno| SysError::new("raise the descriptor limit", errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(error)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(error)?;
    }
    Ok(FileLimit { soft, hard })
}

/// There are too few descriptors left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the daemon has too few descriptors left for anything new: try again later, or give it a higher limit of open files"
)]
pub(crate) struct NoRoom;

/// How many of the descriptors we may have are kept for what is there already: its ends, its log, the next refusal.
fn reserve(limit: u64) -> u64 {
    (limit / 4).min(64)
}

/// Whether anything new may take descriptors: the kernel gives the lowest free number, so a high one tells that all below
/// it are taken.
///
/// # Errors
/// When only the reserve is left.
pub(crate) fn room() -> Result<(), NoRoom> {
    match fcntl(std::io::stdin().as_fd(), FcntlArg::F_DUPFD_CLOEXEC(0)) {
        // SAFETY: the kernel has just made it for us.
        Ok(raw) if is_of_reserve(unsafe { adopt(raw) }) => Err(NoRoom),
        Err(Errno::EMFILE) => Err(NoRoom),
        // Any other error says nothing about the room.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether a descriptor that has come in is one of the reserve.
pub(crate) fn is_of_reserve(fd: impl AsFd) -> bool {
    let number = u64::try_from(fd.as_fd().as_raw_fd()).unwrap_or(0);
    getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| number >= soft - reserve(soft))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::sys::testing::holds_in_child;

    #[test]
    fn what_is_new_leaves_the_last_descriptors_to_what_is_there() {
        assert_eq!((reserve(1 << 20), reserve(64), reserve(0)), (64, 16, 0));
        assert!(holds_in_child(|| {
            if setrlimit(Resource::RLIMIT_NOFILE, 400, 400).is_err() || room().is_err() {
                return false;
            }
            let mut taken = Vec::with_capacity(400);
            while room().is_ok() {
                let Ok(next) = duplicate_from(std::io::stdin(), 0) else { return false };
                taken.push(next);
            }
            let left = std::iter::from_fn(|| duplicate_from(std::io::stdin(), 0).ok())
                .inspect(|fd| assert!(is_of_reserve(fd)));
            left.collect::<Vec<_>>().len() == 64 && room() == Err(NoRoom)
        }));
    }

    fn is_open(raw: RawFd) -> bool {
        // SAFETY: takes no pointers; an unused number answers EBADF.
        unsafe { libc::fcntl(raw, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn closing_inherited_descriptors_leaves_only_the_standard_ones() {
        let (read, write) = pipe_cloexec().unwrap();
        let high = duplicate_from(&read, 200).unwrap();
        let numbers = [&read, &write, &high].map(std::os::fd::AsRawFd::as_raw_fd);
        for close in [close_inherited, close_listed] {
            let closed = || close().is_ok() && (0..FIRST).all(is_open) && !numbers.iter().any(|raw| is_open(*raw));
            assert!(holds_in_child(closed));
        }
        assert!(is_open(read.as_raw_fd()));
    }

    #[test]
    fn what_waits_in_a_pipe_can_be_asked_and_a_nonblocking_read_of_an_empty_one_returns() {
        let (read, write) = pipe_cloexec().unwrap();
        assert_eq!(fionread(&read), Ok(0));
        nix::unistd::write(&write, b"12345").unwrap();
        assert_eq!(fionread(&read), Ok(5));
        set_nonblocking(&read).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(nix::unistd::read(&read, &mut buffer), Ok(5));
        assert_eq!(nix::unistd::read(&read, &mut buffer), Err(Errno::EAGAIN));
        assert!(fionread(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn unread_output_of_a_socket_is_counted_until_the_peer_has_it() {
        let (mut near, far) = UnixStream::pair().unwrap();
        assert_eq!(siocoutq(&near), Ok(0));
        near.write_all(b"abc").unwrap();
        assert!(siocoutq(&near).unwrap() > 0, "a unix socket's output waits until it is read");
        drop(far);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(siocoutq(&stream), Ok(0));
        assert!(siocoutq(pipe_cloexec().unwrap().0).is_err());
    }

    #[test]
    fn a_duplicate_gets_a_free_number_from_the_bound_up_and_is_not_inherited() {
        let (read, _write) = pipe_cloexec().unwrap();
        let copy = duplicate_from(&read, 300).unwrap();
        assert!(copy.as_raw_fd() >= 300);
        assert_eq!(fcntl(&copy, FcntlArg::F_GETFD), Ok(libc::FD_CLOEXEC));
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_and_the_old_one_is_told() {
        let raised = || {
            let old = FileLimit { soft: 64, hard: 128 };
            setrlimit(Resource::RLIMIT_NOFILE, old.soft, old.hard).is_ok()
                && raise_nofile() == Ok(old)
                && getrlimit(Resource::RLIMIT_NOFILE) == Ok((128, 128))
                && raise_nofile() == Ok(FileLimit { soft: 128, hard: 128 })
        };
        assert!(holds_in_child(raised));
    }
}
