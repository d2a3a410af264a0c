//! The runtime, processes and their ends; see the table in `main.rs`.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use holdfast::{client::ExecSync, model::StdStream};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    streaming::assert_cleaned_up,
    support::{
        self, BundleSpec, FakeRuntime, beside_a_neighbour, beside_a_neighbour_with, eventually, procfs, with_container,
        within,
    },
};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths of tests are UTF-8").to_owned()
}

fn exec(id: &str, command: &[&str]) -> ExecSync {
    ExecSync { id: id.to_owned(), command: words(command), ..ExecSync::default() }
}

/// Has a daemon started by a line of shell, which gets its command line as `"$@"`.
fn through_shell(daemon: &mut Command, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(daemon.get_program()).args(daemon.get_args());
    *daemon = shell;
}

#[test]
fn d5_a_failed_runtime_call_takes_no_other_processes_status() {
    support::e2e(async |sandbox| {
        let ids: Vec<_> = (1..=8).map(|code| (code, format!("c{code}"))).collect();
        for (code, id) in &ids {
            let script = format!("while [ ! -e /go ]; do sleep 0.05; done; exit {code}");
            sandbox.run(id, &BundleSpec::shell(&script)).await;
        }
        // Not in one of those: an exec on its way while its container ends is killed with it, and that is its status then.
        sandbox.run("other", &BundleSpec::shell("exec sleep 1000")).await;
        let client = sandbox.client();
        let failing = async |number: i32| {
            if number == 5 {
                fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
            }
            client.exec_sync(&exec("other", &["no-such-program"])).await.expect("a reply").exit_code
        };
        let codes = within(join_all((0..20).map(failing))).await;
        assert_eq!(codes, [-2; 20]);
        for (code, id) in &ids {
            assert_eq!(sandbox.wait_exit(id).await, *code);
        }
    });
}

#[test]
fn d6_a_client_that_goes_during_the_setup_of_its_exec_leaves_no_process() {
    with_container(async |sandbox| {
        for _ in 0..10 {
            drop(sandbox.exec_ws("c", &["cat"]).await);
            drop(sandbox.exec_tty_ws("c", &["cat"]).await);
        }
        // A call of the runtime that is still under way is a child too, so what is waited for is the last of them.
        assert_cleaned_up(sandbox).await;
        sandbox.runtime(&["kill", "c", "KILL"]);
        assert_eq!(sandbox.wait_exit("c").await, 137);
        sandbox.runtime(&["delete", "c"]);
    });
}

#[test]
fn d6_an_exec_whose_caller_went_away_does_not_hold_up_the_shutdown() {
    with_container(async |sandbox| {
        for _ in 0..5 {
            let client = sandbox.connect().await;
            let exec = exec("c", &["sleep", "1000"]);
            tokio::select! {
                biased;
                _ = client.exec_sync(&exec) => panic!("it sleeps"),
                version = client.version(false) => drop(version.expect("it comes behind the call")),
            }
        }
        let start = Instant::now();
        assert_eq!(sandbox.end_daemon(Signal::SIGTERM).await.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(10), "clients wait no longer");
    });
}

#[test]
fn d7_a_cancelled_create_leaves_no_unwatched_container() {
    support::e2e(async |sandbox| {
        let request = sandbox.create_request("c", &BundleSpec::shell("exit 9"));
        let client = sandbox.connect().await;
        tokio::select! {
            biased;
            _ = client.create_container(&request) => panic!("a runtime is not that fast"),
            () = tokio::task::yield_now() => {}
            _ = client.version(false) => {}
        }
        drop(client);
        eventually("the container", || sandbox.container("c").join("pidfile").exists().then_some(())).await;
        while sandbox.client().reopen_log("c").await.is_err() {}
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 9);
    });
}

#[test]
fn d8_a_runtime_that_fails_before_it_sends_the_terminal_is_an_answer() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let terminal = BundleSpec::idle().terminal();
        let said = neighbour
            .undisturbed("a bad bundle", async || {
                let request = sandbox.create_request("victim", &terminal);
                fs::write(request.bundle.join("config.json"), "{}").expect("our bundle");
                within(sandbox.client().create_container(&request)).await.expect_err("no container").to_string()
            })
            .await;
        assert!(said.contains("the runtime ended with"), "{said}");
        let stopped = ExecSync { terminal: true, timeout_s: 20, ..exec("nobody", &["true"]) };
        let probe = async || within(sandbox.client().exec_sync(&stopped)).await.expect("a reply");
        let reply = neighbour.undisturbed("a probe of no container", probe).await;
        assert_eq!((reply.exit_code, reply.timed_out), (-2, false));
    });
}

#[test]
fn d10_a_timeout_of_longer_than_any_clock_is_no_timeout() {
    with_container(async |sandbox| {
        for timeout_s in [u64::MAX, 1 << 63, (1 << 63) - 1, u64::MAX / 1000, 1 << 40] {
            let exec = ExecSync { timeout_s, ..exec("c", &["sh", "-c", "exit 3"]) };
            let reply = within(sandbox.client().exec_sync(&exec)).await.expect("a reply");
            assert_eq!((reply.exit_code, reply.timed_out), (3, false), "{timeout_s}");
        }
    });
}

