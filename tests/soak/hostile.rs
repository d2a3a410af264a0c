//! Clients that mean harm, at every door.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use holdfast::client::{ServeAttach, ServeExec};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::{
    load::{CHATTER, IDLE, Load, SINK, TERMINAL, at_most, moment},
    memory::Kind,
    pod,
    random::Random,
    support::{
        RawAttach, fds,
        raw_rpc::{bootstrap, call},
        raw_spdy::{self, RawSpdy, UPGRADE as SPDY, V4, control, syn_stream},
        raw_ws::{Http, UPGRADE, head},
        within,
    },
};

/// A peer that does not read what it is sent is written to no longer than this.
const PATIENCE: Duration = Duration::from_millis(300);

/// A URL of some session.
async fn some_url(load: &Load<'_>, random: &mut Random) -> String {
    let client = load.sandbox.client();
    let exec = ServeExec {
        id: IDLE.to_owned(),
        command: vec!["cat".to_owned()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..ServeExec::default()
    };
    let id = if random.percent(50) { SINK } else { CHATTER };
    let attach = ServeAttach { id: id.to_owned(), stdin: true, stdout: true, stderr: true };
    match random.of(0..3) {
        0 => within(client.serve_exec(&exec)).await.expect("a URL"),
        1 => within(client.serve_attach(&attach)).await.expect("a URL"),
        _ => pod::url(load.sandbox, load.pod).await,
    }
}

/// Ends a connection at once, with a reset or without.
fn drop_hard(stream: TcpStream, random: &mut Random) {
    if random.percent(50) {
        // A reset, in the middle of whatever there is.
        let _ = stream.set_zero_linger();
    }
    drop(stream);
}

/// Writes as long as the other end takes it.
async fn pour(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    matches!(at_most(PATIENCE, stream.write_all(bytes)).await, Some(Ok(())))
}

/// What is no HTTP, or half of it, or too much.
pub(crate) async fn http(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Connection);
    let url = some_url(load, random).await;
    let mut stream = Http::connect(&url).await.upgraded().0;
    let path = format!("/{}", url.rsplit_once('/').expect("absolute").1);
    let head = match random.of(0..5) {
        0 => random.bytes_of(1..100_000),
        1 => head("GET", &path, &UPGRADE)[..random.of(1..100) as usize].to_vec(),
        2 => {
            format!("GET /exec/{} HTTP/1.1\r\nX: {}", "x".repeat(100), "y".repeat(random.of(1..90_000) as usize)).into()
        }
        3 => head("POST", "/exec/", &["Content-Length: 99999999999999999999", "Transfer-Encoding: chunked"]),
        _ => head("GET", &path, &["Connection: Upgrade", "Upgrade: websocket"]).repeat(random.of(1..50) as usize),
    };
    pour(&mut stream, &head).await;
    if random.percent(50) {
        let mut answer = vec![0; 4096];
        let _ = at_most(PATIENCE, stream.read(&mut answer)).await;
    }
    moment(random, 0..500).await;
    drop_hard(stream, random);
    load.did("bad HTTP");
}

/// What is no WebSocket after the upgrade.
pub(crate) async fn websocket(load: &Load<'_>, random: &mut Random) {
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let mut http = Http::connect(&some_url(load, random).await).await;
    let request = head("GET", &http.path, &[&UPGRADE[..], &["Sec-WebSocket-Protocol: v5.channel.k8s.io"]].concat());
    http.send(&request).await;
    // For a port forward this protocol is refused; then it is a bad client of HTTP.
    http.answer("GET").await;
    let mut stream = http.upgraded().0;
    for _ in 0..random.of(1..30) {
        let payload = random.bytes_of(0..3_000);
        let first = random.bytes(2);
        let frame = match random.of(0..5) {
            // Garbage.
            0 => payload,
            // Any opcode and any reserved bits, with a wrong length.
            1 => [&[first[0], 0x80 | (first[1] & 0x7f), 1, 2, 3, 4], &payload[..]].concat(),
            // The head of a frame that never comes.
            2 => [&[0x82, 0xff], &[0, 0, 0, 0, 1, 0, 0, 0][..], &[1, 2, 3, 4], &payload].concat(),
            // Pings.
            3 => [0x89, 0x81, 0, 0, 0, 0, b'x'].repeat(random.of(1..2_000) as usize),
            // Channels and sizes that make no sense.
            _ => [&[0x82, 0x86, 0, 0, 0, 0, first[0]], &b"{\"W\":"[..]].concat(),
        };
        if !pour(&mut stream, &frame).await {
            break;
        }
    }
    moment(random, 0..300).await;
    drop_hard(stream, random);
    load.did("bad WebSockets");
}

