//! HTTP/1.1 up to the upgrade: hyper parses, `proto::upgrade_head` decides.

use std::{cell::RefCell, convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{Accepted, StreamServer, stream::Stream};
use crate::proto::{
    remotecommand::StreamKind,
    upgrade_head::{Refusal, RequestHead, Upgrade, negotiate, route},
};

/// The largest request head. Larger: 431.
const HEAD_LIMIT: usize = 64 * 1024;
/// How long a head may take to arrive, and a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An upgraded connection: the socket, what was read behind the head, and what was agreed.
#[derive(Debug)]
pub(crate) struct Agreed<S, C> {
    pub(crate) stream: S,
    pub(crate) early: Bytes,
    pub(crate) upgrade: Upgrade,
    /// The URL's query.
    pub(crate) query: Option<String>,
    pub(crate) claimed: C,
}

/// Answers requests until one is upgraded; `None` when the connection ended without.
pub(super) async fn serve(stream: Stream, server: &StreamServer) -> Option<Accepted> {
    // A client that says nothing costs no parser. Behind TLS it has said something, which may be decrypted already.
    #[cfg_attr(not(feature = "tls"), allow(irrefutable_let_patterns, reason = "a build without TLS has nothing else"))]
    if let Stream::Plain(tcp) = &stream {
        match timeout(HEAD_TIMEOUT, tcp.peek(&mut [0])).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return None,
        }
    }
    agree(stream, |kind, token| server.claim(kind, token)).await
}

/// The same on any stream; `claim` takes the request behind a token.
pub(crate) async fn agree<S: AsyncRead + AsyncWrite + Unpin, C>(
    stream: S,
    claim: impl Fn(StreamKind, &str) -> Result<C, Refusal>,
) -> Option<Agreed<S, C>> {
    let agreed = RefCell::new(None);
    let service = service_fn(async |request: Request<Incoming>| {
        let response = match answer(&request, &claim) {
            Ok((upgrade, claimed)) => {
                let response = switching(&upgrade);
                *agreed.borrow_mut() = Some((upgrade, request.uri().query().map(str::to_owned), claimed));
                response
            }
            Err(refusal) => refused(refusal),
        };
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let parts = match connection.without_shutdown().await {
        Ok(parts) => parts,
        Err(error) => {
            tracing::debug!(%error, "a streaming client's request failed");
            return None;
        }
    };
    let (upgrade, query, claimed) = agreed.borrow_mut().take()?;
    Some(Agreed { stream: parts.io.into_inner(), early: parts.read_buf, upgrade, query, claimed })
}

fn answer<C>(
    request: &Request<Incoming>,
    claim: impl Fn(StreamKind, &str) -> Result<C, Refusal>,
) -> Result<(Upgrade, C), Refusal> {
    let headers: Vec<(&str, &[u8])> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let head = RequestHead { method: request.method().as_str(), path: request.uri().path(), headers: &headers };
    let route = route(&head)?;
    // Used up before anything else is checked: a secret that was sent is no secret any more.
    let claimed = claim(route.kind, route.token)?;
    // There is none in HTTP/1.0 (RFC 9110, 7.8), and the answer would be one that clients do not take for an upgrade.
    if request.version() < Version::HTTP_11 {
        return Err(Refusal::old_http());
    }
    Ok((negotiate(route.kind, &head)?, claimed))
}

fn switching(upgrade: &Upgrade) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    add_headers(&mut response, upgrade.response_headers());
    response
}

fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    // Not the body: it quotes what the client offered, and some clients send their bearer token among the sub-protocols.
    tracing::debug!(%status, "a streaming client was refused");
    let mut response = Response::new(Full::from(refusal.body));
    *response.status_mut() = status;
    add_headers(&mut response, refusal.headers);
    response
}

fn add_headers(response: &mut Response<Full<Bytes>>, headers: Vec<(&'static str, String)>) {
    for (name, value) in headers {
        // Both are made by us from checked parts; one that HTTP does not allow is left out rather than sent broken.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
}
