//! Streams as kube-rs uses them. What it talks to is described in ../apiserver/serve.py.

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, Client, Config,
    api::{AttachParams, AttachedProcess, TerminalSize},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const ECHO: u16 = 8000;
const DIGEST: u16 = 8001;
const RESET: u16 = 8002;
const ZEROS: u16 = 8003;
const NOBODY: u16 = 8009;
const BIG: usize = 10 << 20;

/// Makes each container's id unlike the others'.
static CONTAINERS: AtomicU32 = AtomicU32::new(0);

/// No step takes longer unless something is wrong.
async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("a step that ends within a minute")
}

fn client() -> Client {
    let api = std::env::var("POD_API").expect("POD_API: run by the script `run`, which starts what is tested");
    Client::try_from(Config::new(api.parse().unwrap())).unwrap()
}

fn pods() -> Api<Pod> {
    Api::namespaced(client(), "default")
}

/// A new container that runs a shell.
async fn container(script: &str, tty: bool) -> String {
    let id = format!("c{}", CONTAINERS.fetch_add(1, Ordering::Relaxed));
    let script: String = script.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let uri = format!("/containers/{id}?command=sh&command=-c&command={script}&stdin=true&tty={tty}");
    client().request_text(http::Request::post(uri).body(Vec::new()).unwrap()).await.unwrap();
    id
}

fn streams(container: &str) -> AttachParams {
    AttachParams::default().container(container).max_stdout_buf_size(1 << 16).max_stdin_buf_size(1 << 16)
}

async fn exec(script: &str, streams: &AttachParams) -> AttachedProcess {
    within(pods().exec("pod", ["sh", "-c", script], streams)).await.unwrap()
}

/// What `seq 1 1700000` prints: about 12 MB.
fn numbers() -> Vec<u8> {
    (1..=1_700_000).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut data = Vec::new();
    within(stream.unwrap().read_to_end(&mut data)).await.unwrap();
    data
}

async fn read_until(stream: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        seen.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), data: &[u8]) {
    within(stream.write_all(data)).await.unwrap();
    within(stream.flush()).await.unwrap();
}

/// Writes all and ends the stream, beside what the test goes on to do.
fn write_to_end(stream: Option<impl AsyncWrite + Unpin + Send + 'static>, data: Vec<u8>) {
    let mut stream = stream.unwrap();
    tokio::spawn(async move {
        write(&mut stream, &data).await;
        stream.shutdown().await.unwrap();
    });
}

async fn status(process: &mut AttachedProcess) -> Status {
    within(process.take_status().unwrap()).await.expect("a status")
}

async fn code(process: &mut AttachedProcess) -> i32 {
    let status = status(process).await;
    if status.status.as_deref() == Some("Success") {
        return 0;
    }
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");
    let causes = status.details.unwrap().causes.unwrap();
    let cause = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode")).unwrap();
    cause.message.as_ref().unwrap().parse().unwrap()
}

#[tokio::test]
async fn exec_keeps_the_streams_apart() {
    let mut process = exec("echo out; echo err >&2", &streams("pod")).await;
    let (stdout, stderr) = (process.stdout(), process.stderr());
    assert_eq!((read(stdout).await, read(stderr).await), (b"out\n".to_vec(), b"err\n".to_vec()));
    assert_eq!(code(&mut process).await, 0);
    within(process.join()).await.unwrap();
}

#[tokio::test]
async fn exec_tells_the_exit_code() {
    for tty in [false, true] {
        for (end, expected) in [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("kill -9 $$", 137)] {
            let mut process = exec(&format!("echo last words; {end}"), &streams("pod").stderr(!tty).tty(tty)).await;
            let stdout = process.stdout();
            assert!(read(stdout).await.starts_with(b"last words"));
            assert_eq!(code(&mut process).await, expected, "{end}, terminal: {tty}");
        }
    }
}

#[tokio::test]
async fn exec_delivers_big_output() {
    let mut process = exec("seq 1 1700000; exit 42", &streams("pod")).await;
    let stdout = process.stdout();
    assert!(read(stdout).await == numbers(), "the output is other");
    assert_eq!(code(&mut process).await, 42);
}

#[tokio::test]
async fn exec_takes_stdin_to_its_end() {
    let mut process = exec("md5sum | cut -c1-32; wc -c </dev/null", &streams("pod").stdin(true)).await;
    write_to_end(process.stdin(), vec![0; BIG]);
    let stdout = process.stdout();
    // That of 10 MiB of zero bytes.
    assert_eq!(String::from_utf8_lossy(&read(stdout).await), "f1c9645dbc14efddc7d8a322685f26eb\n0\n");
    assert_eq!(code(&mut process).await, 0);
}

#[tokio::test]
async fn exec_carries_big_data_both_ways_at_once() {
    let mut process = exec("cat", &streams("pod").stdin(true)).await;
    write_to_end(process.stdin(), numbers());
    let stdout = process.stdout();
    assert!(read(stdout).await == numbers(), "the output is other");
    assert_eq!(code(&mut process).await, 0);
}