#[test]
fn d33_orphans_of_containers_do_not_pile_up() {
    support::e2e(async |sandbox| {
        let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| serde_json::json!({ "type": kind }));
        let spec = BundleSpec::shell("for i in 1 2 3 4 5 6 7 8; do (sleep 0.$i & exec true) & done; exec sleep 1000");
        let pid = sandbox.run("c", &spec.with(serde_json::json!({ "linux": { "namespaces": namespaces } }))).await;
        let daemon = sandbox.daemon_pid();
        eventually("orphans", || (procfs::children(daemon).len() > 1).then_some(())).await;
        let alone = || (procfs::children(daemon) == [(pid, 'S')]).then_some(());
        eventually("the orphans to be collected", alone).await;
    });
}

#[test]
fn d34_pidfiles_of_execs_do_not_pile_up() {
    with_container(async |sandbox| {
        for command in [&["true"][..], &["no-such-program"]] {
            sandbox.client().exec_sync(&exec("c", command)).await.expect("a reply");
            sandbox.exec("c", command).await;
        }
        let only_the_socket = || {
            let names = fs::read_dir(sandbox.runtime_dir()).expect("ours").flatten().map(|entry| entry.file_name());
            names.eq(["conmon.sock"]).then_some(())
        };
        eventually("the pidfiles to be removed", only_the_socket).await;
        sandbox.end_daemon(Signal::SIGKILL).await;
        for left in ["exec_sync0123pid", "exec_streaming4567pid"] {
            fs::write(sandbox.runtime_dir().join(left), "1").expect("ours");
        }
        sandbox.restart_daemon(|_| {}).await;
        only_the_socket().expect("what another daemon left is swept");
    });
}

// Without CAP_SYS_RESOURCE the daemon cannot lower its own score, so a raised one stands for "the old value": with the
// capability the daemon must have changed it, and in every case its children must have it. That a changed score is given
// back is also tested in `sys/fork/child_setup.rs`, and that nothing starts when it cannot be.
#[test]
fn d40_children_do_not_inherit_the_daemons_oom_score() {
    let raised = |daemon: &mut Command| through_shell(daemon, "echo 300 >/proc/self/oom_score_adj; exec \"$@\"");
    support::e2e_with(raised, async |sandbox| {
        let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs");
        assert!(["-1000\n", "300\n"].contains(&&*score(sandbox.daemon_pid())));
        let mut request = sandbox.create_request("c", &BundleSpec::idle());
        let seen = sandbox.path().join("seen");
        request.cleanup_command = words(&["cp", "/proc/self/oom_score_adj", seen.to_str().expect("UTF-8")]);
        let pid = sandbox.client().create_container(&request).await.expect("created");
        assert_eq!(score(pid), "300\n");
        let reply = sandbox.client().exec_sync(&exec("c", &["cat", "/proc/self/oom_score_adj"])).await;
        assert_eq!(reply.expect("a reply").stdout, "300\n");
        sandbox.runtime(&["delete", "--force", "c"]);
        eventually("the cleanup command's score", || (fs::read(&seen).ok()? == b"300\n").then_some(())).await;
    });
}

// crun's options, and those of runtimes that are not known, are tested in `oci/argv.rs`.
#[test]
fn d47_no_option_is_given_to_the_runtime_twice() {
    support::e2e_recording(async |sandbox| {
        let bundle = text(&sandbox.container("c"));
        let log = text(&sandbox.path().join("runtime.log"));
        let mut request = sandbox.create_request("c", &BundleSpec::idle());
        request.global_args = words(&["--log", &log, "--debug"]);
        request.command_args = words(&["--no-new-keyring"]);
        sandbox.client().create_container(&request).await.expect("created");
        let root = format!("--root={}", text(&sandbox.path().join("root")));
        let pidfile = format!("{bundle}/pidfile");
        let wanted = words(&[
            &root,
            "--log",
            &log,
            "--debug",
            "create",
            "--bundle",
            &bundle,
            "--pid-file",
            &pidfile,
            "--no-new-keyring",
            "c",
        ]);
        assert_eq!(sandbox.calls(), [wanted]);
        assert!(!fs::read(log).expect("made by the runtime").is_empty());
    });
}

