//! Where the cgroups of a process are (cgroups(7)): its lines of `/proc/PID/cgroup`, and the usual places of the mounts.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Where cgroup file systems are mounted: one of version 2 here, or those of version 1 each in a directory of its own.
const MOUNTS: &str = "/sys/fs/cgroup";

/// The cgroups of one process, as it was asked.
#[derive(Debug)]
pub(crate) struct Cgroups {
    mounts: PathBuf,
    lines: String,
}

impl Cgroups {
    /// Those of a process; `None` when it is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(Self { mounts: MOUNTS.into(), lines })
    }

    #[cfg(test)]
    pub(super) fn from_lines(mounts: &Path, lines: &str) -> Self {
        Self { mounts: mounts.to_owned(), lines: lines.to_owned() }
    }

    /// The directory of a version 1 controller, by its exact name; `None` where that is not used.
    pub(crate) fn v1(&self, controller: &str) -> Option<PathBuf> {
        let path = self.path(|_, controllers| controllers.split(',').any(|name| name == controller))?;
        Some(self.mounts.join(controller).join(path))
    }

    /// The directory in the unified hierarchy, also where that is mounted beside version 1.
    pub(crate) fn v2(&self) -> Option<PathBuf> {
        let path = self.path(|number, controllers| number == "0" && controllers.is_empty())?;
        let hybrid = !self.is_unified();
        Some(if hybrid { self.mounts.join("unified").join(path) } else { self.mounts.join(path) })
    }

    /// Whether there is only version 2.
    pub(crate) fn is_unified(&self) -> bool {
        self.mounts.join("cgroup.controllers").exists()
    }

    fn path(&self, wanted: impl Fn(&str, &str) -> bool) -> Option<&Path> {
        let path = self.lines.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(number, controllers).then_some(Path::new(path))
        })?;
        let path = path.strip_prefix("/").ok()?;
        // The root is nobody's own, and what is outside of our cgroup namespace begins with dots.
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        (plain && path != Path::new("")).then_some(path)
    }
}

/// Whether a directory's name is the one that a runtime makes of `linux.cgroupsPath` (runtime-spec, config-linux): its last
/// part, or for systemd's `SLICE:PREFIX:NAME` the scope `PREFIX-NAME.scope`.
pub(crate) fn is_named_by(cgroups_path: &str, directory: &Path) -> bool {
    let Some(directory) = directory.file_name().and_then(|name| name.to_str()) else { return false };
    match cgroups_path.splitn(3, ':').collect::<Vec<_>>()[..] {
        [_, prefix, name] => {
            let unit = directory.strip_suffix(".scope").unwrap_or(directory);
            unit == name || unit.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')) == Some(name)
        }
        _ => Path::new(cgroups_path).file_name().is_some_and(|last| last == directory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_found_by_its_exact_name_and_a_line_may_be_long() {
        let long = "x".repeat(4000);
        let lines = format!("9:cpu,memory_x:/no\n5:cpu,cpuacct:/c\n4:memory:/pod/{long}\n1:name=systemd:/s\n0::/u\n");
        let cgroups = Cgroups::from_lines(Path::new("/none"), &lines);
        assert_eq!(cgroups.v1("memory").unwrap(), Path::new("/none/memory/pod").join(long));
        assert_eq!(cgroups.v1("cpuacct").unwrap(), Path::new("/none/cpuacct/c"));
        assert_eq!((cgroups.v1("x"), cgroups.v1("memory_")), (None, None));
        assert_eq!(cgroups.v2().unwrap(), Path::new("/none/unified/u"));
    }

    #[test]
    fn the_unified_hierarchy_is_where_it_is_mounted() {
        let mounts = tempfile::tempdir().unwrap();
        fs::write(mounts.path().join("cgroup.controllers"), "memory\n").unwrap();
        let of = |lines| Cgroups::from_lines(mounts.path(), lines);
        assert_eq!(of("0::/pod/a:b\n").v2().unwrap(), mounts.path().join("pod/a:b"));
        for nowhere in ["0::/\n", "0::/../../pod\n", "0::relative\n", "0::\n", "", "1::/x\n", "0\n"] {
            assert_eq!(of(nowhere).v2(), None, "{nowhere:?}");
        }
    }

    #[test]
    fn a_directory_is_known_by_what_the_bundle_says() {
        for (cgroups_path, directory, named) in [
            ("/pod/ctr", "/pod/ctr", true),
            ("ctr", "/sys/fs/cgroup/ctr", true),
            ("/pod/ctr", "/pod/ctr/container", false),
            ("/pod/ctr", "/pod", false),
            ("pod.slice:crio:id", "/pod.slice/crio-id.scope", true),
            ("pod.slice:crio:id", "/pod.slice/crio-id.scope/container", false),
            ("pod.slice:crio:id", "/pod.slice", false),
            ("pod.slice::id", "/pod.slice/id.scope", true),
            ("", "/pod", false),
        ] {
            assert_eq!(is_named_by(cgroups_path, Path::new(directory)), named, "{cgroups_path} {directory}");
        }
    }
}
