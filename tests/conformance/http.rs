//! Items 1 to 24: URLs, tokens, negotiation; what of them is about SPDY, or takes time.

use std::{process::Command, time::Duration};

use holdfast::proto::spdy::HeaderWriter;
use tokio::time::{Instant, sleep};

use crate::{
    ALL, OUTPUT, SUCCESS, exec_url, failure, output_url,
    support::{
        self, BundleSpec, Sandbox, beside_a_neighbour_with,
        raw_spdy::{FIN, Frame, Ids, RawSpdy, UPGRADE, V4, data, syn_stream},
        raw_ws::{self, Answer, Http},
        with_container,
    },
};

const NAME: &str = "X-Stream-Protocol-Version";

/// The answer to a SPDY upgrade of this connection's URL that must fail.
async fn refusal(url: &str, method: &str, lines: &[&str]) -> Answer {
    let (session, answer) = RawSpdy::upgrade(url, method, lines, b"").await;
    assert!(session.is_none(), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    answer
}

/// Runs `true` on an upgraded connection.
async fn serves(upgraded: (Option<RawSpdy>, Answer)) {
    let (session, answer) = upgraded;
    let mut session = session.unwrap_or_else(|| panic!("{answer:?}"));
    let ids = session.open_all(&OUTPUT).await;
    assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);
}

#[test]
fn s2_a_token_works_once_over_spdy_too() {
    with_container(async |sandbox| {
        let url = output_url(sandbox, &["true"]).await;
        let offer = format!("{NAME}: {V4}");
        let lines = [&UPGRADE[..], &[&offer]].concat();
        let first = RawSpdy::upgrade(&url, "POST", &lines, b"").await;
        let again = refusal(&url, "POST", &lines).await;
        assert_eq!((again.status, &again.body[..]), (404, "404 page not found\n"));
        // And a session over one transport leaves nothing for the other.
        assert_eq!(refusal(&url, "GET", &raw_ws::UPGRADE).await.status, 404);
        serves(first).await;
    });
}

#[test]
fn s3_a_token_expires() {
    let short = |daemon: &mut Command| _ = daemon.env("HOLDFAST_TOKEN_LIFETIME", "1");
    support::e2e_with(short, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let old = output_url(sandbox, &["true"]).await;
        sleep(Duration::from_millis(1100)).await;
        let fresh = output_url(sandbox, &["true"]).await;
        let offer = format!("{NAME}: {V4}");
        let lines = [&UPGRADE[..], &[&offer]].concat();
        assert_eq!(refusal(&old, "POST", &lines).await.status, 404);
        serves(RawSpdy::upgrade(&fresh, "POST", &lines, b"").await).await;
    });
}

#[test]
fn s6_beyond_the_cap_the_oldest_token_goes_and_memory_stays() {
    let few = |daemon: &mut Command| _ = daemon.env("HOLDFAST_PENDING_LIMIT", "100");
    let rounds = if support::long() { 10_000 } else { 2000 };
    beside_a_neighbour_with(few, async |sandbox, neighbour| {
        neighbour
            .undisturbed("unredeemed tokens", async || {
                let mut urls = Vec::new();
                for _ in 0..rounds {
                    urls.push(sandbox.exec_url("neighbour", &["true"]).await);
                }
                for (from_the_end, status) in [(101, 404), (100, 101), (1, 101)] {
                    let mut http = Http::connect(&urls[urls.len() - from_the_end]).await;
                    let path = http.path.clone();
                    let answer = http.request("GET", &path, &raw_ws::UPGRADE).await;
                    assert_eq!(answer.status, status, "{from_the_end} from the end");
                }
                assert!(sandbox.daemon_log().contains("the oldest was dropped"));
            })
            .await;
    });
}

