//! Header blocks: names and values, compressed (spec 5.2, 5.3).
//!
//! The blocks of one direction are one zlib stream with a preset dictionary, each ended by a sync flush. So a reader must
//! inflate every block, in order, whatever becomes of its stream; an error there ends the connection. What is wrong with
//! the *contents* of a block is an error of its stream alone.
//!
//! Outbound blocks are stored, not compressed: a zlib header once, then for each block a stored deflate block and an empty
//! one as the flush. Every inflater takes that, and it saves a compressor of hundreds of KiB per connection.

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress};

use super::error::{ConnectionError, HeaderError};

/// The preset dictionary of SPDY/3, in both directions.
const DICTIONARY: &[u8; 1423] = include_bytes!("dictionary.bin");
/// What begins a zlib stream that uses it: deflate with a window of 32 KiB, "with dictionary", its Adler-32.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
/// The longest stored block of deflate, in bytes.
const MAX_STORED: usize = 0xffff;

/// The largest block taken, inflated, in bytes.
const MAX_INFLATED: usize = 64 << 10;
/// The most headers taken in one block.
const MAX_HEADERS: usize = 64;
/// The longest name taken, in bytes.
const MAX_NAME: usize = 256;
/// The longest value taken, in bytes.
const MAX_VALUE: usize = 8 << 10;
/// By how much room for an inflated block grows: most have less than 100 bytes.
const STEP: usize = 512;

/// The headers of a stream. Names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(Bytes, Bytes)>);

impl Headers {
    /// The value of `name`, the first one if several were joined by NUL. Any bytes may come.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(n, _)| n == name.as_bytes())?;
        value.split(|byte| *byte == 0).next()
    }

    /// Reads an inflated block.
    fn parse(mut block: Bytes) -> Result<Self, HeaderError> {
        let count = block.try_get_u32().map_err(|_| HeaderError::Malformed)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= MAX_HEADERS).ok_or(HeaderError::TooMany)?;
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_string(&mut block, MAX_NAME, HeaderError::Name)?;
            let value = take_string(&mut block, MAX_VALUE, HeaderError::Value)?;
            if !is_name(&name) {
                return Err(HeaderError::Name);
            }
            if headers.iter().any(|(before, _)| *before == name) {
                return Err(HeaderError::Duplicate);
            }
            headers.push((name, value));
        }
        if block.is_empty() { Ok(Self(headers)) } else { Err(HeaderError::Malformed) }
    }
}

/// Takes a length and so many bytes.
fn take_string(block: &mut Bytes, longest: usize, too_long: HeaderError) -> Result<Bytes, HeaderError> {
    let length = block.try_get_u32().map_err(|_| HeaderError::Malformed)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= longest).ok_or(too_long)?;
    if length > block.len() {
        return Err(HeaderError::Malformed);
    }
    Ok(block.split_to(length))
}

/// What a name may be: not one of HTTP's own for the connection, and nothing that could be written in two ways.
fn is_name(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 5] = [b"connection", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding"];
    !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
        && !FORBIDDEN.contains(&name)
}

/// Reads the header blocks of one direction of one connection.
#[derive(Debug, Default)]
pub struct HeaderReader {
    /// 20 to 48 KiB, made for the first block.
    inflate: Option<Decompress>,
}

impl HeaderReader {
    /// A reader of a connection's first block.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Inflates and reads the next block. The inner error is about this block alone.
    ///
    /// # Errors
    /// The block cannot be inflated, or becomes too large: no later block can be read.
    pub fn read(&mut self, block: &[u8]) -> Result<Result<Headers, HeaderError>, ConnectionError> {
        Ok(Headers::parse(self.inflate(block)?.into()))
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, ConnectionError> {
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(true));
        let mut inflated = Vec::new();
        loop {
            // One byte more than allowed tells that it would be more.
            if inflated.len() > MAX_INFLATED {
                return Err(ConnectionError::HeaderBomb);
            }
            inflated.reserve_exact(inflated.len().max(STEP).min(MAX_INFLATED + 1 - inflated.len()));
            let (taken, made) = (inflate.total_in(), inflated.len());
            let result = inflate.decompress_vec(block, &mut inflated, FlushDecompress::Sync);
            let taken = usize::try_from(inflate.total_in() - taken).unwrap_or(block.len());
            block = &block[taken..];
            match result {
                // An end was announced: there would be no later block.
                Ok(flate2::Status::StreamEnd) => return Err(ConnectionError::Inflate),
                Ok(_) if inflated.len() < inflated.capacity() => {
                    if block.is_empty() {
                        return Ok(inflated);
                    }
                    if taken == 0 && inflated.len() == made {
                        return Err(ConnectionError::Inflate);
                    }
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    inflate.set_dictionary(DICTIONARY).map_err(|_| ConnectionError::Inflate)?;
                }
                Err(_) => return Err(ConnectionError::Inflate),
            }
        }
    }
}

/// Writes the header blocks of one direction of one connection.
#[derive(Debug, Default)]
pub struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// A writer of a connection's first block.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next block. Names are lower case and come once; a block has less than 64 KiB.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        push_number(&mut plain, headers.len());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            push_number(&mut plain, text.len());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(ZLIB_HEADER.len() + plain.len() + 10);
        if !std::mem::replace(&mut self.begun, true) {
            block.extend(ZLIB_HEADER);
        }
        for stored in plain.chunks(MAX_STORED).chain([&[][..]]) {
            let length = u16::try_from(stored.len()).unwrap_or(u16::MAX);
            block.push(0); // Not the last block; stored; padding up to the byte.
            block.extend(length.to_le_bytes());
            block.extend((!length).to_le_bytes());
            block.extend_from_slice(stored);
        }
        block
    }
}

