//! control-api 4.3.

use futures_util::future::join_all;
use holdfast::client::{ExecSync, ExecSyncReply};

use crate::support::{self, BundleSpec, Sandbox, eventually, within};

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
fn what_the_runtime_cannot_start_is_code_minus_2_with_its_reason_on_stderr() {
    with_container(async |sandbox| {
        for terminal in [false, true] {
            let missing = ExecSync { command: vec!["invalid".to_owned()], terminal, ..exec("") };
            let answer = run(sandbox, missing).await;
            let reason = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.exit_code == -2 && !answer.timed_out && answer.stdout.is_empty(), "{answer:?}");
            assert!(reason.contains("not found in $PATH"), "{reason}");
            let unknown = run(sandbox, ExecSync { id: "unknown".to_owned(), terminal, ..exec("exit 0") }).await;
            assert!(unknown.exit_code == -2 && !unknown.stderr.is_empty(), "{unknown:?}");
        }
    });
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children_and_what_it_wrote_is_answered() {
    with_container(async |sandbox| {
        for terminal in [false, true] {
            let slow =
                ExecSync { timeout_s: 1, terminal, ..exec("echo before; (sleep 1234; touch /late) & sleep 1234") };
            let answer = run(sandbox, slow).await;
            assert_eq!((answer.exit_code, answer.timed_out), (-3, true), "{answer:?}");
            assert!(answer.stdout.starts_with(b"before"), "{answer:?}");
            let alive = async || run(sandbox, exec("ps | grep -c '[s]leep 1234'")).await.stdout;
            let deadline = tokio::time::Instant::now() + support::DEADLINE;
            while alive().await != "0\n" {
                assert!(tokio::time::Instant::now() < deadline, "its processes are still there");
            }
        }
    });
}

#[test]
fn a_background_child_that_holds_the_output_does_not_change_the_answer() {
    with_container(async |sandbox| {
        for timeout_s in [0, 25] {
            let holder = ExecSync { timeout_s, ..exec("echo x; sleep 1000 & exit 3") };
            assert_eq!(run(sandbox, holder).await, reply(3, "x\n", ""));
        }
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
fn output_beyond_16_mib_is_cut_and_the_reply_says_so() {
    with_container(async |sandbox| {
        let answer = run(sandbox, exec("head -c 20000000 /dev/zero; echo end >&2; exit 5")).await;
        assert_eq!((answer.exit_code, answer.stdout.len()), (5, 16 << 20));
        let dropped = 20_000_000 - (16 << 20);
        assert_eq!(answer.stderr, format!("end\n[holdfast: {dropped} bytes of output dropped]\n"));
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
