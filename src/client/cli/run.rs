use std::{fs, io, iter, path::PathBuf};

use nix::sys::signal::Signal;

use super::{
    BROKEN_PIPE, CliError, RuntimeDir, RuntimeOptions,
    bundle::Bundle,
    daemon,
    exit::{self, POLL},
    follow::Follower,
    output::{self, Reader},
    paths::ContainerDir,
    remove::release,
    runtime::Runtime,
    session::{self, End, Signals},
    terminal::{self, RawMode},
};
use crate::{
    client::{Client, CreateContainer, LogDriver, LogDriverKind, STREAM_PROTOCOLS, ServeAttach, StreamClient},
    model::{ContainerId, Outcome, StdStream},
};

/// Options of `holdfastctl run`.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The container's id; by default a random one.
    pub id: Option<ContainerId>,
    /// The container's root file system.
    pub rootfs: PathBuf,
    /// Argv.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The command's working directory in the container.
    pub cwd: String,
    /// Give the container a terminal.
    pub tty: bool,
    /// Copy our stdin.
    pub interactive: bool,
    /// Return once it is started.
    pub detach: bool,
    /// Leave bundle, log and exit file behind.
    pub keep: bool,
    /// Further logs beside the one in the container's directory.
    pub logs: Vec<LogDriver>,
    /// The runtime.
    pub runtime: RuntimeOptions,
}

/// Creates and starts a container, shows its output to the end and returns its exit code.
///
/// # Errors
/// When the container could not be run to its end.
pub async fn run(dir: &RuntimeDir, options: &RunOptions) -> Result<u8, CliError> {
    let rootfs = check(options)?;
    let id = match &options.id {
        Some(id) => id.clone(),
        None => random_id()?,
    };
    let lock = dir.lock()?;
    let container = dir.container(&id);
    make_directory(&container, &id)?;
    let (client, runtime) = match daemon::connect_or_start(dir, &options.runtime).await {
        Ok(daemon) => daemon,
        Err(error) => {
            // The error that matters is the daemon's.
            let _ = fs::remove_dir_all(container.bundle());
            return Err(error);
        }
    };
    let run = Run { options, id, container, client, runtime };
    let created = run.create(rootfs).await;
    drop(lock);
    let result = match created {
        Ok(()) if options.detach => match run.runtime.start(&run.id) {
            Ok(()) => return print_id(&run.id),
            Err(error) => Err(error),
        },
        Ok(()) => run.foreground().await,
        Err(error) => Err(error),
    };
    let keep = options.keep && result.is_ok();
    let released = release(dir, &run.id, &run.runtime, keep).await;
    if let Err(error) = released {
        output::note(error);
    }
    result
}

/// One container on its way from the bundle to the exit code.
struct Run<'a> {
    options: &'a RunOptions,
    id: ContainerId,
    container: ContainerDir,
    client: Client,
    runtime: Runtime,
}

/// How the container's output ended for us.
enum Shown {
    Exited(i32),
    ReaderGone,
}

