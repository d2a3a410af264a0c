//! streaming 1 and 9.1: URLs, tokens, HTTP.

use holdfast::client::{ServeAttach, ServeExec};

use crate::{
    support::raw_ws::{ACCEPT, Answer, Http, UPGRADE},
    websocket::with_container,
};

/// One request on a connection of its own.
async fn request(url: &str, method: &str, headers: &[&str]) -> Answer {
    let mut http = Http::connect(url).await;
    let path = http.path.clone();
    http.request(method, &path, headers).await
}

#[test]
fn a_url_is_absolute_and_good_for_one_connection() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["cat"]).await;
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        assert_eq!(request(&url, "GET", &UPGRADE).await.status, 101);
        let again = request(&url, "GET", &UPGRADE).await;
        assert_eq!((again.status, &again.body[..]), (404, "404 page not found\n"));
        assert_eq!(again.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(again.header("x-content-type-options"), Some("nosniff"));
    });
}

#[test]
fn an_unknown_path_or_token_is_404_and_the_connection_can_be_used_on() {
    with_container(async |sandbox| {
        let mut http = Http::connect(&sandbox.exec_url("c", &["cat"]).await).await;
        for path in ["/", "/exec", "/exec/", "/other/x", "/exec/unknown", "/attach/unknown", "/exec/a/b"] {
            assert_eq!(http.request("GET", path, &UPGRADE).await.status, 404, "{path}");
        }
        let path = http.path.clone();
        assert_eq!(http.request("GET", &format!("{path}/?query=ignored"), &UPGRADE).await.status, 101);
    });
}

#[test]
fn another_route_or_method_does_not_use_up_a_token() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["cat"]).await;
        for other in ["/attach/", "/port-forward/", "/portforward/"] {
            assert_eq!(request(&url.replace("/exec/", other), "GET", &UPGRADE).await.status, 404);
        }
        for method in ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"] {
            let answer = request(&url, method, &[]).await;
            assert_eq!(answer.status, 405, "{method}");
            let allowed = answer.header("allow").expect("required by HTTP");
            assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
        }
        assert_eq!(request(&url, "GET", &UPGRADE).await.status, 101);
    });
}

#[test]
fn a_request_that_cannot_be_upgraded_has_used_up_its_token() {
    with_container(async |sandbox| {
        let [connection, upgrade, version, key] = UPGRADE;
        let unknown = "Sec-WebSocket-Protocol: v9.foo";
        let cases: [(&str, &[&str], u16); 6] = [
            ("GET", &[], 400),
            ("GET", &[connection, upgrade, version], 400),
            ("GET", &[connection, upgrade, key, "Sec-WebSocket-Version: 8"], 400),
            ("GET", &[connection, upgrade, version, key, unknown], 403),
            ("POST", &UPGRADE, 405),
            ("POST", &[connection, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"], 403),
        ];
        for (method, headers, status) in cases {
            let url = sandbox.exec_url("c", &["cat"]).await;
            let answer = request(&url, method, headers).await;
            assert_eq!(answer.status, status, "{method} {headers:?}: {answer:?}");
            assert!(!answer.body.is_empty(), "{answer:?}");
            assert_eq!(request(&url, "GET", &UPGRADE).await.status, 404);
        }
    });
}

#[test]
fn the_first_offered_protocol_that_is_served_is_chosen_on_one_line_or_several() {
    with_container(async |sandbox| {
        let offer = |names: &str| format!("Sec-WebSocket-Protocol: {names}");
        let cases = [
            (vec![offer("v5.channel.k8s.io, v4.channel.k8s.io")], Some("v5.channel.k8s.io")),
            (vec![offer("v5.channel.k8s.io"), offer("v4.channel.k8s.io")], Some("v5.channel.k8s.io")),
            (vec![offer("v9.foo"), offer("v4.channel.k8s.io,v5.channel.k8s.io")], Some("v4.channel.k8s.io")),
            (vec![offer("channel.k8s.io")], Some("channel.k8s.io")),
            (vec!["Sec-WebSocket-Extensions: permessage-deflate".to_owned()], None),
        ];
        for (lines, chosen) in cases {
            let lines: Vec<&str> = UPGRADE.into_iter().chain(lines.iter().map(String::as_str)).collect();
            let answer = request(&sandbox.exec_url("c", &["true"]).await, "GET", &lines).await;
            assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, chosen), "{lines:?}");
            assert_eq!(
                (answer.header("connection"), answer.header("sec-websocket-accept")),
                (Some("Upgrade"), Some(ACCEPT))
            );
            assert_eq!(answer.header("sec-websocket-extensions"), None);
        }
    });
}

#[test]
fn a_head_that_is_too_large_is_refused_and_other_sessions_go_on() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["cat"]).await;
        let large = format!("X-Large: {}", "x".repeat(200_000));
        let mut http = Http::connect(&url).await;
        let path = http.path.clone();
        assert_eq!(http.request("GET", &path, &[&large]).await.status, 431);
        assert_eq!(request(&url, "GET", &UPGRADE).await.status, 101);
    });
}

#[test]
fn when_a_thousand_urls_wait_the_next_one_costs_the_oldest_its_token() {
    with_container(async |sandbox| {
        let mut urls = Vec::new();
        for _ in 0..1001 {
            urls.push(sandbox.exec_url("c", &["true"]).await);
        }
        for (number, status) in [(0, 404), (1, 101), (1000, 101)] {
            assert_eq!(request(&urls[number], "GET", &UPGRADE).await.status, status, "{number}");
        }
        assert!(sandbox.daemon_log().contains("the oldest was dropped"));
        let token = urls[1].rsplit('/').next().expect("a path");
        assert!(token.len() >= 32 && !sandbox.daemon_log().contains(token), "tokens are secret");
    });
}

#[test]
fn requests_without_streams_or_for_unknown_containers_are_failed_calls() {
    with_container(async |sandbox| {
        let client = sandbox.client();
        let exec = ServeExec { id: "c".to_owned(), command: vec!["true".to_owned()], ..ServeExec::default() };
        let error = client.serve_exec(&exec).await.expect_err("no streams").to_string();
        assert!(error.contains("one of stdin, stdout, or stderr must be set"), "{error}");
        let attach = ServeAttach { id: "c".to_owned(), ..ServeAttach::default() };
        let error = client.serve_attach(&attach).await.expect_err("no streams").to_string();
        assert!(error.contains("one of stdin, stdout, and stderr must be set"), "{error}");
        let unknown = ServeExec { id: "unknown".to_owned(), stdout: true, ..exec };
        let error = client.serve_exec(&unknown).await.expect_err("no container").to_string();
        assert!(error.contains("not-found"), "{error}");
    });
}
