//! control-api 4.3.

use futures_util::future::join_all;
use holdfast::client::{ExecSync, ExecSyncReply};

use crate::support::{self, BundleSpec, FakeRuntime, Sandbox, eventually, procfs, within};

fn exec(script: &str) -> ExecSync {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    ExecSync { id: "c".to_owned(), command, ..ExecSync::default() }
}

async fn run(sandbox: &Sandbox, exec: ExecSync) -> ExecSyncReply {
    within(sandbox.client().exec_sync(&exec)).await.expect("the call succeeds whatever the command does")
}

fn reply(exit_code: i32, stdout: &str, stderr: &str) -> ExecSyncReply {
    let (stdout, stderr) = (stdout.to_owned().into(), stderr.to_owned().into());
    ExecSyncReply { exit_code, stdout, stderr, timed_out: false }
}

fn with_container(test: impl AsyncFnOnce(&Sandbox)) {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        test(sandbox).await;
    });
}

#[test]
fn a_command_is_answered_with_its_code_and_both_streams() {
    with_container(async |sandbox| {
        let both = exec("printf 'hello world'; printf oops >&2");
        assert_eq!(run(sandbox, both.clone()).await, reply(0, "hello world", "oops"));
        assert_eq!(run(sandbox, ExecSync { timeout_s: 10, ..both }).await, reply(0, "hello world", "oops"));
        assert_eq!(run(sandbox, exec("exit 42")).await, reply(42, "", ""));
        assert_eq!(run(sandbox, exec("cat; exit 255")).await, reply(255, "", ""), "stdin is at its end");
        for (signal, code) in [(9, 137), (11, 139), (15, 143)] {
            assert_eq!(run(sandbox, exec(&format!("echo x; kill -{signal} $$"))).await, reply(code, "x\n", ""));
        }
        let unknown = run(sandbox, exec("exec busybox no-such-applet")).await;
        assert!(unknown.exit_code == 127 && !unknown.stderr.is_empty() && unknown.stdout.is_empty(), "{unknown:?}");
        assert!(sandbox.log("c").is_empty(), "output of commands is not the container's");
    });
}

#[test]
fn a_terminal_has_one_stream_and_the_line_ends_of_a_terminal() {
    with_container(async |sandbox| {
        let both = ExecSync { terminal: true, ..exec("echo out; echo err >&2; exit 7") };
        assert_eq!(run(sandbox, both.clone()).await, reply(7, "out\r\nerr\r\n", ""));
        for round in 0..if support::long() { 1000 } else { 10 } {
            let last = ExecSync { terminal: true, ..exec("seq 1 2000; printf end") };
            assert!(run(sandbox, last).await.stdout.ends_with(b"\n2000\r\nend"), "round {round}");
        }
    });
}

#[test]
fn ten_commands_at_once_get_their_own_output_each_complete() {
    with_container(async |sandbox| {
        let client = sandbox.client();
        let commands: Vec<_> =
            (0..10).map(|n| exec(&format!("seq {n} 100000; seq {n} 2 30000 >&2; exit {n}"))).collect();
        let answers = within(join_all(commands.iter().map(|command| client.exec_sync(command)))).await;
        for (n, answer) in (0..).zip(answers) {
            let stdout: String = (n..=100_000).map(|number| format!("{number}\n")).collect();
            let stderr: String = (n..=30_000).step_by(2).map(|number| format!("{number}\n")).collect();
            assert!(answer.expect("a reply") == reply(n, &stdout, &stderr), "command {n}");
        }
    });
}

#[test]
fn the_runtime_gets_each_option_once_and_the_variables_of_the_call() {
    support::e2e_recording(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let env = vec![("HF_PROBE".to_owned(), "from the call".to_owned())];
        let answer = run(sandbox, ExecSync { env, ..exec("echo \"<$HF_PROBE>\"") }).await;
        assert_eq!(answer, reply(0, "<>\n", ""), "the variables are the runtime's, not the command's");
        assert_eq!(sandbox.surroundings()[1], "from the call");
        run(sandbox, ExecSync { terminal: true, ..exec("exit 0") }).await;
        let calls = sandbox.calls();
        let root = format!("--root={}", sandbox.path().join("root").display());
        let pidfile = format!("--pid-file={}/exec_sync", sandbox.runtime_dir().display());
        assert_eq!([&calls[1][..3], &calls[1][4..]].concat()[..3], [&root, "exec", "-d"]);
        assert!(calls[1][3].starts_with(&pidfile) && calls[1][4..7] == ["c", "sh", "-c"], "{calls:?}");
        assert!(calls[2][3].starts_with("--console-socket=") && calls[2][4] == "--tty", "{calls:?}");
        assert!(calls[2][5].starts_with(&pidfile) && calls[2].len() == 10, "{calls:?}");
        let left = || std::fs::read_dir(sandbox.runtime_dir()).expect("ours").count();
        eventually("pidfiles to be removed", || (left() == 1).then_some(())).await;
    });
}

