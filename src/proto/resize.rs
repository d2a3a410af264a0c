//! Sizes of the client's terminal: a stream of JSON objects, `{"Width":80,"Height":24}` (streaming spec 4.2).
//!
//! On a WebSocket each message is such a stream of its own. Over SPDY there is one for the session, and objects are cut
//! and joined as frames fall.

use serde_json::Value;

use crate::model::WindowSize;

/// Bytes kept of an object that is not complete. A size takes about 30; what is longer is none, and is dropped.
const MAX_OBJECT: usize = 4 << 10;

/// Reads the sizes of a SPDY resize stream.
#[derive(Debug, Default)]
pub struct ResizeReader {
    /// The begin of an object; less than [`MAX_OBJECT`] bytes.
    kept: Vec<u8>,
}

impl ResizeReader {
    /// A reader of a stream's first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what came and returns the last size that is complete with it; the ones before it are out of date. Broken JSON
    /// is skipped up to the next object, so that later sizes are still seen.
    pub fn read(&mut self, bytes: &[u8]) -> Option<WindowSize> {
        // In steps, so that a long piece needs no more memory than a short one.
        bytes.chunks(MAX_OBJECT / 2).filter_map(|step| self.read_step(step)).last()
    }

    fn read_step(&mut self, bytes: &[u8]) -> Option<WindowSize> {
        self.kept.extend_from_slice(bytes);
        let mut last = None;
        let mut rest = &self.kept[..];
        loop {
            // Nothing but an object is of interest.
            rest = &rest[memchr::memchr(b'{', rest).unwrap_or(rest.len())..];
            let mut objects = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
            match objects.next() {
                Some(Ok(object)) => {
                    last = size(&object).or(last);
                    rest = &rest[objects.byte_offset()..];
                }
                Some(Err(error)) if !error.is_eof() || rest.len() >= MAX_OBJECT => rest = &rest[1..],
                Some(Err(_)) | None => break,
            }
        }
        self.kept = rest.to_vec();
        last
    }
}

/// The last size in a stream of JSON objects, none of whose dimensions is 0. What follows broken JSON is not looked at.
pub(super) fn last_size(json: &[u8]) -> Option<WindowSize> {
    let objects = serde_json::Deserializer::from_slice(json).into_iter::<Value>();
    objects.map_while(Result::ok).filter_map(|object| size(&object)).last()
}

/// Reads a size as Go does, which ignores the case of keys.
fn size(object: &Value) -> Option<WindowSize> {
    let dimension = |name: &str| {
        let (_, value) = object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        u16::try_from(value.as_u64()?).ok().filter(|value| *value > 0)
    };
    Some(WindowSize { cols: dimension("width")?, rows: dimension("height")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::testing::{Random, split_invariant};

    /// The size that holds after all of a stream, at all kinds of cuts.
    fn last(json: &str) -> Option<(u16, u16)> {
        let mut sizes = split_invariant(json.as_bytes(), ResizeReader::new, |reader, input, sizes: &mut Vec<_>| {
            // Which sizes are out of date depends on the cuts; the last one does not.
            if let Some(size) = reader.read(&input.split()) {
                *sizes = vec![(size.cols, size.rows)];
            }
        });
        sizes.pop()
    }

    #[test]
    fn objects_are_found_however_they_are_cut() {
        for (json, expected) in [
            ("{\"Width\":80,\"Height\":24}\n", Some((80, 24))),
            ("{\"Width\":80,\"Height\":24}{\"width\": 100, \"HEIGHT\" :30}\r\n", Some((100, 30))),
            ("{\"Width\":80,\"Height\":24}\n{\"Width\":0,\"Height\":24}\n", Some((80, 24))),
            ("{\"Width\":80,\"Height\":24}\n{\"Width\":", Some((80, 24))),
            ("null 5 [] \"x\" }}", None),
            ("", None),
        ] {
            assert_eq!(last(json), expected, "{json}");
        }
    }

    // Spec 2.4: a server that gave up at broken JSON was deaf from then on.
    #[test]
    fn broken_json_does_not_hide_what_follows() {
        let good = "{\"Width\":7,\"Height\":8}\n";
        for bad in ["boom", "{", "{x}", "{\"Width\":nul}", "{{{", "{\"a\":}", &format!("{{\"{}", "x".repeat(5000))] {
            assert_eq!(last(&format!("{bad}\n{good}")), Some((7, 8)), "{bad}");
        }
    }

    // Spec item 59.
    #[test]
    fn what_never_completes_is_not_kept() {
        let mut reader = ResizeReader::new();
        for _ in 0..1000 {
            assert_eq!(reader.read(b"{\"Width\":[[[["), None);
            assert!(reader.kept.len() < MAX_OBJECT);
        }
        let mut random = Random(13);
        for _ in 0..2000 {
            let len = random.below(30);
            let _ = reader.read(&random.bytes(len));
            assert!(reader.kept.len() < MAX_OBJECT);
        }
    }
}
