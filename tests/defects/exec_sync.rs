//! See the table in `main.rs`.

use std::fs;

use futures_util::future::{join, join_all};
use holdfast::client::{ExecSync, ExecSyncReply};
use nix::sys::signal::Signal;
use serde_json::json;

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

fn with_container(test: impl AsyncFnOnce(&Sandbox, u32)) {
    support::e2e(async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        test(sandbox, pid).await;
    });
}

/// A number of seconds that no other test's `sleep` has: processes are found by it.
fn unique(sandbox: &Sandbox, n: u32) -> String {
    (u64::from(sandbox.daemon_pid()) * 1000 + u64::from(n) + 1_000_000).to_string()
}

async fn gone(word: &str) {
    eventually(&format!("the end of sleep {word}"), || procfs::with_word(word).is_empty().then_some(())).await;
}

async fn no_exec_cgroups(pid: u32) {
    eventually("the cgroup to be removed", || procfs::exec_cgroups(pid).is_empty().then_some(())).await;
}

#[test]
fn d50_a_background_child_that_holds_the_output_does_not_change_the_answer() {
    with_container(async |sandbox, _| {
        for timeout_s in [0, 25] {
            let holder = ExecSync { timeout_s, ..exec("echo x; sleep 1000 & exit 3") };
            assert_eq!(run(sandbox, holder).await, reply(3, "x\n", ""));
        }
    });
}

#[test]
fn d50_a_deadline_after_the_end_of_the_command_is_no_timeout() {
    with_container(async |sandbox, _| {
        // It never is quiet, so the wait ends with the deadline, or after 10 s.
        for timeout_s in [2, 25] {
            let script = "echo x; while :; do echo y; sleep 0.1; done & exit 3";
            let answer = run(sandbox, ExecSync { timeout_s, ..exec(script) }).await;
            assert_eq!((answer.exit_code, answer.timed_out), (3, false), "{answer:?}");
            assert!(answer.stdout.starts_with(b"x\ny\n"), "{answer:?}");
        }
    });
}

#[test]
fn d51_what_the_runtime_cannot_start_is_code_minus_2_with_its_reason_on_stderr() {
    with_container(async |sandbox, pid| {
        for (terminal, timeout_s) in [(false, 0), (true, 0), (false, 20), (true, 20)] {
            let missing = ExecSync { command: vec!["invalid".to_owned()], terminal, timeout_s, ..exec("") };
            let answer = run(sandbox, missing).await;
            let reason = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.exit_code == -2 && !answer.timed_out && answer.stdout.is_empty(), "{answer:?}");
            assert!(reason.contains("not found in $PATH"), "{reason}");
            let unknown = ExecSync { id: "unknown".to_owned(), terminal, timeout_s, ..exec("exit 0") };
            let unknown = run(sandbox, unknown).await;
            assert!(unknown.exit_code == -2 && !unknown.stderr.is_empty(), "{unknown:?}");
        }
        no_exec_cgroups(pid).await;
    });
}

/// Runs into its timeout with a tree of processes, of which some are found only through a cgroup.
async fn times_out(sandbox: &Sandbox, terminal: bool, hidden: bool, words: &[String; 4]) {
    let [plain, session, orphan, lost] = words;
    let hide = if hidden { format!("setsid sh -c '(sleep {lost} &)';") } else { String::new() };
    // A child; one in a session of its own; one that lost its parent; one with both.
    let script = format!(
        "echo before; (sleep {plain}; touch /late) & setsid sleep {session} & sh -c '(sleep {orphan} &)'; {hide} sleep 1000"
    );
    let answer = run(sandbox, ExecSync { timeout_s: 2, terminal, ..exec(&script) }).await;
    assert_eq!((answer.exit_code, answer.timed_out), (-3, true), "{answer:?}");
    assert!(answer.stdout.starts_with(b"before"), "{answer:?}");
    for word in words {
        gone(word).await;
    }
    assert!(!sandbox.in_rootfs("late").exists());
}

#[test]
fn d52_a_timeout_kills_the_whole_tree_of_the_command_and_nothing_else() {
    with_container(async |sandbox, pid| {
        let other = unique(sandbox, 0);
        run(sandbox, exec(&format!("setsid sleep {other} >/dev/null 2>&1 & exit 0"))).await;
        let [child] = procfs::with_word(&other)[..] else { panic!("it runs") };
        for (n, terminal) in [(10, false), (20, true)] {
            times_out(sandbox, terminal, true, &[n, n + 1, n + 2, n + 3].map(|n| unique(sandbox, n))).await;
        }
        assert!(procfs::runs(child) && procfs::runs(pid), "others in the container are left alone");
        no_exec_cgroups(pid).await;
    });
}

