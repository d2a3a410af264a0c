//! Whose ports are reached (streaming 6.4).

use std::path::Path;

use tokio::net::TcpListener;

use super::{
    pod::{accept, echo, echoes, forward, pair_ended, url_of, with_pod},
    support::{
        raw_spdy::{CANCEL, FORWARD, Frame, RawSpdy},
        raw_ws::{Frame as Message, RawSession, channel},
    },
};

#[test]
fn p113_a_service_is_reached_on_whatever_loopback_address_it_listens() {
    with_pod(async |sandbox, pod| {
        let mut session = forward(sandbox, pod).await;
        for (request, address) in (0..).zip(["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"]) {
            let (listener, port) = pod.listen_on(address);
            echo(listener);
            echoes(&mut session, port, request).await;
        }
        // On both: IPv4 comes first.
        let (v6, port) = pod.listen_on("[::1]:0");
        let (v4, _) = pod.listen_on(&format!("127.0.0.1:{port}"));
        session.open_pair(port, 9).await;
        accept(&v4).await;
        drop(v6);
    });
}

#[test]
fn p114_ports_are_the_pods_and_the_hosts_for_pods_without_a_network_of_their_own() {
    with_pod(async |sandbox, pod| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback");
        let host = listener.local_addr().expect("bound").port();
        echo(listener);
        let (listener, inside) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(host, 0).await;
        let seen = pair_ended(&mut session, pair).await;
        assert!(seen.text(pair.error).contains("connection refused"), "{seen:?}");
        echoes(&mut session, inside, 1).await;

        let url = url_of(&sandbox.client(), Path::new("")).await;
        let mut session = RawSpdy::connect(&url, FORWARD).await;
        echoes(&mut session, host, 0).await;
        session.bye().await;
    });
}

#[test]
fn p124_when_the_pod_is_gone_a_new_connection_is_told_and_everything_ends() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let ended = session.open_pair(port, 0).await;
        let server = accept(&listener).await;
        let open = session.open_pair(port, 1).await;
        let other = accept(&listener).await;
        // Its processes end, and with them their connections.
        drop(server);
        pair_ended(&mut session, ended).await;
        pod.remove();
        let refused = session.open_pair(port, 2).await;
        let seen = session.reader.wait(&Frame::GoAway { last_good: refused.data, status: 0 }).await;
        let text = seen.text(refused.error);
        assert!(text.starts_with(&format!("error forwarding port {port} to pod ")), "{text}");
        assert!(text.contains(&format!("network namespace {}", pod.path.display())), "{text}");
        for stream in [refused.data, refused.error, open.data, open.error] {
            assert!(seen.has_ended(stream), "{stream} in {seen:?}");
        }
        assert!(seen.frames.contains(&Frame::Reset { id: open.data, status: CANCEL }), "{seen:?}");
        session.writer.goaway().await;
        assert_eq!(session.reader.next().await, None);
        assert!(!session.reader.was_reset);
        drop(other);
    });
}

#[test]
fn p124_over_channels_the_pods_end_is_told_on_the_error_channel() {
    with_pod(async |sandbox, pod| {
        let url = format!("{}?port=80", super::pod::url(sandbox, pod).await);
        pod.remove();
        let mut session = RawSession::open(&url, "v4.channel.k8s.io").await;
        let frames = session.rest().await;
        let text = String::from_utf8(channel(&frames, 1)[2..].to_vec()).expect("text");
        assert!(text.starts_with("error forwarding port 80 to pod "), "{text}");
        assert_eq!(frames.last().and_then(Message::close_code), Some(1000));
    });
}
