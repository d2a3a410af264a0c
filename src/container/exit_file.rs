//! Exit and OOM files: complete from the moment they exist, since others watch for their appearance.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;

use crate::io::blocking::Blocking;

/// How long one file operation may take before the others go on without it.
const FILE_LIMIT: Duration = Duration::from_secs(5);

/// Writes the same content to every path: each temporary file beside its target first, then the renames in *reverse* order
/// of the request, since CRI-O names the directory it watches first and reads the other file then. A failure is logged,
/// tried once more, and does not stop the others.
pub(super) async fn write_all(blocking: &Blocking, paths: &[PathBuf], content: &str) {
    let prepared = join_all(paths.iter().map(|path| prepare(blocking, path, content))).await;
    for (path, temporary) in paths.iter().zip(prepared).rev() {
        let Some(temporary) = temporary else { continue };
        let target = path.clone();
        let rename = move || fs::rename(&temporary, target);
        report(path, blocking.run("rename", path, FILE_LIMIT, rename, drop).await);
    }
}

/// Writes the temporary file; `None` when that failed twice.
async fn prepare(blocking: &Blocking, path: &Path, content: &str) -> Option<PathBuf> {
    for _ in 0..2 {
        let temporary = beside(path);
        let (target, text) = (temporary.clone(), content.to_owned());
        let job = move || fs::write(&target, text);
        let late = temporary.clone();
        // Written after all, when nobody waits any more: it would lie there for ever.
        let undo = move |_| drop(fs::remove_file(late));
        if report(path, blocking.run("write", path, FILE_LIMIT, job, undo).await) {
            return Some(temporary);
        }
    }
    None
}

fn report<E: std::fmt::Display>(path: &Path, result: Result<io::Result<()>, E>) -> bool {
    let error = match result {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::error!(path = %path.display(), %error, "an exit file could not be written");
    false
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(|| OsString::from("exit"), OsString::from);
    name.push(".tmp");
    path.with_file_name(name)
}
