//! Errors of the daemon as Cap'n Proto exceptions: the only such mapping.
//!
//! Every application error is of kind `failed`, as clients of the contract expect; a stable first word says which kind of
//! trouble it is. Only a daemon that is shutting down answers `disconnected`: another one may be asked.

use super::decode::Invalid;
use crate::{
    container,
    model::{one_line, trimmed},
    oci::LaunchError,
    pause,
    sys::SysError,
    transport::{AttachError, FdSocketError},
};

/// The longest text of an error, in bytes.
const TEXT_LIMIT: usize = 4096;

pub(super) fn invalid(error: &Invalid) -> capnp::Error {
    capnp::Error::failed(format!("invalid-request: {error}"))
}

pub(super) fn container(error: &container::Error) -> capnp::Error {
    use container::Error;
    let text = trimmed(one_line(error), TEXT_LIMIT);
    match error {
        Error::NotFound(_) | Error::StillCreating(_) => capnp::Error::failed(format!("not-found: {text}")),
        Error::Exists(_) => capnp::Error::failed(format!("exists: {text}")),
        Error::Closing | Error::Abandoned | Error::Launch(LaunchError::Closing) => capnp::Error::disconnected(text),
        _ => capnp::Error::failed(text),
    }
}

pub(super) fn attach(error: &AttachError) -> capnp::Error {
    let text = format!("the container cannot be attached to: {}", one_line(error));
    capnp::Error::failed(trimmed(text, TEXT_LIMIT))
}

pub(super) fn namespaces(error: &pause::Error) -> capnp::Error {
    let text = trimmed(one_line(error), TEXT_LIMIT);
    match error {
        pause::Error::Different(_) => capnp::Error::failed(format!("exists: {text}")),
        pause::Error::Closing => capnp::Error::disconnected(text),
        _ => capnp::Error::failed(text),
    }
}

pub(super) fn fd_socket(error: &FdSocketError) -> capnp::Error {
    match error {
        FdSocketError::Closing => capnp::Error::disconnected(error.to_string()),
        FdSocketError::Sys(error) => world(error),
    }
}

pub(super) fn world(error: &SysError) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}
