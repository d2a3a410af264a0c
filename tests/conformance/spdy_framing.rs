//! Items 60 to 70 and 77 to 83: SPDY frame by frame, on an exec. What is meant to do harm is in `spdy_harm.rs`.

use std::{process::Command, time::Duration};

use flate2::{Compress, Compression, FlushCompress};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    ALL, OUTPUT, SUCCESS, exec_url, noise, output_url,
    spdy_exec::alone,
    support::{
        BundleSpec, Sandbox, beside_a_neighbour, e2e_with, eventually, procfs,
        raw_spdy::{
            CANCEL, FIN, Frame, HEADERS, Ids, PING, PROTOCOL_ERROR, RawSpdy, SETTINGS, V4, WINDOW_UPDATE, control,
            data, syn_stream,
        },
        with_container,
    },
};

/// Header blocks as clients write them, each leaning on those before.
pub(crate) struct Compressor(Compress, bool);

impl Compressor {
    pub(crate) fn new() -> Self {
        Self(Compress::new(Compression::best(), false), false)
    }

    pub(crate) fn block(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 64);
        if !std::mem::replace(&mut self.1, true) {
            // A zlib stream with the dictionary of SPDY/3, which it need not use.
            block.extend([0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2]);
        }
        self.0.compress_vec(plain, &mut block, FlushCompress::Sync).expect("there is room");
        assert!(block.ends_with(&[0, 0, 0xff, 0xff]));
        block
    }
}

/// A header block before its compression.
fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = u32::try_from(headers.len()).expect("few").to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
        block.extend(text.as_bytes());
    }
    block
}

/// A session of `cat` with its streams open.
async fn cat(sandbox: &Sandbox) -> (RawSpdy, Ids) {
    RawSpdy::session(&exec_url(sandbox, &["cat"]).await, &ALL).await
}

/// The session of `cat` still works: it echoes and ends well.
async fn echoes((mut session, ids): (RawSpdy, Ids)) {
    session.writer.raw(&data(ids["stdin"], FIN, b"echo")).await;
    let seen = session.finish(&ids).await;
    assert!(seen.text(ids["stdout"]).ends_with("echo") && seen.text(ids["error"]) == SUCCESS, "{seen:?}");
}

/// The server says what it thinks of the client and closes.
pub(crate) async fn is_given_up(mut session: RawSpdy, what: &str) {
    let frames = session.reader.rest().await.frames;
    assert!(matches!(frames.last(), Some(Frame::GoAway { status: 1, .. })), "{what}: {frames:?}");
    assert!(!session.reader.was_reset, "{what}");
}

pub(crate) async fn neighbours_exec(sandbox: &Sandbox) -> RawSpdy {
    RawSpdy::connect(&sandbox.exec_url("neighbour", &["cat"]).await, V4).await
}

#[test]
fn s61_a_header_block_is_read_right_behind_those_of_refused_streams() {
    with_container(async |sandbox| {
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        let mut compressor = Compressor::new();
        let mut ids = Ids::new();
        let types = ["error", "nonsense", "stdin", "nonsense", "stdout", "stderr"];
        for (id, name) in (1..).step_by(2).zip(types) {
            let block = compressor.block(&plain(&[("streamtype", name)]));
            session.writer.raw(&syn_stream(id, 0, &block)).await;
            let refused = name == "nonsense";
            let answer = if refused { Frame::Reset { id, status: CANCEL } } else { Frame::Reply(id) };
            assert_eq!(session.reader.next().await, Some(answer), "{name}");
            ids.insert(name, id);
        }
        echoes((session, ids)).await;
    });
}

