use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::CliError;
use crate::{client::CONTROL_SOCKET, model::ContainerId};

/// The directory of one daemon and of the containers `holdfastctl run` makes in it.
///
/// ```text
/// conmon.sock              the daemon's control socket
/// holdfastctl.json         there when `run` started the daemon: how to call the runtime
/// holdfastctl.lock         held while daemon or containers come and go
/// containers/ID/config.json, log, exit, run.json
/// ```
#[derive(Debug, Clone)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// Takes a path, made absolute: the daemon resolves nothing against the caller's directory.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn new(path: &Path) -> Result<Self, CliError> {
        let absolute = std::path::absolute(path).map_err(|error| {
            CliError::hint(format!("cannot make {} absolute: {error}", path.display()), "give an absolute path")
        })?;
        Ok(Self(absolute))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.0.join(CONTROL_SOCKET)
    }

    /// Written by the daemon's parent when it forks; whoever started it removes it, control-api.md 3.3.
    pub(super) fn pidfile(&self) -> PathBuf {
        self.0.join("pidfile")
    }

    pub(super) fn marker(&self) -> PathBuf {
        self.0.join("holdfastctl.json")
    }

    fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub(super) fn container(&self, id: &ContainerId) -> ContainerDir {
        ContainerDir(self.containers().join(id.as_str()))
    }

    /// Containers that were made and have not ended.
    pub(super) fn live_containers(&self) -> io::Result<usize> {
        let entries = match self.containers().read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut live = 0;
        for entry in entries {
            let dir = ContainerDir(entry?.path());
            live += usize::from(dir.settings().exists() && !dir.exit().exists());
        }
        Ok(live)
    }

    /// Makes the directory where it is missing and takes its lock, which lasts until the file is dropped.
    pub(super) fn lock(&self) -> Result<File, CliError> {
        let failed = |error: &io::Error| {
            let what = format!("cannot use the runtime directory {}: {error}", self.0.display());
            CliError::hint(what, "choose one you may write to with --runtime-dir")
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|error| failed(&error))?;
        let lock = File::create(self.0.join("holdfastctl.lock")).map_err(|error| failed(&error))?;
        lock.lock().map_err(|error| failed(&error))?;
        Ok(lock)
    }
}

/// What belongs to one container; its bundle is the directory itself.
#[derive(Debug, Clone)]
pub(super) struct ContainerDir(PathBuf);

impl ContainerDir {
    /// Fails when it is there already: ids are unique in a runtime directory.
    pub(super) fn make(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        if let Some(parent) = self.0.parent() {
            builder.recursive(true).create(parent)?;
        }
        builder.recursive(false).create(&self.0)
    }

    pub(super) fn bundle(&self) -> &Path {
        &self.0
    }

    pub(super) fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(super) fn exit(&self) -> PathBuf {
        self.0.join("exit")
    }

    /// How this container's runtime is called.
    pub(super) fn settings(&self) -> PathBuf {
        self.0.join("run.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_live_from_its_settings_to_its_exit_file() {
        let dir = tempfile::tempdir().unwrap();
        let runtime_dir = RuntimeDir::new(dir.path()).unwrap();
        assert_eq!(runtime_dir.live_containers().unwrap(), 0);
        let container = runtime_dir.container(&ContainerId::parse("a").unwrap());
        container.make().unwrap();
        assert_eq!(runtime_dir.live_containers().unwrap(), 0);
        std::fs::write(container.settings(), "{}").unwrap();
        assert_eq!(runtime_dir.live_containers().unwrap(), 1);
        std::fs::write(container.exit(), "0").unwrap();
        assert_eq!(runtime_dir.live_containers().unwrap(), 0);
        assert_eq!(container.make().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
