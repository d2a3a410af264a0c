//! A container's exit file; control-api.md 5.2.

use std::{fs, io, path::Path, time::Duration};

use super::CliError;

/// How often files are looked at that others write. Nothing wakes a waiter earlier: that would take inotify.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The code in an exit file, or `None` while the container has not ended.
pub(super) fn read(path: &Path) -> Result<Option<i32>, CliError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::new(format!("cannot read {}: {error}", path.display()))),
        Ok(text) => text,
    };
    match text.trim().parse() {
        Ok(code) => Ok(Some(code)),
        Err(_) => Err(CliError::new(format!("{} holds {text:?} instead of an exit code", path.display()))),
    }
}

/// Waits for the container's end, however long it takes.
pub(super) async fn wait(path: &Path) -> Result<i32, CliError> {
    let mut tick = tokio::time::interval(POLL);
    loop {
        tick.tick().await;
        if let Some(code) = read(path)? {
            return Ok(code);
        }
    }
}

/// The code of a container as the exit code of this process.
pub(super) fn code(code: i32) -> Result<u8, CliError> {
    u8::try_from(code).map_err(|_| {
        CliError::hint(
            "the container has ended but its exit code is lost",
            "look for somebody else who reaps processes",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_file_is_a_code_or_an_error_but_never_a_guess() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        assert_eq!(read(&path).unwrap(), None);
        fs::write(&path, "137").unwrap();
        assert_eq!(read(&path).unwrap(), Some(137));
        fs::write(&path, "").unwrap();
        assert!(read(&path).is_err());
        assert_eq!(code(255).unwrap(), 255);
        assert!(code(-1).is_err());
    }
}
