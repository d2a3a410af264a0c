//! The legacy form: ports known beforehand, two channels each (streaming 6.5).

use holdfast::client::ServePortForward;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    pod::{Pod, accept, read_all, serving, url, with_pod},
    support::{
        Sandbox,
        raw_ws::{BINARY, CLOSE, FIN, Frame, RawSession, TEXT, channel},
        within,
    },
};

const V4: &str = "v4.channel.k8s.io";
const BASE64: &str = "v4.base64.channel.k8s.io";

/// A session for these ports, past its first messages, which are checked.
async fn open(sandbox: &Sandbox, pod: &Pod, ports: &[u16]) -> RawSession {
    let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let mut session = RawSession::open(&format!("{}?ports={list}", url(sandbox, pod).await), V4).await;
    for (index, port) in (0u8..).zip(ports) {
        for number in [2 * index, 2 * index + 1] {
            let [low, high] = port.to_le_bytes();
            let frame = Frame { opcode: BINARY, fin: true, payload: vec![number, low, high] };
            assert_eq!(session.next().await, Some(frame));
        }
    }
    session
}

/// The messages of one channel behind its first one.
fn text(frames: &[Frame], number: u8) -> String {
    String::from_utf8(channel(frames, number)).expect("text")
}

#[test]
fn p117_each_channel_begins_with_its_port_before_any_data() {
    with_pod(async |sandbox, pod| {
        for count in [1, 2, 10] {
            let listeners: Vec<_> = (0..count).map(|_| pod.listen()).collect();
            let ports: Vec<_> = listeners.iter().map(|(_, port)| *port).collect();
            // Servers that speak first, as fast as they can.
            let servers = listeners.into_iter().map(|(listener, _)| {
                serving(async move {
                    accept(&listener).await.write_all(b"220 ready\r\n").await.expect("the daemon reads");
                })
            });
            let servers: Vec<_> = servers.collect();
            let mut session = open(sandbox, pod, &ports).await;
            let frames = session.rest().await;
            for index in 0..count {
                assert_eq!(text(&frames, 2 * u8::try_from(index).expect("few")), "220 ready\r\n");
            }
            assert_eq!(frames.last().and_then(Frame::close_code), Some(1000));
            for server in servers {
                server.await.expect("it was reached");
            }
        }
    });
}

#[test]
fn p117_the_ports_of_the_call_come_before_those_of_the_url_and_refusals_name_the_pod() {
    with_pod(async |sandbox, pod| {
        let refused = pod.closed_port();
        let serve = ServePortForward { net_ns: pod.path.clone(), pod_id: "web-0".to_owned(), ports: vec![refused] };
        let url = within(sandbox.client().serve_pod_ports(&serve)).await.expect("a port forward gets a URL");
        let mut session = RawSession::open(&format!("{url}?port=1"), V4).await;
        let [low, high] = refused.to_le_bytes();
        for number in [0, 1] {
            assert_eq!(session.next().await.map(|frame| frame.payload), Some(vec![number, low, high]));
        }
        let why = text(&session.rest().await, 1);
        assert!(why.starts_with(&format!("error forwarding port {refused} to pod web-0, uid : ")), "{why}");
    });
}

#[test]
fn p118_each_port_has_its_channels_and_the_end_comes_when_all_have_ended() {
    with_pod(async |sandbox, pod| {
        let ((first, first_port), (last, last_port)) = (pod.listen(), pod.listen());
        let refused = pod.closed_port();
        let mut session = open(sandbox, pod, &[first_port, refused, last_port]).await;
        let (mut first, mut last) = (accept(&first).await, accept(&last).await);
        // In two fragments, with what makes no sense in between.
        session.send(BINARY, b"\x00que").await;
        session.send(FIN, b"stion").await;
        session.send(FIN | BINARY, b"").await;
        session.send(FIN | BINARY, b"\x00").await;
        session.send(FIN | BINARY, b"\x01on an error channel").await;
        session.send(FIN | BINARY, b"\x09no channel").await;
        session.send(FIN | BINARY, b"\x02nobody listens").await;
        session.send(FIN | TEXT, b"\x04text").await;
        let mut question = [0; 8];
        within(first.read_exact(&mut question)).await.expect("the question");
        assert_eq!(&question, b"question");
        let mut bytes = [0; 4];
        within(last.read_exact(&mut bytes)).await.expect("the text");
        assert_eq!(&bytes, b"text");
        first.write_all(b"answer").await.expect("the daemon reads");
        drop(first);
        // The others go on.
        session.send(FIN | BINARY, b"\x04more").await;
        within(last.read_exact(&mut bytes)).await.expect("the other port goes on");
        assert_eq!(&bytes, b"more");
        last.write_all(&vec![b'x'; 300_000]).await.expect("the daemon reads");
        drop(last);
        let frames = session.rest().await;
        assert_eq!((text(&frames, 0), text(&frames, 4).len()), ("answer".to_owned(), 300_000));
        let why = text(&frames, 3);
        assert!(why.starts_with(&format!("error forwarding port {refused} to pod ")), "{why}");
        assert!(why.contains("connection refused"), "{why}");
        assert_eq!([1, 2, 5].map(|number| text(&frames, number)), ["", "", ""]);
        assert_eq!(frames.last().and_then(Frame::close_code), Some(1000));
        // The server waits for the client's own Close, then closes.
        session.send(FIN | CLOSE, &1000u16.to_be_bytes()).await;
        assert_eq!(session.next().await, None);
    });
}

