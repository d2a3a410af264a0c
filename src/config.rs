//! Resolved, immutable settings of a daemon.
//!
//! `Args::resolve` makes one from the command line; everything behind it believes what it says. The constants are the
//! defaults, which the help text repeats, and the file names that clients know.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tracing::level_filters::LevelFilter;

/// The control socket's name in the runtime directory (control-api 3.3); clients dial it by this name.
pub const CONTROL_SOCKET: &str = "conmon.sock";
/// The name of the socket that takes descriptors for containers (control-api 3.3).
pub const FD_SOCKET: &str = "conmon-fd.sock";
/// The file that tells the starter our pid, decimal without a newline. The starter removes it (control-api 3.1).
pub const PIDFILE: &str = "pidfile";

/// Where the streaming server listens: the kubelet is on this host.
pub const STREAM_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long one run of the OCI runtime may take: CRI-O's own default for creating a container.
pub const RUNTIME_LIMIT: Duration = Duration::from_secs(240);
/// How long a log write that does not return may hold up its container.
pub const LOG_STALL: Duration = Duration::from_secs(5);
/// How long the whole shutdown may take: the usual client gives up after 10 s.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long containers may take to end by themselves at the shutdown: not at all, as the usual client expects.
pub const STOP_GRACE: Duration = Duration::ZERO;
/// How long a streaming session may carry no data: the kubelet's default.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// How long a client may take to open the streams of its session: what Kubernetes gives them.
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a streaming request waits for its client: what Kubernetes gives them.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// How many streaming requests may wait for their client: as many as in Kubernetes' own server.
pub const PENDING_LIMIT: usize = 1000;
/// How many connections may wait for their upgrade.
pub const CONNECTION_LIMIT: usize = 1024;
/// How many streaming sessions there may be.
pub const SESSION_LIMIT: usize = 512;

const DRAIN_QUIET: Duration = Duration::from_secs(1);
const DRAIN_MAX_EXEC: Duration = Duration::from_secs(10);
const DRAIN_MAX_CONTAINER: Duration = Duration::from_secs(2);

/// What one daemon was told to do. All paths are absolute, since a daemon's working directory is `/`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The OCI runtime binary: a regular file that we may execute.
    pub runtime: PathBuf,
    /// The directory of our sockets and the pidfile; it exists.
    pub runtime_dir: PathBuf,
    /// The runtime's own state directory, passed as `--root`; it exists.
    pub runtime_root: Option<PathBuf>,
    /// What the daemon's own log leaves out.
    pub log_level: LogLevel,
    /// Where the daemon's own log goes.
    pub log_driver: LogDriver,
    /// Stay in the foreground and write no pidfile.
    pub skip_fork: bool,
    /// The OTLP endpoint, when tracing was asked for.
    pub tracing: Option<String>,
    /// How streams are served.
    pub streams: StreamConfig,
    /// After this long a run of the OCI runtime is killed.
    pub runtime_limit: Duration,
    /// After this long a stalled log write no longer holds up its container.
    pub log_stall: Duration,
    /// At the shutdown, how long containers have after SIGTERM before SIGKILL; zero means SIGKILL at once.
    pub stop_grace: Duration,
    /// The total deadline of the shutdown, from the end of the grace on.
    pub shutdown_timeout: Duration,
    /// After an exit, output that something still holds open is read until nothing has come for this long …
    pub drain_quiet: Duration,
    /// … or this long in all, for an exec …
    pub drain_max_exec: Duration,
    /// … and this long for a container.
    pub drain_max_container: Duration,
}

impl Config {
    /// The defaults around the two settings that have none. The caller has checked both paths.
    #[must_use]
    pub fn new(runtime: PathBuf, runtime_dir: PathBuf) -> Self {
        Self {
            runtime,
            runtime_dir,
            runtime_root: None,
            log_level: LogLevel::default(),
            log_driver: LogDriver::default(),
            skip_fork: false,
            tracing: None,
            streams: StreamConfig::default(),
            runtime_limit: RUNTIME_LIMIT,
            log_stall: LOG_STALL,
            stop_grace: STOP_GRACE,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
            drain_quiet: DRAIN_QUIET,
            drain_max_exec: DRAIN_MAX_EXEC,
            drain_max_container: DRAIN_MAX_CONTAINER,
        }
    }

    /// For tests that run a daemon in their own process: in the foreground, without a log.
    #[must_use]
    pub fn for_tests(runtime: &Path, runtime_dir: &Path) -> Self {
        let config = Self::new(runtime.to_owned(), runtime_dir.to_owned());
        Self { log_driver: LogDriver::None, log_level: LogLevel::Off, skip_fork: true, ..config }
    }

    /// The path of the control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join(CONTROL_SOCKET)
    }

    /// The path of the descriptor socket.
    #[must_use]
    pub fn fd_socket(&self) -> PathBuf {
        self.runtime_dir.join(FD_SOCKET)
    }

    /// The path of the pidfile.
    #[must_use]
    pub fn pidfile(&self) -> PathBuf {
        self.runtime_dir.join(PIDFILE)
    }
}

