//! Too many of something that is harmless alone.

use std::{
    io::{ErrorKind, Read as _},
    os::unix::net::UnixStream,
};

use futures_util::future::join_all;
use holdfast::client::{CreateContainer, ExecSync};
use tokio::time::timeout;

use crate::support::{
    BundleSpec, DEADLINE, FakeRuntime, beside_a_neighbour, eventually, raise_file_limit,
    raw_rpc::{RawRpc, Reply, bootstrap, call},
};

#[test]
fn a_crowd_that_sends_nothing_gives_way_to_those_who_do() {
    raise_file_limit();
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("1100 silent connections", async || {
                let socket = sandbox.runtime_dir().join("conmon.sock");
                let mut silent: Vec<_> = (0..1100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
                for stream in &silent {
                    stream.set_nonblocking(true).unwrap();
                }
                sandbox.connect().await.version(false).await.unwrap();
                eventually("the end of the oldest", || silent[0].read(&mut [0]).is_ok_and(|n| n == 0).then_some(()))
                    .await;
                let youngest = silent.last_mut().unwrap().read(&mut [0]);
                assert!(youngest.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "the youngest was closed");
                // With the crowd still there.
                sandbox.connect().await.version(false).await.unwrap();
            })
            .await;
    });
}

#[test]
fn hundreds_of_calls_at_once_are_all_answered() {
    beside_a_neighbour(async |sandbox, neighbour| {
        // A real exec costs far more than what is tested here.
        let fake = FakeRuntime::of(sandbox);
        fake.plan("exec", "echo ran; sleep 0.2 <&- >&- 2>&- & echo $! > \"$pidfile\"; exit 0");
        neighbour
            .undisturbed("300 calls on one connection", async || {
                let client = sandbox.connect().await;
                let exec = ExecSync { id: "neighbour".into(), command: vec!["x".into()], ..ExecSync::default() };
                let execs = timeout(DEADLINE * 2, join_all((0..300).map(|_| client.exec_sync(&exec)))).await;
                for reply in execs.expect("all are answered in time") {
                    let reply = reply.unwrap();
                    assert_eq!((reply.exit_code, &reply.stdout[..]), (0, &b"ran\n"[..]), "{reply:?}");
                }
                let versions = timeout(DEADLINE, join_all((0..2000).map(|_| client.version(false)))).await;
                assert!(versions.expect("all are answered in time").iter().all(Result::is_ok));
            })
            .await;
    });
}

#[test]
fn calls_whose_client_goes_away_leave_nothing() {
    beside_a_neighbour(async |sandbox, neighbour| {
        FakeRuntime::of(sandbox).plan("exec", "sleep 0.3");
        neighbour
            .undisturbed("100 abandoned calls", async || {
                let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                raw.send(&bootstrap(0)).await;
                for question in 1..=100 {
                    raw.send(&call(question, 2, |params| {
                        use holdfast::client::conmon_capnp::conmon::exec_sync_container_params::Builder;
                        let mut request = params.init_as::<Builder<'_>>().init_request();
                        request.set_id("neighbour");
                        request.init_command(1).set(0, "true");
                    }))
                    .await;
                }
                assert_eq!(raw.reply(0).await, Reply::Results);
            })
            .await;
    });
}

#[test]
fn a_list_of_100_000_entries_is_taken_or_cleanly_refused() {
    beside_a_neighbour(async |sandbox, neighbour| {
        // Every entry is a string of its own, several times on its way to the runtime's argv.
        neighbour.growth_kib = 24 << 10;
        let client = sandbox.client();
        let many = vec!["word".to_owned(); 100_000];
        let exec = ExecSync {
            id: "neighbour".into(),
            command: ["true".to_owned()].into_iter().chain(many.clone()).collect(),
            ..ExecSync::default()
        };
        let reply =
            neighbour.undisturbed("a long command", async || timeout(DEADLINE, client.exec_sync(&exec)).await).await;
        let reply = reply.expect("an answer in time").unwrap();
        assert!([0, -2].contains(&reply.exit_code), "{}", reply.exit_code);
        let huge = ExecSync { command: vec!["true".into(), "x".repeat(3 << 20)], ..exec };
        let reply =
            neighbour.undisturbed("a long word", async || timeout(DEADLINE, client.exec_sync(&huge)).await).await;
        let reply = reply.expect("an answer in time").unwrap();
        let stderr = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert!(reply.exit_code == -2 && stderr.contains("too long"), "{} {stderr}", reply.exit_code);
        let create = |request: CreateContainer| {
            let client = &client;
            async move { timeout(DEADLINE, client.create_container(&request)).await.expect("an answer in time") }
        };
        let good = sandbox.create_request("victim", &BundleSpec::shell("exit 5"));
        neighbour
            .undisturbed("100 000 variables", async || {
                let env = (0..100_000).map(|n| (format!("V{n}"), String::new())).collect();
                let made = create(CreateContainer { env, ..good.clone() }).await;
                let refused = made.as_ref().is_err_and(|error| error.to_string().contains("too long"));
                assert!(made.is_ok() || refused, "{made:?}");
                if made.is_ok() {
                    sandbox.start("victim");
                    assert_eq!(sandbox.wait_exit("victim").await, 5);
                    sandbox.runtime(&["delete", "--force", "victim"]);
                }
            })
            .await;
        assert!(client.is_connected());
    });
}