/// Floods of SPDY frames.
pub(crate) async fn spdy(load: &Load<'_>, random: &mut Random) {
    let _counted = (load.count(Kind::Exec), load.count(Kind::Launch));
    let url = some_url(load, random).await;
    let protocol = if url.contains("/port-forward/") || url.contains("/portforward/") { raw_spdy::FORWARD } else { V4 };
    let offer = format!("X-Stream-Protocol-Version: {protocol}");
    let (session, _) = RawSpdy::upgrade(&url, "POST", &[&SPDY[..], &[&offer]].concat(), b"").await;
    // Refused where the protocol is not this URL's.
    let Some(mut session) = session else { return };
    let writer = &mut session.writer;
    for _ in 0..random.of(1..10) {
        let count = random.of(1..3_000);
        let mut flood = Vec::new();
        match random.of(0..7) {
            0 => {
                for _ in 0..count {
                    let id = writer.next_id;
                    writer.next_id += 2;
                    let block = writer.block(&[("streamtype", "data"), ("port", "1"), ("requestid", &id.to_string())]);
                    flood.extend(syn_stream(id, 0, &block));
                }
            }
            1 => (0..count).for_each(|number| flood.extend(control(raw_spdy::PING, 0, &[2 * number + 1], b""))),
            2 => (0..count).for_each(|number| flood.extend(control(raw_spdy::RST_STREAM, 0, &[number, 1], b""))),
            3 => {
                let value = "v".repeat(random.of(1..60_000) as usize);
                let block = writer.block(&[("streamtype", "stdin"), ("x", &value)]);
                flood = syn_stream(writer.next_id, 0, &block);
                writer.next_id += 2;
            }
            4 => flood = syn_stream(writer.next_id, 0, &random.bytes_of(1..5_000)),
            5 => (0..count).for_each(|number| flood.extend(raw_spdy::data(number, 0, b"to nobody"))),
            _ => flood = random.bytes_of(1..5_000),
        }
        if !matches!(at_most(PATIENCE, writer.raw_slowly(&flood)).await, Some(true)) {
            break;
        }
    }
    moment(random, 0..300).await;
    if random.percent(50) {
        session.reset();
    }
    load.did("floods of SPDY frames");
}

/// What is no Cap'n Proto, or half of it, or calls nobody waits for.
pub(crate) async fn control_socket(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Control);
    let path = load.sandbox.runtime_dir().join("conmon.sock");
    let mut stream = within(UnixStream::connect(path)).await.expect("the daemon listens");
    let bytes = match random.of(0..5) {
        0 => random.bytes_of(1..10_000),
        // The head of a message of some megabytes, and a part of it.
        1 => [&[0, 0, 0, 0, 0, 0, 15, 0][..], &random.bytes_of(1..50_000)].concat(),
        2 => bootstrap(0)[..random.of(1..16) as usize].to_vec(),
        // Calls of methods with nonsense for arguments.
        3 => {
            let mut calls = bootstrap(0);
            for question in 1..random.of(2..300) {
                let method = u16::try_from(random.of(0..14)).expect("small");
                calls.extend(call(question, method, |_| {}));
            }
            calls
        }
        _ => bootstrap(0).repeat(random.of(1..100) as usize),
    };
    let _ = at_most(PATIENCE, stream.write_all(&bytes)).await;
    if random.percent(50) {
        let mut answer = vec![0; 4096];
        let _ = at_most(PATIENCE, stream.read(&mut answer)).await;
    }
    moment(random, 0..300).await;
    load.did("bad clients of the control socket");
}

/// Descriptors that nobody asked for, and packets that say nothing.
pub(crate) async fn fd_socket(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Control);
    let mut client = fds::connect(load.sandbox).await;
    let files: Vec<OwnedFd> = (0..random.of(0..20)).map(|_| std::io::pipe().expect("a pipe").0.into()).collect();
    let borrowed: Vec<_> = files.iter().map(|fd| fd.as_fd()).collect();
    for _ in 0..random.of(1..10) {
        if random.percent(50) {
            // Refused or not, they are closed with the connection.
            if at_most(PATIENCE, client.send(&borrowed)).await.is_none_or(|sent| sent.is_err()) {
                break;
            }
        } else {
            let packet = random.bytes_of(1..300);
            if !matches!(at_most(PATIENCE, client.send_packet(&packet, &borrowed)).await, Some(Ok(()))) {
                break;
            }
        }
    }
    moment(random, 0..200).await;
    load.did("bad clients of the descriptor socket");
}

/// Packets of any size and content for attach sockets.
pub(crate) async fn attach_socket(load: &Load<'_>, random: &mut Random) {
    let _counted = load.count(Kind::Attach);
    let id = [SINK, TERMINAL, CHATTER][random.of(0..3) as usize];
    let path = load.sandbox.attach_path(id);
    let Ok(client) = RawAttach::connect(&path) else { return };
    for _ in 0..random.of(1..50) {
        let packet = random.bytes_of(1..20_000);
        if !matches!(at_most(PATIENCE, client.try_send(&packet)).await, Some(Ok(()))) {
            break;
        }
    }
    if random.percent(30) && id != SINK {
        client.half_close();
    }
    moment(random, 0..300).await;
    load.did("bad clients of attach sockets");
}
