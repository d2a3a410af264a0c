use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{eventually, procfs};

/// A daemon in the background, as an engine starts one. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Background {
    dir: TempDir,
    pub(crate) runtime_dir: PathBuf,
    /// From the pidfile, as soon as there was one.
    pub(crate) pid: Option<u32>,
}

impl Background {
    /// A place for a daemon that is not started yet; `below` is the runtime directory in it.
    pub(crate) fn new(below: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hf-").tempdir().expect("a temporary directory");
        Self { runtime_dir: dir.path().join(below), dir, pid: None }
    }

    /// One that runs.
    pub(crate) fn started() -> Self {
        let mut daemon = Self::new("run");
        let output = daemon.start(&mut daemon.command());
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        daemon
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["--runtime", "/bin/sh", "--runtime-dir"]).arg(&self.runtime_dir).env("CONMON_LOG_DRIVER", "none");
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// Starts it and reads the pidfile at once, as clients do: what is not there then comes too late.
    pub(crate) fn start(&mut self, command: &mut Command) -> Output {
        let output = command.output().expect("the daemon's binary was built");
        if output.status.success() {
            let pidfile =
                fs::read_to_string(self.runtime_dir.join("pidfile")).expect("complete before the parent ends");
            self.pid = Some(pidfile.parse().expect("a number and nothing else"));
        }
        output
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.pid.expect("started");
        kill(Pid::from_raw(i32::try_from(pid).expect("pids are positive")), signal).expect("it runs");
    }

    /// Waits until the process is gone.
    pub(crate) async fn gone(&mut self) {
        let pid = self.pid.take().expect("started");
        eventually("the end of the daemon", || (!procfs::runs(pid)).then_some(())).await;
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Its number may be another's by now only if the daemon died by itself, which no test does unnoticed.
        if self.pid.is_some_and(procfs::runs) {
            self.signal(Signal::SIGKILL);
        }
    }
}
