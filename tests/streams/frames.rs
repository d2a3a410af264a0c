//! streaming 2: sessions frame by frame.

use std::time::Duration;

use holdfast::client::{CgroupManager, ServeExec};
use serde_json::json;

use crate::{
    support::raw_ws::{BINARY, CLOSE, FIN, Frame, PING, PONG, RawSession, TEXT, channel},
    websocket::with_container,
};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// The last two messages of a session whose command ended with 0.
const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

fn message(channel: u8, payload: &[u8]) -> Frame {
    Frame { opcode: BINARY, fin: true, payload: [&[channel], payload].concat() }
}

/// What every session ends with, and that it does so once.
fn assert_ends_well(frames: &[Frame], status: &[u8]) {
    let [.., last, close] = frames else { panic!("too few messages: {frames:?}") };
    assert_eq!((last, close.close_code()), (&message(3, status), Some(1000)), "{frames:?}");
    // All of the channel's messages together are this one.
    assert_eq!(channel(frames, 3), status);
}

#[test]
fn the_first_message_is_one_channel_byte_and_the_last_a_status_then_close_1000() {
    with_container(async |sandbox| {
        for (stdout, stderr, greeting) in [(true, true, 1), (true, false, 1), (false, true, 2), (false, false, 3)] {
            let command = ["sh", "-c", "echo out; echo err >&2"].map(str::to_owned).into();
            let exec = ServeExec {
                id: "c".to_owned(),
                command,
                tty: false,
                stdin: true,
                stdout,
                stderr,
                cgroup_manager: CgroupManager::Cgroupfs,
            };
            let url = sandbox.client().serve_exec(&exec).await.expect("a URL");
            let frames = RawSession::open(&url, V5).await.rest().await;
            assert_eq!(frames[0], message(greeting, b""));
            assert!(frames[1..].iter().all(|frame| frame.payload.len() > 1), "no other empty message: {frames:?}");
            assert_eq!(channel(&frames, 1), if stdout { &b"out\n"[..] } else { b"" });
            assert_eq!(channel(&frames, 2), if stderr { &b"err\n"[..] } else { b"" });
            assert_ends_well(&frames, SUCCESS);
        }
    });
}

#[test]
fn a_failed_command_is_told_as_kubernetes_does() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["sh", "-c", "exit 3"]).await;
        let frames = RawSession::open(&url, V4).await.rest().await;
        let status = json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: exit status 3",
            "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&channel(&frames, 3)).expect("JSON"), status);
        assert_ends_well(&frames, &channel(&frames, 3));
    });
}

#[test]
fn before_v4_success_has_no_status_and_failure_a_text() {
    with_container(async |sandbox| {
        for (code, status) in [(0, &b""[..]), (3, b"command terminated with non-zero exit code: exit status 3")] {
            let url = sandbox.exec_url("c", &["sh", "-c", &format!("echo x; exit {code}")]).await;
            let frames = RawSession::open(&url, "channel.k8s.io").await.rest().await;
            assert_eq!((channel(&frames, 1), &channel(&frames, 3)[..]), (b"x\n".to_vec(), status));
            assert_eq!(frames.last().and_then(Frame::close_code), Some(1000));
        }
    });
}

#[test]
fn stdin_comes_in_text_or_binary_messages_whole_or_in_fragments_around_a_ping() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        session.send(FIN | BINARY, b"\0one ").await;
        session.send(FIN | TEXT, b"\0two ").await;
        session.send(BINARY, b"\0th").await;
        session.send(FIN | PING, b"within").await;
        session.send(0, b"").await;
        session.send(FIN, b"ree\n").await;
        session.send(FIN | BINARY, b"\xff\0").await;
        let frames = session.rest().await;
        assert_eq!(channel(&frames, 1), b"one two three\n");
        assert!(frames.contains(&Frame { opcode: PONG, fin: true, payload: b"within".to_vec() }));
        assert_ends_well(&frames, SUCCESS);
    });
}

// Spec item 27.
#[test]
fn base64_messages_are_text_both_ways_and_so_is_the_status() {
    with_container(async |sandbox| {
        for (protocol, status) in [("v4.base64.channel.k8s.io", SUCCESS), ("base64.channel.k8s.io", b"")] {
            let url = sandbox.exec_url("c", &["sh", "-c", "read line; echo $line"]).await;
            let mut session = RawSession::open(&url, protocol).await;
            session.send(FIN | TEXT, b"0bm90!Go=").await;
            session.send(FIN | TEXT, b"0aGVsbG8K").await;
            let frames = session.rest().await;
            let text = |payload: &[u8]| Frame { opcode: TEXT, fin: true, payload: payload.into() };
            let encoded: &[u8] = b"3eyJtZXRhZGF0YSI6e30sInN0YXR1cyI6IlN1Y2Nlc3MifQ==";
            let mut expected = vec![text(b"1"), text(b"1aGVsbG8K")];
            expected.extend((!status.is_empty()).then(|| text(encoded)));
            let [messages @ .., close] = &frames[..] else { panic!("no messages") };
            assert_eq!((messages, close.close_code()), (&expected[..], Some(1000)), "{protocol}");
        }
    });
}

#[test]
fn what_makes_no_sense_is_ignored_and_a_second_end_of_stdin_too() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        for nonsense in
            [&b"\x07x"[..], b"\x01x", b"\x02x", b"\x03x", b"", b"\0", b"\x04{\"Width\":", b"\x04[]", b"\xff\x04"]
        {
            session.send(FIN | BINARY, nonsense).await;
        }
        session.send(FIN | BINARY, b"\0x").await;
        session.wait_output(1, "x").await;
        for after in [&b"\xff\0"[..], b"\xff\0", b"\0late"] {
            session.send(FIN | BINARY, after).await;
        }
        let frames = session.rest().await;
        assert_eq!(channel(&frames, 1), b"");
        assert_ends_well(&frames, SUCCESS);
    });
}

