//! Bytes on the control socket that are not what they claim to be.

use std::time::Duration;

use capnp_rpc::rpc_capnp::message;
use holdfast::client::conmon_capnp::conmon;
use tokio::time::sleep;

use crate::support::{
    Neighbour, Sandbox, beside_a_neighbour,
    raw_rpc::{self, RawRpc, Reply, bootstrap, call},
};

const VERSION: u16 = 0;
const REOPEN_LOG: u16 = 4;

fn version(question: u32) -> Vec<u8> {
    call(question, VERSION, |params| _ = params.init_as::<conmon::version_params::Builder<'_>>().init_request())
}

/// A reopenLog with an id of our choice.
fn reopen(question: u32, id: &str) -> Vec<u8> {
    call(question, REOPEN_LOG, |params| {
        params.init_as::<conmon::reopen_log_container_params::Builder<'_>>().init_request().set_id(id);
    })
}

/// Sends bytes on a connection of their own, which the server must close by itself.
async fn closes(sandbox: &Sandbox, neighbour: &mut Neighbour<'_>, what: &str, bytes: &[u8]) {
    neighbour
        .undisturbed(what, async || {
            let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
            raw.send(bytes).await;
            raw.closed().await;
        })
        .await;
}

fn random(state: &mut u64) -> u64 {
    // xorshift64*
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn a_call_pipelined_on_the_bootstrap_answer_works() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("the contract's own client", async || {
                let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                raw.send(&[bootstrap(0), version(1)].concat()).await;
                assert_eq!(raw.reply(1).await, Reply::Results);
                raw.send(&reopen(2, "nobody")).await;
                assert!(matches!(raw.reply(2).await, Reply::Refused(reason) if reason.starts_with("not-found: ")));
                for byte in version(3) {
                    raw.send(&[byte]).await;
                }
                assert_eq!(raw.reply(3).await, Reply::Results);
            })
            .await;
    });
}

#[test]
fn a_message_that_cannot_be_one_closes_its_connection() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let table = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        // One segment that points nowhere but is there.
        let far = |pointer: u64| [table(&[0, 1]), pointer.to_le_bytes().to_vec()].concat();
        for (what, bytes) in [
            ("2^32 segments", table(&[u32::MAX, 0])),
            ("2^32 - 1 segments", table(&[u32::MAX - 1, 0])),
            ("600 segments", table(&[599, 1])),
            ("a segment of 8 GiB", table(&[0, 1 << 30])),
            ("a segment of 32 GiB", table(&[0, u32::MAX])),
            ("segments that sum up to 2^32 words", table(&[1, 1 << 31, 1 << 31, 0])),
            ("a segment of a word more than 8 MiB", table(&[0, (1 << 20) + 1])),
            ("an empty message", table(&[0, 0])),
            ("a far root into no segment", far(2 | 7 << 32)),
            ("a far root beyond its segment", far(2 | 0xffff << 3)),
            ("a double far root", far(6)),
            ("a struct root beyond its segment", far(0x7fff << 2 | 4 << 32 | 4 << 48)),
            ("a list for a root", far(1 | 2 << 32)),
            ("a capability for a root", far(3)),
            ("GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ] {
            closes(sandbox, neighbour, what, &bytes).await;
        }
        let big = call(1, REOPEN_LOG, |params| {
            let request = params.init_as::<conmon::reopen_log_container_params::Builder<'_>>().init_request();
            _ = request.init_id(9 << 20);
        });
        closes(sandbox, neighbour, "a message of 9 MiB", &[bootstrap(0), big].concat()).await;
    });
}

