//! The daemon's command line, from outside: what clients pass, match and parse (control-api 2 and 3.1).
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const VERSION_KEYS: [&str; 9] =
    ["verbose", "version", "tag", "commit", "build_date", "target", "rust_version", "cargo_version", "cargo_tree"];

/// A command without the settings of whoever runs the tests.
fn holdfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CONMON_") || name.starts_with("HOLDFAST_")) {
            command.env_remove(name);
        }
    }
    command
}

fn run(words: &[&str]) -> Output {
    holdfast().args(words).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What a failed start says. Nothing of it may be on standard output.
fn failure(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{output:?}");
    let text = stderr(&output);
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

fn start(runtime: &str, runtime_dir: &Path) -> Command {
    let mut command = holdfast();
    command.env("CONMON_LOG_DRIVER", "none").args(["--runtime", runtime, "--runtime-dir"]).arg(runtime_dir);
    command
}

#[test]
fn every_form_of_version_prints_the_lines_of_the_contract_and_nothing_else() {
    let short = run(&["--version"]);
    let text = stdout(&short);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 7, "{text}");
    for (line, key) in lines.iter().zip(["version: ", "tag: ", "commit: ", "build: ", "target: ", "rustc ", "cargo "]) {
        assert!(line.starts_with(key) && line.len() > key.len(), "{line}");
    }
    for words in [&["-v"][..], &["-vdefault"], &["--version=default"], &["--version", "-j"]] {
        let output = run(words);
        assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), text.clone(), String::new()));
    }
    for words in [&["--version", "full"][..], &["--version=full"], &["-vfull"], &["-v", "full"]] {
        let output = run(words);
        let tree = stdout(&output).strip_prefix(&text).map(str::to_owned).unwrap();
        assert!(tree.starts_with("\ncargo tree: holdfast v") && tree.lines().count() > 10, "{tree}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn every_form_of_version_json_prints_one_line_with_the_keys_of_the_contract_and_nothing_else() {
    let plain = [&["--version-json"][..], &["-j"], &["--vj"], &["--version-json=default"], &["-j", "default"]];
    let full = [&["--version-json", "full"][..], &["--version-json=full"], &["-jfull"], &["--vj", "full"]];
    for (verbose, words) in plain.into_iter().map(|words| (false, words)).chain(full.map(|words| (true, words))) {
        let output = run(words);
        let text = stdout(&output);
        assert_eq!((output.status.code(), stderr(&output).as_str(), text.lines().count()), (Some(0), "", 1));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json.as_object().unwrap().len(), VERSION_KEYS.len());
        let places: Vec<_> = VERSION_KEYS.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        assert_eq!(json["verbose"], verbose);
        for key in &VERSION_KEYS[1..] {
            let value = json[key].as_str().unwrap();
            assert!(!value.is_empty() || *key == "tag" || (*key == "cargo_tree" && !verbose), "{key} is empty");
        }
        assert_eq!(json["cargo_tree"] == "", !verbose);
        let numbers: Vec<_> = json["version"].as_str().unwrap().split('.').collect();
        assert!(numbers.len() == 3 && numbers[0].parse::<u32>().is_ok(), "strict SemVer without a v");
    }
}

