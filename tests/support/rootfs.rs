use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use super::which;

/// Makes a root file system of a static busybox with all its applets.
pub(crate) fn make(path: &Path) {
    let busybox = which("busybox").expect("checked by require_e2e");
    for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(path.join(dir)).expect("a directory under a temporary directory");
    }
    fs::copy(&busybox, path.join("bin/busybox")).expect("a copy of busybox");
    let list = Command::new(&busybox).arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", path.join("bin").join(applet)).expect("one link per applet");
    }
}
