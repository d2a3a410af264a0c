use std::fs;

use holdfast::{
    client::{LogDriver, LogDriverKind},
    model::StdStream,
};
use memchr::memmem;

use super::{
    FAST,
    account::{Entry, Lost, entries, settle},
    count_lines, cri, driver,
    fault::whole_records,
    json, last,
    mount::{MountPoint, run},
    sick_fs::SickFs,
    start, stop,
};
use crate::support::{self, Sandbox, eventually, within};

const FULL: &str = "No space left on device";

#[test]
fn long_lines_on_a_failing_disk_are_counted_by_their_parts_and_no_gap_is_told_within_one() {
    /// Of each line: two parts of 16 KiB and a rest.
    const LENGTH: u64 = 40_000;
    support::e2e(async |sandbox| {
        let place = MountPoint::new(sandbox, "eio");
        let (disk, _session) = SickFs::mount(&place.path);
        let script = format!(
            "x=$(head -c {LENGTH} /dev/zero | tr '\\0' x); i=0; while [ ! -e /stop-c ]; do echo $x || exit 99; \
             i=$((i + 1)); echo $i >/at-c; sleep 0.02; done"
        );
        start(sandbox, "c", &script, vec![cri(&place.path.join("cri")), json(&place.path.join("json"))]).await;
        let rounds = if support::long() { 30 } else { 5 };
        // Not its records: they become more all the time, and are read again and again.
        let told = || ["cri", "json"].map(|name| memmem::find_iter(&disk.read_name(name), "[holdfast: lost ").count());
        for _ in 0..rounds {
            let (lines, before) = (last(sandbox, "c"), told());
            eventually("some lines", || (last(sandbox, "c") > lines + 5).then_some(())).await;
            disk.set_failing(true);
            let failed = || (disk.has_failed("cri") && disk.has_failed("json")).then_some(());
            eventually("both logs to fail", failed).await;
            let lines = last(sandbox, "c");
            eventually("lines that are lost", || (last(sandbox, "c") > lines + 5).then_some(())).await;
            disk.set_failing(false);
            let more = || told().iter().zip(before).all(|(now, before)| *now > before).then_some(());
            eventually("the gaps to be told", more).await;
        }
        let lines = stop(sandbox, "c").await;
        for name in ["cri", "json"] {
            let entries = entries(&disk.read_name(name));
            check_parts(&entries);
            let parts: Vec<_> = entries.iter().filter(|entry| entry.text.starts_with('x')).collect();
            let kept = Lost {
                // A rest has the line feed.
                bytes: parts.iter().map(|part| part.text.len() as u64 + u64::from(!part.partial)).sum(),
                lines: parts.len() as u64,
            };
            // More may be lost while a log is tried again.
            let (count, lost) = gaps(&entries);
            assert!(count >= rounds, "{name}: {count}");
            assert_eq!(kept + lost, Lost { bytes: lines * (LENGTH + 1), lines: 3 * lines }, "{name}");
        }
    });
}

/// The entries of a log that may end within one.
fn entries_so_far(log: &[u8]) -> Vec<Entry> {
    entries(&whole_records(log.to_vec()))
}

/// How many gaps are told, and what they sum up to.
fn gaps(entries: &[Entry]) -> (usize, Lost) {
    let lost = || entries.iter().filter_map(|entry| Some(entry.lost()?.0));
    (lost().count(), lost().fold(Lost::default(), |sum, lost| sum + lost))
}

/// No gap is told between the parts of a line.
fn check_parts(entries: &[Entry]) {
    let mut unfinished = false;
    for entry in entries {
        match entry.lost() {
            Some(_) => assert!(!unfinished, "a gap is told within a line"),
            None if entry.stream == StdStream::Stdout => unfinished = entry.partial,
            None => {}
        }
    }
}