impl Run<'_> {
    async fn create(&self, rootfs: PathBuf) -> Result<(), CliError> {
        let options = self.options;
        let bundle = Bundle {
            id: &self.id,
            rootfs: &rootfs,
            command: &options.command,
            env: &options.env,
            cwd: &options.cwd,
            terminal: options.tty,
            stdin_once: options.interactive,
            cgroup_manager: self.runtime.cgroup_manager(),
        };
        let path = self.container.config();
        fs::write(&path, format!("{:#}\n", bundle.config()))
            .map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))?;
        // The first one is ours: output is shown from it.
        let own = LogDriver { kind: LogDriverKind::Cri, path: self.container.log(), max_size: 0 };
        let create = CreateContainer {
            id: self.id.to_string(),
            bundle: self.container.bundle().into(),
            terminal: options.tty,
            stdin: options.interactive,
            exit_paths: vec![self.container.exit()],
            log_drivers: iter::once(own).chain(options.logs.iter().cloned()).collect(),
            cgroup_manager: self.runtime.cgroup_manager(),
            ..CreateContainer::default()
        };
        self.client.create_container(&create).await?;
        // From here it counts as a container: it has to be deleted, and its end will be reported.
        self.runtime.store(&self.container.settings())
    }

    async fn foreground(&self) -> Result<u8, CliError> {
        let options = self.options;
        let mut signals = Signals::watch()?;
        // Attached before the start: nothing is replayed to later clients.
        let attached = if options.tty || options.interactive { Some(self.attach().await?) } else { None };
        if options.tty
            && let Some(size) = terminal::window_size()
        {
            self.client.set_window_size(self.id.as_str(), size).await?;
        }
        let raw = (options.tty && options.interactive).then(RawMode::enter).transpose()?;
        self.runtime.start(&self.id)?;
        let mut show = Box::pin(self.show(attached, raw));
        let mut asked = false;
        loop {
            tokio::select! {
                shown = &mut show => return match shown? {
                    Shown::Exited(code) => exit::code(code),
                    Shown::ReaderGone => Ok(BROKEN_PIPE),
                },
                signal = signals.next() => {
                    self.pass_on(signal, asked);
                    asked = true;
                }
            }
        }
    }

    /// The first signal is the container's to answer; who sends a second one wants it gone.
    fn pass_on(&self, signal: Signal, again: bool) {
        let done = if again { self.runtime.delete(&self.id) } else { self.runtime.kill(&self.id, signal) };
        if let Err(error) = done {
            output::note(error);
        }
    }

    /// With a terminal the session carries the output; else the log does, which loses nothing however slow we are, and
    /// the session is for stdin alone.
    async fn attach(&self) -> Result<StreamClient, CliError> {
        let options = self.options;
        let attach =
            ServeAttach { id: self.id.to_string(), stdin: options.interactive, stdout: options.tty, stderr: false };
        let url = self.client.serve_attach(&attach).await?;
        let mut stream = StreamClient::connect(&url, &STREAM_PROTOCOLS).await?;
        if options.tty {
            // The first message has no bytes: it says that the server is ready, so no output can get lost after it.
            stream.next().await?;
        }
        Ok(stream)
    }

    async fn show(&self, attached: Option<StreamClient>, raw: Option<RawMode>) -> Result<Shown, CliError> {
        let stdin = self.options.interactive.then(terminal::read_stdin).transpose()?;
        match attached {
            None => self.follow_log().await,
            Some(stream) if self.options.tty => {
                let end = session::copy(stream, stdin, true).await?;
                drop(raw);
                if end == End::ReaderGone {
                    return Ok(Shown::ReaderGone);
                }
                note_failure(end);
                self.await_exit().await
            }
            Some(stream) => {
                let feed = async {
                    note_failure(session::copy(stream, stdin, false).await?);
                    std::future::pending::<Result<Shown, CliError>>().await
                };
                tokio::select! {
                    shown = self.follow_log() => shown,
                    shown = feed => shown,
                }
            }
        }
    }

    async fn follow_log(&self) -> Result<Shown, CliError> {
        let mut follower = Follower::new(&self.container.log(), false);
        let mut tick = tokio::time::interval(POLL);
        loop {
            tick.tick().await;
            // Looked at first: the log is complete when the exit file is there.
            let code = self.exit_code()?;
            if let Reader::Gone = follower.print_available()? {
                return Ok(Shown::ReaderGone);
            }
            if let Some(code) = code {
                return Ok(Shown::Exited(code));
            }
        }
    }

    async fn await_exit(&self) -> Result<Shown, CliError> {
        let mut tick = tokio::time::interval(POLL);
        loop {
            tick.tick().await;
            if let Some(code) = self.exit_code()? {
                return Ok(Shown::Exited(code));
            }
        }
    }

    /// The container's code once it has ended.
    fn exit_code(&self) -> Result<Option<i32>, CliError> {
        // Asked before the file is looked at: a daemon writes it before it goes.
        let connected = self.client.is_connected();
        let code = exit::read(&self.container.exit())?;
        if code.is_none() && !connected {
            let what = "the daemon ended before the container did, so its exit code will not be known";
            return Err(CliError::hint(what, "run it again"));
        }
        Ok(code)
    }
}

fn note_failure(end: End) {
    match end {
        End::Status(Outcome::Failed(text)) => output::note(text),
        End::Lost => output::note("the connection to the container was lost; waiting for its end"),
        End::Status(Outcome::Exited(_)) | End::ReaderGone => {}
    }
}

/// Refuses what would only fail later, and with a less clear message. Returns the root file system's absolute path.
fn check(options: &RunOptions) -> Result<PathBuf, CliError> {
    let rootfs = options.rootfs.canonicalize().ok().filter(|path| path.is_dir()).ok_or_else(|| {
        let what = format!("the root file system {} is not a directory", options.rootfs.display());
        CliError::hint(what, "give one with --rootfs, such as an unpacked image")
    })?;
    if options.command.is_empty() {
        return Err(CliError::hint("no command was given", "add it at the end: -- CMD ARG…"));
    }
    if let Some(bad) = options.env.iter().find(|pair| !pair.contains('=') || pair.starts_with('=')) {
        return Err(CliError::hint(format!("the variable {bad:?} has no name or no value"), "write --env NAME=VALUE"));
    }
    if !options.cwd.starts_with('/') {
        let what = format!("the working directory {:?} is not absolute", options.cwd);
        return Err(CliError::hint(what, "write --cwd /DIR, as the container sees it"));
    }
    Ok(rootfs)
}

fn make_directory(container: &ContainerDir, id: &ContainerId) -> Result<(), CliError> {
    container.make().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CliError::hint(
            format!("there is a container {id} already"),
            format!("remove it with `holdfastctl rm {id}`, or choose another --name"),
        ),
        _ => CliError::new(format!("cannot make {}: {error}", container.bundle().display())),
    })
}

fn random_id() -> Result<ContainerId, CliError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::hint(format!("no random id: {error}"), "give one with --name"))?;
    ContainerId::parse(&format!("hf-{:016x}", u64::from_ne_bytes(bytes))).map_err(CliError::new)
}

fn print_id(id: &ContainerId) -> Result<u8, CliError> {
    output::write(StdStream::Stdout, format!("{id}\n").as_bytes())?;
    Ok(0)
}
