//! What ends, or begins, while no engine is there.

use std::fs;

use holdfast::client::{
    Client, ClientError, ContainerInfo, ContainerState, ExecSync, ServeExec, SessionInfo, SessionKind, SessionState,
    SessionTransport,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{BundleSpec, FakeRuntime, Sandbox, collect, e2e, e2e_with, within};

/// Waits for a file and ends with a code.
fn waits(file: &str, code: u8) -> String {
    format!("while [ ! -e /{file} ]; do sleep 0.05; done; exit {code}")
}

fn sync(id: &str, script: &str) -> ExecSync {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    ExecSync { id: id.to_owned(), command, ..ExecSync::default() }
}

async fn containers(client: &Client, good: impl Fn(&[ContainerInfo]) -> bool) -> Vec<ContainerInfo> {
    within(async {
        loop {
            let entries = client.list_containers(None).await.expect("a list").entries;
            if good(&entries) {
                return entries;
            }
        }
    })
    .await
}

async fn sessions(client: &Client, good: impl Fn(&[SessionInfo]) -> bool) -> Vec<SessionInfo> {
    within(async {
        loop {
            let entries = client.list_sessions(None).await.expect("a list").entries;
            if good(&entries) {
                return entries;
            }
        }
    })
    .await
}

/// Makes a call on a connection of its own that ends as soon as `seen` has been seen on another.
async fn cut_while(sandbox: &Sandbox, call: impl AsyncFn(&Client), seen: impl Future<Output = ()>) {
    let engine = sandbox.connect().await;
    tokio::select! {
        () = call(&engine) => panic!("it waits"),
        () = seen => {}
    }
}

#[test]
fn a_container_whose_engine_died_while_the_runtime_worked_is_found_in_each_state() {
    e2e_with(FakeRuntime::install, async |sandbox| {
        let go = sandbox.path().join("go");
        let runtime = FakeRuntime::of(sandbox);
        let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
        let client = sandbox.connect().await;
        let is = |entries: &[ContainerInfo], state| matches!(entries, [only] if only.state == state);
        let create = async |id: &str| {
            let request = sandbox.create_request(id, &BundleSpec::shell("exit 5"));
            let call = async |engine: &Client| drop(engine.create_container(&request).await);
            let creating = async { drop(containers(&client, |all| is(all, ContainerState::Creating)).await) };
            cut_while(sandbox, call, creating).await;
            // The engine is gone, and the runtime goes on.
            fs::write(&go, "").expect("a file in the sandbox");
        };
        runtime.plan("create", &format!("{wait}; echo no >&2; exit 1"));
        create("failing").await;
        assert_eq!(containers(&client, <[_]>::is_empty).await, [], "a create that failed is no container");
        fs::remove_file(&go).expect("made above");
        runtime.plan("create", &wait);
        create("c").await;
        let live = containers(&client, |all| is(all, ContainerState::Live)).await;
        assert!(live[0].pid > 0 && live[0].number == 2, "{live:?}");
        sandbox.start("c");
        let exited = containers(&client, |all| is(all, ContainerState::Exited)).await;
        assert_eq!((exited[0].exit_code, exited[0].number, exited[0].pid), (Some(5), 2, live[0].pid));
    });
}

#[test]
fn ends_of_commands_that_nobody_was_told_are_kept_until_they_are_forgotten() {
    e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let client = sandbox.connect().await;
        let running = |all: &[SessionInfo]| all.iter().any(|s| s.state == SessionState::Active && s.pid > 0);
        let call = async |engine: &Client| drop(engine.exec_sync(&sync("c", &waits("go", 3))).await);
        cut_while(sandbox, call, async { drop(sessions(&client, running).await) }).await;
        // One that is told is no end to collect.
        let told = client.exec_sync(&sync("c", "exit 1")).await.expect("it runs");
        assert_eq!(told.exit_code, 1);
        // The other way: the client of a stream is a process, and is killed.
        let mut ctl = sandbox.ctl(&["exec", "c", "--", "sh", "-c", &waits("go", 4)]).spawn().expect("it was built");
        let streaming = |s: &SessionInfo| (s.kind, s.transport) == (SessionKind::Exec, SessionTransport::WebSocket);
        let is = |s: &SessionInfo, state| streaming(s) && s.state == state && s.pid > 0;
        sessions(&client, |all| all.iter().any(|s| is(s, SessionState::Active))).await;
        ctl.kill().expect("it runs");
        ctl.wait().expect("our child");
        sessions(&client, |all| all.iter().any(|s| is(s, SessionState::Detached))).await;
        fs::write(sandbox.in_rootfs("go"), "").expect("the root directory is ours");
        let ended = |all: &[SessionInfo]| all.len() == 2 && all.iter().all(|s| s.state == SessionState::Ended);
        let ends = sessions(&client, ended).await;
        let codes: Vec<_> = ends.iter().map(|end| (end.kind, end.exit_code)).collect();
        assert_eq!(codes, [(SessionKind::ExecSync, Some(3)), (SessionKind::Exec, Some(4))]);
        assert!(ends.iter().all(|end| end.ended_at.is_some_and(|time| time > end.created_at) && end.id == "c"));
        // Not the container's, which lives, nor what is not there.
        let numbers: Vec<_> = ends.iter().map(|end| end.number).chain([0, u64::MAX]).collect();
        assert_eq!(client.forget(&[1], &numbers[1..]).await.expect("forgotten"), (0, 1));
        assert_eq!(client.list_sessions(None).await.expect("a list").entries, ends[..1]);
        assert_eq!(client.forget(&[], &numbers).await.expect("forgotten"), (0, 1));
        assert_eq!(client.list_sessions(None).await.expect("a list").entries, []);
        assert_eq!(client.list_containers(Some("c")).await.expect("a list").entries.len(), 1);
    });
}

