//! How a forwarded connection ends: half-closes as half-closes, resets as resets (streaming 6.2).

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, interval},
};

use super::{
    pod::{accept, echo, echoes, forward, pair_ended, read_all, with_pod},
    support::{
        long,
        raw_spdy::{CANCEL, Frame},
        within,
    },
};

#[test]
fn p106_a_reset_by_the_pod_is_a_reset_without_a_text_and_the_next_connection_works() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        server.write_all(b"some bytes").await.expect("the daemon reads");
        session.reader.wait_output(pair.data, "some bytes").await;
        server.set_zero_linger().expect("a socket");
        drop(server);
        let seen = pair_ended(&mut session, pair).await;
        assert!(seen.frames.contains(&Frame::Reset { id: pair.data, status: CANCEL }), "{seen:?}");
        assert_eq!(seen.text(pair.error), "");
        echo(listener);
        echoes(&mut session, port, 1).await;
        session.bye().await;
    });
}

#[test]
fn p107_after_the_clients_half_close_everything_the_pod_still_says_arrives() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        session.writer.data(pair.data, b"the question").await;
        session.writer.fin(pair.data).await;
        assert_eq!(read_all(&mut server).await, b"the question");
        // Other servers give it one second.
        let answering = Duration::from_secs(if long() { 10 } else { 3 });
        let (start, mut tick, mut sent) = (Instant::now(), interval(Duration::from_millis(100)), 0);
        while start.elapsed() < answering {
            tick.tick().await;
            server.write_all(&[b'x'; 20_000]).await.expect("the daemon reads");
            sent += 20_000;
        }
        drop(server);
        let seen = pair_ended(&mut session, pair).await;
        assert_eq!((seen.payload(pair.data).len(), seen.text(pair.error)), (sent, String::new()));
        session.bye().await;
    });
}

#[test]
fn p108_when_the_pod_ends_first_both_streams_end_and_the_client_may_go_on_sending() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        server.write_all(&vec![b'x'; 500_000]).await.expect("the daemon reads");
        server.shutdown().await.expect("a socket");
        // Clients wait for the end of both before they do anything.
        let seen = pair_ended(&mut session, pair).await;
        assert_eq!(seen.payload(pair.data).len(), 500_000);
        assert!(!seen.frames.iter().any(|frame| matches!(frame, Frame::Reset { .. })), "{seen:?}");
        session.writer.data(pair.data, b"the last word").await;
        session.writer.fin(pair.data).await;
        assert_eq!(read_all(&mut server).await, b"the last word");
        // Nothing of the pair is left: its request id is free.
        echo(listener);
        echoes(&mut session, port, 0).await;
        session.bye().await;
    });
}

#[test]
fn p108_a_client_that_resets_after_the_pods_end_frees_the_pair() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        accept(&listener).await.write_all(b"bye").await.expect("the daemon reads");
        assert_eq!(pair_ended(&mut session, pair).await.text(pair.data), "bye");
        // What client-go does.
        session.writer.rst(pair.data, CANCEL).await;
        echo(listener);
        echoes(&mut session, port, 0).await;
        session.bye().await;
    });
}

#[test]
fn p109_a_reset_by_the_client_closes_the_pods_connection_at_once() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        // Of the data stream, and of the error stream, which is as good as giving the connection up.
        for request in 0..2 {
            let pair = session.open_pair(port, request).await;
            let mut server = accept(&listener).await;
            session.writer.data(pair.data, b"x").await;
            assert_eq!(within(server.read_u8()).await.ok(), Some(b'x'));
            let sent = Instant::now();
            session.writer.rst(if request == 0 { pair.data } else { pair.error }, CANCEL).await;
            let error = within(server.read(&mut [0])).await.expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(sent.elapsed() < Duration::from_secs(5), "a second on a machine with nothing else to do");
            // The other stream of the pair ends as well.
            let other = if request == 0 { pair.error } else { pair.data };
            let end = session.reader.next().await.expect("the connection stays");
            assert!(
                matches!(end, Frame::Data { id, fin: true, .. } | Frame::Reset { id, .. } if id == other),
                "{end:?}"
            );
        }
        echo(listener);
        echoes(&mut session, port, 9).await;
        session.bye().await;
    });
}

#[test]
fn p109_what_was_sent_before_a_good_bye_reaches_the_pod_and_a_vanished_client_frees_it() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        session.writer.data(pair.data, &vec![b'x'; 300_000]).await;
        session.writer.goaway().await;
        assert_eq!(read_all(&mut accept(&listener).await).await.len(), 300_000);
        let mut session = forward(sandbox, pod).await;
        session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        session.reset();
        assert_eq!(read_all(&mut server).await, b"");
    });
}
