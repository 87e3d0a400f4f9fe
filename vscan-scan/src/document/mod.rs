//! Documents: what they carry besides what they show. Streams and macros of OLE2 files, embedded files and scripts of
//! PDF, objects of RTF, data and scripts of HTML, links of OOXML.

pub(crate) mod html;
pub(crate) mod ole;
pub(crate) mod ooxml;
pub(crate) mod pdf;
mod pdf_filter;
pub(crate) mod rtf;
pub(crate) mod vba;

/// The member of an OpenDocument file that lists the others, and says which are encrypted.
pub(crate) const ODF_MANIFEST: &str = "META-INF/manifest.xml";

#[cfg(test)]
mod tests;