#[test]
fn d49_a_runtime_that_hangs_is_killed_with_all_its_processes() {
    let limited = |daemon: &mut Command| _ = daemon.env("HOLDFAST_RUNTIME_LIMIT", "4");
    beside_a_neighbour_with(limited, async |sandbox, neighbour| {
        FakeRuntime::of(sandbox)
            .plan("create", "echo still thinking >&2; trap '' TERM; sleep 1000 & sleep 1000; exit 0");
        let start = Instant::now();
        let reason = neighbour
            .undisturbed("a hanging create", async || sandbox.refused_create("victim", &BundleSpec::idle()).await)
            .await;
        assert!(reason.contains("did not answer in time") && reason.contains("still thinking"), "{reason}");
        assert!(start.elapsed() >= Duration::from_secs(4));
        FakeRuntime::of(sandbox).behave();
        neighbour.undisturbed("a good create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn d49_a_failed_runtime_is_not_waited_for_through_what_it_left_behind() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let holder = sandbox.path().join("holder");
        // In a session of its own, and with the runtime's own streams.
        let plan = format!(
            "setsid sh -c 'echo $$ >{0}; exec sleep 1000' & until [ -s {0} ]; do :; done; echo no luck >&2; exit 1",
            holder.display()
        );
        FakeRuntime::of(sandbox).plan("create", &plan);
        neighbour
            .undisturbed("a process that holds the runtime's streams", async || {
                let said = sandbox.refused_create("victim", &BundleSpec::idle()).await;
                assert!(said.contains("no luck"), "{said}");
                let pid = fs::read_to_string(&holder).expect("written before the end").trim().parse().expect("a pid");
                kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it sleeps");
            })
            .await;
    });
}

#[test]
fn d55_nothing_is_kept_of_a_container_that_has_exited() {
    support::e2e(async |sandbox| {
        for code in [4, 6] {
            sandbox.run("c", &BundleSpec::shell(&format!("exit {code}"))).await;
            assert_eq!(sandbox.wait_exit("c").await, code);
            fs::remove_file(sandbox.exit_path("c")).expect("it is there");
            sandbox.runtime(&["delete", "c"]);
        }
        let error = sandbox.client().reopen_log("c").await.expect_err("exited").to_string();
        assert!(error.starts_with("reopenLogContainer: not-found: "), "{error}");
    });
}

// That it has a minute is not waited for here.
#[test]
fn d59_the_cleanup_command_is_watched_and_has_nothing_of_the_daemons() {
    support::e2e(async |sandbox| {
        let mut request = sandbox.create_request("c", &BundleSpec::shell("exit 1"));
        let seen = sandbox.path().join("seen");
        let script = "exec 3>&1 >\"$0.next\"; for fd in 0 2 3; do readlink /proc/self/fd/$fd; done; \
                      cut -d' ' -f1,5 /proc/$$/stat | sed 's/^\\(.*\\) \\1$/leads its group/'; mv \"$0.next\" \"$0\"; exit 9";
        request.cleanup_command = words(&["sh", "-c", script, seen.to_str().expect("UTF-8")]);
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        let text = eventually("the cleanup command", || fs::read_to_string(&seen).ok()).await;
        assert_eq!(text, "/dev/null\n/dev/null\n/dev/null\nleads its group\n");
        let told = || sandbox.daemon_log().contains("the cleanup command failed").then_some(());
        eventually("its result in the log", told).await;
        // One that does not end holds up nothing.
        let mut request = sandbox.create_request("slow", &BundleSpec::shell("exit 2"));
        let pidfile = sandbox.path().join("cleaner");
        request.cleanup_command =
            words(&["sh", "-c", "echo $$ >\"$0\"; exec sleep 1000", pidfile.to_str().expect("UTF-8")]);
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("slow");
        assert_eq!(sandbox.wait_exit("slow").await, 2);
        while sandbox.client().reopen_log("slow").await.is_ok() {}
        let pid = eventually("its pid", || fs::read_to_string(&pidfile).ok()?.trim().parse().ok()).await;
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it sleeps");
    });
}

#[test]
fn d60_a_container_without_stdin_does_not_get_the_daemons() {
    let with_input = |daemon: &mut Command| through_shell(daemon, "exec \"$@\" </proc/version");
    support::e2e_with(with_input, async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("cat; echo end")).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", StdStream::Stdout), b"end\n");
        sandbox.run("idle", &BundleSpec::idle()).await;
        let reply = sandbox.client().exec_sync(&exec("idle", &["sh", "-c", "cat; echo end"])).await;
        assert_eq!(reply.expect("a reply").stdout, "end\n");
    });
}

#[test]
fn d63_blanks_in_a_pidfile_are_no_error() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let plan = "real \"$@\" || exit; printf ' %s \\r\\n\\n' \"$(cat \"$pidfile\")\" > \"$pidfile\"; exit 0";
        FakeRuntime::of(sandbox).plan("create", plan);
        neighbour.undisturbed("blanks", async || sandbox.creates_again("victim").await).await;
        FakeRuntime::of(sandbox).plan("exec", plan);
        let call = exec("neighbour", &["sh", "-c", "exit 9"]);
        let reply = neighbour.undisturbed("an exec", async || within(sandbox.client().exec_sync(&call)).await).await;
        assert_eq!(reply.expect("a reply").exit_code, 9);
    });
}

#[test]
fn d63_a_bad_pidfile_does_not_leave_its_container() {
    beside_a_neighbour(async |sandbox, neighbour| {
        FakeRuntime::of(sandbox).plan("create", "real \"$@\" || exit; echo x$(cat \"$pidfile\") >\"$pidfile\"; exit 0");
        let refused = async || sandbox.refused_create("victim", &BundleSpec::idle()).await;
        let said = neighbour.undisturbed("a bad pidfile", refused).await;
        assert!(said.contains("no process number"), "{said}");
    });
}
