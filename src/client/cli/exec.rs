use super::{
    BROKEN_PIPE, CliError, RuntimeDir,
    session::{self, End, Signals, signal_code},
    terminal::{self, RawMode},
};
use crate::{
    client::{CgroupManager, Client, STREAM_PROTOCOLS, ServeExec, StreamClient},
    model::{ContainerId, Outcome},
};

/// Options of `holdfastctl exec`.
#[derive(Debug, Clone)]
pub struct ExecOptions {
    /// The container.
    pub id: ContainerId,
    /// Argv, not empty.
    pub command: Vec<String>,
    /// Copy our stdin.
    pub interactive: bool,
    /// Give the command a terminal.
    pub tty: bool,
    /// How the runtime makes cgroups.
    pub cgroup_manager: CgroupManager,
}

/// Runs a command in a container and returns its exit code.
///
/// # Errors
/// When it could not be run, or how it ended is not known.
pub async fn exec(dir: &RuntimeDir, options: &ExecOptions) -> Result<u8, CliError> {
    let client = Client::connect(dir.path()).await?;
    let mut signals = Signals::watch()?;
    let url = client
        .serve_exec(&ServeExec {
            id: options.id.to_string(),
            command: options.command.clone(),
            tty: options.tty,
            stdin: options.interactive,
            stdout: true,
            stderr: !options.tty,
            cgroup_manager: options.cgroup_manager,
        })
        .await?;
    // Dropped on every way out of here, before the caller prints an error.
    let _raw = (options.tty && options.interactive).then(RawMode::enter).transpose()?;
    let stream = StreamClient::connect(&url, &STREAM_PROTOCOLS).await?;
    let stdin = options.interactive.then(terminal::read_stdin).transpose()?;
    tokio::select! {
        end = session::copy(stream, stdin, options.tty) => match end? {
            End::Status(Outcome::Exited(code)) => Ok(code),
            End::Status(Outcome::Failed(text)) => Err(CliError::new(text)),
            End::Lost => {
                let what = "the session ended without a status, so the exit code is not known";
                Err(CliError::hint(what, "see the daemon's log"))
            }
            End::ReaderGone => Ok(BROKEN_PIPE),
        },
        signal = signals.next() => Ok(signal_code(signal)),
    }
}
