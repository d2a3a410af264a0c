//! The streaming server up to the upgrade.

use std::time::{Duration, Instant};

use holdfast::client::{STREAM_PROTOCOLS, ServeAttach, ServeExec, StreamClient};
use tokio::time::timeout;

use super::raw_http::{Raw, parts, upgrade};
use crate::support::{DEADLINE, Sandbox, beside_a_neighbour, raise_file_limit};

async fn exec_url(sandbox: &Sandbox) -> String {
    let command = vec!["echo".to_owned(), "served".to_owned()];
    let exec = ServeExec { id: "neighbour".to_owned(), command, stdout: true, ..ServeExec::default() };
    sandbox.client().serve_exec(&exec).await.unwrap()
}

async fn attach_url(sandbox: &Sandbox) -> String {
    let attach = ServeAttach { id: "neighbour".to_owned(), stdout: true, ..ServeAttach::default() };
    sandbox.client().serve_attach(&attach).await.unwrap()
}

/// The URL still works.
async fn serves(url: &str) {
    let session = StreamClient::connect(url, &STREAM_PROTOCOLS).await.unwrap();
    let all = timeout(DEADLINE, session.collect()).await.expect("the session ends in time").unwrap();
    assert_eq!((&all.stdout[..], all.close_code), (&b"served\n"[..], Some(1000)));
}

#[test]
fn a_wrong_token_is_not_found_and_uses_up_nothing() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let exec = exec_url(sandbox).await;
        let (address, path) = parts(&exec);
        let token = path.strip_prefix("/exec/").unwrap();
        let guessed = "0".repeat(token.len());
        let long = "x".repeat(8000);
        let paths =
            [guessed.as_str(), &token[1..], "%2e%2e", "..", &token.to_uppercase(), &format!("{token}%00"), &long]
                .map(|token| format!("/exec/{token}"));
        let others = ["", "/", "//", "/exec", "/exec/", "/nothing/x", "/exec//x", "/exec/x/y"].map(str::to_owned);
        let kinds = ["attach", "portforward", "port-forward"].map(|kind| format!("/{kind}/{token}"));
        for path in paths.iter().chain(&others[1..]).chain(&kinds) {
            let answer = neighbour
                .undisturbed(path, async || {
                    Raw::connect(address).await.ask(&format!("{}\r\n", upgrade(path, "v5.channel.k8s.io"))).await
                })
                .await;
            let (head, body) = answer;
            assert!(head.starts_with("HTTP/1.1 404 ") && body.contains("404"), "{path}: {head}{body}");
        }
        serves(&exec).await;
        let (head, _) = Raw::connect(address).await.ask(&format!("{}\r\n", upgrade(path, "v5.channel.k8s.io"))).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "a token worked twice: {head}");
        // And the other way round.
        let attach = attach_url(sandbox).await;
        let wrong = attach.replace("/attach/", "/exec/");
        let request = format!("{}\r\n", upgrade(parts(&wrong).1, "v5.channel.k8s.io"));
        assert!(Raw::connect(address).await.ask(&request).await.0.starts_with("HTTP/1.1 404 "));
        neighbour.undisturbed("the right kind", async || drop(Raw::session(&attach).await)).await;
    });
}

#[test]
fn a_request_that_cannot_become_a_session_is_told_why() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let good = |path: &str| upgrade(path, "v5.channel.k8s.io");
        let without = |path: &str, name: &str| {
            let lines = good(path);
            lines.split_inclusive("\r\n").filter(|line| !line.starts_with(name)).collect::<String>()
        };
        type Request<'a> = &'a dyn Fn(&str) -> String;
        let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\n";
        let cases: [(&str, Request<'_>, &str, &[&str]); 10] = [
            ("an unknown protocol", &|path| upgrade(path, "v9.foo"), "403", &["v9.foo"]),
            ("a protocol of another kind", &|path| upgrade(path, "portforward.k8s.io"), "403", &["v4.channel.k8s.io"]),
            (
                "SPDY with an unknown protocol",
                &|path| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{spdy}"),
                "403",
                &["v5.channel.k8s.io", "server accepts [v4.channel.k8s.io "],
            ),
            (
                "SPDY without protocols",
                &|path| format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"),
                "400",
                &["X-Stream-Protocol-Version does not exist"],
            ),
            ("no upgrade", &|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n"), "400", &["unable to upgrade"]),
            ("no key", &|path| without(path, "Sec-WebSocket-Key"), "400", &["Sec-WebSocket-Key"]),
            ("no version", &|path| without(path, "Sec-WebSocket-Version"), "400", &["WebSocket Version"]),
            ("version 8", &|path| good(path).replace("Version: 13", "Version: 8"), "400", &["WebSocket Version"]),
            ("POST", &|path| good(path).replace("GET", "POST"), "405", &["bad method"]),
            ("a protocol of noise", &|path| upgrade(path, "\u{7e}{}[]\"\\"), "403", &["server accepts"]),
        ];
        for (what, request, status, fragments) in cases {
            let url = exec_url(sandbox).await;
            let (address, path) = parts(&url);
            let answer = neighbour
                .undisturbed(what, async || Raw::connect(address).await.ask(&format!("{}\r\n", request(path))).await)
                .await;
            let (head, body) = answer;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {head}{body}");
            assert!(fragments.iter().all(|fragment| body.contains(fragment)), "{what}: {body}");
            if what == "version 8" {
                assert!(head.to_lowercase().contains("\r\nsec-websocket-version: 13\r\n"), "{head}");
            }
            // Used up all the same.
            let (head, _) = Raw::connect(address).await.ask(&format!("{}\r\n", good(path))).await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{what}: {head}");
        }
    });
}

