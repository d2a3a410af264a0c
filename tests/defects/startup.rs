//! Start, settings and the control connection; see the table in `main.rs`.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixDatagram, UnixListener},
        },
    },
    process::Command,
};

use holdfast::client::{Client, CreateContainer, ExecSync, ServeExec, StreamClient};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
};

use crate::support::{self, Background, BundleSpec, collect, eventually, procfs, with_container, within};

#[test]
fn d38_a_second_start_does_not_take_the_socket_of_the_first() {
    support::run(async {
        let mut daemon = Background::started();
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        for foreground in [false, true] {
            let mut second = daemon.command();
            let output = second.args(foreground.then_some("--skip-fork")).output().expect("it runs");
            let message = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
            assert!(message.contains("another daemon already serves"), "{message}");
        }
        assert_eq!(Some(client.version(false).await.expect("alive").process_id), daemon.pid);
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        assert!(!daemon.runtime_dir.join("conmon.sock").exists());
    });
}

#[test]
fn d38_the_starter_does_not_return_before_the_socket_listens() {
    support::run(async {
        let daemon = Background::started();
        let client = Client::connect(&daemon.runtime_dir).await.expect("at once");
        assert_eq!(client.version(false).await.expect("an answer").process_id, daemon.pid.expect("started"));
        let mode = |name: &str| daemon.runtime_dir.join(name).metadata().expect("it is there").permissions().mode();
        assert_eq!((mode("conmon.sock") & 0o077, mode("pidfile") & 0o777), (0, 0o644));
        let left: Vec<_> = fs::read_dir(&daemon.runtime_dir).expect("ours").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    });
}

#[test]
fn d38_an_error_behind_the_fork_reaches_the_starter() {
    support::run(async {
        let mut daemon = Background::new("run");
        fs::create_dir(&daemon.runtime_dir).expect("ours");
        let socket = daemon.runtime_dir.join("conmon.sock");
        fs::write(&socket, "precious").expect("ours");
        let mut command = daemon.command();
        let refused = daemon.start(&mut command);
        assert!(refused.status.code() == Some(1) && String::from_utf8_lossy(&refused.stderr).contains("is in the way"));
        assert_eq!(fs::read(&socket).expect("still there"), b"precious");
        fs::remove_file(&socket).expect("ours");
        drop(UnixListener::bind(&socket).expect("free"));
        assert!(daemon.start(&mut command).status.success());
        Client::connect(&daemon.runtime_dir).await.expect("it listens");
    });
}

#[test]
fn d39_a_daemon_has_no_session_directory_or_stream_of_its_starter() {
    support::run(async {
        let mut daemon = Background::new("run");
        let leaked = File::open("/proc/version").expect("procfs");
        fcntl(&leaked, FcntlArg::F_SETFD(FdFlag::empty())).expect("our descriptor");
        let mut command = daemon.command();
        daemon.start(command.current_dir(daemon.path()));
        let pid = daemon.pid.expect("started");
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("ours");
        assert_eq!(link("cwd"), std::path::Path::new("/"));
        for stream in ["fd/0", "fd/1", "fd/2"] {
            assert_eq!(link(stream), std::path::Path::new("/dev/null"));
        }
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("ours").flatten();
        let targets: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        assert!(
            !targets.iter().any(|target| target.ends_with("version")),
            "{} leaked: {targets:?}",
            leaked.as_raw_fd()
        );
        assert_eq!(procfs::status_line(pid, "NSsid"), pid.to_string());
        assert_eq!(procfs::status_line(pid, "Threads"), "1");
        let ignored = u64::from_str_radix(&procfs::status_line(pid, "SigIgn"), 16).expect("a mask");
        assert_ne!(ignored & 1 << (libc::SIGPIPE - 1), 0, "SIGPIPE is ignored");
        let stat = fs::read_to_string(format!("/proc/{pid}/comm")).expect("ours");
        assert_eq!(stat, "holdfast\n");
    });
}

