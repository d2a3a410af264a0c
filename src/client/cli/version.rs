use serde_json::json;

use super::{CliError, RuntimeDir, output};
use crate::{
    client::{Client, ClientError, VersionReply},
    model::StdStream,
};

/// Prints what this client is, and what the daemon is when there is one.
///
/// # Errors
/// When a daemon is there but does not answer.
pub async fn version(dir: &RuntimeDir, as_json: bool) -> Result<u8, CliError> {
    let daemon = match Client::connect(dir.path()).await {
        Ok(client) => Some(client.version(false).await?),
        Err(ClientError::NoDaemon(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let text = if as_json { json_text(daemon.as_ref()) } else { plain_text(dir, daemon.as_ref()) };
    output::write(StdStream::Stdout, text.as_bytes())?;
    Ok(0)
}

fn json_text(daemon: Option<&VersionReply>) -> String {
    let client = json!({ "version": env!("CARGO_PKG_VERSION"), "commit": env!("HOLDFAST_BUILD_COMMIT") });
    format!("{}\n", json!({ "client": client, "daemon": daemon }))
}

fn plain_text(dir: &RuntimeDir, daemon: Option<&VersionReply>) -> String {
    let client = format!("client: {} (commit {})\n", env!("CARGO_PKG_VERSION"), env!("HOLDFAST_BUILD_COMMIT"));
    let daemon = match daemon {
        Some(daemon) => format!(
            "daemon: {} (commit {}, built {}, {}, process {})\n",
            daemon.version, daemon.commit, daemon.build_date, daemon.target, daemon.process_id
        ),
        None => format!("daemon: none listens in {}\n", dir.path().display()),
    };
    client + &daemon
}
