//! Which file a socket of ours has.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::SysError;

/// Which file stands at a path: device, inode, and when it was made, because numbers of inodes are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    inode: (u64, u64),
    /// Nobody writes to a socket's file, so this never changes.
    modified: (i64, i64),
}

impl Identity {
    /// Of what stands at a path, if anything does.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { inode: (metadata.dev(), metadata.ino()), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// Removes the file when it is dropped, if it still is the one that was there at first.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

impl SocketFile {
    /// Of a socket that has just been bound.
    pub(crate) fn bound(path: PathBuf) -> Self {
        Self { identity: Identity::at(&path), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have been started over us by force: its socket is not ours to remove.
        if self.identity.is_some() && Identity::at(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on. False when there is something else, which stays.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn remove_stale(path: &Path) -> Result<bool, SysError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Ok(false),
        Ok(_) => match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SysError::io("remove the stale", path, &e)),
            _ => Ok(true),
        },
        Err(_) => Ok(true),
    }
}