fn push_number(plain: &mut Vec<u8>, number: usize) {
    plain.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| (Bytes::from(*name), Bytes::from(*value))).collect())
    }

    /// An uncompressed block with any bytes.
    fn plain(count: u32, strings: &[&[u8]]) -> Vec<u8> {
        let strings =
            strings.iter().flat_map(|text| [&u32::try_from(text.len()).unwrap().to_be_bytes(), *text].concat());
        count.to_be_bytes().into_iter().chain(strings).collect()
    }

    /// A block as zlib compresses it, in a stream of its own.
    fn compressed(plain: &[u8]) -> Vec<u8> {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(DICTIONARY).unwrap();
        let mut block = Vec::with_capacity(plain.len() + 64);
        compress.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    fn read(plain: &[u8]) -> Result<Result<Headers, HeaderError>, ConnectionError> {
        HeaderReader::new().read(&compressed(plain))
    }

    // Spec item 60; the vectors of 5.3, recorded from Go.
    #[test]
    fn the_golden_blocks_are_read_in_sequence() {
        let stream_type = |value| headers(&[("streamtype", value)]);
        let forward = |value| headers(&[("port", "8080"), ("requestid", "0"), ("streamtype", value)]);
        let start = "78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff";
        for connection in [
            &[("78f9e3c6a7c26260606000000000ffff", headers(&[])), ("026100000000ffff", headers(&[]))][..],
            &[
                (start, stream_type("error")),
                ("c22e555c92929907000000ffff", stream_type("stdin")),
                ("c22ac5565c92925f5a02000000ffff", stream_type("stdout")),
                ("c229975a5404000000ffff", stream_type("stderr")),
            ],
            &[
                (
                    "78f9e3c6a7c202253a48f95b044eea160616060c0c0c9c4590f8ca04a5634603704a2c294a4dcc851636aca9a0a800000000ffff",
                    forward("error"),
                ),
                ("225333a8a44a04000000ffff", forward("data")),
            ],
        ] {
            let mut reader = HeaderReader::new();
            for (block, expected) in connection {
                let mut found = reader.read(&hex(block)).unwrap().unwrap();
                found.0.sort();
                assert_eq!(found, *expected, "{block}");
            }
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
        let long = "v".repeat(MAX_VALUE);
        for pairs in [&[][..], &[("streamtype", "error")], &[("a", &long), ("b", "")], &[]] {
            let found = reader.read(&writer.write(pairs)).unwrap().unwrap();
            assert_eq!(found.0.len(), pairs.len());
            for (name, value) in pairs {
                assert_eq!(found.value(name), Some(value.as_bytes()));
            }
        }
        assert_eq!(HeaderWriter::new().write(&[]), hex("78f9e3c6a7c2000400fbff00000000000000ffff"));
    }

    #[test]
    fn of_joined_values_the_first_counts() {
        let found = read(&plain(1, &[b"port", b"80\x00443"])).unwrap().unwrap();
        assert_eq!((found.value("port"), found.value("Port")), (Some(&b"80"[..]), None));
    }

    // Spec 5.11 and items 72 and 83.
    #[test]
    fn bad_contents_are_an_error_of_the_stream_alone() {
        let long = vec![b'x'; MAX_VALUE + 1];
        for (block, error) in [
            (plain(u32::MAX, &[]), HeaderError::TooMany),
            (plain(65, &[]), HeaderError::TooMany),
            (plain(1, &[]), HeaderError::Malformed),
            (vec![0, 0, 0], HeaderError::Malformed),
            (plain(0, &[b"x"]), HeaderError::Malformed),
            ([&plain(1, &[])[..], &[0xff; 4]].concat(), HeaderError::Name),
            ([&plain(1, &[b"a"])[..], &[0, 0, 0, 2, b'x']].concat(), HeaderError::Malformed),
            (plain(1, &[&long[..=MAX_NAME], b""]), HeaderError::Name),
            (plain(1, &[b"x", &long]), HeaderError::Value),
            (plain(1, &[b"Port", b"80"]), HeaderError::Name),
            (plain(1, &[b"", b"80"]), HeaderError::Name),
            (plain(1, &[b"p\xff", b"80"]), HeaderError::Name),
            (plain(1, &[b"host", b"x"]), HeaderError::Name),
            (plain(2, &[b"port", b"80", b"port", b"80"]), HeaderError::Duplicate),
        ] {
            assert_eq!(read(&block), Ok(Err(error)));
        }
    }

    // Spec item 71: 64 KiB that would become 64 MiB.
    #[test]
    fn a_header_bomb_is_refused_while_it_inflates() {
        let bomb = compressed(&vec![0; 60 << 20]);
        assert!(bomb.len() < 64 << 10);
        assert_eq!(HeaderReader::new().read(&bomb), Err(ConnectionError::HeaderBomb));
        assert_eq!(HeaderReader::new().inflate(&compressed(&vec![0; MAX_INFLATED])).unwrap().len(), MAX_INFLATED);
        assert_eq!(read(&vec![0; MAX_INFLATED + 1]), Err(ConnectionError::HeaderBomb));
    }

    #[test]
    fn what_cannot_be_inflated_ends_the_connection() {
        let finished = {
            let mut compress = Compress::new(Compression::fast(), true);
            compress.set_dictionary(DICTIONARY).unwrap();
            let mut block = Vec::with_capacity(64);
            compress.compress_vec(&plain(0, &[]), &mut block, FlushCompress::Finish).unwrap();
            block
        };
        for block in [&b"GET / HTTP/1.1"[..], &hex("78f9e3c6a7c3"), &hex("78f9e3c6a7c2ff"), &finished] {
            assert_eq!(HeaderReader::new().read(block), Err(ConnectionError::Inflate));
        }
    }
}
