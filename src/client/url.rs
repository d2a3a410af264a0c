//! The URLs that serve calls return.

use super::StreamError;

/// Where a streaming URL leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Host and port.
    pub(super) address: &'a str,
    /// Behind the first slash.
    pub(super) path: &'a str,
}

impl<'a> Target<'a> {
    /// Takes `http://HOST:PORT/PATH`.
    ///
    /// # Errors
    /// [`StreamError::BadUrl`] for anything else.
    pub(super) fn parse(url: &'a str) -> Result<Self, StreamError> {
        let bad = || StreamError::BadUrl(url.to_owned());
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://")).ok_or_else(bad)?;
        let (address, path) = rest.split_once('/').ok_or_else(bad)?;
        let clean = rest.bytes().all(|byte| byte.is_ascii_graphic());
        if clean && address.contains(':') { Ok(Self { address, path }) } else { Err(bad()) }
    }
}
