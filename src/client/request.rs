//! What goes into a call and comes out of it, as plain values.

use std::path::PathBuf;

use bytes::Bytes;

/// How the runtime is told to make cgroups; control-api.md 1.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupManager {
    /// Through systemd: `cgroupsPath` is `slice:prefix:name`.
    Systemd,
    /// By writing to the file system: `cgroupsPath` is a path.
    #[default]
    Cgroupfs,
}

/// The form of a container log; control-api.md 1.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDriverKind {
    /// The text form the kubelet reads.
    Cri,
    /// One JSON object per line.
    Json,
    /// The system journal.
    Journald,
}

/// One log of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDriver {
    /// Its form.
    pub kind: LogDriverKind,
    /// Its file; not used by [`LogDriverKind::Journald`].
    pub path: PathBuf,
    /// The file's limit in bytes, 0 = none.
    pub max_size: u64,
}

/// Arguments of `createContainer`; control-api.md 4.2.
#[derive(Debug, Clone, Default)]
pub struct CreateContainer {
    /// The container's id.
    pub id: String,
    /// Directory with the `config.json`.
    pub bundle: PathBuf,
    /// Whether it gets a terminal; must agree with `process.terminal` of the `config.json`.
    pub terminal: bool,
    /// Whether its stdin can be written to.
    pub stdin: bool,
    /// Files that receive the exit code.
    pub exit_paths: Vec<PathBuf>,
    /// Files made when it was killed for lack of memory.
    pub oom_exit_paths: Vec<PathBuf>,
    /// Its logs.
    pub log_drivers: Vec<LogDriver>,
    /// Argv of a command run after the exit.
    pub cleanup_command: Vec<String>,
    /// Arguments of the runtime before `create`.
    pub global_args: Vec<String>,
    /// Arguments of the runtime after `create`.
    pub command_args: Vec<String>,
    /// Additions to the runtime's environment.
    pub env: Vec<(String, String)>,
    /// How cgroups are made.
    pub cgroup_manager: CgroupManager,
    /// fd-socket slots that become descriptors 3, 4, … of the runtime.
    pub additional_fds: Vec<u64>,
    /// fd-socket slots held open until the exit.
    pub leak_fds: Vec<u64>,
}

/// Arguments of `execSyncContainer`; control-api.md 4.3.
#[derive(Debug, Clone, Default)]
pub struct ExecSync {
    /// The container's id.
    pub id: String,
    /// Argv of the command.
    pub command: Vec<String>,
    /// Seconds, 0 = no limit.
    pub timeout_s: u64,
    /// Whether the command gets a terminal.
    pub terminal: bool,
    /// Additions to the runtime's (not the command's) environment.
    pub env: Vec<(String, String)>,
    /// How cgroups are made.
    pub cgroup_manager: CgroupManager,
}

/// Answer of `execSyncContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSyncReply {
    /// 0 to 255, -1 status lost, -2 could not start, -3 timed out.
    pub exit_code: i32,
    /// What the command wrote to stdout (with a terminal: everything).
    pub stdout: Bytes,
    /// What it wrote to stderr.
    pub stderr: Bytes,
    /// Whether it was killed for taking too long.
    pub timed_out: bool,
}

/// Arguments of `attachContainer`; control-api.md 4.4.
#[derive(Debug, Clone, Default)]
pub struct AttachContainer {
    /// The container's id.
    pub id: String,
    /// Where clients will connect (`SOCK_SEQPACKET`); parents are made.
    pub socket_path: PathBuf,
    /// Whether the end of a client's input is the end of the container's stdin.
    pub stop_after_stdin_eof: bool,
}

/// Arguments of `serveExecContainer`; control-api.md 4.9.
#[derive(Debug, Clone, Default)]
pub struct ServeExec {
    /// The container's id.
    pub id: String,
    /// Argv of the command.
    pub command: Vec<String>,
    /// Whether the command gets a terminal.
    pub tty: bool,
    /// Whether the client will write to its stdin.
    pub stdin: bool,
    /// Whether the client wants its stdout.
    pub stdout: bool,
    /// Whether the client wants its stderr.
    pub stderr: bool,
    /// How cgroups are made.
    pub cgroup_manager: CgroupManager,
}

/// Arguments of `serveAttachContainer`; control-api.md 4.9.
#[derive(Debug, Clone, Default)]
pub struct ServeAttach {
    /// The container's id.
    pub id: String,
    /// Whether the client will write to its stdin.
    pub stdin: bool,
    /// Whether the client wants its stdout.
    pub stdout: bool,
    /// Whether the client wants its stderr.
    pub stderr: bool,
}

/// Arguments of `servePortForward`, of our own interface.
#[derive(Debug, Clone, Default)]
pub struct ServePortForward {
    /// The network namespace with the ports; empty is the host's.
    pub net_ns: PathBuf,
    /// The pod, as error texts are to name it.
    pub pod_id: String,
    /// For clients of the old WebSocket form, which cannot name them.
    pub ports: Vec<u16>,
}

/// A kind of namespace of a pod; control-api.md 1.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    /// System V IPC and message queues.
    Ipc,
    /// Network.
    Net,
    /// Process numbers.
    Pid,
    /// User and group ids.
    User,
    /// Host name.
    Uts,
}

/// Arguments of `createNamespaces`; control-api.md 4.7.
#[derive(Debug, Clone)]
pub struct CreateNamespaces {
    /// The pod's id.
    pub pod_id: String,
    /// Which namespaces are made; the others are the host's.
    pub kinds: Vec<NamespaceKind>,
    /// `CONTAINER_ID HOST_ID SIZE` of user ids, for a user namespace.
    pub uid_mappings: Vec<String>,
    /// The same of group ids.
    pub gid_mappings: Vec<String>,
    /// Directory of the directories with the pinned namespaces.
    pub base_path: PathBuf,
}

impl Default for CreateNamespaces {
    fn default() -> Self {
        let (uid_mappings, gid_mappings) = (Vec::new(), Vec::new());
        Self { pod_id: String::new(), kinds: Vec::new(), uid_mappings, gid_mappings, base_path: "/var/run".into() }
    }
}

/// Answer of `version`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VersionReply {
    /// The daemon's process id.
    pub process_id: u32,
    /// SemVer.
    pub version: String,
    /// The git tag, or empty.
    pub tag: String,
    /// The git commit.
    pub commit: String,
    /// When it was built, UTC.
    pub build_date: String,
    /// The target triple.
    pub target: String,
    /// The compiler.
    pub rust_version: String,
    /// The package manager.
    pub cargo_version: String,
    /// The dependencies; empty unless asked for.
    pub cargo_tree: String,
}