#[test]
fn d52_a_timeout_kills_the_tree_also_where_the_runtime_has_no_cgroups_for_execs() {
    support::e2e_with(FakeRuntime::install, async |sandbox| {
        FakeRuntime::of(sandbox).plan("exec", "case \"$*\" in *--help*) echo no such option; exit 0 ;; esac");
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        for (n, terminal) in [(10, false), (20, true)] {
            times_out(sandbox, terminal, false, &[n, n + 1, n + 2, n + 3].map(|n| unique(sandbox, n))).await;
        }
        assert!(procfs::runs(pid));
    });
}

#[test]
fn d52_a_cgroup_that_the_runtime_cannot_use_does_not_fail_the_command() {
    support::e2e_with(FakeRuntime::install, async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        let calls = sandbox.path().join("exec-calls");
        // It looks one directory beside ours.
        let plan = format!(
            "echo \"$*\" >>{}; case \"$*\" in *--cgroup=*) rmdir {}/holdfast-exec-* ;; esac",
            calls.display(),
            procfs::freezer(pid).display()
        );
        FakeRuntime::of(sandbox).plan("exec", &plan);
        for _ in 0..2 {
            assert_eq!(run(sandbox, ExecSync { timeout_s: 20, ..exec("echo x; exit 4") }).await, reply(4, "x\n", ""));
        }
        // The help, one refusal, the same without, and the next without.
        assert_eq!(fs::read_to_string(calls).unwrap().lines().count(), 4);
        no_exec_cgroups(pid).await;
    });
}

#[test]
fn d52_what_outlives_its_command_lives_on_in_the_container_and_goes_with_it() {
    with_container(async |sandbox, pid| {
        let words = [1, 2].map(|n| unique(sandbox, n));
        for word in &words {
            let script = format!("setsid sleep {word} >/dev/null 2>&1 & exit 6");
            assert_eq!(run(sandbox, ExecSync { timeout_s: 20, ..exec(&script) }).await, reply(6, "", ""));
        }
        no_exec_cgroups(pid).await;
        for word in &words {
            let [survivor] = procfs::with_word(word)[..] else { panic!("it runs") };
            assert_eq!(procfs::freezer(survivor), procfs::freezer(pid));
        }
        // And also while the cgroup of an exec is still there.
        let running = ExecSync { timeout_s: 25, ..exec("echo up >/up; sleep 1000") };
        let directory = procfs::freezer(pid);
        let delete = async {
            sandbox.wait_file("up", "up\n").await;
            assert!(procfs::exec_cgroups(pid).len() == 1 || sandbox.daemon_log().contains("has no cgroup"));
            sandbox.runtime(&["delete", "--force", "c"]);
        };
        let (answer, ()) = join(run(sandbox, running), delete).await;
        assert_eq!(answer, reply(137, "", ""));
        assert!(!directory.exists());
        assert_eq!(sandbox.wait_exit("c").await, 137);
        for word in &words {
            gone(word).await;
        }
    });
}

#[test]
fn d52_a_command_that_cannot_be_killed_does_not_hold_up_the_answer() {
    with_container(async |sandbox, pid| {
        let word = unique(sandbox, 0);
        let stuck =
            ExecSync { timeout_s: 2, ..exec(&format!("echo before; echo up >/up; setsid sleep {word} & sleep 1000")) };
        let pause = async {
            sandbox.wait_file("up", "up\n").await;
            // On cgroup v1 what is frozen does not even take a SIGKILL.
            sandbox.runtime(&["pause", "c"]);
        };
        let (answer, ()) = join(run(sandbox, stuck), pause).await;
        assert_eq!((answer.exit_code, answer.timed_out), (-3, true), "{answer:?}");
        assert_eq!(answer.stdout, "before\n");
        within(sandbox.client().version(false)).await.expect("the daemon goes on");
        sandbox.runtime(&["resume", "c"]);
        gone(&word).await;
        no_exec_cgroups(pid).await;
        let alone = || (procfs::children(sandbox.daemon_pid()).len() == 1).then_some(());
        eventually("the command to be collected", alone).await;
    });
}

