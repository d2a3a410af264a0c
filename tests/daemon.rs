//! The daemon's own life: control-api 2.1, 3 and 4.1.

use std::{fs, io::Read as _, process::Command};

use holdfast::client::{Client, ClientError};
use nix::sys::signal::Signal;

use support::{Background, BundleSpec, procfs, within};

mod support;

#[test]
fn installed_as_conmonrs_it_serves_under_that_name() {
    support::run(async {
        let mut daemon = Background::new("run");
        let renamed = daemon.path().join("conmonrs");
        // By another process: a file that we have open for writing could not be executed while other tests fork.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_holdfast")).arg(&renamed).status().expect("cp runs");
        assert!(copied.success());
        // An engine asks first; it parses both streams together.
        let asked = Command::new(&renamed).arg("--version-json").output().expect("it runs");
        let version: serde_json::Value = serde_json::from_slice(&[asked.stdout, asked.stderr].concat()).expect("JSON");
        let mut command = Command::new(&renamed);
        command.args(daemon.command().get_args()).env("CONMON_LOG_DRIVER", "none");
        assert!(daemon.start(&mut command).status.success());
        let pid = daemon.pid.expect("started");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).expect("ours"), "conmonrs\n");
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        let serving = client.version(false).await.expect("an answer");
        assert_eq!((serving.process_id, version["version"].as_str()), (pid, Some(&*serving.version)));
        daemon.signal(Signal::SIGINT);
        daemon.gone().await;
    });
}

#[test]
fn the_limit_of_open_files_is_raised_to_the_hard_one() {
    support::run(async {
        let mut daemon = Background::new("run");
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -Sn 256; exec \"$@\"", "sh"]);
        shell.arg(env!("CARGO_BIN_EXE_holdfast")).args(daemon.command().get_args()).env("CONMON_LOG_DRIVER", "none");
        assert!(daemon.start(&mut shell).status.success());
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid.expect("started"))).expect("ours");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("always there");
        let [.., soft, hard, _files] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(soft == hard && soft != "256", "{line}");
    });
}

#[test]
fn a_daemon_that_was_killed_leaves_nothing_in_the_way_of_the_next() {
    support::run(async {
        let mut daemon = Background::started();
        daemon.signal(Signal::SIGKILL);
        daemon.gone().await;
        fs::write(daemon.runtime_dir.join("exec_sync0123pid"), "1").expect("ours");
        let mut command = daemon.command();
        assert!(daemon.start(&mut command).status.success());
        Client::connect(&daemon.runtime_dir).await.expect("it listens");
        assert!(!daemon.runtime_dir.join("exec_sync0123pid").exists(), "left by the first");
    });
}

#[test]
fn a_runtime_directory_may_have_a_path_that_no_socket_address_holds() {
    support::run(async {
        let mut daemon = Background::new(&format!("{}/{}", "d".repeat(120), "e".repeat(120)));
        let mut command = daemon.command();
        assert!(daemon.start(&mut command).status.success());
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        assert_eq!(Some(client.version(false).await.expect("an answer").process_id), daemon.pid);
        daemon.signal(Signal::SIGINT);
        daemon.gone().await;
        assert!(!daemon.runtime_dir.join("conmon.sock").exists());
    });
}

#[test]
fn with_the_log_on_stdout_the_starters_pipe_gets_it_until_the_daemon_ends() {
    support::run(async {
        let mut daemon = Background::new("run");
        let mut command = daemon.command();
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        assert!(command.args(["--log-driver", "stdout"]).stdout(writer).status().expect("it runs").success());
        drop(command);
        daemon.pid = fs::read_to_string(daemon.runtime_dir.join("pidfile")).expect("complete").parse().ok();
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        let mut log = String::new();
        reader.read_to_string(&mut log).expect("a pipe");
        assert!(log.contains("serving") && log.contains("stopped"), "{log}");
    });
}

#[test]
fn version_tells_what_runs_and_the_dependencies_only_when_asked() {
    support::run(async {
        let daemon = Background::started();
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        let (brief, verbose) =
            (client.version(false).await.expect("brief"), client.version(true).await.expect("verbose"));
        for text in
            [&brief.version, &brief.commit, &brief.build_date, &brief.target, &brief.rust_version, &brief.cargo_version]
        {
            assert!(!text.is_empty(), "{brief:?}");
        }
        assert!(brief.cargo_tree.is_empty() && verbose.cargo_tree.contains("tokio"));
        assert_eq!(brief.version, env!("CARGO_PKG_VERSION"));
    });
}

#[test]
fn a_call_to_a_daemon_that_ends_fails_and_a_new_connection_says_that_there_is_none() {
    support::run(async {
        let mut daemon = Background::started();
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        let error = within(client.version(false)).await.expect_err("it is gone");
        assert!(matches!(error, ClientError::Gone { .. }), "{error}");
        let error = Client::connect(&daemon.runtime_dir).await.expect_err("it is gone");
        assert!(matches!(error, ClientError::NoDaemon(_)), "{error}");
    });
}

#[test]
fn the_shutdown_kills_what_runs_and_writes_its_exit_down_and_is_a_success() {
    support::e2e(async |sandbox| {
        sandbox.run("pipes", &BundleSpec::idle()).await;
        sandbox.run("terminal", &BundleSpec::shell("trap '' HUP TERM; while :; do sleep 1; done").terminal()).await;
        sandbox.create("created", &BundleSpec::idle()).await;
        let mut session = sandbox.exec_ws("pipes", &["cat"]).await;
        within(session.next()).await.expect("the first, empty message");
        let pids = procfs::children(sandbox.daemon_pid());
        let status = sandbox.end_daemon(Signal::SIGTERM).await;
        assert_eq!(status.code(), Some(0), "{status}");
        for id in ["pipes", "terminal", "created"] {
            assert_eq!(sandbox.wait_exit(id).await, 137);
        }
        assert!(pids.len() >= 3 && !pids.iter().any(|(pid, _)| procfs::runs(*pid)), "{pids:?}");
        assert!(!sandbox.runtime_dir().join("conmon.sock").exists());
        let all = support::collect(session).await;
        assert_eq!((all.statuses.len(), all.close_code), (1, Some(1000)), "{all:?}");
    });
}

#[test]
fn a_daemon_that_is_killed_leaves_its_containers_running_and_the_next_one_can_run_commands_in_them() {
    support::e2e(async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        sandbox.end_daemon(Signal::SIGKILL).await;
        assert!(procfs::runs(pid) && !sandbox.exit_path("c").exists());
        sandbox.restart_daemon(|_| {}).await;
        assert!(procfs::runs(pid));
        let command = ["echo", "alive"].map(str::to_owned).into();
        let exec = holdfast::client::ExecSync { id: "c".to_owned(), command, ..holdfast::client::ExecSync::default() };
        let answer = sandbox.client().exec_sync(&exec).await.expect("through the runtime alone");
        assert_eq!(answer.stdout, "alive\n");
    });
}
