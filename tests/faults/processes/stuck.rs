//! Processes that no signal ends: they are named, and nobody waits for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use holdfast::client::{ExecSync, ServeExec};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{self, BundleSpec, FakeRuntime, Sandbox, eventually, figure, procfs, wait_output, within};

/// A file system on which whoever writes waits in the kernel, uninterruptibly, until this is dropped.
struct Frozen {
    dir: TempDir,
}

impl Frozen {
    /// One that is not frozen yet.
    fn mount() -> Self {
        let dir = tempfile::Builder::new().prefix("hf-frozen-").tempdir().expect("a temporary directory");
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        fs::create_dir(&mount).expect("our directory");
        fs::File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("our file");
        done(Command::new("mkfs.ext4").arg("-q").arg(&image));
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    fn freeze(&self) {
        done(Command::new("fsfreeze").arg("--freeze").arg(self.path()));
    }

    fn thaw(&self) -> bool {
        Command::new("fsfreeze").arg("--unfreeze").arg(self.path()).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may never have been frozen.
        self.thaw();
        // Whoever waited may still have it open for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

fn done(command: &mut Command) {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The words that the log must have for a process that is stuck.
fn named(log: &str, whose: &str, pid: u32) -> bool {
    let about = |line: &&str| line.contains(&format!("processes {whose} were killed and do not end"));
    let name = format!("dd (pid {pid}, state D, waits in ");
    log.lines().filter(about).any(|line| line.contains(&name))
}

async fn stuck(word: &str) -> u32 {
    let waits = |pid: &u32| procfs::status_line(*pid, "State").starts_with('D');
    eventually("a process in the kernel", || procfs::with_word(word).into_iter().find(waits)).await
}

fn bind(path: &Path) -> serde_json::Value {
    json!({ "type": "bind", "source": path, "destination": "/frozen", "options": ["bind", "rw"] })
}

/// Everything that others ask for is answered; returns how long the slowest took.
async fn others_are_answered(sandbox: &Sandbox) -> Duration {
    let mut slowest = Duration::ZERO;
    for id in ["other", "c"] {
        let command = ["sh", "-c", "echo well; exit 3"].map(str::to_owned).into();
        let exec = ExecSync { id: id.to_owned(), command, timeout_s: 20, ..ExecSync::default() };
        let start = Instant::now();
        let reply = within(sandbox.client().exec_sync(&exec)).await.expect("a reply");
        assert_eq!((reply.exit_code, &*reply.stdout), (3, &b"well\n"[..]));
        within(sandbox.client().reopen_log(id)).await.expect("a live container");
        slowest = slowest.max(start.elapsed());
    }
    slowest
}

#[test]
fn stuck_processes_of_killed_execs_are_named_and_nobody_waits_for_them() {
    let configure = |daemon: &mut Command| _ = daemon.env("HOLDFAST_EXEC_CLIENT_GONE", "kill:1s");
    let frozen = if support::require_e2e() { Frozen::mount() } else { return };
    support::e2e_with(configure, async |sandbox| {
        let mut mounts = json!([]);
        for (kind, path) in [("proc", "/proc"), ("tmpfs", "/dev"), ("devpts", "/dev/pts"), ("tmpfs", "/tmp")] {
            mounts
                .as_array_mut()
                .expect("it is one")
                .push(json!({ "type": kind, "source": kind, "destination": path }));
        }
        mounts.as_array_mut().expect("it is one").push(bind(&frozen.path()));
        sandbox.run("c", &BundleSpec::idle().with(json!({ "mounts": mounts }))).await;
        sandbox.run("other", &BundleSpec::idle()).await;
        frozen.freeze();
        // A word of its own in the command line of busybox's dd, which takes it apart.
        let word = |name: &str| format!("/frozen/{name}-{}", sandbox.daemon_pid());

        // Its command is not stuck, a child of it is, and one without its parent in a session of its own.
        let script = format!(
            "echo up; /bin/dd if=/dev/zero of={} & setsid sh -c '(/bin/dd if=/dev/zero of={} &)'; cat",
            word("a"),
            word("b")
        );
        let exec = ServeExec {
            id: "c".to_owned(),
            command: ["sh".to_owned(), "-c".to_owned(), script].into(),
            stdin: true,
            stdout: true,
            ..ServeExec::default()
        };
        let mut session = sandbox.exec_session(exec).await;
        wait_output(&mut session, "up").await;
        let hidden = [stuck(&word("a")).await, stuck(&word("b")).await];
        drop(session);

        let command = ["dd".to_owned(), "if=/dev/zero".to_owned(), format!("of={}", word("sync"))].into();
        let sync = ExecSync { id: "c".to_owned(), command, timeout_s: 1, ..ExecSync::default() };
        let start = Instant::now();
        let reply = within(sandbox.client().exec_sync(&sync)).await.expect("a reply");
        assert!(reply.timed_out && start.elapsed() < Duration::from_secs(20), "nobody waits for what is stuck");
        let main = stuck(&word("sync")).await;

        let mut slowest = Duration::ZERO;
        while ![hidden[0], hidden[1], main].iter().all(|pid| named(&sandbox.daemon_log(), "of an exec", *pid)) {
            slowest = slowest.max(others_are_answered(sandbox).await);
            assert!(start.elapsed() < support::DEADLINE, "they are not named: {hidden:?}, {main}");
        }
        figure("slowest call beside processes stuck in the kernel (ms)", slowest.as_millis());
        assert!(!sandbox.daemon_log().contains("/dev/zero"), "an argument is in the log");

        let start = Instant::now();
        assert_eq!(sandbox.end_daemon(Signal::SIGTERM).await.code(), Some(1), "it could not end them all");
        figure("shutdown with processes stuck in the kernel (s)", start.elapsed().as_secs_f32());
        for pid in [hidden[0], hidden[1], main] {
            assert!(named(&sandbox.daemon_log(), "of the pod", pid), "{pid} is not named at the shutdown");
        }
        assert!(frozen.thaw());
        for name in ["a", "b", "sync"] {
            eventually("their end", || procfs::with_word(&word(name)).is_empty().then_some(())).await;
        }
    });
}

#[test]
fn a_runtime_that_is_stuck_is_named_and_its_create_is_answered() {
    let frozen = if support::require_e2e() { Frozen::mount() } else { return };
    let limited = |daemon: &mut Command| {
        daemon.env("HOLDFAST_RUNTIME_LIMIT", "2");
        FakeRuntime::install(daemon);
    };
    support::e2e_with(limited, async |sandbox| {
        sandbox.run("other", &BundleSpec::idle()).await;
        frozen.freeze();
        let word = format!("of={}", frozen.path().join("file").display());
        // A child of it, as `runc init` is one.
        FakeRuntime::of(sandbox).plan("create", &format!("dd if=/dev/zero {word}; exit 0"));
        let start = Instant::now();
        let request = sandbox.create_request("c", &BundleSpec::idle());
        let client = sandbox.client();
        let (refused, pid) = within(futures_util::future::join(client.create_container(&request), stuck(&word))).await;
        let refused = refused.expect_err("no container").to_string();
        assert!(refused.contains("did not answer in time"), "{refused}");
        figure("answer of a create whose runtime is stuck (s)", start.elapsed().as_secs_f32());
        assert!(named(&sandbox.daemon_log(), "of the runtime", pid), "{pid} is not named");
        let command = ["true".to_owned()].into();
        let exec = ExecSync { id: "other".to_owned(), command, ..ExecSync::default() };
        assert_eq!(within(sandbox.client().exec_sync(&exec)).await.expect("a reply").exit_code, 0);
        assert!(frozen.thaw());
        eventually("its end", || procfs::with_word(&word).is_empty().then_some(())).await;
        FakeRuntime::of(sandbox).behave();
        sandbox.creates_again("c").await;
    });
}
