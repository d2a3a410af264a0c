//! Whether the kernel's OOM killer hit a container: a counter of its memory cgroup, compared with what it was at first.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The OOM-kill counter of one container's own cgroup.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: PathBuf,
    baseline: u64,
}

impl OomCounter {
    /// The counter of the memory cgroup that a process is in; `None` where there is none to read.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let file = counter_file(&cgroups, Path::new("/sys/fs/cgroup"))?;
        let baseline = kills(&fs::read_to_string(&file).ok()?)?;
        Some(Self { file, baseline })
    }

    /// Whether anything in the cgroup was OOM-killed since. To be asked at once when the container has ended: the file goes
    /// with the cgroup, and a removed one is no sign of an OOM.
    pub(crate) fn killed(&self) -> bool {
        let now = fs::read_to_string(&self.file).ok().and_then(|text| kills(&text));
        now.is_some_and(|now| now > self.baseline)
    }
}

/// On a v1 or hybrid host the line that names the memory controller, else the one of the unified hierarchy (cgroups(7)).
fn counter_file(cgroups: &str, mount: &Path) -> Option<PathBuf> {
    let mut unified = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start_matches('/'));
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some(mount.join("memory").join(path).join("memory.oom_control"));
        }
        if number == "0" {
            unified = Some(mount.join(path).join("memory.events"));
        }
    }
    unified
}

/// Both files say `oom_kill N` on a line of its own.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_is_found_on_every_kind_of_host() {
        let file = |text| counter_file(text, Path::new("/c")).unwrap().display().to_string();
        assert_eq!(file("0::/pod/ctr\n"), "/c/pod/ctr/memory.events");
        assert_eq!(file("9:cpu,cpuacct:/x\n4:memory:/pod/ctr\n0::/y\n"), "/c/memory/pod/ctr/memory.oom_control");
        assert_eq!(file("4:memory_x:/no\n0::/y\n"), "/c/y/memory.events");
    }

    #[test]
    fn the_kill_counter_is_read_by_its_exact_name() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills("low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills("under_oom 0\n"), None);
    }
}
