//! `holdfastctl`: the command line client. Options here, substance in `holdfast::client::cli`.

use std::{
    fmt::Display,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast::client::{
    CgroupManager, Transport,
    cli::{
        self, AttachOptions, CliError, ExecOptions, ForwardAddress, ForwardPort, ForwardTarget, ListOptions,
        LogsOptions, PortForwardOptions, RunOptions, RuntimeDir, RuntimeOptions,
    },
};

/// Runs and inspects containers under a holdfast daemon.
///
/// One daemon watches the containers of one runtime directory. `run` starts it when there is none and stops it again
/// after the last container it was started for.
#[derive(Parser)]
#[command(name = "holdfastctl", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// Directory of the daemon's sockets and of the containers made by `run`
    /// [default: /run/holdfast, or $XDG_RUNTIME_DIR/holdfast when not root]
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_RUNTIME_DIR", hide_env_values = true)]
    runtime_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  holdfastctl run --rootfs ./rootfs -- echo hello
  holdfastctl run --rootfs ./rootfs -it -- sh
  holdfastctl run --rootfs ./rootfs --name web -d -- httpd -f
  holdfastctl exec -it web -- sh
  tar c dir | holdfastctl exec -i web -- tar x -C /tmp
  holdfastctl logs -f web
  holdfastctl attach web
  holdfastctl port-forward web 8080:80
  holdfastctl ps
  holdfastctl sessions --json
  holdfastctl rm web

Exit codes:
  that of the container or command for `run`, `exec` and `attach`; 0 when a forward was ended by a signal; 125 for an error of holdfastctl itself,
  141 when nobody reads its output any more, 0 otherwise.";

#[derive(Subcommand)]
enum Command {
    Run(Run),
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForwardArgs),
    Logs(Logs),
    Rm(Rm),
    /// List the containers of the daemon, and exits that nobody has collected yet
    Ps(List),
    /// List the sessions of the daemon, and ends of commands that nobody was told
    Sessions(List),
    /// Stop the daemon and end every container it watches
    Stop,
    /// Print the version of this client and of the daemon
    Version {
        /// As one line of JSON
        #[arg(long)]
        json: bool,
    },
}

/// Run a command in a new container and return its exit code
///
/// Makes a bundle from a root file system, has the daemon create the container, starts it, and shows its output until it
/// ends. SIGINT and SIGTERM are passed on to the container; a second one kills it.
#[derive(Args)]
struct Run {
    /// Id of the container [default: a random one]
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Root file system of the container: a directory, used as it is
    #[arg(long, value_name = "DIR")]
    rootfs: PathBuf,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Pass our stdin to the container
    #[arg(short, long)]
    interactive: bool,
    /// Set an environment variable; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory of the command, in the container
    #[arg(long, value_name = "DIR", default_value = "/")]
    cwd: String,
    /// Print the id and return once the container is started; end it with `holdfastctl rm ID`
    #[arg(short, long, conflicts_with_all = ["tty", "interactive", "keep"])]
    detach: bool,
    /// Leave bundle, log and exit file in DIR/containers/ID
    #[arg(long)]
    keep: bool,
    /// Log to a further place, too: cri:FILE, json:FILE or journald; may be given several times
    #[arg(long, value_name = "LOG")]
    log: Vec<String>,
    #[command(flatten)]
    runtime: Runtime,
    /// The daemon's binary [default: holdfast beside holdfastctl, else from $PATH]
    #[arg(long, value_name = "PATH")]
    monitor: Option<PathBuf>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct Runtime {
    /// The OCI runtime [default: runc, else crun, from $PATH]
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,
    /// Directory of the runtime's state [default: the runtime's own]
    #[arg(long, value_name = "DIR")]
    runtime_root: Option<PathBuf>,
    /// Make cgroups through systemd
    #[arg(long)]
    systemd_cgroup: bool,
}

/// Run a command in a running container and return its exit code
#[derive(Args)]
struct Exec {
    /// Pass our stdin to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Make cgroups through systemd
    #[arg(long)]
    systemd_cgroup: bool,
    /// What carries the session
    #[arg(long, value_name = "NAME", value_enum, default_value_t = TransportName::Websocket)]
    transport: TransportName,
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// What carries a streaming session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransportName {
    Websocket,
    Spdy,
}

/// Show what a container writes from now on
///
/// What it has written before is in its log. Returns the exit code of a container made by `run`, of others 0. SIGINT and SIGTERM end holdfastctl, not the container.
#[derive(Args)]
struct Attach {
    /// Pass our stdin to the container
    #[arg(short, long)]
    interactive: bool,
    /// The container has a terminal: pass on keys and sizes of ours
    #[arg(short, long)]
    tty: bool,
    /// What carries the session
    #[arg(long, value_name = "NAME", value_enum, default_value_t = TransportName::Websocket)]
    transport: TransportName,
    /// The container
    #[arg(value_name = "ID")]
    id: String,
}

/// Forward connections to local ports to ports of a container or pod
///
/// Takes connections until SIGINT or SIGTERM. Each is one of its own to 127.0.0.1, else ::1, in the network namespace of
/// the target; one that fails ends no other.
#[derive(Args)]
struct PortForwardArgs {
    /// Take connections on this address, if a port does not name its own; may be given several times
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
    /// What carries the session; over a WebSocket, SPDY in its messages
    #[arg(long, value_name = "NAME", value_enum, default_value_t = TransportName::Spdy)]
    transport: TransportName,
    #[command(flatten)]
    runtime: Runtime,
    /// The id of a container, or the path of a network namespace
    #[arg(value_name = "TARGET")]
    target: String,
    // Not a doc comment, which would make links of the brackets.
    #[arg(help = "[[ADDRESS:]LOCAL:]REMOTE; the kernel chooses a LOCAL that is empty or 0, a missing one is REMOTE")]
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
}

/// Print the log of a container
///
/// What the container wrote to stdout goes to stdout, what it wrote to stderr to stderr.
#[derive(Args)]
struct Logs {
    /// Go on, through log rotation, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Print the time before each line
    #[arg(long)]
    timestamps: bool,
    /// The log file, when `holdfastctl run` did not make the container
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// The container
    #[arg(value_name = "ID")]
    id: String,
}

/// End a container made by `run --detach` and remove it
#[derive(Args)]
struct Rm {
    #[command(flatten)]
    runtime: Runtime,
    /// The container
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Args)]
struct List {
    /// As one line of JSON
    #[arg(long)]
    json: bool,
    /// Have the daemon forget the ends that were printed
    #[arg(long)]
    forget: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version texts are "errors" that go to stdout. Where nobody reads them nothing is lost.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { cli::OWN_ERROR } else { 0 });
        }
    };
    match start(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => complain(&error),
    }
}

