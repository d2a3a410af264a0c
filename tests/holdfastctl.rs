//! `holdfastctl` as its user sees it: output, exit codes, what is left behind.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};
use tempfile::TempDir;

use support::{eventually, require_e2e, rootfs};

mod support;

/// Directories for a daemon that `holdfastctl run` starts, and for its runtime.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hf-").tempdir().expect("a temporary directory");
        rootfs::make(&dir.path().join("rootfs"));
        Self(dir)
    }

    /// An id that no other test uses: it becomes the name of a cgroup.
    fn id(&self) -> String {
        self.0.path().file_name().expect("it has a name").to_string_lossy().into_owned()
    }

    fn ctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.env("HOLDFAST_RUNTIME_DIR", self.0.path().join("run")).args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let mut ctl = self.ctl(&["run", "--rootfs"]);
        ctl.arg(self.0.path().join("rootfs")).arg("--runtime-root").arg(self.0.path().join("root"));
        ctl.args(options).arg("--").args(command);
        ctl
    }

    /// Runs a container in the background that waits for its end; returns its id.
    fn detached(&self, script: &str) -> String {
        let id = self.id();
        let run = output(&mut self.run(&["-d", "--name", &id], &["sh", "-c", script]));
        assert_eq!(said(&run), (Some(0), format!("{id}\n"), String::new()));
        id
    }

    /// Nothing may be left but the lock.
    fn assert_empty(&self) {
        let left = fs::read_dir(self.0.path().join("run")).into_iter().flatten().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "holdfastctl.lock").collect();
        let containers = fs::read_dir(self.0.path().join("run/containers")).map_or(0, Iterator::count);
        assert!(left.iter().all(|name| name == "containers") && containers == 0, "{left:?}, {containers} containers");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that fails half-way leaves a daemon and containers.
        let _ = self.ctl(&["stop"]).output();
        let id = self.id();
        let delete = Command::new("runc")
            .arg("--root")
            .arg(self.0.path().join("root"))
            .args(["delete", "--force", &id])
            .output();
        drop(delete);
    }
}

fn test(test: impl AsyncFnOnce(&Place)) {
    if require_e2e() {
        support::run(async { test(&Place::new()).await });
    }
}

fn output(command: &mut Command) -> Output {
    command.output().expect("holdfastctl was built")
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn ok(code: i32, stdout: &str, stderr: &str) -> (Option<i32>, String, String) {
    (Some(code), stdout.to_owned(), stderr.to_owned())
}

/// The end of a process, with what it wrote into its pipes.
async fn ended(mut child: Child) -> Output {
    eventually("the end of holdfastctl", || child.try_wait().expect("our child")).await;
    child.wait_with_output().expect("our child")
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("holdfastctl was built")
}

#[test]
fn run_shows_both_streams_returns_the_code_and_leaves_nothing() {
    test(async |place| {
        let script = "echo out $GREETING; echo err >&2; pwd; exit 42";
        let run = output(&mut place.run(&["--env", "GREETING=hello", "--cwd", "/tmp"], &["sh", "-c", script]));
        assert_eq!(said(&run), ok(42, "out hello\n/tmp\n", "err\n"));
        assert_eq!(
            said(&output(&mut place.run(&[], &["sh", "-c", "kill -9 $$; sleep 1; exit 3"]))).0,
            Some(3),
            "init ignores it"
        );
        let large = output(&mut place.run(&[], &["seq", "1", "100000"]));
        assert!(large.stdout.len() == 588_895 && large.stdout.ends_with(b"\n100000\n"), "{}", large.stdout.len());
        place.assert_empty();
    });
}

#[test]
fn run_passes_stdin_on_to_its_end() {
    test(async |place| {
        let mut child = spawn(place.run(&["-i"], &["sh", "-c", "cat; echo end"]).stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"hello\n").expect("it reads");
        drop(stdin);
        assert_eq!(said(&ended(child).await), ok(0, "hello\nend\n", ""));
        place.assert_empty();
    });
}

#[test]
fn a_detached_container_can_be_used_watched_and_removed() {
    test(async |place| {
        let id = place.detached("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done");
        assert_eq!(
            said(&output(&mut place.ctl(&["exec", &id, "--", "sh", "-c", "echo in; echo err >&2; exit 7"]))),
            ok(7, "in\n", "err\n")
        );
        let log = || (said(&output(&mut place.ctl(&["logs", &id]))) == ok(0, "up\n", "")).then_some(());
        eventually("the first line", log).await;
        let follower = spawn(&mut place.ctl(&["logs", "-f", &id]));
        let taken = output(&mut place.run(&["--name", &id], &["true"]));
        assert!(taken.status.code() == Some(125) && said(&taken).2.contains("already"), "{taken:?}");
        assert_eq!(said(&output(&mut place.ctl(&["exec", &id, "--", "kill", "1"]))).0, Some(0));
        assert_eq!(said(&ended(follower).await), ok(0, "up\nbye\n", ""));
        assert_eq!(said(&output(&mut place.ctl(&["rm", &id]))), ok(0, "", ""));
        place.assert_empty();
    });
}

#[test]
fn rm_ends_a_container_that_runs_and_the_daemon_that_was_started_for_it() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        assert!(place.0.path().join("run/conmon.sock").exists());
        assert_eq!(said(&output(&mut place.ctl(&["rm", &id]))), ok(0, "", ""));
        place.assert_empty();
    });
}

