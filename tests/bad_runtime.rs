//! A runtime that misbehaves: each fault gets a clear error, leaves nothing behind and disturbs nobody else.

#![allow(clippy::unwrap_used, reason = "what is called by tests alone is a test")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use holdfast::{
    client::{Collected, ExecSync, ExecSyncReply},
    model::Outcome,
};
use support::{
    BundleSpec, DEADLINE, FakeRuntime, Neighbour, Sandbox, beside_a_neighbour, beside_a_neighbour_with, eventually,
};
use tokio::time::timeout;

/// 8 MiB on one of the fake runtime's streams.
const FLOOD: &str = "head -c 8388608 /dev/zero | tr '\\0' x";
/// In seconds. What a busy machine needs for a real create must fit in.
const RUNTIME_LIMIT: u64 = 4;

fn with_limit(test: impl AsyncFnOnce(&Sandbox, &mut Neighbour<'_>)) {
    let limit = RUNTIME_LIMIT.to_string();
    beside_a_neighbour_with(|daemon| _ = daemon.env("HOLDFAST_RUNTIME_LIMIT", limit), test);
}

async fn exec_sync(sandbox: &Sandbox, timeout_s: u64, command: &[&str]) -> ExecSyncReply {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let exec = ExecSync { id: "neighbour".to_owned(), command, timeout_s, ..ExecSync::default() };
    let answer = timeout(DEADLINE, sandbox.client().exec_sync(&exec)).await.expect("an answer in time");
    answer.expect("execSync answers with a code")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_runtime_that_cannot_be_run_is_told_and_may_come_back() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let script = FakeRuntime::of(sandbox).path().to_owned();
        let aside = script.with_extension("aside");
        fs::rename(&script, &aside).unwrap();
        let reason = neighbour
            .undisturbed("a missing runtime", async || sandbox.refused_create("victim", &BundleSpec::idle()).await)
            .await;
        assert!(reason.contains("start the runtime") && reason.contains("No such file"), "{reason}");
        let reply = neighbour.undisturbed("an exec without it", async || exec_sync(sandbox, 0, &["true"]).await).await;
        assert_eq!((reply.exit_code, reply.timed_out), (-2, false));
        assert!(text(&reply.stderr).contains("No such file"), "{reply:?}");
        fs::rename(&aside, &script).unwrap();

        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        let reason = neighbour
            .undisturbed("no executable", async || sandbox.refused_create("victim", &BundleSpec::idle()).await)
            .await;
        assert!(reason.contains("Permission denied"), "{reason}");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        neighbour.undisturbed("a good create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn a_create_that_never_stops_printing_is_killed_and_holds_up_nobody() {
    with_limit(async |sandbox, neighbour| {
        FakeRuntime::of(sandbox).plan("create", "exec yes the same again >&2");
        let endless = async || {
            let calls = async {
                let client = sandbox.connect().await;
                for _ in 0..50 {
                    timeout(DEADLINE, client.version(false)).await.expect("an answer meanwhile").unwrap();
                }
            };
            let spec = BundleSpec::idle();
            tokio::join!(sandbox.refused_create("victim", &spec), calls).0
        };
        let reason = neighbour.undisturbed("an endless flood", endless).await;
        assert!(reason.contains("did not answer in time") && reason.contains("the same again"), "{reason}");
    });
}

#[test]
fn a_create_that_dies_or_fails_is_told_in_the_runtimes_own_words() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        for (plan, fragments) in [
            ("echo out of luck >&2; kill -9 $$", &["killed by signal 9", "out of luck"][..]),
            ("real \"$@\"; kill -9 $$", &["killed by signal 9"]),
            ("echo only stdout; exit 3", &["only stdout"]),
            ("printf 'a\\377b' >&2; exit 1", &["a\u{fffd}b"]),
            (&format!("echo the beginning >&2; {FLOOD} >&2; echo the end >&2; exit 3"), &["the end"]),
        ] {
            fake.plan("create", plan);
            let reason =
                neighbour.undisturbed(plan, async || sandbox.refused_create("victim", &BundleSpec::idle()).await).await;
            assert!(fragments.iter().all(|fragment| reason.contains(fragment)), "{plan}: {reason}");
            assert!(reason.len() < 4096 + 128, "{plan}: {} bytes", reason.len());
        }
        fake.behave();
        neighbour.undisturbed("a good create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn what_a_killed_runtime_had_started_does_not_stay() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        fake.plan("create", "sleep 1000 <&- >&- 2>&- & kill -9 $$");
        neighbour
            .undisturbed("a killed create", async || sandbox.refused_create("victim", &BundleSpec::idle()).await)
            .await;
        fake.plan("exec", "sleep 1000 <&- >&- 2>&- & kill -9 $$");
        let reply = neighbour.undisturbed("a killed exec", async || exec_sync(sandbox, 0, &["true"]).await).await;
        assert_eq!(reply.exit_code, -2, "{reply:?}");
    });
}

