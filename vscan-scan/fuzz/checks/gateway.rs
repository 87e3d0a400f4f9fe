//! What the gateway reads itself, outside of the sandbox: the first bytes of a file, and the answers of workers.

use vscan_scan::formats;
use vscan_scan::repair;
use vscan_scan::wire::{Answer, Pieces, Response};

/// The format of a file by its beginning, and whether an extension, its first three bytes, fits.
pub(crate) fn head(data: &[u8]) {
    let head = formats::of_head(data);
    let known = formats::by_name(head.name());
    assert!(known.is_some() || head == formats::Head::Data, "{}", head.name());
    let extension = String::from_utf8_lossy(&data[..data.len().min(3)]).into_owned();
    let of_it = formats::of_extension(&extension).any(|f| Some(f) == known);
    assert!(!of_it || formats::agrees(&extension, head), "{extension} {}", head.name());
}

/// Datagrams of a worker that is in an attacker's hands, each behind its length; the object is what they are.
pub(crate) fn answers(data: &[u8]) {
    const ANSWER_MAX: usize = 1 << 20;
    let mut rest = data;
    let mut pieces = Pieces::new(1, ANSWER_MAX);
    while let Some((&[a, b], behind)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([a, b])).min(behind.len());
        let Ok(response) = postcard::from_bytes::<Response>(&behind[..len]) else { return };
        match pieces.push(response) {
            Ok(None) => rest = &behind[len..],
            Ok(Some(Answer::Repair(repair::Answer::Repaired(repaired)))) => {
                let with: usize = repaired.edits.iter().map(|e| e.with.len()).sum();
                assert!(repaired.apply(data).len() <= data.len() + with);
                return;
            }
            Ok(Some(_)) | Err(_) => return,
        }
    }
}
