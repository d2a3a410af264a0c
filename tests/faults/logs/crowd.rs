use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    FAST, LOG_STALL, NOT_BLOCKED,
    account::{Lost, settle},
    count_lines, cri,
    fault::Fault,
    last,
    watch::{Answers, Watch},
};
use crate::support::{self, Sandbox, eventually, figure};

/// More than may hang in writes to one file system at once (docs/ARCHITECTURE.md, "How it runs").
const SICK: usize = 9;

/// How long the whole shutdown may take (docs/ARCHITECTURE.md, "Shutdown").
const SHUTDOWN: Duration = Duration::from_secs(8);

#[test]
fn nine_logs_on_a_frozen_file_system_hold_up_neither_a_tenth_elsewhere_nor_the_shutdown() {
    if !super::tools() {
        return;
    }
    support::e2e(async |sandbox| {
        let mut fault = Fault::frozen(sandbox);
        let ids: Vec<_> = (0..SICK).map(|n| format!("sick{n}")).collect();
        for id in &ids {
            count_lines(sandbox, id, FAST, vec![cri(&fault.path(id))]).await;
        }
        count_lines(sandbox, "well", FAST, vec![cri(&sandbox.log_path("well"))]).await;
        eventually("lines of all", || ids.iter().all(|id| last(sandbox, id) > 0).then_some(())).await;
        let all: Vec<_> = ids.iter().map(String::as_str).chain(["well"]).collect();

        let watch = Watch::start(sandbox, &all);
        let (since, before) = (Instant::now(), last(sandbox, "well"));
        fault.strike();
        Answers::ask(sandbox, 2, "sick0", "well").await.check("beside nine on a frozen file system");
        eventually("the end of the stall", || all_given_up(sandbox, &fault, &ids).then_some(())).await;
        let stuck: Vec<_> = ids.iter().map(|id| last(sandbox, id)).collect();
        let on = || ids.iter().zip(&stuck).all(|(id, before)| last(sandbox, id) > before + 1000);
        eventually("all to go on", || on().then_some(())).await;
        let pauses = watch.finish();
        let lines_per_s = (last(sandbox, "well") - before) as f64 / since.elapsed().as_secs_f64();
        figure("log beside nine on a frozen file system: lines/s of the tenth", lines_per_s.round());
        let (well, sick) = pauses.split_last().expect("some");
        figure("log beside nine on a frozen file system: longest pause of the tenth, ms", well.as_millis());
        let longest = sick.iter().max().expect("nine");
        figure("nine logs on a frozen file system: longest pause of their containers, ms", longest.as_millis());
        assert!(*well < NOT_BLOCKED && *longest < LOG_STALL + NOT_BLOCKED, "{pauses:?}");
        shut_down(sandbox, &mut fault, &ids).await;
    });
}

fn all_given_up(sandbox: &Sandbox, fault: &Fault, ids: &[String]) -> bool {
    let log = sandbox.daemon_log();
    let stuck = |path: &str| log.lines().any(|line| line.contains(path) && line.contains("the log is stuck"));
    ids.iter().all(|id| stuck(&fault.path(id).display().to_string()))
}

/// The daemon ends while the file system is frozen, in its time, and says what it could not write.
async fn shut_down(sandbox: &Sandbox, fault: &mut Fault, ids: &[String]) {
    let written = last(sandbox, "well");
    let since = Instant::now();
    let daemon = i32::try_from(sandbox.daemon_pid()).expect("pids are positive");
    kill(Pid::from_raw(daemon), Signal::SIGTERM).expect("not waited for yet");
    eventually("the daemon's last word", || sandbox.daemon_log().contains("INFO stopped").then_some(())).await;
    let took = since.elapsed();
    figure("shutdown with nine logs on a frozen file system, ms", took.as_millis());
    assert!(took < SHUTDOWN + NOT_BLOCKED, "the shutdown took {took:?}");
    assert!(!sandbox.runtime_dir().join("conmon.sock").exists());
    for id in ids {
        assert_eq!(sandbox.wait_exit(id).await, 137);
        let (log, path) = (sandbox.daemon_log(), fault.path(id).display().to_string());
        let told = |line: &str| line.contains(&path) && line.contains("the log was given up before all was written");
        assert!(log.lines().any(told), "nothing is said of the log of {id}");
    }
    // A process cannot end while a thread of it waits in a frozen file system; that is the kernel's.
    fault.mend(sandbox, "").await;
    sandbox.end_daemon(Signal::SIGTERM).await;
    let well = settle(&fs::read(sandbox.log_path("well")).expect("a log"), written_at_least(sandbox, written), "");
    assert_eq!(well.lost(), Lost::default());
}

/// The number that the log of `well` ends with: it was killed, so nobody knows it but the log.
fn written_at_least(sandbox: &Sandbox, least: u64) -> u64 {
    let log = sandbox.log("well");
    let whole = log.iter().rev().find(|record| !record.partial).expect("lines");
    let number = String::from_utf8_lossy(&whole.text).parse().expect("a number");
    assert!(number >= least, "the log ends with {number}, {least} were written");
    number
}
