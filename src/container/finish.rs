//! The end of a container: one function, because the order is the promise.

use std::{
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio as ProcessStdio},
    rc::Rc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{
    Container, Pod, State, exit_file,
    table::{End, Listed},
};
use crate::{
    model::ExitStatus,
    process::{Process, oom::OomWatch},
    stdio::Pump,
    sys::SysError,
};

/// How long the last lines may take to reach the log.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// The same when the daemon ends. With the drain before it, it must leave time for the exit files: who waits for the ends of
/// containers waits 5 s.
const CLOSING_FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long a cleanup command may run before it is killed.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);
/// How long starting it may take.
const CLEANUP_START_LIMIT: Duration = Duration::from_secs(10);

/// What the creator of the container wants to be done at its end.
#[derive(Debug)]
pub(super) struct ExitPlan {
    pub(super) exit_paths: Vec<PathBuf>,
    pub(super) oom_exit_paths: Vec<PathBuf>,
    pub(super) cleanup_command: Vec<String>,
    /// Others may wait for their end.
    pub(super) leak_fds: Vec<OwnedFd>,
}

/// Pumps the container's output, waits for its end and does what must be done then, each step bounded, in this order: look
/// at the OOM counters, drain, flush the log, OOM files, exit files, publish and record the status, leak fds, cleanup command, forget.
/// Who sees the exit file may rely on the whole log and on the OOM file.
pub(super) async fn finish(pod: Rc<Pod>, container: Rc<Container>, pump: Pump, oom: Option<OomWatch>, plan: ExitPlan) {
    let gone = CancellationToken::new();
    let exit = async {
        let status = match &oom {
            Some(oom) => tokio::select! {
                status = container.process.wait() => status,
                never = oom.watch() => match never {},
            },
            None => container.process.wait().await,
        };
        let time = SystemTime::now();
        // The counters vanish with the cgroup, so they are read before anything else.
        let oom_killed = oom.is_some_and(|oom| oom.killed());
        container.state.send_replace(State::Exiting);
        gone.cancel();
        (status, oom_killed, time)
    };
    let (drained, (status, oom_killed, time)) = tokio::join!(pump.run(Vec::new(), gone.cancelled()), exit);
    if drained.still_held {
        tracing::info!("another process still holds the output of the ended container; what it writes is not logged");
    }
    let flush_limit = if pod.closing.get() { CLOSING_FLUSH_LIMIT } else { FLUSH_LIMIT };
    let totals = container.log.finish(flush_limit).await;
    pod.counters.log_lost_bytes.add(totals.lost.bytes);
    pod.counters.log_lost_lines.add(totals.lost.lines);
    if oom_killed {
        exit_file::write_all(&pod.blocking, &plan.oom_exit_paths, "").await;
    }
    exit_file::write_all(&pod.blocking, &plan.exit_paths, &status.code().to_string()).await;
    container.state.send_replace(State::Exited(status));
    let end = End { status, oom_killed, time };
    pod.containers.record(Listed { log: totals, end: Some(end), ..Listed::of(&container) });
    let lost_bytes = totals.lost.bytes;
    tracing::info!(%status, oom_killed, logged_bytes = totals.written.bytes, lost_bytes, "container exited");
    pod.close_fds(plan.leak_fds).await;
    if !plan.cleanup_command.is_empty() {
        clean_up(&pod, plan.cleanup_command).await;
    }
    pod.containers.remove(&container.id);
    pod.heap.freed();
}

/// Starts the cleanup command. Its end is logged, not awaited.
async fn clean_up(pod: &Rc<Pod>, argv: Vec<String>) {
    let program = PathBuf::from(&argv[0]);
    let mut command = Command::new(&program);
    command.args(&argv[1..]).process_group(0);
    command.stdin(ProcessStdio::null()).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
    pod.runtime.setup.apply(&mut command);
    let launching = pod.runtime.processes.launching();
    let spawned = pod.blocking.run("start", &program, CLEANUP_START_LIMIT, move || command.spawn(), drop).await;
    let process = match spawned {
        Ok(Ok(child)) => Process::adopt(&pod.runtime.processes, child.id()).map_err(|e| e.to_string()),
        Ok(Err(error)) => Err(SysError::io("start", &program, &error).to_string()),
        Err(error) => Err(error.to_string()),
    };
    drop(launching);
    match process {
        Ok(process) => pod.scope.spawn(watch_cleanup(process)),
        Err(error) => tracing::error!(error, "the cleanup command could not be started"),
    }
}

async fn watch_cleanup(process: Process) {
    match tokio::time::timeout(CLEANUP_LIMIT, process.wait()).await {
        Ok(ExitStatus::Exited(0)) => tracing::debug!("the cleanup command is done"),
        Ok(status) => tracing::warn!(%status, "the cleanup command failed"),
        Err(_) => {
            tracing::warn!(limit = ?CLEANUP_LIMIT, "the cleanup command took too long and is killed");
            process.kill_group();
            process.wait().await;
        }
    }
}
