//! A daemon in the background, and containers under it.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use holdfast::client::{Client, CreateContainer, LogDriver, LogDriverKind};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tempfile::TempDir;

use super::{
    Result,
    container::{self, Payload, Started},
};

/// Ends the daemon and its containers when dropped.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) client: Client,
    pub(super) pid: u32,
    dir: TempDir,
    containers: RefCell<Vec<String>>,
}

impl Pod {
    /// Returns when the daemon listens.
    pub(super) async fn start() -> Result<Self> {
        let dir = super::directory()?;
        let run = dir.path().join("run");
        // Another build can be given, to compare two.
        let daemon = std::env::var_os("HOLDFAST_BENCH_DAEMON").unwrap_or_else(|| env!("CARGO_BIN_EXE_holdfast").into());
        let mut command = Command::new(daemon);
        command.arg("--runtime").arg(runtime()).arg("--runtime-dir").arg(&run);
        command.arg("--runtime-root").arg(dir.path().join("root")).args(["--log-driver", "none"]);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("the daemon did not start: {status}").into());
        }
        let pid = fs::read_to_string(run.join("pidfile"))?.parse()?;
        let client = Client::connect(&run).await?;
        Ok(Self { client, pid, dir, containers: RefCell::default() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A FIFO in the root file system of all containers here.
    pub(super) fn gate(&self, name: &str) -> Result<PathBuf> {
        let rootfs = self.path("rootfs");
        if !rootfs.is_dir() {
            container::make_rootfs(&rootfs)?;
        }
        let gate = rootfs.join(name);
        mkfifo(&gate, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(gate)
    }

    /// Makes a bundle and returns its directory.
    pub(super) fn bundle(&self, id: &str, payload: &Payload) -> Result<(PathBuf, PathBuf)> {
        let gate = self.gate(id)?;
        let bundle = self.path(id);
        fs::create_dir(&bundle)?;
        let unique = self.dir.path().file_name().ok_or("a temporary directory has a name")?.display();
        let config = payload.config(&self.path("rootfs"), id, &format!("/{unique}-{id}"));
        fs::write(bundle.join("config.json"), config.to_string())?;
        self.containers.borrow_mut().push(id.to_owned());
        Ok((bundle, gate))
    }

    pub(super) async fn run(&self, id: &str, payload: &Payload) -> Result<Started> {
        let (bundle, gate) = self.bundle(id, payload)?;
        let started = Started { log: bundle.join("log"), gate, exit_file: bundle.join("exit") };
        let create = CreateContainer {
            id: id.to_owned(),
            bundle,
            exit_paths: vec![started.exit_file.clone()],
            log_drivers: vec![LogDriver { kind: LogDriverKind::Cri, path: started.log.clone(), max_size: 0 }],
            ..CreateContainer::default()
        };
        self.client.create_container(&create).await?;
        self.runtime(&["start", id])?;
        Ok(started)
    }

    pub(super) fn remove(&self, id: &str) -> Result<()> {
        self.runtime(&["delete", "--force", id])?;
        Ok(fs::remove_dir_all(self.path(id))?)
    }

    pub(super) fn runtime(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.path("root")).args(arguments).stdin(Stdio::null());
        let output = command.output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for id in self.containers.borrow().iter() {
            // Some are gone already.
            let _ = self.runtime(&["delete", "--force", id]);
        }
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let start = Instant::now();
            // It is not our child: its directory in /proc is all there is to wait for.
            while Path::new("/proc").join(self.pid.to_string()).exists() && start.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
        }
    }
}

/// Looked up once by the shell's rules.
pub(super) fn runtime() -> PathBuf {
    let found = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join("runc")).find(|file| file.is_file()));
    found.unwrap_or_else(|| "/usr/sbin/runc".into())
}
