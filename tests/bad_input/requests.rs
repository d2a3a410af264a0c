//! Well-formed calls with values that make no sense.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use holdfast::{
    client::{
        AttachContainer, CgroupManager, Client, ClientError, CreateContainer, ExecSync, LogDriver, LogDriverKind,
        STREAM_PROTOCOLS, ServeAttach, ServeExec, StreamClient,
    },
    model::WindowSize,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{BundleSpec, DEADLINE, FakeRuntime, Sandbox, beside_a_neighbour, eventually, procfs};

/// What a refusal says, without the words around it.
fn reason<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn exec(id: &str, command: &[&str]) -> ExecSync {
    ExecSync { id: id.to_owned(), command: words(command), ..ExecSync::default() }
}

fn serve_exec(id: &str) -> ServeExec {
    ServeExec { id: id.to_owned(), command: words(&["true"]), stdout: true, ..ServeExec::default() }
}

fn serve_attach(id: &str) -> ServeAttach {
    ServeAttach { id: id.to_owned(), stdout: true, ..ServeAttach::default() }
}

/// What every call that takes an id says of this one.
async fn of_each_call(client: &Client, id: &str) -> Vec<String> {
    let create = CreateContainer { id: id.to_owned(), bundle: "/nowhere".into(), ..CreateContainer::default() };
    let attach = AttachContainer { id: id.to_owned(), socket_path: "/nowhere".into(), stop_after_stdin_eof: false };
    vec![
        reason(client.create_container(&create).await),
        reason(client.exec_sync(&exec(id, &["true"])).await),
        reason(client.reopen_log(id).await),
        reason(client.set_window_size(id, WindowSize { cols: 1, rows: 1 }).await),
        reason(client.serve_exec(&serve_exec(id)).await),
        reason(client.serve_attach(&serve_attach(id)).await),
        reason(client.attach_container(&attach).await),
    ]
}

#[test]
fn every_call_refuses_an_id_that_is_no_file_name() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let long = "x".repeat(256);
        let client = sandbox.client();
        let ids = ["", "a/b", "/", "../neighbour", "..", ".", "-f", "--root=/", "a b", "a\nb", "a\tb", "\u{1b}[31m"];
        for id in ids.into_iter().chain(["é", "\u{7f}", "a\0b", "neighbour\0", &long]) {
            let reasons = neighbour.undisturbed(id, async || of_each_call(&client, id).await).await;
            for reason in reasons {
                assert!(reason.starts_with("invalid-request: id: the container id "), "{id:?}: {reason}");
                assert!(!reason.contains(['\0', '\n', '\u{1b}']), "{reason:?} repeats what it was given");
            }
        }
        assert!(client.is_connected());
    });
}

#[test]
fn an_unknown_container_is_not_found() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let client = sandbox.client();
        let reasons = neighbour
            .undisturbed("an unknown id", async || {
                [
                    reason(client.reopen_log("nobody").await),
                    reason(client.set_window_size("nobody", WindowSize { cols: 1, rows: 1 }).await),
                    reason(client.serve_exec(&serve_exec("nobody")).await),
                    reason(client.serve_attach(&serve_attach("nobody")).await),
                ]
            })
            .await;
        for reason in reasons {
            assert!(reason.starts_with("not-found: ") && reason.contains("nobody"), "{reason}");
        }
        // The runtime is asked, since it may know a container that this daemon does not.
        let reply =
            neighbour.undisturbed("its exec", async || client.exec_sync(&exec("nobody", &["true"])).await).await;
        let reply = reply.unwrap();
        let stderr = String::from_utf8_lossy(&reply.stderr).into_owned();
        assert_eq!((reply.exit_code, reply.timed_out), (-2, false));
        assert!(stderr.contains("does not exist"), "{stderr}");
        let terminal = ExecSync { terminal: true, timeout_s: 20, ..exec("nobody", &["true"]) };
        let reply = neighbour.undisturbed("with a terminal", async || client.exec_sync(&terminal).await).await.unwrap();
        assert_eq!((reply.exit_code, reply.timed_out), (-2, false));
    });
}

