use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::eventually;

/// Gives a command a `/run` of its own, in which `$1` is journald's directory and `$2` the one of its files.
const PRIVATE_RUN: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal && \
                           mount --bind \"$1\" /run/systemd/journal && mount --bind \"$2\" /run/log/journal && shift 2";

/// What a journald of a test does not do: keep files for ever, read the kernel's log, limit rates.
const CONFIGURATION: &str = "[Journal]\\nStorage=volatile\\nAudit=no\\nReadKMsg=no\\nForwardToSyslog=no\\n\
                             ForwardToWall=no\\nRateLimitIntervalSec=0\\n";

/// Where Debian and others have it; it is not in `$PATH`.
const JOURNALD: [&str; 2] = ["/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald"];

/// A place where a daemon looks for the journal, in a mount namespace of its own. Nothing listens there yet.
pub(crate) struct Journal {
    dir: TempDir,
}

/// The fields of one entry.
pub(crate) type Entry = BTreeMap<String, Vec<u8>>;

impl Journal {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hf-").tempdir().expect("a temporary directory");
        for part in ["socket", "files"] {
            fs::create_dir(dir.path().join(part)).expect("our directory");
        }
        Self { dir }
    }

    fn private(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("set -e; {PRIVATE_RUN}; {script}"), "sh"]);
        command.arg(self.dir.path().join("socket")).arg(self.dir.path().join("files"));
        command
    }

    /// Makes a daemon look here. It runs under the name `conmonrs`, as an engine may have installed it.
    pub(crate) fn surround(&self, daemon: &mut Command) {
        let program = self.dir.path().join("conmonrs");
        symlink(daemon.get_program(), &program).expect("our directory");
        let arguments: Vec<OsString> = daemon.get_args().map(OsString::from).collect();
        *daemon = self.private("exec \"$@\"");
        daemon.arg(program).args(arguments);
    }

    /// Begins to listen, as journald does.
    pub(crate) fn listen(&self) -> UnixDatagram {
        let socket = UnixDatagram::bind(self.dir.path().join("socket/socket")).expect("nobody listens yet");
        socket.set_nonblocking(true).expect("a socket");
        socket
    }

    /// Starts a real journald, if there is one. Dropping it ends it.
    pub(crate) async fn start(&self) -> Option<Journald<'_>> {
        let Some(program) = JOURNALD.into_iter().find(|path| Path::new(path).is_file()) else {
            assert!(env::var_os("HOLDFAST_REQUIRE_E2E").is_none_or(|value| value != "1"), "needs systemd-journald");
            writeln!(std::io::stderr(), "skipped: needs systemd-journald").expect("stderr of a test");
            return None;
        };
        let configure =
            format!("mount -t tmpfs none /etc/systemd; printf '{CONFIGURATION}' >/etc/systemd/journald.conf");
        let mut command = self.private(&format!("{configure}; exec {program}"));
        let log = fs::File::create(self.dir.path().join("journald.log")).expect("our directory");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        let journald = Journald { process: command.spawn().expect("unshare runs"), journal: self };
        let socket = self.dir.path().join("socket/socket");
        eventually("journald", || UnixDatagram::unbound().expect("a socket").connect(&socket).ok()).await;
        Some(journald)
    }
}

/// A journald that a test has started.
pub(crate) struct Journald<'a> {
    process: Child,
    journal: &'a Journal,
}

impl Journald<'_> {
    /// What `journalctl` prints.
    pub(crate) fn read(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("journalctl");
        command.arg("--quiet").arg("-D").arg(self.journal.dir.path().join("files")).args(arguments);
        let output = command.output().expect("journalctl comes with journald");
        String::from_utf8(output.stdout).expect("it prints text")
    }
}

impl Drop for Journald<'_> {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for the next entry with a message.
pub(crate) async fn next_entry(socket: &UnixDatagram) -> Entry {
    let mut buffer = vec![0; 1 << 20];
    eventually("a journal entry", || {
        let length = socket.recv(&mut buffer).ok()?;
        Some(entry(&buffer[..length])).filter(|entry| entry.contains_key("MESSAGE"))
    })
    .await
}

/// The text of a field.
pub(crate) fn field<'a>(entry: &'a Entry, name: &str) -> &'a str {
    entry.get(name).map_or("", |value| std::str::from_utf8(value).expect("this field is text"))
}

/// <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>
fn entry(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| matches!(byte, b'=' | b'\n')).expect("a name has an end");
        let (name, separator) = (String::from_utf8(bytes[..end].to_vec()).expect("capitals"), bytes[end]);
        bytes = &bytes[end + 1..];
        let length = if separator == b'=' {
            bytes.iter().position(|byte| *byte == b'\n').expect("a value has an end")
        } else {
            let (length, rest) = bytes.split_first_chunk().expect("64 bits");
            bytes = rest;
            usize::try_from(u64::from_le_bytes(*length)).expect("64 bits")
        };
        let before = entry.insert(name, bytes[..length].to_vec());
        assert!(before.is_none() && bytes[length] == b'\n');
        bytes = &bytes[length + 1..];
    }
    entry
}
