//! The OCI runtime, for the commands the engine (here: `holdfastctl run`) gives it itself.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::CliError;
use crate::{client::CgroupManager, model::ContainerId};

/// What the user said about the runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// The runtime's binary; by default runc or crun from `$PATH`.
    pub path: Option<PathBuf>,
    /// Where the runtime keeps its state; by default its own choice.
    pub root: Option<PathBuf>,
    /// Cgroups through systemd instead of the file system.
    pub systemd_cgroup: bool,
    /// The daemon's binary; by default `holdfast` beside this one, else from `$PATH`.
    pub monitor: Option<PathBuf>,
}

/// How the runtime is called. Stored as JSON so that later commands call it the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runtime {
    pub(super) path: PathBuf,
    pub(super) root: Option<PathBuf>,
    pub(super) systemd_cgroup: bool,
}

impl Runtime {
    /// Settles what was left open. The daemon searches no `$PATH`, so the path becomes absolute here.
    pub(super) fn resolve(options: &RuntimeOptions) -> Result<Self, CliError> {
        let path = match &options.path {
            Some(path) if path.components().count() > 1 => absolute(path)?,
            Some(name) => in_path(name).ok_or_else(|| {
                CliError::hint(format!("no runtime {} in $PATH", name.display()), "give its path with --runtime")
            })?,
            None => in_path(Path::new("runc")).or_else(|| in_path(Path::new("crun"))).ok_or_else(|| {
                CliError::hint("neither runc nor crun is in $PATH", "install one or give its path with --runtime")
            })?,
        };
        if !is_executable(&path) {
            let what = format!("the runtime {} is not an executable file", path.display());
            return Err(CliError::hint(what, "give another with --runtime"));
        }
        let root = options.root.as_deref().map(absolute).transpose()?;
        Ok(Self { path, root, systemd_cgroup: options.systemd_cgroup })
    }

    /// Reads what [`Runtime::store`] wrote; `None` when there is no such file.
    pub(super) fn load(file: &Path) -> Result<Option<Self>, CliError> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::new(format!("cannot read {}: {error}", file.display()))),
            Ok(text) => text,
        };
        match serde_json::from_str(&text) {
            Ok(runtime) => Ok(Some(runtime)),
            Err(error) => {
                let what = format!("{} is damaged: {error}", file.display());
                Err(CliError::hint(what, "remove it and name the runtime with --runtime and --runtime-root"))
            }
        }
    }

    pub(super) fn store(&self, file: &Path) -> Result<(), CliError> {
        let failed = |error: &dyn std::fmt::Display| CliError::new(format!("cannot write {}: {error}", file.display()));
        let text = serde_json::to_string(self).map_err(|error| failed(&error))?;
        fs::write(file, text).map_err(|error| failed(&error))
    }

    pub(super) fn cgroup_manager(&self) -> CgroupManager {
        if self.systemd_cgroup { CgroupManager::Systemd } else { CgroupManager::Cgroupfs }
    }

    pub(super) fn start(&self, id: &ContainerId) -> Result<(), CliError> {
        self.call(&["start", id.as_str()]).map(drop)
    }

    pub(super) fn kill(&self, id: &ContainerId, signal: Signal) -> Result<(), CliError> {
        // Runtimes take names without SIG, and numbers; crun 1.8 takes both forms of a name.
        self.call(&["kill", id.as_str(), signal.as_str().trim_start_matches("SIG")]).map(drop)
    }

    /// Kills what still runs. A container the runtime does not know is no error.
    pub(super) fn delete(&self, id: &ContainerId) -> Result<(), CliError> {
        self.call(&["delete", "--force", id.as_str()]).map(drop)
    }

    /// The container's process, as the host numbers it.
    pub(super) fn pid(&self, id: &ContainerId) -> Result<u32, CliError> {
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            pid: u32,
        }
        let state: State = serde_json::from_slice(&self.call(&["state", id.as_str()])?)
            .map_err(|error| CliError::new(format!("the runtime's state of {id} makes no sense: {error}")))?;
        // So say runtimes of a container that has ended.
        if state.pid == 0 { Err(CliError::new(format!("the container {id} is not running"))) } else { Ok(state.pid) }
    }

    /// Returns what it has written to stdout.
    fn call(&self, arguments: &[&str]) -> Result<Vec<u8>, CliError> {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).display();
        let mut command = Command::new(&self.path);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().map_err(|error| {
            CliError::hint(format!("cannot run {}: {error}", self.path.display()), "give another with --runtime")
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let text = if text.trim().is_empty() { output.status.to_string() } else { text.trim().to_owned() };
        Err(CliError::new(format!("{name} {}: {text}", arguments.join(" "))))
    }
}

/// The file that a shell would run for this name.
pub(super) fn in_path(name: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_absolute() && is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|error| CliError::new(format!("cannot make {} absolute: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were_stored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.json");
        assert_eq!(Runtime::load(&file).unwrap(), None);
        let runtime = Runtime { path: "/bin/runc".into(), root: Some("/r".into()), systemd_cgroup: true };
        runtime.store(&file).unwrap();
        assert_eq!(Runtime::load(&file).unwrap(), Some(runtime));
        fs::write(&file, "{").unwrap();
        assert!(Runtime::load(&file).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn the_runtimes_words_are_part_of_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fake");
        fs::write(&path, "#!/bin/sh\necho \"$@: no such container\" >&2\nexit 1\n").unwrap();
        let options = RuntimeOptions { path: Some(path.clone()), root: Some("/r".into()), ..Default::default() };
        assert!(Runtime::resolve(&options).unwrap_err().to_string().contains("not an executable file"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let id = ContainerId::parse("a").unwrap();
        let error = Runtime::resolve(&options).unwrap().kill(&id, Signal::SIGTERM).unwrap_err();
        assert_eq!(error.to_string(), "fake kill a TERM: --root /r kill a TERM: no such container");
    }

    #[test]
    fn the_process_of_a_container_is_in_the_runtimes_state() {
        let dir = tempfile::tempdir().unwrap();
        let id = ContainerId::parse("a").unwrap();
        let pid = |state: &str| {
            let path = dir.path().join("fake");
            fs::write(&path, format!("#!/bin/sh\necho '{state}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Runtime { path, root: None, systemd_cgroup: false }.pid(&id).map_err(|error| error.to_string())
        };
        assert_eq!(pid(r#"{"id":"a","pid":42,"status":"running"}"#), Ok(42));
        assert_eq!(pid(r#"{"pid":0,"status":"stopped"}"#).unwrap_err(), "the container a is not running");
        assert!(pid("nonsense").unwrap_err().contains("makes no sense"));
    }
}
