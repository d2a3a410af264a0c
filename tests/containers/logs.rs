//! control-api 6: log drivers.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use holdfast::{
    client::{LogDriver, LogDriverKind},
    model::StdStream::{Stderr, Stdout},
};

use crate::support::{self, BundleSpec, Sandbox, parse_log};

/// Writes a line, and another once the file `/go` is there.
const TWO_LINES: &str = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two";

fn cri(path: &Path, max_size: u64) -> LogDriver {
    LogDriver { kind: LogDriverKind::Cri, path: path.into(), max_size }
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
fn a_json_log_is_one_object_per_line_with_and_without_a_terminal() {
    support::e2e(async |sandbox| {
        let spec = BundleSpec::shell("echo hello; echo oops >&2");
        for (id, spec) in [("pipes", spec.clone()), ("terminal", spec.terminal())] {
            let log = sandbox.path().join(id);
            let json = LogDriver { kind: LogDriverKind::Json, path: log.clone(), max_size: 0 };
            let request = sandbox.create_request(id, &spec);
            let request = holdfast::client::CreateContainer { log_drivers: vec![json], ..request };
            sandbox.client().create_container(&request).await.expect("created");
            sandbox.start(id);
            assert_eq!(sandbox.wait_exit(id).await, 0);
            let text = fs::read_to_string(log).expect("a log");
            assert!(text.starts_with("{\"timestamp\":") && text.ends_with("}\n"), "{text}");
            let objects = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an object"));
            let told: Vec<_> = objects.map(|object| (object["pipe"].clone(), object["message"].clone())).collect();
            let of = |stream: &str, text: &str| (stream.into(), text.into());
            match id {
                "pipes" => assert!(told.len() == 2 && told.contains(&of("stderr", "oops")), "{told:?}"),
                _ => assert_eq!(told, [of("stdout", "hello\r"), of("stdout", "oops\r")]),
            }
        }
    });
}

#[test]
fn drivers_that_would_write_over_each_other_and_too_many_are_refused() {
    support::e2e_recording(async |sandbox| {
        let base = sandbox.create_request("c", &BundleSpec::idle());
        let log = |kind, name: &str| LogDriver { kind, path: sandbox.path().join(name), max_size: 0 };
        let journal = log(LogDriverKind::Journald, "ignored");
        let cases = [
            (
                vec![log(LogDriverKind::Cri, "log"), log(LogDriverKind::Json, "log")],
                "two of them write to the same place",
            ),
            (
                vec![log(LogDriverKind::Cri, "log"), log(LogDriverKind::Cri, "./log")],
                "two of them write to the same place",
            ),
            (vec![journal.clone(), journal], "two of them write to the same place"),
            ((0..17).map(|n| log(LogDriverKind::Cri, &n.to_string())).collect(), "there are more than 16"),
        ];
        for (log_drivers, reason) in cases {
            let request = holdfast::client::CreateContainer { log_drivers, ..base.clone() };
            let error = sandbox.client().create_container(&request).await.expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(!sandbox.path().join("log").exists() && sandbox.calls().is_empty());
    });
}
