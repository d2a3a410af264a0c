//! From an HTTP request head to a session, or a refusal (streaming spec 1.3 to 1.7).
//!
//! Two steps, because a token is claimed between them: [`route`] says which kind of session and which token the path
//! names; the right route consumes the token before anything else is looked at; then [`negotiate`] agrees on transport and
//! protocol. A request that fails the second step has used up its token, and its client needs a new one.
//!
//! Only what decides is validated: a foreign `Host`, `Origin` or forwarding header, and offered extensions, come with
//! every proxy and change nothing (spec 1.8).

mod spdy;

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use self::spdy::{negotiate_spdy, spdy_response_headers};
use super::remotecommand::{Protocol, SpdyProtocol, StreamKind, choose_websocket};

/// What of an HTTP request decides over the upgrade.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path; a query behind it is ignored.
    pub path: &'a str,
    /// Names in lower case, one entry per line, in the order of the request.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl<'a> RequestHead<'a> {
    /// The values of every line with this name.
    fn lines(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// The value of the first line with this name, without blanks around it; empty if there is none.
    fn first(&self, name: &'static str) -> &'a [u8] {
        self.lines(name).next().unwrap_or_default().trim_ascii()
    }

    /// The members of a comma list that may go over several lines, without blanks and empty members.
    ///
    /// A member that is not UTF-8 stands as a replacement character: it was offered, and it matches nothing.
    fn list(&self, name: &'static str) -> Vec<&'a str> {
        self.lines(name)
            .flat_map(|line| line.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
            .map(|member| str::from_utf8(member).unwrap_or("\u{fffd}"))
            .collect()
    }
}

/// Which session a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// The kind its path names.
    pub kind: StreamKind,
    /// The one-time token; not empty, nothing else is known about it.
    pub token: &'a str,
}

/// Step 1: reads kind and token from the path, `/{kind}/{token}` with or without a slash behind it.
///
/// # Errors
/// 404 for any other path, 405 for a method other than GET and POST; no token is consumed then.
pub fn route<'a>(head: &RequestHead<'a>) -> Result<Route<'a>, Refusal> {
    let path = head.path.split_once('?').map_or(head.path, |(path, _query)| path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let (kind, token) = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .and_then(|(word, token)| Some((StreamKind::from_path_word(word)?, token)))
        .filter(|(_, token)| !token.is_empty() && !token.contains('/'))
        .ok_or_else(|| Refusal::new(404, "404: Page Not Found".into()))?;
    match head.method {
        "GET" | "POST" => Ok(Route { kind, token }),
        _ => Err(Refusal::new(405, "405: Method Not Allowed".into()).with("Allow", "GET, POST")),
    }
}

/// What the connection becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// A WebSocket (RFC 6455) without extensions.
    WebSocket {
        /// The value of `Sec-WebSocket-Accept`.
        accept: String,
        /// What is spoken over it.
        protocol: Protocol,
    },
    /// SPDY/3.1 on the connection itself.
    Spdy(SpdyProtocol),
}

impl Upgrade {
    /// The headers of the `101 Switching Protocols` answer, complete but for an optional `Date`.
    ///
    /// `Connection` is exactly `Upgrade`, since a client compares the whole value; an empty protocol line is never sent,
    /// since strict clients abort on one (spec 1.7).
    #[must_use]
    pub fn response_headers(&self) -> Vec<(&'static str, String)> {
        let (accept, protocol) = match self {
            Self::WebSocket { accept, protocol } => (accept, protocol),
            Self::Spdy(protocol) => return spdy_response_headers(*protocol),
        };
        let mut headers = vec![
            ("Upgrade", "websocket".to_owned()),
            ("Connection", "Upgrade".to_owned()),
            ("Sec-WebSocket-Accept", accept.clone()),
        ];
        headers.extend(protocol.name.map(|name| ("Sec-WebSocket-Protocol", name.to_owned())));
        headers
    }
}