#[test]
fn what_breaks_the_rpc_protocol_is_answered_or_closes_its_connection() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let nested = raw_rpc::message(|mut root| {
            for _ in 0..1000 {
                root = root.init_unimplemented();
            }
            root.init_bootstrap().set_question_id(1);
        });
        let imports = |kind: fn(capnp_rpc::rpc_capnp::cap_descriptor::Builder<'_>)| {
            raw_rpc::message(|root| {
                let mut call = root.init_call();
                call.set_question_id(5);
                call.reborrow().init_target().init_promised_answer().set_question_id(0);
                let mut table = call.init_params().init_cap_table(2);
                kind(table.reborrow().get(0));
                kind(table.get(1));
            })
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("nested unimplemented", nested),
            ("an abort", raw_rpc::message(|root| root.init_abort().set_reason("enough"))),
            ("a second bootstrap of one number", bootstrap(0)),
            ("two calls of one number", [version(1), version(1)].concat()),
            ("finish of no question", raw_rpc::message(|root| root.init_finish().set_question_id(77))),
            ("release of no import", raw_rpc::message(|root| root.init_release().set_id(77))),
            ("release far below zero", raw_rpc::message(|root| root.init_release().set_reference_count(u32::MAX))),
            ("return to no question", raw_rpc::message(|root| _ = root.init_return().init_results())),
            ("a call on no export", raw_rpc::message(|root| root.init_call().init_target().set_imported_cap(9))),
            ("a call without a target", raw_rpc::message(|root| _ = root.init_call())),
            ("a sender's loopback", raw_rpc::message(loopback)),
            (
                "a receiver's loopback",
                raw_rpc::message(|root| root.init_disembargo().init_context().set_receiver_loopback(3)),
            ),
            ("resolve of no promise", raw_rpc::message(|root| _ = root.init_resolve().init_exception())),
            ("one import twice", imports(|mut cap| cap.set_sender_hosted(4))),
            ("one promise twice", imports(|mut cap| cap.set_sender_promise(4))),
            ("our export, given back", imports(|mut cap| cap.set_receiver_hosted(0))),
            ("no export of ours", imports(|mut cap| cap.set_receiver_hosted(99))),
            ("a third party", raw_rpc::message(|root| _ = root.init_provide())),
        ];
        for (what, bytes) in cases {
            neighbour
                .undisturbed(what, async || {
                    let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                    raw.send(&[bootstrap(0), bytes].concat()).await;
                    raw.finish().await;
                    raw.closed().await;
                })
                .await;
        }
    });
}

fn loopback(root: message::Builder<'_>) {
    let mut disembargo = root.init_disembargo();
    disembargo.reborrow().init_target().init_promised_answer().set_question_id(0);
    disembargo.init_context().set_sender_loopback(3);
}

#[test]
fn unknown_methods_and_interfaces_are_unimplemented() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("unknown calls", async || {
                let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                let foreign = raw_rpc::message(|root| {
                    let mut call = root.init_call();
                    call.set_question_id(2);
                    call.set_interface_id(0xdead_beef);
                    call.init_target().init_promised_answer().set_question_id(0);
                });
                raw.send(&[bootstrap(0), call(1, 999, |_| {}), foreign].concat()).await;
                assert!(matches!(raw.reply(1).await, Reply::Refused(_)));
                assert!(matches!(raw.reply(2).await, Reply::Refused(_)));
                raw.send(&version(3)).await;
                assert_eq!(raw.reply(3).await, Reply::Results);
            })
            .await;
    });
}

/// Replaces the pointer to the text `marker` in a message of one segment.
fn repoint(mut bytes: Vec<u8>, marker: &str, pointer: u64) -> Vec<u8> {
    let at = bytes.windows(marker.len()).position(|window| window == marker.as_bytes()).expect("it is in there");
    let target = at / 8;
    let points_there = |index: usize| {
        let word = u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("eight bytes"));
        let offset = usize::try_from((word & 0xffff_ffff) >> 2).expect("30 bits");
        word & 3 == 1 && index + 1 + offset == target
    };
    let index = (1..target).find(|index| points_there(*index)).expect("something points there");
    bytes[8 * index..8 * index + 8].copy_from_slice(&pointer.to_le_bytes());
    bytes
}

#[test]
fn a_field_that_points_nowhere_fails_its_call_alone() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("bad pointers", async || {
                let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                raw.send(&bootstrap(0)).await;
                for (question, (what, pointer)) in (1..).zip([
                    ("far into no segment", 2 | 7 << 32),
                    ("far beyond the segment", 2 | 0xffff << 3),
                    ("double far", 6 | 1 << 3),
                    ("a list beyond the segment", 1 | 0x1fff_ffff << 2 | 2 << 32 | 8 << 35),
                    ("a list before the segment", 1 | 0x2000_0000 << 2 | 2 << 32 | 8 << 35),
                    ("a list of 2^29 bytes", 1 | 2 << 32 | 0x1fff_ffff << 35),
                    ("a list of bits", 1 | 1 << 32 | 8 << 35),
                    ("text without an end", 1 | 2 << 32 | 1 << 35),
                    ("a struct", 1 << 32),
                    ("a capability", 3),
                ]) {
                    raw.send(&repoint(reopen(question, "MARKER-MARKER"), "MARKER-MARKER", pointer)).await;
                    match raw.reply(question).await {
                        Reply::Refused(reason) => assert!(reason.starts_with("invalid-request: "), "{what}: {reason}"),
                        other => panic!("{what}: {other:?}"),
                    }
                }
                raw.send(&version(99)).await;
                assert_eq!(raw.reply(99).await, Reply::Results);
            })
            .await;
    });
}