#[test]
fn other_methods_are_not_allowed_and_use_up_nothing() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let url = exec_url(sandbox).await;
        let (address, path) = parts(&url);
        let mut raw = Raw::connect(address).await;
        for method in ["PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"] {
            let request = format!("{}\r\n", upgrade(path, "v5.channel.k8s.io").replace("GET", method));
            let (head, _) = raw.ask(&request).await;
            let lower = head.to_lowercase();
            assert!(head.starts_with("HTTP/1.1 405 "), "{method}: {head}");
            assert!(lower.contains("\r\nallow: ") && head.contains("GET") && head.contains("POST"), "{head}");
        }
        drop(raw);
        serves(&url).await;
        neighbour.is_well("other methods").await;
    });
}

#[test]
fn what_is_no_http_is_refused_or_closed() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let url = exec_url(sandbox).await;
        let (address, path) = parts(&url);
        // No token: whatever is taken for a request is 404.
        let head = upgrade("/exec/x", "v5.channel.k8s.io");
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
            ("noise", (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
            ("NULs", vec![0; 100]),
            ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
            ("HTTP/9.9", format!("GET {path} HTTP/9.9\r\n\r\n").into()),
            ("a NUL in a header", head.replace("Host: x", "Host: \0").into()),
            ("a head of 200 KiB", format!("{head}X: {}\r\n\r\n", "x".repeat(200 << 10)).into()),
            ("a target of 200 KiB", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200 << 10)).into()),
            ("1000 headers", format!("{head}{}\r\n", "X: y\r\n".repeat(1000)).into()),
        ];
        for (what, bytes) in cases {
            let answer = neighbour
                .undisturbed(what, async || {
                    let mut raw = Raw::connect(address).await;
                    raw.send(&bytes).await;
                    raw.rest().await
                })
                .await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
            assert!(refused && !answer.contains(" 404 "), "{what}: {answer}");
        }
        serves(&url).await;
    });
}

#[test]
fn a_client_that_is_slow_with_its_head_holds_up_nobody_and_is_closed() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let url = exec_url(sandbox).await;
        let (address, path) = parts(&url);
        let mut slow = Vec::new();
        let start = Instant::now();
        for beginning in ["", "G", &format!("GET {path} HTTP/1.1\r\nHost: x")] {
            let mut raw = Raw::connect(address).await;
            raw.send(beginning.as_bytes()).await;
            slow.push(raw);
        }
        serves(&url).await;
        assert!(!slow[0].is_closed_within(Duration::from_millis(100)).await, "closed at once");
        for mut raw in slow {
            raw.rest().await;
        }
        assert!(start.elapsed() >= Duration::from_secs(5), "a slow client got {:?}", start.elapsed());
        neighbour.is_well("slow heads").await;
    });
}

#[test]
fn idle_connections_give_way_to_clients() {
    raise_file_limit();
    beside_a_neighbour(async |sandbox, neighbour| {
        // 1024 of them at once, each with a buffer; the second crowd finds what the first one used.
        neighbour.growth_kib = 20 << 10;
        for crowd in ["1100 idle connections", "1100 more"] {
            neighbour.undisturbed(crowd, async || idle_crowd(sandbox).await).await;
        }
    });
}

async fn idle_crowd(sandbox: &Sandbox) {
    let url = exec_url(sandbox).await;
    let mut idle = Vec::new();
    let start = Instant::now();
    for _ in 0..1100 {
        idle.push(Raw::connect(parts(&url).0).await);
    }
    idle[0].rest().await;
    // Else it was the time limit that closed it, on a machine too slow for this test.
    if start.elapsed() < Duration::from_secs(8) {
        assert!(!idle[1099].is_closed_within(Duration::from_millis(10)).await, "the youngest was closed");
    }
    serves(&url).await;
}
