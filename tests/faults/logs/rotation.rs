use std::{
    fs,
    time::{Duration, Instant},
};

use holdfast::client::LogDriverKind;

use super::{
    account::{Lost, settle},
    cri, driver, json,
    mount::MountPoint,
    sick_fs::SickFs,
    start,
};
use crate::support::{self, Sandbox, figure, within};

/// How many lines a container writes as fast as it can.
fn lines() -> u64 {
    if support::long() { 1_000_000 } else { 100_000 }
}

async fn write_all(sandbox: &Sandbox, logs: Vec<holdfast::client::LogDriver>) {
    start(sandbox, "c", &format!("seq 1 {} || exit 99", lines()), logs).await;
}

/// Every line is there once, in the order of these files.
fn check(what: &str, files: &[Vec<u8>]) {
    let account = settle(&files.concat(), lines(), "");
    assert_eq!((account.told.len(), account.lost()), (0, Lost::default()), "{what}");
}

#[test]
fn files_that_are_renamed_and_reopened_at_full_speed_have_every_line_once() {
    support::e2e(async |sandbox| {
        let (log, other) = (sandbox.path().join("log"), sandbox.path().join("json"));
        write_all(sandbox, vec![cri(&log), json(&other)]).await;
        let (mut rotations, mut longest) = (0, Duration::ZERO);
        let name = |number: u32| (log.with_extension(number.to_string()), other.with_extension(number.to_string()));
        while !sandbox.exit_path("c").exists() {
            // As kubelet does it: when the call fails, the file gets its old name back.
            let (old_log, old_other) = name(rotations);
            fs::rename(&log, &old_log).expect("our directory");
            fs::rename(&other, &old_other).expect("our directory");
            let since = Instant::now();
            if within(sandbox.client().reopen_log("c")).await.is_err() {
                fs::rename(&old_log, &log).expect("nothing was made there");
                fs::rename(&old_other, &other).expect("nothing was made there");
                break;
            }
            longest = longest.max(since.elapsed());
            rotations += 1;
        }
        assert_eq!(sandbox.wait_exit("c").await, 0, "a write failed");
        figure("log rotation by rename and reopen: files", rotations + 1);
        figure("log rotation by rename and reopen: longest reopen, ms", longest.as_millis());
        assert!(rotations > 0);
        let read = |path| fs::read(path).expect("a log");
        let (mut logs, mut others): (Vec<_>, Vec<_>) =
            (0..rotations).map(name).map(|(log, other)| (read(log), read(other))).unzip();
        logs.push(read(log));
        others.push(read(other));
        check("CRI", &logs);
        check("JSON", &others);
    });
}

#[test]
fn files_that_a_size_limit_replaces_at_full_speed_have_every_line_once() {
    /// So that there are many of them.
    const MAX_SIZE: usize = 256 << 10;
    support::e2e(async |sandbox| {
        // The file system keeps what was renamed over: no follower could be sure to see every file.
        for (form, kind) in [("CRI", LogDriverKind::Cri), ("JSON", LogDriverKind::Json)] {
            let place = MountPoint::new(sandbox, form);
            let (disk, session) = SickFs::mount(&place.path);
            write_all(sandbox, vec![driver(kind, &place.path.join("log"), MAX_SIZE as u64)]).await;
            assert_eq!(sandbox.wait_exit("c").await, 0, "a write failed");
            let files = disk.files();
            figure(&format!("log rotation by size, {form}: files"), files.len());
            assert!(files.len() > 10 && files.iter().all(|file| file.len() <= MAX_SIZE), "{form}");
            check(form, &files);
            drop((place, session));
            sandbox.runtime(&["delete", "--force", "c"]);
            fs::remove_file(sandbox.exit_path("c")).expect("our directory");
        }
    });
}
