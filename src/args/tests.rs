use std::{error::Error as _, fs, os::unix::fs::PermissionsExt as _, path::Path};

use clap::{CommandFactory as _, error::ErrorKind};

use super::*;

pub(super) fn parse(words: &[&str]) -> Result<Args, clap::Error> {
    Args::parse_words(std::iter::once("conmonrs").chain(words.iter().copied()).map(OsString::from))
}

fn resolve(words: &[&str]) -> Result<Config, ConfigError> {
    parse(words).unwrap().resolve()
}

#[test]
fn the_definitions_are_consistent() {
    Args::command().debug_assert();
}

#[test]
fn every_form_of_the_version_options_is_taken() {
    let cases: [(&[&str], _, _); 9] = [
        (&["--version"], Some(Detail::Default), None),
        (&["-v"], Some(Detail::Default), None),
        (&["--version", "full"], Some(Detail::Full), None),
        (&["--version=full"], Some(Detail::Full), None),
        (&["-vfull"], Some(Detail::Full), None),
        (&["--version-json"], None, Some(Detail::Default)),
        (&["--vj=full"], None, Some(Detail::Full)),
        (&["-j", "full"], None, Some(Detail::Full)),
        (&["-v", "-jfull"], Some(Detail::Default), Some(Detail::Full)),
    ];
    for (words, version, json) in cases {
        let args = parse(words).unwrap();
        assert_eq!((args.version, args.version_json), (version, json), "{words:?}");
    }
    assert_eq!(parse(&["--version=short"]).unwrap_err().kind(), ErrorKind::InvalidValue);
}

#[test]
fn the_words_of_the_usual_client_are_taken() {
    let words = "--runtime /r --runtime-dir /d --runtime-root /s --log-level debug --log-driver stdout \
                 --enable-tracing --tracing-endpoint http://h:1";
    let args = parse(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
    assert_eq!((args.log_level, args.log_driver), (LogLevel::Debug, LogDriver::Stdout));
    assert_eq!((args.enable_tracing, args.tracing_endpoint.as_str()), (true, "http://h:1"));
    let short = parse(&["-r", "/r", "-l", "off", "-d", "none", "-e", "-t", "x"]).unwrap();
    assert_eq!((short.log_level, short.log_driver, short.skip_fork), (LogLevel::Off, LogDriver::None, false));
}

#[test]
fn an_unknown_option_is_reported_in_the_words_that_clients_match() {
    let error = parse(&["--version-json", "--nonsense"]).unwrap_err();
    assert!(error.to_string().contains("error: unexpected argument"), "{error}");
    assert_eq!(error.exit_code(), 2);
    for words in
        [["--log-level", "INFO"], ["--runtime-limit", "0"], ["--idle-timeout", "31536001"], ["--attach-lag", "drop"]]
    {
        assert_eq!(parse(&words).unwrap_err().exit_code(), 2, "{words:?}");
    }
}

#[test]
fn the_short_help_is_short_and_the_long_one_names_every_setting() {
    let text = |word| parse(&[word]).unwrap_err().to_string();
    let (short, long) = (text("-h"), text("--help"));
    assert!(short.contains("Usage: holdfast [OPTIONS]") && !short.contains("--runtime-limit"), "{short}");
    for word in ["HOLDFAST_RUNTIME_LIMIT", "--idle-timeout", "CONMON_LOG_DRIVER", "[default: 240]", "Exit codes"] {
        assert!(long.contains(word), "{word} is missing in {long}");
    }
}

#[test]
fn required_settings_are_asked_for_in_order_and_a_space_is_no_value() {
    let text = |words: &[&str]| resolve(words).unwrap_err().to_string();
    assert_eq!(text(&[]), "--runtime is not set: give it, or set CONMON_RUNTIME");
    assert_eq!(text(&["--runtime", " ", "--runtime-dir", ""]), text(&[]));
    assert_eq!(text(&["--runtime", "/x"]), "--runtime-dir is not set: give it, or set CONMON_RUNTIME_DIR");
}

#[test]
fn a_runtime_must_be_a_file_that_can_be_executed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let error = |runtime: &str| resolve(&["-r", runtime, "--runtime-dir", &path("run")]).unwrap_err();
    let missing = error(&path("none"));
    assert!(missing.source().unwrap().to_string().contains("No such file"), "{missing:?}");
    assert!(error(&path("")).to_string().contains("is not a regular file"));
    fs::write(path("plain"), "").unwrap();
    assert!(error(&path("plain")).source().unwrap().to_string().contains("Permission denied"));
    assert!(!dir.path().join("run").exists(), "nothing is made before the runtime was found good");
}

#[test]
fn directories_are_made_and_what_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |name: &str, root: &str| resolve(&["-r", "/bin/sh", "--runtime-dir", name, "--runtime-root", root]);
    let config = run(&path("a/b"), &path("c/d")).unwrap();
    assert!(config.runtime_dir.is_dir());
    let root = config.runtime_root.unwrap();
    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o777, RUNTIME_ROOT_MODE);
    assert_eq!(run(&path("a"), " ").unwrap().runtime_root, None);
    fs::write(path("file"), "").unwrap();
    let text = |result: Result<Config, ConfigError>| result.unwrap_err().to_string();
    assert_eq!(text(run(&path("file"), " ")), format!("--runtime-dir {} is not a directory", path("file")));
    assert_eq!(text(run(&path("a"), &path("file"))), format!("--runtime-root {} is not a directory", path("file")));
    assert!(text(run(&path("file/under"), " ")).ends_with("file/under cannot be created"));
}

#[test]
fn relative_paths_become_absolute_and_settings_arrive() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(dir.path().file_name().unwrap());
    let words = ["-r", "/bin//sh", "--stream-address", "::1", "--idle-timeout", "0", "--log-stall", "7"];
    let mut args = parse(&words).unwrap();
    args.runtime_dir = Some(relative.to_owned());
    let config = args.resolve().unwrap();
    assert_eq!(config.runtime_dir, std::env::current_dir().unwrap().join(relative));
    assert_eq!(config.runtime, Path::new("/bin//sh"), "argv[0] stays as written");
    assert_eq!((config.streams.idle_timeout, config.log_stall), (Duration::ZERO, Duration::from_secs(7)));
    assert_eq!((config.streams.address.to_string(), config.tracing), ("::1".to_owned(), None));
}

#[test]
fn the_page_of_settings_lists_every_option_with_its_variable() {
    let page = include_str!("../../docs/SETTINGS.md");
    for option in Args::command().get_arguments() {
        let (Some(name), Some(variable)) = (option.get_long(), option.get_env()) else { continue };
        let row = format!("| `--{name}` | `{}` |", variable.display());
        assert!(page.contains(&row), "{row}");
    }
}
