//! Commands in a container, with a client and without, whose whole output and status are checked.

use holdfast::{
    client::{ExecSync, ServeExec, StreamMessage},
    model::{Outcome, WindowSize},
};

use crate::{
    load::{IDLE, Load, moment, numbers, same},
    memory::Kind,
    random::Random,
    support::{collect, raw_ws::Http, raw_ws::UPGRADE, within},
};

/// What an execSync keeps of each stream; docs/ARCHITECTURE.md.
const STREAM_LIMIT: usize = 16 << 20;

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).into()
}

fn sync(script: &str) -> ExecSync {
    ExecSync { id: IDLE.to_owned(), command: shell(script), ..ExecSync::default() }
}

fn streamed(script: &str) -> ServeExec {
    ServeExec { id: IDLE.to_owned(), command: shell(script), stdout: true, stderr: true, ..ServeExec::default() }
}

/// An execSync: both streams and the code.
pub(crate) async fn short(load: &Load<'_>, random: &mut Random) {
    let (from, lines, code) = (random.of(1..100_000), random.of(1..20_000), random.of(0..256));
    let terminal = random.percent(20);
    let script = format!("echo begin >&2; seq {from} {}; exit {code}", from + lines - 1);
    let exec = ExecSync { terminal, timeout_s: if random.percent(30) { 60 } else { 0 }, ..sync(&script) };
    let _counted = (load.count(Kind::ExecSync), load.count(Kind::Launch));
    let reply = within(load.sandbox.client().exec_sync(&exec)).await.expect("a reply");
    let wanted = numbers(from, from + lines - 1);
    if terminal {
        let plain: Vec<u8> = reply.stdout.iter().copied().filter(|byte| *byte != b'\r').collect();
        same("an execSync with a terminal", &plain, &[b"begin\n", &wanted[..]].concat());
    } else {
        same("an execSync", &reply.stdout, &wanted);
        same("an execSync's stderr", &reply.stderr, b"begin\n");
    }
    assert_eq!((reply.exit_code, reply.timed_out), (i32::try_from(code).expect("small"), false));
    load.did("execSyncs");
}

/// One that takes too long.
pub(crate) async fn expiring(load: &Load<'_>, _: &mut Random) {
    let exec = ExecSync { timeout_s: 1, ..sync("echo before; (setsid sleep 1000 &); sleep 1000") };
    let _counted = (load.count(Kind::ExecSync), load.count(Kind::Launch));
    let reply = within(load.sandbox.client().exec_sync(&exec)).await.expect("a reply");
    // On a busy machine it may not even have begun.
    assert!([&b""[..], b"before\n"].contains(&&reply.stdout[..]), "{reply:?}");
    assert_eq!((reply.exit_code, reply.timed_out), (-3, true), "{reply:?}");
    load.did("execSyncs that run into their limit");
}

/// One that writes more than a reply may carry.
pub(crate) async fn beyond(load: &Load<'_>, _: &mut Random) {
    let exec = sync("head -c 20000000 /dev/zero; exit 5");
    let _counted = (load.count(Kind::Capture), load.count(Kind::ExecSync), load.count(Kind::Launch));
    let reply = within(load.sandbox.client().exec_sync(&exec)).await.expect("a reply");
    assert_eq!((reply.exit_code, reply.stdout.len()), (5, STREAM_LIMIT));
    assert!(reply.stdout.iter().all(|byte| *byte == 0));
    assert!(!reply.stderr.is_empty(), "the reply tells that something is missing");
    load.did("execSyncs beyond their limit");
}

/// An exec with a client that reads all; its URL is good for no second one.
pub(crate) async fn output(load: &Load<'_>, random: &mut Random) {
    let (from, lines, code) = (random.of(1..100_000), random.of(1..100_000), random.of(0..256));
    let exec = streamed(&format!("echo begin >&2; seq {from} {}; exit {code}", from + lines - 1));
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let session = load.exec(random, &exec).await;
    let all = collect(session).await;
    same("an exec", &all.stdout, &numbers(from, from + lines - 1));
    same("an exec's stderr", &all.stderr, b"begin\n");
    assert_eq!(all.statuses, [Outcome::Exited(u8::try_from(code).expect("small"))]);
    load.did("streamed execs");
}

