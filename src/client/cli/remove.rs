use std::{fs, io, time::Duration};

use super::{CliError, RuntimeDir, RuntimeOptions, daemon, exit, paths::ContainerDir, runtime::Runtime};
use crate::{client::Client, model::ContainerId};

/// How long the daemon may take from a container's death to its exit file: draining and flushing are bounded by 7 s.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// Ends a container that `run --detach` made and removes it; the daemon too when `run` started it for this one.
///
/// # Errors
/// When there is no such container, or a part of it cannot be removed.
pub async fn remove(dir: &RuntimeDir, id: &ContainerId, options: &RuntimeOptions) -> Result<u8, CliError> {
    let container = dir.container(id);
    if !container.bundle().is_dir() {
        let what = format!("there is no container {id} in {}", dir.path().display());
        return Err(CliError::hint(what, "check the id and --runtime-dir"));
    }
    let runtime = match Runtime::load(&container.settings())? {
        Some(runtime) => runtime,
        None => Runtime::resolve(options)?,
    };
    release(dir, id, &runtime, false).await?;
    Ok(0)
}

/// Stops the daemon, which ends its containers.
///
/// # Errors
/// When there is none, or it does not end in time.
pub async fn stop(dir: &RuntimeDir) -> Result<u8, CliError> {
    if !dir.path().is_dir() {
        return Err(crate::client::ClientError::NoDaemon(dir.path().into()).into());
    }
    let _lock = dir.lock()?;
    daemon::stop(dir).await?;
    Ok(0)
}

/// Ends the container if it has not ended, and removes what belongs to it; its files stay with `keep`.
pub(super) async fn release(dir: &RuntimeDir, id: &ContainerId, runtime: &Runtime, keep: bool) -> Result<(), CliError> {
    let container = dir.container(id);
    runtime.delete(id)?;
    await_exit_file(dir, &container).await?;
    let _lock = dir.lock()?;
    let removed = if keep { remove_file(&container) } else { fs::remove_dir_all(container.bundle()) };
    removed.map_err(|error| CliError::new(format!("cannot remove {}: {error}", container.bundle().display())))?;
    daemon::stop_if_unused(dir).await
}

/// Removing the directory earlier would pull it from under the daemon, which has the exit file still to write.
async fn await_exit_file(dir: &RuntimeDir, container: &ContainerDir) -> Result<(), CliError> {
    // Nobody will write it when the daemon is gone, or when the container was never created.
    if exit::read(&container.exit())?.is_some() || !container.settings().exists() {
        return Ok(());
    }
    if Client::connect(dir.path()).await.is_err() {
        return Ok(());
    }
    match tokio::time::timeout(EXIT_LIMIT, exit::wait(&container.exit())).await {
        Ok(code) => code.map(drop),
        Err(_) => Err(CliError::hint(
            "the container was killed but the daemon does not report its end",
            "see the daemon's log, or stop it with `holdfastctl stop`",
        )),
    }
}

/// A kept container without an exit file must not count as live.
fn remove_file(container: &ContainerDir) -> io::Result<()> {
    match fs::remove_file(container.settings()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
