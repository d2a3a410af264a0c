//! Exit and OOM files: complete from the moment they exist, since others watch for their appearance.

use std::{
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
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
        if let Some(temporary) = temporary {
            publish(blocking, path, temporary).await;
        }
    }
}

/// Renames the temporary file to its target, or removes it when that failed twice.
async fn publish(blocking: &Blocking, path: &Path, temporary: PathBuf) {
    for _ in 0..2 {
        let (from, to) = (temporary.clone(), path.to_owned());
        let rename = move || fs::rename(from, to);
        if report(path, blocking.run("rename", path, FILE_LIMIT, rename, drop).await) {
            return;
        }
    }
    let _ = blocking.run("remove", path, FILE_LIMIT, move || fs::remove_file(temporary), drop).await;
}

/// Writes the temporary file; `None` when that failed twice.
async fn prepare(blocking: &Blocking, path: &Path, content: &str) -> Option<PathBuf> {
    for _ in 0..2 {
        let temporary = beside(path);
        let (target, text) = (temporary.clone(), content.to_owned());
        // What a full disk took a part of, or only the name, must not stay.
        let job = move || fs::write(&target, text).inspect_err(|_| drop(fs::remove_file(&target)));
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

/// The name of the temporary file: the target's and `.tmp`, or where that is longer than a name may be, one made of it.
fn beside(path: &Path) -> PathBuf {
    /// `NAME_MAX` of Linux.
    const NAME_LIMIT: usize = 255;
    let mut name = path.file_name().map_or_else(|| OsString::from("exit"), OsString::from);
    if name.len() + ".tmp".len() > NAME_LIMIT {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        name = format!("{:016x}", hasher.finish()).into();
    }
    name.push(".tmp");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::local;

    #[test]
    fn one_path_that_cannot_be_written_neither_stops_the_others_nor_leaves_anything() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // A directory that is not empty cannot be renamed over; one that is missing cannot be written into.
        fs::create_dir_all(path("taken/full")).unwrap();
        local(async {
            write_all(&Blocking::new(), &[path("a"), path("taken"), path("missing/b"), path("c")], "137").await;
        });
        assert_eq!(fs::read_to_string(path("a")).unwrap() + &fs::read_to_string(path("c")).unwrap(), "137137");
        let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "c", "taken"]);
    }

    #[test]
    fn a_name_as_long_as_a_name_may_be_has_room_for_its_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<_> = [251, 252, 255].map(|length| directory.path().join("x".repeat(length))).into();
        local(async { write_all(&Blocking::new(), &paths, "0").await });
        assert!(paths.iter().all(|path| fs::read_to_string(path).is_ok_and(|code| code == "0")));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
