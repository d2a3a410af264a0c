//! What a caller's trace context does (control-api 7): log lines carry its number; with the feature `otel` calls are exported.

use std::{fs, fs::File, process::Command};

use holdfast::client::{Client, conmon_capnp::conmon};
use nix::sys::signal::Signal;

use support::{
    Background, eventually,
    raw_rpc::{RawRpc, Reply, bootstrap, call},
    within,
};

#[cfg(feature = "otel")]
mod otel;
#[path = "../support/mod.rs"]
mod support;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-b7ad6b7169203331-{flags}")
}

/// A daemon whose own log, at this level, goes to the file `log`.
fn logging(level: &str, configure: impl FnOnce(&mut Command)) -> Background {
    let mut daemon = Background::new("run");
    let mut command = daemon.command();
    let [log, stderr] = ["log", "stderr"].map(|name| File::create(daemon.path().join(name)).expect("ours"));
    // Files, not pipes: a daemon that logs to standard output keeps both.
    command.args(["--log-driver", "stdout", "--log-level", level]).stdout(log).stderr(stderr);
    configure(&mut command);
    assert!(daemon.start(&mut command).status.success());
    assert_eq!(fs::read_to_string(daemon.path().join("stderr")).expect("made just now"), "");
    daemon
}

fn log(daemon: &Background) -> String {
    fs::read_to_string(daemon.path().join("log")).expect("made before the daemon")
}

/// An execSync of a runtime that is none, as which the trace that it is told.
async fn failing_exec(client: &Client, traceparent: Option<&str>) {
    let mut request = client.conmon().exec_sync_container_request();
    let mut fields = request.get().init_request();
    fields.set_id("nobody");
    fields.reborrow().init_command(1).set(0, "true");
    if let Some(value) = traceparent {
        let mut metadata = fields.init_metadata(2);
        metadata.reborrow().get(0).set_key("baggage");
        metadata.reborrow().get(1).set_key("traceparent");
        metadata.get(1).set_value(value);
    }
    within(request.send().promise).await.expect("a runtime that fails is no failure of the call");
}

#[test]
fn what_the_log_says_about_a_call_carries_the_number_of_its_trace() {
    support::run(async {
        let daemon = logging("debug", |_| {});
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        failing_exec(&client, None).await;
        failing_exec(&client, Some("00-nonsense")).await;
        failing_exec(&client, Some(&traceparent("00"))).await;
        let failures = || {
            let log = log(&daemon);
            let lines: Vec<_> = log.lines().filter(|line| line.contains("exec failed")).map(str::to_owned).collect();
            (lines.len() == 3).then_some(lines)
        };
        let lines = eventually("three failed execs in the log", failures).await;
        let traced: Vec<_> = lines.iter().map(|line| line.contains(&format!("trace_id={TRACE}"))).collect();
        assert_eq!(traced, [false, false, true], "{lines:?}");
    });
}

#[test]
fn metadata_never_fails_a_call() {
    type Fill = fn(conmon::version_request::Builder<'_>);
    let cases: [(&str, Fill); 7] = [
        ("no entries", |request| _ = request.init_metadata(0)),
        ("an entry without key and value", |request| _ = request.init_metadata(1)),
        ("keys and values that are not UTF-8", |request| {
            let mut metadata = request.init_metadata(2);
            metadata.reborrow().get(0).set_key(capnp::text::Reader(b"\xff\xfe"));
            metadata.reborrow().get(0).set_value(capnp::text::Reader(b"\xc3"));
            metadata.reborrow().get(1).set_key("traceparent");
            metadata.get(1).set_value(capnp::text::Reader(&[0xff; 55]));
        }),
        ("a traceparent with NUL", |request| {
            let mut entry = request.init_metadata(1).get(0);
            entry.set_key("traceparent");
            entry.set_value("00-\0");
        }),
        ("the same key often", |request| {
            let mut metadata = request.init_metadata(100);
            for index in 0..100 {
                metadata.reborrow().get(index).set_key("traceparent");
            }
        }),
        ("a value of a megabyte", |request| {
            let mut entry = request.init_metadata(1).get(0);
            entry.set_key("traceparent");
            entry.set_value("0".repeat(1 << 20));
        }),
        ("100 000 entries", |request| {
            let mut metadata = request.init_metadata(100_000);
            for index in 0..100_000 {
                metadata.reborrow().get(index).set_key("k");
                metadata.reborrow().get(index).set_value("v");
            }
        }),
    ];
    support::run(async {
        let daemon = logging("info", |_| {});
        let mut raw = RawRpc::connect(&daemon.runtime_dir).await;
        raw.send(&bootstrap(0)).await;
        for (question, (what, fill)) in (1..).zip(cases) {
            let version = call(question, 0, |params| {
                fill(params.init_as::<conmon::version_params::Builder<'_>>().init_request());
            });
            raw.send(&version).await;
            assert_eq!(raw.reply(question).await, Reply::Results, "{what}");
        }
        // A list that is none: the pointer says that it is a capability.
        let mut broken = call(99, 0, |params| {
            let request = params.init_as::<conmon::version_params::Builder<'_>>().init_request();
            request.init_metadata(1).get(0).set_key("MARKER");
        });
        // A composite list (7) of two words, as it stands in its pointer's upper half.
        let list = (2u32 << 3 | 7).to_le_bytes();
        let at = broken.chunks(8).rposition(|word| word[4..] == list && word[0] & 3 == 1).expect("it is in there") * 8;
        broken[at..at + 8].copy_from_slice(&3u64.to_le_bytes());
        raw.send(&broken).await;
        assert_eq!(raw.reply(99).await, Reply::Results, "a capability instead of a list");
    });
}

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_an_exporter_starts_all_the_same_and_says_so_once() {
    support::run(async {
        let mut daemon = logging("warn", |command| {
            command.args(["--enable-tracing", "--tracing-endpoint", "http://192.0.2.1:4317"]);
        });
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        failing_exec(&client, Some(&traceparent("01"))).await;
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        let log = log(&daemon);
        assert!(log.lines().count() == 1 && log.contains("without the feature otel"), "{log}");
    });
}