#[test]
fn s62_a_session_in_single_bytes_is_the_same() {
    with_container(async |sandbox| {
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        let mut bytes = Vec::new();
        let mut ids = Ids::new();
        for (id, name) in (1..).step_by(2).zip(ALL) {
            bytes.extend(syn_stream(id, 0, &session.writer.block(&[("streamtype", name)])));
            ids.insert(name, id);
        }
        bytes.extend(control(PING, 0, &[1], b""));
        bytes.extend(data(ids["stdin"], 0, b"hello "));
        bytes.extend(data(ids["stdin"], FIN, b"world"));
        for byte in bytes {
            session.writer.raw(&[byte]).await;
        }
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("hello world".into(), SUCCESS.into()));
        assert_eq!(seen.frames[..4], [1, 3, 5, 7].map(Frame::Reply));
        assert!(seen.frames.contains(&Frame::Ping(1)));
    });
}

#[test]
fn s64_ids_must_grow_and_be_odd_and_a_bad_one_is_refused_alone() {
    with_container(async |sandbox| {
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        let mut ids = session.open_all(&["error"]).await;
        session.writer.next_id = 21;
        ids.extend(session.open_all(&["stdin"]).await);
        for bad in [3, 22, 5] {
            session.writer.offer_as(bad, 0, &[("streamtype", "stdout")]).await;
            assert_eq!(session.reader.next().await, Some(Frame::Reset { id: bad, status: PROTOCOL_ERROR }));
        }
        session.writer.next_id = 23;
        ids.extend(session.open_all(&["stdout", "stderr"]).await);
        echoes((session, ids)).await;
        for (what, id) in [("a stream 0", 0), ("a stream 0 with the reserved bit", 0x8000_0000)] {
            let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
            session.writer.offer_as(id, 0, &[("streamtype", "error")]).await;
            is_given_up(session, what).await;
        }
    });
}

#[test]
fn s65_an_end_comes_with_the_stream_with_payload_or_by_itself() {
    with_container(async |sandbox| {
        for (early, frames, expected) in [
            (FIN, vec![], ""),
            (0, vec![(0, &b"some"[..]), (FIN, b"thing")], "something"),
            (0, vec![(0, b"thing"), (FIN, b"")], "thing"),
        ] {
            let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
            let stdin = session.writer.next_id;
            session.writer.offer_as(stdin, early, &[("streamtype", "stdin")]).await;
            assert_eq!(session.reader.next().await, Some(Frame::Reply(stdin)));
            let ids = session.open_all(&OUTPUT).await;
            for (flags, payload) in frames {
                session.writer.raw(&data(stdin, flags, payload)).await;
            }
            let seen = session.finish(&ids).await;
            assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), (expected.into(), SUCCESS.into()));
        }
    });
}

#[test]
fn s66_data_that_nobody_waits_for_is_dropped_and_only_that() {
    with_container(async |sandbox| {
        let (mut session, ids) = cat(sandbox).await;
        let refused = session.writer.offer(&[("streamtype", "nonsense")]).await;
        for id in [refused, 99, 2, 0x7fff_ffff, ids["stdout"], ids["error"]] {
            session.writer.data(id, &[b'x'; 100_000]).await;
        }
        session.writer.raw(&data(ids["stdin"], FIN, b"real")).await;
        session.writer.data(ids["stdin"], b"behind the end").await;
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("real".into(), SUCCESS.into()));
    });
}

#[test]
fn s67_data_on_stream_0_ends_the_connection() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("data on stream 0", async || {
                let mut session = neighbours_exec(sandbox).await;
                session.writer.data(0, b"x").await;
                is_given_up(session, "data on stream 0").await;
            })
            .await;
    });
}