#[test]
fn an_unknown_option_is_a_usage_error_in_the_words_that_clients_match() {
    for words in [&["--version-json", "--nonsense"][..], &["--nonsense"], &["-Z"]] {
        let output = run(words);
        let all = stdout(&output) + &stderr(&output);
        assert!(all.lines().any(|line| line.starts_with("error: unexpected argument")), "{all}");
        assert_eq!(output.status.code(), Some(2));
    }
    for words in [&["--log-level", "INFO"][..], &["--log-driver", "file"], &["--version=short"], &["pause"]] {
        assert_eq!(run(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn help_goes_to_standard_output_under_our_name_whatever_the_binary_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let renamed = dir.path().join("conmonrs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_holdfast"), &renamed).unwrap();
    for word in ["-h", "--help", "help"] {
        let output = Command::new(&renamed).arg(word).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert!(stdout(&output).contains("Usage: holdfast"), "{}", stdout(&output));
    }
}

#[test]
fn the_environment_stands_in_for_options_and_the_command_line_wins() {
    let full = holdfast().env("CONMON_VERSION_JSON", "full").output().unwrap();
    assert!(stdout(&full).starts_with(r#"{"verbose":true,"#));
    let both = holdfast().env("CONMON_VERSION", "full").args(["--version=default"]).output().unwrap();
    assert_eq!(stdout(&both), stdout(&run(&["-v"])));
    let missing = failure(holdfast().env("CONMON_RUNTIME", "/nonexistent/a").env("CONMON_RUNTIME_DIR", "/nonexistent"));
    assert!(missing.contains("/nonexistent/a"), "{missing}");
    let other = holdfast()
        .env("CONMON_RUNTIME", "/nonexistent/a")
        .env("CONMON_RUNTIME_DIR", "/x")
        .args(["-r", "/nonexistent/b"])
        .output();
    assert!(stderr(&other.unwrap()).contains("/nonexistent/b"));
    for (name, value) in [("CONMON_SKIP_FORK", "maybe"), ("CONMON_LOG_LEVEL", "loud"), ("HOLDFAST_IDLE_TIMEOUT", "-1")]
    {
        let output = holdfast().env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
    for value in ["true", "false"] {
        let output = holdfast().env("CONMON_SKIP_FORK", value).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "accepted, so the missing runtime is what is wrong");
    }
}

#[test]
fn settings_that_cannot_work_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (file, run_dir) = (dir.path().join("file"), dir.path().join("run"));
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(failure(&mut holdfast()), "error: --runtime is not set: give it, or set CONMON_RUNTIME");
    let blank = failure(&mut start("/bin/sh", Path::new(" ")));
    assert_eq!(blank, "error: --runtime-dir is not set: give it, or set CONMON_RUNTIME_DIR");
    let cases = [
        ("/nonexistent", "error: --runtime /nonexistent cannot be used: No such file or directory (os error 2)"),
        ("/", "error: --runtime / is not a regular file: name the OCI runtime's binary"),
        (file, &format!("error: --runtime {file} cannot be used: Permission denied (os error 13)")),
    ];
    for (runtime, message) in cases {
        assert_eq!(failure(&mut start(runtime, &run_dir)), message);
    }
    assert!(!run_dir.exists(), "nothing was made");
    let root = failure(start("/bin/sh", &run_dir).args(["--runtime-root", file]));
    assert_eq!(root, format!("error: --runtime-root {file} is not a directory"));
}

#[test]
fn a_start_that_fails_reaches_the_starter() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let message = failure(&mut start("/bin/sh", &file));
    assert_eq!(message, format!("error: --runtime-dir {} is not a directory", file.display()));
    assert!(!dir.path().join("file/pidfile").exists());
}

#[test]
fn a_pidfile_that_cannot_be_written_reaches_the_starter_through_the_fork() {
    let dir = tempfile::tempdir().unwrap();
    // A rename cannot put a file in a directory's place: this fails for root too.
    fs::create_dir_all(dir.path().join("pidfile/taken")).unwrap();
    let message = failure(&mut start("/bin/sh", dir.path()));
    assert!(message.contains("cannot write the pidfile") && message.contains("directory"), "{message}");
    let mut talkative = start("/bin/sh", dir.path());
    let output = talkative.env("CONMON_LOG_DRIVER", "stdout").output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(1), 1), "said once: {output:?}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

#[test]
fn pause_without_a_daemon_at_its_other_end_ends_at_once_and_says_why() {
    let output = holdfast().args(["pause", "--pod-id", "p"]).stdin(std::process::Stdio::null()).output().unwrap();
    let message = "error: pause: nobody is at the other end of standard input: only a daemon uses this command\n";
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), message));
}
