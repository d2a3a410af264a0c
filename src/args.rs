//! The daemon's command line: the one place that knows clap, and the one place that decides whether settings make sense.
//!
//! Parsing and resolving are two steps: [`Args`] is what was written, [`Config`] is what it means. Option names, short
//! forms and environment variables are those that clients of the 1.x contract pass (control-api 2.1).

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use self::paths::{RUNTIME_DIR_MODE, RUNTIME_ROOT_MODE, absolute, check_runtime, ensure_directory, is_blank, required};
use crate::{
    config::{self, Config, LogDriver, LogLevel},
    version::Detail,
};
use clap::{
    Parser, Subcommand,
    builder::{OsStringValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser},
};

mod paths;
mod pause;
mod streams;

pub use pause::Pause;
pub use streams::Streams;

/// A year: no sensible limit is longer, and adding it to a clock cannot overflow.
const MAX_SECONDS: u64 = 365 * 24 * 60 * 60;

const ABOUT: &str = "The container monitor of one pod";

const LONG_ABOUT: &str = "\
The container monitor of one pod: starts its containers through an OCI runtime, owns
their stdio, logs and exit codes, and serves exec and attach itself. A CRI
runtime such as CRI-O starts one per pod and drives it over the control socket
<RUNTIME_DIR>/conmon.sock.

Without --skip-fork it goes to the background: when the command returns with 0, the
control socket listens and <RUNTIME_DIR>/pidfile holds the daemon's pid. SIGTERM or
SIGINT ends the daemon and kills all its containers at once, or after --stop-grace; a
second one skips every wait.";

const AFTER_LONG_HELP: &str = "\
Every option can be given by the environment variable named beside it; the command line
wins. Times are whole seconds.

Exit codes: 0 the daemon is ready, or has shut down; 1 it could not start; 2 the command
line is wrong.

Example:
  holdfast --runtime /usr/bin/runc --runtime-dir /run/pods/web --log-driver stdout --skip-fork";

/// The command line as written.
#[derive(Debug, Parser)]
#[command(name = "holdfast", bin_name = "holdfast", about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_long_help = AFTER_LONG_HELP)]
pub struct Args {
    /// Print the version and exit; "full" adds the tree of dependencies
    #[arg(short = 'v', long, env = "CONMON_VERSION", hide_env_values = true)]
    #[arg(value_name = "DETAIL", num_args = 0..=1, default_missing_value = "default", value_parser = detail())]
    pub version: Option<Detail>,

    /// Print the version as one line of JSON and exit
    #[arg(short = 'j', long, visible_alias = "vj", env = "CONMON_VERSION_JSON", hide_env_values = true)]
    #[arg(value_name = "DETAIL", num_args = 0..=1, default_missing_value = "default", value_parser = detail())]
    pub version_json: Option<Detail>,

    /// How much the daemon's own log says
    #[arg(short, long, env = "CONMON_LOG_LEVEL", hide_env_values = true, value_name = "LEVEL")]
    #[arg(default_value_t, value_parser = log_level())]
    pub log_level: LogLevel,

    /// Where the daemon's own log goes
    #[arg(short = 'd', long, env = "CONMON_LOG_DRIVER", hide_env_values = true, value_name = "DRIVER")]
    #[arg(default_value_t, value_parser = log_driver())]
    pub log_driver: LogDriver,

    /// The OCI runtime binary, e.g. /usr/bin/runc (required; $PATH is not searched)
    #[arg(short, long, env = "CONMON_RUNTIME", hide_env_values = true, value_name = "PATH")]
    #[arg(value_parser = path())]
    pub runtime: Option<PathBuf>,

    /// The directory for the control socket and the pidfile (required; made if missing)
    #[arg(long, env = "CONMON_RUNTIME_DIR", hide_env_values = true, value_name = "DIR")]
    #[arg(value_parser = path())]
    pub runtime_dir: Option<PathBuf>,

    /// The OCI runtime's state directory, passed to it as --root (made if missing)
    #[arg(long, env = "CONMON_RUNTIME_ROOT", hide_env_values = true, value_name = "DIR")]
    #[arg(value_parser = path())]
    pub runtime_root: Option<PathBuf>,

    /// Stay in the foreground and write no pidfile
    #[arg(long, env = "CONMON_SKIP_FORK", hide_env_values = true)]
    pub skip_fork: bool,

    /// Export a span per call by OTLP/gRPC (a build without the feature otel warns and exports nothing)
    #[arg(short, long, env = "CONMON_ENABLE_TRACING", hide_env_values = true)]
    pub enable_tracing: bool,

    /// The OTLP/gRPC endpoint for --enable-tracing
    #[arg(short, long, env = "CONMON_TRACING_ENDPOINT", hide_env_values = true, value_name = "URL")]
    #[arg(default_value = "http://127.0.0.1:4317")]
    pub tracing_endpoint: String,