#[test]
fn a_create_that_prints_megabytes_may_succeed() {
    beside_a_neighbour(async |sandbox, neighbour| {
        FakeRuntime::of(sandbox).plan("create", &format!("{FLOOD}; {FLOOD} >&2"));
        neighbour.undisturbed("a talkative create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn a_bad_pidfile_fails_the_create_and_the_container_goes_with_it() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        let ours = format!("echo {} > \"$pidfile\"", std::process::id());
        let number = "no process number";
        for (damage, fragment) in [
            (": > \"$pidfile\"", number),
            ("echo abc > \"$pidfile\"", number),
            ("echo 0 > \"$pidfile\"", number),
            ("echo 1 > \"$pidfile\"", number),
            ("echo -7 > \"$pidfile\"", number),
            ("echo 99999999999 > \"$pidfile\"", number),
            ("head -c 10485760 /dev/zero | tr '\\0' 1 > \"$pidfile\"", number),
            ("rm \"$pidfile\"; mkfifo \"$pidfile\"", number),
            ("rm \"$pidfile\"", "No such file"),
            ("rm \"$pidfile\"; mkdir \"$pidfile\"", "directory"),
            (&ours, "is not a child of this daemon"),
        ] {
            fake.plan("create", &format!("real \"$@\" || exit; {damage}; exit 0"));
            let reason = neighbour
                .undisturbed(damage, async || {
                    let reason = sandbox.refused_create("victim", &BundleSpec::idle()).await;
                    // What the runtime made of it may be in the way of the next one.
                    let _ = fs::remove_dir(sandbox.container("victim").join("pidfile"));
                    reason
                })
                .await;
            assert!(reason.contains(fragment), "{damage}: {reason}");
        }
        fake.behave();
        neighbour.undisturbed("a good create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn a_pidfile_that_names_another_container_does_not_give_it_away() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        let pid = neighbour.pid;
        fake.plan("create", &format!("real \"$@\" || exit; echo {pid} > \"$pidfile\"; exit 0"));
        neighbour
            .undisturbed("a stolen pid", async || sandbox.refused_create("victim", &BundleSpec::idle()).await)
            .await;
        for end in ["exit 0", "exit 1", "kill -9 $$"] {
            fake.plan("exec", &format!("echo {pid} > \"$pidfile\"; {end}"));
            let reply = neighbour.undisturbed(end, async || exec_sync(sandbox, 0, &["true"]).await).await;
            assert_eq!(reply.exit_code, -2, "{end}: {reply:?}");
        }
    });
}

#[test]
fn a_terminal_that_never_comes_fails_the_create() {
    with_limit(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        let spec = BundleSpec::idle().terminal();
        fake.plan("create", "exit 0");
        let reason =
            neighbour.undisturbed("no connection", async || sandbox.refused_create("victim", &spec).await).await;
        assert!(reason.contains("did not send a terminal"), "{reason}");
        fake.plan("create", "sleep 1000");
        let reason = neighbour
            .undisturbed("no connection and no end", async || sandbox.refused_create("victim", &spec).await)
            .await;
        assert!(reason.contains("did not answer in time"), "{reason}");
    });
}

#[test]
fn a_console_connection_without_a_terminal_fails_the_create() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        let told = sandbox.path().join("console");
        let spec = BundleSpec::idle().terminal();
        for (what, bytes) in [("closes at once", &b""[..]), ("sends a byte alone", b"x")] {
            let path = told.display();
            let lines = format!("echo \"$console\" > {path}.next; mv {path}.next {path}; sleep 1000");
            fake.plan("create", &lines);
            let connect = async {
                let console = eventually("the console's path", || fs::read_to_string(&told).ok()).await;
                fs::remove_file(&told).unwrap();
                let mut stream = std::os::unix::net::UnixStream::connect(console.trim()).unwrap();
                std::io::Write::write_all(&mut stream, bytes).unwrap();
            };
            let reason = neighbour
                .undisturbed(what, async || tokio::join!(sandbox.refused_create("victim", &spec), connect).0)
                .await;
            assert!(reason.contains("receive the terminal"), "{what}: {reason}");
        }
        fake.behave();
        neighbour.undisturbed("a good create", async || sandbox.creates_again("victim").await).await;
    });
}

