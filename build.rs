//! Cap'n Proto code generation and version metadata; nothing else.

use std::{
    env,
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitCode},
};

/// Printed when the Cap'n Proto compiler is missing: the one thing this build needs that cargo cannot fetch.
const NO_CAPNP: &str = "\n\
    holdfast: the Cap'n Proto compiler `capnp` was not found in $PATH.\n\
    It turns schema/*.capnp into Rust. Install it and build again:\n\
    \n    Debian, Ubuntu:  apt-get install -y capnproto\
    \n    Fedora, RHEL:    dnf install -y capnproto\
    \n    Alpine:          apk add capnproto\n\
    \nOr run contrib/setup, which installs all that building and testing needs.\n";

fn main() -> ExitCode {
    if let Err(message) = generate_schema() {
        // Cargo shows the whole text; where it does not, the exit code is all there is.
        let _ = writeln!(io::stderr(), "{message}");
        return ExitCode::FAILURE;
    }
    version_metadata();
    ExitCode::SUCCESS
}

fn generate_schema() -> Result<(), String> {
    let files = ["schema/conmon.capnp", "schema/holdfast.capnp"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    if Command::new("capnp").arg("--version").output().is_err() {
        return Err(NO_CAPNP.to_owned());
    }
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix("schema").default_parent_module(vec!["schema".to_owned()]);
    // The compiled schema itself, for `tests/wire.rs`.
    let raw = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("schema.bin");
    command.raw_code_generator_request_path(&raw);
    for file in files {
        command.file(file);
    }
    command.run().map_err(|error| format!("\nholdfast: `capnp` could not compile the schema: {error}\n"))?;
    println!("cargo::rustc-env=HOLDFAST_SCHEMA_BIN={}", raw.display());
    Ok(())
}

fn version_metadata() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    // Asked for, not guessed: in a worktree they are elsewhere.
    for name in ["HEAD", "index", "refs/heads"] {
        if let Some(path) = output("git", &["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-env-changed=HOLDFAST_COMMIT");
    let unknown = || "unknown".to_owned();
    let commit = env::var("HOLDFAST_COMMIT").ok().or_else(|| output("git", &["rev-parse", "HEAD"]));
    let date = match env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => output("date", &["-u", "-d", &format!("@{epoch}"), "+%Y-%m-%d %H:%M:%S"]),
        Err(_) => output("date", &["-u", "+%Y-%m-%d %H:%M:%S"]),
    };
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = output(&cargo, &["tree", "--offline", "--locked", "--edges", "normal", "--charset", "utf8"]);
    // Where it was built is nobody's business, and would make two builds of the same sources differ.
    let here = format!(" ({})", env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let facts = [
        ("COMMIT", commit.unwrap_or_else(unknown)),
        ("TAG", output("git", &["describe", "--tags", "--always", "--dirty"]).unwrap_or_default()),
        ("DATE", date.unwrap_or_else(unknown)),
        ("TARGET", env::var("TARGET").unwrap_or_else(|_| unknown())),
        ("RUSTC", output(&rustc, &["--version"]).unwrap_or_else(unknown)),
        ("CARGO", output(&cargo, &["--version"]).unwrap_or_else(unknown)),
        // One line only: cargo's instructions are lines.
        ("CARGO_TREE", tree.unwrap_or_else(unknown).replace(&here, "").replace('\n', "|")),
    ];
    for (name, value) in facts {
        println!("cargo::rustc-env=HOLDFAST_BUILD_{name}={value}");
    }
}

/// The trimmed standard output of a command, or `None` when it failed or said nothing.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(done.stdout).ok()?.trim().to_owned();
    (done.status.success() && !text.is_empty()).then_some(text)
}
