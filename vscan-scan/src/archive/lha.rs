//! LHA (`.lzh`): members of all header levels, by the crate delharc.

use crate::object::{Place, Walk};
use crate::report::Reason;
use delharc::{CompressionMethod, LhaDecodeReader};
use std::io;

/// True when a header begins the data: a method of the three families, and a level that exists.
pub(crate) fn begins(data: &[u8]) -> bool {
    data.len() > 24
        && data[2] == b'-'
        && data[6] == b'-'
        && (data[3..5] == *b"lh" || data[3..5] == *b"lz" || data[3..5] == *b"pm")
        && data[20] <= 3
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let reader = super::guard::caught(|| LhaDecodeReader::new(data).map_err(io::Error::from));
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(e) => return walk.failed("lha", &e),
    };
    loop {
        if walk.stopped() {
            return;
        }
        let header = reader.header();
        let name = super::guard::caught(|| Ok(header.parse_pathname_to_str())).unwrap_or_default();
        let packed = header.compressed_size;
        let method = super::name(&header.compression);
        if !matches!(header.compression_method(), Ok(CompressionMethod::Lhd))
            && header.original_size > 0
        {
            if reader.is_decoder_supported() {
                walk.decoded(&name, packed, &mut reader);
            } else {
                walk.within(&name, |walk| {
                    walk.note(
                        Reason::Unsupported,
                        &format!("lha method {method} cannot be opened"),
                    );
                });
            }
        }
        match super::guard::caught(|| reader.next_file().map_err(io::Error::from)) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                walk.failed("lha", &e);
                break;
            }
        }
    }
    let rest = super::guard::caught(|| Ok(reader.take_inner())).ok().flatten().unwrap_or_default();
    if rest.iter().any(|&b| b != 0) {
        walk.part("behind the end", rest, Place::File);
    }
}