#[test]
fn a_taken_id_is_refused_and_its_owner_goes_on() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let request = sandbox.create_request("neighbour", &BundleSpec::shell("exit 1"));
        for _ in 0..3 {
            let answer =
                neighbour.undisturbed("a taken id", async || sandbox.client().create_container(&request).await).await;
            let said = reason(answer);
            assert!(said.starts_with("exists: ") && said.contains("neighbour"), "{said}");
        }
        // Unknown here, but not to the runtime.
        let bundle = sandbox.bundle("foreign", &BundleSpec::idle());
        let request = sandbox.create_request("foreign", &BundleSpec::idle());
        let mut create = Command::new(FakeRuntime::of(sandbox).path());
        create.arg("--root").arg(sandbox.path().join("root")).args(["create", "--bundle"]).arg(bundle).arg("foreign");
        // The container keeps its streams, so nobody may wait for their end.
        create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(create.status().unwrap().success());
        let said = reason(sandbox.client().create_container(&request).await);
        assert!(said.contains("exist"), "{said}");
        let state = sandbox.runtime(&["state", "foreign"]).stdout;
        assert!(String::from_utf8_lossy(&state).contains("\"created\""), "somebody else's container was deleted");
        sandbox.runtime(&["delete", "--force", "foreign"]);
        neighbour.is_well("a container of somebody else").await;
    });
}

#[test]
fn two_creates_of_one_id_at_once_make_one_container() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("a race", async || {
                let (client, other) = (sandbox.client(), sandbox.connect().await);
                let request = sandbox.create_request("twin", &BundleSpec::shell("exit 3"));
                let (first, second) = tokio::join!(client.create_container(&request), other.create_container(&request));
                let (made, refused) = if first.is_ok() { (first, second) } else { (second, first) };
                made.unwrap();
                assert!(reason(refused).starts_with("exists: "));
                sandbox.start("twin");
                assert_eq!(sandbox.wait_exit("twin").await, 3);
                sandbox.runtime(&["delete", "--force", "twin"]);
            })
            .await;
    });
}

#[test]
fn paths_must_be_absolute_files() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let client = sandbox.client();
        let long = format!("/{}", "x".repeat(4095));
        let good = sandbox.create_request("victim", &BundleSpec::idle());
        let logs = |path: PathBuf| vec![LogDriver { kind: LogDriverKind::Cri, path, max_size: 0 }];
        for (path, why) in [
            ("", "the path is empty"),
            ("relative", "the path is not absolute"),
            ("./here", "the path is not absolute"),
            ("/a\0b", "it contains a NUL byte"),
            ("/", "the path has no file name"),
            ("/a/..", "the path has no file name"),
            (&long, "the path is longer than 4095 bytes"),
        ] {
            let cases = [
                ("bundlePath", CreateContainer { bundle: path.into(), ..good.clone() }),
                ("exitPaths", CreateContainer { exit_paths: vec!["/good".into(), path.into()], ..good.clone() }),
                ("oomExitPaths", CreateContainer { oom_exit_paths: vec![path.into()], ..good.clone() }),
                ("logDrivers.path", CreateContainer { log_drivers: logs(path.into()), ..good.clone() }),
            ];
            for (field, request) in cases {
                let said = neighbour.undisturbed(field, async || reason(client.create_container(&request).await)).await;
                assert_eq!(said, format!("invalid-request: {field}: {why}"), "{path:?}");
            }
        }
        assert!(client.is_connected());
    });
}

