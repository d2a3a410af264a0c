//! The streaming server after the upgrade.

use holdfast::client::ServeExec;
use tokio::time::timeout;

use super::raw_http::{Raw, frame};
use crate::support::{DEADLINE, Sandbox, beside_a_neighbour};

const BINARY: u8 = 0x82;

async fn session(sandbox: &Sandbox, tty: bool, command: &[&str]) -> Raw {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let id = "neighbour".to_owned();
    let exec = ServeExec { id, command, tty, stdin: true, stdout: true, ..ServeExec::default() };
    Raw::session(&sandbox.client().serve_exec(&exec).await.unwrap()).await
}

/// A frame's head with a length of eight bytes, and a mask of zeros.
fn long_head(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn a_frame_against_the_rules_ends_its_session_with_the_right_code() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (what, bytes, code) in [
            ("an unmasked frame", vec![BINARY, 2, 0, b'x'], 1002),
            ("a reserved bit", frame(0xc2, b"\0x"), 1002),
            ("all reserved bits", frame(0xf2, b"\0x"), 1002),
            ("a reserved data opcode", frame(0x83, b"\0x"), 1002),
            ("a reserved control opcode", frame(0x8b, b""), 1002),
            ("a length of 2^63", long_head(BINARY, 1 << 63), 1002),
            ("a length of 2^64 - 1", long_head(BINARY, u64::MAX), 1002),
            ("a length of 2^62", long_head(BINARY, 1 << 62), 1009),
            ("a message of 33 MiB", long_head(BINARY, 33 << 20), 1009),
            (
                "fragments of 20 MiB each",
                [long_head(0x02, 20 << 20), vec![7; 20 << 20], long_head(0x00, 20 << 20)].concat(),
                1009,
            ),
            ("a fragmented ping", frame(0x09, b""), 1002),
            ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
            ("a continuation of nothing", frame(0x80, b"x"), 1002),
            ("a message within a message", [frame(0x02, b"\0x"), frame(BINARY, b"\0y")].concat(), 1002),
            ("a Close of one byte", frame(0x88, &[3]), 1002),
            ("the close code 1005", frame(0x88, &1005u16.to_be_bytes()), 1002),
            ("the close code 999", frame(0x88, &999u16.to_be_bytes()), 1002),
            ("the close code 65535", frame(0x88, &u16::MAX.to_be_bytes()), 1002),
            ("the end of no channel", frame(BINARY, &[0xff, 9]), 1002),
            ("the end of what channel", frame(BINARY, &[0xff]), 1002),
            ("the end of two channels", frame(BINARY, &[0xff, 0, 4]), 1002),
            ("noise", (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x70).collect(), 1002),
            ("a good Close", frame(0x88, &1000u16.to_be_bytes()), 1000),
        ] {
            let got = neighbour
                .undisturbed(what, async || {
                    let mut raw = session(sandbox, false, &["cat"]).await;
                    raw.send(&bytes).await;
                    raw.close_code().await
                })
                .await;
            assert_eq!(got, code, "{what}");
        }
    });
}

#[test]
fn messages_without_meaning_are_ignored() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("meaningless messages", async || {
                let mut raw = session(sandbox, false, &["cat"]).await;
                for message in
                    [&b""[..], b"\0", b"\x01out", b"\x02err", b"\x03{\"status\":\"Failure\"}", b"\x07x", b"\xfe"]
                {
                    raw.send(&frame(BINARY, message)).await;
                }
                raw.send(&frame(0x81, b"\0not \xff\xfe UTF-8")).await;
                raw.send(&frame(BINARY, b"\xff\0")).await;
                let mut output = Vec::new();
                while let Some((opcode, payload)) = timeout(DEADLINE, raw.frame()).await.expect("the session ends") {
                    match (opcode, payload.first()) {
                        (2, Some(1)) => output.extend_from_slice(&payload[1..]),
                        (8, _) => break,
                        _ => {}
                    }
                }
                assert_eq!(output, b"not \xff\xfe UTF-8");
            })
            .await;
    });
}

#[test]
fn a_client_that_never_stops_sending_holds_up_nobody() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let flood = async || {
            let mut raw = session(sandbox, true, &["sleep", "1000"]).await;
            let sizes = frame(BINARY, b"\x04{\"Width\":80,\"Height\":24}").repeat(4096);
            let sending = async {
                loop {
                    raw.send(&sizes).await;
                }
            };
            let calls = async {
                let client = sandbox.connect().await;
                for _ in 0..200 {
                    timeout(DEADLINE, client.version(false)).await.expect("an answer meanwhile").unwrap();
                }
            };
            tokio::select! {
                () = sending => unreachable!("it never ends"),
                () = calls => {}
            }
        };
        neighbour.undisturbed("a flood of sizes", flood).await;
    });
}

#[test]
fn a_good_size_counts_after_any_amount_of_bad_ones() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("bad sizes", async || {
                let mut raw = session(sandbox, true, &["sh", "-c", "read x; stty size"]).await;
                let mut bad = vec![b"\x04".to_vec(), b"\x04null".to_vec(), b"\x04{\"Width\":0,\"Height\":0}".to_vec()];
                bad.push(b"\x04{\"Width\":-1,\"Height\":99999}".to_vec());
                bad.push([&b"\x04"[..], &[b'['; 4096]].concat());
                bad.extend((0..16).map(|n| [&b"\x04"[..], &vec![n; 4096]].concat()));
                bad.push([&b"\x04"[..], &[b'{'; 64 << 10]].concat());
                for message in bad {
                    raw.send(&frame(BINARY, &message)).await;
                }
                raw.send(&frame(BINARY, b"\x04{\"Width\":132,\"Height\":44}")).await;
                // Sizes and input take different ways: when the size has come is seen only in the terminal.
                let mut output = Vec::new();
                raw.send(&frame(BINARY, b"\0\n")).await;
                while let Some((opcode, payload)) = timeout(DEADLINE, raw.frame()).await.expect("the session ends") {
                    match (opcode, payload.first()) {
                        (2, Some(1)) => output.extend_from_slice(&payload[1..]),
                        (8, _) => break,
                        _ => {}
                    }
                }
                assert!(String::from_utf8_lossy(&output).contains("44 132"), "{}", String::from_utf8_lossy(&output));
            })
            .await;
    });
}

#[test]
fn a_client_that_resets_its_connection_takes_only_its_own_command_with_it() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (what, tty) in [("a reset during output", false), ("a reset of a terminal", true)] {
            neighbour
                .undisturbed(what, async || {
                    let mut raw = session(sandbox, tty, &["yes"]).await;
                    for _ in 0..10 {
                        timeout(DEADLINE, raw.frame()).await.expect("output").expect("a frame");
                    }
                    raw.reset();
                })
                .await;
        }
        neighbour
            .undisturbed("a reset right after the upgrade", async || {
                session(sandbox, false, &["cat"]).await.reset();
            })
            .await;
    });
}
