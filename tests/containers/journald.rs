//! control-api 6.3 and 10 with a real journald, which most of the time is none of ours.

use std::path::Path;

use holdfast::client::{CreateContainer, LogDriver, LogDriverKind};
use serde_json::{Value, json};

use crate::support::{self, BundleSpec, Sandbox, eventually, journal::Journal};

async fn run(sandbox: &Sandbox, id: &str, spec: &BundleSpec) {
    let journald = LogDriver { kind: LogDriverKind::Journald, path: Path::new("").into(), max_size: 0 };
    let request = CreateContainer { log_drivers: vec![journald], ..sandbox.create_request(id, spec) };
    sandbox.client().create_container(&request).await.expect("created");
    sandbox.start(id);
    assert_eq!(sandbox.wait_exit(id).await, 0);
}

fn with_journald(test: impl AsyncFnOnce(&Sandbox, &support::journal::Journald<'_>)) {
    let journal = Journal::new();
    support::e2e_with(
        |daemon| journal.surround(daemon),
        async |sandbox| {
            if let Some(journald) = journal.start().await {
                test(sandbox, &journald).await;
            }
        },
    );
}

#[test]
fn the_last_two_entries_under_our_name_are_the_two_lines_of_the_container() {
    with_journald(async |sandbox, journald| {
        let spec = BundleSpec::shell("echo hello; echo world");
        for (id, spec) in [("pipes", spec.clone()), ("terminal", spec.terminal())] {
            run(sandbox, id, &spec).await;
            let last = || journald.read(&["-n2", "_COMM=conmonrs"]);
            let told =
                |text: &str| text.contains(&format!("{id}[")) && text.contains("hello") && text.contains("world");
            eventually("both lines", || told(&last()).then_some(())).await;
            assert_eq!(last().lines().count(), 2, "{}", last());
        }
    });
}

#[test]
fn journalctl_finds_entries_by_container_and_gives_back_every_byte() {
    with_journald(async |sandbox, journald| {
        let script = "echo first; echo; printf 'a\\0b\\377\\n'; echo '<2>critical' >&2; \
                      head -c 40000 /dev/zero | tr '\\0' x; echo; printf end";
        let name = json!({ "annotations": { "io.kubernetes.cri-o.Name": "k8s_web" } });
        run(sandbox, "0123456789abcdef", &BundleSpec::shell(script).with(name)).await;
        let entries = || -> Vec<Value> {
            let text = journald.read(&["-o", "json", "--all", "CONTAINER_ID_FULL=0123456789abcdef"]);
            text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect()
        };
        let entries = eventually("all entries", || Some(entries()).filter(|all| all.len() == 8)).await;
        for entry in &entries {
            assert_eq!(entry["CONTAINER_ID"], "0123456789ab");
            assert_eq!((&entry["CONTAINER_NAME"], &entry["SYSLOG_IDENTIFIER"]), (&json!("k8s_web"), &json!("k8s_web")));
        }
        let of = |stream: &str| entries.iter().filter(|e| e["CONTAINER_STREAM"] == stream).collect::<Vec<_>>();
        let [critical] = of("stderr")[..] else { panic!("one line: {entries:?}") };
        assert_eq!((&critical["MESSAGE"], &critical["PRIORITY"]), (&json!("critical"), &json!("2")));
        let stdout = of("stdout");
        let x = |count| json!("x".repeat(count));
        let messages =
            [json!("first"), json!(""), json!(b"a\0b\xff"), x(16384), x(16384), x(40000 - 32768), json!("end")];
        assert!(stdout.iter().map(|entry| &entry["MESSAGE"]).eq(&messages), "{stdout:?}");
        let partial: Vec<_> = stdout.iter().map(|entry| entry["CONTAINER_PARTIAL_MESSAGE"] == "true").collect();
        assert_eq!(partial, [false, false, false, true, true, false, true]);
    });
}
