use std::{
    fmt,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use capnp::capability::{FromClientHook, Promise, Response};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use futures_util::AsyncReadExt;
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{
    AttachContainer, CONTROL_SOCKET, ClientError, CreateContainer, CreateNamespaces, ExecSync, ExecSyncReply,
    NamespaceKind, ServeAttach, ServeExec, ServePortForward, VersionReply, conmon_capnp::conmon, encode,
    holdfast_capnp::holdfast,
};
use crate::model::WindowSize;

/// The longest path a socket address holds, with its final NUL left out; unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// One connection to a daemon. Calls may run at the same time; dropping it closes the connection.
pub struct Client {
    conmon: conmon::Client,
    holdfast: holdfast::Client,
    system: JoinHandle<()>,
}

impl Client {
    /// Connects to the daemon of a runtime directory, whose path may be longer than a socket address takes.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] when nobody listens, [`ClientError::Connect`] for anything else.
    ///
    /// # Panics
    /// Outside a tokio `LocalRuntime` or `LocalSet`.
    pub async fn connect(runtime_dir: &Path) -> Result<Self, ClientError> {
        let path = runtime_dir.join(CONTROL_SOCKET);
        let stream = connect_socket(runtime_dir, &path).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon(runtime_dir.into()),
            _ => ClientError::Connect { path, source },
        })?;
        Ok(Self::over(stream))
    }

    /// The client of a connection that is there already.
    fn over(stream: UnixStream) -> Self {
        let (reader, writer) = stream.compat().split();
        let network = Box::new(VatNetwork::new(reader, writer, Side::Client, Default::default()));
        let mut system = RpcSystem::new(network, None);
        let conmon: conmon::Client = system.bootstrap(Side::Server);
        // Both interfaces are methods of the same object.
        let holdfast = holdfast::Client::new(conmon.clone().into_client_hook());
        #[allow(
            clippy::disallowed_methods,
            reason = "the client is not the daemon; `Client` owns and aborts this task"
        )]
        let system = tokio::task::spawn_local(async move {
            // The reason why a connection ended reaches every call that was waiting.
            let _ = system.await;
        });
        Self { conmon, holdfast, system }
    }

    /// Whether the daemon has kept the connection open so far.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.system.is_finished()
    }

    /// The compatible interface itself. Lives as long as this client.
    #[must_use]
    pub fn conmon(&self) -> &conmon::Client {
        &self.conmon
    }

    /// The extended interface itself. Lives as long as this client.
    #[must_use]
    pub fn holdfast(&self) -> &holdfast::Client {
        &self.holdfast
    }

    /// What the daemon is; `verbose` adds its dependencies.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn version(&self, verbose: bool) -> Result<VersionReply, ClientError> {
        const CALL: &str = "version";
        let mut call = self.conmon.version_request();
        call.get().init_request().set_verbose(verbose);
        let reply = answer(CALL, call.send().promise).await?;
        let decode = || -> capnp::Result<VersionReply> {
            let version = reply.get()?.get_response()?;
            Ok(VersionReply {
                process_id: version.get_process_id(),
                version: version.get_version()?.to_string()?,
                tag: version.get_tag()?.to_string()?,
                commit: version.get_commit()?.to_string()?,
                build_date: version.get_build_date()?.to_string()?,
                target: version.get_target()?.to_string()?,
                rust_version: version.get_rust_version()?.to_string()?,
                cargo_version: version.get_cargo_version()?.to_string()?,
                cargo_tree: version.get_cargo_tree()?.to_string()?,
            })
        };
        decode().map_err(|error| failed(CALL, &error))
    }

    /// Creates a container and returns the pid of its init process, which waits for the runtime's `start`.
    ///
    /// # Errors
    /// See [`ClientError`]; the runtime's own message is part of a refusal.
    pub async fn create_container(&self, create: &CreateContainer) -> Result<u32, ClientError> {
        const CALL: &str = "createContainer";
        let mut call = self.conmon.create_container_request();
        encode::create(create, call.get().init_request())?;
        let reply = answer(CALL, call.send().promise).await?;
        let pid = || reply.get()?.get_response().map(|response| response.get_container_pid());
        pid().map_err(|error| failed(CALL, &error))
    }

    /// Runs a command in a container to its end and returns what it wrote.
    ///
    /// # Errors
    /// See [`ClientError`]; a command that fails is not an error.
    pub async fn exec_sync(&self, exec: &ExecSync) -> Result<ExecSyncReply, ClientError> {
        const CALL: &str = "execSyncContainer";
        let mut call = self.conmon.exec_sync_container_request();
        let mut request = call.get().init_request();
        request.set_id(exec.id.as_str());
        request.set_timeout_sec(exec.timeout_s);
        request.set_terminal(exec.terminal);
        request.set_cgroup_manager(exec.cgroup_manager.into());
        encode::texts(request.reborrow().init_command(encode::count(&exec.command)), &exec.command);
        encode::map(request.init_env_vars(encode::count(&exec.env)), &exec.env);
        let reply = answer(CALL, call.send().promise).await?;
        let decode = || -> capnp::Result<ExecSyncReply> {
            let response = reply.get()?.get_response()?;
            Ok(ExecSyncReply {
                exit_code: response.get_exit_code(),
                stdout: Bytes::copy_from_slice(response.get_stdout()?),
                stderr: Bytes::copy_from_slice(response.get_stderr()?),
                timed_out: response.get_timed_out(),
            })
        };
        decode().map_err(|error| failed(CALL, &error))
    }

    /// Makes a container listen for attach clients at a path. Its socket's packets are described in control-api.md 4.4.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach_container(&self, attach: &AttachContainer) -> Result<(), ClientError> {
        let mut call = self.conmon.attach_container_request();
        let mut request = call.get().init_request();
        request.set_id(attach.id.as_str());
        request.set_socket_path(encode::text(&attach.socket_path)?);
        request.set_stop_after_stdin_eof(attach.stop_after_stdin_eof);
        answer("attachContainer", call.send().promise).await.map(drop)
    }

    /// Makes a container close its log and open the path again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn reopen_log(&self, id: &str) -> Result<(), ClientError> {
        let mut call = self.conmon.reopen_log_container_request();
        call.get().init_request().set_id(id);
        answer("reopenLogContainer", call.send().promise).await.map(drop)
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// See [`ClientError`]; a container without a terminal is one.
    pub async fn set_window_size(&self, id: &str, size: WindowSize) -> Result<(), ClientError> {
        let mut call = self.conmon.set_window_size_container_request();
        let mut request = call.get().init_request();
        request.set_id(id);
        request.set_width(size.cols);
        request.set_height(size.rows);
        answer("setWindowSizeContainer", call.send().promise).await.map(drop)
    }

    /// Makes the namespaces of a pod and returns where each of the five kinds is pinned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_namespaces(
        &self,
        create: &CreateNamespaces,
    ) -> Result<Vec<(NamespaceKind, PathBuf)>, ClientError> {
        const CALL: &str = "createNamespaces";
        let mut call = self.conmon.create_namespaces_request();
        encode::namespaces(create, call.get().init_request())?;
        let reply = answer(CALL, call.send().promise).await?;
        let decode = || -> capnp::Result<Vec<_>> {
            let list = reply.get()?.get_response()?.get_namespaces()?;
            list.iter().map(|entry| Ok((entry.get_type()?.into(), entry.get_path()?.to_str()?.into()))).collect()
        };
        decode().map_err(|error| failed(CALL, &error))
    }

    /// Where to hand over descriptors for containers; see [`FdClient`](super::FdClient).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_fd_socket(&self) -> Result<PathBuf, ClientError> {
        const CALL: &str = "startFdSocket";
        let reply = answer(CALL, self.conmon.start_fd_socket_request().send().promise).await?;
        let path = || Ok(reply.get()?.get_response()?.get_path()?.to_str()?.into());
        path().map_err(|error| failed(CALL, &error))
    }

    /// The one-time URL of an exec; the command starts when a client connects there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn serve_exec(&self, exec: &ServeExec) -> Result<String, ClientError> {
        const CALL: &str = "serveExecContainer";
        let mut call = self.conmon.serve_exec_container_request();
        let mut request = call.get().init_request();
        request.set_id(exec.id.as_str());
        request.set_tty(exec.tty);
        request.set_stdin(exec.stdin);
        request.set_stdout(exec.stdout);
        request.set_stderr(exec.stderr);
        request.set_cgroup_manager(exec.cgroup_manager.into());
        encode::texts(request.init_command(encode::count(&exec.command)), &exec.command);
        let reply = answer(CALL, call.send().promise).await?;
        let url = || reply.get()?.get_response()?.get_url()?.to_string().map_err(Into::into);
        url().map_err(|error| failed(CALL, &error))
    }

    /// The one-time URL of an attach to a container.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn serve_attach(&self, attach: &ServeAttach) -> Result<String, ClientError> {
        const CALL: &str = "serveAttachContainer";
        let mut call = self.conmon.serve_attach_container_request();
        let mut request = call.get().init_request();
        request.set_id(attach.id.as_str());
        request.set_stdin(attach.stdin);
        request.set_stdout(attach.stdout);
        request.set_stderr(attach.stderr);
        let reply = answer(CALL, call.send().promise).await?;
        let url = || reply.get()?.get_response()?.get_url()?.to_string().map_err(Into::into);
        url().map_err(|error| failed(CALL, &error))
    }

    /// The one-time URL of a port forward into a network namespace; `net_ns` is the namespace's path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn serve_port_forward(&self, net_ns: &Path) -> Result<String, ClientError> {
        const CALL: &str = "servePortForwardContainer";
        let mut call = self.conmon.serve_port_forward_container_request();
        call.get().init_request().set_net_ns_path(encode::text(net_ns)?);
        let reply = answer(CALL, call.send().promise).await?;
        let url = || reply.get()?.get_response()?.get_url()?.to_string().map_err(Into::into);
        url().map_err(|error| failed(CALL, &error))
    }

    /// The same with what only our own interface takes: the pod's name, and the ports for clients that cannot name them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn serve_pod_ports(&self, serve: &ServePortForward) -> Result<String, ClientError> {
        const CALL: &str = "servePortForward";
        let mut call = self.holdfast.serve_port_forward_request();
        let mut request = call.get().init_request();
        request.set_net_ns_path(encode::text(&serve.net_ns)?);
        request.set_pod_id(serve.pod_id.as_str());
        request.set_ports(&serve.ports[..]).map_err(|error| failed(CALL, &error))?;
        let reply = answer(CALL, call.send().promise).await?;
        let url = || reply.get()?.get_response()?.get_url()?.to_string().map_err(Into::into);
        url().map_err(|error| failed(CALL, &error))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.system.abort();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// A path that is too long for a socket address is reached through its directory's descriptor; control-api.md 3.1.
async fn connect_socket(runtime_dir: &Path, path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
        return UnixStream::connect(path).await;
    }
    let dir = File::open(runtime_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd())).await
}

pub(super) async fn answer<T: capnp::traits::Owned>(
    call: &'static str,
    promise: Promise<Response<T>, capnp::Error>,
) -> Result<Response<T>, ClientError> {
    promise.await.map_err(|error| failed(call, &error))
}

pub(super) fn failed(call: &'static str, error: &capnp::Error) -> ClientError {
    if error.kind == capnp::ErrorKind::Disconnected {
        return ClientError::Gone { call };
    }
    // capnp-rpc puts this before what the other end really said.
    let reason = error.extra.strip_prefix("remote exception: ").unwrap_or(&error.extra);
    let reason = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
    ClientError::Refused { call, reason }
}

#[cfg(test)]
mod tests;
