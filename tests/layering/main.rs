//! The rules that keep the modules apart (docs/ARCHITECTURE.md, "Dependency rules"), held by scanning `src/`.
//!
//! The scanner reads tokens, not types: it sees paths (`crate::log::Log`, `use std::{fs, net}`), outside comments, literals
//! and `#[cfg(test)]` items. Each rule has a test below that a planted violation is caught.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

use std::{fmt, fs, path::Path};

mod scan;

use scan::{Source, UsedPath};

/// Rank of each top-level module: it may import from lower ranks only. The binaries rank above all.
const RANKS: [(&str, u8); 22] = [
    ("proto", 0),
    ("format", 0),
    ("sys", 0),
    ("config", 1),
    ("version", 1),
    ("telemetry", 1),
    ("io", 1),
    ("shutdown", 1),
    ("args", 2),
    ("log", 2),
    ("process", 2),
    ("oci", 3),
    ("stdio", 3),
    ("container", 4),
    ("session", 5),
    ("transport", 6),
    ("pause", 6),
    ("rpc", 7),
    ("client", 7),
    ("upgrade", 8),
    ("daemon", 9),
    ("fuzzing", 9),
];

/// The words that everything shares; below all ranks, and it imports nothing.
const MODEL: &str = "model";

/// Modules that do no IO and own no clock.
const PURE: [&str; 3] = ["proto", "format", MODEL];

/// Where generated types may be named.
const SPEAKS_CAPNP: [&str; 5] = ["rpc", "client", "upgrade", "schema", "lib"];

/// A crate and the places (beginnings of paths below `src/`) that may use it.
const CRATES: [(&str, &[&str]); 9] = [
    ("hyper", &["transport/http.rs"]),
    ("hyper_util", &["transport/http.rs"]),
    ("http_body_util", &["transport/http.rs"]),
    ("tokio_tungstenite", &["transport/", "client/", "proto/ws_frame.rs", "proto/upgrade_head.rs"]),
    ("tungstenite", &["transport/", "client/", "proto/ws_frame.rs", "proto/upgrade_head.rs"]),
    ("clap", &["args.rs", "args/", "bin/"]),
    ("tonic", &["telemetry/otlp.rs"]),
    ("opentelemetry_proto", &["telemetry/otlp.rs"]),
    ("anyhow", &["bin/"]),
];

/// The end of a path, the places that may use it, and why nobody else may.
const BANNED: [(&[&str], &[&str], &str); 7] = [
    (&["process", "exit"], &["bin/"], "return an error, only the binaries end the process"),
    (&["unbounded_channel"], &[], "every queue is bounded"),
    (&["mem", "forget"], &[], "owners give up what they own"),
    (&["FromRawFd"], &["sys/"], "raw numbers become owners in sys/ only"),
    (&["from_raw_fd"], &["sys/"], "raw numbers become owners in sys/ only"),
    (&["env", "set_var"], &[], "the environment is shared by all threads"),
    (&["thread", "sleep"], &[], "the one thread serves every container"),
];

const MAX_LINES: usize = 600;

/// One place that breaks a rule.
struct Violation {
    path: String,
    line: usize,
    rule: &'static str,
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}: {}", self.path, self.line, self.rule, self.text)
    }
}

#[test]
fn the_sources_keep_the_rules() {
    let mut files = Vec::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), "", &mut files);
    assert!(files.len() > 20, "the scanner has found the sources");
    let found: Vec<_> = files.iter().flat_map(|(path, text)| violations(path, text)).collect();
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// All violations in one file; `path` is relative to `src/`.
fn violations(path: &str, text: &str) -> Vec<Violation> {
    let source = Source::of(path, text);
    let mut found = Vec::new();
    let mut report = |line, rule, text: String| found.push(Violation { path: path.to_owned(), line, rule, text });
    for used in source.paths() {
        let line = used.line;
        if let Some(reason) = breaks_ranks(&source, &used) {
            report(line, "D1", reason);
        }
        if let Some(reason) = breaks_purity(&source, &used) {
            report(line, "D2", reason);
        }
        if names_generated_types(&used) && !SPEAKS_CAPNP.contains(&source.module()) {
            report(line, "D4", format!("{used} is generated: only rpc, client and upgrade speak Cap'n Proto"));
        }
        if let Some((krate, homes)) = CRATES.iter().find(|(krate, _)| used.root() == Some(krate))
            && !lives_in(path, homes)
        {
            report(line, "D5", format!("{krate} belongs in {}", homes.join(", ")));
        }
        if let Some((_, _, reason)) = BANNED.iter().find(|(end, homes, _)| used.contains(end) && !lives_in(path, homes))
        {
            report(line, "D8", format!("{used}: {reason}"));
        }
    }
    if !path.starts_with("sys/") {
        for line in source.lines_of(&["unsafe"]).chain(source.lines_of(&["allow", "(", "unsafe_code"])) {
            report(line, "D3", "unsafe code belongs in sys/".to_owned());
        }
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(lines, "length", format!("{lines} lines: split the file at {MAX_LINES} (the goal is 400)"));
    }
    found
}