#[test]
fn commands_variables_slots_and_streams_are_checked() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let client = sandbox.client();
        let good = sandbox.create_request("victim", &BundleSpec::idle());
        let env = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        for (request, why) in [
            (
                CreateContainer { cleanup_command: words(&["", "x"]), ..good.clone() },
                "cleanupCmd: the program is empty",
            ),
            (CreateContainer { global_args: words(&["a\0b"]), ..good.clone() }, "globalArgs: it contains a NUL byte"),
            (CreateContainer { command_args: words(&["a\0b"]), ..good.clone() }, "commandArgs: it contains a NUL byte"),
            (CreateContainer { env: env("", "x"), ..good.clone() }, "envVars: a name is empty or contains \"=\""),
            (CreateContainer { env: env("a=b", "x"), ..good.clone() }, "envVars: a name is empty or contains \"=\""),
            (CreateContainer { env: env("a", "x\0"), ..good.clone() }, "envVars: it contains a NUL byte"),
            (CreateContainer { additional_fds: vec![u64::MAX], ..good.clone() }, "additionalFds: slot "),
            (CreateContainer { leak_fds: vec![7], ..good.clone() }, "leakFds: slot 7 "),
        ] {
            let said = neighbour.undisturbed(why, async || reason(client.create_container(&request).await)).await;
            assert!(said.starts_with(&format!("invalid-request: {why}")), "{said}");
        }
        for (command, why) in [
            (&[][..], "command: it is empty"),
            (&["", "x"], "command: the program is empty"),
            (&["true", "\0"], "command: it contains a NUL byte"),
        ] {
            let said = reason(client.exec_sync(&exec("neighbour", command)).await);
            assert_eq!(said, format!("invalid-request: {why}"));
            let request = ServeExec { command: words(command), ..serve_exec("neighbour") };
            assert_eq!(reason(client.serve_exec(&request).await), format!("invalid-request: {why}"));
        }
        let none = ServeExec { stdout: false, ..serve_exec("neighbour") };
        assert!(reason(client.serve_exec(&none).await).contains("one of stdin, stdout, or stderr must be set"));
        let none = ServeAttach { stdout: false, ..serve_attach("neighbour") };
        assert!(reason(client.serve_attach(&none).await).contains("one of stdin, stdout, and stderr must be set"));
        let size = WindowSize { cols: 80, rows: 24 };
        assert!(reason(client.set_window_size("neighbour", size).await).contains("terminal"));
        neighbour.is_well("all of them").await;
        assert!(client.is_connected());
    });
}

/// A fault of a bundle or a log, and what the refusal must say.
type Fault = (&'static str, fn(&Sandbox, &mut CreateContainer), &'static str);

const FAULTS: [Fault; 11] = [
    ("no bundle", |_, request| request.bundle = "/no/such/bundle".into(), "No such file"),
    ("a bundle that is a file", |_, request| request.bundle.push("config.json"), "Not a directory"),
    ("no config", |_, request| fs::remove_file(config(request)).unwrap(), "No such file"),
    (
        "a directory for a config",
        |_, request| replaced(request, |path| fs::create_dir(path).unwrap()),
        "Is a directory",
    ),
    (
        "a config that links to itself",
        |_, request| replaced(request, |path| symlink(path, path).unwrap()),
        "symbolic links",
    ),
    ("a FIFO for a config", |_, request| replaced(request, |path| mkfifo(path, Mode::S_IRWXU).unwrap()), "config.json"),
    ("an empty config", |_, request| fs::write(config(request), "").unwrap(), "EOF"),
    ("a config of noise", |_, request| fs::write(config(request), vec![0xa5; 9 << 20]).unwrap(), "invalid character"),
    ("a log in no directory", |_, request| request.log_drivers[0].path = "/no/such/log".into(), "No such file"),
    (
        "a log that is a directory",
        |sandbox, request| request.log_drivers[0].path = sandbox.path().into(),
        "Is a directory",
    ),
    ("a systemd cgroup path", |_, request| request.cgroup_manager = CgroupManager::Systemd, "systemd"),
];

fn config(request: &CreateContainer) -> PathBuf {
    request.bundle.join("config.json")
}

