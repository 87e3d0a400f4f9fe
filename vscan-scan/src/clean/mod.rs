//! Taking an infection out of a document or an archive, so that the rest of it stays usable.
//!
//! Only what is well-formed is touched: an archive with bytes that its directory does not account for, or a
//! document that cannot be read by the letter, is refused. Members are known again by their bytes. The result is
//! scanned by whoever asked for it, so nothing here has to be believed.

mod office;
mod ole;
mod tar;
mod zip;

use crate::archive::caught;
use crate::object;
use crate::sniff::Kind;
use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use std::io::{Read, Write};

/// A part on the way from a portion down to what is infected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Its name in its container.
    pub(crate) name: &'a str,
    /// Its type.
    pub(crate) kind: Kind,
    /// [`object::hash`] of its bytes.
    pub(crate) hash: u64,
}

/// The way from a portion to something infected in it; empty where it is infected itself.
type Chain<'a> = &'a [Member<'a>];

/// Cleans `content`; each chain leads from one of its members to something infected, and is empty where the
/// content itself is. At most `most` bytes are unpacked. Gives the new content and what was done.
///
/// # Errors
/// Why it cannot be cleaned, in words.
pub(crate) fn clean(
    kind: Kind,
    content: &[u8],
    chains: &[Vec<Member<'_>>],
    most: u64,
) -> Result<(Vec<u8>, String), String> {
    let chains: Vec<Chain<'_>> = chains.iter().map(|c| &c[..]).collect();
    cleaned(kind, content, &chains, most)
}

fn cleaned(
    kind: Kind,
    content: &[u8],
    chains: &[Chain<'_>],
    most: u64,
) -> Result<(Vec<u8>, String), String> {
    match kind {
        Kind::Zip => {
            let archive = zip::Archive::parse(content)?;
            if office::has_macros(&archive)
                && chains.iter().all(|c| c.first().is_none_or(|m| office::is_macro(m.name)))
            {
                let content = office::without_macros(&archive, most)?;
                return Ok((content, "macros removed".into()));
            }
            if office::is_document(&archive) {
                return Err("something other than macros in a document".into());
            }
            let mut room = most;
            let mut contents = Vec::new();
            for entry in &archive.entries {
                let content = archive.content(entry, room)?;
                room -= (content.len() as u64).min(room);
                contents.push(content);
            }
            let (kept, detail) = members(contents.iter().map(|c| &c[..]), chains, Some(most))?;
            Ok((archive.rebuilt(&kept)?, detail))
        }
        Kind::Tar => {
            let archive = tar::Archive::parse(content)?;
            let contents = archive.members.iter().map(|m| &content[m.data.clone()]);
            let (kept, detail) = members(contents, chains, None)?;
            Ok((archive.rebuilt(&kept), detail))
        }
        Kind::Gzip => gzip(content, chains, most),
        Kind::Ole => Ok((ole::without_macros(content)?, "macros removed".into())),
        _ => Err(format!("{} cannot be cleaned", kind.label())),
    }
}

/// What becomes of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    /// Its bytes are replaced by these.
    Cleaned(Vec<u8>),
}

/// Decides on each member: one that leads to something infected is cleaned if that is possible, else dropped.
/// Without `most` none can be replaced.
fn members<'c>(
    contents: impl Iterator<Item = &'c [u8]>,
    chains: &[Chain<'_>],
    most: Option<u64>,
) -> Result<(Vec<Fate>, String), String> {
    if chains.iter().any(|c| c.is_empty()) {
        return Err("found in the archive as a whole".into());
    }
    let mut fates = Vec::new();
    let mut found = vec![false; chains.len()];
    let (mut dropped, mut cleaned) = (0, 0);
    for content in contents {
        let hash = object::hash(content);
        let mut inner: Vec<Chain<'_>> = Vec::new();
        let mut kind = Kind::Data;
        for (chain, found) in chains.iter().zip(&mut found) {
            if chain[0].hash == hash {
                *found = true;
                kind = chain[0].kind;
                inner.push(&chain[1..]);
            }
        }
        fates.push(if inner.is_empty() {
            Fate::Kept
        } else if let Some(most) = most
            && let Ok((content, _)) = self::cleaned(kind, content, &inner, most)
        {
            cleaned += 1;
            Fate::Cleaned(content)
        } else {
            dropped += 1;
            Fate::Dropped
        });
    }
    if found.contains(&false) {
        return Err("a member that its directory does not list".into());
    }
    if fates.iter().all(|f| *f == Fate::Dropped) {
        return Err("nothing would be left of the archive".into());
    }
    let words = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 member {what}")),
        n => Some(format!("{n} members {what}")),
    };
    let detail = [words(dropped, "removed"), words(cleaned, "cleaned")];
    Ok((fates, detail.into_iter().flatten().collect::<Vec<_>>().join(", ")))
}

/// A file in gzip: what is in it is cleaned.
fn gzip(content: &[u8], chains: &[Chain<'_>], most: u64) -> Result<(Vec<u8>, String), String> {
    let kind = chains.iter().filter_map(|c| c.first()).map(|m| m.kind).next();
    if chains.iter().any(|c| c.len() < 2) {
        return Err("its only content is infected".into());
    }
    let mut decoder = GzDecoder::new(content);
    let mut plain = Vec::new();
    let read = caught(|| decoder.by_ref().take(most).read_to_end(&mut plain));
    if read.is_err() || plain.len() as u64 == most {
        return Err("cannot be unpacked".into());
    }
    let mut builder = GzBuilder::new();
    if let Some(header) = decoder.header() {
        builder = builder.mtime(header.mtime());
        if let Some(name) = header.filename() {
            builder = builder.filename(name);
        }
    }
    if !decoder.into_inner().is_empty() {
        return Err("bytes behind the compressed ones".into());
    }
    let hash = object::hash(&plain);
    if chains.iter().any(|c| c[0].hash != hash) {
        return Err("its content is another one than was scanned".into());
    }
    let inner: Vec<Chain<'_>> = chains.iter().map(|c| &c[1..]).collect();
    let (plain, detail) = cleaned(kind.unwrap_or(Kind::Data), &plain, &inner, most)?;
    let mut encoder = builder.write(Vec::new(), Compression::default());
    encoder.write_all(&plain).map_err(|e| e.to_string())?;
    Ok((encoder.finish().map_err(|e| e.to_string())?, detail))
}

#[cfg(test)]
mod tests;
