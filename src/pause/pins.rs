//! The files of a pod's namespaces. All of this works on paths, so it runs in the blocking pool.
//!
//! A namespace that is not needed any more lives on for as long as it is mounted somewhere. So whatever is mounted here is
//! announced by the claim first, and a later daemon finds it there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::request::{Kind, Request};
use crate::sys::{SysError, namespace};

/// Others may look, as everywhere below /run.
const DIRECTORY_MODE: u32 = 0o755;
const CLAIM_MODE: u32 = 0o644;
/// That of the mounted namespace too.
const PIN_MODE: u32 = 0o444;
/// A crowd that locks and removes the same claim again and again does not exist.
const CLAIM_ATTEMPTS: usize = 10;

/// Why namespaces could not be pinned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    #[error("another daemon holds the namespaces of this pod: its claim {} is locked", .0.display())]
    InUse(PathBuf),
    #[error("{} is in the way: it is not ours, so it is not replaced", .0.display())]
    InTheWay(PathBuf),
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// The file that says which process holds a pod's namespaces. Locked for as long as the daemon lives, so that two daemons
/// never work on the same pins.
#[derive(Debug)]
pub(super) struct Claim {
    file: Flock<File>,
    path: PathBuf,
    /// The pause process of an earlier daemon, or what was one: whatever is pinned is that daemon's and may be replaced.
    pub(super) former: Option<u32>,
}

impl Claim {
    /// Makes the directories, and makes or finds the claim.
    pub(super) fn take(request: &Request) -> Result<Self, PinError> {
        let path = request.claim();
        make_parent(&path)?;
        for kind in Kind::ALL {
            make_parent(&request.path(kind))?;
        }
        for _ in 0..CLAIM_ATTEMPTS {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(CLAIM_MODE);
            let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
            let file = file.map_err(|error| SysError::io("open", &path, &error))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Err(PinError::InUse(path)),
                Err((_, errno)) => return Err(SysError::at("lock", path, errno).into()),
            };
            // Whoever had the lock may have removed the file before giving it up.
            if same_file(&file, &path) {
                let mut text = String::new();
                let read = (&*file).take(16).read_to_string(&mut text);
                read.map_err(|error| SysError::io("read", &path, &error))?;
                let former = text.trim().parse().ok().filter(|pid| *pid > 1);
                return Ok(Self { file, path, former });
            }
        }
        Err(PinError::InUse(path))
    }

    /// Gives up. What an earlier daemon left stays claimed.
    pub(super) fn release(self) {
        if self.former.is_none() {
            self.remove();
        }
    }

    /// While locked, so that nobody has locked it in vain.
    fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }

    fn write(&self, pid: u32) -> Result<(), SysError> {
        let mut file = &*self.file;
        let written = file.set_len(0).and_then(|()| io::Seek::rewind(&mut file)).and_then(|()| write!(file, "{pid}"));
        written.map_err(|error| SysError::io("write", &self.path, &error))
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
}

fn make_parent(path: &Path) -> Result<(), SysError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent);
    made.map_err(|error| SysError::io("make the directory", parent, &error))
}

/// The pinned namespaces of a pod.
#[derive(Debug)]
pub(super) struct Pins {
    claim: Claim,
    pins: Vec<Pin>,
}

#[derive(Debug)]
struct Pin {
    path: PathBuf,
    namespace: namespace::Identity,
}

impl Pins {
    /// Pins all five namespaces of a process. What an earlier daemon pinned is replaced, or stays where it is the same.
    ///
    /// On failure nothing stays that this call has made. The process is fresh if it ends then.
    pub(super) fn make(claim: Claim, request: &Request, pid: u32, fresh: bool) -> Result<Self, PinError> {
        let may_replace = claim.former.is_some();
        let mut made = Self { claim, pins: Vec::new() };
        let result = made.claim.write(pid).map_err(PinError::from).and_then(|()| {
            for kind in Kind::ALL {
                let source: PathBuf = ["/proc", &pid.to_string(), "ns", kind.name()].iter().collect();
                made.pins.push(pin(&source, request.path(kind), may_replace)?);
            }
            Ok(())
        });
        match result {
            Ok(()) => Ok(made),
            Err(error) => {
                if fresh {
                    made.unmount();
                    made.claim.release();
                }
                Err(error)
            }
        }
    }