#[test]
fn stop_ends_the_daemon_and_its_containers() {
    test(async |place| {
        let id = place.detached("echo up; while :; do sleep 1; done");
        assert_eq!(said(&output(&mut place.ctl(&["stop"]))), ok(0, "", ""));
        assert_eq!(fs::read(place.0.path().join("run/containers").join(&id).join("exit")).expect("written"), b"137");
        let followed = output(&mut place.ctl(&["logs", "-f", "--timestamps", &id]));
        assert!(said(&followed).1.ends_with("Z up\n"), "{followed:?}");
        assert_eq!(said(&output(&mut place.ctl(&["rm", &id]))), ok(0, "", ""));
        place.assert_empty();
    });
}

#[test]
fn exec_passes_stdin_on_to_its_end() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let input: String = (0..200_000).map(|number| format!("{number}\n")).collect();
        let path = place.0.path().join("input");
        fs::write(&path, &input).expect("ours");
        let mut exec = place.ctl(&["exec", "-i", &id, "--", "sh", "-c", "cat; echo end"]);
        let child = exec
            .stdin(File::open(&path).expect("ours"))
            .stderr(Stdio::piped())
            .stdout(File::create(place.0.path().join("output")).expect("ours"))
            .spawn();
        assert_eq!(said(&ended(child.expect("it was built")).await), ok(0, "", ""));
        assert!(fs::read_to_string(place.0.path().join("output")).expect("written") == input + "end\n");
    });
}

/// Runs a command on a terminal of its own, types into it, and returns all it showed and its code.
async fn on_terminal(command: &mut Command, typed: &[u8]) -> (String, Option<i32>) {
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("a terminal");
    let before = tcgetattr(&pty.slave).expect("a terminal");
    let end = || pty.slave.try_clone().expect("a descriptor");
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("holdfastctl was built");
    let mut master = File::from(pty.master);
    master.write_all(typed).expect("a terminal");
    let mut reader = master.try_clone().expect("a descriptor");
    let shown = std::thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = reader.read(&mut piece) {
            all.extend_from_slice(&piece[..count]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    let status = eventually("the end of holdfastctl", || child.try_wait().expect("our child")).await;
    assert!(tcgetattr(&pty.slave).expect("a terminal") == before, "the terminal is as it was");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(pty.slave);
    (shown.join().expect("a reader"), status.code())
}

#[test]
fn exec_on_a_terminal_is_interactive_has_its_size_and_restores_it() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let mut exec = place.ctl(&[
            "exec",
            "-it",
            &id,
            "--",
            "sh",
            "-c",
            "until stty size 2>/dev/null | grep .; do :; done; read line; echo got $line; exit 7",
        ]);
        let (shown, code) = on_terminal(&mut exec, b"hello\r").await;
        assert!(
            code == Some(7) && shown.contains("33 77\r\n") && shown.ends_with("got hello\r\n"),
            "{code:?} {shown:?}"
        );
    });
}

