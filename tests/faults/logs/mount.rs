use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::Sandbox;

/// Runs a program that must succeed.
pub(super) fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().expect("the program is there");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory on which a test mounts file systems. They are thawed and taken away when the test ends, however it ends:
/// by a shell that waits for the end of its input.
#[derive(Debug)]
pub(super) struct MountPoint {
    pub(super) path: PathBuf,
    keeper: Child,
}

impl MountPoint {
    pub(super) fn new(sandbox: &Sandbox, name: &str) -> Self {
        let path = sandbox.path().join(name);
        fs::create_dir(&path).expect("a directory under a temporary directory");
        // Lazily: the daemon may still be closing a file there.
        let script = "trap '' HUP INT TERM; read -r _; fsfreeze -u \"$1\"; while umount -l \"$1\"; do :; done";
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).arg(&path);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { keeper: keeper.spawn().expect("a shell"), path }
    }

    /// A file system in memory, of this many KiB.
    pub(super) fn tmpfs(&self, kib: u32) {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={kib}k"), "none"], &self.path);
    }

    /// A file system in a file of 32 MiB.
    pub(super) fn ext4(&self, image: &Path) {
        let file = fs::File::create(image).expect("a file under a temporary directory");
        file.set_len(32 << 20).expect("a file with a hole");
        run("mkfs.ext4", &["-q"], image);
        run("mount", &["-o", "loop", image.to_str().expect("our own name")], &self.path);
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
