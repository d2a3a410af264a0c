use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use fuser::BackgroundSession;
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{
    mount::{MountPoint, run},
    sick_fs::SickFs,
};
use crate::support::{Sandbox, within};

/// What the logs of a test are called.
pub(super) const NAMES: [&str; 3] = ["cri", "json", "leaver"];

/// A place for logs that stops to take them, and takes them again.
#[derive(Debug)]
pub(super) struct Fault {
    kind: Kind,
    place: MountPoint,
}

#[derive(Debug)]
enum Kind {
    Full,
    /// What the logs had when the file system became read-only. It does not come back: another takes its place.
    ReadOnly(Vec<(String, Vec<u8>)>),
    Error(SickFs, #[expect(dead_code, reason = "the file system answers while it is kept")] BackgroundSession),
    Frozen,
    Fifo(Vec<Pipe>),
}

/// A FIFO that nobody reads at first, and what was read from it then.
#[derive(Debug)]
struct Pipe {
    name: String,
    read: mpsc::Receiver<Vec<u8>>,
    sofar: Vec<u8>,
}

impl Fault {
    /// 64 KiB for all logs together.
    pub(super) fn full(sandbox: &Sandbox) -> Self {
        let place = MountPoint::new(sandbox, "full");
        place.tmpfs(64);
        Self { kind: Kind::Full, place }
    }

    /// As a file system does it that finds itself inconsistent. (An administrator's `remount,ro` is refused while a log is
    /// open.)
    pub(super) fn read_only(sandbox: &Sandbox) -> Self {
        let place = MountPoint::new(sandbox, "ro");
        place.ext4(&sandbox.path().join("ro-1.img"));
        Self { kind: Kind::ReadOnly(Vec::new()), place }
    }

    pub(super) fn error(sandbox: &Sandbox) -> Self {
        let place = MountPoint::new(sandbox, "eio");
        let (fs, session) = SickFs::mount(&place.path);
        Self { kind: Kind::Error(fs, session), place }
    }

    pub(super) fn frozen(sandbox: &Sandbox) -> Self {
        let place = MountPoint::new(sandbox, "frozen");
        place.ext4(&sandbox.path().join("frozen.img"));
        Self { kind: Kind::Frozen, place }
    }

    pub(super) fn fifo(sandbox: &Sandbox) -> Self {
        let place = MountPoint::new(sandbox, "fifo");
        place.tmpfs(64);
        for name in NAMES {
            mkfifo(&place.path.join(name), Mode::S_IRWXU).expect("our directory");
        }
        Self { kind: Kind::Fifo(Vec::new()), place }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path.join(name)
    }

    /// Why logs are not written, as they say it.
    pub(super) fn cause(&self) -> &'static str {
        match self.kind {
            Kind::Full => "No space left on device",
            Kind::ReadOnly(_) => "Read-only file system",
            Kind::Error(..) => "I/O error",
            Kind::Frozen => "the file system does not answer",
            Kind::Fifo(_) => "the reader does not keep up",
        }
    }

    /// No write returns, so that the container waits and waits no longer.
    pub(super) fn hangs(&self) -> bool {
        matches!(self.kind, Kind::Frozen)
    }

    /// Whether what is in the log of a container that ended meanwhile can be read.
    pub(super) fn keeps(&self) -> bool {
        // What nobody has read goes with the last descriptor.
        !matches!(self.kind, Kind::Fifo(_))
    }

    /// From now on no log can be written.
    pub(super) fn strike(&mut self) {
        let path = &self.place.path;
        match &mut self.kind {
            Kind::Full => drop(fs::write(path.join("filler"), vec![0; 1 << 20]).expect_err("it is too large")),
            Kind::ReadOnly(old) => {
                run("mount", &["-o", "remount,abort"], path);
                // At once: what has not reached the disk never will.
                old.extend(NAMES.map(|name| (name.to_owned(), whole_records(read(&path.join(name))))));
            }
            Kind::Error(fs, _) => fs.set_failing(true),
            Kind::Frozen => run("fsfreeze", &["-f"], path),
            // It was so from the beginning.
            Kind::Fifo(_) => {}
        }
    }

    /// From now on logs can be written again.
    pub(super) async fn mend(&mut self, sandbox: &Sandbox, id: &str) {
        let path = &self.place.path;
        match &mut self.kind {
            Kind::Full => run("mount", &["-o", "remount,size=64m"], path),
            Kind::ReadOnly(_) => {
                run("umount", &["-l"], path);
                self.place.ext4(&sandbox.path().join("ro-2.img"));
                within(sandbox.client().reopen_log(id)).await.expect("the new file system is well");
            }
            Kind::Error(fs, _) => fs.set_failing(false),
            Kind::Frozen => run("fsfreeze", &["-u"], path),
            Kind::Fifo(pipes) => pipes.extend(["cri", "json"].map(|name| Pipe::open(path, name))),
        }
    }

    /// What is in a log, of the old file as well as of a new one.
    pub(super) fn contents(&mut self, name: &str) -> Vec<u8> {
        let path = self.place.path.join(name);
        match &mut self.kind {
            Kind::ReadOnly(old) => {
                let old = old.iter().find(|(of, _)| of == name).map(|(_, old)| &old[..]).unwrap_or_default();
                // Whose container had ended has no new file.
                [old, &fs::read(path).unwrap_or_default()].concat()
            }
            Kind::Error(fs, _) => fs.read_name(name),
            Kind::Fifo(pipes) => pipes.iter_mut().find(|pipe| pipe.name == name).expect("it is read").contents(),
            Kind::Full | Kind::Frozen => read(&path),
        }
    }
}

impl Pipe {
    fn open(dir: &Path, name: &str) -> Self {
        let (send, read) = mpsc::channel();
        let mut file = File::open(dir.join(name)).expect("the daemon has the other end");
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = file.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { name: name.to_owned(), read, sofar: Vec::new() }
    }

    fn contents(&mut self) -> Vec<u8> {
        self.sofar.extend(self.read.try_iter().flatten());
        self.sofar.clone()
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the log is there")
}

/// The records of a log that may end within one, which counts as lost.
pub(super) fn whole_records(mut log: Vec<u8>) -> Vec<u8> {
    log.truncate(log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    log
}