fn lives_in(path: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| path.starts_with(home))
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// D1, and with it D6: `session` cannot name a transport, which ranks above it.
fn breaks_ranks(source: &Source, used: &UsedPath) -> Option<String> {
    let (from, to) = (source.module(), used.module()?);
    // The root only lists the modules, in a binary `crate` is the binary, and generated code is D4's.
    if ["lib", "bin", to].contains(&from) || to == MODEL || to == "schema" {
        return None;
    }
    if from == MODEL {
        return Some(format!("{MODEL} imports {to}: it is below everything"));
    }
    let Some(ours) = rank(from) else { return Some(format!("module {from} has no rank: add it to tests/layering.rs")) };
    let Some(theirs) = rank(to) else { return Some(format!("{used}: {to} has no rank: add it to tests/layering.rs")) };
    (theirs >= ours)
        .then(|| format!("{from} (rank {ours}) imports {to} (rank {theirs}): imports go to lower ranks only"))
}

/// D2: bytes and times come in as arguments.
fn breaks_purity(source: &Source, used: &UsedPath) -> Option<String> {
    const CRATES: [&str; 5] = ["tokio", "hyper", "nix", "libc", "tracing"];
    const STD: [&str; 5] = ["net", "fs", "process", "thread", "os"];
    if !PURE.contains(&source.module()) {
        return None;
    }
    let outside = used.root().is_some_and(|root| CRATES.contains(&root))
        || STD.iter().any(|module| used.starts_with(&["std", module]))
        || used.contains(&["Instant", "now"])
        || used.contains(&["SystemTime", "now"]);
    outside.then(|| format!("{used} in {}, which does no IO and owns no clock", source.module()))
}

fn names_generated_types(used: &UsedPath) -> bool {
    used.module() == Some("schema") || used.words.iter().any(|word| word.ends_with("_capnp"))
}

mod planted {
    use super::violations;

    /// `LINE RULE` of each violation found.
    fn found(path: &str, text: &str) -> Vec<String> {
        violations(path, text).iter().map(|violation| format!("{} {}", violation.line, violation.rule)).collect()
    }

    fn caught(path: &str, text: &str, rule: &str) {
        assert_eq!(found(path, text), [rule], "{path}: {text}");
    }

    fn clean(path: &str, text: &str) {
        assert!(found(path, text).is_empty(), "{path}: {text}: {:?}", found(path, text));
    }

    #[test]
    fn d1_imports_go_to_lower_ranks() {
        caught("oci/launch.rs", "\nuse crate::container::Container;", "2 D1");
        caught("oci/mod.rs", "use crate::{io::fd, model::Chunk, rpc};", "1 D1");
        caught("oci/launch.rs", "fn f() { crate::stdio::pump(); }", "1 D1");
        caught("proto/spdy/frame.rs", "use crate::format::line;", "1 D1");
        caught("config.rs", "use super::telemetry;", "1 D1");
        caught("stdio/pump.rs", "use super::super::oci::Ends;", "1 D1");
        caught("model.rs", "use crate::format::line;", "1 D1");
        caught("log/mod.rs", "use crate::novelty::X;", "1 D1");
        caught("novelty.rs", "use crate::log::X;", "1 D1");
        clean("oci/launch.rs", "use crate::{log::Log, oci::argv, process::Process};\nuse super::console;");
        clean("format/cri.rs", "use crate::model::StdStream;");
        clean("proto/spdy/frame.rs", "use super::super::ws_frame;\nuse crate::proto::channel;");
        clean("bin/holdfast.rs", "use holdfast::daemon;");
    }