#[test]
fn before_v5_there_is_no_end_of_stdin() {
    with_container(async |sandbox| {
        let mut session =
            RawSession::open(&sandbox.exec_url("c", &["sh", "-c", "read line; echo $line"]).await, V4).await;
        session.send(FIN | BINARY, b"\xff\0").await;
        session.send(FIN | BINARY, b"\0later\n").await;
        let frames = session.rest().await;
        assert_eq!(channel(&frames, 1), b"later\n");
        assert_ends_well(&frames, SUCCESS);
    });
}

#[test]
fn of_two_sizes_in_one_message_the_last_counts_and_zeros_and_nonsense_are_ignored() {
    with_container(async |sandbox| {
        let command = ["sh", "-c", "read line; stty size"].map(str::to_owned).into();
        let exec =
            ServeExec { id: "c".to_owned(), command, tty: true, stdin: true, stdout: true, ..ServeExec::default() };
        let mut session = RawSession::open(&sandbox.client().serve_exec(&exec).await.expect("a URL"), V5).await;
        session.send(FIN | BINARY, b"\x04{\"Width\":1,\"Height\":2}\n{\"width\":77,\"height\":33}").await;
        session.send(FIN | BINARY, b"\x04{\"Width\":0,\"Height\":9}").await;
        session.send(FIN | BINARY, b"\x04{\"Width\":70000,\"Height\":9}").await;
        session.send(FIN | BINARY, b"\x04nonsense").await;
        session.send(FIN | BINARY, b"\0\n").await;
        let frames = session.rest().await;
        assert_eq!(channel(&frames, 1), b"\r\n33 77\r\n");
        assert_ends_well(&frames, SUCCESS);
    });
}

#[test]
fn messages_are_whole_and_at_most_32_kib_and_their_channel_byte() {
    with_container(async |sandbox| {
        let frames = RawSession::open(&sandbox.exec_url("c", &["seq", "1", "300000"]).await, V5).await.rest().await;
        assert!(frames.iter().all(|frame| frame.fin && frame.payload.len() <= 32 * 1024 + 1));
        assert_eq!(channel(&frames, 1).len(), (1..=300_000_u32).map(|n| n.to_string().len() + 1).sum::<usize>());
        assert_ends_well(&frames, SUCCESS);
    });
}

#[test]
fn a_ping_is_answered_while_the_process_does_not_read_its_stdin() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["sleep", "1000"]).await, V5).await;
        assert_eq!(session.next().await, Some(message(1, b"")));
        let mut piece = vec![b'x'; 32 * 1024 + 1];
        piece[0] = 0;
        for number in 0_u8..24 {
            session.send(FIN | BINARY, &piece).await;
            session.send(FIN | PING, &[number]).await;
            assert_eq!(session.next().await, Some(Frame { opcode: PONG, fin: true, payload: vec![number] }));
        }
    });
}

#[test]
fn a_ping_is_answered_while_output_flows() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["seq", "1", "2000000"]).await, V5).await;
        assert_eq!(session.next().await, Some(message(1, b"")));
        session.send(FIN | PING, b"hello").await;
        let frames = session.rest().await;
        let answered = frames.iter().position(|frame| frame.opcode == PONG && frame.payload == b"hello");
        assert!(answered.is_some_and(|place| place < frames.len() / 2), "{answered:?} of {}", frames.len());
        assert_ends_well(&frames, SUCCESS);
    });
}

#[test]
fn a_frame_against_the_rules_is_answered_with_1002() {
    with_container(async |sandbox| {
        let long = [0; 126];
        let masked = |first: u8, payload: &[u8]| [&[first, 0xfe, 0, 126, 0, 0, 0, 0], payload].concat();
        let cases: [(&str, Vec<u8>); 6] = [
            ("unmasked", vec![FIN | BINARY, 2, 0, b'x']),
            ("reserved bit", vec![FIN | 0x40 | BINARY, 0x81, 0, 0, 0, 0, 0]),
            ("reserved opcode", vec![FIN | 3, 0x80, 0, 0, 0, 0]),
            ("fragmented ping", vec![PING, 0x80, 0, 0, 0, 0]),
            ("long ping", masked(FIN | PING, &long)),
            ("continuation of nothing", vec![FIN, 0x80, 0, 0, 0, 0]),
        ];
        for (what, bytes) in cases {
            let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
            session.send_raw(&bytes).await;
            assert_eq!(session.rest().await.last().and_then(Frame::close_code), Some(1002), "{what}");
        }
    });
}

#[test]
fn a_clients_close_is_echoed() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        session.send(FIN | CLOSE, &1000_u16.to_be_bytes()).await;
        assert_eq!(session.rest().await.last().and_then(Frame::close_code), Some(1000));
        assert_eq!(session.next().await, None, "and the connection ended");
    });
}

#[test]
fn the_server_keeps_the_connection_until_the_client_has_answered_its_close() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["seq", "1", "200000"]).await, V5).await;
        // It goes on sending, as a client does that has not read the Close yet: a reset would destroy what it has not read.
        for _ in 0..20 {
            session.send(FIN | BINARY, b"\0late").await;
            session.send(FIN | PING, b"late").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let frames = session.rest().await;
        let seen: Vec<_> = frames.into_iter().filter(|frame| frame.opcode != PONG).collect();
        assert_eq!(channel(&seen, 1).len(), 1_288_895);
        assert_ends_well(&seen, SUCCESS);
        session.send(FIN | CLOSE, &1000_u16.to_be_bytes()).await;
        assert_eq!(session.next_message().await, None);
    });
}
