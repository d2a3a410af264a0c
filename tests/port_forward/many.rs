//! Many pairs, many bytes.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher as _},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    pod::{accept, echo, echoes, forward, pair_ended, serving, with_pod, with_pod_and},
    support::{
        long,
        procfs::{descriptors, settled_descriptors, status_line},
        raise_file_limit,
        raw_spdy::{CANCEL, FIN, Frame, Pair, SpdyReader, SpdyWriter, data},
        within,
    },
};

const REFUSED_STREAM: u32 = 3;

/// What a process has in memory that is its own, in KiB.
fn anonymous(pid: u32) -> usize {
    status_line(pid, "RssAnon").split(' ').next().and_then(|text| text.parse().ok()).expect("a number of KiB")
}

#[test]
fn p110_of_a_thousand_pairs_those_that_never_read_hold_up_none() {
    raise_file_limit();
    with_pod(async |sandbox, pod| {
        let (narrow, silent) = pod.listen_narrow();
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let mut kept = Vec::new();
        for request in 0..100 {
            let pair = session.open_pair(silent, request).await;
            kept.push(accept(&narrow).await);
            // More than the process's end and the pair's queue would take of one without memory to share.
            session.writer.data(pair.data, &[b'x'; 40_000]).await;
        }
        let (mut open, mut echoed) = (Vec::new(), 0);
        for request in 100..1000 {
            open.push(session.open_pair(port, request).await);
        }
        for pair in &open {
            session.writer.data(pair.data, b"hello").await;
            session.writer.fin(pair.data).await;
        }
        // Both streams of each end.
        let streams = open.iter().flat_map(|pair| [pair.data, pair.error]);
        let mut left: HashMap<u32, Vec<u8>> = streams.map(|id| (id, Vec::new())).collect();
        while !left.is_empty() {
            if let Some(Frame::Data { id, fin, bytes }) = session.reader.next().await
                && let Some(seen) = left.get_mut(&id)
            {
                seen.extend(bytes);
                if fin && left.remove(&id).is_some_and(|seen| seen == b"hello") {
                    echoed += 1;
                }
            }
        }
        assert_eq!(echoed, open.len());
        // Beyond the limit of pairs a stream is refused and the session goes on.
        let text = silent.to_string();
        for request in 2000..2924 {
            session.open(&[("streamtype", "error"), ("port", &text), ("requestid", &request.to_string())]).await;
        }
        let id = session.writer.offer(&[("streamtype", "error"), ("port", &text), ("requestid", "more")]).await;
        session.reader.wait(&Frame::Reset { id, status: REFUSED_STREAM }).await;
        session.writer.ping(1).await;
        session.reader.wait(&Frame::Ping(1)).await;
    });
}

#[test]
fn p110_a_pair_that_holds_up_its_connection_is_reset_after_a_while() {
    if !long() {
        return;
    }
    with_pod(async |sandbox, pod| {
        let (narrow, silent) = pod.listen_narrow();
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let stuck = session.open_pair(silent, 0).await;
        let _kept = accept(&narrow).await;
        let before = anonymous(sandbox.daemon_pid());
        // More than all queues and the kernel take.
        let sent = tokio::time::timeout(Duration::from_secs(90), async {
            for _ in 0..64 {
                assert!(session.writer.raw_slowly(&data(stuck.data, 0, &vec![b'x'; 1 << 20])).await);
            }
        });
        sent.await.expect("the connection is read again after 30 s");
        assert!(anonymous(sandbox.daemon_pid()) < before + 8 * 1024, "memory is bounded");
        let seen = pair_ended(&mut session, stuck).await;
        assert!(seen.frames.contains(&Frame::Reset { id: stuck.data, status: CANCEL }), "{seen:?}");
        echoes(&mut session, port, 1).await;
        session.bye().await;
    });
}

#[test]
fn p111_pairs_one_after_the_other_leave_nothing() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let mut session = forward(sandbox, pod).await;
        let daemon = sandbox.daemon_pid();
        for request in 0..500 {
            echoes(&mut session, port, request).await;
        }
        let (open, memory) = (settled_descriptors(daemon).await, anonymous(daemon));
        for request in 500..if long() { 100_000 } else { 10_500 } {
            echoes(&mut session, port, request).await;
        }
        assert!(settled_descriptors(daemon).await <= open);
        // Fifty bytes a pair would be half a megabyte.
        let now = anonymous(daemon);
        assert!(now < memory + 400, "{memory} KiB became {now} KiB");
        session.bye().await;
        assert!(descriptors(daemon) <= open);
    });
}

