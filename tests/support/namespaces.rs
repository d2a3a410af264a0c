//! Namespaces that a daemon makes for pods, and what they could leave behind.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use holdfast::client::{ClientError, CreateNamespaces, NamespaceKind};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Sandbox, e2e_with, within};

/// In the order of the answer.
pub(crate) const KINDS: [NamespaceKind; 5] =
    [NamespaceKind::Ipc, NamespaceKind::Pid, NamespaceKind::Net, NamespaceKind::User, NamespaceKind::Uts];

/// All that need no mapping.
pub(crate) const WITHOUT_USER: [NamespaceKind; 4] =
    [NamespaceKind::Ipc, NamespaceKind::Net, NamespaceKind::Pid, NamespaceKind::Uts];

pub(crate) const NAMES: [&str; 5] = ["ipc", "pid", "net", "user", "uts"];

/// Where a test has its pods' namespaces pinned. Dropping it ends pause processes and unmounts what a failing test left:
/// both outlive a daemon that is killed.
pub(crate) struct Base {
    pub(crate) path: PathBuf,
}

/// Runs a test with a base path.
pub(crate) fn with_base(test: impl AsyncFnOnce(&Sandbox, &Base)) {
    with_base_and(|_| {}, test);
}

/// The same with changes to the daemon's command line or environment.
pub(crate) fn with_base_and(configure: impl FnOnce(&mut Command), test: impl AsyncFnOnce(&Sandbox, &Base)) {
    e2e_with(configure, async |sandbox| {
        let base = Base { path: sandbox.path().join("base") };
        Box::pin(test(sandbox, &base)).await;
    });
}

/// Device and inode of each of the five, as pinned or as in /proc.
pub(crate) type Identities = [(u64, u64); 5];

impl Base {
    /// A request for a pod with the usual mapping of a user namespace.
    pub(crate) fn request(&self, pod: &str, kinds: &[NamespaceKind]) -> CreateNamespaces {
        let request = CreateNamespaces {
            pod_id: pod.to_owned(),
            kinds: kinds.to_vec(),
            base_path: self.path.clone(),
            ..CreateNamespaces::default()
        };
        if kinds.contains(&NamespaceKind::User) { mapped(request, &["0 0 1"]) } else { request }
    }

    /// Makes a pod's namespaces, checks the answer's form, and returns which they are.
    pub(crate) async fn make(&self, sandbox: &Sandbox, request: &CreateNamespaces) -> Identities {
        let pins = sandbox.client().create_namespaces(request).await.expect("namespaces are made");
        let expected: Vec<_> =
            KINDS.into_iter().zip(NAMES).map(|(kind, name)| (kind, self.pin(name, &request.pod_id))).collect();
        assert_eq!(pins, expected);
        for (_, path) in &pins {
            let metadata = fs::symlink_metadata(path).expect("it is there");
            assert!(metadata.is_file() && metadata.len() == 0, "{}: {metadata:?}", path.display());
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o444, "{}", path.display());
        }
        NAMES.map(|name| identity(&self.pin(name, &request.pod_id)))
    }

    pub(crate) fn pin(&self, name: &str, pod: &str) -> PathBuf {
        self.path.join(format!("{name}ns")).join(pod)
    }

    /// The number of a pod's pause process.
    pub(crate) fn pause(&self, pod: &str) -> u32 {
        let text = fs::read_to_string(self.path.join("holdfast").join(pod)).expect("the claim of the pod");
        text.parse().expect("a process number")
    }

    /// Files below the base path, mounts, and processes that have it in their command line.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = mounts(&self.path);
        let directories = fs::read_dir(&self.path).into_iter().flatten().flatten();
        left.extend(directories.flat_map(|directory| {
            let entries = fs::read_dir(directory.path()).into_iter().flatten().flatten();
            entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
        }));
        left.extend(self.processes().iter().map(|pid| format!("process {pid}")));
        left
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        let option = format!("--base-path={}", self.path.display());
        let numbers = fs::read_dir("/proc").expect("procfs").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_pause = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == option.as_bytes())
        };
        numbers.filter(is_pause).collect()
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).expect("pids are positive")), Signal::SIGKILL);
        }
        // The last one first: mounts may be stacked.
        for mount in mounts(&self.path).iter().rev() {
            let _ = umount2(Path::new(mount), MntFlags::MNT_DETACH);
        }
    }
}

pub(crate) fn mapped(request: CreateNamespaces, mappings: &[&str]) -> CreateNamespaces {
    let mappings: Vec<_> = mappings.iter().map(|mapping| (*mapping).to_owned()).collect();
    CreateNamespaces { uid_mappings: mappings.clone(), gid_mappings: mappings, ..request }
}

/// The namespaces of a process.
pub(crate) fn of_process(pid: u32) -> Identities {
    NAMES.map(|name| identity(Path::new(&format!("/proc/{pid}/ns/{name}"))))
}

/// What a program says that runs in pinned namespaces (nsenter(1)).
pub(crate) fn inside(options: &[String], command: &[&str]) -> String {
    let output = Command::new("nsenter").args(options).args(command).output().expect("nsenter is everywhere");
    assert!(output.status.success(), "{options:?} {command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// What a refusal says.
pub(crate) async fn refused(sandbox: &Sandbox, request: &CreateNamespaces) -> String {
    match within(sandbox.client().create_namespaces(request)).await {
        Err(ClientError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("pids are positive")), signal).expect("it is there");
}

/// For nsenter(1).
pub(crate) fn enter(base: &Base, name: &str, pod: &str) -> String {
    format!("--{name}={}", base.pin(name, pod).display())
}

fn mounts(below: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(below)).map(str::to_owned).collect()
}

fn identity(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.dev(), metadata.ino())
}
