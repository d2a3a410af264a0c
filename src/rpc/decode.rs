//! Requests from the wire as checked values: what comes out of here is believed by everything behind it.

pub(super) mod lists;
pub(super) mod namespaces;
pub(super) mod ports;

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use crate::{
    container::{CreateRequest, LogSpec},
    log::FileForm,
    model::{ContainerId, WindowSize, trimmed},
    oci::{CreateSpec, ExecSpec, Purpose, argv::CgroupManager},
    schema::conmon_capnp::conmon::{
        CgroupManager as WireManager, attach_request, create_container_request, exec_sync_container_request,
        log_driver, reopen_log_request, serve_attach_container_request, serve_exec_container_request,
        set_window_size_request, text_text_map_entry,
    },
    stdio::Wants,
    transport::Slots,
};

/// What is wrong with a request, in the caller's words.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
    /// The message itself cannot be read.
    #[error("the message is malformed: {0}")]
    Malformed(#[from] capnp::Error),
    #[error("the message has a value that this version does not know: {0}")]
    Unknown(#[from] capnp::NotInSchema),
}

fn bad(field: &'static str, reason: impl Into<String>) -> Invalid {
    Invalid::Field { field, reason: reason.into() }
}

/// The files that one list may ask for at a container's end. Each is a job and a temporary file, all of them at once.
const FILES_LIMIT: u32 = 1000;
/// The logs of one container. Each has a descriptor, a task and buffers for as long as the container lives.
const LOGS_LIMIT: u32 = 16;

type TextList<'a> = capnp::text_list::Reader<'a>;
type MapReader<'a> = capnp::struct_list::Reader<'a, text_text_map_entry::Owned>;

/// Takes the descriptors of the slots that the request names, all or, if anything else is wrong too, none.
pub(super) fn create(request: create_container_request::Reader<'_>, slots: &Slots) -> Result<CreateRequest, Invalid> {
    let spec = CreateSpec {
        id: id(request.get_id()?)?,
        bundle: path("bundlePath", request.get_bundle_path()?)?,
        terminal: request.get_terminal(),
        stdin: request.get_stdin(),
        global_args: words("globalArgs", request.get_global_args()?)?,
        command_args: words("commandArgs", request.get_command_args()?)?,
        env: environment(request.get_env_vars()?)?,
        cgroup_manager: manager(request.get_cgroup_manager()?),
        additional_fds: Vec::new(),
    };
    let cleanup_command = words("cleanupCmd", request.get_cleanup_cmd()?)?;
    if cleanup_command.first().is_some_and(String::is_empty) {
        return Err(bad("cleanupCmd", "the program is empty"));
    }
    let mut create = CreateRequest {
        spec,
        exit_paths: paths("exitPaths", request.get_exit_paths()?)?,
        oom_exit_paths: paths("oomExitPaths", request.get_oom_exit_paths()?)?,
        logs: logs(request.get_log_drivers()?)?,
        cleanup_command,
        leak_fds: Vec::new(),
    };
    // Last: a request that is refused costs nobody a descriptor.
    let additional: Vec<_> = request.get_additional_fds()?.iter().collect();
    let leak: Vec<_> = request.get_leak_fds()?.iter().collect();
    let claimed = slots.claim([("additionalFds", &additional), ("leakFds", &leak)]);
    [create.spec.additional_fds, create.leak_fds] = claimed.map_err(|(field, error)| bad(field, error.to_string()))?;
    Ok(create)
}

fn logs(drivers: capnp::struct_list::Reader<'_, log_driver::Owned>) -> Result<Vec<LogSpec>, Invalid> {
    if drivers.len() > LOGS_LIMIT {
        return Err(bad("logDrivers", format!("there are more than {LOGS_LIMIT}")));
    }
    let mut logs: Vec<LogSpec> = Vec::new();
    for driver in drivers {
        let log = log(driver)?;
        // Two that write to one file would mix their records, and the one would lose what the other's size limit replaces.
        if logs.iter().any(|other| other.goes_where(&log)) {
            return Err(bad("logDrivers", "two of them write to the same place"));
        }
        logs.push(log);
    }
    Ok(logs)
}

fn log(driver: log_driver::Reader<'_>) -> Result<LogSpec, Invalid> {
    let form = match driver.get_type()? {
        log_driver::Type::ContainerRuntimeInterface => FileForm::Cri,
        log_driver::Type::Json => FileForm::Json,
        log_driver::Type::Journald => return Ok(LogSpec::Journal),
    };
    let path = path("logDrivers.path", driver.get_path()?)?;
    Ok(LogSpec::File { form, path, max_size: NonZeroU64::new(driver.get_max_size()) })
}

/// The command and its timeout; zero is none.
pub(super) fn exec_sync(request: exec_sync_container_request::Reader<'_>) -> Result<(ExecSpec, Duration), Invalid> {
    let spec = ExecSpec {
        id: id(request.get_id()?)?,
        command: command(request.get_command()?)?,
        terminal: request.get_terminal(),
        stdin: false,
        env: environment(request.get_env_vars()?)?,
        cgroup_manager: manager(request.get_cgroup_manager()?),
        purpose: Purpose::Sync,
    };
    Ok((spec, Duration::from_secs(request.get_timeout_sec())))
}

pub(super) fn serve_exec(request: serve_exec_container_request::Reader<'_>) -> Result<(ExecSpec, Wants), Invalid> {
    let terminal = request.get_tty();
    let stdin = request.get_stdin();
    let spec = ExecSpec {
        id: id(request.get_id()?)?,
        command: command(request.get_command()?)?,
        terminal,
        stdin,
        env: Vec::new(),
        cgroup_manager: manager(request.get_cgroup_manager()?),
        purpose: Purpose::Streaming,
    };
    // With a terminal there is no stderr to have; asking for it all the same is accepted (streaming 1.2).
    let wants = Wants { stdout: request.get_stdout(), stderr: request.get_stderr() && !terminal };
    if !(stdin || wants.stdout || request.get_stderr()) {
        return Err(bad("streams", "one of stdin, stdout, or stderr must be set"));
    }
    Ok((spec, wants))
}

/// The container, whether stdin is wanted, and the output wanted before the container's terminal is considered.
pub(super) fn serve_attach(
    request: serve_attach_container_request::Reader<'_>,
) -> Result<(ContainerId, bool, Wants), Invalid> {
    let (stdin, wants) = (request.get_stdin(), Wants { stdout: request.get_stdout(), stderr: request.get_stderr() });
    if !(stdin || wants.stdout || wants.stderr) {
        return Err(bad("streams", "one of stdin, stdout, and stderr must be set"));
    }
    Ok((id(request.get_id()?)?, stdin, wants))
}

/// What a call for an attach socket says.
#[derive(Debug)]
pub(super) struct Attach {
    pub(super) id: ContainerId,
    pub(super) socket_path: PathBuf,
    pub(super) stop_after_stdin_eof: bool,
}

pub(super) fn attach(request: attach_request::Reader<'_>) -> Result<Attach, Invalid> {
    /// unix(7): `sun_path` holds 108 bytes, the last of them a NUL; a long directory can be got round, a long name not.
    const NAME_LIMIT: usize = 107;
    let socket_path = path("socketPath", request.get_socket_path()?)?;
    if socket_path.file_name().is_some_and(|name| name.len() > NAME_LIMIT) {
        return Err(bad("socketPath", "the file name is longer than 107 bytes, so no socket can have it"));
    }
    let session = trimmed(text("execSessionId", request.get_exec_session_id()?)?, 256);
    if !session.is_empty() {
        // The contract has this field; nobody knows what for.
        tracing::debug!(session, "a call for an attach socket names an exec session");
    }
    Ok(Attach { id: id(request.get_id()?)?, socket_path, stop_after_stdin_eof: request.get_stop_after_stdin_eof() })
}

pub(super) fn reopen_log(request: reopen_log_request::Reader<'_>) -> Result<ContainerId, Invalid> {
    id(request.get_id()?)
}

pub(super) fn window_size(request: set_window_size_request::Reader<'_>) -> Result<(ContainerId, WindowSize), Invalid> {
    Ok((id(request.get_id()?)?, WindowSize { cols: request.get_width(), rows: request.get_height() }))
}

fn manager(wire: WireManager) -> CgroupManager {
    match wire {
        WireManager::Systemd => CgroupManager::Systemd,
        WireManager::Cgroupfs => CgroupManager::Cgroupfs,
    }
}

fn id(text: capnp::text::Reader<'_>) -> Result<ContainerId, Invalid> {
    ContainerId::parse(utf8("id", text)?).map_err(|error| bad("id", error.to_string()))
}

/// Text without NUL, which would end it early in every argv and path.
fn text(field: &'static str, reader: capnp::text::Reader<'_>) -> Result<String, Invalid> {
    let text = utf8(field, reader)?;
    if text.contains('\0') {
        return Err(bad(field, "it contains a NUL byte"));
    }
    Ok(text.to_owned())
}

fn utf8<'a>(field: &'static str, text: capnp::text::Reader<'a>) -> Result<&'a str, Invalid> {
    text.to_str().map_err(|_| bad(field, "it is not valid UTF-8"))
}

fn path(field: &'static str, reader: capnp::text::Reader<'_>) -> Result<PathBuf, Invalid> {
    /// Linux's own limit, `PATH_MAX`.
    const PATH_LIMIT: usize = 4095;
    let text = text(field, reader)?;
    if text.is_empty() {
        return Err(bad(field, "the path is empty"));
    }
    if !text.starts_with('/') {
        return Err(bad(field, "the path is not absolute"));
    }
    if text.len() > PATH_LIMIT {
        return Err(bad(field, "the path is longer than 4095 bytes"));
    }
    let path = PathBuf::from(text);
    if path.file_name().is_none() {
        return Err(bad(field, "the path has no file name"));
    }
    Ok(path)
}

fn paths(field: &'static str, list: TextList<'_>) -> Result<Vec<PathBuf>, Invalid> {
    if list.len() > FILES_LIMIT {
        return Err(bad(field, format!("there are more than {FILES_LIMIT} paths")));
    }
    list.iter().map(|entry| path(field, entry?)).collect()
}

fn words(field: &'static str, list: TextList<'_>) -> Result<Vec<String>, Invalid> {
    list.iter().map(|entry| text(field, entry?)).collect()
}

fn command(list: TextList<'_>) -> Result<Vec<String>, Invalid> {
    let command = words("command", list)?;
    match command.first() {
        None => Err(bad("command", "it is empty")),
        Some(program) if program.is_empty() => Err(bad("command", "the program is empty")),
        Some(_) => Ok(command),
    }
}

fn environment(map: MapReader<'_>) -> Result<Vec<(String, String)>, Invalid> {
    let entry = |entry: text_text_map_entry::Reader<'_>| {
        let key = text("envVars", entry.get_key()?)?;
        if key.is_empty() || key.contains('=') {
            return Err(bad("envVars", "a name is empty or contains \"=\""));
        }
        Ok((key, text("envVars", entry.get_value()?)?))
    };
    map.iter().map(entry).collect()
}
