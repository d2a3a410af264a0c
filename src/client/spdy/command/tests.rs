use super::*;
use crate::{
    client::spdy::testing::Server,
    proto::spdy::{Event, RstStatus, StreamId},
};

const ALL: Requested = Requested { stdin: true, stdout: true, stderr: true, tty: false };
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

/// Opens a session with a server that accepts what it is to have, in this order.
async fn session(version: Version, requested: Requested, kinds: &[&str]) -> (Sender, Receiver, Server, Vec<StreamId>) {
    let (wire, mut server) = Server::new();
    let accept = async {
        let mut ids = Vec::new();
        for kind in kinds {
            let (id, headers) = server.opened().await;
            assert_eq!(headers.value("streamtype"), Some(kind.as_bytes()));
            ids.push(id);
        }
        ids
    };
    let (opened, ids) = tokio::join!(open(Session::new(wire), version, requested), accept);
    let (sender, receiver) = opened.unwrap();
    (sender, receiver, server, ids)
}

fn stdout(text: &'static str) -> StreamMessage {
    StreamMessage::Stdout(text.into())
}

#[test]
fn the_status_comes_after_all_output_whenever_it_was_sent() {
    crate::io::local(async {
        let kinds = ["error", "stdin", "stdout", "stderr"];
        let (_sender, mut receiver, mut server, ids) = session(Version::V4, ALL, &kinds).await;
        server.connection.finish(ids[0], SUCCESS.into()).unwrap();
        server.connection.send(ids[2], "out".into()).unwrap();
        server.flush().await;
        assert_eq!(receiver.next().await.unwrap(), stdout("out"));
        server.connection.finish(ids[3], "err".into()).unwrap();
        server.connection.finish(ids[2], "last".into()).unwrap();
        server.flush().await;
        let mut came = Vec::new();
        for _ in 0..2 {
            came.push(receiver.next().await.unwrap());
        }
        assert!(came.contains(&stdout("last")) && came.contains(&StreamMessage::Stderr("err".into())), "{came:?}");
        assert_eq!(receiver.next().await.unwrap(), StreamMessage::Status(Outcome::Exited(0)));
        assert_eq!(receiver.next().await.unwrap(), StreamMessage::Closed { code: None });
        server.until(|event| matches!(event, Event::GoAway { .. })).await;
    });
}