#[test]
fn s68_frames_that_ask_for_nothing_change_nothing() {
    with_container(async |sandbox| {
        let (mut session, ids) = cat(sandbox).await;
        let [stdin, stdout] = [ids["stdin"], ids["stdout"]];
        let settings = control(SETTINGS, 1, &[1, 0x0000_0007, 1], b"");
        let windows = [(0, 1), (stdout, 0x7fff_ffff), (99, 5), (stdout, 0)]
            .map(|(id, delta)| control(WINDOW_UPDATE, 0, &[id, delta], b""));
        session.writer.raw(&[&settings[..], &windows.concat()].concat()).await;
        for id in [stdin, stdout, 99] {
            let block = session.writer.block(&[("later", "headers")]);
            session.writer.raw(&control(HEADERS, 0, &[id], &block)).await;
            let block = session.writer.block(&[]);
            session.writer.raw(&control(2, 0, &[id], &block)).await;
        }
        for unknown in [5, 10, 77, 0x7fff] {
            session.writer.raw(&control(unknown, 0xff, &[], &[b'x'; 1000])).await;
        }
        // No answer, and none for the status 0 of a stream that is not there.
        session.writer.rst(99, 0).await;
        session.writer.ping(3).await;
        assert_eq!(session.reader.next().await, Some(Frame::Ping(3)));
        echoes((session, ids)).await;
    });
}

#[test]
fn s69_a_ping_is_answered_at_any_time() {
    with_container(async |sandbox| {
        let url = exec_url(sandbox, &["sh", "-c", "echo up; sleep 1000"]).await;
        let mut session = RawSpdy::connect(&url, V4).await;
        let ping = async |session: &mut RawSpdy, number| {
            session.writer.ping(number).await;
            let answer = timeout(Duration::from_secs(10), session.reader.wait(&Frame::Ping(number))).await;
            answer.unwrap_or_else(|_| panic!("no answer to {number}"));
        };
        // While streams are missing; odd, even, and numbers that a counter never reaches.
        for number in [1, 2, 3, 0x8000_0000, u32::MAX] {
            ping(&mut session, number).await;
        }
        let ids = session.open_all(&ALL).await;
        session.reader.wait_output(ids["stdout"], "up\n").await;
        // While the process does not read its stdin, of which a session keeps so much.
        for number in (5..29).step_by(2) {
            session.writer.data(ids["stdin"], &[b'x'; 64 << 10]).await;
            ping(&mut session, number).await;
        }
        session.reset();
        // While output is not read, and while the good-bye is waited for.
        let (mut session, ids) = RawSpdy::session(&output_url(sandbox, &["seq", "1", "1000000"]).await, &OUTPUT).await;
        for number in [1, 3, 2] {
            session.writer.ping(number).await;
        }
        let seen = session.reader.until_ended(&ids).await;
        assert!([1, 3, 2].into_iter().all(|number| seen.frames.contains(&Frame::Ping(number))));
        ping(&mut session, 31).await;
        session.bye().await;
    });
}

#[test]
fn s77_goaway_of_the_client_ends_the_session_and_frees_everything() {
    with_container(async |sandbox| {
        let url = exec_url(sandbox, &["sh", "-c", "echo up; cat; echo eof >/seen"]).await;
        let (mut session, ids) = RawSpdy::session(&url, &ALL).await;
        session.reader.wait_output(ids["stdout"], "up\n").await;
        session.bye().await;
        sandbox.wait_file("seen", "eof\n").await;
        alone(sandbox).await;
        // Before it has begun.
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["touch", "/begun"]).await, V4).await;
        session.open_all(&["error", "stdin", "stdout"]).await;
        session.writer.goaway().await;
        session.writer.offer(&[("streamtype", "stderr")]).await;
        let frames = session.reader.rest().await.frames;
        assert!(!frames.iter().any(|frame| matches!(frame, Frame::Reply(_))), "{frames:?}");
        alone(sandbox).await;
        assert!(!sandbox.in_rootfs("begun").exists());
    });
}

#[test]
fn s78_an_end_within_a_frame_is_an_end() {
    with_container(async |sandbox| {
        let before = procfs::settled_descriptors(sandbox.daemon_pid()).await;
        let frame = data(3, 0, b"half of this");
        for len in [1, 7, 8, 14] {
            let url = exec_url(sandbox, &["sh", "-c", "echo up; cat >/dev/null; echo eof >/seen"]).await;
            let (mut session, ids) = RawSpdy::session(&url, &ALL).await;
            session.reader.wait_output(ids["stdout"], "up\n").await;
            session.writer.raw(&frame[..len]).await;
            drop(session);
            sandbox.wait_file("seen", "eof\n").await;
            std::fs::remove_file(sandbox.in_rootfs("seen")).expect("written");
            alone(sandbox).await;
        }
        // The listener came with the first session.
        let daemon = sandbox.daemon_pid();
        eventually("descriptors to be given back", || (procfs::descriptors(daemon) <= before + 1).then_some(())).await;
    });
}