#[test]
fn run_on_a_terminal_is_interactive_has_its_size_and_restores_it() {
    test(async |place| {
        let (shown, code) = on_terminal(
            &mut place.run(&["-it"], &["sh", "-c", "stty size; read line; echo got $line; exit 9"]),
            b"hello\r",
        )
        .await;
        assert!(
            code == Some(9) && shown.contains("33 77\r\n") && shown.ends_with("got hello\r\n"),
            "{code:?} {shown:?}"
        );
        place.assert_empty();
    });
}

#[test]
fn a_signal_to_run_is_passed_on_to_the_container() {
    test(async |place| {
        let script = "trap 'echo stopped; exit 3' TERM; echo up; while :; do sleep 0.1; done";
        let mut child = spawn(&mut place.run(&[], &["sh", "-c", script]));
        let mut line = [0; 3];
        child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("its first line");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pids are positive")), Signal::SIGTERM).expect("our child");
        assert_eq!(said(&ended(child).await), ok(3, "stopped\n", ""));
        place.assert_empty();
    });
}

#[test]
fn errors_are_one_line_that_says_what_to_do() {
    test(async |place| {
        let rootfs = place.0.path().join("rootfs");
        let missing = |path: &Path| place.ctl(&["run", "--rootfs", &path.display().to_string(), "--", "true"]);
        let cases = [
            (place.ctl(&["exec", "x", "--", "true"]), "no holdfast daemon listens in "),
            (place.ctl(&["stop"]), "no holdfast daemon listens in "),
            (place.ctl(&["logs", "x"]), "there is no log "),
            (place.ctl(&["rm", "x"]), "there is no container x in "),
            (place.ctl(&["exec", "../x", "--", "true"]), "the container id "),
            (missing(&rootfs.join("nonexistent")), "is not a directory: give one with --rootfs"),
            (place.run(&["--env", "=x"], &["true"]), "write --env NAME=VALUE"),
            (place.run(&["--runtime", "/nonexistent"], &["true"]), "/nonexistent"),
            (place.run(&["--monitor", "/nonexistent"], &["true"]), "check --monitor"),
            (place.run(&[], &["invalid"]), "not found in $PATH"),
        ];
        for (mut command, text) in cases {
            let (code, stdout, stderr) = said(&output(&mut command));
            assert_eq!((code, &stdout[..], stderr.lines().count()), (Some(125), "", 1), "{stderr}");
            assert!(stderr.starts_with("holdfastctl: ") && stderr.contains(text), "{stderr}");
        }
        place.assert_empty();
    });
}

#[test]
fn an_unknown_container_under_a_daemon_that_runs_is_one_line_too() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let (code, stdout, stderr) = said(&output(&mut place.ctl(&["exec", "unknown", "--", "true"])));
        assert_eq!((code, &stdout[..], stderr.lines().count()), (Some(125), "", 1), "{stderr}");
        assert!(stderr.contains("unknown"), "{stderr}");
        let (code, _, stderr) = said(&output(&mut place.ctl(&["exec", &id, "--", "invalid"])));
        assert!(code == Some(125) && stderr.lines().count() == 1 && stderr.contains("not found in $PATH"), "{stderr}");
        let version = output(&mut place.ctl(&["version", "--json"]));
        let version: serde_json::Value = serde_json::from_slice(&version.stdout).expect("one line of JSON");
        assert!(version.to_string().contains(env!("CARGO_PKG_VERSION")), "{version}");
    });
}

