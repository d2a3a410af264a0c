//! Port forward over WebSocket channels, as every client but the Go ones does it (streaming spec 6.5).
//!
//! The ports are known beforehand. Port i has the channels 2i (data, both ways) and 2i + 1 (error text, to the client), and
//! one connection for the life of the WebSocket. Right after the handshake the server sends one message on each channel:
//! the port, in two bytes. There is no end of a single channel, so no half-close.

use bytes::{Buf, Bytes};

use super::base64::Base64Reader;
use super::channel::message;
use super::port_forward::port;
use super::ws_frame::Head;

/// The most ports of one WebSocket: a channel is one byte.
pub const MAX_PORTS: usize = 128;

/// Whether a message carries bytes of the connection or the reason why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChannel {
    /// Bytes, both ways.
    Data,
    /// Text, to the client.
    Error,
}

/// A message for the client on a channel of the port with this index, which is below [`MAX_PORTS`].
#[must_use]
pub fn port_message(base64: bool, index: usize, channel: PortChannel, payload: Bytes) -> (Head, Bytes) {
    let number = 2 * index + usize::from(channel == PortChannel::Error);
    message(base64, u8::try_from(number).unwrap_or(u8::MAX), payload)
}

/// The first messages of a session: for each port two, before anything else on their channels.
pub fn greetings(base64: bool, ports: &[u16]) -> impl Iterator<Item = (Head, Bytes)> {
    ports.iter().enumerate().flat_map(move |(index, port)| {
        [PortChannel::Data, PortChannel::Error]
            .map(|channel| port_message(base64, index, channel, Bytes::copy_from_slice(&port.to_le_bytes())))
    })
}

/// Makes sense of the messages of one client.
#[derive(Debug)]
pub struct PortDecoder {
    ports: usize,
    base64: Option<Base64Reader>,
    message: Message,
}

#[derive(Debug, Clone, Copy)]
enum Message {
    /// Its channel byte has not come.
    Start,
    /// Bytes for the port with this index.
    Data(usize),
    /// On an error channel, or on one that is not there.
    Ignored,
}

impl PortDecoder {
    /// A decoder for a session with so many ports.
    #[must_use]
    pub fn new(base64: bool, ports: usize) -> Self {
        Self { ports, base64: base64.then(Base64Reader::default), message: Message::Start }
    }

    /// Takes a piece of a message, `first` and `last` telling whether it starts and ends it. Returns bytes and the index of
    /// the port they are for; never empty. What makes no sense is ignored.
    pub fn handle(&mut self, first: bool, last: bool, piece: Bytes) -> Option<(usize, Bytes)> {
        let mut piece = match &mut self.base64 {
            Some(reader) => reader.take(first, last, &piece),
            None => piece,
        };
        if first {
            self.message = Message::Start;
        }
        if matches!(self.message, Message::Start) && !piece.is_empty() {
            let channel = usize::from(piece.get_u8());
            let is_data = channel % 2 == 0 && channel / 2 < self.ports;
            self.message = if is_data { Message::Data(channel / 2) } else { Message::Ignored };
        }
        match self.message {
            Message::Data(index) if !piece.is_empty() => Some((index, piece)),
            _ => None,
        }
    }
}

/// The ports that the query of a URL names: `port=80&ports=443,8080`, each from 1 to 65535 and at most [`MAX_PORTS`].
/// `None` if one is none, or there are too many.
#[must_use]
pub fn ports_of_query(query: &str) -> Option<Vec<u16>> {
    let values = query.split('&').filter_map(|part| part.split_once('='));
    let lists = values.filter(|(name, _)| matches!(*name, "port" | "ports")).map(|(_, list)| list);
    // A comma may come as it is or encoded.
    let members =
        lists.flat_map(|list| list.split(',')).flat_map(|list| list.split("%2C")).flat_map(|l| l.split("%2c"));
    let ports: Option<Vec<_>> = members.map(|member| port(member.as_bytes())).take(MAX_PORTS + 1).collect();
    ports.filter(|ports| ports.len() <= MAX_PORTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(messages: impl Iterator<Item = (Head, Bytes)>) -> Vec<Vec<u8>> {
        messages.map(|(head, body)| [&head, &body[..]].concat()).collect()
    }

    // Spec items 117 and 119.
    #[test]
    fn each_channel_begins_with_its_port() {
        let expected: [&[u8]; 4] =
            [&[0x82, 3, 0, 1, 0], &[0x82, 3, 1, 1, 0], &[0x82, 3, 2, 0x90, 0x1f], &[0x82, 3, 3, 0x90, 0x1f]];
        assert_eq!(wire(greetings(false, &[1, 8080])), expected);
        assert_eq!(wire(greetings(true, &[80]))[0], [&[0x81, 5][..], b"0UAA="].concat());
        assert_eq!(wire(greetings(true, &[80; 6])).last().unwrap()[2..], *b";UAA=");
        assert_eq!(wire(greetings(false, &[1; MAX_PORTS])).len(), 256);
    }

    // Spec item 118, the inbound half.
    #[test]
    fn messages_on_data_channels_are_for_their_port() {
        let mut decoder = PortDecoder::new(false, 2);
        let mut read = |first, last, piece: &'static [u8]| decoder.handle(first, last, Bytes::from_static(piece));
        assert_eq!(read(true, false, b"\x02GET"), Some((1, Bytes::from_static(b"GET"))));
        assert_eq!(read(false, true, b" /"), Some((1, Bytes::from_static(b" /"))));
        assert_eq!(read(true, true, b"\x01text"), None);
        assert_eq!(read(true, true, b"\x04x"), None);
        assert_eq!(read(true, true, b"\x00"), None);
        assert_eq!(read(true, false, b""), None);
        assert_eq!(read(false, true, b"\x00x"), Some((0, Bytes::from_static(b"x"))));

        let mut decoder = PortDecoder::new(true, 6);
        assert_eq!(decoder.handle(true, true, Bytes::from_static(b":aGk=")), Some((5, Bytes::from_static(b"hi"))));
        assert_eq!(decoder.handle(true, true, Bytes::from_static(b":aGk")), None);
    }

    #[test]
    fn a_query_names_ports_in_several_ways() {
        assert_eq!(ports_of_query("command=x&port=80&ports=443,8080&port"), Some(vec![80, 443, 8080]));
        assert_eq!(ports_of_query("ports=1%2C2%2c3"), Some(vec![1, 2, 3]));
        assert_eq!(ports_of_query(""), Some(vec![]));
        for bad in ["port=0", "port=65536", "port=", "ports=80,,81", "port=x"] {
            assert_eq!(ports_of_query(bad), None, "{bad}");
        }
        assert_eq!(ports_of_query(&format!("ports=1{}", ",1".repeat(MAX_PORTS))), None);
    }
}
