//! Which streams are one connection, and that one connection's failure is its own (streaming 6.1).

use super::{
    pod::{accept, echo, echoes, forward, pair_ended, read_all, url, with_pod, with_pod_and},
    support::raw_spdy::{CANCEL, FIN, FORWARD, Frame, Pair, RawSpdy},
};

#[test]
fn p101_bytes_go_both_ways_both_streams_end_and_the_connection_stays() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        for request in 0..3 {
            echoes(&mut session, port, request).await;
        }
        session.writer.ping(7).await;
        assert_eq!(session.reader.next().await, Some(Frame::Ping(7)));
        session.bye().await;
    });
}

#[test]
fn p102_pairs_match_in_any_order_mixed_and_without_request_ids() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let port = port.to_string();
        let kind = |kind| [("streamtype", kind), ("port", &port[..])];
        let of = |name, request| [&kind(name)[..], &[("requestid", request)]].concat();
        // The data of one pair first, then the error of the next, then their partners the other way round.
        let first = session.open(&of("data", "one")).await;
        let second_error = session.open(&of("error", "two")).await;
        // What comes before the partner is kept.
        session.writer.data(first, b"early ").await;
        session.writer.data(first, b"bird").await;
        session.writer.fin(first).await;
        let second = session.open(&of("data", "two")).await;
        let first_error = session.open(&of("error", "one")).await;
        session.writer.data(second, b"other").await;
        session.writer.fin(second).await;
        // A client from before there were request ids.
        let third_error = session.writer.offer(&kind("error")).await;
        let third = session.writer.offer(&kind("data")).await;
        assert_eq!(third, third_error + 2);
        session.writer.data(third, b"old").await;
        session.writer.fin(third).await;
        let mut seen = pair_ended(&mut session, Pair { error: first_error, data: first }).await;
        for (error, data) in [(second_error, second), (third_error, third)] {
            if !(seen.has_ended(error) && seen.has_ended(data)) {
                // What has come already counts.
                while !(seen.has_ended(error) && seen.has_ended(data)) {
                    seen.frames.push(session.reader.next().await.expect("the connection stays"));
                }
            }
        }
        let texts = [first, second, third].map(|id| seen.text(id));
        assert_eq!(texts, ["early bird", "other", "old"]);
        session.bye().await;
    });
}

#[test]
fn p103_what_cannot_be_part_of_a_pair_is_reset_and_later_pairs_work() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let right = port.to_string();
        let ports = ["0", "65536", "abc", "", "-1"].map(|port| vec![("streamtype", "data"), ("port", port)]);
        let others =
            [vec![("streamtype", "data")], vec![("port", &right[..])], vec![("streamtype", "stdin"), ("port", &right)]];
        for headers in ports.into_iter().chain(others) {
            let id = session.writer.offer(&headers).await;
            assert_eq!(session.reader.next().await, Some(Frame::Reset { id, status: CANCEL }), "{headers:?}");
        }
        // A second stream of its type in an open pair.
        let headers = [("streamtype", "error"), ("port", &right[..]), ("requestid", "0")];
        session.open(&headers).await;
        let second = session.writer.offer(&headers).await;
        assert_eq!(session.reader.next().await, Some(Frame::Reset { id: second, status: CANCEL }));
        echoes(&mut session, port, 1).await;
        session.bye().await;
    });
}

#[test]
fn p104_a_stream_without_its_partner_is_reset_without_a_text() {
    with_pod_and(&[("HOLDFAST_STREAM_CREATION_TIMEOUT", "1")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let text = port.to_string();
        for kind in ["error", "data"] {
            let id = session.open(&[("streamtype", kind), ("port", &text), ("requestid", kind)]).await;
            session.writer.ping(1).await;
            assert_eq!(session.reader.next().await, Some(Frame::Ping(1)));
            if kind == "data" {
                session.writer.data(id, b"nobody will read this").await;
            }
            assert_eq!(session.reader.next().await, Some(Frame::Reset { id, status: CANCEL }));
        }
        echoes(&mut session, port, 1).await;
        session.bye().await;
    });
}

/// Tools look for all of this (streaming 6.3).
fn is_refusal(text: &str, port: u16) -> bool {
    text.starts_with(&format!("error forwarding port {port} to pod "))
        && text.contains(&format!("failed to connect to localhost:{port}"))
        && text.matches("connect: connection refused").count() == 2
}

#[test]
fn p105_a_refused_connection_is_told_and_ends_no_other() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let other = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        let closed = pod.closed_port();
        let refused = session.open_pair(closed, 1).await;
        // A client sends before it knows.
        session.writer.data(refused.data, b"GET / HTTP/1.0\r\n\r\n").await;
        let seen = pair_ended(&mut session, refused).await;
        assert!(is_refusal(&seen.text(refused.error), closed), "{}", seen.text(refused.error));
        assert!(seen.text(refused.error).contains(&pod.path.display().to_string()), "the namespace is named");
        assert_eq!(seen.text(refused.data), "");
        session.writer.data(other.data, b"still here").await;
        session.writer.fin(other.data).await;
        assert_eq!(read_all(&mut server).await, b"still here");
        drop(server);
        pair_ended(&mut session, other).await;
        session.bye().await;
    });
}

#[test]
fn p105_a_refused_connection_is_a_mere_reset_where_that_is_set() {
    with_pod_and(&[("HOLDFAST_FORWARD_REFUSAL", "reset")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let refused = session.open_pair(pod.closed_port(), 1).await;
        let seen = pair_ended(&mut session, refused).await;
        assert_eq!(seen.text(refused.error), "");
        assert!(seen.frames.contains(&Frame::Reset { id: refused.data, status: CANCEL }), "{seen:?}");
        echoes(&mut session, port, 2).await;
        session.bye().await;
    });
}

#[test]
fn p115_one_connection_reaches_any_ports_whatever_ports_were_asked_for() {
    with_pod(async |sandbox, pod| {
        let ports = [(); 3].map(|()| {
            let (listener, port) = pod.listen();
            echo(listener);
            port
        });
        let url = format!("{}?port=1", url(sandbox, pod).await);
        let mut session = RawSpdy::connect(&url, FORWARD).await;
        for (request, port) in (0..).zip(ports) {
            echoes(&mut session, port, request).await;
        }
        // A request id is free again when its pair is over, and the port of the data stream counts.
        let port = ports[0].to_string();
        let error = session.writer.next_id;
        session.writer.offer_as(error, FIN, &[("streamtype", "error"), ("port", "1"), ("requestid", "0")]).await;
        assert_eq!(session.reader.next().await, Some(Frame::Reply(error)));
        let data = session.open(&[("streamtype", "data"), ("port", &port), ("requestid", "0")]).await;
        session.writer.data(data, b"again").await;
        session.writer.fin(data).await;
        assert_eq!(pair_ended(&mut session, Pair { error, data }).await.text(data), "again");
        session.bye().await;
    });
}
