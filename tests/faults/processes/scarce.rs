//! A daemon that is short of descriptors or of processes refuses what is new, in words, and loses nothing of what is there.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use holdfast::{
    client::{ExecSync, ExecSyncReply, STREAM_PROTOCOLS, ServeExec, StreamClient},
    model::StdStream,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{self, BundleSpec, Sandbox, eventually, figure, procfs, wait_output, within};

/// So few that a handful of sessions uses them up.
const FILES: usize = 96;

fn with_few_files(daemon: &mut Command) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {FILES}; exec \"$@\""), "sh"]);
    shell.arg(daemon.get_program()).args(daemon.get_args());
    *daemon = shell;
}

fn exec(id: &str, script: &str) -> ExecSync {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    ExecSync { id: id.to_owned(), command, timeout_s: 20, ..ExecSync::default() }
}

/// On a connection of its own: an older one may have been closed for want of descriptors, and clients dial again.
async fn exec_sync(sandbox: &Sandbox, id: &str, script: &str) -> ExecSyncReply {
    within(sandbox.connect().await.exec_sync(&exec(id, script))).await.expect("a reply")
}

async fn open_session(sandbox: &Sandbox) -> Result<StreamClient, String> {
    let command = ["cat".to_owned()].into();
    let exec = ServeExec { id: "idle".to_owned(), command, stdin: true, stdout: true, ..ServeExec::default() };
    let url = within(sandbox.connect().await.serve_exec(&exec)).await.expect("a URL costs nothing");
    within(StreamClient::connect(&url, &STREAM_PROTOCOLS)).await.map_err(|error| error.to_string())
}

async fn echoes(session: &mut StreamClient, line: &str) {
    within(session.send_stdin(format!("{line}\n").as_bytes())).await.expect("the session is open");
    wait_output(session, line).await;
}

/// The processor time of a process, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<_> = stat.rsplit_once(')').expect("its name").1.split_whitespace().collect();
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum()
}

/// Counts until the file appears, then says how far it came and ends with 7.
const COUNTER: &str = "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end $i; exit 7";

fn assert_complete(sandbox: &Sandbox) {
    let text = String::from_utf8(sandbox.logged("counter", StdStream::Stdout)).expect("numbers");
    let lines: Vec<&str> = text.lines().collect();
    let (last, numbers) = lines.split_last().expect("it has counted");
    assert_eq!(*last, format!("end {}", numbers.len()));
    assert!(numbers.iter().zip(1..).all(|(line, number)| **line == number.to_string()), "{text}");
}

#[test]
fn without_descriptors_new_work_is_refused_and_nothing_that_runs_is_lost() {
    support::e2e_with(with_few_files, async |sandbox| {
        sandbox.run("counter", &BundleSpec::shell(COUNTER)).await;
        sandbox.run("idle", &BundleSpec::idle()).await;
        let mut first = open_session(sandbox).await.expect("there is room");
        echoes(&mut first, "one").await;

        let mut sessions = Vec::new();
        let refusal = loop {
            match open_session(sandbox).await {
                Ok(mut session) => {
                    // A session whose command could not be started tells so itself; until then each has its own.
                    match timeout(support::DEADLINE, session.send_stdin(b"up\n")).await {
                        Ok(Ok(())) => sessions.push(session),
                        other => panic!("{other:?}"),
                    }
                }
                Err(refusal) => break refusal,
            }
            assert!(sessions.len() < FILES, "more sessions than descriptors");
        };
        assert!(refusal.contains("503") && refusal.contains("too few descriptors"), "{refusal}");
        figure(&format!("sessions with {FILES} descriptors"), sessions.len() + 1);

        // A crowd that wants nothing, on both listeners.
        let socket = sandbox.runtime_dir().join("conmon.sock");
        let crowd: Vec<_> = (0..200).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
        let reply = exec_sync(sandbox, "idle", "echo never").await;
        let said = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert!(reply.exit_code == -2 && said.contains("too few descriptors"), "{reply:?}");
        let request = sandbox.create_request("new", &BundleSpec::idle());
        let refused =
            within(sandbox.connect().await.create_container(&request)).await.expect_err("no room").to_string();
        assert!(refused.contains("too few descriptors"), "{refused}");

        let (before, start) = (ticks(sandbox.daemon_pid()), Instant::now());
        sleep(Duration::from_secs(1)).await;
        let (used, took) = (ticks(sandbox.daemon_pid()) - before, start.elapsed());
        assert!(u128::from(used) * 10 < took.as_millis() / 2, "{used} ticks in {took:?}: it spins");

        within(sandbox.connect().await.reopen_log("counter")).await.expect("what is there may use the rest");
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(sandbox.wait_exit("counter").await, 7);
        assert_complete(sandbox);
        echoes(&mut first, "two").await;

        drop((sessions, crowd));
        let daemon = sandbox.daemon_pid();
        eventually("room", || (procfs::descriptors(daemon) < FILES / 2).then_some(())).await;
        assert_eq!(exec_sync(sandbox, "idle", "exit 4").await.exit_code, 4);
        let created = within(sandbox.connect().await.create_container(&request)).await;
        created.expect("there is room again");
        assert!(!sandbox.daemon_log().contains("panicked"));
    });
}

