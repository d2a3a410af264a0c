//! A daemon that is short of descriptors or of processes refuses what is new, in words, and loses nothing of what is there.

use std::{fs, os::unix::net::UnixStream, process::Command, rc::Rc, time::Duration};

use holdfast::{
    client::{Client, ExecSync, ExecSyncReply, STREAM_PROTOCOLS, ServeExec, StreamClient, StreamMessage},
    model::StdStream,
};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, spawn_local},
    time::{Instant, sleep},
};

use super::limits::Limits;
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

/// Nothing is under way in the daemon that would give descriptors back.
async fn at_rest(sandbox: &Sandbox) {
    let is_runtime = |(pid, _): &(u32, char)| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("runc"))
    };
    let daemon = sandbox.daemon_pid();
    let at_rest = || (!procfs::children(daemon).iter().any(is_runtime)).then_some(());
    eventually("a daemon at rest", at_rest).await;
    procfs::settled_descriptors(daemon).await;
}

/// Starts commands until they are refused while nothing else is under way, so that whatever comes next is refused too.
#[allow(clippy::disallowed_methods, reason = "the tasks end with the test")]
async fn take_the_rest(sandbox: &Sandbox, client: &Rc<Client>) -> Vec<JoinHandle<()>> {
    /// In a row: what is under way for a moment cannot be the reason of all.
    const REFUSALS: usize = 3;
    let (mut held, mut refusals) = (Vec::new(), 0);
    loop {
        at_rest(sandbox).await;
        let up = format!("up{}", held.len());
        let script = format!("touch /{up}; until [ -e /enough ]; do sleep 0.05; done");
        let (client, call) = (client.clone(), ExecSync { timeout_s: 0, ..exec("idle", &script) });
        let (refused, mut refusal) = oneshot::channel();
        held.push(spawn_local(async move {
            let reply = client.exec_sync(&call).await;
            // Nobody asks when the test has ended.
            let _ = refused.send(reply);
        }));
        let mut look = || match refusal.try_recv() {
            Ok(reply) => Some(Some(reply.expect("a reply"))),
            Err(_) => sandbox.in_rootfs(&up).exists().then_some(None),
        };
        if let Some(reply) = eventually("a command or its refusal", &mut look).await {
            let said = String::from_utf8_lossy(&reply.stderr).into_owned();
            assert!(reply.exit_code == -2 && said.contains("too few descriptors"), "{reply:?}");
            refusals += 1;
            if refusals == REFUSALS {
                return held;
            }
        } else {
            refusals = 0;
        }
        assert!(held.len() < FILES, "more commands than descriptors");
    }
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
            let mut session = match open_session(sandbox).await {
                Ok(session) => session,
                Err(refusal) => break refusal,
            };
            within(session.send_stdin(b"up\n")).await.expect("the session is open");
            // One whose command finds no room any more tells so itself.
            match within(session.next()).await.expect("the server keeps to the protocol") {
                StreamMessage::Stdout(_) => sessions.push(session),
                end => break format!("{end:?}"),
            }
            assert!(sessions.len() < FILES, "more sessions than descriptors");
        };
        assert!(refusal.contains("too few descriptors"), "{refusal}");
        figure(&format!("sessions with {FILES} descriptors"), sessions.len() + 1);
        // One for all: for a new one an idle one would be closed.
        let client = Rc::new(sandbox.connect().await);
        let held = take_the_rest(sandbox, &client).await;
        let request = sandbox.create_request("new", &BundleSpec::idle());
        let refused = within(client.create_container(&request)).await.expect_err("no room").to_string();
        assert!(refused.contains("too few descriptors"), "{refused}");

        // A crowd that wants nothing. For its sake idle connections are closed, so there may be room again.
        let socket = sandbox.runtime_dir().join("conmon.sock");
        let crowd: Vec<_> = (0..200).filter_map(|_| UnixStream::connect(&socket).ok()).collect();

        let (before, start) = (ticks(sandbox.daemon_pid()), Instant::now());
        sleep(Duration::from_secs(1)).await;
        let (used, took) = (ticks(sandbox.daemon_pid()) - before, start.elapsed());
        assert!(u128::from(used) * 10 < took.as_millis() / 2, "{used} ticks in {took:?}: it spins");

        within(sandbox.connect().await.reopen_log("counter")).await.expect("what is there may use the rest");
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(sandbox.wait_exit("counter").await, 7);
        assert_complete(sandbox);
        echoes(&mut first, "two").await;

        fs::write(sandbox.in_rootfs("enough"), "").expect("our directory");
        drop((sessions, crowd));
        for call in held {
            call.abort();
        }
        let daemon = sandbox.daemon_pid();
        eventually("room", || (procfs::descriptors(daemon) < FILES / 2).then_some(())).await;
        assert_eq!(exec_sync(sandbox, "idle", "exit 4").await.exit_code, 4);
        let created = within(sandbox.connect().await.create_container(&request)).await;
        created.expect("there is room again");
        assert!(!sandbox.daemon_log().contains("panicked"));
    });
}

