//! A cgroup that limits one process: of version 1 where its controller is mounted by itself, else of version 2.

use std::{
    fs,
    path::{Path, PathBuf},
};

const MOUNT: &str = "/sys/fs/cgroup";

/// A cgroup named `hf-…` that the process has been moved to. Dropping it moves back whoever is in it, and removes it.
pub(super) struct Limits {
    directory: PathBuf,
    home: PathBuf,
    is_v1: bool,
}

impl Limits {
    /// With a controller: `pids` or `memory`.
    pub(super) fn of(pid: u32, controller: &str) -> Self {
        let v1 = Path::new(MOUNT).join(controller);
        let is_v1 = v1.is_dir();
        let mount = if is_v1 { v1 } else { PathBuf::from(MOUNT) };
        if !is_v1 {
            fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}")).expect("root may");
        }
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let begin = if is_v1 { format!(":{controller}:/") } else { "0::/".to_owned() };
        let home = lines.lines().find_map(|line| Some(line.split_once(&begin)?.1)).expect("every process is in one");
        let own = Self { directory: mount.join(format!("hf-{controller}-{pid}")), home: mount.join(home), is_v1 };
        fs::create_dir(&own.directory).expect("root may");
        own.write("cgroup.procs", &pid.to_string());
        own
    }

    /// `max` is none.
    pub(super) fn tasks(&self, most: &str) {
        self.write("pids.max", most);
    }

    /// In bytes.
    pub(super) fn memory(&self, most: u64) {
        self.write(if self.is_v1 { "memory.limit_in_bytes" } else { "memory.max" }, &most.to_string());
    }

    /// The most memory that was ever charged, in bytes; not told by all kernels.
    pub(super) fn most_memory(&self) -> Option<u64> {
        self.read(if self.is_v1 { "memory.max_usage_in_bytes" } else { "memory.peak" })?.trim().parse().ok()
    }

    /// How many processes the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        let counts = self.read(if self.is_v1 { "memory.oom_control" } else { "memory.events" }).expect("our cgroup");
        let count = counts.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).expect("Linux 4.13 counts them")
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(name)).ok()
    }

    fn write(&self, name: &str, value: &str) {
        fs::write(self.directory.join(name), value).unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for pid in self.read("cgroup.procs").unwrap_or_default().lines() {
            let _ = fs::write(self.home.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}