    /// How long one run of the OCI runtime may take before it is killed
    #[arg(long, env = "HOLDFAST_RUNTIME_LIMIT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::RUNTIME_LIMIT.as_secs(), value_parser = seconds(1))]
    pub runtime_limit: u64,

    /// How long a log write that does not return may hold up its container before output is dropped and counted
    #[arg(long, env = "HOLDFAST_LOG_STALL", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::LOG_STALL.as_secs(), value_parser = seconds(1))]
    pub log_stall: u64,

    /// How long containers may take to end after SIGTERM when the daemon is told to stop; 0 means SIGKILL at once. It comes
    /// before --shutdown-timeout, so clients that wait 10 seconds may give up
    #[arg(long, env = "HOLDFAST_STOP_GRACE", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::STOP_GRACE.as_secs(), value_parser = seconds(0))]
    pub stop_grace: u64,

    /// How long the shutdown may take, with everything in it; clients usually wait 10 seconds
    #[arg(long, env = "HOLDFAST_SHUTDOWN_TIMEOUT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::SHUTDOWN_TIMEOUT.as_secs(), value_parser = seconds(1))]
    pub shutdown_timeout: u64,

    /// How streams are served.
    #[command(flatten)]
    pub streams: Streams,

    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the binary can do besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hold namespaces open for a pod (internal: only the daemon starts this)
    Pause(Pause),
}

/// Why a command line that clap accepts makes no daemon. `Display` tells one level; the rest is in the source.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required option is missing or blank.
    #[error("--{0} is not set: give it, or set {1}")]
    NotSet(&'static str, &'static str),
    /// A path cannot be looked at.
    #[error("--{0} {path} cannot be used", path = .1.display())]
    Unusable(&'static str, PathBuf, #[source] io::Error),
    /// The runtime is a directory, a socket, ….
    #[error("--runtime {path} is not a regular file: name the OCI runtime's binary", path = .0.display())]
    NotFile(PathBuf),
    /// A directory is missing and cannot be made.
    #[error("--{0} {path} cannot be created", path = .1.display())]
    Create(&'static str, PathBuf, #[source] io::Error),
    /// Something else is where a directory should be.
    #[error("--{0} {path} is not a directory", path = .1.display())]
    NotDirectory(&'static str, PathBuf),
    /// TLS was asked for. Plain HTTP instead would be worse than no service.
    #[error("--stream-tls-cert is set, but this build has no TLS: use one with the feature \"tls\", or leave it out")]
    NoTls,
}

impl Args {
    /// Parses a command line (its first word is the program) and the environment. Touches nothing.
    ///
    /// # Errors
    /// clap's: usage errors, but also `--help`. Its `print` and `exit_code` say what to do with it.
    pub fn parse_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(words)
    }

    /// Turns what was written into what it means: checks the runtime, makes missing directories, makes paths absolute
    /// (a daemon's working directory is `/`).
    ///
    /// # Errors
    /// The first setting that cannot work, in the order of control-api 2.1.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let runtime = required(self.runtime, "runtime", "CONMON_RUNTIME")?;
        let runtime_dir = required(self.runtime_dir, "runtime-dir", "CONMON_RUNTIME_DIR")?;
        check_runtime(&runtime)?;
        ensure_directory("runtime-dir", &runtime_dir, RUNTIME_DIR_MODE)?;
        let runtime_root = match self.runtime_root.filter(|path| !is_blank(path)) {
            Some(path) => {
                let path = absolute("runtime-root", path)?;
                ensure_directory("runtime-root", &path, RUNTIME_ROOT_MODE)?;
                Some(path)
            }
            None => None,
        };
        Ok(Config {
            runtime_root,
            log_level: self.log_level,
            log_driver: self.log_driver,
            skip_fork: self.skip_fork,
            tracing: self.enable_tracing.then_some(self.tracing_endpoint),
            streams: self.streams.resolve()?,
            runtime_limit: Duration::from_secs(self.runtime_limit),
            log_stall: Duration::from_secs(self.log_stall),
            stop_grace: Duration::from_secs(self.stop_grace),
            shutdown_timeout: Duration::from_secs(self.shutdown_timeout),
            ..Config::new(runtime, runtime_dir)
        })
    }
}

fn detail() -> impl TypedValueParser<Value = Detail> {
    PossibleValuesParser::new(["default", "full"]).map(|name| match name.as_str() {
        "full" => Detail::Full,
        _ => Detail::Default,
    })
}

/// clap's own parser of paths refuses an empty one; here that means "not set", as in an environment file.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

fn log_level() -> impl TypedValueParser<Value = LogLevel> {
    PossibleValuesParser::new(LogLevel::NAMES).try_map(|name| name.parse::<LogLevel>())
}

fn log_driver() -> impl TypedValueParser<Value = LogDriver> {
    PossibleValuesParser::new(LogDriver::NAMES).try_map(|name| name.parse::<LogDriver>())
}

/// At least one, and no more than descriptors could ever be for.
fn count() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(1..=1_000_000).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

fn seconds(least: u64) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=MAX_SECONDS)
}

#[cfg(test)]
mod tests;
