//! Files of sockets whose paths callers name: what may stand there already, and whose it is. Called in the pool.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt as _},
    path::Path,
};

use super::attach_socket::AttachError;
use crate::sys::{SysError, socket, socket_file::Identity};

/// Whoever may connect sees the container's output and types into it.
const MODE: u32 = 0o700;

/// What [`bind`] found or did.
#[derive(Debug)]
pub(super) enum Bound {
    /// The known socket is still there.
    Known,
    New {
        listening: OwnedFd,
        identity: Identity,
    },
}

/// Listens at a path, making its parents. A socket that nobody has open is replaced; nothing else is removed.
pub(super) fn bind(path: &Path, known: Option<Identity>) -> Result<Bound, AttachError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(AttachError::InTheWay(path.to_owned())),
        Ok(metadata) if known == Some(Identity::from(&metadata)) => return Ok(Bound::Known),
        Ok(_) if socket::is_open(path)? => return Err(AttachError::InUse(path.to_owned())),
        Ok(_) => remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|error| SysError::io("make the directory", parent, &error))?;
            }
        }
        Err(error) => return Err(SysError::io("look at", path, &error).into()),
    }
    let listening = socket::listen_seqpacket(path, MODE)?;
    let metadata = fs::symlink_metadata(path).map_err(|error| SysError::io("look at", path, &error))?;
    Ok(Bound::New { listening, identity: Identity::from(&metadata) })
}

/// Removes the file if it is still this one.
pub(super) fn remove(path: &Path, ours: Identity) {
    if Identity::at(path) == Some(ours)
        && let Err(error) = remove_file(path)
    {
        tracing::warn!(%error, "a socket is left behind");
    }
}

fn remove_file(path: &Path) -> Result<(), SysError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SysError::io("remove", path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    fn new(path: &Path, known: Option<Identity>) -> (OwnedFd, Identity) {
        match bind(path, known) {
            Ok(Bound::New { listening, identity }) => (listening, identity),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_known_socket_is_left_alone_and_one_that_has_gone_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/parents/attach");
        let (_listening, first) = new(&path, None);
        assert!(matches!(bind(&path, Some(first)), Ok(Bound::Known)));
        fs::remove_file(&path).unwrap();
        let (_listening, second) = new(&path, Some(first));
        remove(&path, first);
        assert_eq!(Identity::at(&path), Some(second), "not its file");
        remove(&path, second);
        assert_eq!(Identity::at(&path), None);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_of_any_type_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attach");
        let (listening, _) = new(&path, None);
        assert!(matches!(bind(&path, None), Err(AttachError::InUse(_))));
        drop(listening);
        new(&path, None);
        let other = directory.path().join("stream");
        let _live = UnixListener::bind(&other).unwrap();
        assert!(matches!(bind(&other, None), Err(AttachError::InUse(_))));
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        fs::write(at("file"), "precious").unwrap();
        symlink(at("nowhere"), at("symlink")).unwrap();
        for name in ["directory", "file", "symlink"] {
            assert!(matches!(bind(&at(name), None), Err(AttachError::InTheWay(_))), "{name}");
            assert!(at(name).symlink_metadata().is_ok());
        }
        let below_a_file = bind(&at("file/attach"), None).unwrap_err();
        assert!(below_a_file.to_string().contains("Not a directory"), "{below_a_file}");
    }
}
