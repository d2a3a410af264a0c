//! The same with crun, which knows other options and says other things.

use holdfast::{
    client::{ExecSync, ServeExec},
    model::{Outcome, StdStream},
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, BundleSpec, Sandbox, eventually, procfs, within};

async fn exec(sandbox: &Sandbox, terminal: bool, timeout_s: u64, script: &str) -> holdfast::client::ExecSyncReply {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    let exec = ExecSync { id: "c".to_owned(), command, terminal, timeout_s, ..ExecSync::default() };
    within(sandbox.client().exec_sync(&exec)).await.expect("a reply")
}

#[test]
fn crun_creates_logs_and_tells_the_exit() {
    support::e2e_crun(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("echo out; echo err >&2; exit 42")).await;
        assert_eq!(sandbox.wait_exit("c").await, 42);
        assert_eq!(
            (sandbox.logged("c", StdStream::Stdout), sandbox.logged("c", StdStream::Stderr)),
            (b"out\n".to_vec(), b"err\n".to_vec())
        );
        sandbox.run("t", &BundleSpec::shell("tty; exit 3").terminal()).await;
        assert_eq!(sandbox.wait_exit("t").await, 3);
        assert!(sandbox.logged("t", StdStream::Stdout).starts_with(b"/dev/pts/"));
        let missing = sandbox.create_request("m", &BundleSpec::new(&["invalid"]));
        let error = sandbox.client().create_container(&missing).await.expect_err("there is no such program");
        assert!(error.to_string().contains("invalid"), "{error}");
        eventually("no process to be left", || procfs::children(sandbox.daemon_pid()).is_empty().then_some(())).await;
    });
}

#[test]
fn crun_runs_commands_with_and_without_a_terminal_and_a_timeout() {
    support::e2e_crun(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        for (terminal, end) in [(false, "\n"), (true, "\r\n")] {
            for timeout_s in [0, 25] {
                let answer = exec(sandbox, terminal, timeout_s, "echo x; exit 4").await;
                assert_eq!((answer.exit_code, answer.stdout), (4, format!("x{end}").into()), "{terminal} {timeout_s}");
            }
            let answer = exec(sandbox, terminal, 2, "echo x; setsid sleep 1000 & sleep 1000").await;
            assert_eq!((answer.exit_code, answer.timed_out), (-3, true), "{answer:?}");
            let missing = ServeExec { id: "c".to_owned(), command: vec!["invalid".to_owned()], ..ServeExec::default() };
            let all = support::collect(sandbox.exec_session(ServeExec { stdout: true, ..missing }).await).await;
            assert!(matches!(&all.statuses[..], [Outcome::Failed(_)]), "{all:?}");
        }
        let missing = ExecSync { id: "c".to_owned(), command: vec!["invalid".to_owned()], ..ExecSync::default() };
        let answer = sandbox.client().exec_sync(&missing).await.expect("a reply");
        assert!(answer.exit_code == -2 && !answer.stderr.is_empty(), "{answer:?}");
        let alone = || (procfs::children(sandbox.daemon_pid()).len() == 1).then_some(());
        eventually("the commands to be collected", alone).await;
        sandbox.runtime(&["kill", "c", "KILL"]);
        assert_eq!(sandbox.wait_exit("c").await, 137);
        sandbox.runtime(&["delete", "c"]);
    });
}

#[test]
fn an_oom_kill_is_told_and_the_shutdown_kills_everything_under_crun_too() {
    support::e2e_crun(async |sandbox| {
        let memory = json!({ "linux": { "resources": { "memory": { "limit": 8 << 20, "swap": 8 << 20 } } } });
        sandbox.run("eater", &BundleSpec::shell("tail -c 1000000000 /dev/zero").with(memory)).await;
        assert_eq!(sandbox.wait_exit("eater").await, 137);
        assert!(sandbox.oom_path("eater").exists());
        let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let word = (u64::from(sandbox.daemon_pid()) + 7_000_000).to_string();
        let script = format!("trap '' TERM; (setsid sleep {word} &); while :; do sleep 1; done");
        sandbox.run("c", &BundleSpec::shell(&script).with(json!({ "linux": { "namespaces": namespaces } }))).await;
        eventually("the stray", || (procfs::with_word(&word).len() == 1).then_some(())).await;
        assert_eq!(sandbox.end_daemon(Signal::SIGTERM).await.code(), Some(0));
        assert_eq!(sandbox.wait_exit("c").await, 137);
        assert!(procfs::with_word(&word).is_empty());
    });
}
