//! Base64 messages of the WebSocket protocols that carry text (streaming spec 2.1, 2.3).
//!
//! A message is the character `0` + channel, then the payload in standard base64 with padding, each message encoded on its
//! own. [`Base64Reader`] turns it into what the binary protocols send, so that the decoders behind it need not care.

use bytes::Bytes;

/// Text kept before it is decoded, in bytes. A message up to this length is taken whole or, if a group of it is bad, not at
/// all; of a longer one what came before the bad group may have been delivered (spec 2.4).
const BLOCK: usize = 4 << 10;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The first character of a message on `channel`. From channel 80 on it is no character: nobody has so many.
pub(super) fn channel_character(channel: u8) -> u8 {
    channel.wrapping_add(b'0')
}

/// The payload of a message.
pub(super) fn encode(payload: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(payload.len().div_ceil(3) * 4);
    for group in payload.chunks(3) {
        let word = group.iter().fold(0, |word, byte| word << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            text.push(if at > group.len() { b'=' } else { ALPHABET[word >> (18 - 6 * at) & 0x3f] });
        }
    }
    text.into()
}

/// Reads the messages of one client.
#[derive(Debug, Default)]
pub(super) struct Base64Reader {
    message: Message,
}

#[derive(Debug, Default)]
enum Message {
    /// Its first character has not come.
    #[default]
    Start,
    /// Text that is not decoded yet, at most [`BLOCK`]. Before the first block is, `channel` is still to be told.
    Text { channel: Option<u8>, text: Vec<u8> },
    /// A group was bad: the rest is not looked at.
    Dropped,
}

impl Base64Reader {
    /// Takes a piece of a message, `first` and `last` telling whether it starts and ends it, and returns what it adds to the
    /// message in its binary form: the channel and the payload.
    pub(super) fn take(&mut self, first: bool, last: bool, piece: &[u8]) -> Bytes {
        if first {
            self.message = Message::Start;
        }
        let mut binary = Vec::new();
        // Line ends within base64 are ignored, as Go does.
        for byte in piece.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')) {
            match &mut self.message {
                Message::Start => {
                    let channel = Some(byte.wrapping_sub(b'0'));
                    self.message = Message::Text { channel, text: Vec::new() };
                }
                Message::Text { text, .. } if text.len() < BLOCK => text.push(*byte),
                Message::Text { .. } => {
                    self.decode_block(false, &mut binary);
                    if let Message::Text { text, .. } = &mut self.message {
                        text.push(*byte);
                    }
                }
                Message::Dropped => break,
            }
        }
        if last {
            self.decode_block(true, &mut binary);
            self.message = Message::Start;
        }
        binary.into()
    }

    fn decode_block(&mut self, last: bool, binary: &mut Vec<u8>) {
        let Message::Text { channel, text } = &mut self.message else { return };
        let before = binary.len();
        binary.extend(channel.take());
        if decode(text, last, binary) {
            text.clear();
        } else {
            binary.truncate(before);
            self.message = Message::Dropped;
        }
    }
}

/// Decodes whole groups, the last of which may be padded only at the end of the message; false if one is bad.
fn decode(text: &[u8], last: bool, binary: &mut Vec<u8>) -> bool {
    let (groups, rest) = text.as_chunks::<4>();
    for (at, group) in groups.iter().enumerate() {
        let padding = if last && at + 1 == groups.len() { padding(*group) } else { 0 };
        let mut word = 0_u32;
        for byte in &group[..4 - padding] {
            let Some(value) = value_of(*byte) else { return false };
            word = word << 6 | u32::from(value);
        }
        let [_, bytes @ ..] = (word << (6 * padding)).to_be_bytes();
        binary.extend_from_slice(&bytes[..3 - padding]);
    }
    rest.is_empty()
}

fn padding(group: [u8; 4]) -> usize {
    match group {
        [_, _, b'=', b'='] => 2,
        [_, _, _, b'='] => 1,
        _ => 0,
    }
}

fn value_of(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::testing::Random;

    /// A message in pieces of `cut` bytes.
    fn read(text: &[u8], cut: usize) -> Vec<u8> {
        let mut reader = Base64Reader::default();
        let pieces: Vec<_> = text.chunks(cut).collect();
        let taken = pieces.iter().enumerate().map(|(at, piece)| reader.take(at == 0, at + 1 == pieces.len(), piece));
        taken.flat_map(|bytes| bytes.to_vec()).collect()
    }

    // RFC 4648, section 10; and spec 2.3.
    #[test]
    fn the_test_vectors_hold_both_ways() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("hello\n", "aGVsbG8K"),
            ("\u{3ff}\u{3ff}", "z7/Pvw=="),
        ] {
            assert_eq!(encode(plain.as_bytes()), text);
            for cut in 1..9 {
                let message = [&[channel_character(2)], text.as_bytes()].concat();
                assert_eq!(read(&message, cut), [&[2], plain.as_bytes()].concat(), "{text} by {cut}");
            }
        }
        assert_eq!(read(b"0aG\r\nk=\n", 3), b"\0hi");
    }

    #[test]
    fn what_is_encoded_is_decoded_at_any_cut() {
        let mut random = Random(9);
        for len in [1, 100, 3071, 3072, 3073, 20_000] {
            let plain = random.bytes(len);
            let message = [&b"1"[..], &encode(&plain)].concat();
            for cut in [1, 7, BLOCK, 16 << 10, 1 << 20] {
                assert!(read(&message, cut) == [&[1], &plain[..]].concat(), "{len} by {cut}");
            }
        }
    }

    #[test]
    fn a_bad_group_drops_the_rest_of_its_message() {
        for text in ["0aGk", "0aGk=aGk=", "0a=k=", "0====", "0aG_=", "0aGk=\0", "0aGk==", "0a"] {
            assert_eq!(read(text.as_bytes(), 3), b"", "{text}");
        }
        // A long one is delivered up to the block with the bad group, whatever the cuts.
        let long = [&b"0"[..], &b"AAAA".repeat(BLOCK / 2), b"!AAA", &b"AAAA".repeat(BLOCK)].concat();
        for cut in [1, 100, 1 << 20] {
            assert_eq!(read(&long, cut).len(), 1 + BLOCK / 2 * 3);
        }
        let mut reader = Base64Reader::default();
        assert_eq!(reader.take(true, true, b"0!"), "");
        assert_eq!(reader.take(true, true, b"0aGk="), "\0hi");
    }
}