// What containers write to the journal is told apart in `output.rs`.
#[test]
fn d61_the_daemons_entries_in_the_journal_have_levels_and_a_name() {
    support::run(async {
        let mut daemon = Background::new("run");
        let journal = UnixDatagram::bind(daemon.path().join("journal")).expect("our directory");
        // journald's path leads to our socket, in a mount namespace of the daemon's own.
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && ln -s \"$0\" /run/systemd/journal/socket && \
                      exec \"$@\" --log-driver systemd";
        let mut own = Command::new("unshare");
        own.args(["-m", "sh", "-c", script]).arg(daemon.path().join("journal"));
        own.arg(daemon.command().get_program()).args(daemon.command().get_args());
        assert!(daemon.start(&mut own).status.success());
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        journal.set_nonblocking(true).expect("a socket");
        let mut entries = String::new();
        let mut entry = [0; 4096];
        while let Ok(length) = journal.recv(&mut entry) {
            entries.push_str(&String::from_utf8_lossy(&entry[..length]));
        }
        let begin = "PRIORITY=6\nSYSLOG_IDENTIFIER=holdfast\nMESSAGE=";
        assert!(
            entries.contains(&format!("{begin}serving\n")) && entries.contains(&format!("{begin}stopped\n")),
            "{entries}"
        );
    });
}

#[test]
fn d62_what_would_be_an_option_or_another_path_never_reaches_the_runtime() {
    support::e2e_recording(async |sandbox| {
        let client = sandbox.client();
        let exec = |id: &str, command: &[&str]| {
            let command = command.iter().map(|word| (*word).to_owned()).collect();
            ExecSync { id: id.to_owned(), command, ..ExecSync::default() }
        };
        let good = sandbox.create_request("c", &BundleSpec::idle());
        for id in ["", "-f", "--root=/", "../c", "a/b", "/", "."] {
            client.create_container(&CreateContainer { id: id.to_owned(), ..good.clone() }).await.expect_err("no id");
            client.exec_sync(&exec(id, &["true"])).await.expect_err("no id");
        }
        for command in [&[][..], &["", "x"]] {
            client.exec_sync(&exec("c", command)).await.expect_err("no command");
        }
        for path in ["", "relative", "./bundle"] {
            let bundle = CreateContainer { bundle: path.into(), ..good.clone() };
            let exit = CreateContainer { exit_paths: vec![path.into()], ..good.clone() };
            for request in [bundle, exit] {
                client.create_container(&request).await.expect_err("not absolute");
            }
        }
        assert!(sandbox.calls().is_empty() && client.is_connected(), "{:?}", sandbox.calls());
    });
}

#[test]
fn d64_reconnecting_is_cheap_and_none_of_the_others_business() {
    support::run(async {
        let daemon = Background::started();
        let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
        client.version(false).await.expect("accepted");
        let before = procfs::descriptors(daemon.pid.expect("started"));
        for _ in 0..200 {
            Client::connect(&daemon.runtime_dir).await.expect("it listens").version(false).await.expect("an answer");
        }
        client.version(false).await.expect("still there");
        let back = || (procfs::descriptors(daemon.pid?) <= before).then_some(());
        eventually("descriptors to be closed", back).await;
    });
}

#[test]
fn d64_sessions_do_not_end_with_the_connection_that_asked_for_them() {
    with_container(async |sandbox| {
        let client = sandbox.connect().await;
        let url = |command: &str| ServeExec {
            id: "c".to_owned(),
            command: vec![command.to_owned()],
            stdin: true,
            stdout: true,
            ..ServeExec::default()
        };
        let (now, later) = (client.serve_exec(&url("cat")).await.expect("a URL"), client.serve_exec(&url("cat")).await);
        let mut session = StreamClient::connect(&now, &holdfast::client::STREAM_PROTOCOLS).await.expect("taken");
        within(session.next()).await.expect("the first, empty message");
        drop(client);
        let again = sandbox.connect().await;
        assert_eq!(again.version(false).await.expect("alive").process_id, sandbox.daemon_pid());
        let later =
            StreamClient::connect(&later.expect("a URL"), &holdfast::client::STREAM_PROTOCOLS).await.expect("taken");
        for mut session in [session, later] {
            session.send_stdin(b"still here").await.expect("open");
            session.close_stdin().await.expect("v5");
            assert_eq!(collect(session).await.stdout, b"still here");
        }
    });
}
