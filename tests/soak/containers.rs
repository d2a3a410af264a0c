//! Containers that come and go, and whether their logs, exit codes and watchers agree.

use std::{fs, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use holdfast::{
    client::{ClientError, LogDriver, LogDriverKind, ServeAttach},
    model::{Outcome, StdStream},
};
use serde_json::json;

use crate::{
    load::{CHATTER, Load, moment, numbers, same},
    memory::Kind,
    random::Random,
    support::{BundleSpec, RawAttach, collect, parse_log, text_of, within},
};

/// One that is attached to before its start: its log and every watcher have all it wrote, its exit file its code.
pub(crate) async fn watched(load: &Load<'_>, random: &mut Random) {
    let id = &load.id();
    // Less than a watcher's queue, so that none may be cut off however busy this machine is.
    let (from, lines, code) = (random.of(1..100_000), random.of(1..10_000), random.of(0..200));
    let terminal = random.percent(30);
    let script = format!("seq {from} {}; exit {code}", from + lines - 1);
    let mut spec = BundleSpec::shell(&script);
    spec.terminal = terminal;
    let _container = load.create(&load.sandbox.create_request(id, &spec)).await;
    let mut sessions = Vec::new();
    for _ in 0..random.of(0..4) {
        let attach = ServeAttach { id: id.clone(), stdin: false, stdout: true, stderr: !terminal };
        let counted = load.count(Kind::Attach);
        let mut session = load.attach(random, &attach, terminal).await;
        // On a WebSocket the server says when it is ready, over SPDY by its answer to each stream.
        if session.protocol().is_some_and(|name| name.starts_with("v5")) {
            within(session.next()).await.expect("the server begins with an empty message");
        }
        sessions.push((session, counted));
    }
    let listening = random.percent(40);
    let mut packets = None;
    if listening {
        let counted = load.count(Kind::Attach);
        packets = Some((load.sandbox.attach_raw(id, false).await, counted));
    }
    load.start(id).await;
    let watchers = join_all(sessions.into_iter().map(async |(session, counted)| (collect(session).await, counted)));
    let packets = async {
        match packets {
            Some((client, counted)) => Some((client.collect().await, counted)),
            None => None,
        }
    };
    let (watched, packets, exit) = tokio::join!(watchers, packets, load.sandbox.wait_exit(id));
    assert_eq!(exit, i32::try_from(code).expect("small"), "the code of {script}");
    let wanted = numbers(from, from + lines - 1);
    let plain = |bytes: &[u8]| bytes.iter().copied().filter(|byte| *byte != b'\r').collect::<Vec<u8>>();
    same("the log", &plain(&load.logged(id)), &wanted);
    for (all, _counted) in watched {
        same("a watcher", &plain(&all.stdout), &wanted);
        assert_eq!((all.statuses, &all.stderr[..]), (vec![Outcome::Exited(0)], &b""[..]), "a watcher");
    }
    if let Some((all, _counted)) = packets {
        same("a watcher at the attach socket", &plain(&all.stdout), &wanted);
        assert_eq!((all.done, &all.stderr[..]), (1, &b""[..]), "a watcher at the attach socket");
    }
    load.remove(id).await;
    load.did("containers with watchers");
}

/// One that writes much beside watchers who never read, or break off.
pub(crate) async fn loud(load: &Load<'_>, random: &mut Random) {
    let id = &load.id();
    let (from, lines) = (random.of(1..1000), random.of(50_000..150_000));
    let spec = BundleSpec::shell(&format!("seq {from} {}", from + lines - 1));
    let mut request = load.sandbox.create_request(id, &spec);
    let second = load.sandbox.container(id).join("json");
    if random.percent(30) {
        request.log_drivers.push(LogDriver { kind: LogDriverKind::Json, path: second.clone(), max_size: 0 });
    }
    let (_container, _for_the_second_log) = (load.create(&request).await, load.count(Kind::Container));
    let mut stalled = Vec::new();
    for _ in 0..random.of(0..3) {
        let attach = ServeAttach { id: id.clone(), stdin: false, stdout: true, stderr: true };
        stalled.push((load.attach(random, &attach, false).await, load.count(Kind::Attach)));
    }
    let path = load.sandbox.listen(id, false).await;
    let silent = RawAttach::connect(&path).expect("the container listens");
    let _silent = load.count(Kind::Attach);
    load.start(id).await;
    if random.percent(50) {
        moment(random, 0..200).await;
        stalled.clear();
    }
    assert_eq!(load.sandbox.wait_exit(id).await, 0);
    let wanted = numbers(from, from + lines - 1);
    same("a long log", &load.logged(id), &wanted);
    if let Ok(json) = fs::read(&second) {
        assert_eq!(json.iter().filter(|byte| **byte == b'\n').count(), lines as usize, "lines of the second log");
    }
    drop((stalled, silent));
    load.remove(id).await;
    load.did("containers with much output");
}

/// A log that is renamed and reopened while it is written, as the kubelet does: no gap and no double.
pub(crate) async fn rotated(load: &Load<'_>, random: &mut Random) {
    let id = &load.id();
    let rounds = random.of(5..20);
    let script =
        format!("i=0; while [ $i -lt {rounds} ]; do seq $((i*1000+1)) $((i*1000+1000)); i=$((i+1)); sleep 0.02; done");
    let _container = load.create(&load.sandbox.create_request(id, &BundleSpec::shell(&script))).await;
    load.start(id).await;
    let log = load.sandbox.log_path(id);
    let mut moved: Vec<PathBuf> = Vec::new();
    for number in 0..random.of(1..6) {
        moment(random, 1..100).await;
        let old = log.with_extension(number.to_string());
        fs::rename(&log, &old).expect("the log is there");
        moved.push(old);
        match within(load.sandbox.client().reopen_log(id)).await {
            Ok(()) => assert!(log.exists(), "there when the call answers"),
            // It has ended meanwhile.
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("not-found:") || text.ends_with("is closed"), "{text}");
                break;
            }
        }
    }
    assert_eq!(load.sandbox.wait_exit(id).await, 0);
    moved.push(log);
    let read = |path: &PathBuf| fs::read(path).map(|log| text_of(&parse_log(&log), StdStream::Stdout));
    let all: Vec<u8> = moved.iter().filter_map(|path| read(path).ok()).flatten().collect();
    same("a rotated log", &all, &numbers(1, rounds * 1000));
    load.remove(id).await;
    load.did("rotated logs");
}

