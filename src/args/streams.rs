//! Options of the streaming server. All are ours: they take environment variables because CRI-O passes fixed flags.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};

use super::{ConfigError, MAX_SECONDS, absolute, count, seconds};
use crate::config::{self, AttachLag, ClientGone, ForwardRefusal, StreamConfig, TlsFiles};

/// How exec, attach and port forward are served.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Streaming")]
pub struct Streams {
    /// The address on which streams are served
    #[arg(long, env = "HOLDFAST_STREAM_ADDRESS", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "IP", default_value_t = config::STREAM_ADDRESS)]
    pub stream_address: IpAddr,

    /// The port; 0 lets the kernel choose, which several pods on one host need
    #[arg(long, env = "HOLDFAST_STREAM_PORT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "PORT", default_value_t = 0)]
    pub stream_port: u16,

    /// After how long without data a session ends; 0 means never
    #[arg(long, env = "HOLDFAST_IDLE_TIMEOUT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::IDLE_TIMEOUT.as_secs(), value_parser = seconds(0))]
    pub idle_timeout: u64,

    /// How long a client may take to open the streams of its session
    #[arg(long, env = "HOLDFAST_STREAM_CREATION_TIMEOUT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::STREAM_CREATION_TIMEOUT.as_secs())]
    #[arg(value_parser = seconds(1))]
    pub stream_creation_timeout: u64,

    /// How long the URL of a session is good
    #[arg(long, env = "HOLDFAST_TOKEN_LIFETIME", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "SECONDS", default_value_t = config::TOKEN_LIFETIME.as_secs(), value_parser = seconds(1))]
    pub token_lifetime: u64,

    /// How many URLs may wait for their client; beyond, the oldest is dropped
    #[arg(long, env = "HOLDFAST_PENDING_LIMIT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "NUMBER", default_value_t = config::PENDING_LIMIT, value_parser = count())]
    pub pending_limit: usize,

    /// How many connections may wait for their upgrade; beyond, the oldest is closed
    #[arg(long, env = "HOLDFAST_CONNECTION_LIMIT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "NUMBER", default_value_t = config::CONNECTION_LIMIT, value_parser = count())]
    pub connection_limit: usize,

    /// How many sessions there may be; beyond, clients get 503
    #[arg(long, env = "HOLDFAST_SESSION_LIMIT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "NUMBER", default_value_t = config::SESSION_LIMIT, value_parser = count())]
    pub session_limit: usize,

    /// What happens to an attach client that reads too slowly: "cut" ends its session and says how much it missed;
    /// "skip" leaves out the oldest output and says in its place how much; "wait:TIME" (500ms, 2s, 1m) holds the container
    /// up, each time no longer than that, then cuts. Waiting is for people at terminals: one stopped viewer then slows the
    /// container
    #[arg(long, env = "HOLDFAST_ATTACH_LAG", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "POLICY", default_value = "cut", value_parser = attach_lag())]
    pub attach_lag: AttachLag,

    /// What happens to a command whose client goes away before it: "hangup" ends its input and closes its output, so that a
    /// terminal hangs up and a writer gets SIGPIPE; "leave" ends its input, and its output goes nowhere; "kill:TIME" (500ms,
    /// 10s, 5m) is a hangup, after which the command and everything that it has started is killed
    #[arg(long, env = "HOLDFAST_EXEC_CLIENT_GONE", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "POLICY", default_value = "hangup", value_parser = client_gone())]
    pub exec_client_gone: ClientGone,

    /// What a port forward's client is told when nobody listens on the port: the reason as "text", upon which kubectl ends
    /// the whole session, or a "reset" of that connection alone
    #[arg(long, env = "HOLDFAST_FORWARD_REFUSAL", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "HOW", default_value = "text", value_parser = forward_refusal())]
    pub forward_refusal: ForwardRefusal,

    /// The certificate chain for TLS, in PEM form; without it streams are plain HTTP (needs a build with TLS)
    #[arg(long, env = "HOLDFAST_STREAM_TLS_CERT", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "FILE", requires = "stream_tls_key")]
    pub stream_tls_cert: Option<PathBuf>,

    /// The private key of --stream-tls-cert, in PEM form
    #[arg(long, env = "HOLDFAST_STREAM_TLS_KEY", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "FILE", requires = "stream_tls_cert")]
    pub stream_tls_key: Option<PathBuf>,

    /// The authorities one of which must have signed a client's certificate, in PEM form
    #[arg(long, env = "HOLDFAST_STREAM_TLS_CLIENT_CA", hide_env_values = true, hide_short_help = true)]
    #[arg(value_name = "FILE", requires = "stream_tls_cert")]
    pub stream_tls_client_ca: Option<PathBuf>,
}