/// A cgroup of version 1 that limits the tasks of the daemon alone.
struct Tasks(PathBuf);

impl Tasks {
    fn of(pid: u32) -> Self {
        let own = Self(Path::new("/sys/fs/cgroup/pids").join(format!("hf-tasks-{pid}")));
        fs::create_dir(&own.0).expect("root may");
        fs::write(own.0.join("cgroup.procs"), pid.to_string()).expect("it runs");
        own
    }

    fn limit(&self, most: &str) {
        fs::write(self.0.join("pids.max"), most).expect("our cgroup");
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // Back to where everybody is, so that it is empty.
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write("/sys/fs/cgroup/pids/cgroup.procs", pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn without_a_thread_or_a_fork_new_work_is_refused_and_the_log_goes_on_afterwards() {
    // Where there is only version 2, a cgroup of one's own is a matter of delegation; the mechanism is the same.
    if !support::require_e2e() || !Path::new("/sys/fs/cgroup/pids").exists() {
        return;
    }
    support::e2e(async |sandbox| {
        let spec =
            BundleSpec::shell("for n in 1 2 3; do until [ -e /go$n ]; do sleep 0.01; done; echo $n; done; exit 6");
        sandbox.run("counter", &spec).await;
        sandbox.run("idle", &BundleSpec::idle()).await;
        let daemon = sandbox.daemon_pid();
        let tasks = Tasks::of(daemon);
        let go = |n: u32| fs::write(sandbox.in_rootfs(&format!("go{n}")), "").expect("our directory");
        let alone = async || {
            let alone = || (procfs::status_line(daemon, "Threads") == "1").then_some(());
            eventually("the daemon's other threads to end", alone).await;
        };

        // A thread, but no process.
        tasks.limit("2");
        let reply = exec_sync(sandbox, "idle", "echo never").await;
        let said = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert!(reply.exit_code == -2 && said.contains("limit of processes"), "{reply:?}");
        go(1);
        sandbox.wait_log("counter", " F 1\n").await;

        // Not even a thread: this ended the daemon once, and every container's log with it.
        alone().await;
        tasks.limit("1");
        go(2);
        eventually("a job without a thread", || sandbox.daemon_log().contains("no thread can be made").then_some(()))
            .await;
        within(sandbox.connect().await.version(false)).await.expect("the loop needs no thread");
        tasks.limit("max");
        sandbox.wait_log("counter", " F 2\n").await;
        go(3);
        assert_eq!(sandbox.wait_exit("counter").await, 6);
        assert_eq!(sandbox.logged("counter", StdStream::Stdout), b"1\n2\n3\n");
        assert_eq!(exec_sync(sandbox, "idle", "exit 4").await.exit_code, 4);
        assert!(!sandbox.daemon_log().contains("panicked"));
    });
}
