//! Namespaces: making them, pinning them to files, and being the process that holds them open.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::CloneFlags,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        statfs::{NSFS_MAGIC, statfs},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{ForkResult, Gid, Pid, Uid, fork, getpid, setgroups, setresgid, setresuid},
};

use super::SysError;

/// Which namespace a file of /proc/PID/ns stands for, or which file something is: device and inode.
pub(crate) type Identity = (u64, u64);

/// Moves this process into new namespaces; of `CLONE_NEWPID` only its children (unshare(2)). With `CLONE_NEWUSER` the user
/// namespace is made first and owns the others.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at one of the limits in /proc/sys/user.
pub(crate) fn unshare(flags: CloneFlags) -> Result<(), SysError> {
    nix::sched::unshare(flags).map_err(|errno| SysError::new("make namespaces", errno))
}

/// Becomes this user and group of the user namespace, in no other group. Otherwise the process would stay the host's root
/// in all but capabilities: the owner of the host's files.
///
/// # Errors
/// `EINVAL` for ids that are not mapped.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), SysError> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let change = || {
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    };
    change().map_err(|errno| SysError::new("become a user of the namespace", errno))
}

/// Keeps processes of the same user, which those in the namespaces may be, from looking into this one (ptrace(2)).
pub(crate) fn hide_memory() -> Result<(), SysError> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| SysError::new("become undumpable", errno))
}

/// The name that ps(1) shows, instead of that of the link the process was started by.
pub(crate) fn set_name(name: &std::ffi::CStr) -> Result<(), SysError> {
    nix::sys::prctl::set_name(name).map_err(|errno| SysError::new("set the name of a process", errno))
}

/// The number of the new process, in the process that made it; `None` in the new one.
///
/// # Errors
/// `ENOMEM` when the process number 1 of the new PID namespace has ended already.
pub(crate) fn fork_single_threaded() -> Result<Option<u32>, SysError> {
    // SAFETY: only the sub-command calls this, which never has a second thread, so the child may do whatever it likes.
    match unsafe { fork() }.map_err(|errno| SysError::new("fork", errno))? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw().unsigned_abs())),
        ForkResult::Child => Ok(None),
    }
}

/// Holds back all signals, so that none is lost before [`serve_as_init`] takes them.
pub(crate) fn block_signals() -> Result<(), SysError> {
    let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    blocked.map_err(|errno| SysError::new("block signals", errno))
}

/// Does what an init process must, collecting children, until `SIGTERM`, `SIGINT` or `SIGQUIT` comes.
///
/// As PID 1 of a namespace it obeys signals from outside only: whoever runs in the namespace must not end it for all, and
/// could not if this were an init process without handlers (pid_namespaces(7)).
pub(crate) fn serve_as_init() -> Result<(), SysError> {
    let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
    let awaited: SigSet = ends.into_iter().chain([Signal::SIGCHLD]).collect();
    let is_init = getpid() == Pid::from_raw(1);
    loop {
        // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the call, which writes the second only.
        let signal = unsafe { libc::sigwaitinfo(awaited.as_ref(), &raw mut info) };
        match Errno::result(signal) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::new("wait for a signal", errno)),
            Ok(libc::SIGCHLD) => while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|w| w.pid().is_some()) {},
            // SAFETY: the kernel fills in the sender of every signal that a process sends; 0 is one of no process here.
            Ok(_) if is_init && unsafe { info.si_pid() } != 0 => {}
            Ok(_) => return Ok(()),
        }
    }
}

/// Which file this is, links followed: of a link in /proc/PID/ns which namespace.
///
/// # Errors
/// `ENOENT` for a process that has ended.
pub(crate) fn identity(path: &Path) -> Result<Identity, SysError> {
    let metadata = fs::metadata(path).map_err(|error| SysError::io("look at", path, &error))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether the path is a namespace, which means that one is mounted there.
pub(crate) fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Mounts the namespace behind a link in /proc/PID/ns over a file.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn pin(namespace: &Path, file: &Path) -> Result<(), SysError> {
    let none = None::<&Path>;
    mount(Some(namespace), file, none, MsFlags::MS_BIND, none).map_err(|errno| SysError::at("mount on", file, errno))
}

/// Takes the topmost mount off a file.
///
/// # Errors
/// `EINVAL` when nothing is mounted there.
pub(crate) fn unpin(file: &Path) -> Result<(), SysError> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    umount2(file, flags).map_err(|errno| SysError::at("unmount", file, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_told_from_a_file_and_from_another_namespace() {
        let link = |kind: &str| Path::new("/proc/self/ns").join(kind);
        assert!(is_namespace(&link("net")) && !is_namespace(Path::new("/proc/self/status")));
        assert_eq!(identity(&link("net")).unwrap(), identity(&link("net")).unwrap());
        assert_ne!(identity(&link("net")).unwrap(), identity(&link("uts")).unwrap());
        assert_eq!(identity(Path::new("/proc/self/ns/none")).unwrap_err().errno(), Errno::ENOENT);
    }
}
