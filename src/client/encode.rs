//! From plain values to the fields of a request.

use std::path::{Path, PathBuf};

use super::{
    CgroupManager, ClientError, CreateContainer, CreateNamespaces, LogDriver, LogDriverKind, NamespaceKind,
    conmon_capnp::{conmon, conmon::log_driver::Type},
};

pub(super) fn create(
    create: &CreateContainer,
    mut request: conmon::create_container_request::Builder<'_>,
) -> Result<(), ClientError> {
    request.set_id(create.id.as_str());
    request.set_bundle_path(text(&create.bundle)?);
    request.set_terminal(create.terminal);
    request.set_stdin(create.stdin);
    request.set_cgroup_manager(create.cgroup_manager.into());
    let exit_paths = path_texts(&create.exit_paths)?;
    texts(request.reborrow().init_exit_paths(count(&exit_paths)), &exit_paths);
    let oom_paths = path_texts(&create.oom_exit_paths)?;
    texts(request.reborrow().init_oom_exit_paths(count(&oom_paths)), &oom_paths);
    let mut drivers = request.reborrow().init_log_drivers(count(&create.log_drivers));
    for (index, driver) in (0..).zip(&create.log_drivers) {
        log_driver(driver, drivers.reborrow().get(index))?;
    }
    texts(request.reborrow().init_cleanup_cmd(count(&create.cleanup_command)), &create.cleanup_command);
    texts(request.reborrow().init_global_args(count(&create.global_args)), &create.global_args);
    texts(request.reborrow().init_command_args(count(&create.command_args)), &create.command_args);
    map(request.reborrow().init_env_vars(count(&create.env)), &create.env);
    slots(request.reborrow().init_additional_fds(count(&create.additional_fds)), &create.additional_fds);
    slots(request.init_leak_fds(count(&create.leak_fds)), &create.leak_fds);
    Ok(())
}

fn log_driver(driver: &LogDriver, mut out: conmon::log_driver::Builder<'_>) -> Result<(), ClientError> {
    out.set_type(match driver.kind {
        LogDriverKind::Cri => Type::ContainerRuntimeInterface,
        LogDriverKind::Json => Type::Json,
        LogDriverKind::Journald => Type::Journald,
    });
    out.set_path(text(&driver.path)?);
    out.set_max_size(driver.max_size);
    Ok(())
}

pub(super) fn namespaces(
    create: &CreateNamespaces,
    mut request: conmon::create_namespaces_request::Builder<'_>,
) -> Result<(), ClientError> {
    request.set_pod_id(create.pod_id.as_str());
    request.set_base_path(text(&create.base_path)?);
    let mut kinds = request.reborrow().init_namespaces(count(&create.kinds));
    for (index, kind) in (0..).zip(&create.kinds) {
        kinds.set(index, (*kind).into());
    }
    texts(request.reborrow().init_uid_mappings(count(&create.uid_mappings)), &create.uid_mappings);
    texts(request.init_gid_mappings(count(&create.gid_mappings)), &create.gid_mappings);
    Ok(())
}

impl From<NamespaceKind> for conmon::Namespace {
    fn from(kind: NamespaceKind) -> Self {
        match kind {
            NamespaceKind::Ipc => Self::Ipc,
            NamespaceKind::Net => Self::Net,
            NamespaceKind::Pid => Self::Pid,
            NamespaceKind::User => Self::User,
            NamespaceKind::Uts => Self::Uts,
        }
    }
}

impl From<conmon::Namespace> for NamespaceKind {
    fn from(kind: conmon::Namespace) -> Self {
        match kind {
            conmon::Namespace::Ipc => Self::Ipc,
            conmon::Namespace::Net => Self::Net,
            conmon::Namespace::Pid => Self::Pid,
            conmon::Namespace::User => Self::User,
            conmon::Namespace::Uts => Self::Uts,
        }
    }
}

impl From<CgroupManager> for conmon::CgroupManager {
    fn from(manager: CgroupManager) -> Self {
        match manager {
            CgroupManager::Systemd => Self::Systemd,
            CgroupManager::Cgroupfs => Self::Cgroupfs,
        }
    }
}

pub(super) fn text(path: &Path) -> Result<&str, ClientError> {
    path.to_str().ok_or_else(|| ClientError::NotUtf8(path.into()))
}

fn path_texts(paths: &[PathBuf]) -> Result<Vec<&str>, ClientError> {
    paths.iter().map(|path| text(path)).collect()
}

/// A list longer than 2³² could not be held in memory to begin with.
pub(super) fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

pub(super) fn texts(mut list: capnp::text_list::Builder<'_>, items: &[impl AsRef<str>]) {
    for (index, item) in (0..).zip(items) {
        list.set(index, item.as_ref());
    }
}

fn slots(mut list: capnp::primitive_list::Builder<'_, u64>, items: &[u64]) {
    for (index, item) in (0..).zip(items) {
        list.set(index, *item);
    }
}

pub(super) fn map(
    mut list: capnp::struct_list::Builder<'_, conmon::text_text_map_entry::Owned>,
    items: &[(String, String)],
) {
    for (index, (key, value)) in (0..).zip(items) {
        let mut entry = list.reborrow().get(index);
        entry.set_key(key.as_str());
        entry.set_value(value.as_str());
    }
}
