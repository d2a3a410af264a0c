//! Everything that may be a secret passes the daemon once, well and badly made, and none of it is in its log at the most
//! talkative level: tokens, command lines, environments, what flows through streams, what clients send beside it.

use std::{fs, io::Write as _, os::unix::net::UnixStream};

use holdfast::{
    client::{ExecSync, ServeAttach, ServeExec},
    model::StdStream,
};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::support::{
    self, BundleSpec, Sandbox, fds,
    raw_spdy::{FORWARD, RawSpdy, V4},
    raw_ws::{BINARY, CLOSE, FIN, Http, RawSession, TEXT, UPGRADE},
    wait_output, within,
};

/// In the middle of every word that no log may have; tokens are looked for by themselves.
const SECRET: &str = "HuntersTwo";

fn secret(place: &str) -> String {
    format!("{place}{SECRET}{place}")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The last part of a URL.
fn token(url: &str) -> String {
    url.rsplit('/').next().expect("a path").to_owned()
}

async fn containers(sandbox: &Sandbox) {
    let script = format!("echo {0}; echo {0} >&2; while read line; do echo \"$line\"; done; exit 3", secret("output"));
    let spec = BundleSpec::shell(&script).stdin().env("PASSWORD", &secret("environment"));
    let mut request = sandbox.create_request("c", &spec);
    request.env = vec![("RUNTIME_PASSWORD".to_owned(), secret("runtime"))];
    request.cleanup_command = words(&["sh", "-c", &format!("echo {}; exit 1", secret("cleanup"))]);
    sandbox.client().create_container(&request).await.expect("created");
    sandbox.start("c");
    // Programs that are not there: the runtime repeats their names.
    sandbox.refused_create("bad", &BundleSpec::new(&[&secret("program")])).await;
    let mut loud = sandbox.create_request("loud", &BundleSpec::idle().env("PASSWORD", &secret("environment")));
    loud.global_args = words(&["--debug"]);
    sandbox.client().create_container(&loud).await.expect("created, with much to say");
}

async fn commands(sandbox: &Sandbox) {
    let client = sandbox.client();
    for terminal in [false, true] {
        for command in
            [&["echo", &secret("argument")][..], &[&secret("program")], &["sleep", "1000", &secret("argument")]]
        {
            let timeout_s = if command[0] == "sleep" { 1 } else { 20 };
            let env = vec![("RUNTIME_PASSWORD".to_owned(), secret("runtime"))];
            let command_line = words(command);
            let exec =
                ExecSync { id: "c".into(), command: command_line, timeout_s, terminal, env, ..Default::default() };
            let reply = client.exec_sync(&exec).await.expect("a reply");
            assert!(command[0] != "echo" || String::from_utf8_lossy(&reply.stdout).contains(SECRET));
        }
    }
}

/// Returns the tokens used.
async fn sessions(sandbox: &Sandbox) -> Vec<String> {
    let mut tokens = Vec::new();
    for command in
        [words(&["cat", &secret("argument")]), words(&[&secret("program")]), words(&["sh", "-c", "cat; exit 9"])]
    {
        let exec =
            ServeExec { id: "c".into(), command, stdin: true, stdout: true, stderr: true, ..ServeExec::default() };
        for spdy in [false, true] {
            let url = sandbox.client().serve_exec(&exec).await.expect("a URL");
            tokens.push(token(&url));
            if spdy {
                let (mut session, ids) = RawSpdy::session(&url, &["error", "stdin", "stdout", "stderr"]).await;
                session.writer.data(ids["stdin"], secret("input").as_bytes()).await;
                session.writer.fin(ids["stdin"]).await;
                session.finish(&ids).await;
            } else {
                let mut session = RawSession::open(&url, "v5.channel.k8s.io").await;
                session.send(FIN | BINARY, format!("\0{}", secret("input")).as_bytes()).await;
                session.send(FIN | BINARY, &[255, 0]).await;
                session.rest().await;
            }
        }
    }
    let attach = ServeAttach { id: "c".into(), stdin: true, stdout: true, stderr: true };
    let mut attached = sandbox.attach_ws(attach).await;
    attached.send_stdin(format!("{}\n", secret("typed")).as_bytes()).await.expect("sent");
    wait_output(&mut attached, &secret("typed")).await;
    let legacy = sandbox.attach_raw("c", false).await;
    legacy.send(format!("{}\n", secret("packet")).as_bytes()).await;
    legacy.wait_output(&format!("{}\n", secret("packet"))).await;
    tokens
}

/// What breaks the rules, with a secret at the place where it is broken. Returns the tokens used.
async fn broken(sandbox: &Sandbox) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut url = async || {
        let url = sandbox.exec_url("c", &["cat"]).await;
        tokens.push(token(&url));
        url
    };
    let bearer = format!("base64url.bearer.authorization.k8s.io.{}", secret("bearer"));
    let [connection, upgrade, version, key] = UPGRADE;
    let cookie = format!("Cookie: {}", secret("cookie"));
    let websocket = format!("Sec-WebSocket-Protocol: {bearer}");
    let spdy = format!("X-Stream-Protocol-Version: {bearer}");
    for lines in
        [&[connection, upgrade, version, key, &cookie, &websocket][..], &[connection, "Upgrade: SPDY/3.1", &spdy]]
    {
        let mut http = Http::connect(&url().await).await;
        let path = format!("{}?token={}", http.path, secret("query"));
        let answer = http.request("GET", &path, lines).await;
        assert!(
            answer.status == 403 && answer.body.contains(SECRET),
            "its sender is told what was refused: {answer:?}"
        );
    }
    for line in [format!("GET /exec/{} HTTP/1.1\r\n\r\n", secret("guess")), format!("{} \0\r\n\r\n", secret("garbage"))]
    {
        let mut http = Http::connect(&url().await).await;
        http.send(line.as_bytes()).await;
        assert!(http.answer("GET").await.status >= 400);
    }
    let said = secret("said");
    let frames: [(u8, Vec<u8>); 4] = [
        (FIN | BINARY, format!("\x04{{\"Width\":\"{said}\",\"Height\":1}}").into_bytes()),
        (FIN | TEXT, said.clone().into_bytes()),
        (FIN | 3, said.clone().into_bytes()),
        (FIN | CLOSE, [&[3, 232], said.as_bytes()].concat()),
    ];
    for (first, payload) in frames {
        let mut session = RawSession::open(&url().await, "v5.channel.k8s.io").await;
        session.send(first, &payload).await;
        session.send(FIN | CLOSE, &[3, 232]).await;
        session.rest().await;
    }
    for headers in
        [&[("streamtype", &said[..])][..], &[(&said, "error")], &[("streamtype", "error"), ("password", &said)]]
    {
        let mut session = RawSpdy::connect(&url().await, V4).await;
        session.writer.offer(headers).await;
        // A frame of version 9.
        session.writer.raw(&[&[0x80, 9], said.as_bytes()].concat()).await;
        session.reader.rest().await;
    }
    for name in ["conmon.sock", "conmon-fd.sock"] {
        if let Ok(mut stream) = UnixStream::connect(sandbox.runtime_dir().join(name)) {
            stream.write_all(said.as_bytes()).expect("a socket takes that much");
        }
    }
    let descriptors = fds::connect(sandbox).await;
    descriptors.send_packet(said.as_bytes(), &[]).await.expect("sent");
    descriptors.receive_packet().await.expect("a refusal");
    tokens
}

