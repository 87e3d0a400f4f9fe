//! Imploded zip members (method 6, APPNOTE.TXT 5.3): Shannon-Fano trees and a sliding dictionary.

use super::pump::{Decode, copy_back, malformed};
use crate::bytes::{Bits, First};
use std::io;

/// General purpose bit 1: the dictionary has 8 KiB instead of 4.
const LARGE_DICTIONARY: u16 = 1 << 1;
/// General purpose bit 2: literals have a tree of their own.
const LITERAL_TREE: u16 = 1 << 2;

/// A code tree as a table by the next 16 bits, the first of them the highest.
struct Tree(Vec<(u8, u8)>);

impl Tree {
    /// The bytes of the tree, and what follows it.
    fn parse(data: &[u8], symbols: usize) -> io::Result<(Self, &[u8])> {
        let wrong = || malformed("a code tree of an imploded member is wrong");
        let (&count, rest) = data.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        let (packed, rest) =
            rest.split_at_checked(usize::from(count) + 1).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut lengths = Vec::new();
        for &byte in packed {
            lengths.resize(lengths.len() + usize::from(byte >> 4) + 1, (byte & 15) + 1);
        }
        if lengths.len() != symbols {
            return Err(wrong());
        }
        let mut order: Vec<usize> = (0..symbols).collect();
        order.sort_by_key(|&symbol| lengths[symbol]);
        // The codes are given out from the longest to the shortest.
        let mut table = vec![(0, 0); 1 << 16];
        let mut code = 0usize;
        for &symbol in order.iter().rev() {
            let span = 1usize << (16 - lengths[symbol]);
            table
                .get_mut(code..code + span)
                .ok_or_else(wrong)?
                .fill((symbol as u8, lengths[symbol]));
            code += span;
        }
        Ok((Self(table), rest))
    }

    fn next(&self, bits: &mut Bits<'_>) -> io::Result<u32> {
        let ahead = (bits.peek(16) as u16).reverse_bits();
        let (symbol, len) = self.0[usize::from(ahead)];
        if len == 0 {
            return Err(malformed("a code that the tree does not have"));
        }
        bits.skip(len.into());
        bits.check()?;
        Ok(symbol.into())
    }
}

pub(crate) struct Implode<'a> {
    bits: Bits<'a>,
    literals: Option<Tree>,
    lengths: Tree,
    distances: Tree,
    /// Low bits of a distance that have no code.
    low: u32,
    left: u64,
}

impl<'a> Implode<'a> {
    /// `flags` are the member's, `size` its bytes when decoded, which alone say where it ends.
    pub(crate) fn new(mut data: &'a [u8], flags: u16, size: u64) -> io::Result<Self> {
        let mut literals = None;
        if flags & LITERAL_TREE != 0 {
            let (tree, rest) = Tree::parse(data, 256)?;
            (literals, data) = (Some(tree), rest);
        }
        let (lengths, rest) = Tree::parse(data, 64)?;
        let (distances, rest) = Tree::parse(rest, 64)?;
        let low = if flags & LARGE_DICTIONARY != 0 { 7 } else { 6 };
        Ok(Self {
            bits: Bits::new(rest, First::Low),
            literals,
            lengths,
            distances,
            low,
            left: size,
        })
    }
}

impl Decode for Implode<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let before = out.len();
        if self.bits.take(1) == 1 {
            let byte = match &self.literals {
                Some(tree) => tree.next(&mut self.bits)?,
                None => self.bits.take(8),
            };
            self.bits.check()?;
            out.push(byte as u8);
        } else {
            let low = self.bits.take(self.low);
            let distance = (self.distances.next(&mut self.bits)? << self.low | low) + 1;
            let mut len = self.lengths.next(&mut self.bits)?;
            if len == 63 {
                len += self.bits.take(8);
            }
            self.bits.check()?;
            len += if self.literals.is_some() { 3 } else { 2 };
            copy_back(out, distance as usize, len as usize, 0);
        }
        let given = (out.len() - before) as u64;
        if given > self.left {
            out.truncate(before + self.left as usize);
        }
        self.left = self.left.saturating_sub(given);
        Ok(true)
    }
}
