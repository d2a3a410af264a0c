//! A daemon that may have little more memory than its bounds say is not ended for it: what is over a bound is refused or cut
//! in words, and what runs loses nothing.

use std::{fs, process::Command};

use futures_util::future::join_all;
use holdfast::{
    client::{ExecSync, STREAM_PROTOCOLS, ServeExec, StreamClient},
    model::{Outcome, StdStream},
};

use super::limits::Limits;
use crate::support::{self, BundleSpec, Sandbox, collect, eventually, figure, within};

const MIB: usize = 1024 * 1024;
/// What all captures of a pod keep together (docs/ARCHITECTURE.md).
const CAPTURES: usize = 64 * MIB;
/// What each command writes, and the most that is kept of it.
const WRITTEN: usize = 17 * MIB;
const KEPT: usize = 16 * MIB;
/// Their sum is more than may be captured.
const COMMANDS: usize = 6;
/// Replies that are not sent yet: a copy of what was captured.
const REPLIES: usize = CAPTURES;
/// The program itself, its log's pages, the runtime's processes until they have a cgroup of their own.
const BASE: usize = 48 * MIB;
/// Queues of a session whose client does not read, and what the kernel keeps of its connection: 256 KiB before the transport, 32
/// KiB in it, and up to 4 MiB sent (`tcp_wmem`), which the kernel counts twice where its pieces are small.
const SESSION: usize = 5 * MIB;
/// What each of these sessions is to bring: more than fits on the way.
const STREAMED: usize = 24 * MIB;

fn sessions() -> usize {
    if support::long() { 64 } else { 6 }
}

async fn open_session(sandbox: &Sandbox) -> Result<StreamClient, String> {
    let script = format!("head -c {STREAMED} /dev/zero; exit 5");
    let command = ["sh".to_owned(), "-c".to_owned(), script].into();
    let exec = ServeExec { id: "idle".to_owned(), command, stdout: true, ..ServeExec::default() };
    let url = within(sandbox.client().serve_exec(&exec)).await.expect("a URL costs nothing");
    within(StreamClient::connect(&url, &STREAM_PROTOCOLS)).await.map_err(|error| error.to_string())
}

/// Fills the pod's captures from several connections at once, and looks that all was kept that may be, and told what was not.
async fn large_captures(sandbox: &Sandbox) {
    for number in 0..COMMANDS {
        let _ = fs::remove_file(sandbox.in_rootfs(&format!("written{number}")));
    }
    let _ = fs::remove_file(sandbox.in_rootfs("answer"));
    let capture = async |number: usize| {
        let script = format!(
            "head -c {WRITTEN} /dev/zero; touch /written{number}; until [ -e /answer ]; do sleep 0.05; done; exit {number}"
        );
        let command = ["sh".to_owned(), "-c".to_owned(), script].into();
        let exec = ExecSync { id: "idle".to_owned(), command, ..ExecSync::default() };
        within(sandbox.connect().await.exec_sync(&exec)).await.expect("a reply")
    };
    let full = async {
        let written = |number| sandbox.in_rootfs(&format!("written{number}")).exists();
        eventually("the captures", || (0..COMMANDS).all(written).then_some(())).await;
        // Others are answered meanwhile, in words where there is no room for their output.
        let command = ["sh", "-c", "echo said; exit 4"].map(str::to_owned).into();
        let exec = ExecSync { id: "idle".to_owned(), command, ..ExecSync::default() };
        let reply = within(sandbox.client().exec_sync(&exec)).await.expect("a reply");
        let told = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert!(reply.exit_code == 4 && told == "[holdfast: 5 bytes of output dropped]\n", "{reply:?}");
        fs::write(sandbox.in_rootfs("answer"), "").expect("our directory");
    };
    let (replies, ()) = futures_util::future::join(join_all((0..COMMANDS).map(capture)), full).await;
    for (number, reply) in replies.iter().enumerate() {
        let (kept, told) = (reply.stdout.len(), String::from_utf8_lossy(&reply.stderr));
        assert_eq!(reply.exit_code, i32::try_from(number).expect("few"));
        assert!(kept <= KEPT, "{kept}");
        assert_eq!(told, format!("[holdfast: {} bytes of output dropped]\n", WRITTEN - kept));
    }
    assert_eq!(replies.iter().map(|reply| reply.stdout.len()).sum::<usize>(), CAPTURES);
}

/// Counts until the file appears, then says how far it came and ends with 7.
const COUNTER: &str = "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end $i; exit 7";

fn assert_complete(sandbox: &Sandbox) {
    let text = String::from_utf8(sandbox.logged("counter", StdStream::Stdout)).expect("numbers");
    let (numbers, last) = text.trim_end().rsplit_once('\n').expect("it has counted");
    assert_eq!(last, format!("end {}", numbers.lines().count()));
    assert!(numbers.lines().zip(1..).all(|(line, number)| line == number.to_string()), "{text}");
}

#[test]
fn a_daemon_with_little_more_memory_than_its_bounds_lives_and_what_is_over_them_is_told() {
    let limited = |daemon: &mut Command| {
        daemon.env("HOLDFAST_SESSION_LIMIT", sessions().to_string());
    };
    support::e2e_with(limited, async |sandbox| {
        sandbox.run("counter", &BundleSpec::shell(COUNTER)).await;
        sandbox.run("idle", &BundleSpec::idle()).await;
        let most = BASE + CAPTURES + REPLIES + sessions() * SESSION;
        let limits = Limits::of(sandbox.daemon_pid(), "memory");
        limits.memory(most as u64);

        // Their clients read nothing.
        let mut stalled = Vec::new();
        for _ in 0..sessions() {
            stalled.push(open_session(sandbox).await.expect("there is room"));
        }
        let Err(refusal) = open_session(sandbox).await else { panic!("one too many") };
        assert!(refusal.contains("503") && refusal.contains("too many streaming sessions"), "{refusal}");
        for _ in 0..if support::long() { 20 } else { 2 } {
            large_captures(sandbox).await;
        }

        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(sandbox.wait_exit("counter").await, 7);
        assert_complete(sandbox);
        for session in stalled {
            let all = collect(session).await;
            assert_eq!((all.stdout.len(), &all.statuses[..]), (STREAMED, &[Outcome::Exited(5)][..]));
        }
        let all = sandbox.exec("idle", &["sh", "-c", "echo well; exit 3"]).await;
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"well\n"[..], &[Outcome::Exited(3)][..]));
        sandbox.run("later", &BundleSpec::shell("exit 8")).await;
        assert_eq!(sandbox.wait_exit("later").await, 8);
        assert_eq!(limits.oom_kills(), 0);
        if let Some(used) = limits.most_memory() {
            figure(
                &format!("most memory charged to a daemon that may have {} MiB (MiB)", most / MIB),
                used / MIB as u64,
            );
        }
    });
}
