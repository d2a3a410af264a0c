//! The compatible interface: decode, call, encode.

use std::rc::Rc;

use capnp::Error;
use tokio::sync::oneshot;

use super::{Connection, Services, decode, error};
use crate::{
    pause::Kind,
    schema::conmon_capnp::conmon::{
        self, AttachContainerParams, AttachContainerResults, CreateContainerParams, CreateContainerResults,
        CreateNamespacesParams, CreateNamespacesResults, ExecSyncContainerParams, ExecSyncContainerResults,
        ReopenLogContainerParams, ReopenLogContainerResults, ServeAttachContainerParams, ServeAttachContainerResults,
        ServeExecContainerParams, ServeExecContainerResults, ServePortForwardContainerParams,
        ServePortForwardContainerResults, SetWindowSizeContainerParams, SetWindowSizeContainerResults,
        StartFdSocketParams, StartFdSocketResults, VersionParams, VersionResults,
    },
    session::{Subject, exec_sync},
    version::Version,
};

/// The object behind one control connection. Methods it does not have answer `unimplemented`.
pub(super) struct Server {
    pub(super) services: Rc<Services>,
    pub(super) connection: Rc<Connection>,
}

impl conmon::Server for Server {
    async fn version(self: Rc<Self>, params: VersionParams, mut results: VersionResults) -> Result<(), Error> {
        let _call = self.connection.call();
        let verbose = params.get()?.get_request()?.get_verbose();
        let version = Version::current();
        let mut response = results.get().init_response();
        response.set_process_id(std::process::id());
        response.set_version(version.version);
        response.set_tag(version.tag);
        response.set_commit(version.commit);
        response.set_build_date(version.build_date);
        response.set_target(version.target);
        response.set_rust_version(version.rust_version);
        response.set_cargo_version(version.cargo_version);
        if verbose {
            response.set_cargo_tree(version.cargo_tree());
        }
        Ok(())
    }

    async fn create_container(
        self: Rc<Self>,
        params: CreateContainerParams,
        mut results: CreateContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let slots = &self.services.fds.slots;
        let request = decode::create(params.get()?.get_request()?, slots).map_err(|e| error::invalid(&e))?;
        // The message may be megabytes; nothing of it is needed while the runtime works.
        drop(params);
        let pid = self.services.pod.create(request).await.map_err(|e| error::container(&e))?;
        results.get().init_response().set_container_pid(pid);
        Ok(())
    }

    async fn exec_sync_container(
        self: Rc<Self>,
        params: ExecSyncContainerParams,
        mut results: ExecSyncContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (spec, timeout) = decode::exec_sync(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        drop(params);
        let (answer, answered) = oneshot::channel();
        let (pod, captures) = (self.services.pod.clone(), self.services.captures.clone());
        let sessions = &self.services.sessions;
        let session = sessions.begin(sessions.opening(Subject::ExecSync(spec.id.clone())));
        // In the pod's scope: a caller that goes away must not leave a process nobody watches.
        self.services.pod.scope.spawn(async move {
            let _ = answer.send(exec_sync::run(&pod, &captures, session, spec, timeout).await);
        });
        let owed = answered.await.map_err(|_| Error::disconnected("the daemon is shutting down".to_owned()))?;
        let reply = &owed.reply;
        self.services.pod.heap.freed();
        let mut response = results.get().init_response();
        response.set_exit_code(reply.code);
        response.set_timed_out(reply.timed_out);
        response.set_stdout(&reply.stdout);
        response.set_stderr(&reply.stderr);
        owed.told();
        Ok(())
    }

    async fn attach_container(
        self: Rc<Self>,
        params: AttachContainerParams,
        mut results: AttachContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let request = decode::attach(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let container = self.services.pod.containers.find(&request.id).map_err(|e| error::container(&e))?;
        let listening = self.services.attach.listen(&container, request.socket_path, request.stop_after_stdin_eof);
        listening.await.map_err(|e| error::attach(&e))?;
        results.get().init_response();
        Ok(())
    }

    async fn reopen_log_container(
        self: Rc<Self>,
        params: ReopenLogContainerParams,
        mut results: ReopenLogContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let id = decode::reopen_log(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let container = self.services.pod.containers.find(&id).map_err(|e| error::container(&e))?;
        container.reopen_log().await.map_err(|e| error::container(&e))?;
        results.get().init_response();
        Ok(())
    }

    async fn set_window_size_container(
        self: Rc<Self>,
        params: SetWindowSizeContainerParams,
        mut results: SetWindowSizeContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (id, size) = decode::window_size(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let container = self.services.pod.containers.find(&id).map_err(|e| error::container(&e))?;
        container.stdio.resize(size).map_err(|e| error::container(&e.into()))?;
        results.get().init_response();
        Ok(())
    }

    async fn create_namespaces(
        self: Rc<Self>,
        params: CreateNamespacesParams,
        mut results: CreateNamespacesResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let request = decode::namespaces::request(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        drop(params);
        let paths = Kind::ALL.map(|kind| (kind, request.path(kind)));
        self.services.namespaces.create(request).await.map_err(|e| error::namespaces(&e))?;
        let mut list = results.get().init_response().init_namespaces(5);
        for (index, (kind, path)) in (0..).zip(&paths) {
            let mut entry = list.reborrow().get(index);
            entry.set_type(decode::namespaces::wire(*kind));
            // Made of texts.
            entry.set_path(path.to_string_lossy().as_ref());
        }
        Ok(())
    }

    async fn start_fd_socket(
        self: Rc<Self>,
        _params: StartFdSocketParams,
        mut results: StartFdSocketResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let path = self.services.fds.start().map_err(|e| error::fd_socket(&e))?;
        let path = path.to_str().ok_or_else(|| Error::failed("the runtime directory is not UTF-8".to_owned()))?;
        results.get().init_response().set_path(path);
        Ok(())
    }

    async fn serve_exec_container(
        self: Rc<Self>,
        params: ServeExecContainerParams,
        mut results: ServeExecContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (spec, wants) = decode::serve_exec(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        self.services.pod.containers.find(&spec.id).map_err(|e| error::container(&e))?;
        let url = self.services.streams.offer_exec(spec, wants).map_err(|e| error::world(&e))?;
        results.get().init_response().set_url(url);
        Ok(())
    }

    async fn serve_attach_container(
        self: Rc<Self>,
        params: ServeAttachContainerParams,
        mut results: ServeAttachContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (id, stdin, mut wants) =
            decode::serve_attach(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let container = self.services.pod.containers.find(&id).map_err(|e| error::container(&e))?;
        wants.stderr &= !container.stdio.is_terminal();
        let url = self.services.streams.offer_attach(&container, stdin, wants).map_err(|e| error::world(&e))?;
        results.get().init_response().set_url(url);
        Ok(())
    }

    async fn serve_port_forward_container(
        self: Rc<Self>,
        params: ServePortForwardContainerParams,
        mut results: ServePortForwardContainerResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let destination = decode::ports::container(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let url = self.services.streams.offer_port_forward(destination, Vec::new()).map_err(|e| error::world(&e))?;
        results.get().init_response().set_url(url);
        Ok(())
    }
}