#[test]
fn a_console_without_a_terminal_leaves_no_half_made_container() {
    beside_a_neighbour(async |sandbox, neighbour| {
        // The real runtime makes the container, without a terminal; then somebody else comes to the socket.
        let told = sandbox.path().join("console");
        let path = told.display();
        let lines = format!(
            "real --root {}/root create --bundle {} victim || exit; echo \"$console\" > {path}.next; mv {path}.next {path}; sleep 1000",
            sandbox.path().display(),
            sandbox.container("victim").display()
        );
        FakeRuntime::of(sandbox).plan("create", &lines);
        let reason = neighbour
            .undisturbed("a half-made container", async || {
                let mut request = sandbox.create_request("victim", &BundleSpec::idle());
                request.terminal = true;
                let client = sandbox.client();
                let connect = async {
                    let console = eventually("the console's path", || fs::read_to_string(&told).ok()).await;
                    drop(std::os::unix::net::UnixStream::connect(console.trim()).unwrap());
                };
                tokio::join!(timeout(DEADLINE, client.create_container(&request)), connect).0
            })
            .await;
        let error = reason.expect("an answer in time").unwrap_err().to_string();
        assert!(error.contains("receive the terminal"), "{error}");
    });
}

#[test]
fn an_exec_that_hangs_times_out_on_time() {
    with_limit(async |sandbox, neighbour| {
        FakeRuntime::of(sandbox).plan("exec", "echo busy >&2; sleep 1000; exit 0");
        let start = Instant::now();
        let reply = neighbour.undisturbed("a hanging exec", async || exec_sync(sandbox, 1, &["true"]).await).await;
        assert_eq!((reply.exit_code, reply.timed_out), (-3, true), "{reply:?}");
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(RUNTIME_LIMIT), "{took:?}");
        let reply = neighbour.undisturbed("without a timeout", async || exec_sync(sandbox, 0, &["true"]).await).await;
        assert_eq!((reply.exit_code, reply.timed_out), (-2, false), "{reply:?}");
        assert!(text(&reply.stderr).contains("did not answer in time"), "{reply:?}");
    });
}

#[test]
fn an_exec_that_floods_is_told_and_bounded() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        fake.plan("exec", FLOOD);
        let reply = neighbour.undisturbed("flood, then success", async || exec_sync(sandbox, 0, &["cat"]).await).await;
        assert_eq!((reply.exit_code, reply.stdout.len()), (-2, 0));
        assert!(text(&reply.stderr).contains("more than 1 MiB"), "{}", text(&reply.stderr));
        fake.plan("exec", &format!("{FLOOD} >&2; echo the end >&2; exit 1"));
        let reply = neighbour.undisturbed("flood, then failure", async || exec_sync(sandbox, 0, &["cat"]).await).await;
        assert_eq!((reply.exit_code, reply.stdout.len()), (-2, 0));
        let stderr = text(&reply.stderr);
        assert!(stderr.contains("the end") && stderr.len() < 256 << 10, "{} bytes", stderr.len());
    });
}

#[test]
fn an_exec_that_cannot_start_says_so_to_every_kind_of_client() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let fake = FakeRuntime::of(sandbox);
        for (plan, fragment) in [
            ("echo no such thing >&2; exit 1", "no such thing"),
            ("kill -9 $$", "signal 9"),
            ("exit 0", "No such file"),
            (": > \"$pidfile\"; exit 0", "no process number"),
            ("mkfifo \"$pidfile\"; exit 0", "no process number"),
            ("sleep 1000 <&- >&- 2>&- & echo $! > \"$pidfile\"; echo late >&2; exit 1", "late"),
        ] {
            fake.plan("exec", plan);
            let reply = neighbour.undisturbed(plan, async || exec_sync(sandbox, 0, &["true"]).await).await;
            assert_eq!((reply.exit_code, reply.timed_out), (-2, false), "{plan}: {reply:?}");
            assert!(text(&reply.stderr).contains(fragment), "{plan}: {reply:?}");
            let session = neighbour.undisturbed(plan, async || sandbox.exec("neighbour", &["true"]).await).await;
            let Collected { statuses, close_code, .. } = session;
            assert_eq!(close_code, Some(1000), "{plan}");
            assert!(
                matches!(&statuses[..], [Outcome::Failed(text)] if text.contains(fragment)),
                "{plan}: {statuses:?}"
            );
        }
    });
}
