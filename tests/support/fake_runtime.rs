use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Sandbox, which};

/// What the daemon is told to run as its OCI runtime: the real one, except where a plan says otherwise.
#[derive(Debug)]
pub(crate) struct FakeRuntime {
    script: PathBuf,
}

impl FakeRuntime {
    /// Changes a daemon's command line so that it runs the script. It goes beside the runtime directory.
    pub(crate) fn install(daemon: &mut Command) {
        let mut arguments: Vec<OsString> = daemon.get_args().map(OsString::from).collect();
        let place = |name: &str| arguments.iter().position(|word| word == name).expect("the harness passes it") + 1;
        let (runtime, runtime_dir) = (place("--runtime"), place("--runtime-dir"));
        let dir = Path::new(&arguments[runtime_dir]).parent().expect("it is in the sandbox").to_owned();
        let script = dir.join("runtime");
        fs::write(&script, text(&which("runc").expect("checked by require_e2e"), &dir.join("plan"))).expect("a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");
        arguments[runtime] = script.into();
        // A Command's arguments can only be added to.
        let log = File::options().append(true).open(dir.join("daemon.log")).expect("made by the harness");
        let environment: Vec<_> = daemon.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        let mut changed = Command::new(daemon.get_program());
        changed.args(arguments).envs(environment).stdin(Stdio::null());
        changed.stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        *daemon = changed;
    }

    /// The script of a sandbox whose daemon was given it.
    pub(crate) fn of(sandbox: &Sandbox) -> Self {
        Self { script: sandbox.path().join("runtime") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.script
    }

    /// From now on a sub-command (`create`, `exec`, `delete`) begins with these lines of shell. They see `$pidfile`,
    /// `$console`, and the real runtime as `real "$@"`; unless they exit, the real runtime follows.
    pub(crate) fn plan(&self, sub_command: &str, lines: &str) {
        let plan = self.script.with_file_name("plan");
        let next = plan.with_extension("next");
        fs::write(&next, format!("if [ \"$sub\" = {sub_command} ]; then\n{lines}\nfi\n")).expect("a plan");
        // A runtime that starts meanwhile sees the old one or the new one.
        fs::rename(next, plan).expect("in one directory");
    }

    /// Back to the real runtime.
    pub(crate) fn behave(&self) {
        // There may be no plan.
        let _ = fs::remove_file(self.script.with_file_name("plan"));
    }
}

fn text(real: &Path, plan: &Path) -> String {
    let (real, plan) = (real.display(), plan.display());
    format!(
        r#"#!/bin/sh
sub= pidfile= console= previous=
for word in "$@"; do
    case $previous in --pid-file) pidfile=$word ;; esac
    case $word in
        --pid-file=*) pidfile=${{word#*=}} ;;
        --console-socket=*) console=${{word#*=}} ;;
        create | exec | delete) sub=${{sub:-$word}} ;;
    esac
    previous=$word
done
real() {{ {real} "$@"; }}
if [ -f {plan} ]; then . {plan}; fi
exec {real} "$@"
"#
    )
}
