//! Any stream in any cuts through the line splitter: pieces and line feeds together are the input.
#![no_main]

use holdfast::format::line::{LineSplitter, MAX_LINE};
use libfuzzer_sys::fuzz_target;

// The first byte is the size of the cuts, the second how often each byte behind them is repeated: lines longer than one
// piece come up without huge inputs.
fuzz_target!(|data: &[u8]| {
    let [cut, repeat, data @ ..] = data else { return };
    let stream: Vec<u8> = data.iter().flat_map(|byte| std::iter::repeat_n(*byte, usize::from(*repeat) + 1)).collect();
    let (mut splitter, mut joined) = (LineSplitter::default(), Vec::new());
    for part in stream.chunks(usize::from(*cut) * 64 + 1) {
        let used = splitter.feed(part, |piece| {
            assert!(piece.bytes.len() <= MAX_LINE && !piece.bytes.contains(&b'\n'));
            assert!(piece.ends_line || piece.bytes.len() == MAX_LINE);
            joined.extend_from_slice(piece.bytes);
            joined.extend(piece.ends_line.then_some(b'\n'));
            true
        });
        assert_eq!(used, part.len());
    }
    joined.extend(splitter.finish().unwrap_or_default());
    assert_eq!(joined, stream);
});
