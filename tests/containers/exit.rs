//! control-api 5: what is known when, at the end of a container.

use std::{fs, os::unix::fs::MetadataExt as _};

use serde_json::json;

use crate::support::{self, BundleSpec, eventually};

#[test]
fn the_exit_file_holds_the_code_or_128_plus_the_signal_and_nothing_else() {
    support::e2e(async |sandbox| {
        for code in [0, 1, 42, 255] {
            let id = format!("code-{code}");
            sandbox.run(&id, &BundleSpec::shell(&format!("exit {code}"))).await;
            sandbox.wait_exit(&id).await;
            assert_eq!(fs::read_to_string(sandbox.exit_path(&id)).expect("it is there"), code.to_string());
        }
        for (signal, code) in [("KILL", 137)] {
            sandbox.run(signal, &BundleSpec::shell("while :; do sleep 1; done")).await;
            sandbox.runtime(&["kill", signal, signal]);
            assert_eq!(sandbox.wait_exit(signal).await, code);
        }
    });
}

#[test]
fn a_container_that_was_never_started_exits_when_it_is_deleted() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::idle()).await;
        sandbox.runtime(&["delete", "--force", "c"]);
        assert_eq!(sandbox.wait_exit("c").await, 137);
    });
}

#[test]
fn exit_files_are_renamed_into_place_the_last_of_the_request_first() {
    support::e2e(async |sandbox| {
        let mut request = sandbox.create_request("c", &BundleSpec::shell("exit 7"));
        let dir = sandbox.path().join("exits");
        fs::create_dir(&dir).expect("our directory");
        // So many that the renames take longer than a tick of the file system's clock.
        request.exit_paths = (0..400).map(|n| dir.join(format!("{n:03}"))).collect();
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        eventually("the first exit file", || request.exit_paths[0].exists().then_some(())).await;
        assert!(request.exit_paths.iter().all(|path| fs::read(path).is_ok_and(|code| code == b"7")));
        let times = request.exit_paths.iter().map(|path| path.metadata().expect("it is there"));
        let times: Vec<_> = times.map(|file| (file.ctime(), file.ctime_nsec())).collect();
        assert!(times.is_sorted_by(|a, b| a >= b) && times.first() > times.last(), "{times:?}");
        assert_eq!(fs::read_dir(dir).expect("our directory").count(), 400, "no temporary file is left");
    });
}

#[test]
fn an_exit_file_that_cannot_be_written_does_not_stop_the_others_or_the_cleanup_command() {
    support::e2e(async |sandbox| {
        let mut request = sandbox.create_request("c", &BundleSpec::shell("exit 7"));
        let taken = sandbox.path().join("taken");
        fs::create_dir_all(taken.join("here")).expect("our directory");
        let missing = sandbox.path().join("missing/exit");
        request.exit_paths = vec![sandbox.exit_path("c"), missing, taken, sandbox.path().join("other")];
        let cleaned = sandbox.path().join("cleaned");
        request.cleanup_command = vec!["touch".to_owned(), cleaned.to_str().expect("UTF-8").to_owned()];
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 7);
        assert_eq!(fs::read(sandbox.path().join("other")).expect("written before"), b"7");
        eventually("the work of the cleanup command", || cleaned.exists().then_some(())).await;
    });
}

#[test]
fn a_process_that_holds_the_output_of_an_ended_container_does_not_hold_its_exit_file() {
    support::e2e(async |sandbox| {
        // In the host's pid namespace, or the kernel would end all processes with the first.
        let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let spec = BundleSpec::shell("sleep 1000 & echo started; exit 8");
        sandbox.run("c", &spec.with(json!({ "linux": { "namespaces": namespaces } }))).await;
        assert_eq!(sandbox.wait_exit("c").await, 8);
        assert_eq!(sandbox.log("c").len(), 1);
    });
}

#[test]
fn containers_that_end_at_once_all_get_their_own_code() {
    support::e2e(async |sandbox| {
        for code in 0..if support::long() { 50 } else { 12 } {
            sandbox
                .run(
                    &format!("c{code}"),
                    &BundleSpec::shell(&format!("while [ ! -e /go ]; do sleep 0.1; done; exit {code}")),
                )
                .await;
        }
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        for code in 0..if support::long() { 50 } else { 12 } {
            assert_eq!(sandbox.wait_exit(&format!("c{code}")).await, code);
        }
    });
}