#[tokio::test]
async fn exec_on_a_terminal_is_typed_at_and_resized() {
    let mut process = exec("exec sh", &streams("pod").stdin(true).stderr(false).tty(true)).await;
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut sizes = process.terminal_size().unwrap();
    sizes.try_send(TerminalSize { width: 100, height: 30 }).unwrap();
    write(&mut stdin, b"until stty size | grep '^30 100'; do :; done\n").await;
    read_until(&mut stdout, "30 100\r\n").await;
    sizes.try_send(TerminalSize { width: 90, height: 20 }).unwrap();
    write(&mut stdin, b"until stty size | grep '^20 90'; do :; done; exit 42\n").await;
    read_until(&mut stdout, "20 90\r\n").await;
    assert_eq!(code(&mut process).await, 42);
}

#[tokio::test]
async fn exec_of_what_is_not_there_is_a_failure() {
    let mut process = within(pods().exec("pod", ["no-such-program"], &streams("pod"))).await.unwrap();
    let status = status(&mut process).await;
    assert_eq!(status.status.as_deref(), Some("Failure"));
    assert!(status.message.as_ref().unwrap().contains("no-such-program"), "{status:?}");
}

#[tokio::test]
async fn exec_in_what_is_not_there_is_refused() {
    assert!(within(pods().exec("pod", ["true"], &streams("nobody"))).await.is_err());
}

#[tokio::test]
async fn attach_types_and_sees_both_streams_to_the_end() {
    let id = container("while read a; do echo out $a; echo err $a >&2; [ $a != end ] || exit 5; done", false).await;
    let mut process = within(pods().attach("pod", &streams(&id).stdin(true))).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    write(&mut stdin, b"one\n").await;
    assert_eq!(read_until(&mut stdout, "\n").await, "out one\n");
    write(&mut stdin, b"end\n").await;
    let stderr = process.stderr();
    assert_eq!(read(Some(stdout)).await, b"out end\n");
    assert_eq!(read(stderr).await, b"err one\nerr end\n");
    // The code is the container's, not the session's.
    assert_eq!(code(&mut process).await, 0);
}

#[tokio::test]
async fn attach_to_a_terminal_is_typed_at_and_resized() {
    let id = container("exec sh", true).await;
    let params = streams(&id).stdin(true).stderr(false).tty(true);
    let mut process = within(pods().attach("pod", &params)).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    process.terminal_size().unwrap().try_send(TerminalSize { width: 100, height: 30 }).unwrap();
    write(&mut stdin, b"until stty size | grep '^30 100'; do :; done; exit 3\n").await;
    read_until(&mut stdout, "30 100\r\n").await;
    assert_eq!(code(&mut process).await, 0);
}

#[tokio::test]
async fn forward_carries_several_ports_side_by_side() {
    let mut forward = within(pods().portforward("pod", &[ECHO, ZEROS])).await.unwrap();
    let (mut echo, mut zeros) = (forward.take_stream(ECHO).unwrap(), forward.take_stream(ZEROS).unwrap());
    let mut big = vec![1; BIG];
    // Both at once: this client delivers nothing to one port while nobody reads the other.
    tokio::join!(
        async {
            within(zeros.read_exact(&mut big)).await.unwrap();
        },
        async {
            for line in ["hello\n", "again\n"] {
                write(&mut echo, line.as_bytes()).await;
                assert_eq!(read_until(&mut echo, "\n").await, line);
            }
        }
    );
    assert!(big.iter().all(|byte| *byte == 0), "the answer is other");
    write(&mut echo, b"after it\n").await;
    assert_eq!(read_until(&mut echo, "\n").await, "after it\n");
    forward.abort();
}

#[tokio::test]
async fn forward_carries_big_data_both_ways() {
    let mut forward = within(pods().portforward("pod", &[ECHO])).await.unwrap();
    let (mut back, mut forth) = tokio::io::split(forward.take_stream(ECHO).unwrap());
    let sent = numbers();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        write(&mut forth, &copy).await;
        forth
    });
    let mut echo = vec![0; sent.len()];
    within(back.read_exact(&mut echo)).await.unwrap();
    assert!(echo == sent, "the echo is other");
    drop(writing.await.unwrap());
    forward.abort();
}

#[tokio::test]
async fn forward_delivers_a_big_answer_and_its_end() {
    let mut forward = within(pods().portforward("pod", &[ZEROS])).await.unwrap();
    let (stream, error) = (forward.take_stream(ZEROS), forward.take_error(ZEROS).unwrap());
    assert!(read(stream).await == vec![0; BIG], "the answer is other");
    assert_eq!(within(error).await, None);
}

#[tokio::test]
async fn forward_to_a_port_of_nobody_is_that_ports_failure_alone() {
    let mut forward = within(pods().portforward("pod", &[DIGEST, ECHO, NOBODY])).await.unwrap();
    let error = within(forward.take_error(NOBODY).unwrap()).await.unwrap();
    assert!(error.contains("connection refused"), "{error}");
    let mut echo = forward.take_stream(ECHO).unwrap();
    write(&mut echo, b"hello\n").await;
    assert_eq!(read_until(&mut echo, "\n").await, "hello\n");
    forward.abort();
}

#[tokio::test]
async fn forward_ends_without_a_text_where_the_pod_resets() {
    let mut forward = within(pods().portforward("pod", &[RESET])).await.unwrap();
    let (mut stream, error) = (forward.take_stream(RESET).unwrap(), forward.take_error(RESET).unwrap());
    write(&mut stream, b"a good deal").await;
    assert_eq!(read(Some(stream)).await, b"");
    assert_eq!(within(error).await, None);
}
