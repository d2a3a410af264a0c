//! The daemon's `main`: command line, going to the background, the pidfile, the exit code. All the rest is the library.

use std::{
    cell::Cell,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::ExitCode,
};

use holdfast::{
    args::{Args, Command},
    config::{Config, LogDriver},
    daemon::{self, Daemonised, Readiness, Start},
    model::one_line,
    telemetry,
    version::Version,
};
use tracing::{error, info};

fn main() -> ExitCode {
    let args = match Args::parse_words(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Where even that cannot be printed, the exit code has to do.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(args) {
        Ok(code) => code,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line asks for. The error is one line for whoever typed it.
fn run(args: Args) -> Result<ExitCode, String> {
    let version = Version::current();
    if let Some(detail) = args.version {
        return print(&version.text(detail));
    }
    if let Some(detail) = args.version_json {
        return print(&version.json(detail));
    }
    if let Some(Command::Pause(options)) = &args.command {
        let held = daemon::hold_namespaces(options).map_err(|error| format!("pause: {}", one_line(&error)));
        return held.map(|()| ExitCode::SUCCESS);
    }
    daemon::close_inherited().map_err(|error| one_line(&error))?;
    let config = args.resolve().map_err(|error| one_line(&error))?;
    start_log(&config);
    if config.skip_fork {
        return claim_and_run(config, &Cell::new(None)).map(|()| ExitCode::SUCCESS);
    }
    match daemon::daemonise(config.log_driver == LogDriver::Stdout).map_err(|error| one_line(&error))? {
        Daemonised::Parent(Ok(())) => Ok(ExitCode::SUCCESS),
        Daemonised::Parent(Err(failure)) => Err(failure.to_string()),
        Daemonised::Child(readiness) => Ok(serve_in_background(config, readiness)),
    }
}

/// A daemon without a log is better than none: standard error is still the starter's, so this is the place to say so.
fn start_log(config: &Config) {
    let level = config.log_level.into();
    let started = match config.log_driver {
        LogDriver::None => Ok(()),
        LogDriver::Stdout => telemetry::log_to_stdout(level),
        LogDriver::Systemd => telemetry::log_to_journal(level),
    };
    if let Err(error) = started {
        let driver = config.log_driver;
        let _ =
            writeln!(io::stderr(), "note: nothing is logged, since the log driver \"{driver}\" does not work: {error}");
    }
}

/// Runs the daemon. An error goes to the parent, which tells the starter, or if that has ended to the log; never to our
/// own standard error, which is nobody's or also the parent's.
fn serve_in_background(config: Config, readiness: Readiness) -> ExitCode {
    let readiness = Cell::new(Some(readiness));
    let Err(reason) = claim_and_run(config, &readiness) else { return ExitCode::SUCCESS };
    match readiness.take() {
        Some(readiness) => readiness.failed(&reason),
        None => error!("{reason}"),
    }
    ExitCode::FAILURE
}

/// With a `readiness` there is a parent to tell when the control socket listens, after the pidfile was written.
fn claim_and_run(config: Config, readiness: &Cell<Option<Readiness>>) -> Result<(), String> {
    let claimed = daemon::claim_process().map_err(|error| one_line(&error))?;
    if !claimed.oom_protected {
        info!("not protected from the OOM killer: the kernel refused, or it was so already");
    }
    let pidfile = config.pidfile();
    let ready = || {
        if let Some(told) = readiness.take() {
            if let Err(error) = write_pidfile(&pidfile) {
                readiness.set(Some(told)); // The start has failed after all.
                return Err(format!("cannot write the pidfile {}: {error}", pidfile.display()));
            }
            told.ready();
        }
        Ok(())
    };
    daemon::run(Start { config, child_setup: claimed.child_setup }, ready).map_err(|error| one_line(&error))
}

/// The starter reads the file once, right after the parent has ended: it is complete whenever it is there. No line end: the
/// whole content has to be a number (control-api 3.1).
fn write_pidfile(path: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let unfinished = path.with_extension(format!("{pid}.tmp"));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&unfinished)
        .and_then(|mut file| write!(file, "{pid}"))
        .and_then(|()| fs::rename(&unfinished, path));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

/// Nothing else goes to standard output or error with a version: clients parse both together.
fn print(text: &str) -> Result<ExitCode, String> {
    writeln!(io::stdout(), "{text}")
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| format!("cannot write to standard output: {error}"))
}
