use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    FAST, LOG_STALL, NOT_BLOCKED, SLOW,
    account::{Lost, entries, lines_between, settle},
    count_lines, cri,
    fault::{Fault, whole_records},
    json, last, start, stop,
    watch::{Answers, Watch},
};
use crate::support::{self, Sandbox, eventually, figure};

/// How many lines the container writes that ends while its log is sick.
const LEAVER_LINES: u64 = 30_000;

/// How long a log that is known to be sick may hold up the end of its container (docs/ARCHITECTURE.md, "What you would not
/// expect").
const GIVES_UP: Duration = Duration::from_secs(1);

/// What a busy machine may take for the end of a container.
const EXIT: Duration = Duration::from_secs(3);

/// After how long a log that can be written again is, at the latest, beside what a busy machine takes.
const RESUMES: Duration = Duration::from_secs(1);

#[test]
fn a_full_disk() {
    one_fault("on a full disk", Fault::full);
}

#[test]
fn a_file_system_that_becomes_read_only() {
    one_fault("on a read-only file system", Fault::read_only);
}

#[test]
fn a_disk_with_errors() {
    one_fault("with I/O errors", Fault::error);
}

#[test]
fn a_fifo_that_nobody_reads() {
    one_fault("in an unread FIFO", Fault::fifo);
}

#[test]
fn a_frozen_file_system() {
    one_fault("on a frozen file system", Fault::frozen);
}

/// Three containers: `sick` has two logs on the sick place, and a third that must be complete; `leaver` ends while its only
/// log is sick; `well` has nothing to do with it.
fn one_fault(what: &str, fault: impl FnOnce(&Sandbox) -> Fault) {
    if !super::tools() {
        return;
    }
    support::e2e(async |sandbox| {
        let mut fault = fault(sandbox);
        let twin = sandbox.path().join("twin");
        let pace = if fault.hangs() { FAST } else { SLOW };
        count_lines(sandbox, "well", FAST, vec![cri(&sandbox.log_path("well"))]).await;
        count_lines(sandbox, "sick", pace, vec![cri(&fault.path("cri")), json(&fault.path("json")), cri(&twin)]).await;
        let script = format!("while [ ! -e /leave ]; do sleep 0.02; done; seq 1 {LEAVER_LINES} || exit 99; exit 7");
        start(sandbox, "leaver", &script, vec![cri(&fault.path("leaver"))]).await;
        let lines = || (last(sandbox, "sick").min(last(sandbox, "well")) > 100).then_some(());
        eventually("some lines", lines).await;

        let watch = Watch::start(sandbox, &["sick", "well"]);
        fault.strike();
        fs::write(sandbox.in_rootfs("leave"), "").expect("our directory");
        let (answers, left_after) = tokio::join!(Answers::ask(sandbox, 4, "sick", "well"), leave(sandbox));
        answers.check(what);
        eventually("both logs to be given up", || {
            let log = sandbox.daemon_log();
            let given_up = |name| {
                let path = format!("{}", fault.path(name).display());
                log.lines().any(|line| line.contains(&path) && line.contains("so output is dropped"))
            };
            (given_up("cri") && given_up("json")).then_some(())
        })
        .await;
        let resumed_after = mend(sandbox, &mut fault).await;
        check_times(what, &fault, left_after, resumed_after, &watch.finish());

        let (sick, well) = (stop(sandbox, "sick").await, stop(sandbox, "well").await);
        assert_eq!(settle(&fs::read(&twin).expect("a log"), sick, "").lost(), Lost::default(), "the log beside it");
        let well = settle(&fs::read(sandbox.log_path("well")).expect("a log"), well, "");
        assert_eq!(well.lost(), Lost::default(), "another container's log");
        check_account(sandbox, &mut fault, sick).await;
    });
}

/// Waits for the end of `leaver`; returns how long it took.
async fn leave(sandbox: &Sandbox) -> Duration {
    let since = Instant::now();
    assert_eq!(sandbox.wait_exit("leaver").await, 7, "a write failed");
    since.elapsed()
}

