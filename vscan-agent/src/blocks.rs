//! BLAKE3 of an object and of each of its 64 KiB blocks, in one pass over its bytes.
//!
//! A block's hash is the chaining value of its subtree, so that the object's hash is made of those of
//! its blocks and nothing is hashed twice. It depends on where the block lies; it is no hash of the
//! block by itself.

use blake3::{
    Hasher,
    hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};

/// Bytes of a block: a whole subtree of BLAKE3 (64 chunks of 1 KiB).
pub const BLOCK: usize = 64 * 1024;

/// Hash of a block at its place.
pub type BlockHash = [u8; blake3::OUT_LEN];

/// Hash of the block that begins at `offset`, a multiple of [`BLOCK`], of an object with several blocks.
///
/// # Panics
/// When `bytes` is empty or longer than a block, or the offset no multiple.
pub fn block_hash(offset: u64, bytes: &[u8]) -> BlockHash {
    assert!((1..=BLOCK).contains(&bytes.len()), "{} bytes are no block", bytes.len());
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// Takes an object's bytes in order.
#[derive(Debug, Default)]
pub struct BlockHasher {
    hasher: Hasher,
    /// Bytes in `hasher`.
    filled: usize,
    done: Vec<BlockHash>,
}

impl BlockHasher {
    /// Appends bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == BLOCK {
                self.end_block();
            }
            let count = bytes.len().min(BLOCK - self.filled);
            let (block, rest) = bytes.split_at(count);
            self.hasher.update(block);
            self.filled += count;
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        self.done.push(self.hasher.finalize_non_root());
        self.hasher = Hasher::new();
        self.hasher.set_input_offset((self.done.len() * BLOCK) as u64);
        self.filled = 0;
    }

    /// Hash of the first block, once bytes behind it have come.
    pub fn first(&self) -> Option<BlockHash> {
        self.done.first().copied()
    }

    /// The object's hash and its blocks'. An object of one block has the object's hash for it.
    pub fn finish(mut self) -> (blake3::Hash, Vec<BlockHash>) {
        if self.done.is_empty() {
            let hash = self.hasher.finalize();
            return (hash, vec![*hash.as_bytes()]);
        }
        self.end_block();
        let (left, right) = self.done.split_at(left_blocks(self.done.len()));
        let hash = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
        (hash, self.done)
    }
}

/// Blocks of the left subtree: the largest power of two below `count` (BLAKE3 section 2.1).
fn left_blocks(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn subtree(blocks: &[BlockHash]) -> BlockHash {
    match blocks {
        [block] => *block,
        blocks => {
            let (left, right) = blocks.split_at(left_blocks(blocks.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 % 253) as u8).collect()
    }

    #[test]
    fn the_hash_is_blake3_and_blocks_are_found_again() {
        let sizes = [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 5];
        for len in sizes.into_iter().chain([7 * BLOCK + 1, 8 * BLOCK, 1_000_003]) {
            let bytes = pattern(len);
            for step in [1000, BLOCK, 300_000] {
                let mut hasher = BlockHasher::default();
                bytes.chunks(step).for_each(|piece| hasher.update(piece));
                let first = hasher.first();
                let (hash, blocks) = hasher.finish();
                assert_eq!(hash, blake3::hash(&bytes), "{len} by {step}");
                assert_eq!(blocks.len(), len.div_ceil(BLOCK).max(1));
                if blocks.len() > 1 {
                    assert_eq!(first, Some(blocks[0]));
                    for (at, block) in bytes.chunks(BLOCK).enumerate() {
                        assert_eq!(
                            block_hash((at * BLOCK) as u64, block),
                            blocks[at],
                            "{len} {at}"
                        );
                    }
                    // The same bytes elsewhere are another block.
                    let moved = block_hash((blocks.len() * BLOCK) as u64, &bytes[..BLOCK]);
                    assert_ne!(moved, blocks[0]);
                }
            }
        }
    }
}