#[test]
fn s79_streams_come_in_any_order_and_unknown_and_second_ones_are_reset() {
    with_container(async |sandbox| {
        for order in [["stderr", "stdout", "stdin", "error"], ["stdin", "error", "stderr", "stdout"]] {
            let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
            let mut ids = session.open_all(&order[..2]).await;
            for unwanted in ["nonsense", order[0], "resize", ""] {
                let id = session.writer.offer(&[("streamtype", unwanted)]).await;
                assert_eq!(session.reader.next().await, Some(Frame::Reset { id, status: CANCEL }), "{unwanted}");
            }
            // The first of its type is kept.
            ids.extend(session.open_all(&order[2..]).await);
            echoes((session, ids)).await;
        }
    });
}

#[test]
fn s80_a_set_that_stays_incomplete_is_given_up_and_nothing_was_started() {
    let limited = |daemon: &mut Command| _ = daemon.env("HOLDFAST_STREAM_CREATION_TIMEOUT", "2");
    e2e_with(limited, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["touch", "/begun"]).await, V4).await;
        session.open_all(&["error", "stdin", "stdout"]).await;
        let start = Instant::now();
        let mut answered = 0;
        let last = loop {
            session.writer.ping(1).await;
            match session.reader.next().await {
                Some(Frame::Ping(1)) => answered += 1,
                other => break other,
            }
            sleep(Duration::from_millis(50)).await;
        };
        assert!(matches!(last, Some(Frame::GoAway { status: 0, .. })), "{last:?}");
        assert!(answered > 1 && start.elapsed() >= Duration::from_secs(1), "{answered} in {:?}", start.elapsed());
        assert!(session.reader.rest().await.frames.is_empty());
        alone(sandbox).await;
        assert!(!sandbox.in_rootfs("begun").exists());
    });
}

#[test]
fn s81_a_further_stream_is_reset_and_changes_nothing() {
    with_container(async |sandbox| {
        let (mut session, ids) = cat(sandbox).await;
        for unwanted in ["stdout", "resize", "stdin"] {
            let id = session.writer.offer(&[("streamtype", unwanted)]).await;
            assert_eq!(session.reader.next().await, Some(Frame::Reset { id, status: CANCEL }), "{unwanted}");
            session.writer.data(id, b"for nobody").await;
        }
        echoes((session, ids)).await;
    });
}

#[test]
fn s82_stdin_of_before_the_last_stream_reaches_the_process() {
    with_container(async |sandbox| {
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        let mut ids = session.open_all(&["stdin"]).await;
        // More than one account of a stream holds.
        let early = noise(200 << 10);
        session.writer.data(ids["stdin"], &early).await;
        ids.extend(session.open_all(&OUTPUT).await);
        session.writer.raw(&data(ids["stdin"], FIN, b"end")).await;
        let seen = session.finish(&ids).await;
        assert!(seen.payload(ids["stdout"]) == [&early[..], b"end"].concat() && seen.text(ids["error"]) == SUCCESS);
    });
}

#[test]
fn s83_a_header_that_may_not_be_is_refused_with_its_stream() {
    with_container(async |sandbox| {
        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        for bad in
            [&[("Streamtype", "error")][..], &[("host", "x")], &[("connection", "x")], &[("streamtype", "error"); 2]]
        {
            let id = session.writer.offer(bad).await;
            assert_eq!(session.reader.next().await, Some(Frame::Reset { id, status: PROTOCOL_ERROR }), "{bad:?}");
        }
        let ids = session.open_all(&ALL).await;
        echoes((session, ids)).await;
    });
}