#[test]
fn s9_an_upgrade_to_spdy_may_be_written_in_several_ways() {
    with_container(async |sandbox| {
        for method in ["POST", "GET"] {
            for connection in ["Connection: upgrade", "Connection: keep-alive, Upgrade", "connection: UPGRADE"] {
                for upgrade in ["Upgrade: SPDY/3.1", "Upgrade: spdy/3.1", "upgrade: h2c, SPDY/3.1"] {
                    let lines = [connection, upgrade, "x-stream-protocol-version: v4.channel.k8s.io"];
                    let url = output_url(sandbox, &["true"]).await;
                    serves(RawSpdy::upgrade(&url, method, &lines, b"").await).await;
                }
            }
        }
    });
}

/// The protocol the server chooses among these lines of offers.
async fn chosen(sandbox: &Sandbox, offers: &[&str]) -> String {
    let offers: Vec<_> = offers.iter().map(|offer| format!("{NAME}: {offer}")).collect();
    let lines: Vec<_> = UPGRADE.into_iter().chain(offers.iter().map(String::as_str)).collect();
    let (session, answer) = RawSpdy::upgrade(&output_url(sandbox, &["true"]).await, "POST", &lines, b"").await;
    assert!(session.is_some(), "{answer:?}");
    // Item 14: exactly one, and what client-go compares.
    assert_eq!(answer.head.to_lowercase().matches("x-stream-protocol-version:").count(), 1, "{answer:?}");
    assert_eq!((answer.header("connection"), answer.header("upgrade")), (Some("Upgrade"), Some("SPDY/3.1")));
    answer.header(NAME).expect("counted").to_owned()
}

#[test]
fn s10_s11_s14_the_clients_order_decides_however_its_offers_are_written() {
    const CLIENT_GO: [&str; 5] =
        ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
    with_container(async |sandbox| {
        let list = CLIENT_GO.join(",");
        let mixed = format!(" , v5.channel.k8s.io ,,\t{}", CLIENT_GO[1..].join(" , "));
        for offers in [&CLIENT_GO[..], &[&list], &[&mixed], &["", V4]] {
            assert_eq!(chosen(sandbox, offers).await, V4, "{offers:?}");
        }
        for (offers, name) in [
            (["v2.channel.k8s.io, v4.channel.k8s.io"], "v2.channel.k8s.io"),
            (["v4.channel.k8s.io, v2.channel.k8s.io"], V4),
            (["v9.foo, channel.k8s.io, v4.channel.k8s.io"], "channel.k8s.io"),
        ] {
            assert_eq!(chosen(sandbox, &offers).await, name);
        }
    });
}

#[test]
fn s12_without_a_common_protocol_each_served_one_is_named() {
    with_container(async |sandbox| {
        let [length, connection, upgrade] = UPGRADE;
        for offer in ["v5.channel.k8s.io", "v9.foo", "portforward.k8s.io", "V4.channel.k8s.io"] {
            let line = format!("{NAME}: {offer}");
            let url = output_url(sandbox, &["true"]).await;
            let answer = refusal(&url, "POST", &[length, connection, upgrade, &line]).await;
            assert_eq!(answer.status, 403, "{offer}");
            let accepted = |line: &str| {
                line.to_lowercase().strip_prefix("x-accepted-stream-protocol-versions: ").map(str::to_owned)
            };
            let accepted: Vec<_> = answer.head.lines().filter_map(accepted).collect();
            assert_eq!(accepted, [V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
            assert!(answer.body.contains(&format!("client supports [{offer}]")), "{}", answer.body);
        }
    });
}

#[test]
fn s13_what_is_missing_for_an_upgrade_is_said_and_the_connection_can_be_used_on() {
    with_container(async |sandbox| {
        let [length, connection, upgrade] = UPGRADE;
        let offer = format!("{NAME}: {V4}");
        let empty = format!("{NAME}: , ");
        for (lines, says) in [
            (vec![length, connection, upgrade], "does not exist in request with 4 headers"),
            (vec![], "does not exist in request with 1 headers"),
            (vec![connection, upgrade, &empty], "contains []"),
            (vec![connection, &offer], "missing upgrade headers"),
            (vec![upgrade, &offer], "missing upgrade headers"),
            (vec![connection, "Upgrade: SPDY/2", &offer], "missing upgrade headers"),
        ] {
            let mut http = Http::connect(&output_url(sandbox, &["true"]).await).await;
            let path = http.path.clone();
            let answer = http.request("POST", &path, &lines).await;
            assert!(answer.status == 400 && answer.body.contains(says), "{lines:?}: {answer:?}");
            // Used up all the same.
            assert_eq!(http.request("POST", &path, &[connection, upgrade, &offer]).await.status, 404);
        }
    });
}

#[test]
fn s17_a_port_forward_that_is_offered_v5_and_v4_gets_v4() {
    support::e2e(async |sandbox| {
        let url = sandbox.client().serve_port_forward("".as_ref()).await.expect("a URL");
        let mut http = Http::connect(&url).await;
        let (path, offer) = (http.path.clone(), "Sec-WebSocket-Protocol: v5.channel.k8s.io,v4.channel.k8s.io");
        let answer = http.request("GET", &path, &[&raw_ws::UPGRADE[..], &[offer]].concat()).await;
        assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, Some(V4)));
    });
}