/// Step 2, once the token was claimed: agrees on transport and protocol.
///
/// # Errors
/// The answer to send instead of the 101.
pub fn negotiate(kind: StreamKind, head: &RequestHead<'_>) -> Result<Upgrade, Refusal> {
    // Connection is a list that proxies extend ("keep-alive, Upgrade"); Upgrade must be this one word (spec 1.5).
    let asks_upgrade = head.lines("connection").any(|line| contains_ignoring_case(line, b"upgrade"));
    if asks_upgrade && head.first("upgrade").eq_ignore_ascii_case(b"websocket") {
        return negotiate_websocket(kind, head);
    }
    negotiate_spdy(kind, head).map(Upgrade::Spdy)
}

fn contains_ignoring_case(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

fn negotiate_websocket(kind: StreamKind, head: &RequestHead<'_>) -> Result<Upgrade, Refusal> {
    if head.method != "GET" {
        return Err(Refusal::new(405, "bad method".into()).with("Allow", "GET"));
    }
    let key = head.first("sec-websocket-key");
    if key.is_empty() {
        return Err(Refusal::new(400, "missing Sec-WebSocket-Key".into()));
    }
    if head.first("sec-websocket-version") != b"13" {
        return Err(Refusal::new(400, "missing or bad WebSocket Version".into()).with("Sec-WebSocket-Version", "13"));
    }
    let offers = head.list("sec-websocket-protocol");
    let protocol = choose_websocket(kind, offers.into_iter())
        .map_err(|error| Refusal::new(403, format!("{error}\n")).with("Connection", "close"))?;
    Ok(Upgrade::WebSocket { accept: derive_accept_key(key), protocol })
}

/// An answer instead of an upgrade.
///
/// The body is complete, so the transport must delimit it with `Content-Length`: proxies wait for its end (spec 1.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// All headers but `Content-Length` and `Date`.
    pub headers: Vec<(&'static str, String)>,
    /// Plain text for the user.
    pub body: String,
}

impl Refusal {
    /// 404: the token is unknown, used, expired, or of another kind (spec 1.3).
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(404, "404 page not found\n".into())
    }

    /// 503: the session cannot be served now, `text` says why; no token is consumed.
    #[must_use]
    pub fn service_unavailable(text: &str) -> Self {
        Self::new(503, format!("{text}\n"))
    }

    /// 400: HTTP/1.0 knows no upgrade (RFC 9110, 7.8).
    #[must_use]
    pub fn old_http() -> Self {
        Self::new(400, "an upgrade needs HTTP/1.1\n".into())
    }

    fn new(status: u16, body: String) -> Self {
        let headers = vec![
            ("Content-Type", "text/plain; charset=utf-8".to_owned()),
            // The body may quote the request: no browser may take it for anything but text.
            ("X-Content-Type-Options", "nosniff".to_owned()),
        ];
        Self { status, headers, body }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::remotecommand::{TUNNEL, Version};

    type Headers<'a> = Vec<(&'a str, &'a [u8])>;

    /// The head of a good WebSocket request, with lines of the same name replaced by, or else extended with, `changes`.
    fn websocket<'a>(changes: &[(&'a str, &'a str)]) -> Headers<'a> {
        let good: [(&str, &[u8]); 5] = [
            ("host", b"node.example:10250"),
            ("connection", b"keep-alive, Upgrade"),
            ("upgrade", b"WebSocket"),
            ("sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", b"13"),
        ];
        let kept = good.into_iter().filter(|(name, _)| changes.iter().all(|(changed, _)| name != changed));
        kept.chain(changes.iter().map(|(name, value)| (*name, value.as_bytes()))).collect()
    }

    fn ask(kind: StreamKind, method: &str, headers: &[(&str, &[u8])]) -> Result<Upgrade, Refusal> {
        negotiate(kind, &RequestHead { method, path: "/exec/token", headers })
    }

    fn header<'a>(refusal: &'a Refusal, name: &str) -> Option<&'a str> {
        refusal.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    // Spec 1.4.
    #[test]
    fn a_path_names_kind_and_token() {
        for (path, kind) in [
            ("/exec/AbC-_9", StreamKind::Exec),
            ("/attach/AbC-_9/", StreamKind::Attach),
            ("/port-forward/AbC-_9?command=sh&x=/", StreamKind::PortForward),
            ("/exec/AbC-_9/?", StreamKind::Exec),
        ] {
            for method in ["GET", "POST"] {
                let head = RequestHead { method, path, headers: &[] };
                assert_eq!(route(&head), Ok(Route { kind, token: "AbC-_9" }), "{method} {path}");
            }
        }
    }

    // Spec item 8.
    #[test]
    fn an_unknown_path_gets_404_whatever_the_method() {
        for path in " / /exec /exec/ /exec// /exec/a/b /exec/a// exec/a //exec/a /Exec/a /x/a *".split(' ') {
            for method in ["GET", "PUT"] {
                let refusal = route(&RequestHead { method, path, headers: &[] }).unwrap_err();
                assert_eq!((refusal.status, refusal.body.as_str()), (404, "404: Page Not Found"), "{method} {path}");
            }
        }
    }

    // Spec item 7.
    #[test]
    fn another_method_gets_405_before_the_token_is_looked_at() {
        for method in ["PUT", "DELETE", "HEAD", "OPTIONS", "get", ""] {
            let refusal = route(&RequestHead { method, path: "/exec/token", headers: &[] }).unwrap_err();
            assert_eq!((refusal.status, refusal.body.as_str()), (405, "405: Method Not Allowed"));
            assert_eq!(header(&refusal, "Allow"), Some("GET, POST"));
        }
    }

    // Spec item 15; key and accept value are those of RFC 6455, section 1.3.
    #[test]
    fn the_answer_to_a_websocket_upgrade_is_exact() {
        let upgrade = ask(StreamKind::Attach, "GET", &websocket(&[("sec-websocket-protocol", "v4.channel.k8s.io")]));
        let expected = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
        ];
        assert_eq!(upgrade.unwrap().response_headers(), expected.map(|(name, value)| (name, value.to_owned())));
    }

    // Spec item 16.
    #[test]
    fn offers_may_come_in_one_line_or_in_several() {
        const NAME: &str = "sec-websocket-protocol";
        for lines in [
            &[(NAME, "v5.channel.k8s.io,v4.channel.k8s.io")][..],
            &[(NAME, "v5.channel.k8s.io"), (NAME, "v4.channel.k8s.io")],
            &[(NAME, " , v9.foo ,"), ("host", "x"), (NAME, "\tv5.channel.k8s.io , v4.channel.k8s.io")],
        ] {
            let upgrade = ask(StreamKind::Exec, "GET", &websocket(lines)).unwrap();
            let v5 = Some("v5.channel.k8s.io");
            assert!(matches!(upgrade, Upgrade::WebSocket { protocol, .. } if protocol.name == v5), "{lines:?}");
        }
    }

    // Spec item 19.
    #[test]
    fn without_an_offer_no_protocol_line_is_answered() {
        for headers in [websocket(&[]), websocket(&[("sec-websocket-protocol", " ")])] {
            let upgrade = ask(StreamKind::Exec, "GET", &headers).unwrap();
            assert!(upgrade.response_headers().iter().all(|(name, _)| *name != "Sec-WebSocket-Protocol"));
            assert!(matches!(upgrade, Upgrade::WebSocket { protocol: Protocol { version: Version::V1, .. }, .. }));
        }
    }

    // Spec items 20 and 23.
    #[test]
    fn offered_extensions_and_headers_of_proxies_change_nothing() {
        let extra = [
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
            ("origin", "https://elsewhere.example"),
            ("x-forwarded-for", "10.1.2.3"),
            ("host", ""),
        ];
        let plain = ask(StreamKind::Exec, "GET", &websocket(&[])).unwrap();
        assert_eq!(ask(StreamKind::Exec, "GET", &websocket(&extra)), Ok(plain));
    }

    // Spec item 18.
    #[test]
    fn no_common_websocket_protocol_gets_403_with_a_reason() {
        let bad_utf8 = [&websocket(&[])[..], &[("sec-websocket-protocol", b"\xff")]].concat();
        for headers in [websocket(&[("sec-websocket-protocol", "v9.foo")]), bad_utf8] {
            let refusal = ask(StreamKind::Exec, "GET", &headers).unwrap_err();
            assert_eq!((refusal.status, header(&refusal, "Connection")), (403, Some("close")));
            assert!(refusal.body.contains("server accepts [v5.channel.k8s.io "), "{}", refusal.body);
        }
    }

    // Spec items 17 and 121.
    #[test]
    fn a_port_forward_never_speaks_v5_and_names_the_tunnel_in_full() {
        let chosen = |offers: &str| {
            let headers = websocket(&[("sec-websocket-protocol", offers)]);
            ask(StreamKind::PortForward, "GET", &headers).map(|upgrade| match upgrade {
                Upgrade::WebSocket { protocol, .. } => (protocol.name, protocol.is_tunnel()),
                Upgrade::Spdy(_) => panic!("not asked for"),
            })
        };
        assert_eq!(chosen("v5.channel.k8s.io,v4.channel.k8s.io"), Ok((Some("v4.channel.k8s.io"), false)));
        assert_eq!(chosen(TUNNEL), Ok((Some(TUNNEL), true)));
        for refused in ["v5.channel.k8s.io", "channel.k8s.io", "portforward.k8s.io"] {
            assert_eq!(chosen(refused).map_err(|refusal| refusal.status), Err(403), "{refused}");
        }
    }

    // Spec 1.7 and item 21.
    #[test]
    fn a_bad_websocket_handshake_is_refused() {
        let refusal = ask(StreamKind::Exec, "POST", &websocket(&[])).unwrap_err();
        assert_eq!((refusal.status, header(&refusal, "Allow")), (405, Some("GET")));
        assert_eq!(refusal.body, "bad method");
        let refusal = ask(StreamKind::Exec, "GET", &websocket(&[("sec-websocket-key", "")])).unwrap_err();
        assert_eq!((refusal.status, refusal.body.as_str()), (400, "missing Sec-WebSocket-Key"));
        for version in ["8", "", "13, 8", "113"] {
            let refusal = ask(StreamKind::Exec, "GET", &websocket(&[("sec-websocket-version", version)])).unwrap_err();
            assert_eq!((refusal.status, refusal.body.as_str()), (400, "missing or bad WebSocket Version"));
            assert_eq!(header(&refusal, "Sec-WebSocket-Version"), Some("13"));
        }
    }

    // Spec 1.5: only the whole word makes it a WebSocket.
    #[test]
    fn what_is_no_websocket_upgrade_is_one_to_spdy_or_refused() {
        let offers = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v5.channel.k8s.io, v4.channel.k8s.io")];
        let headers: Headers<'_> =
            [("connection", "Upgrade")].iter().chain(&offers).map(|(n, v)| (*n, v.as_bytes())).collect();
        let upgrade = ask(StreamKind::Exec, "POST", &headers).unwrap();
        assert!(upgrade.response_headers().contains(&("X-Stream-Protocol-Version", "v4.channel.k8s.io".to_owned())));
        for (headers, says) in [
            (websocket(&[("upgrade", "spdy/3.1"), ("x-stream-protocol-version", " ,")]), "contains []"),
            (websocket(&[("upgrade", "websocket, spdy/3.1")]), "does not exist in request with 5 headers"),
            (websocket(&[("connection", "close")]), "does not exist in request with 5 headers"),
            (Headers::new(), "does not exist in request with 0 headers"),
        ] {
            let refusal = ask(StreamKind::Exec, "POST", &headers).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.body.starts_with("unable to upgrade: ") && refusal.body.contains(says), "{}", refusal.body);
        }
    }

    #[test]
    fn a_bad_token_is_answered_as_clients_know_it() {
        let refusal = Refusal::not_found();
        assert_eq!((refusal.status, refusal.body.as_str()), (404, "404 page not found\n"));
        assert_eq!(header(&refusal, "Content-Type"), Some("text/plain; charset=utf-8"));
        assert_eq!(header(&refusal, "X-Content-Type-Options"), Some("nosniff"));
        assert_eq!(Refusal::service_unavailable("full").status, 503);
    }
}
