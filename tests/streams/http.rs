//! streaming 1 and 9.1: URLs, tokens, HTTP.

use holdfast::client::{ServeAttach, ServeExec};

use crate::{
    support::raw_ws::{Answer, Http, UPGRADE},
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
fn a_request_that_cannot_be_upgraded_has_used_up_its_token() {
    with_container(async |sandbox| {
        let [connection, upgrade, version, key] = UPGRADE;
        let unknown = "Sec-WebSocket-Protocol: v9.foo";
        let cases: [(&str, &[&str], u16); 7] = [
            ("GET", &[], 400),
            ("GET", &[connection, upgrade, version], 400),
            ("GET", &[connection, upgrade, key, "Sec-WebSocket-Version: 8"], 400),
            ("GET", &[connection, upgrade, version, key, unknown], 403),
            ("POST", &UPGRADE, 405),
            ("POST", &[connection, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v5.channel.k8s.io"], 403),
            ("POST", &[connection, "X-Stream-Protocol-Version: v4.channel.k8s.io"], 400),
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

/// Found by fuzzing: it was answered with `HTTP/1.0 101`, which is no upgrade.
#[test]
fn a_request_of_http_1_0_is_not_upgraded() {
    with_container(async |sandbox| {
        let mut http = Http::connect(&sandbox.exec_url("c", &["cat"]).await).await;
        let request = format!("GET {} HTTP/1.0\r\n{}\r\n\r\n", http.path, UPGRADE.join("\r\n"));
        http.send(request.as_bytes()).await;
        let answer = http.answer("GET").await;
        assert_eq!((answer.status, &answer.body[..]), (400, "an upgrade needs HTTP/1.1\n"));
    });
}
