//! Items 71 to 76 and 84: what is meant to do harm, beside a session that must not notice.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    ALL, noise,
    spdy_framing::{Compressor, is_given_up, neighbours_exec},
    support::{
        beside_a_neighbour,
        raw_spdy::{
            Frame, GOAWAY, HEADERS, PING, PROTOCOL_ERROR, RST_STREAM, RawSpdy, SETTINGS, SYN_STREAM, WINDOW_UPDATE,
            control, data, syn_stream,
        },
        within,
    },
};

/// A SYN_STREAM whose small block becomes `size` zeros.
fn bomb(size: usize) -> Vec<u8> {
    let mut compressor = Compressor::new();
    let block = compressor.block(&vec![0; size]);
    syn_stream(1, 0, &block)
}

#[test]
fn s71_a_header_bomb_is_refused_and_costs_nothing() {
    // 60 KiB that become 60 MiB, within the limit of a frame; and above it.
    let bombs = [bomb(60_000 << 10), bomb(256 << 20)];
    assert!(bombs[0].len() < 64 << 10 && bombs[1].len() > 200 << 10, "{} {}", bombs[0].len(), bombs[1].len());
    beside_a_neighbour(async |sandbox, neighbour| {
        for (size, bomb) in bombs.iter().enumerate() {
            neighbour
                .undisturbed("a header bomb", async || {
                    let mut session = neighbours_exec(sandbox).await;
                    session.writer.raw(bomb).await;
                    let last = session.reader.rest().await.frames.pop();
                    // Behind a frame that was refused by its head comes the rest of it, which may reset the connection.
                    let said = matches!(last, Some(Frame::GoAway { status: 1, .. }));
                    assert!(said || (size == 1 && session.reader.was_reset), "{last:?}");
                })
                .await;
        }
    });
}

#[test]
fn s72_lengths_and_counts_that_lie_cost_nothing() {
    /// A stored block, so that every byte is what it says.
    fn stored(plain: &[u8]) -> Vec<u8> {
        let length = u16::try_from(plain.len()).expect("short").to_le_bytes();
        let inverse = length.map(|byte| !byte);
        let header = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0];
        [&header[..], &length, &inverse, plain, &[0, 0, 0, 0xff, 0xff]].concat()
    }
    beside_a_neighbour(async |sandbox, neighbour| {
        let huge = [0xff; 4];
        for lie in
            [&huge[..], &[&[0, 0, 0, 1], &huge[..]].concat(), &[&[0, 0, 0, 1, 0, 0, 0, 1, b'x'], &huge[..]].concat()]
        {
            neighbour
                .undisturbed("a header block that lies", async || {
                    let mut session = neighbours_exec(sandbox).await;
                    session.writer.raw(&syn_stream(1, 0, &stored(lie))).await;
                    let refused = Frame::Reset { id: 1, status: PROTOCOL_ERROR };
                    assert_eq!(session.reader.next().await, Some(refused), "{lie:?}");
                    session.bye().await;
                })
                .await;
        }
        neighbour
            .undisturbed("settings that lie", async || {
                let mut session = neighbours_exec(sandbox).await;
                session.writer.raw(&control(SETTINGS, 0, &[0x1fff_ffff, 0, 0], b"")).await;
                is_given_up(session, "settings that lie").await;
            })
            .await;
        neighbour
            .undisturbed("a long frame that does not come", async || {
                let url = sandbox.exec_url("neighbour", &["cat"]).await;
                let (mut session, ids) = RawSpdy::session(&url, &ALL).await;
                let mut head = data(ids["stdin"], 0, b"");
                head[5..].copy_from_slice(&[0xff; 3]);
                session.writer.raw(&[&head[..], b"begun"].concat()).await;
                session.reader.wait_output(ids["stdout"], "begun").await;
                session.reset();
            })
            .await;
    });
}

