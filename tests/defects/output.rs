//! See the table in `main.rs`.

use std::{
    fs::{self, File},
    io::{IoSlice, Write as _},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use holdfast::{
    client::{CreateContainer, ExecSync, LogDriver, LogDriverKind},
    format::timestamp::Timestamp,
    model::StdStream::{Stderr, Stdout},
};
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use serde_json::Value;

use crate::support::{
    self, BundleSpec, FakeRuntime, Sandbox, eventually,
    journal::{Entry, Journal, field, next_entry},
    parse_log, within,
};

/// Waits for the file `/go`.
pub(super) const WAIT: &str = "while [ ! -e /go ]; do sleep 0.05; done";

pub(super) fn driver(kind: LogDriverKind, path: &Path, max_size: u64) -> LogDriver {
    LogDriver { kind, path: path.into(), max_size }
}

pub(super) fn cri(path: &Path) -> LogDriver {
    driver(LogDriverKind::Cri, path, 0)
}

fn with_logs(sandbox: &Sandbox, spec: &BundleSpec, log_drivers: Vec<LogDriver>) -> CreateContainer {
    CreateContainer { log_drivers, ..sandbox.create_request("c", spec) }
}

/// Starts a script with these logs.
pub(super) async fn start_with(sandbox: &Sandbox, script: &str, logs: Vec<LogDriver>) {
    let request = with_logs(sandbox, &BundleSpec::shell(script), logs);
    sandbox.client().create_container(&request).await.expect("created");
    sandbox.start("c");
}

pub(super) fn go(sandbox: &Sandbox) {
    fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
}

pub(super) fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

pub(super) fn stdout_of(path: &Path) -> String {
    let bytes = support::text_of(&parse_log(&fs::read(path).expect("a log")), Stdout);
    String::from_utf8(bytes).expect("these containers write text")
}

#[test]
fn d1_d2_the_exit_file_came_before_the_log_was_complete_and_its_tail_was_lost() {
    support::e2e(async |sandbox| {
        for round in 0..50 {
            let id = format!("c{round}");
            sandbox.run(&id, &BundleSpec::shell("seq 1 60000; seq 1 3 >&2; exit 6")).await;
            let path = sandbox.exit_path(&id);
            eventually("the exit file", || path.exists().then_some(())).await;
            assert!(sandbox.logged(&id, Stdout) == numbers(60_000).as_bytes(), "round {round}");
            assert_eq!((sandbox.logged(&id, Stderr), sandbox.wait_exit(&id).await), (b"1\n2\n3\n".to_vec(), 6));
        }
    });
}

#[test]
fn d3_an_exit_file_was_seen_empty_and_one_that_could_not_be_written_was_not_reported() {
    support::e2e(async |sandbox| {
        let mut request = sandbox.create_request("c", &BundleSpec::shell("exit 7"));
        request.exit_paths = (0..300).map(|n| sandbox.path().join(format!("exit-{n}"))).collect();
        let watched = request.exit_paths.clone();
        request.exit_paths.push(sandbox.path().join("missing/exit"));
        let watcher = std::thread::spawn(move || {
            let mut left = watched;
            while !left.is_empty() {
                // Whoever can open one finds the whole code in it.
                left.retain(|path| fs::read(path).map(|code| assert_eq!(code, b"7")).is_err());
            }
        });
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        eventually("all exit files", || watcher.is_finished().then_some(())).await;
        watcher.join().expect("none was seen without its code");
        eventually("a report", || sandbox.daemon_log().contains("missing/exit").then_some(())).await;
    });
}

#[test]
fn d4_captured_output_was_overwritten_while_its_reader_was_slow() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let zeros = "head -c 15700000 /dev/zero | tr '\\0' x; echo end >&2";
        for (script, stdout, stderr) in
            [("seq 1 200000", numbers(200_000), ""), (zeros, "x".repeat(15_700_000), "end\n")]
        {
            let command = ["sh", "-c", script].map(str::to_owned).into();
            let exec = ExecSync { id: "c".to_owned(), command, ..ExecSync::default() };
            let reply = within(sandbox.client().exec_sync(&exec)).await.expect("a reply");
            assert!(reply.stdout == stdout && reply.stderr == stderr, "{} bytes", reply.stdout.len());
        }
    });
}

