use std::{
    fs,
    path::PathBuf,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holdfast::{client::ExecSync, model::Outcome};

use super::NOT_BLOCKED;
use crate::support::{Sandbox, figure, within};

/// How often a watch looks: what a figure of it can be off.
const TICK: Duration = Duration::from_millis(2);

/// Looks at the progress of counting containers, on a thread of its own: the test's may be busy with other things.
#[derive(Debug)]
pub(super) struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Watch {
    pub(super) fn start(sandbox: &Sandbox, ids: &[&str]) -> Self {
        let (stop, stopped) = mpsc::channel();
        let files: Vec<_> = ids.iter().map(|id| sandbox.in_rootfs(&format!("at-{id}"))).collect();
        Self { stop, thread: thread::spawn(move || longest_pauses(&files, &stopped)) }
    }

    /// For how long each container made no progress, at most.
    pub(super) fn finish(self) -> Vec<Duration> {
        drop(self.stop);
        self.thread.join().expect("it only reads files")
    }
}

fn longest_pauses(files: &[PathBuf], stopped: &mpsc::Receiver<()>) -> Vec<Duration> {
    let mut seen = vec![(String::new(), Instant::now(), Duration::ZERO); files.len()];
    loop {
        let end = stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Disconnected);
        for (file, (text, since, longest)) in files.iter().zip(&mut seen) {
            *longest = (*longest).max(since.elapsed());
            let now = fs::read_to_string(file).unwrap_or_default();
            if !now.is_empty() && now != *text {
                (*text, *since) = (now, Instant::now());
            }
        }
        if end {
            return seen.into_iter().map(|(_, _, longest)| longest).collect();
        }
    }
}

/// How long the daemon takes to answer what has nothing to do with a sick log; the longest of a few rounds.
#[derive(Debug, Default)]
pub(super) struct Answers {
    version: Duration,
    reopen: Duration,
    exec_sync: Duration,
    exec: Duration,
}

impl Answers {
    /// Asks so many times; `sick` is the container whose log is, `well` another one of the pod.
    pub(super) async fn ask(sandbox: &Sandbox, rounds: u32, sick: &str, well: &str) -> Self {
        let mut answers = Self::default();
        for _ in 0..rounds {
            let client = sandbox.connect().await;
            let timed = Instant::now();
            within(client.version(false)).await.expect("version never fails");
            answers.version = answers.version.max(timed.elapsed());
            let timed = Instant::now();
            within(client.reopen_log(well)).await.expect("its log is well");
            answers.reopen = answers.reopen.max(timed.elapsed());
            let timed = Instant::now();
            let exec = ExecSync { id: well.into(), command: vec!["true".into()], ..ExecSync::default() };
            assert_eq!(within(client.exec_sync(&exec)).await.expect("a reply").exit_code, 0);
            answers.exec_sync = answers.exec_sync.max(timed.elapsed());
            let timed = Instant::now();
            let session = sandbox.exec(sick, &["echo", "here"]).await;
            assert_eq!((&session.stdout[..], session.statuses), (&b"here\n"[..], vec![Outcome::Exited(0)]));
            answers.exec = answers.exec.max(timed.elapsed());
        }
        answers
    }

    /// Notes the times, and that none was that of somebody who waits for the sick log.
    pub(super) fn check(&self, what: &str) {
        for (call, time) in [
            ("version", self.version),
            ("reopen another log", self.reopen),
            ("execSync in another container", self.exec_sync),
            ("exec in the same container", self.exec),
        ] {
            figure(&format!("log {what}: longest {call}, ms"), time.as_millis());
            assert!(time < NOT_BLOCKED, "{call} took {time:?} beside a log with {what}");
        }
    }
}
