//! What the contract's own client puts on the wire, byte for byte (control-api 1.1): sent by go-capnp v3.1.0-alpha.2, which
//! engines use, and written down here. Only question numbers are changed.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use capnp::{message::ReaderOptions, serialize};
use capnp_rpc::rpc_capnp::{cap_descriptor, exception, message, return_};
use holdfast::client::conmon_capnp::conmon;

use support::{Background, eventually, procfs, raw_rpc::RawRpc, within};

mod support;

const BOOTSTRAP: &str = "00000000010001000800000000000000000000000100010000000000000000000000000000000000";

/// version, question 1, at once on the promised answer of question 0.
const PIPELINED: &str = "\
    0000000001000100020000000000000000000000030003000100000000000000f13366dd99e837b7000000000000000008000000010001001800\
    000000000200000000000000000000000000010000000000000001000100000000000000000001000000070000000000000001000000040000000\
    00001000000000000000000000000000100010000000000000000000000000000000000";

/// version, question 2, on the first import, as all later calls.
const VERSION: &str = "\
    0000000001000100020000000000000000000000030003000200000000000000f13366dd99e837b7000000000000000008000000010001000c00\
    00000000020000000000000000000000000000000000000000000000000004000000000001000000000000000000000000000100010000000000\
    000000000000000000000000";

/// reopenLogContainer of `nobody`, question 3.
const REOPEN_NOBODY: &str = "\
    0000000001000100020000000000000000000000030003000300000004000000f13366dd99e837b7000000000000000008000000010001000c00\
    000000000200000000000000000000000000000000000000000000000000040000000000010000000000000000000000000000000200050000003a\
    00000000000000000000006e6f626f64790000";

/// execSyncContainer of `sleep 5` in `slow`, question 5.
const EXEC: &str = "\
    0000000001000100020000000000000000000000030003000500000002000000f13366dd99e837b7000000000000000008000000010001000c00\
    000000000200000000000000000000000000000000000000000000000000040000000000010000000000000000000000000002000400000000000\
    000000000000000000000000d0000002a0000000d0000001600000000000000000000000000000000000000736c6f7700000000050000003200\
    00000500000012000000736c6565700000003500000000000000";

/// Finish of question 0 after its Return, where nothing is to be released.
const FINISH: &str = "0000000001000100040000000000000000000000010000000000000001000000";

/// Finish of question 5 before its Return: the caller's context is done.
const CANCEL: &str = "0000000001000100040000000000000000000000010000000500000000000000";

const ABORT: &str = "\
    0000000001000100010000000000000000000000010003000000000000000000090000009200000000000000000000000000000000000000636f\
    6e6e656374696f6e20636c6f73656400000000000000";

/// Where Bootstrap, Call and Finish have their question number, behind the message's head of one segment.
const QUESTION: usize = 24;

fn bytes(hex: &str) -> Vec<u8> {
    let body: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    assert_eq!(body.len() % 8, 0, "whole words");
    let words = u32::try_from(body.len() / 8).unwrap();
    [&[0; 4][..], &words.to_le_bytes(), &body].concat()
}

fn asked(hex: &str, question: u32) -> Vec<u8> {
    let mut bytes = bytes(hex);
    bytes[8 + QUESTION..12 + QUESTION].copy_from_slice(&question.to_le_bytes());
    bytes
}

fn version(question: u32) -> Vec<u8> {
    asked(VERSION, question)
}

fn finish(question: u32) -> Vec<u8> {
    asked(FINISH, question)
}

/// A Return, as far as the client looks at it.
#[derive(Debug, PartialEq, Eq)]
enum Returned {
    /// The bootstrap's one capability, under this export number.
    Capability(u32),
    /// The pid in a version's answer.
    Pid(u32),
    ExitCode(i32),
    Failed(String),
}

/// The next message must be a Return. Of an answered call it must say that no Finish is needed.
async fn returned(raw: &mut RawRpc) -> (u32, Returned) {
    let bytes = within(raw.receive()).await.expect("the connection is open");
    let reader = serialize::read_message_from_flat_slice(&mut &bytes[..], ReaderOptions::new()).unwrap();
    let Ok(message::Return(ret)) = reader.get_root::<message::Reader<'_>>().unwrap().which() else {
        panic!("a Return")
    };
    let ret = ret.unwrap();
    let what = match ret.which().unwrap() {
        return_::Results(payload) => {
            let payload = payload.unwrap();
            let table = payload.get_cap_table().unwrap();
            assert_eq!(ret.get_no_finish_needed(), table.is_empty());
            if let Some(capability) = table.iter().next() {
                let cap_descriptor::SenderHosted(export) = capability.which().unwrap() else { panic!("our own") };
                Returned::Capability(export)
            } else {
                let content = payload.get_content();
                results(content)
            }
        }
        return_::Exception(exception) => {
            let exception = exception.unwrap();
            assert_eq!(exception.get_type().unwrap(), exception::Type::Failed);
            Returned::Failed(exception.get_reason().unwrap().to_string().unwrap())
        }
        _ => panic!("neither results nor an exception"),
    };
    (ret.get_answer_id(), what)
}

/// Of the two answers that occur here only a version begins with a text.
fn results(content: capnp::any_pointer::Reader<'_>) -> Returned {
    let version: conmon::version_results::Reader<'_> = content.get_as().unwrap();
    let version = version.get_response().unwrap();
    if version.get_version().is_ok_and(|text| !text.is_empty()) {
        Returned::Pid(version.get_process_id())
    } else {
        let exec: conmon::exec_sync_container_results::Reader<'_> = content.get_as().unwrap();
        Returned::ExitCode(exec.get_response().unwrap().get_exit_code())
    }
}

