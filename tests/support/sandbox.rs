use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    rc::Rc,
};

use holdfast::{
    client::{
        AttachContainer, Client, ClientError, Collected, CreateContainer, LogDriver, LogDriverKind, STREAM_PROTOCOLS,
        ServeAttach, ServeExec, StreamClient,
    },
    model::StdStream,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{BundleSpec, RawAttach, Record, eventually, parse_log, rootfs, text_of, which, within};

/// The soft limit of open files that a daemon with a recording runtime is started with.
pub(crate) const RECORDED_FILES: u64 = 512;

/// A daemon with directories of its own. Dropping it kills what it started and, in a failing test, prints the daemon's
/// log.
pub(crate) struct Sandbox {
    daemon: RefCell<Daemon>,
    client: RefCell<Rc<Client>>,
    dir: TempDir,
    runtime: PathBuf,
    /// Ids of containers that may still be there.
    created: RefCell<Vec<String>>,
}

impl Sandbox {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With changes to the daemon's command line or environment.
    pub(crate) async fn with(configure: impl FnOnce(&mut Command)) -> Self {
        let dir = temporary();
        let runtime = which("runc").expect("checked by require_e2e");
        let daemon = spawn(dir.path(), &runtime, configure);
        Self::around(dir, runtime, daemon).await
    }

    /// With a runtime that notes its arguments and surroundings and then becomes the real one.
    pub(crate) async fn recording() -> Self {
        let dir = temporary();
        let runtime = which("runc").expect("checked by require_e2e");
        let recorder = dir.path().join("recorder");
        let script = format!(
            "#!/bin/sh\ncd {dir} && IFS=$(printf '\\037') && printf '%s\\n' \"$*\" >>calls && {{ ulimit -Sn; echo \"$HF_PROBE\"; \
             cat /proc/self/oom_score_adj; grep SigIgn /proc/self/status; ls -l /proc/$$/fd; }} >surroundings\n\
             exec {runtime} \"$@\"\n",
            dir = dir.path().display(),
            runtime = runtime.display(),
        );
        fs::write(&recorder, script).expect("a file under a temporary directory");
        fs::set_permissions(&recorder, fs::Permissions::from_mode(0o755)).expect("our file");
        // With fewer files than it may have, so that a test sees which of the two limits is handed on.
        let daemon = spawn(dir.path(), &recorder, |command| {
            let mut limited = Command::new("sh");
            limited.args(["-c", &format!("ulimit -Sn {RECORDED_FILES}; exec \"$@\""), "sh"]);
            limited.arg(command.get_program()).args(command.get_args());
            *command = limited;
        });
        Self::around(dir, runtime, daemon).await
    }

    /// With crun. Where cgroups of both versions are mounted, crun 1.8 refuses to work: there it sees those of version 1
    /// alone, in a mount namespace of its own.
    pub(crate) async fn with_crun() -> Self {
        let dir = temporary();
        // The daemon goes by this name.
        let runtime = dir.path().join("crun");
        let script = format!(
            "#!/bin/sh\nif grep -q ' /sys/fs/cgroup/unified ' /proc/self/mountinfo; then\n\
             exec unshare -m sh -c 'umount /sys/fs/cgroup/unified && exec \"$@\"' sh {crun} \"$@\"\nfi\nexec {crun} \"$@\"\n",
            crun = which("crun").expect("checked by e2e_crun").display(),
        );
        fs::write(&runtime, script).expect("a file under a temporary directory");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("our file");
        let daemon = spawn(dir.path(), &runtime, |_| {});
        Self::around(dir, runtime, daemon).await
    }

    async fn around(dir: TempDir, runtime: PathBuf, mut daemon: Daemon) -> Self {
        rootfs::make(&dir.path().join("rootfs"));
        let client = connect(dir.path(), &mut daemon).await;
        Self {
            dir,
            runtime,
            daemon: RefCell::new(daemon),
            client: RefCell::new(Rc::new(client)),
            created: RefCell::default(),
        }
    }

    /// The sandbox's own connection.
    pub(crate) fn client(&self) -> Rc<Client> {
        self.client.borrow().clone()
    }

    /// A further connection.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.runtime_dir()).await.expect("the daemon listens")
    }

    /// Where files of the test can go.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The directory of one container: bundle, log, exit and OOM file.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.dir.path().join("c").join(id)
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.container(id).join("log")
    }

    pub(crate) fn exit_path(&self, id: &str) -> PathBuf {
        self.container(id).join("exit")
    }

    pub(crate) fn oom_path(&self, id: &str) -> PathBuf {
        self.container(id).join("oom")
    }

    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.borrow().0.id()
    }

    /// A file in the root directory of every container.
    pub(crate) fn in_rootfs(&self, name: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(name)
    }

    /// Waits until a container has written this into a file in its root directory.
    pub(crate) async fn wait_file(&self, name: &str, text: &str) {
        let path = self.in_rootfs(name);
        let written = || fs::read_to_string(&path).is_ok_and(|is| is == text).then_some(());
        eventually(&format!("{text:?} in the container's file {name}"), written).await;
    }

    /// The arguments of every call of a recording runtime.
    pub(crate) fn calls(&self) -> Vec<Vec<String>> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(|line| line.split('\x1f').map(str::to_owned).collect()).collect()
    }

    /// Of the last call: the limit of open files, `$HF_PROBE`, OOM score, ignored signals, descriptors; a line each.
    pub(crate) fn surroundings(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("surroundings")).expect("a recording runtime was called");
        text.lines().map(str::to_owned).collect()
    }

    /// What the daemon has logged so far.
    pub(crate) fn daemon_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).expect("made before the daemon")
    }

    /// Writes a bundle and returns its directory.
    pub(crate) fn bundle(&self, id: &str, spec: &BundleSpec) -> PathBuf {
        let bundle = self.container(id);
        fs::create_dir_all(&bundle).expect("a directory under a temporary directory");
        // The directory's name is unique on this machine; flat, because a runtime removes only the last part.
        let unique = self.dir.path().file_name().expect("a temporary directory has a name").display();
        let config = spec.config(&self.dir.path().join("rootfs"), &format!("/{unique}-{id}"));
        fs::write(bundle.join("config.json"), config.to_string()).expect("a file in the bundle");
        bundle
    }

    /// Writes a bundle and returns a request to create it, for tests that change one of its fields.
    pub(crate) fn create_request(&self, id: &str, spec: &BundleSpec) -> CreateContainer {
        self.created.borrow_mut().push(id.to_owned());
        CreateContainer {
            id: id.to_owned(),
            bundle: self.bundle(id, spec),
            terminal: spec.terminal,
            stdin: spec.stdin,
            exit_paths: vec![self.exit_path(id)],
            oom_exit_paths: vec![self.oom_path(id)],
            log_drivers: vec![LogDriver { kind: LogDriverKind::Cri, path: self.log_path(id), max_size: 0 }],
            ..CreateContainer::default()
        }
    }

    /// Creates a container and returns its pid.
    pub(crate) async fn create(&self, id: &str, spec: &BundleSpec) -> u32 {
        let request = self.create_request(id, spec);
        self.client().create_container(&request).await.expect("the container is created")
    }

    /// A create that must fail, and after which nothing may be registered; returns the reason.
    pub(crate) async fn refused_create(&self, id: &str, spec: &BundleSpec) -> String {
        let request = self.create_request(id, spec);
        let reason = match within(self.client().create_container(&request)).await {
            Err(ClientError::Refused { reason, .. }) => reason,
            other => panic!("not refused: {other:?}"),
        };
        let unknown = self.client().reopen_log(id).await;
        assert!(unknown.is_err_and(|error| error.to_string().contains("not-found:")), "the id is still registered");
        reason
    }

    /// The id of a failed create is free.
    pub(crate) async fn creates_again(&self, id: &str) {
        self.run(id, &BundleSpec::shell("exit 7")).await;
        assert_eq!(self.wait_exit(id).await, 7);
        self.runtime(&["delete", "--force", id]);
    }

    /// Starts a created container, as an engine does.
    pub(crate) fn start(&self, id: &str) {
        self.runtime(&["start", id]);
    }

    /// Creates and starts a container and returns its pid.
    pub(crate) async fn run(&self, id: &str, spec: &BundleSpec) -> u32 {
        let pid = self.create(id, spec).await;
        self.start(id);
        pid
    }

    /// Runs the runtime, which must succeed.
    pub(crate) fn runtime(&self, arguments: &[&str]) -> Output {
        let output = self.runtime_command().args(arguments).output().expect("the runtime runs");
        assert!(output.status.success(), "runtime {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// What makes the runtime forget a container that has ended. The end of the sandbox does that too, but not for
    /// thousands.
    pub(crate) fn removal(&self, id: &str) -> Command {
        self.created.borrow_mut().retain(|other| other != id);
        let mut command = self.runtime_command();
        command.args(["delete", "--force", id]);
        command
    }

    pub(crate) fn runtime_command(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.dir.path().join("root")).stdin(Stdio::null());
        command
    }

    /// `holdfastctl` for this daemon.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.env("HOLDFAST_RUNTIME_DIR", self.runtime_dir()).args(arguments);
        command
    }

    /// Waits for the container's exit file and returns the code in it.
    pub(crate) async fn wait_exit(&self, id: &str) -> i32 {
        let path = self.exit_path(id);
        let text = eventually(&format!("the exit file of {id}"), || fs::read_to_string(&path).ok()).await;
        text.parse().unwrap_or_else(|_| panic!("the exit file of {id} holds {text:?}"))
    }

    /// The records of the container's log.
    pub(crate) fn log(&self, id: &str) -> Vec<Record> {
        parse_log(&fs::read(self.log_path(id)).expect("the container has a log"))
    }

    /// The bytes of one stream in the container's log.
    pub(crate) fn logged(&self, id: &str, stream: StdStream) -> Vec<u8> {
        text_of(&self.log(id), stream)
    }

    /// Waits until the log holds the text.
    pub(crate) async fn wait_log(&self, id: &str, text: &str) {
        let path = self.log_path(id);
        let holds = |log: Vec<u8>| String::from_utf8_lossy(&log).contains(text).then_some(());
        eventually(&format!("{text:?} in the log of {id}"), || holds(fs::read(&path).ok()?)).await;
    }

    /// Where the attach socket of a container is made by [`Sandbox::listen`].
    pub(crate) fn attach_path(&self, id: &str) -> PathBuf {
        self.container(id).join("attach")
    }

    /// Makes a container listen for attach clients.
    pub(crate) async fn listen(&self, id: &str, stop_after_stdin_eof: bool) -> PathBuf {
        let socket_path = self.attach_path(id);
        let attach = AttachContainer { id: id.to_owned(), socket_path: socket_path.clone(), stop_after_stdin_eof };
        self.client().attach_container(&attach).await.expect("the container listens");
        socket_path
    }

    /// A client of a container's attach socket.
    pub(crate) async fn attach_raw(&self, id: &str, stop_after_stdin_eof: bool) -> RawAttach {
        RawAttach::connect(&self.listen(id, stop_after_stdin_eof).await).expect("the container listens")
    }

    /// A session of a command with stdin, stdout and stderr.
    pub(crate) async fn exec_ws(&self, id: &str, command: &[&str]) -> StreamClient {
        self.exec_session(ServeExec { stdin: true, stdout: true, stderr: true, ..exec(id, command) }).await
    }

    /// A session of a command with a terminal.
    pub(crate) async fn exec_tty_ws(&self, id: &str, command: &[&str]) -> StreamClient {
        self.exec_session(ServeExec { stdin: true, stdout: true, tty: true, ..exec(id, command) }).await
    }

    /// Runs a command without stdin to its end.
    pub(crate) async fn exec(&self, id: &str, command: &[&str]) -> Collected {
        let session = self.exec_session(ServeExec { stdout: true, stderr: true, ..exec(id, command) }).await;
        collect(session).await
    }

    /// The URL of a command with stdin, stdout and stderr.
    pub(crate) async fn exec_url(&self, id: &str, command: &[&str]) -> String {
        let exec = ServeExec { stdin: true, stdout: true, stderr: true, ..exec(id, command) };
        self.client().serve_exec(&exec).await.expect("the exec gets a URL")
    }

    /// The session of any exec request.
    pub(crate) async fn exec_session(&self, exec: ServeExec) -> StreamClient {
        let url = self.client().serve_exec(&exec).await.expect("the exec gets a URL");
        StreamClient::connect(&url, &STREAM_PROTOCOLS).await.expect("the URL takes a WebSocket")
    }

    /// An attach session; returns once the server has said that it is ready.
    pub(crate) async fn attach_ws(&self, attach: ServeAttach) -> StreamClient {
        let url = self.client().serve_attach(&attach).await.expect("the attach gets a URL");
        let mut session = StreamClient::connect(&url, &STREAM_PROTOCOLS).await.expect("the URL takes a WebSocket");
        session.next().await.expect("the server begins with an empty message");
        session
    }

    /// Sends the daemon a signal and waits for its end.
    pub(crate) async fn end_daemon(&self, signal: Signal) -> ExitStatus {
        let pid = i32::try_from(self.daemon_pid()).expect("pids are positive");
        kill(Pid::from_raw(pid), signal).expect("not waited for yet, so the pid is its own");
        eventually("the end of the daemon", || self.daemon.borrow_mut().0.try_wait().expect("our child")).await
    }

    /// Starts the daemon again after its end.
    pub(crate) async fn restart_daemon(&self, configure: impl FnOnce(&mut Command)) {
        let mut daemon = spawn(self.dir.path(), &self.runtime, configure);
        let client = connect(self.dir.path(), &mut daemon).await;
        self.daemon.replace(daemon);
        self.client.replace(Rc::new(client));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for id in self.created.borrow().iter() {
            // Some are gone, some were never made.
            let _ = self.runtime_command().args(["delete", "--force", id]).output();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "--- log of the daemon ---\n{log}--- end ---");
        }
    }
}

