//! See the table in `main.rs`.

use std::{
    fs::{self, File},
    io::Read as _,
};

use holdfast::{
    client::{CreateContainer, LogDriverKind},
    model::StdStream::Stdout,
};

use crate::{
    output::{WAIT, cri, driver, go, messages, numbers, start_with, stdout_of},
    support::{self, BundleSpec, eventually, parse_log, within},
};

#[test]
fn d43_an_existing_log_was_truncated_by_a_create_and_its_size_not_counted() {
    support::e2e(async |sandbox| {
        let (log, next) = (sandbox.path().join("log"), sandbox.path().join("next"));
        let old = "2001-01-01T00:00:00.000000000Z stdout F old\n";
        fs::write(&log, old).expect("our directory");
        let limit = old.len() as u64 + 50;
        let script = format!("echo new; {WAIT}; echo third; sleep 0.1; echo fourth");
        start_with(sandbox, &script, vec![driver(LogDriverKind::Cri, &log, limit)]).await;
        eventually("both", || (stdout_of(&log) == "old\nnew\n").then_some(())).await;
        // One that has no room for another record is put in its place, and counted when it is opened.
        fs::rename(&log, &next).expect("our directory");
        fs::write(&log, old.repeat(2)).expect("our directory");
        let mut follower = File::open(&log).expect("our file");
        sandbox.client().reopen_log("c").await.expect("it runs");
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(stdout_of(&log), "third\nfourth\n", "the limit begins a new file");
        let mut followed = String::new();
        follower.read_to_string(&mut followed).expect("our file");
        assert_eq!(followed, old.repeat(2), "who follows the old one loses nothing");
        assert_eq!(stdout_of(&next), "old\nnew\n");
    });
}

#[test]
fn d43_a_size_limit_truncated_the_file_that_a_reader_follows() {
    support::e2e(async |sandbox| {
        let (log, tiny) = (sandbox.path().join("log"), sandbox.path().join("tiny"));
        let script = format!("echo first; {WAIT}; seq 1 5000; head -c 20000 /dev/zero | tr '\\0' x; echo; echo last");
        start_with(
            sandbox,
            &script,
            vec![driver(LogDriverKind::Cri, &log, 10_000), driver(LogDriverKind::Json, &tiny, 50)],
        )
        .await;
        eventually("the first line", || (stdout_of(&log) == "first\n").then_some(())).await;
        let mut follower = File::open(&log).expect("it is there");
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let bytes = fs::read(&log).expect("a log");
        assert!(bytes.len() <= 10_000 && bytes.ends_with(b" stdout F last\n"), "{}", bytes.len());
        let mut old = Vec::new();
        follower.read_to_end(&mut old).expect("our file");
        let lines = parse_log(&old).len();
        assert!(
            old.len() <= 10_000 && support::text_of(&parse_log(&old), Stdout).starts_with(b"first\n1\n2\n"),
            "{lines}"
        );
        assert_eq!(messages(&tiny), ["last"], "a record larger than the limit stands alone");
        let left = fs::read_dir(sandbox.path()).expect("ours").flatten().map(|entry| entry.file_name());
        assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(".holdfast")), "no temporary file");
    });
}

#[test]
fn d43_two_short_lines_and_a_limit_of_50_bytes_left_the_first_line_in_the_file() {
    support::e2e(async |sandbox| {
        let log = sandbox.path().join("log");
        start_with(sandbox, "echo hello; echo world", vec![driver(LogDriverKind::Cri, &log, 50)]).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(stdout_of(&log), "world\n");
    });
}

#[test]
fn d43_reopening_under_load_lost_or_doubled_lines() {
    support::e2e(async |sandbox| {
        let (log, json) = (sandbox.path().join("log"), sandbox.path().join("json"));
        let script = "i=1; while [ ! -e /go ]; do seq $i $((i+4999)); i=$((i+5000)); done";
        start_with(sandbox, script, vec![cri(&log), driver(LogDriverKind::Json, &json, 0)]).await;
        let mut moved = Vec::new();
        for round in 0..40 {
            let (old_log, old_json) = (log.with_extension(round.to_string()), json.with_extension(round.to_string()));
            eventually("some lines", || (log.metadata().ok()?.len() > 0).then_some(())).await;
            fs::rename(&log, &old_log).expect("our directory");
            fs::rename(&json, &old_json).expect("our directory");
            within(sandbox.client().reopen_log("c")).await.expect("it runs");
            assert!(log.exists() && json.exists(), "there when the call answers");
            moved.push((old_log, old_json));
        }
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        moved.push((log, json));
        let all: String = moved.iter().map(|(log, _)| stdout_of(log)).collect();
        let count = u32::try_from(all.lines().count()).expect("a few");
        assert!(count >= 5000 && all == numbers(count), "{count} lines");
        let doubled: String = moved.iter().flat_map(|(_, json)| messages(json)).map(|line| line + "\n").collect();
        assert!(all == doubled, "the other log");
    });
}

#[test]
fn d43_a_create_that_failed_touched_the_log_of_a_live_container_or_left_one_behind() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell(&format!("echo one; {WAIT}; echo two"))).await;
        sandbox.wait_log("c", "one").await;
        let request = sandbox.create_request("c", &BundleSpec::idle());
        sandbox.client().create_container(&request).await.expect_err("the id is taken");
        let other = sandbox.create_request("other", &BundleSpec::new(&["no-such-program"]));
        let logs = [other.log_drivers.clone(), request.log_drivers].concat();
        let other = CreateContainer { log_drivers: logs, ..other };
        sandbox.client().create_container(&other).await.expect_err("no such program");
        assert!(!sandbox.log_path("other").exists());
        go(sandbox);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", Stdout), b"one\ntwo\n");
    });
}
