//! Unguessable names.

use std::fmt::Write as _;

use nix::errno::Errno;

use super::SysError;

/// 128 random bits as 32 lower-case hexadecimal digits: fit for a path, a file name and a secret.
///
/// # Errors
/// When the kernel has no randomness to give (getrandom(2)).
pub(crate) fn random_hex() -> Result<String, SysError> {
    Ok(random_bytes::<16>()?.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// # Errors
/// When the kernel has no randomness to give (getrandom(2)).
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], SysError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        SysError::new("draw random bytes", Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOSYS)))
    })?;
    Ok(bytes)
}