#[test]
fn p118_a_client_that_says_good_bye_closes_all_connections() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = open(sandbox, pod, &[port, port]).await;
        let (mut one, mut other) = (accept(&listener).await, accept(&listener).await);
        session.send(FIN | BINARY, b"\x00last words").await;
        session.send(FIN | CLOSE, &1000u16.to_be_bytes()).await;
        assert_eq!(session.next().await.and_then(|frame| frame.close_code()), Some(1000));
        assert_eq!(session.next().await, None);
        let mut ends = [read_all(&mut one).await, read_all(&mut other).await];
        ends.sort();
        assert_eq!(ends, [&b""[..], b"last words"]);
    });
}

#[test]
fn p119_the_base64_form_has_characters_beyond_9_for_channels() {
    with_pod(async |sandbox, pod| {
        let listeners: Vec<_> = (0..6).map(|_| pod.listen()).collect();
        let list = listeners.iter().map(|(_, port)| port.to_string()).collect::<Vec<_>>().join("&port=");
        let mut session = RawSession::open(&format!("{}?port={list}", url(sandbox, pod).await), BASE64).await;
        for (index, (_, port)) in (0u8..).zip(&listeners) {
            for number in [2 * index, 2 * index + 1] {
                let frame = session.next().await.expect("a message for each channel");
                let payload = [&[b'0' + number][..], encoded(&port.to_le_bytes()).as_bytes()].concat();
                assert_eq!((frame.opcode, frame.payload), (TEXT, payload));
            }
        }
        let mut servers = Vec::new();
        for (listener, _) in &listeners {
            servers.push(accept(listener).await);
        }
        // Channel 10 is ':'.
        session.send(FIN | TEXT, format!(":{}", encoded(b"to the last")).as_bytes()).await;
        session.send(FIN | TEXT, b":no base64").await;
        let mut bytes = [0; 11];
        within(servers[5].read_exact(&mut bytes)).await.expect("the daemon writes");
        assert_eq!(&bytes, b"to the last");
        servers[5].write_all(b"from the last").await.expect("the daemon reads");
        let frame = session.next().await.expect("an answer");
        assert_eq!((frame.opcode, frame.payload), (TEXT, format!(":{}", encoded(b"from the last")).into_bytes()));
        drop(servers);
        assert_eq!(session.rest().await.last().and_then(Frame::close_code), Some(1000));
    });
}

#[test]
fn p120_without_ports_the_session_ends_at_once_as_it_should() {
    with_pod(async |sandbox, pod| {
        for query in ["", "?command=x", "?port=0", "?ports=80,,81"] {
            let mut session = RawSession::open(&format!("{}{query}", url(sandbox, pod).await), V4).await;
            let frames = session.rest().await;
            assert_eq!(frames.iter().map(Frame::close_code).collect::<Vec<_>>(), [Some(1000)], "{query}");
        }
    });
}

/// Standard base64 with padding (RFC 4648 section 4).
fn encoded(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | usize::from(*group.get(index).unwrap_or(&0)));
        let digits = (0..4).map(|index| ALPHABET[bits >> (18 - 6 * index) & 63]);
        let digits: Vec<_> = digits.take(group.len() + 1).chain([b'='; 2]).take(4).collect();
        String::from_utf8(digits).expect("digits are ASCII")
    };
    bytes.chunks(3).map(group).collect()
}