/// Returns the tokens used.
async fn port_forward(sandbox: &Sandbox) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has room");
    let port = listener.local_addr().expect("bound").port();
    let mut tokens = Vec::new();
    for text in [secret("forwarded"), String::new()] {
        let none = std::path::Path::new("");
        let url = sandbox.client().serve_port_forward(none).await.expect("a URL");
        tokens.push(token(&url));
        let mut session = RawSpdy::connect(&url, FORWARD).await;
        if text.is_empty() {
            let nonsense = [("streamtype", "data"), ("port", &secret("port")[..]), ("requestid", &secret("id")[..])];
            session.writer.offer(&nonsense).await;
            session.bye().await;
            continue;
        }
        let pair = session.open_pair(port, 0).await;
        let (mut server, _) = within(listener.accept()).await.expect("the daemon connects");
        session.writer.data(pair.data, text.as_bytes()).await;
        session.writer.fin(pair.data).await;
        server.write_all(text.as_bytes()).await.expect("a socket takes that much");
        drop(server);
        session.bye().await;
    }
    tokens
}

#[test]
fn no_token_command_line_environment_or_payload_is_in_the_daemons_log_at_any_level() {
    support::e2e(async |sandbox| {
        containers(sandbox).await;
        commands(sandbox).await;
        let mut tokens = sessions(sandbox).await;
        tokens.extend(broken(sandbox).await);
        tokens.extend(port_forward(sandbox).await);
        // One that nobody uses.
        tokens.push(token(&sandbox.exec_url("c", &["cat", &secret("unused")]).await));
        assert!(String::from_utf8_lossy(&sandbox.logged("c", StdStream::Stdout)).contains(SECRET), "the way works");
        assert!(sandbox.end_daemon(Signal::SIGTERM).await.success());
        let log = sandbox.daemon_log();
        assert!(log.contains("container created") && log.contains("stopped"), "{log}");
        let telling: Vec<_> = log
            .lines()
            .filter(|line| line.contains(SECRET) || tokens.iter().any(|token| line.contains(token)))
            .collect();
        assert!(tokens.len() > 15 && telling.is_empty(), "{telling:#?}");
    });
}

/// The names of what the daemon leaves in its directory, too.
#[test]
fn no_token_is_in_a_file_or_a_file_name_of_the_runtime_directory() {
    support::with_container(async |sandbox| {
        let waiting = token(&sandbox.exec_url("c", &["cat"]).await);
        let running = sandbox.exec_ws("c", &["cat"]).await;
        for entry in fs::read_dir(sandbox.runtime_dir()).expect("ours").flatten() {
            assert!(!entry.file_name().to_string_lossy().contains(&waiting));
            let content = fs::read(entry.path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&content).contains(&waiting), "{:?}", entry.path());
        }
        drop(running);
    });
}