#[test]
fn a_container_logs_to_further_places_and_its_output_is_shown_all_the_same() {
    test(async |place| {
        let json = place.0.path().join("log.json");
        let log = format!("json:{}", json.display());
        let run = output(&mut place.run(&["--log", &log], &["echo", "hello"]));
        assert_eq!(said(&run), ok(0, "hello\n", ""));
        assert!(fs::read_to_string(json).expect("a log").contains("\"message\":\"hello\""));
        let error = "holdfastctl: \"syslog:/x\" is no log: write cri:FILE, json:FILE or journald\n";
        assert_eq!(said(&output(&mut place.run(&["--log", "syslog:/x"], &["true"]))), ok(125, "", error));
        place.assert_empty();
    });
}

/// By which a session is carried.
const TRANSPORTS: [&str; 2] = ["--transport=websocket", "--transport=spdy"];

#[test]
fn exec_is_the_same_over_either_transport() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let large = "seq 1 2000000 | head -c 10000000; exit 42";
        let expected: String = (1..).map(|number: u32| format!("{number}\n")).take(1_500_000).collect();
        for transport in TRANSPORTS {
            let mut exec = place.ctl(&["exec", transport, &id, "--", "sh", "-c", "echo in; echo err >&2; exit 42"]);
            assert_eq!(said(&output(&mut exec)), ok(42, "in\n", "err\n"), "{transport}");
            let big = output(&mut place.ctl(&["exec", transport, &id, "--", "sh", "-c", large]));
            assert!(big.stdout == expected.as_bytes()[..10_000_000], "{transport}: {} bytes", big.stdout.len());
            assert_eq!(big.status.code(), Some(42), "{transport}");
            let (code, _, stderr) = said(&output(&mut place.ctl(&["exec", transport, &id, "--", "invalid"])));
            assert!(code == Some(125) && stderr.contains("not found in $PATH"), "{transport}: {stderr}");
        }
    });
}

#[test]
fn exec_over_spdy_passes_stdin_on_to_its_end() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let input: String = (0..200_000).map(|number| format!("{number}\n")).collect();
        let path = place.0.path().join("input");
        fs::write(&path, &input).expect("ours");
        let mut exec = place.ctl(&["exec", "--transport=spdy", "-i", &id, "--", "sh", "-c", "cat; echo end; exit 3"]);
        exec.stdin(File::open(&path).expect("ours")).stderr(Stdio::piped());
        let child = exec.stdout(File::create(place.0.path().join("output")).expect("ours")).spawn();
        assert_eq!(said(&ended(child.expect("it was built")).await), ok(3, "", ""));
        assert!(fs::read_to_string(place.0.path().join("output")).expect("written") == input + "end\n");
    });
}

#[test]
fn exec_over_spdy_on_a_terminal_is_interactive_and_has_its_size() {
    test(async |place| {
        let id = place.detached("while :; do sleep 1; done");
        let script = "until stty size 2>/dev/null | grep '33 77'; do :; done; read line; echo got $line; exit 7";
        let mut exec = place.ctl(&["exec", "--transport=spdy", "-it", &id, "--", "sh", "-c", script]);
        let (shown, code) = on_terminal(&mut exec, b"hello\r").await;
        assert!(
            code == Some(7) && shown.contains("33 77\r\n") && shown.ends_with("got hello\r\n"),
            "{code:?} {shown:?}"
        );
    });
}

#[test]
fn attach_shows_what_comes_and_returns_the_containers_code() {
    for transport in TRANSPORTS {
        test(async |place| {
            let script = "while ! [ -e /tmp/go ]; do echo up; sleep 0.05; done; echo bye; echo err >&2; exit 5";
            let id = place.detached(script);
            let mut child = spawn(&mut place.ctl(&["attach", transport, &id]));
            let mut first = [0; 3];
            child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("it writes");
            assert_eq!(&first, b"up\n");
            fs::write(place.0.path().join("rootfs/tmp/go"), "").expect("the container's directory is ours");
            let (code, stdout, stderr) = said(&ended(child).await);
            assert!(code == Some(5) && stdout.ends_with("bye\n") && stderr == "err\n", "{code:?} {stdout} {stderr}");
            let terminal = said(&output(&mut place.ctl(&["attach", transport, "-t", &id]))).2;
            assert!(terminal.contains("leave out -t"), "{terminal}");
        });
    }
}
