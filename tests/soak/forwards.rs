//! Connections to ports of the pod.

use holdfast::client::{ForwardClient, ForwardEnd, Transport};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    load::{Load, at_most, moment, same},
    memory::Kind,
    pod::{self, echoes, pair_ended},
    random::Random,
    support::{raw_spdy::data, within},
};

/// Several connections, one after the other, to one that sends back what it gets.
pub(crate) async fn short(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Forward);
    let mut session = pod::forward(load.sandbox, load.pod).await;
    for request in 0..random.of(1..20) {
        echoes(&mut session, load.echo, request).await;
    }
    session.bye().await;
    load.did("port forwards");
}

/// A connection of our own to the server, and its other end.
async fn local() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let connect = TcpStream::connect(listener.local_addr().expect("bound"));
    let (near, far) = tokio::join!(connect, listener.accept());
    (near.expect("it listens"), far.expect("it connects").0)
}

/// Many bytes there and back at the same time.
pub(crate) async fn long(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Forward);
    let transport = if random.percent(50) { Transport::Spdy } else { Transport::WebSocket };
    let url = pod::url(load.sandbox, load.pod).await;
    let client = within(ForwardClient::connect(&url, transport)).await.expect("a session");
    let forwarded = within(client.open(load.echo)).await.expect("a connection");
    let (mut near, far) = local().await;
    let bytes = random.bytes_of(1..1_000_000);
    let mut back = Vec::new();
    let talk = async {
        let (mut reader, mut writer) = near.split();
        let send = async {
            writer.write_all(&bytes).await.expect("our own end");
            writer.shutdown().await.expect("our own end");
        };
        let (_, read) = tokio::join!(send, reader.read_to_end(&mut back));
        read.expect("no reset");
    };
    let (end, ()) = within(async { tokio::join!(forwarded.copy(far), talk) }).await;
    assert_eq!(end, ForwardEnd::Done);
    same("what came back from the pod", &back, &bytes);
    client.close().await;
    load.did("port forwards with many bytes");
}

/// Where nobody listens.
pub(crate) async fn refused(load: &Load<'_>, _: &mut Random) {
    let _counted = load.count(Kind::Forward);
    let mut session = pod::forward(load.sandbox, load.pod).await;
    let pair = session.open_pair(load.closed, 0).await;
    let why = pair_ended(&mut session, pair).await.text(pair.error);
    assert!(why.contains("connection refused"), "{why}");
    echoes(&mut session, load.echo, 1).await;
    session.bye().await;
    load.did("connections that are refused");
}

/// To one that never reads, until the client has had enough.
pub(crate) async fn stalled(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Forward);
    let mut session = pod::forward(load.sandbox, load.pod).await;
    for request in 0..random.of(1..5) {
        let pair = session.open_pair(load.silent, request).await;
        let bytes = random.bytes_of(1..400_000);
        for piece in bytes.chunks(60_000) {
            if at_most(random.pause(10..100), session.writer.raw_slowly(&data(pair.data, 0, piece))).await.is_none() {
                // A frame may be half written: nothing sensible can follow.
                session.reset();
                load.did("connections to one that does not read");
                return;
            }
        }
    }
    moment(random, 0..300).await;
    session.reset();
    load.did("connections to one that does not read");
}
