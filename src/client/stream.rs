//! A streaming session's client end: exec and attach over WebSocket (streaming.md 2), or over SPDY (streaming.md 5).
//!
//! On a WebSocket one message is one byte of channel number and its payload. The end of a session is a status on channel 3, then a
//! Close frame; the connection may only be dropped after that, else the kernel's reset destroys what is under way.

use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        handshake::client::{Request, Response},
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

use super::{
    Collected, StreamError, StreamMessage,
    halves::{ReceiveHalf, SendHalf, StreamReceiver, StreamSender, broken},
    spdy::command,
    url::Target,
};
use crate::{model::WindowSize, proto::stream_set::Requested};

/// Servers send at most 32 KiB at a time (streaming.md 2.6); what is far beyond that is not a session.
const MAX_MESSAGE: usize = 1 << 20;
/// Of tungstenite's read buffer, which it fills with zeros before each read; the default of 128 KiB costs time.
const READ_BUFFER: usize = 16 << 10;
/// Of the body of a refusal.
const MAX_BODY: usize = 512;

/// A connected session.
#[derive(Debug)]
pub struct StreamClient {
    sender: StreamSender,
    receiver: StreamReceiver,
}

impl StreamClient {
    /// Opens the session of a URL that a serve call returned. A URL is good for one connection.
    ///
    /// # Errors
    /// See [`StreamError`]; also when the server selects no protocol although some were offered.
    pub async fn connect(url: &str, offers: &[&str]) -> Result<Self, StreamError> {
        let (socket, protocol) = websocket(url, offers).await?;
        let (sink, stream) = socket.split();
        Ok(Self {
            sender: StreamSender { half: SendHalf::WebSocket(sink), protocol },
            receiver: StreamReceiver { half: ReceiveHalf::WebSocket(stream) },
        })
    }

    /// The same over SPDY, where the client opens a stream for each thing that the serve call was made with.
    ///
    /// # Errors
    /// See [`StreamError`]; also when `requested` is not what the session was asked for with.
    ///
    /// # Panics
    /// Outside a tokio `LocalRuntime` or `LocalSet`.
    pub async fn connect_spdy(url: &str, offers: &[&str], requested: Requested) -> Result<Self, StreamError> {
        let target = Target::parse(url)?;
        let tcp = dial(&target).await?;
        let (sender, receiver, protocol) = command::connect(tcp, &target, offers, requested).await?;
        Ok(Self {
            sender: StreamSender { half: SendHalf::Spdy(sender), protocol: Some(protocol) },
            receiver: StreamReceiver { half: ReceiveHalf::Spdy(Box::new(receiver)) },
        })
    }

    /// The sub-protocol that was agreed on, if any.
    #[must_use]
    pub fn protocol(&self) -> Option<&str> {
        self.sender.protocol.as_deref()
    }

    /// The two halves, to be used at the same time.
    #[must_use]
    pub fn split(self) -> (StreamSender, StreamReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`StreamSender::send_stdin`].
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn send_stdin(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.sender.send_stdin(bytes).await
    }

    /// See [`StreamSender::close_stdin`].
    ///
    /// # Errors
    /// On a WebSocket before v5 always; else when the connection is lost.
    pub async fn close_stdin(&mut self) -> Result<(), StreamError> {
        self.sender.close_stdin().await
    }

    /// See [`StreamSender::resize`].
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn resize(&mut self, size: WindowSize) -> Result<(), StreamError> {
        self.sender.resize(size).await
    }

    /// See [`StreamReceiver::next`].
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub async fn next(&mut self) -> Result<StreamMessage, StreamError> {
        self.receiver.next().await
    }

    /// Receives until the server closes the session.
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub async fn collect(mut self) -> Result<Collected, StreamError> {
        self.receiver.collect().await
    }
}

/// A TCP connection to the host of a URL.
pub(super) async fn dial(target: &Target<'_>) -> Result<TcpStream, StreamError> {
    let connected = TcpStream::connect(target.address).await;
    let tcp = connected.map_err(|source| StreamError::Connect { address: target.address.to_owned(), source })?;
    // A key press is a message of its own: it must not wait for the one before to be acknowledged.
    tcp.set_nodelay(true).map_err(|error| StreamError::Broken(error.to_string()))?;
    Ok(tcp)
}

/// A WebSocket, and the sub-protocol that was agreed on.
pub(super) async fn websocket(
    url: &str,
    offers: &[&str],
) -> Result<(WebSocketStream<TcpStream>, Option<String>), StreamError> {
    let (target, request) = request(url, offers)?;
    let tcp = dial(&target).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let (socket, response) = client_async_with_config(request, tcp, Some(config)).await.map_err(refusal)?;
    let protocol = response.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|name| name.to_str().ok());
    Ok((socket, protocol.map(str::to_owned)))
}

