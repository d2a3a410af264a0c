//! control-api 4.2 and 10.

use std::{fs, path::Path};

use holdfast::model::WindowSize;

use crate::support::{self, BundleSpec, Sandbox, procfs};

fn status(sandbox: &Sandbox, id: &str) -> String {
    let state: serde_json::Value = serde_json::from_slice(&sandbox.runtime(&["state", id]).stdout).expect("JSON");
    state["status"].as_str().expect("a state has a status").to_owned()
}

#[test]
fn a_container_waits_to_be_started_and_its_init_is_the_answered_pid() {
    support::e2e(async |sandbox| {
        for (id, spec) in [("pipes", BundleSpec::idle()), ("terminal", BundleSpec::idle().terminal())] {
            let pid = sandbox.create(id, &spec).await;
            assert_eq!(status(sandbox, id), "created");
            assert!(procfs::runs(pid) && sandbox.daemon_pid().to_string() == procfs::status_line(pid, "PPid"));
            sandbox.start(id);
            assert_eq!(status(sandbox, id), "running");
            sandbox.runtime(&["kill", id, "KILL"]);
            assert_eq!(sandbox.wait_exit(id).await, 137);
        }
    });
}

#[test]
fn a_terminal_adds_only_a_console_socket_which_is_gone_afterwards() {
    support::e2e_recording(async |sandbox| {
        sandbox.create("c", &BundleSpec::idle().terminal()).await;
        let [call] = &sandbox.calls()[..] else { panic!("one call") };
        assert_eq!(call.len(), 8, "{call:?}");
        let socket = call[6].strip_prefix("--console-socket=").expect("before the id");
        assert!(call[7] == "c" && !Path::new(socket).exists(), "{call:?}");
    });
}

#[test]
fn the_runtime_gets_the_variables_of_the_call_and_the_surroundings_the_daemon_was_started_in() {
    support::e2e_recording(async |sandbox| {
        let mut request = sandbox.create_request("c", &BundleSpec::idle());
        request.env = vec![("HF_PROBE".to_owned(), "from the call".to_owned())];
        sandbox.client().create_container(&request).await.expect("created");
        let seen = sandbox.surroundings();
        let score = fs::read_to_string("/proc/self/oom_score_adj").expect("our own");
        assert_eq!(
            (&seen[0], &seen[1], &seen[2]),
            (&support::RECORDED_FILES.to_string(), &"from the call".to_owned(), &score.trim().to_owned())
        );
        let ignored = u64::from_str_radix(seen[3].split_whitespace().last().expect("a mask"), 16).expect("a mask");
        assert_eq!(ignored & 1 << (libc::SIGPIPE - 1), 0, "the daemon alone ignores SIGPIPE");
        // Its streams, the script itself, and the redirection.
        let open = seen[4..].iter().filter(|line| line.contains(" -> ")).count();
        assert!(open <= 6 && seen.iter().any(|line| line.contains(" 0 -> /dev/null")), "{seen:?}");
    });
}

#[test]
fn a_taken_id_is_refused_and_its_container_is_unharmed() {
    support::e2e(async |sandbox| {
        sandbox
            .run("c", &BundleSpec::shell("echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 5"))
            .await;
        sandbox.wait_log("c", "one").await;
        let request = sandbox.create_request("c", &BundleSpec::idle());
        let error = sandbox.client().create_container(&request).await.expect_err("the id is taken").to_string();
        assert!(error.contains("exists already"), "{error}");
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(sandbox.wait_exit("c").await, 5);
        assert_eq!(sandbox.log("c").len(), 2);
    });
}

#[test]
fn a_window_size_is_set_before_the_start_and_refused_without_a_terminal() {
    support::e2e(async |sandbox| {
        let size = WindowSize { cols: 123, rows: 45 };
        sandbox.create("terminal", &BundleSpec::shell("stty size").terminal()).await;
        sandbox.client().set_window_size("terminal", size).await.expect("it has a terminal");
        sandbox.start("terminal");
        sandbox.wait_log("terminal", "45 123").await;
        sandbox.create("pipes", &BundleSpec::idle()).await;
        let error = sandbox.client().set_window_size("pipes", size).await.expect_err("no terminal").to_string();
        assert!(error.contains("has no terminal"), "{error}");
    });
}

#[test]
fn a_bundle_may_have_a_path_that_no_socket_address_holds() {
    support::e2e(async |sandbox| {
        let long = "l".repeat(150);
        for (id, spec) in [
            (format!("p{long}"), BundleSpec::shell("echo x")),
            (format!("t{long}"), BundleSpec::shell("echo x").terminal()),
        ] {
            sandbox.run(&id, &spec).await;
            assert_eq!((sandbox.wait_exit(&id).await, sandbox.log(&id).len()), (0, 1));
        }
    });
}