#[test]
fn a_list_that_claims_more_than_it_has_is_refused_quickly() {
    const EXEC_SYNC: u16 = 2;
    let exec = |question, fill: fn(conmon::exec_sync_container_request::Builder<'_>)| {
        call(question, EXEC_SYNC, |params| {
            let mut request = params.init_as::<conmon::exec_sync_container_params::Builder<'_>>().init_request();
            request.set_id("neighbour");
            fill(request);
        })
    };
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("amplification", async || {
                let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
                raw.send(&bootstrap(0)).await;
                // 2^29 structs of no size, and 10 000 texts that all are the same 64 KiB.
                let empty = exec(1, |mut request| {
                    request.reborrow().init_command(1).set(0, "true");
                    _ = request.init_env_vars(3);
                });
                let tag = (3u64 << 2 | 2 << 48).to_le_bytes();
                let at = empty.windows(8).position(|word| word == tag).expect("the list's tag");
                let mut amplified = empty;
                amplified[at..at + 8].copy_from_slice(&(0x1fff_ffffu64 << 2).to_le_bytes());
                raw.send(&amplified).await;
                match raw.reply(1).await {
                    Reply::Refused(reason) => assert!(reason.starts_with("invalid-request: "), "{reason}"),
                    other => panic!("{other:?}"),
                }
                let mut same = exec(2, |request| {
                    let mut command = request.init_command(10_000);
                    command.set(9_999, format!("MARKER-MARKER{}", "x".repeat(64 << 10)));
                });
                let text = same.windows(13).position(|window| window == b"MARKER-MARKER").expect("it is in there") / 8;
                for index in text - 10_000..text - 1 {
                    let offset = (text - index - 1) as u64;
                    let pointer = 1 | offset << 2 | 2 << 32 | ((64 << 10) + 14) << 35;
                    same[8 * index..8 * index + 8].copy_from_slice(&pointer.to_le_bytes());
                }
                raw.send(&same).await;
                match raw.reply(2).await {
                    Reply::Refused(reason) => assert!(reason.starts_with("invalid-request: "), "{reason}"),
                    other => panic!("{other:?}"),
                }
                raw.send(&version(3)).await;
                assert_eq!(raw.reply(3).await, Reply::Results);
            })
            .await;
    });
}

#[test]
fn half_a_message_and_silence_hold_up_nobody() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let mut silent = Vec::new();
        let whole = [bootstrap(0), version(1)].concat();
        for cut in [1, 3, 4, 7, 8, 9, whole.len() / 2, whole.len() - 1] {
            let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
            raw.send(&whole[..cut]).await;
            silent.push(raw);
        }
        for _ in 0..20 {
            let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
            // Exactly as much as may be claimed.
            raw.send(&[0, 0, 0, 0, 0, 0, 0x10, 0, 1, 2, 3]).await;
            silent.push(raw);
        }
        sandbox.connect().await.version(false).await.unwrap();
        for mut raw in silent {
            raw.finish().await;
            raw.closed().await;
        }
        neighbour.is_well("28 half messages").await;
    });
}

#[test]
fn noise_and_mutilated_conversations_never_hurt_anybody_else() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let seed = 0x9e37_79b9_7f4a_7c15;
        let mut state = seed;
        let good = [bootstrap(0), version(1), reopen(2, "nobody"), version(3)].concat();
        for round in 0..600 {
            let mut bytes = good.clone();
            match round % 3 {
                0 => bytes = (0..256).map(|_| random(&mut state).to_le_bytes()[0]).collect(),
                1 => {
                    for _ in 0..1 + random(&mut state) % 4 {
                        let at = usize::try_from(random(&mut state)).expect("64 bits") % bytes.len();
                        bytes[at] ^= 1 << (random(&mut state) % 8);
                    }
                }
                _ => {
                    let at = usize::try_from(random(&mut state)).expect("64 bits") % (bytes.len() / 8) * 8;
                    let word = random(&mut state) >> (random(&mut state) % 64);
                    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
                }
            }
            let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
            raw.send(&bytes).await;
            raw.finish().await;
            raw.closed().await;
        }
        // Whatever was in flight when its client went.
        sleep(Duration::from_millis(50)).await;
        neighbour.is_well(&format!("600 mutilated conversations, seed {seed:#x}")).await;
    });
}