/// Mends the fault; returns how long it took until both logs had lines that were written after that.
async fn mend(sandbox: &Sandbox, fault: &mut Fault) -> Duration {
    let since = Instant::now();
    fault.mend(sandbox, "sick").await;
    let (mended_after, lines) = (since.elapsed(), last(sandbox, "sick"));
    let goes_on = |log: Vec<u8>| {
        let entries = entries(&whole_records(log));
        let number = entries.iter().rev().find_map(|entry| entry.text.parse::<u64>().ok());
        number.is_some_and(|number| number > lines)
    };
    let both = || (goes_on(fault.contents("cri")) && goes_on(fault.contents("json"))).then_some(());
    eventually("the logs to go on", both).await;
    since.elapsed().saturating_sub(mended_after)
}

fn check_times(what: &str, fault: &Fault, left_after: Duration, resumed_after: Duration, pauses: &[Duration]) {
    let note = |name: &str, time: Duration| figure(&format!("log {what}: {name}, ms"), time.as_millis());
    note("longest pause of its container", pauses[0]);
    note("longest pause of another container", pauses[1]);
    note("end of a container after its last lines", left_after);
    note("has new lines after recovery", resumed_after);
    let held_up = if fault.hangs() { LOG_STALL } else { Duration::ZERO };
    assert!(pauses[0] < held_up + NOT_BLOCKED, "the container was held up for {:?}", pauses[0]);
    assert!(pauses[1] < NOT_BLOCKED, "another container was held up for {:?}", pauses[1]);
    assert!(left_after < held_up + GIVES_UP + EXIT, "an exit was held up for {left_after:?}");
    assert!(resumed_after < RESUMES + NOT_BLOCKED, "the log took {resumed_after:?} to go on");
}

/// What is in the logs and what they tell to be missing is what was written, and the daemon has counted it.
async fn check_account(sandbox: &Sandbox, fault: &mut Fault, sick: u64) {
    let mut counted = Lost::default();
    for name in ["cri", "json"] {
        let account = settle(&fault.contents(name), sick, fault.cause());
        // Into a FIFO that is full a short record may still go, when a longer one has failed.
        let told = if fault.keeps() { 1 } else { account.told.len().max(1) };
        assert_eq!((account.told.len(), account.untold), (told, Lost::default()), "{name}: {account:?}");
        counted = counted + account.lost();
    }
    // Half a record may stand at its end, and counts as lost.
    let leaver = fault.keeps().then(|| whole_records(fault.contents("leaver")));
    let leaver = leaver.map(|log| settle(&log, LEAVER_LINES, fault.cause()));
    let of_leaver = lost_by(sandbox, "leaver");
    match leaver {
        // The write in flight was given up, and done later.
        Some(account) if fault.hangs() => assert!(account.lost().bytes <= of_leaver, "{account:?}, {of_leaver}"),
        Some(account) => assert_eq!(account.lost().bytes, of_leaver),
        None => assert!(of_leaver > 0 && of_leaver < lines_between(1, LEAVER_LINES + 1).bytes),
    }
    assert_eq!(lost_by(sandbox, "well"), 0);
    assert_eq!(lost_by(sandbox, "sick"), counted.bytes);
    assert!(sandbox.end_daemon(Signal::SIGTERM).await.success());
    let in_all = |name: &str| field(sandbox, &format!("counted in all: {name}"), "value");
    assert_eq!(in_all("log_lost_bytes"), counted.bytes + of_leaver);
    assert!(in_all("log_lost_lines") > counted.lines);
}

/// How many bytes the daemon says that a container's logs have lost.
fn lost_by(sandbox: &Sandbox, id: &str) -> u64 {
    field(sandbox, &format!("container exited id={id} "), "lost_bytes")
}

/// A number in the last line of the daemon's log that has this text.
fn field(sandbox: &Sandbox, text: &str, name: &str) -> u64 {
    let log = sandbox.daemon_log();
    let value = |line: &str| {
        let (_, value) = line.split_once(&format!("{name}="))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let found = log.lines().rev().filter(|line| line.contains(text)).find_map(value);
    found.unwrap_or_else(|| panic!("no {name} with {text:?} in the daemon's log"))
}
