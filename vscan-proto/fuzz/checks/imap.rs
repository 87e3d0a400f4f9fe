//! What the fuzz target for IMAP checks. An ordinary test (`tests/corpus.rs`) runs the same on the committed corpus.
//!
//! The function takes arbitrary bytes and panics when an invariant does not hold.

use vscan_proto::imap::{Data, Raw, Reader, Response};

/// The limit of the reader under test: small, so that the fuzzer finds its way over it.
const LIMIT: usize = 512;

/// A server's stream: the same responses wherever it is cut, never more held than the limit, and none that harms whoever
/// understands it.
pub(crate) fn response(data: &[u8]) {
    let (size, stream) = data.split_first().map_or((1, data), |(first, rest)| (*first, rest));
    let whole = read(stream, stream.len().max(1));
    let pieces = read(stream, usize::from(size) + 1);
    assert_eq!(whole, pieces);
    for raw in whole {
        let Response::Data(data) = Response::parse(&raw) else { continue };
        let Raw::Whole(bytes) = &raw else { panic!("what was read over has no data") };
        match data {
            // What is given on is no more than what came.
            Data::Search(numbers) => assert!(numbers.len() <= bytes.len()),
            Data::Fetch(fetch) => {
                for part in [fetch.header, fetch.body.map(|(_, bytes)| bytes)].into_iter().flatten()
                {
                    assert!(part.len() <= bytes.len());
                }
                // Flags and dates go back to the server in a command's line.
                for flag in fetch.flags.into_iter().flatten() {
                    assert!(flag.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
                }
                let date = fetch.date.unwrap_or_default();
                assert!(date.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"'));
            }
            _ => {}
        }
    }
}

/// All responses of a stream that comes in pieces of this size.
fn read(stream: &[u8], size: usize) -> Vec<Raw> {
    let mut reader = Reader::new(LIMIT);
    let mut all = Vec::new();
    for piece in stream.chunks(size) {
        reader.push(piece);
        while let Some(raw) = reader.next_response() {
            all.push(raw);
        }
        assert!(reader.buffered() <= LIMIT, "{} bytes are held", reader.buffered());
    }
    all
}
