//! The header `traceparent`: to which distributed trace a call belongs
//! (W3C Trace Context, <https://www.w3.org/TR/trace-context/#traceparent-header>).

use std::fmt;

/// The length of version 00, and of what every later version begins with.
const LENGTH: usize = 55;

/// The 16 bytes of a trace's number; prints as the 32 digits that tools show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A span of somebody else's, of which ours are children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace that both belong to.
    pub trace: TraceId,
    /// The caller's span.
    pub span: [u8; 8],
    /// The caller records the trace.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads a header's value; `None` for what the standard says to ignore: anything but lower-case digits in the right
    /// places, ids of zeros, version ff. Of later versions the fields known today are read.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_at_checked(LENGTH)?;
        let version: [u8; 1] = hex(&head[..2])?;
        let rest_fits = if version == [0] { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
        let dashes = [2, 35, 52].into_iter().all(|at| head[at] == b'-');
        if version == [0xff] || !rest_fits || !dashes {
            return None;
        }
        let (trace, span, [flags]) = (hex(&head[3..35])?, hex(&head[36..52])?, hex::<1>(&head[53..])?);
        let parent = Self { trace: TraceId(trace), span, sampled: flags & 1 != 0 };
        (trace != [0; 16] && span != [0; 8]).then_some(parent)
    }
}

/// So many bytes from twice as many lower-case hexadecimal digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn the_example_of_the_standard_is_read() {
        let parent = parse(EXAMPLE).unwrap();
        assert_eq!(parent.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((parent.span, parent.sampled), ([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31], true));
    }

    #[test]
    fn of_the_flags_only_sampled_counts() {
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("ff", true), ("fe", false)] {
            let parent = parse(&format!("{}{flags}", &EXAMPLE[..53])).unwrap();
            assert_eq!(parent.sampled, sampled, "{flags}");
        }
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        let known = parse(EXAMPLE);
        for version in ["01", "cc", "fe"] {
            let text = format!("{version}{}", &EXAMPLE[2..]);
            assert_eq!(parse(&text), known);
            assert_eq!(parse(&format!("{text}-what-the-future-brings")), known);
            assert_eq!(parse(&format!("{text}.what")), None, "the flags have two digits in every version");
        }
        assert_eq!(parse(&format!("ff{}", &EXAMPLE[2..])), None);
    }

    #[test]
    fn anything_else_is_ignored() {
        let zero = |from: usize, to: usize| format!("{}{}{}", &EXAMPLE[..from], "0".repeat(to - from), &EXAMPLE[to..]);
        let with = |at: usize, byte: char| format!("{}{byte}{}", &EXAMPLE[..at], &EXAMPLE[at + 1..]);
        for text in [
            String::new(),
            "00".to_owned(),
            EXAMPLE[..54].to_owned(),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE} "),
            format!(" {EXAMPLE}"),
            EXAMPLE.to_uppercase(),
            zero(3, 35),
            zero(36, 52),
            with(2, '_'),
            with(35, '0'),
            with(52, '+'),
            with(0, 'g'),
            with(10, 'A'),
            with(40, '\0'),
            with(54, 'é'),
            format!("{EXAMPLE}{EXAMPLE}"),
        ] {
            assert_eq!(parse(&text), None, "{text:?}");
        }
        for at in 0..EXAMPLE.len() {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            bytes[at] = 0xff;
            assert_eq!(TraceParent::parse(&bytes), None, "at {at}");
        }
    }
}
