//! Packets of the descriptor socket (control-api 4.8): who connects to it hands descriptors over (`SCM_RIGHTS`) and gets
//! slot numbers for them, which a create then names.
//!
//! ```text
//! request   count u32 | id u32                        all zero: close every descriptor of mine that nobody has claimed
//! reply     count u32 | id u32 | count × slot u64
//! refusal   0xffffffff | id u32 | UTF-8 text to the end of the packet
//! ```
//!
//! Integers are little-endian. The id is the client's own and comes back as it was; the slots are in the order of the
//! descriptors. Packets keep their bounds, so there is nothing to be cut or joined here.

/// In the place of the count: the rest is text.
const REFUSED: u32 = u32::MAX;
const HEAD: usize = 8;
const SLOT: usize = 8;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To keep the descriptors that came with the packet.
    Keep {
        /// Names the request in its reply.
        id: u32,
        /// How many there should be.
        count: u32,
    },
    /// To close all of this connection that nobody has claimed. Not answered.
    Forget,
}

/// A packet that is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request has 8 bytes, not {length}")]
pub struct BadLength {
    /// The id to answer with: 0 where the packet is too short to have one.
    pub id: u32,
    length: usize,
}

impl Request {
    /// Reads a packet of a client.
    ///
    /// # Errors
    /// The packet has another length.
    pub fn parse(packet: &[u8]) -> Result<Self, BadLength> {
        let id = || number(packet.get(4..8));
        match (packet.len(), number(packet.get(..4)), id()) {
            (HEAD, 0, 0) => Ok(Self::Forget),
            (HEAD, count, id) => Ok(Self::Keep { id, count }),
            (length, _, id) => Err(BadLength { id, length }),
        }
    }

    /// The packet of a client.
    #[must_use]
    pub fn packet(self) -> Vec<u8> {
        match self {
            Self::Keep { id, count } => head(id, count),
            Self::Forget => head(0, 0),
        }
    }
}

/// The answer to a [`Request::Keep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// They are kept, in these slots.
    Kept(Vec<u64>),
    /// None is kept, and why.
    Refused(String),
}

impl Reply {
    /// The packet of the server.
    #[must_use]
    pub fn packet(&self, id: u32) -> Vec<u8> {
        match self {
            Self::Kept(slots) => {
                // As many as came in one message, which is a few hundred.
                let mut packet = head(id, u32::try_from(slots.len()).unwrap_or(REFUSED));
                packet.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
                packet
            }
            Self::Refused(text) => {
                let mut packet = head(id, REFUSED);
                packet.extend_from_slice(text.as_bytes());
                packet
            }
        }
    }

    /// Reads a packet of the server: the id and the reply; `None` when it is none.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<(u32, Self)> {
        let (head, rest) = packet.split_at_checked(HEAD)?;
        let (count, id) = (number(head.get(..4)), number(head.get(4..)));
        if count == REFUSED {
            return Some((id, Self::Refused(String::from_utf8_lossy(rest).into_owned())));
        }
        let (slots, odd) = rest.as_chunks::<SLOT>();
        let complete = odd.is_empty() && u32::try_from(slots.len()) == Ok(count);
        complete.then(|| (id, Self::Kept(slots.iter().map(|slot| u64::from_le_bytes(*slot)).collect())))
    }
}

fn head(id: u32, count: u32) -> Vec<u8> {
    [count.to_le_bytes(), id.to_le_bytes()].concat()
}

/// 0 where there are not four bytes.
fn number(bytes: Option<&[u8]>) -> u32 {
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_these_bytes() {
        let keep = Request::Keep { id: 0x0102_0304, count: 253 };
        assert_eq!(keep.packet(), [253, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(Request::Forget.packet(), [0; 8]);
        let kept = Reply::Kept(vec![1, 0x0102_0304_0506_0708]);
        assert_eq!(kept.packet(7), [2, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(Reply::Refused("no".to_owned()).packet(7), [0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0, b'n', b'o']);
        assert_eq!(Reply::Kept(Vec::new()).packet(0), [0; 8]);
    }

    #[test]
    fn a_request_is_eight_bytes_and_all_of_its_count_matters() {
        assert_eq!(Request::parse(&[0; 8]), Ok(Request::Forget));
        for (count, id) in [(0, 1), (1, 0), (253, 9), (256, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(Request::parse(&head(id, count)), Ok(Request::Keep { id, count }));
            assert_eq!(Request::parse(&Request::Keep { id, count }.packet()), Ok(Request::Keep { id, count }));
        }
        for (packet, id) in [(&[][..], 0), (&[1; 7], 0), (&[1, 0, 0, 0, 5, 0, 0, 0, 0], 5), (&[0; 16], 0)] {
            let error = Request::parse(packet).unwrap_err();
            assert_eq!((error.id, error.to_string()), (id, format!("a request has 8 bytes, not {}", packet.len())));
        }
    }

    #[test]
    fn a_reply_is_read_as_it_was_written_and_a_torn_one_is_none() {
        for reply in [Reply::Kept(Vec::new()), Reply::Kept(vec![3, u64::MAX]), Reply::Refused("näh".to_owned())] {
            assert_eq!(Reply::parse(&reply.packet(5)), Some((5, reply)));
        }
        let packet = Reply::Kept(vec![1, 2]).packet(5);
        for length in (0..packet.len()).chain([packet.len() + 1]) {
            let torn: Vec<_> = packet.iter().copied().chain([0]).take(length).collect();
            assert_eq!(Reply::parse(&torn), None, "{length}");
        }
    }
}