/// How streams are served.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// The address.
    pub address: IpAddr,
    /// The port; zero is the kernel's choice.
    pub port: u16,
    /// A session without data ends after this long; zero means never.
    pub idle_timeout: Duration,
    /// How long a client may take to open its streams.
    pub creation_timeout: Duration,
    /// How long a request waits for its client.
    pub token_lifetime: Duration,
    /// How many requests may wait for their client.
    pub pending_limit: usize,
    /// How many connections may wait for their upgrade.
    pub connection_limit: usize,
    /// How many sessions there may be.
    pub session_limit: usize,
    /// What becomes of an attach client that reads too slowly.
    pub attach_lag: AttachLag,
    /// What becomes of a command whose client has gone.
    pub exec_client_gone: ClientGone,
    /// What the client of a port forward is told when nobody listens on the port.
    pub forward_refusal: ForwardRefusal,
    /// With what TLS is served; none is plain HTTP. Only builds with the feature `tls` have it.
    pub tls: Option<TlsFiles>,
}

/// The files of the streaming server's TLS, all in PEM form. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and what certifies it, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who certifies clients; none: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            address: STREAM_ADDRESS,
            port: 0,
            idle_timeout: IDLE_TIMEOUT,
            creation_timeout: STREAM_CREATION_TIMEOUT,
            token_lifetime: TOKEN_LIFETIME,
            pending_limit: PENDING_LIMIT,
            connection_limit: CONNECTION_LIMIT,
            session_limit: SESSION_LIMIT,
            attach_lag: AttachLag::Cut,
            exec_client_gone: ClientGone::Hangup,
            forward_refusal: ForwardRefusal::Text,
            tls: None,
        }
    }
}

/// What becomes of an attach client that reads too slowly. The container waits for it only where that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachLag {
    /// Its session ends, with the number of bytes it missed.
    Cut,
    /// The oldest output is left out, and it is told in that place how much.
    Skip,
    /// The container waits, each time no longer than this; then as [`AttachLag::Cut`].
    Wait(Duration),
}

/// What becomes of a command whose streaming client went away, or was given up, before the command ended (streaming 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientGone {
    /// Its input ends and its output is closed: a terminal hangs up, a writer gets `SIGPIPE`. No signal is sent.
    Hangup,
    /// Its input ends; its output is read on, for nobody.
    Leave,
    /// As [`ClientGone::Hangup`]; after this long everything that the command has started is killed.
    Kill(Duration),
}

/// What the client of a port forward is told when nobody listens on the port (streaming 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardRefusal {
    /// The reason. kubectl shows it and then ends the whole session.
    Text,
    /// Nothing but a reset: only that connection fails. Over the channels of a WebSocket, where a text ends nothing else, the
    /// reason all the same.
    Reset,
}

/// How much the daemon's own log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Every chunk.
    Trace,
    /// Every event.
    Debug,
    /// Steps of a life: started, created, exited.
    #[default]
    Info,
    /// What went wrong in the world.
    Warn,
    /// What went wrong here.
    Error,
    /// Nothing.
    Off,
}

impl LogLevel {
    /// The names of the command line, in the order of the variants (control-api 2.1).
    pub const NAMES: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];
    const ALL: [Self; 6] = [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Off];
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for LogLevel {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::NAMES, &Self::ALL, name)
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Trace => Self::TRACE,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warn => Self::WARN,
            LogLevel::Error => Self::ERROR,
            LogLevel::Off => Self::OFF,
        }
    }
}

/// Where the daemon's own log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogDriver {
    /// Nowhere.
    None,
    /// To standard output, one line per event.
    Stdout,
    /// To the systemd journal.
    #[default]
    Systemd,
}

impl LogDriver {
    /// The names of the command line, in the order of the variants (control-api 2.1).
    pub const NAMES: [&str; 3] = ["none", "stdout", "systemd"];
    const ALL: [Self; 3] = [Self::None, Self::Stdout, Self::Systemd];
}

impl fmt::Display for LogDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for LogDriver {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::NAMES, &Self::ALL, name)
    }
}

/// A name that is none of the listed ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {0:?}")]
pub struct UnknownName(String);

fn by_name<T: Copy>(names: &[&str], values: &[T], name: &str) -> Result<T, UnknownName> {
    let found = names.iter().zip(values).find(|(known, _)| **known == name);
    found.map(|(_, value)| *value).ok_or_else(|| UnknownName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_levels_and_drivers_round_trip_and_are_case_sensitive() {
        for (name, level) in LogLevel::NAMES.iter().zip(LogLevel::ALL) {
            assert_eq!((name.parse(), level.to_string()), (Ok(level), (*name).to_owned()));
            assert_eq!(LevelFilter::from(level).to_string(), *name);
        }
        for (name, driver) in LogDriver::NAMES.iter().zip(LogDriver::ALL) {
            assert_eq!((name.parse(), driver.to_string()), (Ok(driver), (*name).to_owned()));
        }
        assert!("INFO".parse::<LogLevel>().is_err() && "Stdout".parse::<LogDriver>().is_err());
    }

    #[test]
    fn the_shutdown_ends_before_the_usual_client_gives_up() {
        assert!(SHUTDOWN_TIMEOUT < Duration::from_secs(10));
        assert!(DRAIN_QUIET < DRAIN_MAX_CONTAINER && DRAIN_MAX_CONTAINER < SHUTDOWN_TIMEOUT);
    }
}
