//! The runtime's command lines, as pure data (control-api 4.2, 4.3): each option once, in this order.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use crate::model::ContainerId;

/// Who manages the containers' cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupManager {
    Systemd,
    Cgroupfs,
}

/// What every command line starts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Global<'a> {
    pub(crate) runtime: &'a Path,
    pub(crate) root: Option<&'a Path>,
    pub(crate) cgroup_manager: CgroupManager,
    /// crun logs to the journal where there is one; other runtimes are given no log options.
    pub(crate) journal: bool,
}

impl Global<'_> {
    /// The runtime's arguments before the sub-command (`argv[0]` is the caller's to add).
    fn arguments(&self, id: &ContainerId) -> Vec<OsString> {
        let mut argv = Vec::with_capacity(16);
        if self.journal && self.runtime.file_name() == Some(OsStr::new("crun")) {
            argv.push(format!("--log=journald:{id}").into());
        }
        if let Some(root) = self.root {
            argv.push(joined("--root=", root));
        }
        if self.cgroup_manager == CgroupManager::Systemd {
            argv.push("--systemd-cgroup".into());
        }
        argv
    }

    /// `create`, with the caller's own options where the contract puts them.
    pub(crate) fn create(
        &self,
        id: &ContainerId,
        bundle: &Path,
        pidfile: &Path,
        console_socket: Option<&Path>,
        global_args: &[String],
        command_args: &[String],
    ) -> Vec<OsString> {
        let mut argv = self.arguments(id);
        argv.extend(global_args.iter().map(OsString::from));
        argv.push("create".into());
        argv.extend(["--bundle".into(), bundle.into(), "--pid-file".into(), pidfile.into()]);
        argv.extend(command_args.iter().map(OsString::from));
        argv.extend(console_socket.map(|path| joined("--console-socket=", path)));
        argv.push(id.as_str().into());
        argv
    }

    /// `exec`, detached: the runtime ends as soon as the process runs.
    pub(crate) fn exec(
        &self,
        id: &ContainerId,
        pidfile: &Path,
        console_socket: Option<&Path>,
        cgroup: Option<&str>,
        command: &[String],
    ) -> Vec<OsString> {
        let mut argv = self.arguments(id);
        argv.extend(["exec".into(), "-d".into()]);
        if let Some(path) = console_socket {
            argv.extend([joined("--console-socket=", path), "--tty".into()]);
        }
        argv.push(joined("--pid-file=", pidfile));
        argv.extend(cgroup.map(|cgroup| format!("--cgroup={cgroup}").into()));
        argv.push(id.as_str().into());
        argv.extend(command.iter().map(OsString::from));
        argv
    }

    /// `kill --all`, for what shares its pid namespace with others.
    pub(crate) fn kill_all(&self, id: &ContainerId) -> Vec<OsString> {
        let mut argv = self.arguments(id);
        argv.extend(["kill".into(), "--all".into(), id.as_str().into(), "KILL".into()]);
        argv
    }

    /// `delete --force`, for a container that a create left half made.
    pub(crate) fn delete(&self, id: &ContainerId) -> Vec<OsString> {
        let mut argv = self.arguments(id);
        argv.extend(["delete".into(), "--force".into(), id.as_str().into()]);
        argv
    }
}

fn joined(option: &str, value: &Path) -> OsString {
    let mut text = OsString::from(option);
    text.push(value);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global<'a>(runtime: &'a str, root: Option<&'a str>, manager: CgroupManager) -> Global<'a> {
        Global { runtime: Path::new(runtime), root: root.map(Path::new), cgroup_manager: manager, journal: true }
    }

    fn text(argv: &[OsString]) -> String {
        argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn id() -> ContainerId {
        ContainerId::parse("c1").unwrap()
    }

    #[test]
    fn create_has_each_option_once_and_in_order() {
        let (bundle, pidfile) = (Path::new("/b"), Path::new("/b/pidfile"));
        let create = |global: Global<'_>, console: Option<&str>, globals: &[&str], commands: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
            text(&global.create(&id(), bundle, pidfile, console.map(Path::new), &own(globals), &own(commands)))
        };
        for (runtime, root, manager, console, expected) in [
            ("/usr/bin/runc", None, CgroupManager::Cgroupfs, None, "create --bundle /b --pid-file /b/pidfile c1"),
            (
                "/usr/bin/runc",
                Some("/run/r"),
                CgroupManager::Systemd,
                Some("/tmp/s"),
                "--root=/run/r --systemd-cgroup create --bundle /b --pid-file /b/pidfile --console-socket=/tmp/s c1",
            ),
            (
                "/usr/bin/crun",
                Some("/run/r"),
                CgroupManager::Systemd,
                None,
                "--log=journald:c1 --root=/run/r --systemd-cgroup create --bundle /b --pid-file /b/pidfile c1",
            ),
            ("/usr/bin/crun-wasm", None, CgroupManager::Cgroupfs, None, "create --bundle /b --pid-file /b/pidfile c1"),
        ] {
            assert_eq!(create(global(runtime, root, manager), console, &[], &[]), expected);
        }
        assert_eq!(
            create(global("runc", None, CgroupManager::Cgroupfs), None, &["--debug"], &["--no-pivot"]),
            "--debug create --bundle /b --pid-file /b/pidfile --no-pivot c1"
        );
    }

    #[test]
    fn exec_is_detached_and_the_command_comes_last() {
        let command = ["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()];
        let plain = global("runc", Some("/r"), CgroupManager::Cgroupfs);
        assert_eq!(
            text(&plain.exec(&id(), Path::new("/d/p"), None, None, &command)),
            "--root=/r exec -d --pid-file=/d/p c1 sh -c exit 3"
        );
        assert_eq!(
            text(&plain.exec(&id(), Path::new("/d/p"), Some(Path::new("/s")), Some("freezer:x"), &command)),
            "--root=/r exec -d --console-socket=/s --tty --pid-file=/d/p --cgroup=freezer:x c1 sh -c exit 3"
        );
    }
}
