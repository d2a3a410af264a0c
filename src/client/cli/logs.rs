use std::path::PathBuf;

use super::{
    BROKEN_PIPE, CliError, RuntimeDir,
    exit::{self, POLL},
    follow::Follower,
    output::{self, Reader},
};
use crate::model::ContainerId;

/// Options of `holdfastctl logs`.
#[derive(Debug, Clone)]
pub struct LogsOptions {
    /// The container.
    pub id: ContainerId,
    /// Go on until the container ends.
    pub follow: bool,
    /// Print the time of each record.
    pub timestamps: bool,
    /// The log of a container that `holdfastctl run` did not make.
    pub path: Option<PathBuf>,
}

/// Prints a container's log: its stdout to stdout, its stderr to stderr.
///
/// # Errors
/// When there is no log, or it cannot be read.
pub async fn logs(dir: &RuntimeDir, options: &LogsOptions) -> Result<u8, CliError> {
    let container = dir.container(&options.id);
    let path = options.path.clone().unwrap_or_else(|| container.log());
    let mut follower = Follower::new(&path, options.timestamps);
    let mut tick = tokio::time::interval(POLL);
    loop {
        tick.tick().await;
        // Looked at first: the log is complete when the exit file is there.
        let ended = exit::read(&container.exit())?.is_some();
        if let Reader::Gone = follower.print_available()? {
            return Ok(BROKEN_PIPE);
        }
        if !follower.found() {
            let what = format!("there is no log {}", path.display());
            return Err(CliError::hint(what, "check the id and --runtime-dir, or give the file with --path"));
        }
        if ended || !options.follow {
            break;
        }
    }
    if follower.foreign > 0 {
        output::note(format!("{} lines of {} are not CRI records and were left out", follower.foreign, path.display()));
    }
    Ok(0)
}
