//! control-api 6.1: the CRI log.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use holdfast::{
    client::{LogDriver, LogDriverKind},
    model::StdStream::{Stderr, Stdout},
};

use crate::support::{self, BundleSpec, Sandbox, eventually, parse_log};

/// Writes a line, and another once the file `/go` is there.
const TWO_LINES: &str = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two";

fn cri(path: &Path, max_size: u64) -> LogDriver {
    LogDriver { kind: LogDriverKind::Cri, path: path.into(), max_size }
}

/// Runs a script with these logs to its end and returns its code.
async fn run_with(sandbox: &Sandbox, id: &str, script: &str, logs: Vec<LogDriver>) -> i32 {
    let request = sandbox.create_request(id, &BundleSpec::shell(script));
    let request = holdfast::client::CreateContainer { log_drivers: logs, ..request };
    sandbox.client().create_container(&request).await.expect("created");
    sandbox.start(id);
    sandbox.wait_exit(id).await
}

fn go(sandbox: &Sandbox) {
    fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
}

#[test]
fn lines_are_tagged_whole_and_what_has_no_line_end_partial_on_its_own_stream() {
    support::e2e(async |sandbox| {
        sandbox
            .run(
                "c",
                &BundleSpec::shell("echo out; echo err >&2; printf '\\377\\000raw\\n'; printf tail; printf etail >&2"),
            )
            .await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let log = sandbox.log("c");
        let of = |stream| log.iter().filter(move |record| record.stream == stream).map(|r| (r.partial, &r.text[..]));
        assert!(of(Stdout).eq([(false, &b"out"[..]), (false, b"\xff\0raw"), (true, b"tail")]), "{log:?}");
        assert!(of(Stderr).eq([(false, &b"err"[..]), (true, b"etail")]), "{log:?}");
        let mode = sandbox.log_path("c").metadata().expect("a file").mode();
        assert_eq!(mode & 0o7777, 0o600);
    });
}

#[test]
fn a_line_is_cut_into_pieces_of_16_kib_and_only_there() {
    support::e2e(async |sandbox| {
        let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo";
        sandbox.run("c", &BundleSpec::shell(script)).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let pieces: Vec<_> = sandbox.log("c").iter().map(|record| (record.partial, record.text.len())).collect();
        let long = [(true, 16384), (true, 16384), (false, 40000 - 2 * 16384)];
        // A line of exactly the limit is one record, or its line end comes in one of its own.
        assert!(
            pieces[..3] == long && pieces[3..].iter().map(|(_, length)| length).sum::<usize>() == 16384,
            "{pieces:?}"
        );
        assert!(!pieces.last().expect("some").0);
    });
}

#[test]
fn an_existing_log_is_appended_to() {
    support::e2e(async |sandbox| {
        sandbox.bundle("c", &BundleSpec::shell("echo new"));
        let old = "2001-01-01T00:00:00.000000000Z stdout F old\n";
        fs::write(sandbox.log_path("c"), old).expect("our directory");
        sandbox.run("c", &BundleSpec::shell("echo new")).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", Stdout), b"old\nnew\n");
    });
}

#[test]
fn reopening_a_renamed_log_makes_a_new_one_before_it_answers_and_loses_no_line() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell(TWO_LINES)).await;
        sandbox.wait_log("c", "one").await;
        let old = sandbox.path().join("old.log");
        fs::rename(sandbox.log_path("c"), &old).expect("our directory");
        sandbox.client().reopen_log("c").await.expect("it runs");
        assert!(sandbox.log("c").is_empty(), "it is there and has nothing of the old one");
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", Stdout), b"two\n");
        assert_eq!(parse_log(&fs::read(old).expect("renamed")).len(), 1);
    });
}

#[test]
fn an_exec_holds_up_neither_a_reopening_nor_a_resize() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle().terminal()).await;
        let mut session = sandbox.exec_ws("c", &["sh", "-c", "echo up; cat"]).await;
        while session.next().await.expect("output") != holdfast::client::StreamMessage::Stdout("up\n".into()) {}
        fs::rename(sandbox.log_path("c"), sandbox.path().join("old.log")).expect("our directory");
        support::within(sandbox.client().reopen_log("c")).await.expect("it runs");
        assert!(sandbox.log_path("c").exists());
        let size = holdfast::model::WindowSize { cols: 10, rows: 20 };
        support::within(sandbox.client().set_window_size("c", size)).await.expect("its own terminal");
        session.close_stdin().await.expect("v5");
        assert_eq!(support::collect(session).await.close_code, Some(1000));
    });
}

