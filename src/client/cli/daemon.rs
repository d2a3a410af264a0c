//! Starting and stopping the daemon of a runtime directory. Callers hold the directory's lock.

use std::{
    env, fs,
    io::Read,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    CliError, RuntimeDir, RuntimeOptions,
    exit::POLL,
    runtime::{Runtime, in_path},
};
use crate::{
    client::{Client, ClientError},
    sys::process::{pidfd_open, pidfd_send_signal},
};

/// The daemon gives itself 8 s; control-api.md 3.4 gives it 10.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A connection to the directory's daemon, which is started when there is none, and how its runtime is called.
pub(super) async fn connect_or_start(
    dir: &RuntimeDir,
    options: &RuntimeOptions,
) -> Result<(Client, Runtime), CliError> {
    match Client::connect(dir.path()).await {
        Ok(client) => Ok((client, runtime_of(dir, options)?)),
        Err(ClientError::NoDaemon(_)) => {
            let runtime = Runtime::resolve(options)?;
            start(dir, &runtime, &monitor(options)?)?;
            let client = Client::connect(dir.path()).await?;
            // Only now: without it nobody stops the daemon again, and this one is ours to stop.
            runtime.store(&dir.marker())?;
            Ok((client, runtime))
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends the daemon and every container it watches.
pub(super) async fn stop(dir: &RuntimeDir) -> Result<(), CliError> {
    let client = Client::connect(dir.path()).await?;
    let pid = client.version(false).await?.process_id;
    if pid <= 1 {
        return Err(CliError::new(format!("the daemon says its process id is {pid}")));
    }
    let refused = |error| {
        CliError::hint(format!("cannot stop the daemon (process {pid}): {error}"), "stop it as the user who started it")
    };
    let pidfd = pidfd_open(pid).map_err(refused)?;
    // It answers still, so what is held is the daemon and not the next owner of its number.
    client.version(false).await?;
    pidfd_send_signal(pidfd.as_fd(), Signal::SIGINT as i32).map_err(refused)?;
    let gone = async {
        let mut tick = tokio::time::interval(POLL);
        while dir.control_socket().exists() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(STOP_LIMIT, gone).await.map_err(|_| {
        CliError::hint(
            format!("the daemon (process {pid}) does not end"),
            format!("see its log, or end it with `kill -9 {pid}`: its containers go on without a monitor then"),
        )
    })?;
    remove_file(&dir.marker())
}

/// Stops a daemon that [`connect_or_start`] started, once no container needs it.
pub(super) async fn stop_if_unused(dir: &RuntimeDir) -> Result<(), CliError> {
    let live = dir.live_containers().map_err(|error| CliError::new(format!("cannot count containers: {error}")))?;
    if live > 0 || !dir.marker().exists() {
        return Ok(());
    }
    match Client::connect(dir.path()).await {
        Ok(_) => stop(dir).await,
        Err(_) => remove_file(&dir.marker()),
    }
}

/// The daemon's runtime cannot be changed and must be the one we call ourselves.
fn runtime_of(dir: &RuntimeDir, options: &RuntimeOptions) -> Result<Runtime, CliError> {
    let Some(stored) = Runtime::load(&dir.marker())? else {
        return Runtime::resolve(options);
    };
    let asked = RuntimeOptions {
        path: options.path.clone().or_else(|| Some(stored.path.clone())),
        root: options.root.clone().or_else(|| stored.root.clone()),
        ..options.clone()
    };
    let asked = Runtime::resolve(&asked)?;
    if (&asked.path, &asked.root) != (&stored.path, &stored.root) {
        let what = format!("the daemon in {} uses {}", dir.path().display(), stored.path.display());
        return Err(CliError::hint(what, "leave out --runtime and --runtime-root, or choose another --runtime-dir"));
    }
    Ok(asked)
}

fn monitor(options: &RuntimeOptions) -> Result<PathBuf, CliError> {
    if let Some(path) = &options.monitor {
        return Ok(path.clone());
    }
    let beside = env::current_exe().ok().map(|exe| exe.with_file_name("holdfast")).filter(|path| path.is_file());
    beside
        .or_else(|| in_path(Path::new("holdfast")))
        .ok_or_else(|| CliError::hint("the daemon's binary `holdfast` is not in $PATH", "give its path with --monitor"))
}

/// Returns when the daemon listens: its parent process ends no earlier.
fn start(dir: &RuntimeDir, runtime: &Runtime, monitor: &Path) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| {
        let what = format!("cannot start the daemon {}: {error}", monitor.display());
        CliError::hint(what, "check --monitor, --runtime and --runtime-dir")
    };
    let (mut errors, writer) = std::io::pipe().map_err(|error| failed(&error))?;
    let mut command = Command::new(monitor);
    command.arg("--runtime").arg(&runtime.path).arg("--runtime-dir").arg(dir.path());
    if let Some(root) = &runtime.root {
        command.arg("--runtime-root").arg(root);
    }
    command.args(["--log-level", "info", "--log-driver", "none"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let status = command.status().map_err(|error| failed(&error))?;
    // Holds the pipe's write end.
    drop(command);
    if !status.success() {
        // Read only now: a daemon that runs might hold the pipe open.
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        let text = text.trim();
        return Err(failed(if text.is_empty() { &status } else { &text }));
    }
    remove_file(&dir.pidfile())
}

fn remove_file(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::new(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