#[test]
fn d52_the_shutdown_kills_what_shares_the_hosts_pids_and_all_containers_at_once() {
    support::e2e(async |sandbox| {
        let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let word = unique(sandbox, 0);
        let script = format!("trap '' TERM; setsid sleep {word} & (setsid sleep {word} &); while :; do sleep 1; done");
        let spec = BundleSpec::shell(&script).with(json!({ "linux": { "namespaces": namespaces } }));
        let ids: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
        for id in &ids {
            sandbox.run(id, &spec).await;
        }
        eventually("all of them", || (procfs::with_word(&word).len() == 2 * ids.len()).then_some(())).await;
        assert_eq!(sandbox.end_daemon(Signal::SIGINT).await.code(), Some(0), "within its deadline");
        for id in &ids {
            assert_eq!(sandbox.wait_exit(id).await, 137);
        }
        assert!(procfs::with_word(&word).is_empty());
    });
}

const TELLS: &str = "trap 'echo told; exit 7' TERM; echo up; while :; do sleep 0.1; done";

#[test]
fn d53_a_container_may_be_given_time_to_end_by_itself() {
    support::e2e_with(
        |daemon| _ = daemon.env("HOLDFAST_STOP_GRACE", "3"),
        async |sandbox| {
            sandbox.run("soft", &BundleSpec::shell(TELLS)).await;
            sandbox.run("hard", &BundleSpec::shell("trap '' TERM; echo up; while :; do sleep 0.1; done")).await;
            for id in ["soft", "hard"] {
                sandbox.wait_log(id, "up").await;
            }
            assert_eq!(sandbox.end_daemon(Signal::SIGTERM).await.code(), Some(0));
            assert_eq!((sandbox.wait_exit("soft").await, sandbox.wait_exit("hard").await), (7, 137));
            assert_eq!(sandbox.log("soft").last().map(|record| &record.text[..]), Some(&b"told"[..]));
        },
    );
}

#[test]
fn d53_a_second_signal_kills_at_once_and_so_does_the_first_without_a_grace() {
    for (grace, signals) in [("600", 2), ("0", 1)] {
        support::e2e_with(
            |daemon| _ = daemon.env("HOLDFAST_STOP_GRACE", grace),
            async |sandbox| {
                let script = "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done";
                sandbox.run("c", &BundleSpec::shell(script)).await;
                sandbox.wait_log("c", "up").await;
                if signals == 2 {
                    let pid = i32::try_from(sandbox.daemon_pid()).unwrap();
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
                    sandbox.wait_log("c", "told").await;
                }
                assert_eq!(sandbox.end_daemon(Signal::SIGTERM).await.code(), Some(0));
                assert_eq!(sandbox.wait_exit("c").await, 137);
                let told = sandbox.log("c").iter().filter(|record| record.text == b"told").count();
                assert_eq!(told, signals - 1);
            },
        );
    }
}

#[test]
fn d58_output_beyond_16_mib_is_cut_and_reply_log_and_counter_say_so() {
    with_container(async |sandbox, _| {
        let answer = run(sandbox, exec("head -c 20000000 /dev/zero; echo end >&2; exit 5")).await;
        assert_eq!((answer.exit_code, answer.stdout.len()), (5, 16 << 20));
        let dropped = 20_000_000 - (16 << 20);
        assert_eq!(answer.stderr, format!("end\n[holdfast: {dropped} bytes of output dropped]\n"));
        assert!(sandbox.daemon_log().contains("larger than what a reply may carry"));
        sandbox.end_daemon(Signal::SIGTERM).await;
        let log = sandbox.daemon_log();
        let counted = log.lines().find(|line| line.contains("counted in all: exec_cut_bytes"));
        assert!(counted.is_some_and(|line| line.contains(&dropped.to_string())), "{counted:?}");
    });
}

#[test]
fn d58_commands_that_print_much_at_once_do_not_take_more_memory_than_all_may_have() {
    const EACH: usize = 15 << 20;
    support::beside_a_neighbour(async |sandbox, neighbour| {
        // None ends before all have written, so that all is kept at the same time.
        let script = format!("head -c {EACH} /dev/zero; echo >>/written; while [ ! -e /go ]; do sleep 0.1; done");
        let command = ExecSync { id: "neighbour".to_owned(), ..exec(&script) };
        let client = sandbox.client();
        let flood = async || {
            let go = async {
                sandbox.wait_file("written", &"\n".repeat(6)).await;
                fs::write(sandbox.in_rootfs("go"), "").unwrap();
            };
            within(join(join_all((0..6).map(|_| client.exec_sync(&command))), go)).await.0
        };
        let mut kept = 0;
        for answer in neighbour.undisturbed("six large replies", flood).await {
            let answer = answer.expect("a reply");
            kept += answer.stdout.len();
            let dropped = EACH - answer.stdout.len();
            let mark = format!("[holdfast: {dropped} bytes of output dropped]\n");
            assert_eq!(answer.stderr, if dropped == 0 { String::new() } else { mark });
        }
        assert_eq!(kept, 64 << 20);
    });
}