/// A URL used twice.
pub(crate) async fn reused(load: &Load<'_>, _: &mut Random) {
    let exec = streamed("exit 0");
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch), load.count(Kind::Connection));
    let url = within(load.sandbox.client().serve_exec(&exec)).await.expect("a URL");
    let offers = holdfast::client::STREAM_PROTOCOLS;
    let session = within(holdfast::client::StreamClient::connect(&url, &offers)).await.expect("a session");
    for _ in 0..2 {
        let mut http = Http::connect(&url).await;
        let path = http.path.clone();
        assert_eq!(http.request("GET", &path, &UPGRADE).await.status, 404, "a token used before");
    }
    assert_eq!(collect(session).await.statuses, [Outcome::Exited(0)]);
    load.did("tokens used again");
}

/// Stdin, its end, and what comes back.
pub(crate) async fn input(load: &Load<'_>, random: &mut Random) {
    let bytes = random.bytes_of(1..1_000_000);
    let size = random.of(1_000..60_000) as usize;
    let exec = ServeExec { stdin: true, ..streamed("cat; exit 9") };
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let (mut sender, mut receiver) = load.exec(random, &exec).await.split();
    let send = async {
        for piece in bytes.chunks(size) {
            sender.send_stdin(piece).await.expect("the session is open");
        }
        sender.close_stdin().await.expect("v5, or SPDY");
        // Dropped at the end of the session, since that says good-bye.
        sender
    };
    let (_sender, all) = within(async { tokio::join!(send, receiver.collect()) }).await;
    let all = all.expect("the session keeps to the protocol");
    same("what came back", &all.stdout, &bytes);
    assert_eq!(all.statuses, [Outcome::Exited(9)]);
    load.did("execs with stdin");
}

/// A terminal that changes its size.
pub(crate) async fn terminal(load: &Load<'_>, random: &mut Random) {
    let size = WindowSize {
        cols: u16::try_from(random.of(10..500)).expect("small"),
        rows: u16::try_from(random.of(10..500)).expect("small"),
    };
    let script = format!(
        "until [ \"$(stty size)\" = '{} {}' ]; do sleep 0.02; done; read x; echo got $x; exit 4",
        size.rows, size.cols
    );
    let exec = ServeExec { stdin: true, tty: true, stderr: false, ..streamed(&script) };
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let mut session = load.exec(random, &exec).await;
    for _ in 0..random.of(0..20) {
        session.resize(WindowSize { cols: 5, rows: 5 }).await.expect("open");
    }
    session.resize(size).await.expect("open");
    session.send_stdin(b"word\n").await.expect("open");
    let all = collect(session).await;
    assert!(String::from_utf8_lossy(&all.stdout).contains("got word\r\n"), "{all:?}");
    assert_eq!(all.statuses, [Outcome::Exited(4)]);
    load.did("terminals");
}

/// A client that breaks off: at once, in the middle, or after it has not read for a while.
pub(crate) async fn broken_off(load: &Load<'_>, random: &mut Random) {
    let script = ["yes", "sleep 2", "cat", "yes >&2"][random.of(0..4) as usize];
    let exec = ServeExec { stdin: true, ..streamed(script) };
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let mut session = load.exec(random, &exec).await;
    for _ in 0..random.of(0..30) {
        let piece = random.bytes_of(1..10_000);
        // What `yes` fills, nobody empties: then the server stops reading, too.
        let sent = crate::load::at_most(random.pause(10..200), session.send_stdin(&piece)).await;
        if !matches!(sent, Some(Ok(()))) {
            break;
        }
        if let Some(Ok(StreamMessage::Closed { .. })) =
            crate::load::at_most(std::time::Duration::from_millis(5), session.next()).await
        {
            break;
        }
    }
    moment(random, 0..1000).await;
    drop(session);
    load.did("execs whose client breaks off");
}

/// A call whose client has gone.
pub(crate) async fn abandoned(load: &Load<'_>, random: &mut Random) {
    let _counted = (load.count(Kind::ExecSync), load.count(Kind::Launch), load.count(Kind::Control));
    let client = load.sandbox.connect().await;
    let exec = sync("seq 1 10000; sleep 0.2");
    let call = client.exec_sync(&exec);
    drop(crate::load::at_most(random.pause(0..200), call).await);
    drop(client);
    load.did("calls whose client has gone");
}
