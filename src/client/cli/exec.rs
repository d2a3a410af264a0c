use super::{
    CliError, RuntimeDir,
    session::{self, Signals, signal_code},
    terminal::{self, RawMode},
};
use crate::{
    client::{CgroupManager, Client, Requested, ServeExec, Transport},
    model::ContainerId,
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
    /// What carries the session.
    pub transport: Transport,
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
    let requested = Requested { stdin: options.interactive, stdout: true, stderr: !options.tty, tty: options.tty };
    let stream = session::connect(&url, options.transport, requested).await?;
    let stdin = options.interactive.then(terminal::read_stdin).transpose()?;
    tokio::select! {
        end = session::copy(stream, stdin, options.tty) => session::code(end?),
        signal = signals.next() => Ok(signal_code(signal)),
    }
}