#[test]
fn s22_frames_in_the_segment_of_the_head_are_not_lost() {
    with_container(async |sandbox| {
        let url = exec_url(sandbox, &["sh", "-c", "cat; exit 2"]).await;
        let (mut headers, mut early, mut ids) = (HeaderWriter::new(), Vec::new(), Ids::new());
        for (id, name) in (1..).step_by(2).zip(ALL) {
            early.extend(syn_stream(id, 0, &headers.write(&[("streamtype", name)])));
            ids.insert(name, id);
        }
        early.extend(data(ids["stdin"], FIN, b"early"));
        let offer = format!("{NAME}: {V4}");
        let (session, answer) = RawSpdy::upgrade(&url, "POST", &[&UPGRADE[..], &[&offer]].concat(), &early).await;
        let seen = session.unwrap_or_else(|| panic!("{answer:?}")).finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("early".into(), failure(2)));
    });
}

#[test]
fn s23_headers_of_proxies_change_nothing() {
    with_container(async |sandbox| {
        let offer = format!("{NAME}: {V4}");
        let foreign = [
            "Origin: https://elsewhere.example",
            "X-Forwarded-For: 192.0.2.1, 198.51.100.7",
            "Authorization: Bearer nothing",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "User-Agent: kubectl/v1.36",
        ];
        let lines = [&UPGRADE[..], &[&offer], &foreign].concat();
        serves(RawSpdy::upgrade(&output_url(sandbox, &["true"]).await, "POST", &lines, b"").await).await;
    });
}

#[test]
fn s24_heads_that_are_too_large_or_slow_affect_no_session() {
    with_container(async |sandbox| {
        let (mut session, ids) = RawSpdy::session(&exec_url(sandbox, &["cat"]).await, &ALL).await;
        let url = output_url(sandbox, &["true"]).await;
        let large = format!("X-Large: {}", "x".repeat(200_000));
        let offer = format!("{NAME}: {V4}");
        let answer = refusal_of_large(&url, &[&UPGRADE[..], &[&offer, &large]].concat()).await;
        assert_eq!(answer, 431);
        // A byte now and then does not keep a head alive.
        let (mut stream, _) = Http::connect(&url).await.upgraded();
        let start = Instant::now();
        for byte in b"POST /exec/x HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x')) {
            if tokio::io::AsyncWriteExt::write_all(&mut stream, &[*byte]).await.is_err() {
                break;
            }
            assert!(start.elapsed() < support::DEADLINE, "never cut");
            session.writer.data(ids["stdin"], b"x").await;
            session.reader.wait_output(ids["stdout"], "x").await;
            sleep(Duration::from_millis(100)).await;
        }
        session.writer.ping(1).await;
        assert_eq!(session.reader.next().await, Some(Frame::Ping(1)));
        session.writer.fin(ids["stdin"]).await;
        assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);
        serves(RawSpdy::upgrade(&url, "POST", &[&UPGRADE[..], &[&offer]].concat(), b"").await).await;
    });
}

async fn refusal_of_large(url: &str, lines: &[&str]) -> u16 {
    let mut http = Http::connect(url).await;
    let path = http.path.clone();
    http.request("POST", &path, lines).await.status
}
