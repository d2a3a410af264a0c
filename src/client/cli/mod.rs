//! What `holdfastctl` does, as plain functions: each sub-command takes its options and returns an exit code.
//!
//! One thread and one job at a time, so the blocking calls here (the runtime's commands, the local file system, writes
//! to the caller's stdout) hold up nothing but themselves; only stdin has a thread of its own.

mod attach;
mod bundle;
mod daemon;
mod exec;
mod exit;
mod follow;
mod forward_port;
mod list;
mod logs;
mod output;
mod paths;
mod port_forward;
mod record;
mod remove;
mod run;
mod runtime;
mod session;
mod terminal;
mod version;

use std::fmt;

pub use attach::{AttachOptions, attach};
pub use exec::{ExecOptions, exec};
pub use forward_port::{ForwardAddress, ForwardPort};
pub use list::{ListOptions, containers, sessions};
pub use logs::{LogsOptions, logs};
pub use paths::RuntimeDir;
pub use port_forward::{ForwardTarget, PortForwardOptions, port_forward};
pub use remove::{remove, stop};
pub use run::{RunOptions, run};
pub use runtime::RuntimeOptions;
pub use version::version;

use super::{ClientError, LogDriver, LogDriverKind, StreamError};
use crate::model::ContainerId;

/// The exit code of `holdfastctl`'s own errors, as of other container tools: commands seldom use it themselves.
pub const OWN_ERROR: u8 = 125;
/// The exit code when nobody reads stdout any more: what a shell reports for a program killed by SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Checks the form of a container's id.
///
/// # Errors
/// When no container can have it.
pub fn container_id(text: &str) -> Result<ContainerId, CliError> {
    ContainerId::parse(text).map_err(|error| CliError::hint(error, "choose another"))
}

/// Reads `cri:FILE`, `json:FILE` or `journald`.
///
/// # Errors
/// When it is none of these.
pub fn log_driver(text: &str) -> Result<LogDriver, CliError> {
    let bad = || CliError::hint(format!("{text:?} is no log"), "write cri:FILE, json:FILE or journald");
    let (kind, path) = match text.split_once(':') {
        Some(("cri", path)) => (LogDriverKind::Cri, path),
        Some(("json", path)) => (LogDriverKind::Json, path),
        None if text == "journald" => {
            return Ok(LogDriver { kind: LogDriverKind::Journald, path: "".into(), max_size: 0 });
        }
        _ => return Err(bad()),
    };
    // The daemon has another working directory.
    let path = std::path::absolute(path).map_err(|_| bad())?;
    Ok(LogDriver { kind, path, max_size: 0 })
}

/// One line for the user: what went wrong and, where something can be done about it, what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    what: String,
    next: Option<String>,
}

impl CliError {
    fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), next: None }
    }

    fn hint(what: impl fmt::Display, next: impl Into<String>) -> Self {
        Self { what: what.to_string(), next: Some(next.into()) }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Messages of a runtime may have several lines; a script that greps stderr wants one.
        for (index, line) in self.what.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            write!(f, "{}{line}", if index > 0 { "; " } else { "" })?;
        }
        match &self.next {
            Some(next) => write!(f, ": {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::new(error)
    }
}

impl From<StreamError> for CliError {
    fn from(error: StreamError) -> Self {
        Self::new(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_a_driver_and_a_file_or_the_journal() {
        let of = |text| log_driver(text).map(|log| (log.kind, log.path));
        assert_eq!(of("json:/a:b"), Ok((LogDriverKind::Json, "/a:b".into())));
        assert_eq!(of("journald"), Ok((LogDriverKind::Journald, "".into())));
        assert!(of("cri:here").is_ok_and(|(_, path)| path.is_absolute() && path.ends_with("here")));
        for bad in ["", "json", "json:", "journald:x", "syslog:/x", "/x"] {
            let error = of(bad).unwrap_err().to_string();
            assert_eq!(error, format!("{bad:?} is no log: write cri:FILE, json:FILE or journald"));
        }
    }

    #[test]
    fn an_error_is_one_line_that_ends_with_what_to_do() {
        let error = CliError::hint("runc said\n\n  no such file \n", "check the path");
        assert_eq!(error.to_string(), "runc said; no such file: check the path");
    }
}