impl Streams {
    pub(super) fn resolve(self) -> Result<StreamConfig, ConfigError> {
        let tls = match (self.stream_tls_cert, self.stream_tls_key) {
            (Some(_), Some(_)) if !cfg!(feature = "tls") => return Err(ConfigError::NoTls),
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: absolute("stream-tls-cert", certificate)?,
                key: absolute("stream-tls-key", key)?,
                client_ca: self.stream_tls_client_ca.map(|path| absolute("stream-tls-client-ca", path)).transpose()?,
            }),
            _ => None,
        };
        Ok(StreamConfig {
            address: self.stream_address,
            port: self.stream_port,
            idle_timeout: Duration::from_secs(self.idle_timeout),
            creation_timeout: Duration::from_secs(self.stream_creation_timeout),
            token_lifetime: Duration::from_secs(self.token_lifetime),
            pending_limit: self.pending_limit,
            connection_limit: self.connection_limit,
            session_limit: self.session_limit,
            attach_lag: self.attach_lag,
            exec_client_gone: self.exec_client_gone,
            forward_refusal: self.forward_refusal,
            tls,
        })
    }
}

fn forward_refusal() -> impl TypedValueParser<Value = ForwardRefusal> {
    PossibleValuesParser::new(["text", "reset"]).map(|name| match name.as_str() {
        "reset" => ForwardRefusal::Reset,
        _ => ForwardRefusal::Text,
    })
}

fn attach_lag() -> impl TypedValueParser<Value = AttachLag> {
    NonEmptyStringValueParser::new().try_map(|text| {
        parse_attach_lag(&text)
            .ok_or("choose cut, skip, or wait:TIME, such as wait:500ms or wait:2s, of a year at most")
    })
}

fn parse_attach_lag(text: &str) -> Option<AttachLag> {
    let time = match text {
        "cut" => return Some(AttachLag::Cut),
        "skip" => return Some(AttachLag::Skip),
        _ => text.strip_prefix("wait:")?,
    };
    let time = parse_time(time)?;
    (!time.is_zero()).then_some(AttachLag::Wait(time))
}

fn client_gone() -> impl TypedValueParser<Value = ClientGone> {
    NonEmptyStringValueParser::new().try_map(|text| {
        parse_client_gone(&text)
            .ok_or("choose hangup, leave, or kill:TIME, such as kill:500ms or kill:10s, of a year at most")
    })
}

fn parse_client_gone(text: &str) -> Option<ClientGone> {
    match text {
        "hangup" => Some(ClientGone::Hangup),
        "leave" => Some(ClientGone::Leave),
        _ => parse_time(text.strip_prefix("kill:")?).map(ClientGone::Kill),
    }
}

/// A number with its unit, a year at most.
fn parse_time(time: &str) -> Option<Duration> {
    let digits = time.find(|character: char| !character.is_ascii_digit()).unwrap_or(time.len());
    let (number, unit) = (time[..digits].parse::<u64>().ok()?, &time[digits..]);
    let milliseconds = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        _ => return None,
    };
    (milliseconds <= MAX_SECONDS * 1000).then(|| Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_for_slow_viewers_are_read() {
        let wait = |milliseconds| Some(AttachLag::Wait(Duration::from_millis(milliseconds)));
        let cases = [
            ("cut", Some(AttachLag::Cut)),
            ("skip", Some(AttachLag::Skip)),
            ("wait:500ms", wait(500)),
            ("wait:2s", wait(2000)),
            ("wait:1m", wait(60_000)),
            ("wait:0s", None),
            ("wait:2", None),
            ("wait:", None),
            ("wait", None),
            ("wait:99999999999999999999s", None),
            ("wait:999999999999s", None),
            ("Cut", None),
        ];
        for (text, policy) in cases {
            assert_eq!(parse_attach_lag(text), policy, "{text}");
        }
    }

    #[test]
    fn policies_for_commands_without_their_client_are_read() {
        let kill = |milliseconds| Some(ClientGone::Kill(Duration::from_millis(milliseconds)));
        let cases = [
            ("hangup", Some(ClientGone::Hangup)),
            ("leave", Some(ClientGone::Leave)),
            ("kill:0s", kill(0)),
            ("kill:500ms", kill(500)),
            ("kill:10s", kill(10_000)),
            ("kill:5m", kill(300_000)),
            ("kill:10", None),
            ("kill:", None),
            ("kill", None),
            ("kill:-1s", None),
            ("kill:999999999999s", None),
            ("Hangup", None),
            ("", None),
        ];
        for (text, policy) in cases {
            assert_eq!(parse_client_gone(text), policy, "{text}");
        }
    }
}