#[test]
fn p111_bytes_that_come_before_their_pair_is_complete_take_as_much_memory_as_they_are() {
    with_pod_and(&[("HOLDFAST_STREAM_CREATION_TIMEOUT", "600")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let text = port.to_string();
        let before = anonymous(sandbox.daemon_pid());
        let mut first = None;
        for request in ["1", "2", "3", "4"] {
            let id = session.open(&[("streamtype", "data"), ("port", &text), ("requestid", request)]).await;
            first.get_or_insert(id);
            let frames: Vec<u8> = (0..200_000).flat_map(|_| data(id, 0, b"x")).collect();
            session.writer.raw(&frames).await;
        }
        session.writer.ping(1).await;
        session.reader.wait(&Frame::Ping(1)).await;
        let now = anonymous(sandbox.daemon_pid());
        assert!(now < before + 4 * 1024, "{before} KiB became {now} KiB for 800 kB");
        let id = first.expect("opened");
        session.writer.fin(id).await;
        session.open(&[("streamtype", "error"), ("port", &text), ("requestid", "1")]).await;
        assert_eq!(super::pod::read_all(&mut accept(&listener).await).await.len(), 200_000);
    });
}

/// Pseudo-random bytes, the same for the same seed.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

const PIECE: usize = 32 << 10;

fn hash_of(seed: u64, length: usize) -> u64 {
    let (mut noise, mut hasher, mut piece) = (Noise(seed), DefaultHasher::new(), vec![0; PIECE]);
    for _ in 0..length / PIECE {
        noise.fill(&mut piece);
        hasher.write(&piece);
    }
    hasher.finish()
}

/// The pod's end: sends its own bytes while it takes the client's, then ends; returns the hash of those.
async fn serve(mut stream: TcpStream, seed: u64, length: usize) -> u64 {
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let (mut noise, mut piece) = (Noise(seed), vec![0; PIECE]);
        for _ in 0..length / PIECE {
            noise.fill(&mut piece);
            writer.write_all(&piece).await.expect("the daemon reads");
        }
        writer.shutdown().await.expect("a socket");
    };
    let receive = async {
        let (mut hasher, mut buffer) = (DefaultHasher::new(), vec![0; 1 << 20]);
        loop {
            match reader.read(&mut buffer).await.expect("no reset") {
                0 => return hasher.finish(),
                count => hasher.write(&buffer[..count]),
            }
        }
    };
    tokio::join!(send, receive).1
}

/// Sends on all pairs by turns.
async fn send_all(writer: &mut SpdyWriter, pairs: &[Pair], length: usize) {
    let mut noises: Vec<_> = (0..pairs.len() as u64).map(|index| Noise(100 + index)).collect();
    let mut piece = vec![0; PIECE];
    for _ in 0..length / PIECE {
        for (noise, pair) in noises.iter_mut().zip(pairs) {
            noise.fill(&mut piece);
            assert!(writer.raw_slowly(&data(pair.data, 0, &piece)).await);
        }
    }
    for pair in pairs {
        assert!(writer.raw_slowly(&data(pair.data, FIN, b"")).await);
    }
}

/// The hashes of what comes on all pairs.
async fn receive_all(reader: &mut SpdyReader, pairs: &[Pair]) -> Vec<u64> {
    let mut hashers = vec![DefaultHasher::new(); pairs.len()];
    let mut left = pairs.len();
    while left > 0 {
        match reader.read().await {
            Some(Frame::Data { id, fin, bytes }) => {
                if let Some(index) = pairs.iter().position(|pair| pair.data == id) {
                    hashers[index].write(&bytes);
                    left -= usize::from(fin);
                }
            }
            Some(Frame::Ping(_) | Frame::Reply(_)) => {}
            other => panic!("{other:?} while {left} pairs have not ended"),
        }
    }
    hashers.iter().map(DefaultHasher::finish).collect()
}

/// Moves so many bytes both ways on so many pairs at once.
fn both_ways(count: usize, length: usize) {
    with_pod(async |sandbox, pod| {
        let (listener, port): (TcpListener, u16) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let (mut pairs, mut servers) = (Vec::new(), Vec::new());
        for request in 0..count {
            pairs.push(session.open_pair(port, u32::try_from(request).expect("few")).await);
            servers.push(accept(&listener).await);
        }
        let tasks = (200..).zip(servers).map(|(seed, stream)| serving(serve(stream, seed, length)));
        let servers: Vec<_> = tasks.collect();
        let (_, hashes) =
            tokio::join!(send_all(&mut session.writer, &pairs, length), receive_all(&mut session.reader, &pairs));
        for (index, (server, hash)) in servers.into_iter().zip(hashes).enumerate() {
            assert_eq!(hash, hash_of(200 + index as u64, length), "what the pod sent on pair {index}");
            let seen = within(server).await.expect("it ends");
            assert_eq!(seen, hash_of(100 + index as u64, length), "what the client sent on pair {index}");
        }
        session.bye().await;
    });
}

#[test]
fn p112_a_hundred_megabytes_both_ways_arrive_as_they_were() {
    both_ways(1, 100 << 20);
}

#[test]
fn p112_ten_pairs_at_once_each_get_their_own_bytes() {
    both_ways(10, if long() { 100 << 20 } else { 10 << 20 });
}

#[test]
fn p112_a_pair_that_ends_amid_much_output_ends_behind_it() {
    with_pod(async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        let sent = serving(async move {
            server.write_all(&vec![b'x'; 8 << 20]).await.expect("the daemon reads");
        });
        let seen = pair_ended(&mut session, pair).await;
        sent.await.expect("it ends");
        assert_eq!(seen.payload(pair.data).len(), 8 << 20);
    });
}