#[test]
fn a_message_that_is_half_there_when_the_engine_dies_does_nothing() {
    use crate::support::raw_rpc::{RawRpc, bootstrap, call};
    e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let message = call(1, 8, |params| {
            let params =
                params.init_as::<holdfast::client::conmon_capnp::conmon::serve_exec_container_params::Builder<'_>>();
            let mut request = params.init_request();
            request.set_id("c");
            request.set_stdout(true);
            request.init_command(1).set(0, "true");
        });
        for length in 0..message.len() {
            let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
            raw.send(&[bootstrap(0), message[..length].to_vec()].concat()).await;
        }
        let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
        raw.send(&[bootstrap(0), message].concat()).await;
        raw.reply(1).await;
        let only = |all: &[SessionInfo]| matches!(all, [one] if one.state == SessionState::Waiting);
        sessions(&sandbox.connect().await, only).await;
    });
}

#[test]
fn long_lists_come_whole_and_hold_no_secret() {
    e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle().env("PASSWORD", "secret-of-env")).await;
        let client = sandbox.connect().await;
        let mut tokens = Vec::new();
        for _ in 0..600 {
            let command = vec!["echo".to_owned(), "secret-of-argv".to_owned()];
            let exec = ServeExec { id: "c".to_owned(), command, stdout: true, ..ServeExec::default() };
            let url = client.serve_exec(&exec).await.expect("a URL");
            tokens.push(url.rsplit('/').next().expect("the token").to_owned());
        }
        let listing = client.list_sessions(None).await.expect("a list");
        assert!(listing.entries.is_sorted_by_key(|session| session.number));
        let waiting = |s: &SessionInfo| (s.kind, s.state, &*s.id) == (SessionKind::Exec, SessionState::Waiting, "c");
        assert!(listing.entries.len() == 600 && listing.entries.iter().all(waiting));
        let text = format!("{listing:?} {:?}", client.list_containers(None).await.expect("a list"));
        assert!(!text.contains("secret") && !tokens.iter().any(|token| text.contains(token)));
        assert_eq!(client.list_sessions(Some("other")).await.expect("a list").entries, []);
        let bad = client.list_sessions(Some("a/b")).await;
        assert!(matches!(bad, Err(ClientError::Refused { .. })), "{bad:?}");
    });
}

#[test]
fn holdfastctl_lists_what_there_is_and_has_ends_forgotten() {
    e2e(async |sandbox| {
        sandbox.run("ended", &BundleSpec::shell("exit 42")).await;
        sandbox.wait_exit("ended").await;
        let pid = sandbox.run("there", &BundleSpec::idle()).await;
        let session = sandbox.exec_ws("there", &["cat"]).await;
        let client = sandbox.connect().await;
        containers(&client, |all| all[0].state == ContainerState::Exited).await;
        sessions(&client, |all| all.iter().any(|s| s.pid > 0)).await;
        let print = |words: &[&str]| {
            let output = sandbox.ctl(words).output().expect("it was built");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        let rows = |text: &str| -> Vec<Vec<String>> {
            text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
        };
        let table = rows(&print(&["ps"]));
        assert_eq!(table[0], ["NUMBER", "ID", "STATE", "PID", "EXIT", "OOM", "AGE", "LOST"]);
        assert_eq!((&table[1][1..3], &*table[1][4]), (&["ended".to_owned(), "exited".to_owned()][..], "42"));
        assert_eq!(table[2][1..5], ["there", "live", &pid.to_string(), "-"]);
        let table = rows(&print(&["sessions"]));
        assert_eq!(table[1][1..5], ["exec", "active", "there", "webSocket"]);
        let json: Value = serde_json::from_str(&print(&["ps", "--json", "--forget"])).expect("JSON");
        assert_eq!((&json["entries"][0]["exitCode"], &json["dropped"]), (&42.into(), &0.into()));
        assert_eq!(rows(&print(&["ps"])).len(), 2, "the exit is forgotten, the other container is there");
        let json: Value = serde_json::from_str(&print(&["sessions", "--json"])).expect("JSON");
        assert_eq!(json["entries"][0]["kind"], "exec");
        drop(session);
    });
}

#[test]
fn a_stream_whose_engine_and_container_end_at_once_tells_its_client() {
    e2e(async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        let engine = sandbox.connect().await;
        let command = ["sh", "-c", "echo last; kill -9 $$"].map(str::to_owned).into();
        let exec = ServeExec { id: "c".to_owned(), command, stdout: true, ..ServeExec::default() };
        let url = engine.serve_exec(&exec).await.expect("a URL");
        drop(engine);
        let session = holdfast::client::StreamClient::connect(&url, &holdfast::client::STREAM_PROTOCOLS).await;
        let all = collect(session.expect("the URL outlives its engine")).await;
        assert_eq!(
            (&all.stdout[..], &all.statuses[..]),
            (&b"last\n"[..], &[holdfast::model::Outcome::Exited(137)][..])
        );
        kill(Pid::from_raw(i32::try_from(pid).expect("positive")), Signal::SIGKILL).expect("it runs");
        assert_eq!(sandbox.wait_exit("c").await, 137);
        let gone = |all: &[SessionInfo]| all.is_empty();
        sessions(&sandbox.connect().await, gone).await;
        let exited = containers(&sandbox.connect().await, |all| all[0].state == ContainerState::Exited).await;
        assert_eq!(exited[0].exit_code, Some(137));
    });
}