#[test]
fn input_its_end_and_sizes_have_streams_of_their_own() {
    crate::io::local(async {
        let requested = Requested { tty: true, ..ALL };
        let kinds = ["error", "stdin", "stdout", "resize"];
        let (sender, _receiver, mut server, ids) = session(Version::V4, requested, &kinds).await;
        sender.send_stdin(b"hi").await.unwrap();
        sender.send_size(b"{}").await.unwrap();
        sender.close_stdin().unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(server.next().await.unwrap());
        }
        assert!(seen.contains(&Event::Data { id: ids[1], bytes: "hi".into() }), "{seen:?}");
        assert!(seen.contains(&Event::Data { id: ids[3], bytes: "{}".into() }), "{seen:?}");
        assert!(seen.contains(&Event::Finished(ids[1])), "{seen:?}");
        // What the server takes no more is an error, not a wait.
        server.connection.reset(ids[3], RstStatus::CANCEL);
        server.flush().await;
        while sender.send_size(b"{}").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn what_was_not_asked_for_cannot_be_sent() {
    crate::io::local(async {
        let requested = Requested { stdin: false, ..ALL };
        let (sender, ..) = session(Version::V4, requested, &["error", "stdout", "stderr"]).await;
        assert!(matches!(sender.send_stdin(b"x").await, Err(StreamError::NoStream("stdin"))));
        assert!(matches!(sender.close_stdin(), Err(StreamError::NoStream("stdin"))));
        assert!(matches!(sender.send_size(b"{}").await, Err(StreamError::NoStream("resize"))));
    });
}

#[test]
fn before_v4_silence_is_success_and_later_it_is_nothing() {
    for (version, expected) in
        [(Version::V3, StreamMessage::Status(Outcome::Exited(0))), (Version::V4, StreamMessage::Closed { code: None })]
    {
        crate::io::local(async {
            let requested = Requested { stdin: false, stderr: false, ..ALL };
            let (_, mut receiver, mut server, ids) = session(version, requested, &["error", "stdout"]).await;
            for id in ids {
                server.connection.finish(id, "".into()).unwrap();
            }
            server.flush().await;
            assert_eq!(receiver.next().await.unwrap(), expected);
        });
    }
}

#[test]
fn a_lost_connection_has_no_status_and_nonsense_is_an_error() {
    crate::io::local(async {
        let kinds = ["error", "stdin", "stdout", "stderr"];
        let (_, mut receiver, mut server, ids) = session(Version::V4, ALL, &kinds).await;
        server.connection.send(ids[2], "out".into()).unwrap();
        // More of it might have come, so this is no status of the session.
        server.connection.finish(ids[0], SUCCESS.into()).unwrap();
        server.flush().await;
        drop(server);
        assert_eq!(receiver.next().await.unwrap(), stdout("out"));
        assert_eq!(receiver.next().await.unwrap(), StreamMessage::Closed { code: None });
        let (_, mut receiver, mut server, _) = session(Version::V4, ALL, &kinds).await;
        server.babble().await;
        assert!(matches!(receiver.next().await, Err(StreamError::Broken(_))));
    });
}

#[test]
fn a_stream_that_the_server_does_not_want_ends_the_attempt() {
    crate::io::local(async {
        let (wire, mut server) = Server::new();
        let refuse = async {
            server.opened().await;
            server.refuse().await;
        };
        let (opened, ()) = tokio::join!(open(Session::new(wire), Version::V4, ALL), refuse);
        assert!(matches!(opened, Err(StreamError::StreamRefused("stdin"))), "{opened:?}");
        // A server that goes away instead.
        let (wire, mut server) = Server::new();
        let leave = async {
            server.opened().await;
            drop(server);
        };
        let (opened, ()) = tokio::join!(open(Session::new(wire), Version::V4, ALL), leave);
        assert!(matches!(opened, Err(StreamError::Broken(_))), "{opened:?}");
    });
}

#[test]
fn output_that_is_not_taken_stops_the_server_and_nothing_is_lost() {
    const PIECE: usize = 16 << 10;
    const PIECES: usize = 128;
    crate::io::local(async {
        let requested = Requested { stdin: false, stderr: false, ..ALL };
        let (_, mut receiver, mut server, ids) = session(Version::V4, requested, &["error", "stdout"]).await;
        let sent = std::cell::Cell::new(0);
        let send = async {
            for index in 0..PIECES {
                let piece = vec![u8::try_from(index).unwrap(); PIECE];
                server.connection.send(ids[1], piece.into()).unwrap();
                server.flush().await;
                sent.set(sent.get() + PIECE);
            }
            server.connection.finish(ids[1], "".into()).unwrap();
            server.connection.finish(ids[0], SUCCESS.into()).unwrap();
            server.flush().await;
        };
        let receive = async {
            // Until nothing moves any more.
            loop {
                let before = sent.get();
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                if sent.get() == before && before > 0 {
                    break;
                }
            }
            assert!(sent.get() < PIECE * PIECES / 2, "{} bytes are on their way", sent.get());
            let mut all = Vec::new();
            while let StreamMessage::Stdout(bytes) = receiver.next().await.unwrap() {
                all.extend_from_slice(&bytes);
            }
            all
        };
        let ((), all) = tokio::join!(send, receive);
        assert_eq!(all.len(), PIECE * PIECES);
        assert!(
            all.chunks(PIECE).enumerate().all(|(index, piece)| piece.iter().all(|byte| usize::from(*byte) == index))
        );
    });
}