/// Killed when it is dropped, also by a test that fails before its sandbox is there.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails when the test has ended it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that a session brings to its end.
pub(crate) async fn collect(session: StreamClient) -> Collected {
    within(session.collect()).await.expect("the session keeps to the protocol")
}

fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("hf-").tempdir().expect("a temporary directory")
}

fn exec(id: &str, command: &[&str]) -> ServeExec {
    let command = command.iter().map(|arg| (*arg).to_owned()).collect();
    ServeExec { id: id.to_owned(), command, ..ServeExec::default() }
}

fn spawn(dir: &Path, runtime: &Path, configure: impl FnOnce(&mut Command)) -> Daemon {
    let log = File::options().create(true).append(true).open(dir.join("daemon.log")).expect("a file for the log");
    // Another build can be given: contrib/soak gives the release build.
    let program = std::env::var_os("HOLDFAST_DAEMON").unwrap_or_else(|| env!("CARGO_BIN_EXE_holdfast").into());
    let mut command = Command::new(program);
    command.arg("--runtime").arg(runtime).arg("--runtime-dir").arg(dir.join("run"));
    command.arg("--runtime-root").arg(dir.join("root"));
    command.args(["--skip-fork", "--log-driver", "stdout", "--log-level", "trace"]);
    configure(&mut command);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
    Daemon(command.spawn().expect("the daemon's binary was built"))
}

/// Waits until the daemon listens.
async fn connect(dir: &Path, daemon: &mut Daemon) -> Client {
    let socket = dir.join("run/conmon.sock");
    let log = || fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
    eventually("the control socket", || {
        let ended = daemon.0.try_wait().expect("our child");
        assert!(ended.is_none(), "the daemon ended with {ended:?}: {}", log());
        std::os::unix::net::UnixStream::connect(&socket).ok()
    })
    .await;
    Client::connect(&dir.join("run")).await.expect("the daemon listens")
}
