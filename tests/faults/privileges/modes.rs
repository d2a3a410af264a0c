//! The modes of what the daemon makes, and where it listens.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{self, BundleSpec, Sandbox};

/// Every socket, and every file that is not the test's own, below a directory, with its mode.
fn modes(dir: &Path, seen: &mut BTreeMap<PathBuf, u32>) {
    for entry in fs::read_dir(dir).expect("ours").flatten() {
        let metadata = entry.path().symlink_metadata().expect("nothing goes meanwhile");
        seen.insert(entry.path(), metadata.permissions().mode() & 0o7777);
        if metadata.is_dir() {
            modes(&entry.path(), seen);
        }
    }
}

/// Starts the daemon with an umask that takes nothing away.
fn without_umask(daemon: &mut Command) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(daemon.get_program()).args(daemon.get_args());
    *daemon = shell;
}

async fn use_everything(sandbox: &Sandbox) {
    let spec = BundleSpec::shell("echo said; read line").stdin();
    sandbox.run("c", &spec).await;
    sandbox.listen("c", false).await;
    support::fds::connect(sandbox).await;
    sandbox.client().reopen_log("c").await.expect("it runs");
    sandbox.exec("c", &["true"]).await;
    sandbox.exec_url("c", &["true"]).await;
}

#[test]
fn sockets_and_files_have_the_least_mode_whatever_the_umask_of_the_starter() {
    support::e2e_with(without_umask, async |sandbox| {
        use_everything(sandbox).await;
        let mut seen = BTreeMap::new();
        modes(&sandbox.runtime_dir(), &mut seen);
        modes(&sandbox.container("c"), &mut seen);
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let seen: BTreeMap<String, u32> = seen.iter().map(|(path, mode)| (name(path), *mode)).collect();
        for (name, mode) in [("conmon.sock", 0o700), ("conmon-fd.sock", 0o700), ("attach", 0o700), ("log", 0o600)] {
            assert_eq!(seen.get(name), Some(&mode), "{name}: {seen:?}");
        }
        let open_to_others: Vec<_> = seen.iter().filter(|(_, mode)| **mode & 0o022 != 0).collect();
        assert!(open_to_others.is_empty(), "{open_to_others:?}");
        sandbox.runtime(&["kill", "c", "KILL"]);
        sandbox.wait_exit("c").await;
        let exit = fs::metadata(sandbox.exit_path("c")).expect("written").permissions().mode();
        // The engine's own readers may have another user.
        assert_eq!(exit & 0o7777, 0o644);
    });
}

/// `LISTEN` in /proc/net/tcp and tcp6 (`tcp_states.h`).
const LISTENING: &str = "0A";

/// The local addresses, as the kernel prints them, of the TCP listeners of a process.
fn listeners(pid: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("ours").flatten();
    let own: Vec<PathBuf> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).expect("procfs");
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let socket = format!("socket:[{}]", fields[9]);
            if fields[3] == LISTENING && own.contains(&PathBuf::from(socket)) {
                found.push(fields[1].to_owned());
            }
        }
    }
    found
}

#[test]
fn the_daemon_listens_on_the_loopback_alone_and_only_when_a_stream_is_asked_for() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let daemon = sandbox.daemon_pid();
        assert_eq!(listeners(daemon), Vec::<String>::new());
        sandbox.exec_url("c", &["true"]).await;
        let listening = listeners(daemon);
        assert!(listening.len() == 1 && listening[0].starts_with("0100007F:"), "{listening:?}");
    });
}