/// A daemon whose runtime does nothing until the file `gate` is there, and then fails.
fn started() -> (Background, PathBuf) {
    let mut daemon = Background::new("run");
    let (runtime, gate) = (daemon.path().join("runtime"), daemon.path().join("gate"));
    let script = format!("#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.01; done; exit 1\n", gate.display());
    fs::write(&runtime, script).expect("ours");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.arg("--runtime").arg(runtime).arg("--runtime-dir").arg(&daemon.runtime_dir);
    let output = daemon.start(command.args(["--log-driver", "none"]));
    assert!(output.status.success(), "{output:?}");
    (daemon, gate)
}

/// A connection on which the first two answers have come.
async fn connected(daemon: &Background) -> RawRpc {
    let mut raw = RawRpc::connect(&daemon.runtime_dir).await;
    for message in [BOOTSTRAP, PIPELINED] {
        let bytes = bytes(message);
        // The head of a message goes out by itself.
        raw.send(&bytes[..8]).await;
        raw.send(&bytes[8..]).await;
    }
    assert_eq!(returned(&mut raw).await, (0, Returned::Capability(0)));
    assert_eq!(returned(&mut raw).await, (1, Returned::Pid(daemon.pid.unwrap())));
    raw
}

#[test]
fn calls_are_answered_from_the_first_pipelined_one_to_the_abort() {
    support::run(async {
        let (daemon, _gate) = started();
        let pid = daemon.pid.unwrap();
        let mut raw = connected(&daemon).await;
        raw.send(&version(2)).await;
        assert_eq!(returned(&mut raw).await, (2, Returned::Pid(pid)));
        raw.send(&bytes(REOPEN_NOBODY)).await;
        let (question, failure) = returned(&mut raw).await;
        assert!(question == 3 && matches!(&failure, Returned::Failed(reason) if reason.starts_with("not-found: ")));
        // They come late, in any order, and for answers that said they need none too.
        for question in [0, 2, 1, 3] {
            raw.send(&finish(question)).await;
        }
        // From now on the numbers are used again.
        for question in [0, 1, 2, 3] {
            raw.send(&version(question)).await;
            assert_eq!(returned(&mut raw).await, (question, Returned::Pid(pid)));
        }
        raw.send(&bytes(ABORT)).await;
        raw.closed().await;
        // The client does that after each failed call too.
        connected(&daemon).await;
    });
}

#[test]
fn answers_come_when_they_are_ready_and_not_in_the_order_of_the_calls() {
    support::run(async {
        let (daemon, gate) = started();
        let mut raw = connected(&daemon).await;
        raw.send(&bytes(EXEC)).await;
        for question in [6, 7] {
            raw.send(&version(question)).await;
            assert_eq!(returned(&mut raw).await, (question, Returned::Pid(daemon.pid.unwrap())));
        }
        fs::write(gate, "").expect("ours");
        assert_eq!(returned(&mut raw).await, (5, Returned::ExitCode(-2)));
    });
}

#[test]
fn a_finish_before_the_return_cancels_the_call_and_nothing_else() {
    support::run(async {
        let (daemon, gate) = started();
        let pid = daemon.pid.unwrap();
        let mut raw = connected(&daemon).await;
        let before = procfs::descriptors(pid);
        raw.send(&bytes(EXEC)).await;
        eventually("the runtime", || (!procfs::children(pid).is_empty()).then_some(())).await;
        raw.send(&bytes(CANCEL)).await;
        raw.send(&version(6)).await;
        assert_eq!(returned(&mut raw).await, (6, Returned::Pid(pid)));
        // What the call began is brought to its end.
        assert!(!procfs::children(pid).is_empty());
        fs::write(gate, "").expect("ours");
        let settled = || (procfs::children(pid).is_empty() && procfs::descriptors(pid) <= before).then_some(());
        eventually("the end of the runtime", settled).await;
        raw.send(&version(7)).await;
        assert_eq!(returned(&mut raw).await, (7, Returned::Pid(pid)), "and nothing for question 5");
    });
}

#[test]
fn answers_that_need_no_finish_leave_nothing_behind() {
    /// Of each of the 10 000 answers there would be at least a KiB left.
    const GROWTH_KIB: u64 = 2048;
    support::run(async {
        let (daemon, _gate) = started();
        let pid = daemon.pid.unwrap();
        let memory = || {
            let line = procfs::status_line(pid, "RssAnon");
            line.trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
        };
        let mut raw = connected(&daemon).await;
        let mut before = 0;
        for round in 0..110 {
            // What the allocator needs for such a crowd, it has after the first rounds.
            if round == 10 {
                before = memory();
            }
            let questions: Vec<u32> = (0..100).map(|index| 10 + 100 * round + index).collect();
            raw.send(&questions.iter().flat_map(|question| version(*question)).collect::<Vec<_>>()).await;
            for question in questions {
                assert_eq!(returned(&mut raw).await, (question, Returned::Pid(pid)));
            }
        }
        assert!(memory() < before + GROWTH_KIB, "{before} KiB before, {} KiB after", memory());
    });
}

#[test]
fn a_connection_that_would_leave_ever_more_behind_is_closed() {
    support::run(async {
        let (daemon, _gate) = started();
        for message in [REOPEN_NOBODY, BOOTSTRAP] {
            let mut raw = connected(&daemon).await;
            // Neither failures nor bootstraps are ever finished here.
            let mut received = 0;
            'all: for round in 0..200 {
                let batch: Vec<u8> = (0..100).flat_map(|index| asked(message, 10 + 100 * round + index)).collect();
                raw.send(&batch).await;
                for _ in 0..100 {
                    if within(raw.receive()).await.is_err() {
                        break 'all;
                    }
                    received += 1;
                }
            }
            assert!((9_000..11_000).contains(&received), "{received} answers");
            connected(&daemon).await;
        }
    });
}
