//! A cgroup for one exec inside its container's: the one place that a process cannot leave by `setsid` or a double fork,
//! so the one way to kill everything that the exec has started, and nothing else.
//!
//! On version 1 it is a cgroup of the freezer alone, on version 2 one without controllers: limits and counters are those of
//! the container.

use std::{
    cell::Cell,
    fs,
    io::{ErrorKind, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::errno::Errno;
use tokio::time::sleep;

use super::cgroup::Cgroups;
use crate::sys::{SysError, process, random::random_hex};

/// What the names of our cgroups begin with. No other is ever changed.
const PREFIX: &str = "holdfast-exec-";
/// How long to wait for processes to freeze, or to end, before looking again: first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How often to ask whether all are frozen. What is stuck in the kernel never is: it is killed as it is.
const FREEZE_LOOKS: u32 = 20;

/// What the runtime's `exec --cgroup` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupOption {
    /// There is no such option.
    None,
    /// `NAME`, of version 2.
    Name,
    /// Also `CONTROLLER:NAME`, of version 1.
    ControllerAndName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A container's cgroup, where those of its execs are made.
#[derive(Debug)]
pub(crate) struct ExecCgroups {
    directory: PathBuf,
    version: Version,
    /// The runtime looked for one somewhere else.
    refused: Cell<bool>,
}

impl ExecCgroups {
    /// In the cgroups of a container that has just been created. `None` where there is nothing fit to kill through.
    pub(crate) fn of(cgroups: &Cgroups) -> Option<Self> {
        let (directory, version) =
            if cgroups.is_unified() { (cgroups.v2()?, Version::V2) } else { (cgroups.v1("freezer")?, Version::V1) };
        Some(Self { directory, version, refused: Cell::new(false) })
    }

    /// Makes one, if the runtime can use it.
    pub(crate) fn make(&self, option: CgroupOption) -> Result<Option<ExecCgroup>, SysError> {
        let usable = match self.version {
            Version::V1 => option == CgroupOption::ControllerAndName,
            Version::V2 => option != CgroupOption::None,
        };
        if !usable || self.refused.get() {
            return Ok(None);
        }
        let directory = self.directory.join(format!("{PREFIX}{}", random_hex()?));
        fs::create_dir(&directory).map_err(|error| SysError::io("make the cgroup", &directory, &error))?;
        Ok(Some(ExecCgroup { directory, version: self.version }))
    }

    /// Where all processes of the container are, those of its execs in cgroups inside.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// None is made here any more: the runtime could not use one.
    pub(crate) fn refuse(&self) {
        self.refused.set(true);
    }
}

/// The cgroup of one exec. Removed as soon as it is empty; dropping it makes one attempt.
#[derive(Debug)]
pub(crate) struct ExecCgroup {
    directory: PathBuf,
    version: Version,
}

impl ExecCgroup {
    /// The value of the runtime's option.
    pub(crate) fn option(&self) -> String {
        match self.version {
            Version::V1 => format!("freezer:{}", self.name()),
            Version::V2 => self.name(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name that nothing else has.
    pub(crate) fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether a process is in it now.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        processes(&self.directory).contains(&pid)
    }

    /// Kills all that is in it until there is nothing left, then removes it. Only what is stuck in the kernel makes this
    /// take long.
    pub(crate) async fn kill(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.version {
                Version::V1 => self.kill_frozen("freezer.state", "FROZEN", "THAWED").await,
                // Without it, before Linux 5.14, there is still the freezer, which lets killed processes end.
                Version::V2 => match self.write("cgroup.kill", "1") {
                    Err(ErrorKind::NotFound) if self.exists() => self.kill_frozen("cgroup.freeze", "1", "0").await,
                    _ => {}
                },
            }
            if self.remove_all() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// The same when it is due, unless it has become empty by itself before.
    pub(crate) async fn kill_when(self, due: impl Future<Output = ()>) {
        let emptied = async {
            let mut pause = FIRST_PAUSE;
            while !remove(&self.directory) {
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        tokio::select! {
            biased;
            () = emptied => return,
            () = due => {}
        }
        self.kill().await;
    }

    /// Gives what is still in it back to the container's cgroup, where it would have been without us, and removes it.
    pub(crate) async fn release(self) {
        let mut pause = FIRST_PAUSE;
        while !remove(&self.directory) {
            let container = self.directory.with_file_name("cgroup.procs");
            for pid in processes(&self.directory) {
                // It may have ended; its new children are there the next time.
                let _ = write(&container, &pid.to_string());
            }
            if remove(&self.directory) {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Frozen, it can neither fork nor end, so no process is missed and no number changes its owner.
    async fn kill_frozen(&self, file: &str, freeze: &str, thaw: &str) {
        // Whatever fails here shows in the cgroup not becoming empty.
        let _ = self.write(file, freeze);
        for _ in 0..FREEZE_LOOKS {
            if self.is_frozen() {
                break;
            }
            sleep(FIRST_PAUSE).await;
        }
        for directory in with_inner(&self.directory) {
            for pid in processes(&directory) {
                let Ok(pidfd) = process::pidfd_open(pid) else { continue };
                if processes(&directory).contains(&pid) {
                    let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                }
            }
        }
        let _ = self.write(file, thaw);
    }

    fn is_frozen(&self) -> bool {
        let read = |file| fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        match self.version {
            Version::V1 => read("freezer.state").trim() == "FROZEN",
            Version::V2 => read("cgroup.events").lines().any(|line| line == "frozen 1"),
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), ErrorKind> {
        write(&self.directory.join(file), text)
    }

    fn exists(&self) -> bool {
        self.directory.exists()
    }

    fn remove_all(&self) -> bool {
        with_inner(&self.directory).iter().rev().all(|directory| remove(directory))
    }
}

impl Drop for ExecCgroup {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// True when it is gone. The runtime may have removed it with the container's.
fn remove(directory: &Path) -> bool {
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENODEV)),
    }
}

/// Into a file that the kernel has made: one that is missing must not come to be.
fn write(file: &Path, text: &str) -> Result<(), ErrorKind> {
    let written = fs::File::options().write(true).open(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| error.kind())
}

/// A directory and those that have been made in it, inner ones last.
fn with_inner(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = all.get(next) {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let inner: Vec<_> = inner.map(|entry| entry.path()).collect();
        all.extend(inner);
        next += 1;
    }
    all
}

/// The processes in a cgroup and in those inside of it.
pub(super) fn processes_within(directory: &Path) -> Vec<u32> {
    with_inner(directory).iter().flat_map(|directory| processes(directory)).collect()
}

fn processes(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_only_where_the_runtime_takes_its_name() {
        let mounts = tempfile::tempdir().unwrap();
        fs::create_dir_all(mounts.path().join("freezer/pod/c")).unwrap();
        fs::create_dir_all(mounts.path().join("pod/c")).unwrap();
        let lines = "3:freezer:/pod/c\n0::/pod/c\n";
        let v1 = ExecCgroups::of(&Cgroups::from_lines(mounts.path(), lines)).unwrap();
        assert!(v1.make(CgroupOption::None).unwrap().is_none() && v1.make(CgroupOption::Name).unwrap().is_none());
        let made = v1.make(CgroupOption::ControllerAndName).unwrap().unwrap();
        assert!(made.directory.starts_with(mounts.path().join("freezer/pod/c")) && made.exists());
        assert_eq!(made.option(), format!("freezer:{}", made.name()));
        let directory = made.directory.clone();
        drop(made);
        assert!(!directory.exists());
        v1.refuse();
        assert!(v1.make(CgroupOption::ControllerAndName).unwrap().is_none());

        fs::write(mounts.path().join("cgroup.controllers"), "").unwrap();
        let v2 = ExecCgroups::of(&Cgroups::from_lines(mounts.path(), lines)).unwrap();
        assert!(v2.make(CgroupOption::None).unwrap().is_none());
        let made = v2.make(CgroupOption::Name).unwrap().unwrap();
        assert!(made.directory.starts_with(mounts.path().join("pod/c")) && made.option() == made.name());
        assert!(ExecCgroups::of(&Cgroups::from_lines(mounts.path(), "0::/\n")).is_none(), "the root is nobody's");
    }

    #[test]
    fn on_version_2_one_write_kills_and_the_end_of_the_directory_ends_the_work() {
        crate::io::local(async {
            let mounts = tempfile::tempdir().unwrap();
            fs::create_dir(mounts.path().join("c")).unwrap();
            fs::write(mounts.path().join("cgroup.controllers"), "").unwrap();
            let place = ExecCgroups::of(&Cgroups::from_lines(mounts.path(), "0::/c\n")).unwrap();
            let made = place.make(CgroupOption::Name).unwrap().unwrap();
            let directory = made.directory.clone();
            fs::create_dir(directory.join("inner")).unwrap();
            fs::write(directory.join("cgroup.kill"), "").unwrap();
            let mut killing = Box::pin(made.kill());
            assert!(tokio::time::timeout(FIRST_PAUSE * 4, &mut killing).await.is_err(), "it is not empty");
            assert_eq!(fs::read_to_string(directory.join("cgroup.kill")).unwrap(), "1");
            assert!(!directory.join("inner").exists());
            fs::remove_file(directory.join("cgroup.kill")).unwrap();
            tokio::time::timeout(Duration::from_secs(30), killing).await.unwrap();
            assert!(!directory.exists());
        });
    }
}