#[test]
fn s73_a_frame_of_a_wrong_length_ends_the_connection() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (kind, words) in [
            (RST_STREAM, 1),
            (RST_STREAM, 3),
            (PING, 0),
            (PING, 2),
            (GOAWAY, 1),
            (GOAWAY, 3),
            (WINDOW_UPDATE, 1),
            (SETTINGS, 0),
            (SYN_STREAM, 2),
            (HEADERS, 0),
        ] {
            neighbour
                .undisturbed("a wrong length", async || {
                    let mut session = neighbours_exec(sandbox).await;
                    // The head is enough.
                    let mut frame = control(kind, 0, &vec![0; words], b"");
                    frame.truncate(8);
                    session.writer.raw(&frame).await;
                    is_given_up(session, &format!("{kind} of {words} words")).await;
                })
                .await;
        }
    });
}

#[test]
fn s74_a_control_frame_of_16_mib_is_refused_and_not_kept() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for kind in [SYN_STREAM, SETTINGS, PING, HEADERS] {
            neighbour
                .undisturbed("a control frame of 16 MiB", async || {
                    let mut session = neighbours_exec(sandbox).await;
                    session.writer.raw(&control(kind, 0, &[], &vec![0; (1 << 24) - 1])).await;
                    let frames = session.reader.rest().await.frames;
                    // What is still sent when the server closes may reset the connection before its word is read.
                    let said = matches!(frames.last(), Some(Frame::GoAway { status: 1, .. }));
                    assert!(said || (frames.is_empty() && session.reader.was_reset), "{frames:?}");
                })
                .await;
        }
    });
}

#[test]
fn s75_streams_without_end_end_the_connection_and_disturb_nobody() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for begun in [false, true] {
            neighbour
                .undisturbed("a flood of streams", async || {
                    let mut session = neighbours_exec(sandbox).await;
                    if begun {
                        session.open_all(&ALL).await;
                    }
                    let mut flood = Vec::new();
                    for id in (session.writer.next_id..200_000).step_by(2) {
                        flood.extend(syn_stream(id, 0, &session.writer.block(&[("streamtype", "stdout")])));
                    }
                    let RawSpdy { mut reader, mut writer } = session;
                    let ((), seen) = tokio::join!(writer.raw(&flood), reader.rest());
                    assert!(seen.frames.len() < 5000, "{} answers", seen.frames.len());
                })
                .await;
        }
    });
}

#[test]
fn s76_pings_whose_answers_are_not_read_are_held_up_and_then_answered() {
    const NUMBER: u32 = 100_000;
    beside_a_neighbour(async |sandbox, neighbour| {
        let url = sandbox.exec_url("neighbour", &["cat"]).await;
        let (session, ids) = RawSpdy::session(&url, &ALL).await;
        let RawSpdy { mut reader, mut writer } = session;
        let pings: Vec<u8> = (1..=NUMBER).flat_map(|number| control(PING, 0, &[number], b"")).collect();
        let mut sent = 0;
        // Until it is held up, or all of them are in the buffers on the way.
        for piece in pings.chunks(12_000) {
            if timeout(Duration::from_secs(1), writer.raw_slowly(piece)).await.is_err() {
                break;
            }
            sent += piece.len();
        }
        let session = async {
            // A piece that was held up may have been sent in part: from here on all of it is read.
            let mut answered = 0;
            while answered < sent / 12 {
                assert!(matches!(reader.next().await, Some(Frame::Ping(_))));
                answered += 1;
            }
        };
        within(session).await;
        neighbour.growth_kib = 8 << 10;
        RawSpdy { reader, writer }.reset();
        drop(ids);
        neighbour.is_well("100 000 pings").await;
    });
}

// Beside the fuzzing of the core (tests/fuzz_corpora.rs): that the daemon around it takes no harm either.
#[test]
fn s84_mutated_recordings_harm_nobody() {
    let recording = include_bytes!("../data/spdy_go_exec_client.bin");
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour.growth_kib = 12 << 10;
        let random = noise(4000);
        for (round, changes) in random.chunks_exact(40).enumerate() {
            let mut bytes = recording.to_vec();
            for change in changes.chunks_exact(4).take(1 + round % 4) {
                let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
                bytes[place] = change[2];
            }
            if round % 10 == 0 {
                bytes = noise(1000 + round).split_off(round);
            }
            let mut session = neighbours_exec(sandbox).await;
            session.writer.raw(&bytes).await;
            session.writer.goaway().await;
            drop(session);
        }
        neighbour.is_well("mutated recordings").await;
    });
}
