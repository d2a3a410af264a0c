//! conmon, the C program: one process per container, logs in the same format.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    IDLE, Result,
    container::{Payload, appears, open_gate},
    measure::{Memory, cpu_time},
    pod::{self, Pod},
};

/// A container under a conmon of its own. It ends with its container.
#[derive(Debug)]
pub(super) struct Conmon {
    pid: u32,
    gate: PathBuf,
    exit_file: PathBuf,
    bundle: PathBuf,
}

impl Conmon {
    pub(super) fn is_installed() -> bool {
        let version = Command::new("conmon").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }

    pub(super) async fn run(pod: &Pod, id: &str, payload: &Payload) -> Result<Self> {
        let (bundle, gate) = pod.bundle(id, payload)?;
        let mut command = Command::new("conmon");
        command.args(["--cid", id, "--cuuid", id, "--name", id]).arg("--runtime").arg(pod::runtime());
        command.arg("--runtime-arg").arg(format!("--root={}", pod.path("root").display()));
        command.arg("--bundle").arg(&bundle).arg("--exit-dir").arg(&bundle);
        command.arg("--container-pidfile").arg(bundle.join("container.pid"));
        command.arg("--conmon-pidfile").arg(bundle.join("conmon.pid"));
        command.arg("--log-path").arg(format!("k8s-file:{}", bundle.join("log").display()));
        // The default is CRI-O's and may not exist.
        let sockets = pod.path("sockets");
        std::fs::create_dir_all(&sockets)?;
        command.arg("--socket-dir-path").arg(sockets);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status()?;
        if !status.success() {
            return Err(format!("conmon: {status}").into());
        }
        appears(&bundle.join("container.pid")).await?;
        let pid = appears(&bundle.join("conmon.pid")).await?.trim().parse()?;
        pod.runtime(&["start", id])?;
        Ok(Self { pid, gate, exit_file: bundle.join(id), bundle })
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        Memory::of(self.pid)
    }

    /// As for a container of ours, and the CPU time of conmon meanwhile, read every few milliseconds until it ends.
    pub(super) async fn time_to_end(&self) -> Result<(Duration, Duration)> {
        let before = cpu_time(self.pid)?;
        let start = open_gate(&self.gate).await?;
        let mut used = Duration::ZERO;
        let watch = async {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            loop {
                tick.tick().await;
                used = cpu_time(self.pid).map_or(used, |now| now.max(before) - before);
            }
        };
        tokio::select! {
            code = appears(&self.exit_file) => drop(code?),
            () = watch => {}
        }
        let time = start.elapsed();
        tokio::time::sleep(IDLE / 10).await;
        std::fs::remove_file(self.bundle.join("log"))?;
        Ok((time, used))
    }
}
