//! The file of a socket of ours.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::SysError;

/// Removes the file when it is dropped, if it still is the one that was there at first.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Of a socket that has just been bound.
    pub(crate) fn bound(path: PathBuf) -> Self {
        Self { identity: identity(&path), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have been started over us by force: its socket is not ours to remove.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
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