/// Killed for lack of memory, and marked as such.
pub(crate) async fn too_large(load: &Load<'_>, _: &mut Random) {
    let id = &load.id();
    let limit = json!({ "linux": { "resources": { "memory": { "limit": 8 << 20, "swap": 8 << 20 } } } });
    let spec = BundleSpec::shell("tail -c 1000000000 /dev/zero").with(limit);
    let _container = load.create(&load.sandbox.create_request(id, &spec)).await;
    load.start(id).await;
    assert_eq!(load.sandbox.wait_exit(id).await, 137);
    assert!(load.sandbox.oom_path(id).exists(), "no OOM file for {id}");
    load.remove(id).await;
    load.did("containers killed for lack of memory");
}

/// A create that fails with the runtime's reason, after which its id is free.
pub(crate) async fn failing(load: &Load<'_>, _: &mut Random) {
    let id = &load.id();
    let _launch = load.count(Kind::Launch);
    let request = load.sandbox.create_request(id, &BundleSpec::new(&["no-such-program"]));
    match within(load.sandbox.client().create_container(&request)).await {
        Err(ClientError::Refused { reason, .. }) => assert!(reason.contains("no-such-program"), "{reason}"),
        other => panic!("not refused: {other:?}"),
    }
    let unknown = within(load.sandbox.client().reopen_log(id)).await;
    assert!(unknown.is_err_and(|error| error.to_string().contains("not-found:")), "the id is still registered");
    load.remove(id).await;
    load.did("creates that fail");
}

/// Whose log has no room: it ends as if nothing were wrong, and its watchers have everything.
pub(crate) async fn unlogged(load: &Load<'_>, random: &mut Random) {
    let id = &load.id();
    let (from, code) = (random.of(1..1000), random.of(0..200));
    let spec = BundleSpec::shell(&format!("seq {from} {} && exit {code}", from + 19_999));
    let mut request = load.sandbox.create_request(id, &spec);
    let log = load.sandbox.path().join("small").join(id);
    request.log_drivers = vec![LogDriver { kind: LogDriverKind::Cri, path: log.clone(), max_size: 0 }];
    let _container = load.create(&request).await;
    let attach = ServeAttach { id: id.clone(), stdin: false, stdout: true, stderr: true };
    let _attach = load.count(Kind::Attach);
    let session = load.attach(random, &attach, false).await;
    load.start(id).await;
    let (all, exit) = tokio::join!(collect(session), load.sandbox.wait_exit(id));
    assert_eq!(exit, i32::try_from(code).expect("small"));
    same("the watcher of one without a log", &all.stdout, &numbers(from, from + 19_999));
    fs::remove_file(&log).expect("a log was made");
    load.remove(id).await;
    load.did("logs without room");
}

/// One whose client has gone before the answer: it is made all the same.
pub(crate) async fn abandoned(load: &Load<'_>, random: &mut Random) {
    let id = &load.id();
    let request = load.sandbox.create_request(id, &BundleSpec::shell("exit 3"));
    let _counted = (load.count(Kind::Container), load.count(Kind::Launch), load.count(Kind::Control));
    let client = load.sandbox.connect().await;
    // The call has been sent with the answer to another that came after it.
    {
        let create = client.create_container(&request);
        let version = async {
            within(client.version(false)).await.expect("version never fails");
            moment(random, 0..50).await;
        };
        tokio::pin!(create);
        tokio::select! {
            biased;
            created = &mut create => { created.expect("a container"); }
            () = version => {}
        }
    }
    drop(client);
    let registered = async {
        while load.sandbox.client().reopen_log(id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(registered).await;
    load.start(id).await;
    assert_eq!(load.sandbox.wait_exit(id).await, 3);
    load.remove(id).await;
    load.did("creates whose client has gone");
}

/// Watchers of one that never stops writing: fast, slow, stalled; all break off.
pub(crate) async fn chatter(load: &Load<'_>, random: &mut Random) {
    let _attach = load.count(Kind::Attach);
    let attach = ServeAttach { id: CHATTER.to_owned(), stdin: false, stdout: true, stderr: true };
    let mut session = load.attach(random, &attach, false).await;
    let (pace, rounds) = (random.of(0..3), random.of(1..100));
    for _ in 0..rounds {
        // Who is too slow is told so and closed.
        match within(session.next()).await {
            Ok(holdfast::client::StreamMessage::Stdout(_)) => {}
            Ok(_) => break,
            Err(error) => panic!("a watcher of the chatter: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(u64::from(pace * 20))).await;
    }
    if pace == 2 {
        moment(random, 100..2000).await;
    }
    drop(session);
    load.did("watchers that break off");
}