/// Where to connect to, and the request to send there.
fn request<'a>(url: &'a str, offers: &[&str]) -> Result<(Target<'a>, Request), StreamError> {
    let bad = || StreamError::BadUrl(url.to_owned());
    let target = Target::parse(url)?;
    let mut request = format!("ws://{}/{}", target.address, target.path).into_client_request().map_err(|_| bad())?;
    if !offers.is_empty() {
        let offer = HeaderValue::from_str(&offers.join(", ")).map_err(|_| bad())?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, offer);
    }
    Ok((target, request))
}

fn refusal(error: tungstenite::Error) -> StreamError {
    match error {
        tungstenite::Error::Http(response) => refused(&response),
        error => broken(&error),
    }
}

fn refused(response: &Response) -> StreamError {
    let body = response.body().as_deref().unwrap_or_default();
    let body = String::from_utf8_lossy(&body[..body.len().min(MAX_BODY)]).trim().to_owned();
    StreamError::Refused { status: response.status().as_u16(), body }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use futures_util::SinkExt;
    use tokio::net::TcpListener;
    use tokio_tungstenite::{
        accept_hdr_async,
        tungstenite::{
            Message,
            handshake::server::{ErrorResponse, Request as ServerRequest, Response as ServerResponse},
            protocol::CloseFrame,
        },
    };

    use super::*;
    use crate::{client::STREAM_PROTOCOLS, model::Outcome};

    /// Runs a server that selects `protocol` together with a client of it.
    fn session<C: Future<Output = ()>, S: Future<Output = ()>>(
        protocol: &'static str,
        client: impl FnOnce(StreamClient) -> C,
        server: impl FnOnce(WebSocketStream<TcpStream>) -> S,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
            let serve = async {
                let tcp = listener.accept().await.unwrap().0;
                #[allow(clippy::result_large_err, reason = "tungstenite's own signature")]
                let select = |_: &ServerRequest, mut response: ServerResponse| -> Result<_, ErrorResponse> {
                    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                    Ok(response)
                };
                server(accept_hdr_async(tcp, select).await.unwrap()).await;
            };
            let connect = async { client(StreamClient::connect(&url, &STREAM_PROTOCOLS).await.unwrap()).await };
            tokio::join!(serve, connect);
        });
    }

    fn message(bytes: &'static [u8]) -> Message {
        Message::Binary(Bytes::from_static(bytes))
    }

    #[test]
    fn output_status_and_close_code_are_collected_and_unknown_channels_ignored() {
        session(
            "v5.channel.k8s.io",
            |client| async {
                let all = client.collect().await.unwrap();
                assert_eq!((all.stdout, all.stderr), (b"out".to_vec(), b"err".to_vec()));
                assert_eq!((all.statuses, all.close_code), (vec![Outcome::Exited(0)], Some(1000)));
            },
            |mut server| async move {
                for bytes in [&b"\x01"[..], b"\x01ou", b"\x02err", b"\x09x", b"\x01t", b"\x03{\"status\":\"Success\"}"]
                {
                    server.send(message(bytes)).await.unwrap();
                }
                let normal = CloseFrame { code: 1000.into(), reason: "".into() };
                server.send(Message::Close(Some(normal))).await.unwrap();
                // The client's half of the handshake, then its end of the connection.
                assert!(server.next().await.unwrap().unwrap().is_close());
            },
        );
    }

    #[test]
    fn input_resize_and_half_close_have_their_channels() {
        let (sent, received) = mpsc::channel();
        session(
            "v5.channel.k8s.io",
            |mut client| async move {
                client.send_stdin(b"hi").await.unwrap();
                client.resize(WindowSize { cols: 80, rows: 24 }).await.unwrap();
                client.close_stdin().await.unwrap();
            },
            |mut server| async move {
                for _ in 0..3 {
                    sent.send(server.next().await.unwrap().unwrap().into_data()).unwrap();
                }
            },
        );
        let received: Vec<_> = received.iter().collect();
        assert_eq!(received, [&b"\x00hi"[..], b"\x04{\"Width\":80,\"Height\":24}\n", b"\xff\x00"]);
    }

    #[test]
    fn before_v5_stdin_cannot_be_closed_and_a_lost_connection_has_no_code() {
        session(
            "v4.channel.k8s.io",
            |mut client| async move {
                assert_eq!(client.protocol(), Some("v4.channel.k8s.io"));
                assert!(matches!(client.close_stdin().await, Err(StreamError::NoHalfClose)));
                assert_eq!(client.next().await.unwrap(), StreamMessage::Closed { code: None });
            },
            |server| async move { drop(server) },
        );
    }

    #[test]
    fn only_absolute_http_urls_with_a_port_are_taken() {
        for bad in ["", "//127.0.0.1:1/exec/x", "https://127.0.0.1:1/x", "http://127.0.0.1/x", "http://:1:/ /x"] {
            assert!(matches!(request(bad, &[]), Err(StreamError::BadUrl(_))), "{bad}");
        }
        let (target, request) = request("http://127.0.0.1:80/exec/x", &STREAM_PROTOCOLS).unwrap();
        assert_eq!((target.address, target.path), ("127.0.0.1:80", "exec/x"));
        assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io, v4.channel.k8s.io");
    }
}