    #[test]
    fn d2_pure_modules_have_no_io_and_no_clock() {
        caught("proto/channel.rs", "use tokio::sync::mpsc;", "1 D2");
        caught("proto/channel.rs", "use std::{\n    fmt,\n    net::IpAddr,\n};", "3 D2");
        caught("format/cri.rs", "fn f() { let now = std::time::Instant::now(); }", "1 D2");
        caught("format/cri.rs", "use std::time::SystemTime;\nfn f() { SystemTime::now(); }", "2 D2");
        caught("model.rs", "fn f() { tracing::info!(\"x\"); }", "1 D2");
        clean(
            "proto/channel.rs",
            "use std::time::{Duration, Instant};\n// tokio::spawn\nconst A: &str = \"std::fs::read\";",
        );
        clean("proto/channel.rs", "#[cfg(test)]\nmod tests { use std::fs; fn f() { let t = Instant::now(); } }");
        clean("log/file.rs", "use std::fs::File;");
    }

    #[test]
    fn d3_unsafe_code_is_in_sys() {
        caught("io/fd.rs", "\n\nfn f() { unsafe { g() } }", "3 D3");
        caught("io/mod.rs", "#![allow(unsafe_code)]", "1 D3");
        caught("io/fd.rs", "#[cfg(not(test))]\nunsafe fn f() {}", "2 D3");
        clean("sys/fd.rs", "fn f() { unsafe { g() } }");
        clean(
            "io/fd.rs",
            "/// unsafe\n/* unsafe /* unsafe */ unsafe */ fn f(c: char) { g(\"unsafe\", r#\"\"unsafe\"#, c == '\"') }",
        );
    }

    #[test]
    fn d4_generated_types_stay_at_the_edge() {
        caught("container/mod.rs", "use crate::schema::conmon_capnp::conmon;", "1 D4");
        caught("daemon.rs", "fn f(request: conmon_capnp::Reader) {}", "1 D4");
        clean("rpc/decode.rs", "use crate::schema::conmon_capnp::conmon;");
        clean("client/mod.rs", "use crate::schema::holdfast_capnp;");
        clean("lib.rs", "mod schema;");
    }

    #[test]
    fn d5_crates_stay_where_they_belong() {
        caught("transport/websocket.rs", "use hyper::Request;", "1 D5");
        caught("session/exec.rs", "use tokio_tungstenite::tungstenite::Message;", "1 D5");
        caught("config.rs", "#[derive(clap::ValueEnum)]\nstruct A;", "1 D5");
        caught("daemon.rs", "fn f() -> anyhow::Result<()> {}", "1 D5");
        clean("transport/http.rs", "use hyper::Request;");
        clean("proto/ws_frame.rs", "use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;");
        clean("args.rs", "use clap::Parser;");
        clean("args/pause.rs", "#[derive(clap::Args)] struct A;");
    }

    #[test]
    fn d6_sessions_do_not_know_their_transport() {
        caught("session/exec.rs", "use crate::transport::AnyClient;", "1 D1");
        clean("transport/mod.rs", "use crate::session::client::ClientReader;");
    }

    #[test]
    fn d8_what_breaks_the_daemon_is_not_called() {
        caught("daemon.rs", "fn f() { std::process::exit(1) }", "1 D8");
        caught("daemon.rs", "use std::process::{Command, exit};", "1 D8");
        caught("io/fd.rs", "fn f() { OwnedFd::from_raw_fd(3) }", "1 D8");
        caught("io/fd.rs", "use std::os::fd::{AsFd, FromRawFd};", "1 D8");
        caught("rpc/mod.rs", "let (a, b) = tokio::sync::mpsc::unbounded_channel::<u8>();", "1 D8");
        caught("oci/mod.rs", "fn f() { std::mem::forget(a); }", "1 D8");
        caught("oci/mod.rs", "fn f() { std::env::set_var(a, b); }", "1 D8");
        caught("oci/mod.rs", "use std::thread;\nfn f() { thread::sleep(d); }", "2 D8");
        clean("bin/holdfastctl.rs", "fn f() { std::process::exit(1) }");
        clean("sys/fd.rs", "fn f() { OwnedFd::from_raw_fd(3) }");
    }

    #[test]
    fn files_stay_short() {
        caught("oci/mod.rs", &"\n".repeat(601), "601 length");
        clean("oci/mod.rs", &"\n".repeat(600));
    }

    #[test]
    fn a_message_names_the_place_and_the_rule() {
        let text = "\nuse crate::rpc::decode;";
        let told = violations("log/mod.rs", text).remove(0).to_string();
        assert_eq!(told, "src/log/mod.rs:2: D1: log (rank 2) imports rpc (rank 7): imports go to lower ranks only");
    }
}