#[test]
fn d11_a_full_device_a_fifo_nobody_reads_or_a_missing_journal_ended_the_reading_of_output() {
    let journal = Journal::new();
    support::e2e_with(
        |daemon| journal.surround(daemon),
        async |sandbox| {
            let (good, fifo) = (sandbox.path().join("good"), sandbox.path().join("fifo"));
            mkfifo(&fifo, Mode::S_IRWXU).expect("our directory");
            let sick = [cri(Path::new("/dev/full")), driver(LogDriverKind::Journald, Path::new(""), 0), cri(&fifo)];
            start_with(sandbox, "seq 1 60000; exit 4", [&sick[..], &[cri(&good)]].concat()).await;
            assert_eq!(sandbox.wait_exit("c").await, 4);
            assert!(stdout_of(&good) == numbers(60_000));
            let reports = sandbox.daemon_log().matches("the journal is not there").count();
            assert_eq!(reports, 1, "a missing journal is reported once");
        },
    );
}

/// Makes the daemon run where `full` in the sandbox is a file system of 256 KiB.
fn with_small_disk(daemon: &mut Command) {
    let mut private = Command::new("unshare");
    private.args(["-m", "sh", "-c", "mkdir \"$0\" && mount -t tmpfs -o size=256k none \"$0\" && exec \"$@\""]);
    let dir = daemon.get_args().skip_while(|word| *word != "--runtime-dir").nth(1).expect("the harness passes it");
    private.arg(Path::new(dir).with_file_name("full"));
    private.arg(daemon.get_program()).args(daemon.get_args());
    *daemon = private;
}

#[test]
fn d11_a_disk_that_is_full_for_a_while_loses_what_it_has_no_room_for_and_says_so() {
    support::e2e_with(with_small_disk, async |sandbox| {
        let log = sandbox.path().join("full/log");
        start_with(sandbox, &format!("seq 1 20000; {WAIT}; echo last; exit 4"), vec![cri(&log)]).await;
        // The daemon's file system is reached through its process.
        let full =
            PathBuf::from(format!("/proc/{}/root{}", sandbox.daemon_pid(), sandbox.path().join("full").display()));
        eventually("a full disk", || sandbox.daemon_log().contains("No space left on device").then_some(())).await;
        // As the engine would: the old file is moved away and removed.
        fs::copy(full.join("log"), sandbox.path().join("begin")).expect("it is there");
        File::options().write(true).open(full.join("log")).and_then(|file| file.set_len(0)).expect("it is there");
        let told = || fs::read_to_string(full.join("log")).is_ok_and(|text| text.contains("[holdfast: lost "));
        eventually("the record of the gap", || told().then_some(())).await;
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 4);
        let text = fs::read_to_string(full.join("log")).expect("it is there");
        assert!(text.matches("[holdfast: lost ").count() == 1 && text.ends_with(" stdout F last\n"), "{text}");
        let begin = fs::read_to_string(sandbox.path().join("begin")).expect("our copy");
        // The last one may be torn: its rest went into the file when there was room.
        let whole = begin.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let kept: String = whole.map(|line| &line[40..]).collect();
        assert!(kept.len() > 5000 && numbers(20_000).starts_with(&kept), "{} bytes", kept.len());
    });
}

#[test]
fn d41_short_lines_were_split_where_a_read_ended() {
    support::e2e(async |sandbox| {
        let (log, json) = (sandbox.path().join("log"), sandbox.path().join("json"));
        let line = "x".repeat(99);
        let script = format!("yes {line} | head -n 4000; printf 'in '; sleep 0.1; printf 'parts\\n'");
        start_with(sandbox, &script, vec![cri(&log), driver(LogDriverKind::Json, &json, 0)]).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let records = parse_log(&fs::read(&log).expect("a log"));
        assert!(records.iter().all(|record| !record.partial));
        let lines: Vec<_> = records.iter().map(|record| &record.text[..]).collect();
        assert!(lines.len() == 4001 && lines[..4000].iter().all(|text| *text == line.as_bytes()), "{}", lines.len());
        assert_eq!(lines[4000], b"in parts");
        assert!(
            messages(&json)
                == records.iter().map(|r| String::from_utf8_lossy(&r.text).into_owned()).collect::<Vec<_>>()
        );
    });
}

