//! The `config.json` of a container made by `holdfastctl run`; OCI runtime specification 1.0.2.

use std::path::Path;

use serde_json::{Value, json};

use crate::{client::CgroupManager, model::ContainerId};

/// What a container is made of.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    pub(super) id: &'a ContainerId,
    /// Absolute.
    pub(super) rootfs: &'a Path,
    pub(super) command: &'a [String],
    /// `NAME=VALUE`.
    pub(super) env: &'a [String],
    pub(super) cwd: &'a str,
    pub(super) terminal: bool,
    /// Whether the container's stdin closes with the first client's; streaming.md 4.6.
    pub(super) stdin_once: bool,
    pub(super) cgroup_manager: CgroupManager,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What programs commonly need as root in a container, and nothing that reaches beyond it.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Files of /proc that tell about the host.
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// Files of /proc that change the host.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Bundle<'_> {
    /// The text of the `config.json`.
    pub(super) fn config(&self) -> Value {
        let mut annotations = json!({});
        if self.stdin_once {
            annotations["io.kubernetes.cri-o.StdinOnce"] = json!("true");
        }
        let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        json!({
            "ociVersion": "1.0.2",
            "annotations": annotations,
            "hostname": self.hostname(),
            "root": { "path": self.rootfs, "readonly": false },
            "process": self.process(),
            "mounts": mounts(),
            "linux": {
                "cgroupsPath": self.cgroups_path(),
                "namespaces": namespaces,
                // The runtimes add /dev/null and its like to what is allowed.
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        })
    }

    fn process(&self) -> Value {
        let given = |name: &str| self.env.iter().any(|pair| pair.split('=').next() == Some(name));
        let mut env = Vec::new();
        if !given("PATH") {
            env.push(PATH.to_owned());
        }
        if self.terminal && !given("TERM") {
            env.push("TERM=xterm".to_owned());
        }
        env.extend_from_slice(self.env);
        json!({
            "terminal": self.terminal,
            "user": { "uid": 0, "gid": 0 },
            "args": self.command,
            "env": env,
            "cwd": self.cwd,
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
        })
    }

    /// Linux takes 64 bytes.
    fn hostname(&self) -> &str {
        let id = self.id.as_str();
        &id[..id.len().min(64)]
    }

    fn cgroups_path(&self) -> String {
        match self.cgroup_manager {
            CgroupManager::Cgroupfs => format!("/holdfast-{}", self.id),
            CgroupManager::Systemd => format!("system.slice:holdfast:{}", self.id),
        }
    }
}

fn mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle<'a>(id: &'a ContainerId, env: &'a [String]) -> Bundle<'a> {
        Bundle {
            id,
            rootfs: Path::new("/r"),
            command: &[],
            env,
            cwd: "/",
            terminal: true,
            stdin_once: true,
            cgroup_manager: CgroupManager::Cgroupfs,
        }
    }

    #[test]
    fn a_callers_variable_replaces_the_default_of_the_same_name() {
        let id = ContainerId::parse("a").unwrap();
        let env = ["PATH=/x".to_owned(), "TERMINAL=1".to_owned()];
        let config = bundle(&id, &env).config();
        assert_eq!(config["process"]["env"], json!(["TERM=xterm", "PATH=/x", "TERMINAL=1"]));
        assert_eq!(config["annotations"]["io.kubernetes.cri-o.StdinOnce"], "true");
    }

    #[test]
    fn the_id_names_host_and_cgroup_and_a_long_one_is_cut_for_the_host() {
        let id = ContainerId::parse(&"x".repeat(100)).unwrap();
        let config = bundle(&id, &[]).config();
        assert_eq!(config["hostname"].as_str().unwrap().len(), 64);
        assert_eq!(config["linux"]["cgroupsPath"], format!("/holdfast-{id}"));
        let systemd = Bundle { cgroup_manager: CgroupManager::Systemd, ..bundle(&id, &[]) };
        assert_eq!(systemd.cgroups_path(), format!("system.slice:holdfast:{id}"));
    }
}