#[test]
fn without_a_thread_or_a_fork_new_work_is_refused_and_the_log_goes_on_afterwards() {
    support::e2e(async |sandbox| {
        let spec =
            BundleSpec::shell("for n in 1 2 3; do until [ -e /go$n ]; do sleep 0.01; done; echo $n; done; exit 6");
        sandbox.run("counter", &spec).await;
        sandbox.run("idle", &BundleSpec::idle()).await;
        let daemon = sandbox.daemon_pid();
        let limits = Limits::of(daemon, "pids");
        let go = |n: u32| fs::write(sandbox.in_rootfs(&format!("go{n}")), "").expect("our directory");
        let alone = async || {
            let alone = || (procfs::status_line(daemon, "Threads") == "1").then_some(());
            eventually("the daemon's other threads to end", alone).await;
        };

        // A thread, but no process.
        limits.tasks("2");
        let reply = exec_sync(sandbox, "idle", "echo never").await;
        let said = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert!(reply.exit_code == -2 && said.contains("limit of processes"), "{reply:?}");
        go(1);
        sandbox.wait_log("counter", " F 1\n").await;

        // Not even a thread: this ended the daemon once, and every container's log with it.
        alone().await;
        limits.tasks("1");
        let refused = || sandbox.daemon_log().matches("no thread can be made").count();
        let before = refused();
        go(2);
        eventually("a job without a thread", || (refused() > before).then_some(())).await;
        within(sandbox.connect().await.version(false)).await.expect("the loop needs no thread");
        limits.tasks("max");
        sandbox.wait_log("counter", " F 2\n").await;
        go(3);
        assert_eq!(sandbox.wait_exit("counter").await, 6);
        assert_eq!(sandbox.logged("counter", StdStream::Stdout), b"1\n2\n3\n");
        assert_eq!(exec_sync(sandbox, "idle", "exit 4").await.exit_code, 4);
        assert!(!sandbox.daemon_log().contains("panicked"));
    });
}

#[test]
fn a_runtime_that_could_not_be_asked_once_left_all_later_execs_without_their_cgroups() {
    support::e2e(async |sandbox| {
        let idle = sandbox.run("idle", &BundleSpec::idle()).await;
        let limits = Limits::of(sandbox.daemon_pid(), "pids");
        // A thread, but no process: neither can the runtime be asked what it can do, nor does the command run.
        limits.tasks("2");
        assert_eq!(exec_sync(sandbox, "idle", "echo never").await.exit_code, -2);
        limits.tasks("max");
        let look = async {
            sandbox.wait_file("up", "up\n").await;
            assert!(procfs::exec_cgroups(idle).len() == 1 || sandbox.daemon_log().contains("has no cgroup"));
            fs::write(sandbox.in_rootfs("enough"), "").expect("our directory");
        };
        let script = "echo up >/up; until [ -e /enough ]; do sleep 0.01; done; exit 4";
        let (reply, ()) = tokio::join!(exec_sync(sandbox, "idle", script), look);
        assert_eq!(reply.exit_code, 4, "{reply:?}");
    });
}
