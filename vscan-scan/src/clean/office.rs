//! OOXML documents (ECMA-376) without their macros: the project, what points to it, and what names its type.
//!
//! The type of the main part stays macro-enabled, as the file's name does; a document without a project
//! opens as such.

use super::Fate;
use super::zip::Archive;

/// True for an archive that is an OOXML document.
pub(super) fn is_document(archive: &Archive<'_>) -> bool {
    archive.entries.iter().any(|e| e.name == "[Content_Types].xml")
}

/// True for a document with a VBA project.
pub(super) fn has_macros(archive: &Archive<'_>) -> bool {
    is_document(archive) && archive.entries.iter().any(|e| is_macro(&e.name))
}

/// True for the members that make up a VBA project (MS-OFFMACRO2, MS-OVBA).
pub(super) fn is_macro(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let file = file.strip_suffix(".rels").unwrap_or(&file);
    matches!(
        file,
        "vbaproject.bin"
            | "vbadata.xml"
            | "vbaprojectsignature.bin"
            | "vbaprojectsignatureagile.bin"
            | "vbaprojectsignaturev3.bin"
    )
}

/// The document without its VBA project.
///
/// # Errors
/// When its relations cannot be told apart.
pub(super) fn without_macros(archive: &Archive<'_>, most: u64) -> Result<Vec<u8>, String> {
    let mut fates = Vec::new();
    for entry in &archive.entries {
        let fate = if is_macro(&entry.name) {
            Fate::Dropped
        } else if entry.name == "[Content_Types].xml" || entry.name.ends_with(".rels") {
            let content = archive.content(entry, most)?;
            let edited = without_elements(&content)?;
            if edited == content { Fate::Kept } else { Fate::Cleaned(edited) }
        } else {
            Fate::Kept
        };
        fates.push(fate);
    }
    archive.rebuilt(&fates)
}

/// The XML without the empty elements that name a part of a VBA project.
fn without_elements(xml: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(xml.len());
    let mut rest = xml;
    while let Some(start) = memchr::memchr(b'<', rest) {
        let (text, tag) = rest.split_at(start);
        out.extend_from_slice(text);
        let end = memchr::memchr(b'>', tag).ok_or("XML that is cut off")? + 1;
        let (tag, after) = tag.split_at(end);
        rest = after;
        let lower = tag.to_ascii_lowercase();
        let names = [&b"vbaproject"[..], b"vbadata"];
        if !names.iter().any(|n| memchr::memmem::find(&lower, n).is_some()) {
            out.extend_from_slice(tag);
        } else if !tag.ends_with(b"/>") {
            return Err("a relation to the macros that is not simple".into());
        }
    }
    out.extend_from_slice(rest);
    Ok(out)
}
