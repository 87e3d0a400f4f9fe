//! The literal filter by itself: bytes pass through it as they come from a network.

use crate::{Places, corpus, cpu, rate, rule_files, tell};
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::Duration;
use vscan_scan::engine::filter::{Filter, Seen, Stream};
use vscan_scan::engine::needle::{How, NEEDLE_MAX, NEEDLE_MIN, Needle};
use yara_x_parser::Parser;
use yara_x_parser::ast::{AST, Pattern};

/// Literals, and how many of them are shorter than [`LONG`].
const LITERALS: usize = 10_000;
const SHORT: usize = 900;
/// From this length on a literal is found by windows at every fourth byte.
const LONG: usize = 11;

/// Bytes of binaries and of texts each, and how they come.
const BYTES: u64 = 32 << 20;
const CHUNK: usize = 64 << 10;
const ROUNDS: u64 = 5;

pub(crate) fn run(places: &Places) -> Result<()> {
    let filter = Filter::new(&literals(places)?);
    let mut files = corpus::elf(BYTES / 2)?;
    files.extend(corpus::pe(&places.programs, BYTES / 2)?);
    files.extend(corpus::texts(BYTES)?);
    let mut seen = Seen::new(&filter);
    let (mut time, mut bytes) = (Duration::ZERO, 0);
    for round in 0..=ROUNDS {
        for file in &files {
            seen.clear();
            let started = cpu();
            let mut stream = Stream::default();
            for len in (CHUNK..file.data.len()).step_by(CHUNK) {
                stream.grown(&filter, &file.data[..len], &mut seen, usize::MAX);
            }
            stream.ended(&filter, &file.data, &mut seen);
            std::hint::black_box(seen.list());
            if round > 0 {
                time += cpu() - started;
                bytes += file.data.len() as u64;
            }
        }
    }
    tell(rate(bytes, time), None);
    Ok(())
}

/// Texts that rules look for, long and short ones in their shares.
fn literals(places: &Places) -> Result<Vec<Needle>> {
    let (mut long, mut short) = (BTreeSet::new(), BTreeSet::new());
    for (_, text) in rule_files(&places.rules)? {
        for rule in AST::from(Parser::new(&text)).rules() {
            for pattern in rule.patterns.iter().flatten() {
                let Pattern::Text(text) = pattern else { continue };
                let modifiers = &text.modifiers;
                if modifiers.xor().is_some() || modifiers.base64().is_some() {
                    continue;
                }
                let mut bytes: Vec<u8> = text.text.value.to_vec();
                let how = if modifiers.nocase().is_some() { How::Nocase } else { How::Exact };
                if how == How::Nocase {
                    bytes.make_ascii_lowercase();
                }
                if modifiers.wide().is_some() && modifiers.ascii().is_none() {
                    bytes = bytes.iter().flat_map(|&b| [b, 0]).collect();
                }
                bytes.truncate(NEEDLE_MAX);
                let needle = Needle { bytes, how };
                match needle.bytes.len() {
                    LONG.. => long.insert(needle),
                    // What is of few different bytes no plan looks for.
                    NEEDLE_MIN.. if different(&needle.bytes) > 3 => short.insert(needle),
                    _ => false,
                };
            }
        }
    }
    let even = |all: BTreeSet<Needle>, most: usize| {
        let step = (all.len() / most).max(1);
        all.into_iter().step_by(step).take(most).collect::<Vec<_>>()
    };
    let mut literals = even(short, SHORT);
    literals.extend(even(long, LITERALS - SHORT));
    anyhow::ensure!(literals.len() == LITERALS, "only {} literals in the rules", literals.len());
    Ok(literals)
}

fn different(bytes: &[u8]) -> usize {
    bytes.iter().collect::<BTreeSet<_>>().len()
}
