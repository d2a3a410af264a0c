//! Packets of the legacy attach socket (control-api 4.4).
//!
//! The socket is of type `SOCK_SEQPACKET`: one send is one packet. Towards the client the first byte says what the rest is;
//! what comes from the client is plain input, without a head, so there is nothing to decode.

use bytes::Bytes;

use crate::model::StdStream;

/// The largest packet, in bytes with its first one: what every client in the field has room for.
pub const MAX_PACKET: usize = 8192;
/// The packet after the last: no more output will come. Alone it ends a client without an error.
pub const DONE: [u8; 1] = [0];

/// What goes before output of a stream; all of a terminal's is stdout.
#[must_use]
pub fn head(stream: StdStream) -> [u8; 1] {
    match stream {
        StdStream::Stdout => [2],
        StdStream::Stderr => [3],
    }
}

/// Output in the pieces that one packet takes each; none of them is empty.
pub fn payloads(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.len().min(MAX_PACKET - 1);
        (length > 0).then(|| bytes.split_to(length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_falls_into_full_packets_and_a_rest_and_none_is_lost() {
        const FULL: usize = MAX_PACKET - 1;
        for (length, sizes) in
            [(0, &[][..]), (1, &[1]), (FULL, &[FULL]), (FULL + 1, &[FULL, 1]), (16 * 1024, &[FULL, FULL, 2])]
        {
            let bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
            let pieces: Vec<Bytes> = payloads(Bytes::from(bytes.clone())).collect();
            assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), sizes);
            assert_eq!(pieces.concat(), bytes);
        }
    }

    #[test]
    fn the_types_are_those_of_the_contract() {
        assert_eq!((head(StdStream::Stdout), head(StdStream::Stderr), DONE), ([2], [3], [0]));
    }
}
