//! What becomes of a command whose client has gone: `--exec-client-gone` (streaming 4.5).

use std::fs;

use holdfast::{
    client::{ExecSync, ServeExec, StreamClient},
    model::Outcome,
};

use crate::support::{self, BundleSpec, Sandbox, eventually, procfs, wait_output};

fn with_policy(policy: &str, test: impl AsyncFnOnce(&Sandbox, u32)) {
    let configure = |daemon: &mut std::process::Command| {
        daemon.env("HOLDFAST_EXEC_CLIENT_GONE", policy);
    };
    support::e2e_with(configure, async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        test(sandbox, pid).await;
    });
}

/// A number of seconds that no other test's `sleep` has: processes are found by it.
fn unique(sandbox: &Sandbox, n: u32) -> String {
    (u64::from(sandbox.daemon_pid()) * 1000 + u64::from(n) + 2_000_000).to_string()
}

async fn ended(words: &[String]) {
    for word in words {
        eventually(&format!("the end of sleep {word}"), || procfs::with_word(word).is_empty().then_some(())).await;
    }
}

async fn no_exec_cgroups(pid: u32) {
    eventually("the cgroup to be removed", || procfs::exec_cgroups(pid).is_empty().then_some(())).await;
}

/// A command that has said `up`.
async fn session(sandbox: &Sandbox, tty: bool, script: &str) -> StreamClient {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    let exec = ServeExec { id: "c".to_owned(), command, tty, stdin: true, stdout: true, ..ServeExec::default() };
    let mut session = sandbox.exec_session(exec).await;
    wait_output(&mut session, "up").await;
    session
}

/// Starts a child, one in a session of its own, one without its parent, and one that is both.
fn family(words: &[String; 4]) -> String {
    let [child, own_session, orphan, both] = words;
    format!(
        "sleep {child} & setsid sleep {own_session} & sh -c '(sleep {orphan} &)'; setsid sh -c '(sleep {both} &)'; echo up;"
    )
}

#[test]
fn hangup_ends_the_input_and_the_output_of_a_command_and_signals_nobody() {
    with_policy("hangup", async |sandbox, pid| {
        let words = [0, 1, 2, 3].map(|n| unique(sandbox, n));
        drop(session(sandbox, false, &format!("{} cat >/in; echo end >/end; wait", family(&words))).await);
        sandbox.wait_file("end", "end\n").await;
        drop(session(sandbox, false, "echo up; yes; echo $? >/pipe").await);
        sandbox.wait_file("pipe", "141\n").await;
        let word = unique(sandbox, 4);
        drop(
            session(sandbox, true, &format!("(setsid sleep {word} &); trap 'echo $? >/hup' HUP; echo up; read x"))
                .await,
        );
        eventually("the terminal to hang up", || sandbox.in_rootfs("hup").exists().then_some(())).await;
        for word in words.iter().chain([&word]) {
            eventually("nobody to be killed", || (procfs::with_word(word).len() == 1).then_some(())).await;
        }
        no_exec_cgroups(pid).await;
    });
}

#[test]
fn leave_lets_a_command_run_on_with_what_was_sent_and_its_output_goes_nowhere() {
    with_policy("leave", async |sandbox, _| {
        // More than any buffer on the way holds, and the client reads none of it.
        let script = "echo up; cat >/in; seq 1 3000000 && echo end >/end";
        let mut client = session(sandbox, false, script).await;
        client.send_stdin(b"last words").await.expect("open");
        drop(client);
        sandbox.wait_file("end", "end\n").await;
        assert_eq!(fs::read(sandbox.in_rootfs("in")).expect("written"), b"last words");
        let script =
            "trap 'echo hup >/hup' HUP; echo up; until [ -e /go ]; do sleep 0.1; done; seq 1 100000; echo end >/tty";
        drop(session(sandbox, true, script).await);
        // The daemon serves the next client only after it has seen that the one before is gone, or in any order.
        assert_eq!(sandbox.exec("c", &["touch", "/go"]).await.statuses, [Outcome::Exited(0)]);
        sandbox.wait_file("tty", "end\n").await;
        assert!(!sandbox.in_rootfs("hup").exists(), "the terminal is still there");
    });
}

#[test]
fn kill_ends_all_that_a_command_has_started_after_the_grace_and_nothing_else() {
    with_policy("kill:1s", async |sandbox, pid| {
        // What a command left behind while its client was there stays.
        let other = unique(sandbox, 0);
        let script = format!("setsid sleep {other} >/dev/null 2>&1 & exit 6");
        assert_eq!(sandbox.exec("c", &["sh", "-c", &script]).await.statuses, [Outcome::Exited(6)]);
        for (n, tty) in [(10, false), (20, true)] {
            // The command goes on after the hang-up; ends by it, and leaves others behind.
            for (n, end) in [(n, "trap '' HUP; while :; do sleep 1; done"), (n + 5, "cat")] {
                let words = [n, n + 1, n + 2, n + 3].map(|n| unique(sandbox, n));
                let client = session(sandbox, tty, &format!("trap '' HUP; {} {end}", family(&words))).await;
                for word in &words {
                    eventually("all to run", || (procfs::with_word(word).len() == 1).then_some(())).await;
                }
                drop(client);
                ended(&words).await;
            }
        }
        let [child] = procfs::with_word(&other)[..] else { panic!("others in the container are left alone") };
        assert!(procfs::runs(child) && procfs::runs(pid));
        no_exec_cgroups(pid).await;
    });
}

#[test]
fn a_command_has_the_grace_to_end_by_itself() {
    with_policy("kill:5m", async |sandbox, pid| {
        drop(session(sandbox, false, "echo up; cat >/in; sleep 0.5; echo end >/end").await);
        sandbox.wait_file("end", "end\n").await;
        // Nobody is left, so its cgroup must not wait for the time.
        eventually("the command to be collected", || (procfs::children(sandbox.daemon_pid()).len() == 1).then_some(()))
            .await;
        let command = ["sh", "-c", "echo x; exit 3"].map(str::to_owned).into();
        let sync = ExecSync { id: "c".to_owned(), command, timeout_s: 20, ..ExecSync::default() };
        let answer = sandbox.client().exec_sync(&sync).await.expect("a reply");
        assert_eq!((answer.exit_code, &answer.stdout[..]), (3, &b"x\n"[..]));
        no_exec_cgroups(pid).await;
    });
}
