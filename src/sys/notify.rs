//! Descriptors that become readable when a file of a cgroup changes: inotify(7) and eventfd(2).

use std::{
    ffi::CString,
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::errno::Errno;

use super::{SysError, fd::adopt};

/// Becomes readable when something happens that [`watch_file`] asked to be told of.
///
/// # Errors
/// `EMFILE` when the user's instances are used up (`fs.inotify.max_user_instances`).
pub(crate) fn inotify() -> Result<OwnedFd, SysError> {
    // SAFETY: takes an integer and touches no memory of ours.
    let raw = Errno::result(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) });
    let raw = raw.map_err(|errno| SysError::new("make an inotify", errno))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { adopt(raw) })
}

/// One file of an inotify.
#[derive(Debug)]
pub(crate) struct WatchedFile(libc::c_int);

/// Tells when a file is written to or removed; for `memory.events` that is when a counter changes.
///
/// # Errors
/// `ENOENT` when the file is not there, `ENOSPC` when the user's watches are used up.
pub(crate) fn watch_file(inotify: impl AsFd, file: &Path) -> Result<WatchedFile, SysError> {
    let error = |errno| SysError::at("watch", file, errno);
    let path = CString::new(file.as_os_str().as_bytes()).map_err(|_| error(Errno::EINVAL))?;
    let events = libc::IN_MODIFY | libc::IN_DELETE_SELF;
    // SAFETY: the path is a terminated string that outlives the call.
    let done = unsafe { libc::inotify_add_watch(inotify.as_fd().as_raw_fd(), path.as_ptr(), events) };
    Errno::result(done).map(WatchedFile).map_err(error)
}

/// Tells no more of a file. One that was removed is none already.
pub(crate) fn unwatch_file(inotify: impl AsFd, file: WatchedFile) {
    // SAFETY: takes two integers and touches no memory of ours.
    unsafe { libc::inotify_rm_watch(inotify.as_fd().as_raw_fd(), file.0) };
}

/// Becomes readable when the OOM killer is called in a memory cgroup of version 1, and when that cgroup is removed.
///
/// # Errors
/// `ENOENT` when the cgroup is not there, `EACCES` when we may not change it.
pub(crate) fn watch_oom_v1(cgroup: &Path) -> Result<OwnedFd, SysError> {
    // SAFETY: takes two integers and touches no memory of ours.
    let raw = Errno::result(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) });
    let raw = raw.map_err(|errno| SysError::new("make an eventfd", errno))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    let event = unsafe { adopt(raw) };
    let path = cgroup.join("memory.oom_control");
    // Names the event to the kernel, which does not need it afterwards.
    let control = File::open(&path).map_err(|error| SysError::io("open", path, &error))?;
    let registrar = cgroup.join("cgroup.event_control");
    fs::write(&registrar, format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))
        .map_err(|error| SysError::io("write to", registrar, &error))?;
    Ok(event)
}

/// Takes all that a descriptor of this module has to say, so that it is readable again only after something new; false
/// when it had nothing to say.
pub(crate) fn drain(fd: impl AsFd) -> bool {
    let mut said = false;
    let mut buffer = [0; 4096];
    // An eventfd is empty after one read, an inotify after as many as its queue (16,384 events) is long.
    while nix::unistd::read(fd.as_fd(), &mut buffer).is_ok_and(|count| count > 0) {
        said = true;
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_and_a_removal_are_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "oom_kill 0\n").unwrap();
        let watch = inotify().unwrap();
        let watched = watch_file(&watch, &file).unwrap();
        assert!(!drain(&watch));
        fs::write(&file, "oom_kill 1\n").unwrap();
        assert!(drain(&watch) && !drain(&watch));
        unwatch_file(&watch, watched);
        drain(&watch);
        fs::write(&file, "oom_kill 2\n").unwrap();
        assert!(!drain(&watch));
        watch_file(&watch, &file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(drain(&watch) && !drain(&watch));
        assert_eq!(watch_file(&watch, &file).unwrap_err().errno(), Errno::ENOENT);
        assert_eq!(watch_oom_v1(dir.path()).unwrap_err().errno(), Errno::ENOENT);
    }
}
