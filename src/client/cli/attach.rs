use std::fs;

use serde_json::Value;

use super::{
    CliError, RuntimeDir, exit,
    session::{self, Signals, signal_code},
    terminal::{self, RawMode},
};
use crate::{
    client::{Client, Requested, ServeAttach, Transport},
    model::ContainerId,
};

/// Options of `holdfastctl attach`.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// The container.
    pub id: ContainerId,
    /// Copy our stdin.
    pub interactive: bool,
    /// The container has a terminal, and ours is to be like it.
    pub tty: bool,
    /// What carries the session.
    pub transport: Transport,
}

/// Shows what a container writes from now on, and returns its exit code if `holdfastctl run` made it; else 0.
///
/// # Errors
/// When there is no such container, or how it ended is not known.
pub async fn attach(dir: &RuntimeDir, options: &AttachOptions) -> Result<u8, CliError> {
    let client = Client::connect(dir.path()).await?;
    let mut signals = Signals::watch()?;
    let id = &options.id;
    let terminal = has_terminal(dir, id).unwrap_or(options.tty);
    if options.tty && !terminal {
        return Err(CliError::hint(format!("the container {id} has no terminal"), "leave out -t"));
    }
    let attach = ServeAttach { id: id.to_string(), stdin: options.interactive, stdout: true, stderr: !terminal };
    let url = client.serve_attach(&attach).await?;
    // Dropped on every way out of here, before the caller prints an error.
    let _raw = (options.tty && options.interactive).then(RawMode::enter).transpose()?;
    let requested = Requested { stdin: attach.stdin, stdout: true, stderr: attach.stderr, tty: terminal };
    let stream = session::connect(&url, options.transport, requested).await?;
    let stdin = options.interactive.then(terminal::read_stdin).transpose()?;
    tokio::select! {
        end = session::copy(stream, stdin, options.tty) => match session::code(end?)? {
            0 => exit_code(dir, id),
            code => Ok(code),
        },
        signal = signals.next() => Ok(signal_code(signal)),
    }
}

/// A session says only that the container has ended, or that we have left it. How, is in a file that is there by then.
fn exit_code(dir: &RuntimeDir, id: &ContainerId) -> Result<u8, CliError> {
    exit::read(&dir.container(id).exit())?.map_or(Ok(0), exit::code)
}

/// What the bundle says of a container that `holdfastctl run` made; of others nothing is known here.
fn has_terminal(dir: &RuntimeDir, id: &ContainerId) -> Option<bool> {
    let text = fs::read_to_string(dir.container(id).config()).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    config["process"]["terminal"].as_bool()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_tells_whether_there_is_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let (runtime_dir, id) = (RuntimeDir::new(dir.path()).unwrap(), ContainerId::parse("a").unwrap());
        assert_eq!(has_terminal(&runtime_dir, &id), None);
        let container = runtime_dir.container(&id);
        container.make().unwrap();
        fs::write(container.config(), r#"{"process":{"terminal":true}}"#).unwrap();
        assert_eq!(has_terminal(&runtime_dir, &id), Some(true));
        fs::write(container.config(), "{").unwrap();
        assert_eq!(has_terminal(&runtime_dir, &id), None);
    }
}