#[test]
fn a_full_disk_is_left_by_rename_and_reopen_and_the_new_file_begins_with_the_gap() {
    support::e2e(async |sandbox| {
        let place = MountPoint::new(sandbox, "full");
        place.tmpfs(64);
        let (log, old) = (place.path.join("log"), place.path.join("old"));
        count_lines(sandbox, "c", FAST, vec![cri(&log)]).await;
        failing(sandbox).await;
        let full = log.metadata().expect("a log").len();
        fs::rename(&log, &old).expect("that takes no space");
        within(sandbox.client().reopen_log("c")).await.expect("a file is made, and that takes no space");
        let first = fs::read(&old).expect("a log");
        fs::remove_file(&old).expect("our file system");
        // The old file has made room, so that the log goes on, until the disk is full again.
        eventually("the gap to be told", || gap_of(&fs::read(&log).ok()?)).await;
        run("mount", &["-o", "remount,size=64m"], &place.path);
        let more = last(sandbox, "c") + 500;
        eventually("more lines", || (last(sandbox, "c") > more).then_some(())).await;
        let lines = stop(sandbox, "c").await;
        assert_eq!(first.len() as u64, full, "nothing came to the old file");
        let all = [whole_records(first), fs::read(&log).expect("a log")].concat();
        let account = settle(&all, lines, FULL);
        assert!(!account.told.is_empty() && account.untold == Lost::default(), "{account:?}");
    });
}

/// The first record of a log tells a gap.
fn gap_of(log: &[u8]) -> Option<()> {
    entries_so_far(log).first().map(|entry| assert!(entry.lost().is_some(), "{entry:?}"))
}

/// Waits until the only log there is was given up.
async fn failing(sandbox: &Sandbox) {
    let given_up = || sandbox.daemon_log().contains("so output is dropped").then_some(());
    eventually("the log to be given up", given_up).await;
}

#[test]
fn a_size_limit_on_a_full_disk_loses_nothing_while_the_file_it_replaces_makes_room() {
    support::e2e(async |sandbox| {
        let place = MountPoint::new(sandbox, "full");
        // One file of this size, and no second one until the first is gone.
        place.tmpfs(64);
        let (log, twin) = (place.path.join("log"), sandbox.path().join("twin"));
        fs::write(place.path.join("filler"), vec![0; 32 << 10]).expect("half of it");
        count_lines(sandbox, "c", FAST, vec![driver(LogDriverKind::Cri, &log, 24 << 10), cri(&twin)]).await;
        eventually("many rotations", || (last(sandbox, "c") > 10_000).then_some(())).await;
        let lines = stop(sandbox, "c").await;
        assert_eq!(settle(&fs::read(&twin).expect("a log"), lines, "").lost(), Lost::default());
        let log = fs::read(&log).expect("a log");
        let texts: Vec<_> = entries(&log).into_iter().map(|entry| entry.text).collect();
        assert!(log.len() <= 24 << 10 && texts.last() == Some(&lines.to_string()), "{:?}", texts.last());
        assert!(!sandbox.daemon_log().contains("so output is dropped"));
    });
}

#[test]
fn a_log_whose_directory_is_removed_goes_on_in_the_old_file_until_a_reopen_finds_a_new_one() {
    support::e2e(async |sandbox| {
        let dir = sandbox.path().join("logs");
        fs::create_dir(&dir).expect("our directory");
        let paths = ["cri", "json"].map(|name| (dir.join(name), sandbox.path().join(name)));
        let logs: Vec<LogDriver> = vec![cri(&paths[0].0), json(&paths[1].0)];
        count_lines(sandbox, "c", FAST, logs).await;
        for (log, link) in &paths {
            fs::hard_link(log, link).expect("our directory");
        }
        fs::remove_dir_all(&dir).expect("our directory");
        let lines = last(sandbox, "c");
        let error = within(sandbox.client().reopen_log("c")).await.expect_err("there is no directory").to_string();
        assert!(error.contains(&format!("open log {}: No such file", paths[0].0.display())), "{error}");
        let more = || (last(sandbox, "c") > lines + 500).then_some(());
        eventually("lines after it", more).await;
        fs::create_dir(&dir).expect("our directory");
        within(sandbox.client().reopen_log("c")).await.expect("there is a directory");
        let lines = last(sandbox, "c");
        let more = || (last(sandbox, "c") > lines + 500).then_some(());
        eventually("lines after that", more).await;
        let lines = stop(sandbox, "c").await;
        for (log, link) in &paths {
            let (old, new) = (fs::read(link).expect("linked"), fs::read(log).expect("reopened"));
            assert!(!old.is_empty() && !new.is_empty());
            let account = settle(&[old, new].concat(), lines, "");
            assert_eq!((account.told.len(), account.lost()), (0, Lost::default()), "{}", log.display());
        }
    });
}
