//! What tells when to look at OOM counters.

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    path::Path,
    rc::{Rc, Weak},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{
    SysError,
    notify::{self, WatchedFile},
    reactor,
};

/// What the bells of all containers share: one inotify, made for the first and closed with the last. A user has few of
/// them (128 by default, `fs.inotify.max_user_instances`), and on a node they are wanted by others too.
#[derive(Debug, Default)]
pub(crate) struct Bells {
    inotify: RefCell<Weak<AsyncFd<OwnedFd>>>,
}

impl Bells {
    /// For cgroups of version 2: rings for any of the files, and for those of other containers.
    pub(super) fn inotify<'a>(&self, files: impl IntoIterator<Item = &'a Path>) -> Result<Bell, SysError> {
        let shared = self.inotify.borrow().upgrade();
        let inotify = match shared {
            Some(inotify) => inotify,
            None => {
                let made = Rc::new(reactor::watch(notify::inotify()?, Interest::READABLE)?);
                *self.inotify.borrow_mut() = Rc::downgrade(&made);
                made
            }
        };
        let files = files.into_iter().map(|file| notify::watch_file(&*inotify, file)).collect::<Result<_, _>>();
        Ok(Bell::Inotify { files: files?, inotify })
    }
}

#[cfg(test)]
impl Bells {
    pub(super) fn is_idle(&self) -> bool {
        self.inotify.borrow().strong_count() == 0
    }
}

/// Readable when it is time to look.
#[derive(Debug)]
pub(super) enum Bell {
    /// Version 1: the container's own.
    Eventfd(AsyncFd<OwnedFd>),
    /// Version 2.
    Inotify { inotify: Rc<AsyncFd<OwnedFd>>, files: Vec<WatchedFile> },
}

impl Bell {
    /// For a memory cgroup of version 1.
    pub(super) fn eventfd(cgroup: &Path) -> Result<Self, SysError> {
        reactor::watch(notify::watch_oom_v1(cgroup)?, Interest::READABLE).map(Self::Eventfd)
    }

    pub(super) fn fd(&self) -> &AsyncFd<OwnedFd> {
        match self {
            Self::Eventfd(fd) => fd,
            Self::Inotify { inotify, .. } => inotify,
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Self::Inotify { inotify, files } = self {
            files.drain(..).for_each(|file| notify::unwatch_file(&**inotify, file));
        }
    }
}
