//! What the containers of the benchmarks are, and how one of them is timed.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout};

use super::Result;

/// No step takes longer unless something is wrong.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(1);

/// What a container runs.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    Idle,
    /// Waits at its gate, then writes.
    Lines {
        line: usize,
        bytes: usize,
    },
}

impl Payload {
    pub(super) fn idle() -> Self {
        Self::Idle
    }

    /// So many bytes in lines of this length, its newline counted.
    pub(super) fn lines(line: usize, bytes: usize) -> Self {
        Self::Lines { line, bytes }
    }

    /// For busybox's shell.
    pub(super) fn script(&self, gate: &str) -> String {
        match self {
            Self::Idle => "exec sleep 100000".to_owned(),
            Self::Lines { line, bytes } => {
                let text = "x".repeat(line - 1);
                format!("read go <'{gate}'; busybox yes {text} | busybox head -c {bytes}")
            }
        }
    }

    pub(super) fn config(&self, rootfs: &Path, id: &str, cgroup: &str) -> Value {
        let mount = |kind: &str, path: &str| json!({ "type": kind, "source": kind, "destination": path });
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": rootfs },
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": ["sh", "-c", self.script(&format!("/{id}"))],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev")],
            "linux": { "cgroupsPath": cgroup, "namespaces": namespaces },
        })
    }
}

/// A root file system of a static busybox.
pub(super) fn make_rootfs(path: &Path) -> Result<()> {
    for dir in ["bin", "dev", "proc"] {
        fs::create_dir_all(path.join(dir))?;
    }
    let which = Command::new("sh").args(["-c", "command -v busybox"]).output()?;
    fs::copy(String::from_utf8(which.stdout)?.trim(), path.join("bin/busybox"))?;
    for applet in ["sh", "sleep", "head", "dd", "cat", "true"] {
        symlink("busybox", path.join("bin").join(applet))?;
    }
    Ok(())
}

/// A started container.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) log: PathBuf,
    pub(super) gate: PathBuf,
    pub(super) exit_file: PathBuf,
}

impl Started {
    /// Opens the gate and takes the time until the exit file is there.
    pub(super) async fn time_to_end(&self) -> Result<Duration> {
        let start = open_gate(&self.gate).await?;
        appears(&self.exit_file).await?;
        Ok(start.elapsed())
    }
}

/// Lets whoever reads this FIFO begin, as soon as it reads.
pub(super) async fn open_gate(gate: &Path) -> Result<Instant> {
    let opened = async {
        let mut tick = interval(LOOK);
        loop {
            tick.tick().await;
            match fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(gate) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                opened => return opened,
            }
        }
    };
    let mut gate = timeout(LIMIT, opened).await??;
    let start = Instant::now();
    gate.write_all(b"go\n")?;
    Ok(start)
}

pub(super) async fn appears(path: &Path) -> Result<String> {
    let looked = async {
        let mut tick = interval(LOOK);
        loop {
            tick.tick().await;
            match fs::read_to_string(path) {
                Ok(text) if text.is_empty() => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                read => return read,
            }
        }
    };
    let read = timeout(LIMIT, looked).await.map_err(|_| format!("{} does not appear", path.display()))?;
    Ok(read?)
}
