//! The versions of the Kubernetes remote-command protocol, and which one a session speaks.
//!
//! A client lists the sub-protocols it can speak, best first; the server takes the first one it knows (streaming spec 1.7,
//! 2.1). On a WebSocket the versions differ in two abilities only: the form of the status (text before v4, JSON from v4
//! on) and whether the client can close stdin without closing the connection (v5).

use std::fmt;

/// What a streaming session does. Each kind has its own route, and a token is good for one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Run a further process in the container.
    Exec,
    /// Join the stdio of the container's own process.
    Attach,
    /// Connect to ports of the pod.
    PortForward,
}

impl StreamKind {
    /// The first word of the path in a session's URL.
    #[must_use]
    pub fn path_word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "port-forward",
        }
    }

    /// The kind whose route starts with this word.
    #[must_use]
    pub fn from_path_word(word: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward].into_iter().find(|kind| kind.path_word() == word)
    }

    /// The WebSocket sub-protocols served for this kind, the ablest first.
    #[must_use]
    pub fn websocket_names(self) -> &'static [&'static str] {
        match self {
            Self::Exec | Self::Attach => {
                &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
            }
            Self::PortForward => &[],
        }
    }
}

/// A version of the remote-command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `channel.k8s.io`, and what is spoken when no protocol was named.
    V1,
    /// On a WebSocket the same as v1.
    V2,
    /// On a WebSocket the same as v1.
    V3,
    /// The status is a JSON object and carries the exit code.
    V4,
    /// The client can close stdin alone.
    V5,
}

impl Version {
    /// Whether the status is a JSON object that is always sent; before that it is text, sent on failure only (spec 3.1).
    #[must_use]
    pub fn json_status(self) -> bool {
        self >= Self::V4
    }

    /// Whether the client can end stdin while output goes on (spec 2.4, `FF 00`).
    #[must_use]
    pub fn can_close_stdin(self) -> bool {
        self >= Self::V5
    }
}

/// What the two ends of a WebSocket agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// The abilities.
    pub version: Version,
    /// Whether messages are base64 text instead of binary. No name served so far asks for it.
    pub base64: bool,
    /// The name as the client offered it and the answer must repeat it; `None` if it offered none, so none is answered.
    pub name: Option<&'static str>,
}

/// Chooses the sub-protocol of a WebSocket: the first offer that is served for `kind` (spec 1.7). The client's order
/// decides. Names are compared by case, since the answer has to repeat one exactly.
///
/// Without any offer the oldest version is spoken and no name is answered.
///
/// # Errors
/// Nothing served was offered, or nothing is served for this kind.
pub fn choose_websocket<'a>(
    kind: StreamKind,
    offers: impl Iterator<Item = &'a str>,
) -> Result<Protocol, NoCommonProtocol> {
    let served = kind.websocket_names();
    let mut offered = Vec::new();
    for offer in offers {
        if let Some(name) = served.iter().find(|name| **name == offer) {
            return Ok(Protocol { version: version_of(name), base64: false, name: Some(name) });
        }
        offered.push(offer);
    }
    if offered.is_empty() && !served.is_empty() {
        return Ok(Protocol { version: Version::V1, base64: false, name: None });
    }
    Err(NoCommonProtocol { offered: OfferList::new(&offered), served })
}

fn version_of(name: &str) -> Version {
    match name.split('.').next() {
        Some("v5") => Version::V5,
        Some("v4") => Version::V4,
        Some("v3") => Version::V3,
        Some("v2") => Version::V2,
        _ => Version::V1,
    }
}

/// The client offered nothing that is served; the text is for its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to negotiate protocol: client supports {offered}, server accepts [{}]", served.join(" "))]
pub struct NoCommonProtocol {
    offered: OfferList,
    served: &'static [&'static str],
}

/// What a client offered, shortened for an error text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfferList(String);

impl OfferList {
    /// A request head may hold 64 KiB of names; an error text quotes the first of them.
    const MAX_QUOTED: usize = 256;

    pub(super) fn new(offers: &[&str]) -> Self {
        let mut quoted = offers.join(" ");
        if quoted.len() > Self::MAX_QUOTED {
            quoted.truncate(quoted.floor_char_boundary(Self::MAX_QUOTED));
            quoted.push_str("...");
        }
        Self(quoted)
    }
}

impl fmt::Display for OfferList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(kind: StreamKind, offers: &[&str]) -> Result<Protocol, NoCommonProtocol> {
        choose_websocket(kind, offers.iter().copied())
    }

    #[test]
    fn the_first_offer_that_is_served_wins() {
        for (offers, name, version) in [
            (&["v5.channel.k8s.io", "v4.channel.k8s.io"][..], "v5.channel.k8s.io", Version::V5),
            (&["v4.channel.k8s.io", "v5.channel.k8s.io"], "v4.channel.k8s.io", Version::V4),
            (&["v9.foo", "channel.k8s.io", "v5.channel.k8s.io"], "channel.k8s.io", Version::V1),
            (&["v4.base64.channel.k8s.io", "v3.channel.k8s.io"], "v3.channel.k8s.io", Version::V3),
            (&["v2.channel.k8s.io"], "v2.channel.k8s.io", Version::V2),
        ] {
            for kind in [StreamKind::Exec, StreamKind::Attach] {
                assert_eq!(
                    choose(kind, offers),
                    Ok(Protocol { version, base64: false, name: Some(name) }),
                    "{offers:?}"
                );
            }
        }
    }

    // Spec item 19.
    #[test]
    fn no_offer_means_the_oldest_version_without_a_name() {
        let protocol = choose(StreamKind::Exec, &[]).unwrap();
        assert_eq!(protocol, Protocol { version: Version::V1, base64: false, name: None });
    }

    #[test]
    fn a_refusal_names_both_sides_and_stays_short() {
        let error = choose(StreamKind::Attach, &["v9.foo", "V5.channel.k8s.io"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to negotiate protocol: client supports [v9.foo V5.channel.k8s.io], server accepts \
             [v5.channel.k8s.io v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]"
        );
        let error = choose(StreamKind::Exec, &[&"ä".repeat(30_000)]).unwrap_err();
        assert!(error.to_string().len() < 512);
    }

    #[test]
    fn port_forward_has_no_common_protocol_with_anyone() {
        for offers in [&[][..], &["v5.channel.k8s.io", "v4.channel.k8s.io"], &["SPDY/3.1+portforward.k8s.io"]] {
            assert!(choose(StreamKind::PortForward, offers).is_err(), "{offers:?}");
        }
    }

    #[test]
    fn abilities_come_with_the_version() {
        let abilities = |version: Version| (version.json_status(), version.can_close_stdin());
        for old in [Version::V1, Version::V2, Version::V3] {
            assert_eq!(abilities(old), (false, false));
        }
        assert_eq!(abilities(Version::V4), (true, false));
        assert_eq!(abilities(Version::V5), (true, true));
    }
}
