//! The HTTP upgrade to SPDY/3.1, as its client; streaming.md 1.5, 1.6.

use std::{str, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::client::{StreamError, url::Target};

/// The longest head of an answer taken, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Of the body of a refusal.
const MAX_BODY: usize = 512;
/// How long a refusal's body is waited for.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// The upgrade was agreed to.
#[derive(Debug)]
pub(in crate::client) struct Upgraded {
    /// The sub-protocol the server has chosen.
    pub(in crate::client) protocol: String,
    /// What came behind the head of the answer.
    pub(in crate::client) early: BytesMut,
}

/// Asks for SPDY.
///
/// # Errors
/// The server answers anything but an upgrade to one of the offers.
pub(in crate::client) async fn upgrade(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &Target<'_>,
    offers: &[&str],
) -> Result<Upgraded, StreamError> {
    let broken = |error: std::io::Error| StreamError::Broken(error.to_string());
    let mut request = format!(
        "POST /{} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
        target.path, target.address
    );
    for offer in offers {
        request += &format!("X-Stream-Protocol-Version: {offer}\r\n");
    }
    wire.write_all((request + "\r\n").as_bytes()).await.map_err(broken)?;
    let mut input = BytesMut::new();
    let head = loop {
        if let Some(at) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break input.split_to(at + 4);
        }
        if input.len() > MAX_HEAD {
            return Err(StreamError::Broken("the answer has no end of its head".to_owned()));
        }
        if wire.read_buf(&mut input).await.map_err(broken)? == 0 {
            return Err(StreamError::Broken("the server closed it without an answer".to_owned()));
        }
    };
    let answer = Answer::parse(&head).ok_or_else(|| StreamError::Broken("the answer is no HTTP/1.1".to_owned()))?;
    if answer.status != 101 {
        let body = read_body(wire, input, answer.value("content-length")).await;
        return Err(StreamError::Refused { status: answer.status, body });
    }
    match answer.value("x-stream-protocol-version").filter(|name| offers.contains(name)) {
        Some(name) => Ok(Upgraded { protocol: name.to_owned(), early: input }),
        None => Err(StreamError::Broken("the server chose none of the protocols offered".to_owned())),
    }
}

async fn read_body(wire: &mut (impl AsyncRead + Unpin), mut body: BytesMut, length: Option<&str>) -> String {
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(MAX_BODY).min(MAX_BODY);
    let read = async { while body.len() < length && matches!(wire.read_buf(&mut body).await, Ok(1..)) {} };
    let _ = timeout(BODY_LIMIT, read).await;
    String::from_utf8_lossy(&body[..body.len().min(length)]).trim().to_owned()
}

/// The head of an answer.
struct Answer<'a> {
    status: u16,
    lines: Vec<(&'a str, &'a str)>,
}

impl<'a> Answer<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let mut lines = str::from_utf8(head).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        let lines = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        Some(Self { status, lines })
    }

    fn value(&self, wanted: &str) -> Option<&'a str> {
        self.lines.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upgrades with a server that gives this answer, and what it was asked.
    fn ask(answer: &[u8], offers: &[&str]) -> (Result<Upgraded, StreamError>, String) {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut asked = String::new();
        let mut result = None;
        crate::io::local(async {
            theirs.write_all(answer).await.unwrap();
            theirs.shutdown().await.unwrap();
            let target = Target::parse("http://127.0.0.1:80/exec/x").unwrap();
            result = Some(upgrade(&mut ours, &target, offers).await);
            drop(ours);
            theirs.read_to_string(&mut asked).await.unwrap();
        });
        (result.unwrap(), asked)
    }

    #[test]
    fn an_upgrade_is_a_post_that_names_each_offer_and_keeps_what_follows_the_answer() {
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nX-STREAM-Protocol-Version:  b \r\n\r\nfirst";
        let (upgraded, asked) = ask(answer, &["a", "b"]);
        let upgraded = upgraded.unwrap();
        assert_eq!((&*upgraded.protocol, &upgraded.early[..]), ("b", &b"first"[..]));
        assert_eq!(
            asked,
            "POST /exec/x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             Content-Length: 0\r\nX-Stream-Protocol-Version: a\r\nX-Stream-Protocol-Version: b\r\n\r\n"
        );
    }

    #[test]
    fn anything_else_is_an_error_that_says_what_came() {
        let huge = [b"HTTP/1.1 101 x\r\nx: ".to_vec(), vec![b'x'; 40_000]].concat();
        for (answer, says) in [
            (&b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnone\nmore"[..], "refused the session: 404 none"),
            (b"HTTP/1.1 503 x\r\n\r\ntry later", "refused the session: 503 try later"),
            (b"HTTP/1.1 101 x\r\n\r\n", "chose none of the protocols offered"),
            (b"HTTP/1.1 101 x\r\nX-Stream-Protocol-Version: z\r\n\r\n", "chose none of the protocols offered"),
            (b"SSH-2.0\r\n\r\n", "the answer is no HTTP/1.1"),
            (b"HTTP/1.1 101", "closed it without an answer"),
            (&huge, "no end of its head"),
        ] {
            let error = ask(answer, &["a"]).0.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