#[test]
fn a_timeout_may_be_as_long_as_the_wire_can_say() {
    with_container(async |sandbox| {
        for timeout_s in [1 << 31, u64::MAX / 1000, 1 << 63, u64::MAX] {
            assert_eq!(run(sandbox, ExecSync { timeout_s, ..exec("echo x") }).await, reply(0, "x\n", ""));
        }
    });
}

#[test]
fn the_end_of_the_container_ends_its_commands_with_their_own_status() {
    with_container(async |sandbox| {
        let client = sandbox.client();
        let commands = [(0, false), (25, false), (0, true)].map(|(timeout_s, terminal)| ExecSync {
            timeout_s,
            terminal,
            ..exec("echo up >>/up; printf out; sleep 1000")
        });
        let end = async {
            sandbox.wait_file("up", "up\nup\nup\n").await;
            sandbox.runtime(&["kill", "c", "KILL"]);
        };
        let answers = join_all(commands.iter().map(|command| client.exec_sync(command)));
        let (answers, ()) = within(futures_util::future::join(answers, end)).await;
        for answer in answers {
            assert_eq!(answer.expect("a reply"), reply(137, "out", ""));
        }
        assert_eq!(sandbox.wait_exit("c").await, 137);
        sandbox.runtime(&["delete", "c"]);
        let late = run(sandbox, ExecSync { timeout_s: 20, ..exec("exit 0") }).await;
        assert!(late.exit_code == -2 && !late.stderr.is_empty(), "{late:?}");
    });
}

#[test]
fn a_caller_that_goes_away_leaves_its_command_running_and_nothing_behind() {
    support::beside_a_neighbour(async |sandbox, neighbour| {
        for (timeout_s, terminal) in [(0, false), (25, false), (25, true)] {
            let script = "echo up >/up; sleep 1; echo end >/end";
            let command = ExecSync { id: "neighbour".to_owned(), timeout_s, terminal, ..exec(script) };
            neighbour
                .undisturbed("a caller that went away", async || {
                    let client = sandbox.connect().await;
                    tokio::select! {
                        answer = client.exec_sync(&command) => panic!("answered: {answer:?}"),
                        () = sandbox.wait_file("up", "up\n") => {}
                    }
                    drop(client);
                    sandbox.wait_file("end", "end\n").await;
                    for name in ["up", "end"] {
                        std::fs::remove_file(sandbox.in_rootfs(name)).expect("written");
                    }
                })
                .await;
            // One that would run for ever is still ended by its timeout.
            let command = ExecSync { timeout_s: 1, ..command };
            let command = ExecSync { command: exec("echo up >/up; sleep 1000").command, ..command };
            neighbour
                .undisturbed("a caller that did not wait for the timeout", async || {
                    let client = sandbox.connect().await;
                    tokio::select! {
                        answer = client.exec_sync(&command) => panic!("answered: {answer:?}"),
                        () = sandbox.wait_file("up", "up\n") => {}
                    }
                    std::fs::remove_file(sandbox.in_rootfs("up")).expect("written");
                })
                .await;
        }
        eventually("the cgroups to be removed", || procfs::exec_cgroups(neighbour.pid).is_empty().then_some(())).await;
    });
}

#[test]
fn the_timeout_counts_for_the_whole_call_also_where_the_runtime_hangs() {
    support::beside_a_neighbour(async |sandbox, neighbour| {
        // Before it has started anything, and after.
        for plan in ["sleep 1000", "real \"$@\"; sleep 1000"] {
            FakeRuntime::of(sandbox).plan("exec", &format!("case \"$*\" in *--help*) ;; *) {plan} ;; esac"));
            for terminal in [false, true] {
                let script = "(sleep 1000 &); setsid sh -c '(sleep 1000 &)'; sleep 1000";
                let command = ExecSync { id: "neighbour".to_owned(), timeout_s: 2, terminal, ..exec(script) };
                let answer = neighbour.undisturbed(plan, async || run(sandbox, command).await).await;
                assert_eq!((answer.exit_code, answer.timed_out), (-3, true), "{plan}: {answer:?}");
            }
        }
        let empty = || procfs::exec_cgroups(neighbour.pid).is_empty().then_some(());
        eventually("the cgroups to be removed", empty).await;
    });
}