/// The messages of a JSON log, none of them partial.
pub(super) fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a log");
    let objects = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("one object per line"));
    let whole = objects.inspect(|object| assert!(object.get("partial").is_none(), "{object}"));
    whole.map(|object| object["message"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn d42_timestamps_were_older_than_their_lines() {
    support::e2e(async |sandbox| {
        mkfifo(&sandbox.in_rootfs("fifo"), Mode::S_IRWXU).expect("our directory");
        sandbox.run("c", &BundleSpec::new(&["cat", "/fifo"])).await;
        let mut fifo = File::options().read(true).write(true).open(sandbox.in_rootfs("fifo")).expect("our file");
        for _ in 0..30 {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
            let now = String::from_utf8(Timestamp::default().format(since).to_vec()).expect("digits");
            writeln!(fifo, "{now}").expect("there is room");
            sandbox.wait_log("c", &format!(" F {now}\n")).await;
        }
        drop(fifo);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        for record in sandbox.log("c") {
            let said = String::from_utf8_lossy(&record.text);
            assert!(*said <= *record.timestamp, "{said} is logged as of {}", record.timestamp);
        }
    });
}

#[test]
fn d44_json_lost_white_space_and_half_characters_and_everybody_could_read_it() {
    support::e2e(async |sandbox| {
        let json = sandbox.path().join("json");
        let script = "printf '  both ends \\t\\n'; printf 'gr\\303'; sleep 0.1; printf '\\274n\\n'; printf '\\377\\n'; printf end";
        start_with(sandbox, script, vec![driver(LogDriverKind::Json, &json, 0)]).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let text = fs::read_to_string(&json).expect("a log");
        let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        let messages: Vec<_> = objects.iter().map(|object| object["message"].as_str().expect("text")).collect();
        assert_eq!(messages, ["  both ends \t", "grün", "\u{fffd}", "end"]);
        assert_eq!(objects[3]["partial"], true);
        for object in &objects {
            let time = object["time"].as_str().expect("text");
            assert!(object["timestamp"].is_u64() && time.len() == 30 && time.ends_with('Z'), "{object}");
        }
        assert_eq!(json.metadata().expect("a file").permissions().mode() & 0o7777, 0o600);
    });
}

#[test]
fn d45_journal_entries_had_no_container_and_no_stream_and_one_bad_byte_stopped_them() {
    let journal = Journal::new();
    support::e2e_with(
        |daemon| journal.surround(daemon),
        async |sandbox| {
            let socket = journal.listen();
            let script = format!("printf '\\377\\0bad\\n'; {WAIT}; echo '<4>warned' >&2; printf rest");
            let names = serde_json::json!({ "annotations": { "io.kubernetes.container.name": "web" } });
            let spec = BundleSpec::shell(&script).with(names);
            let request = with_logs(sandbox, &spec, vec![driver(LogDriverKind::Journald, Path::new(""), 0)]);
            sandbox.client().create_container(&request).await.expect("created");
            sandbox.start("c");
            let bad = next_entry(&socket).await;
            assert_eq!(bad["MESSAGE"], b"\xff\0bad");
            let of = |entry: &Entry, names: [&str; 5]| names.map(|name| field(entry, name).to_owned());
            let shared =
                ["CONTAINER_ID", "CONTAINER_ID_FULL", "CONTAINER_NAME", "SYSLOG_IDENTIFIER", "CONTAINER_STREAM"];
            assert_eq!(of(&bad, shared), ["c", "c", "web", "web", "stdout"]);
            within(sandbox.client().reopen_log("c")).await.expect("there is nothing to do");
            go(sandbox);
            let told = ["MESSAGE", "PRIORITY", "CONTAINER_STREAM", "CONTAINER_PARTIAL_MESSAGE", "CONTAINER_ID"];
            assert_eq!(of(&next_entry(&socket).await, told), ["warned", "4", "stderr", "", "c"]);
            assert_eq!(of(&next_entry(&socket).await, told), ["rest", "6", "stdout", "true", "c"]);
            assert_eq!(sandbox.wait_exit("c").await, 0);
        },
    );
}

#[test]
fn d48_what_the_runtime_said_was_in_the_log_of_the_container() {
    support::e2e(async |sandbox| {
        let (bad, good) = (BundleSpec::new(&["invalid"]), BundleSpec::shell("echo mine; exit 3"));
        let pipes = ("pipes", bad.clone(), good.clone(), "mine\n");
        for (id, bad, good, logged) in [pipes, ("terminal", bad.terminal(), good.terminal(), "mine\r\n")] {
            let mut request = sandbox.create_request(id, &bad);
            request.global_args = vec!["--debug".to_owned()];
            let error = sandbox.client().create_container(&request).await.expect_err("no such program").to_string();
            assert!(error.contains("not found in $PATH"), "{error}");
            assert!(!sandbox.log_path(id).exists() && !sandbox.exit_path(id).exists());
            // The id is free again, and nothing of the first attempt is in the way.
            let mut request = sandbox.create_request(id, &good);
            request.global_args = vec!["--debug".to_owned()];
            sandbox.client().create_container(&request).await.expect("created");
            sandbox.start(id);
            assert_eq!(sandbox.wait_exit(id).await, 3);
            assert_eq!((sandbox.logged(id, Stdout), sandbox.log(id).len()), (logged.into(), 1));
        }
    });
}

#[test]
fn d56_a_terminal_that_nobody_had_open_for_a_while_was_never_read_again() {
    support::e2e(async |sandbox| {
        let script = "exec <&- >&- 2>&-; sleep 1; exec >/dev/console; echo back";
        sandbox.run("c", &BundleSpec::shell(script).terminal()).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", Stdout), b"back\r\n");
    });
}

#[test]
fn d57_a_read_error_that_stays_kept_the_reader_busy_or_aborted_the_monitor() {
    support::e2e_with(FakeRuntime::install, async |sandbox| {
        let place = sandbox.path().display();
        // A runtime whose terminal cannot be read: the test opens it for writing only, so that every read is EBADF.
        let lines = format!(
            "echo \"$console\" >{place}/console.new; mv {place}/console.new {place}/console\n\
             while [ ! -e {place}/sent ]; do sleep 0.05; done\n\
             sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >\"$pidfile\"; exit 0"
        );
        FakeRuntime::of(sandbox).plan("create", &lines);
        let request = sandbox.create_request("c", &BundleSpec::idle().terminal());
        let client = sandbox.client();
        let create = client.create_container(&request);
        let give = async {
            let console = sandbox.path().join("console");
            let path = eventually("the runtime", || fs::read_to_string(&console).ok()).await;
            let master = posix_openpt(OFlag::O_WRONLY | OFlag::O_NOCTTY).expect("a terminal");
            grantpt(&master).and_then(|()| unlockpt(&master)).expect("our terminal");
            let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            connect(stream.as_raw_fd(), &UnixAddr::new(path.trim_end()).expect("short")).expect("the daemon listens");
            let descriptor = [master.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&descriptor)];
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"tty")], &rights, MsgFlags::empty(), None).expect("sent");
            let slave = ptsname_r(&master).expect("our terminal");
            fs::write(sandbox.path().join("sent"), "").expect("our directory");
            slave
        };
        let (pid, slave) = futures_util::future::join(create, give).await;
        let pid = pid.expect("created");
        File::options().write(true).open(slave).and_then(|mut tty| tty.write_all(b"hello\n")).expect("it is open");
        let report = "output can no longer be read";
        eventually("a report", || sandbox.daemon_log().contains(report).then_some(())).await;
        client.version(false).await.expect("it lives");
        kill(Pid::from_raw(i32::try_from(pid).expect("pids are positive")), Signal::SIGKILL).expect("it runs");
        assert_eq!(sandbox.wait_exit("c").await, 137);
        assert_eq!(sandbox.daemon_log().matches(report).count(), 1);
    });
}