fn complain(error: &dyn Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "holdfastctl: {error}");
    ExitCode::from(cli::OWN_ERROR)
}

fn start(cli: Cli) -> Result<u8, Box<dyn std::error::Error>> {
    let dir = RuntimeDir::new(&runtime_dir(cli.runtime_dir)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    Ok(runtime.block_on(dispatch(&dir, cli.command))?)
}

async fn dispatch(dir: &RuntimeDir, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Run(run) => Box::pin(cli::run(dir, &run.options()?)).await,
        Command::Exec(exec) => Box::pin(cli::exec(dir, &exec.options()?)).await,
        Command::Attach(attach) => Box::pin(cli::attach(dir, &attach.options()?)).await,
        Command::PortForward(forward) => Box::pin(cli::port_forward(dir, &forward.options()?)).await,
        Command::Logs(logs) => cli::logs(dir, &logs.options()?).await,
        Command::Rm(rm) => Box::pin(cli::remove(dir, &cli::container_id(&rm.id)?, &rm.runtime.options(None))).await,
        Command::Ps(list) => cli::containers(dir, list.options()).await,
        Command::Sessions(list) => cli::sessions(dir, list.options()).await,
        Command::Stop => cli::stop(dir).await,
        Command::Version { json } => cli::version(dir, json).await,
    }
}

/// The flag or its variable, else the variable the daemon's options share with conmon-rs, else the usual place.
fn runtime_dir(given: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(dir) = given.or_else(|| std::env::var_os("CONMON_RUNTIME_DIR").map(PathBuf::from)) {
        return Ok(dir);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(Path::new("/run/holdfast").into());
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR");
    base.map(|base| Path::new(&base).join("holdfast"))
        .ok_or_else(|| "no runtime directory is known: give one with --runtime-dir".to_owned())
}

impl Runtime {
    fn options(self, monitor: Option<PathBuf>) -> RuntimeOptions {
        RuntimeOptions { path: self.runtime, root: self.runtime_root, systemd_cgroup: self.systemd_cgroup, monitor }
    }
}

impl Run {
    fn options(self) -> Result<RunOptions, CliError> {
        Ok(RunOptions {
            id: self.name.as_deref().map(cli::container_id).transpose()?,
            rootfs: self.rootfs,
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            tty: self.tty,
            interactive: self.interactive,
            detach: self.detach,
            keep: self.keep,
            logs: self.log.iter().map(|log| cli::log_driver(log)).collect::<Result<_, _>>()?,
            runtime: self.runtime.options(self.monitor),
        })
    }
}

impl Exec {
    fn options(self) -> Result<ExecOptions, CliError> {
        let cgroup_manager = if self.systemd_cgroup { CgroupManager::Systemd } else { CgroupManager::Cgroupfs };
        Ok(ExecOptions {
            id: cli::container_id(&self.id)?,
            command: self.command,
            interactive: self.interactive,
            tty: self.tty,
            cgroup_manager,
            transport: self.transport.into(),
        })
    }
}

impl From<TransportName> for Transport {
    fn from(name: TransportName) -> Self {
        match name {
            TransportName::Websocket => Self::WebSocket,
            TransportName::Spdy => Self::Spdy,
        }
    }
}

impl Attach {
    fn options(self) -> Result<AttachOptions, CliError> {
        Ok(AttachOptions {
            id: cli::container_id(&self.id)?,
            interactive: self.interactive,
            tty: self.tty,
            transport: self.transport.into(),
        })
    }
}

impl PortForwardArgs {
    fn options(self) -> Result<PortForwardOptions, CliError> {
        Ok(PortForwardOptions {
            target: ForwardTarget::parse(&self.target)?,
            addresses: self.address.iter().map(|text| ForwardAddress::parse(text)).collect::<Result<_, _>>()?,
            ports: self.ports.iter().map(|text| ForwardPort::parse(text)).collect::<Result<_, _>>()?,
            transport: self.transport.into(),
            runtime: self.runtime.options(None),
        })
    }
}

impl List {
    fn options(&self) -> ListOptions {
        ListOptions { json: self.json, forget: self.forget }
    }
}

impl Logs {
    fn options(self) -> Result<LogsOptions, CliError> {
        Ok(LogsOptions {
            id: cli::container_id(&self.id)?,
            follow: self.follow,
            timestamps: self.timestamps,
            path: self.path,
        })
    }
}
