use std::path::Path;

use serde_json::{Value, json};

/// What a test's container is made of.
#[derive(Debug, Clone)]
pub(crate) struct BundleSpec {
    args: Vec<String>,
    env: Vec<String>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    changes: Value,
}

impl BundleSpec {
    pub(crate) fn new(args: &[&str]) -> Self {
        Self {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            terminal: false,
            stdin: false,
            changes: Value::Null,
        }
    }

    /// A script of busybox's shell.
    pub(crate) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Runs until it is killed.
    pub(crate) fn idle() -> Self {
        // Not `sleep`: as pid 1 it has no handler for SIGTERM, so a test could not end it softly.
        Self::shell("trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    pub(crate) fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Changes to the `config.json`: objects are merged, everything else replaced.
    pub(crate) fn with(mut self, changes: Value) -> Self {
        merge(&mut self.changes, changes);
        self
    }

    pub(super) fn config(&self, rootfs: &Path, cgroup: &str) -> Value {
        const CAPABILITIES: [&str; 4] = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"];
        let mount = |kind: &str, path: &str| json!({ "type": kind, "source": kind, "destination": path });
        let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let mut config = json!({
            "ociVersion": "1.0.2",
            "hostname": "sandbox",
            "root": { "path": rootfs },
            "process": {
                "terminal": self.terminal,
                "user": { "uid": 0, "gid": 0 },
                "args": self.args,
                "env": self.env,
                "cwd": "/",
                "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            },
            "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("devpts", "/dev/pts"), mount("tmpfs", "/tmp")],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": namespaces,
            },
        });
        merge(&mut config, self.changes.clone());
        config
    }
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, changes) => *into = changes,
    }
}
