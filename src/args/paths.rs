//! Paths on the command line: what is missing is made, what cannot work is refused.

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use super::ConfigError;

/// The mode of a runtime directory that we make: clients of other users may see it, the socket in it keeps them out.
pub(super) const RUNTIME_DIR_MODE: u32 = 0o755;
/// The mode of a runtime root that we make: the one that OCI runtimes give it.
pub(super) const RUNTIME_ROOT_MODE: u32 = 0o700;

pub(super) fn required(
    path: Option<PathBuf>,
    option: &'static str,
    variable: &'static str,
) -> Result<PathBuf, ConfigError> {
    let path = path.filter(|path| !is_blank(path)).ok_or(ConfigError::NotSet(option, variable))?;
    absolute(option, path)
}

/// Older clients write one space for "not set".
pub(super) fn is_blank(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.trim().is_empty())
}

/// An absolute path stays as it was written: the runtime sees it as its `argv[0]`.
pub(super) fn absolute(option: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    std::path::absolute(&path).map_err(|error| ConfigError::Unusable(option, path, error))
}

pub(super) fn check_runtime(runtime: &Path) -> Result<(), ConfigError> {
    let unusable = |error: io::Error| ConfigError::Unusable("runtime", runtime.to_owned(), error);
    let metadata = runtime.metadata().map_err(unusable)?;
    if !metadata.is_file() {
        return Err(ConfigError::NotFile(runtime.to_owned()));
    }
    access(runtime, AccessFlags::X_OK).map_err(|errno| unusable(errno.into()))
}

pub(super) fn ensure_directory(option: &'static str, path: &Path, mode: u32) -> Result<(), ConfigError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError::NotDirectory(option, path.to_owned())),
        Err(_) => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|error| ConfigError::Create(option, path.to_owned(), error))
        }
    }
}