fn replaced(request: &CreateContainer, make: impl FnOnce(&PathBuf)) {
    fs::remove_file(config(request)).unwrap();
    make(&config(request));
}

#[test]
fn a_bundle_or_log_that_cannot_be_used_is_refused_and_the_id_stays_free() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (what, spoil, fragment) in FAULTS {
            let start = Instant::now();
            let said = neighbour
                .undisturbed(what, async || {
                    let mut request = sandbox.create_request("victim", &BundleSpec::idle());
                    spoil(sandbox, &mut request);
                    let answer = timeout(DEADLINE, sandbox.client().create_container(&request)).await;
                    fs::remove_dir_all(sandbox.container("victim")).unwrap();
                    reason(answer.unwrap_or_else(|_| panic!("no answer to {what}")))
                })
                .await;
            assert!(said.contains(fragment), "{what}: {said}");
            assert!(start.elapsed().as_secs() < 8, "{what} took {:?}", start.elapsed());
        }
        neighbour
            .undisturbed("a good create", async || {
                sandbox.run("victim", &BundleSpec::shell("exit 7")).await;
                assert_eq!(sandbox.wait_exit("victim").await, 7);
                sandbox.runtime(&["delete", "--force", "victim"]);
            })
            .await;
    });
}

#[test]
fn calls_on_a_container_that_is_exiting_are_answered() {
    // In the host's pid namespace, where a process that holds the output makes the exit take a second or two.
    let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
    let pipes = BundleSpec::shell("trap '' HUP; echo begin; sleep 1000 & exit 8");
    let pipes = pipes.with(json!({ "linux": { "namespaces": namespaces } }));
    beside_a_neighbour(async |sandbox, neighbour| {
        for (what, spec) in [("pipes", pipes.clone()), ("a terminal", pipes.terminal())] {
            neighbour
                .undisturbed(what, async || {
                    // On a busy machine the exit may be over before it is seen.
                    let mut rounds = 0;
                    while rounds == 0 {
                        rounds = call_while_exiting(sandbox, &spec).await;
                    }
                })
                .await;
        }
    });
}

/// Returns how often it could call.
async fn call_while_exiting(sandbox: &Sandbox, spec: &BundleSpec) -> u32 {
    let client = sandbox.client();
    let pid = sandbox.run("victim", spec).await;
    eventually("the end of its process", || (!procfs::runs(pid)).then_some(())).await;
    let mut rounds = 0;
    while !sandbox.exit_path("victim").exists() {
        rounds += 1;
        let size = WindowSize { cols: 80, rows: 24 };
        let calls = async {
            let (exec, attach) = (exec("victim", &["true"]), serve_attach("victim"));
            let (reopened, resized) = (client.reopen_log("victim").await, client.set_window_size("victim", size).await);
            (reopened, resized, client.exec_sync(&exec).await, client.serve_attach(&attach).await)
        };
        let (reopened, resized, run, attached) = timeout(DEADLINE, calls).await.expect("answers in time");
        for error in [reopened.err(), resized.err()].into_iter().flatten().map(|error| error.to_string()) {
            let clear = ["not-found: ", "has no terminal", "log"].iter().any(|reason| error.contains(reason));
            assert!(clear, "{error}");
        }
        assert_eq!(run.expect("a code").exit_code, -2);
        if let Ok(url) = attached {
            let session = StreamClient::connect(&url, &STREAM_PROTOCOLS).await.expect("the URL is good");
            let all = timeout(DEADLINE, session.collect()).await.expect("the session ends in time").unwrap();
            assert_eq!((all.statuses.len(), all.close_code), (1, Some(1000)), "{all:?}");
        }
    }
    assert_eq!((sandbox.wait_exit("victim").await, sandbox.log("victim").len()), (8, 1));
    sandbox.runtime(&["delete", "--force", "victim"]);
    fs::remove_dir_all(sandbox.container("victim")).unwrap();
    rounds
}