    /// Unmounts and removes what is still ours, and the claim.
    pub(super) fn remove(self) -> Vec<SysError> {
        let errors = self.unmount();
        self.claim.remove();
        errors
    }

    fn unmount(&self) -> Vec<SysError> {
        self.pins.iter().filter_map(|pin| pin.remove().err()).collect()
    }
}

impl Pin {
    fn remove(&self) -> Result<(), SysError> {
        match namespace::identity(&self.path) {
            Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
            Ok(found) if found != self.namespace => return Ok(()), // Somebody else's by now.
            _ => namespace::unpin(&self.path)?,
        }
        fs::remove_file(&self.path).map_err(|error| SysError::io("remove", &self.path, &error))
    }
}

fn pin(source: &Path, path: PathBuf, may_replace: bool) -> Result<Pin, PinError> {
    let namespace = namespace::identity(source)?;
    if may_replace && namespace::is_namespace(&path) && namespace::identity(&path)? == namespace {
        return Ok(Pin { path, namespace });
    }
    clear(&path, may_replace)?;
    let made = OpenOptions::new().write(true).create_new(true).mode(PIN_MODE).open(&path);
    drop(made.map_err(|error| SysError::io("make", &path, &error))?);
    if let Err(error) = namespace::pin(source, &path) {
        let _ = fs::remove_file(&path);
        return Err(error.into());
    }
    Ok(Pin { path, namespace })
}

/// Removes an empty file, as one stays where its mount has gone, and pins of earlier daemons; nothing else.
fn clear(path: &Path, may_replace: bool) -> Result<(), PinError> {
    let in_the_way = || PinError::InTheWay(path.to_owned());
    loop {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(SysError::io("look at", path, &error).into()),
            Ok(found) if !found.is_file() || found.len() > 0 => return Err(in_the_way()),
            Ok(_) if namespace::is_namespace(path) && may_replace => namespace::unpin(path)?,
            Ok(_) if namespace::is_namespace(path) => return Err(in_the_way()),
            Ok(_) => fs::remove_file(path).map_err(|error| SysError::io("remove", path, &error))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(base: &Path) -> Request {
        let none = Vec::new;
        let (pod_id, base) = ("p".to_owned(), base.to_owned());
        Request { pod_id, base, kinds: Vec::new(), uid_mappings: none(), gid_mappings: none() }
    }

    #[test]
    fn a_claim_is_one_daemons_at_a_time_and_goes_unless_it_tells_of_somebody() {
        let base = tempfile::tempdir().unwrap();
        let request = request(base.path());
        let claim = Claim::take(&request).unwrap();
        assert_eq!(claim.former, None);
        assert!(matches!(Claim::take(&request), Err(PinError::InUse(path)) if path == request.claim()));
        claim.release();
        assert!(!request.claim().exists());
        fs::write(request.claim(), "77").unwrap();
        let claim = Claim::take(&request).unwrap();
        assert_eq!(claim.former, Some(77));
        claim.write(5).unwrap();
        claim.release();
        assert_eq!(fs::read_to_string(request.claim()).unwrap(), "5");
        for nonsense in ["1", "-7", "x", "99999999999999999999"] {
            fs::write(request.claim(), nonsense).unwrap();
            assert_eq!(Claim::take(&request).unwrap().former, None, "{nonsense}");
        }
    }

    #[test]
    fn only_an_empty_file_makes_way() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        clear(&path, true).unwrap();
        fs::write(&path, "").unwrap();
        clear(&path, false).unwrap();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(clear(&path, true), Err(PinError::InTheWay(_))));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", &path).unwrap();
        assert!(matches!(clear(&path, true), Err(PinError::InTheWay(_))));
    }
}