#[test]
fn a_log_stays_within_its_size_by_beginning_a_new_file() {
    support::e2e(async |sandbox| {
        let log = sandbox.path().join("c.log");
        let script = "echo first; sleep 0.2; seq 1 5000; head -c 20000 /dev/zero | tr '\\0' x; echo; echo last";
        assert_eq!(run_with(sandbox, "c", script, vec![cri(&log, 10_000)]).await, 0);
        let bytes = fs::read(&log).expect("a log");
        let records = parse_log(&bytes);
        assert!(
            bytes.len() <= 10_000 && records.last().is_some_and(|record| record.text == b"last"),
            "{}",
            bytes.len()
        );
        let tiny = sandbox.path().join("tiny.log");
        assert_eq!(run_with(sandbox, "tiny", "echo hello; echo world", vec![cri(&tiny, 50)]).await, 0);
        assert_eq!(
            parse_log(&fs::read(&tiny).expect("a log")).iter().map(|r| &r.text[..]).collect::<Vec<_>>(),
            [b"world"]
        );
        let left = fs::read_dir(sandbox.path()).expect("ours").flatten().map(|entry| entry.file_name());
        assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(".holdfast")), "no temporary file");
    });
}

#[test]
fn a_full_disk_stops_neither_the_container_nor_another_log() {
    support::e2e(async |sandbox| {
        let good = sandbox.path().join("good.log");
        let drivers = vec![cri(Path::new("/dev/full"), 0), cri(&good, 0)];
        assert_eq!(run_with(sandbox, "c", "seq 1 60000; exit 4", drivers).await, 4);
        let records = parse_log(&fs::read(good).expect("a log"));
        assert_eq!((records.len(), &records[59_999].text[..]), (60_000, &b"60000"[..]));
    });
}

#[test]
fn a_log_whose_directory_was_removed_does_not_stop_the_container() {
    support::e2e(async |sandbox| {
        let dir = sandbox.path().join("logs");
        fs::create_dir(&dir).expect("our directory");
        let request = sandbox.create_request("c", &BundleSpec::shell("seq 1 60000; exit 4"));
        let drivers = vec![cri(&dir.join("log"), 1000)];
        let request = holdfast::client::CreateContainer { log_drivers: drivers, ..request };
        sandbox.client().create_container(&request).await.expect("created");
        fs::remove_dir_all(&dir).expect("our directory");
        sandbox.client().reopen_log("c").await.expect_err("there is no directory to make it in");
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 4);
    });
}

#[test]
fn a_log_that_cannot_be_opened_fails_the_create_before_the_runtime_runs() {
    support::e2e_recording(async |sandbox| {
        let request = sandbox.create_request("c", &BundleSpec::idle());
        let drivers = vec![cri(&sandbox.path().join("missing/log"), 0)];
        let request = holdfast::client::CreateContainer { log_drivers: drivers, ..request };
        let error = sandbox.client().create_container(&request).await.expect_err("no directory").to_string();
        assert!(error.contains("missing/log") && sandbox.calls().is_empty(), "{error}");
    });
}

#[test]
fn every_line_of_a_container_that_ends_at_once_is_in_the_log_when_the_exit_file_is_there() {
    support::e2e(async |sandbox| {
        let wanted: String = (1..=60_000).map(|number| format!("{number}\n")).collect();
        for round in 0..50 {
            let id = format!("c{round}");
            sandbox.run(&id, &BundleSpec::shell("seq 1 60000; seq 1 3 >&2; exit 6")).await;
            let path = sandbox.exit_path(&id);
            eventually("the exit file", || path.exists().then_some(())).await;
            assert!(sandbox.logged(&id, Stdout) == wanted.as_bytes(), "round {round}");
            assert_eq!((sandbox.logged(&id, Stderr), sandbox.wait_exit(&id).await), (b"1\n2\n3\n".to_vec(), 6));
        }
    });
}
