//! What a part is, by its bytes: never by its name or its label, which the sender chooses.
//!
//! Containers that this crate cannot open are known here too, so that they are reported as unread
//! instead of passing as clean.

use crate::archive::{arj, cab, cpio, iso, lha, lz4, nsis, rar, sevenz, sis, stream};
use crate::document::{html, ooxml};
use memchr::memmem;

/// The type of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing that is known; scanned as it is.
    Data,
    /// Text without a more precise type.
    Text,
    /// An HTML page.
    Html,
    /// An Internet message (RFC 5322).
    Message,
    /// Several messages in mbox form.
    Mbox,
    /// ZIP, and what is built on it: OOXML, ODF, JAR, APK.
    Zip,
    /// gzip (RFC 1952).
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// LZMA alone, the predecessor of xz.
    Lzma,
    /// lzip.
    Lzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4 frames.
    Lz4,
    /// tar (POSIX ustar, GNU, pax).
    Tar,
    /// Unix archive: Debian packages, static libraries.
    Ar,
    /// cpio, any of its forms.
    Cpio,
    /// RPM package.
    Rpm,
    /// 7z.
    SevenZip,
    /// RAR.
    Rar,
    /// Microsoft cabinet.
    Cab,
    /// ARJ.
    Arj,
    /// LHA.
    Lha,
    /// compress(1).
    Compress,
    /// A file of Microsoft's compress.exe.
    Szdd,
    /// ISO 9660 image.
    Iso,
    /// UDF file system.
    Udf,
    /// Compiled HTML Help.
    Chm,
    /// The files behind an NSIS installer's program.
    Nsis,
    /// Symbian installation file.
    Sis,
    /// Relationships of an OOXML document.
    Relationships,
    /// CMS (RFC 5652): S/MIME, PKCS#7.
    Cms,
    /// ASCII armour of an OpenPGP message (RFC 9580 section 6).
    PgpMessage,
    /// A file that is one uuencoded section.
    Uuencoded,
    /// A file that is one yEnc section.
    Yenc,
    /// A file in BinHex 4.0 (RFC 1741).
    Binhex,
    /// Transport Neutral Encapsulation Format (MS-OXTNEF): winmail.dat.
    Tnef,
    /// Windows executable or library.
    Exe,
    /// ELF executable or library.
    Elf,
    /// OLE2 compound file: old Office documents, MSI.
    Ole,
    /// PDF.
    Pdf,
    /// RTF.
    Rtf,
    /// Windows shortcut.
    Lnk,
    /// Pictures, sound, film: formats that carry no files.
    Media,
    /// A container without a decoder here, by the name of its format.
    Unsupported(&'static str),
}

impl Kind {
    /// The word used in reports, e.g. `zip`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Text => "text",
            Kind::Html => "html",
            Kind::Message => "message",
            Kind::Mbox => "mbox",
            Kind::Zip => "zip",
            Kind::Gzip => "gzip",
            Kind::Bzip2 => "bzip2",
            Kind::Xz => "xz",
            Kind::Lzma => "lzma",
            Kind::Lzip => "lzip",
            Kind::Zstd => "zstd",
            Kind::Lz4 => "lz4",
            Kind::Tar => "tar",
            Kind::Ar => "ar",
            Kind::Cpio => "cpio",
            Kind::Rpm => "rpm",
            Kind::SevenZip => "7z",
            Kind::Rar => "rar",
            Kind::Cab => "cab",
            Kind::Arj => "arj",
            Kind::Lha => "lha",
            Kind::Compress => "compress",
            Kind::Szdd => "szdd",
            Kind::Iso => "iso9660",
            Kind::Udf => "udf",
            Kind::Chm => "chm",
            Kind::Nsis => "nsis",
            Kind::Sis => "sis",
            Kind::Relationships => "ooxml-relationships",
            Kind::Cms => "cms",
            Kind::PgpMessage => "pgp",
            Kind::Uuencoded => "uuencoded",
            Kind::Yenc => "yenc",
            Kind::Binhex => "binhex",
            Kind::Tnef => "tnef",
            Kind::Exe => "exe",
            Kind::Elf => "elf",
            Kind::Ole => "ole",
            Kind::Pdf => "pdf",
            Kind::Rtf => "rtf",
            Kind::Lnk => "lnk",
            Kind::Media => "media",
            Kind::Unsupported(name) => name,
        }
    }

    /// True when nothing is taken out of this type, so that nothing is lost when it is not opened.
    pub(crate) fn is_leaf(self) -> bool {
        matches!(self, Kind::Data | Kind::Text | Kind::Exe | Kind::Elf | Kind::Lnk | Kind::Media)
    }

    /// True for what a person reads as text, where encoded sections may lie in between.
    pub fn is_text(self) -> bool {
        matches!(
            self,
            Kind::Text
                | Kind::Html
                | Kind::Rtf
                | Kind::Uuencoded
                | Kind::Yenc
                | Kind::Binhex
                | Kind::PgpMessage
        )
    }
}

/// Magic numbers: offset, bytes, type. The longer and surer ones first.
const MAGIC: &[(usize, &[u8], Kind)] = &[
    (0, b"PK\x03\x04", Kind::Zip),
    (0, b"PK\x05\x06", Kind::Zip),
    (0, b"PK00PK\x03\x04", Kind::Zip),
    (0, b"PK\x07\x08PK\x03\x04", Kind::Zip),
    (0, stream::GZIP, Kind::Gzip),
    (0, b"!<arch>\n", Kind::Ar),
    (0, b"Rar!\x1a\x07", Kind::Rar),
    (0, b"RE~^", Kind::Unsupported("rar")),
    (0, sevenz::MAGIC, Kind::SevenZip),
    (0, cab::MAGIC, Kind::Cab),
    (0, b"ISc(", Kind::Unsupported("installshield-cab")),
    (0, b"\xfd7zXZ\0", Kind::Xz),
    (0, b"LZIP\x01", Kind::Lzip),
    (0, b"\x28\xb5\x2f\xfd", Kind::Zstd),
    (0, lz4::MAGIC, Kind::Lz4),
    (0, lz4::LEGACY, Kind::Lz4),
    (0, b"\x1f\x9d", Kind::Compress),
    (0, b"\x1f\xa0", Kind::Unsupported("compress")),
    (0, b"\x1f\x1e", Kind::Unsupported("pack")),
    (0, b"\x89LZO\0\r\n\x1a\n", Kind::Unsupported("lzop")),
    (7, b"**ACE**", Kind::Unsupported("ace")),
    (0, b"SZDD\x88\xf0\x27\x33", Kind::Szdd),
    (0, b"SZ \x88\xf0\x27\x33\xd1", Kind::Szdd),
    (0, b"KWAJ\x88\xf0\x27\xd1", Kind::Unsupported("kwaj")),
    (0, b"\xed\xab\xee\xdb", Kind::Rpm),
    (0, b"ITSF", Kind::Chm),
    (0, b"\x78\x9f\x3e\x22", Kind::Tnef),
    (0, b"MSWIM\0\0\0", Kind::Unsupported("wim")),
    (0, b"hsqs", Kind::Unsupported("squashfs")),
    (0, b"xar!\0", Kind::Unsupported("xar")),
    (0, b"zPQ\0", Kind::Unsupported("zpaq")),
    (0, b"ALZ\x01", Kind::Unsupported("alz")),
    (0, b"EGGA", Kind::Unsupported("egg")),
    (0, b"LRZI", Kind::Unsupported("lrzip")),
    (20, b"\xdc\xa7\xc4\xfd", Kind::Unsupported("zoo")),
    (0, b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07", Kind::Unsupported("zisofs")),
    (0, b"\x1e\xb5\x2f\xfd", Kind::Unsupported("zstd-0.1")),
    (0, b"PAR\0", Kind::Unsupported("par")),
    (0, b"StuffIt (c)1997", Kind::Unsupported("stuffit")),
    (0, b"(This file must be converted with BinHex", Kind::Binhex),
    (0, b"=ybegin ", Kind::Yenc),
    (0, b"conectix", Kind::Unsupported("vhd")),
    (0, b"vhdxfile", Kind::Unsupported("vhdx")),
    (0, b"KDMV", Kind::Unsupported("vmdk")),
    (0, b"QFI\xfb", Kind::Unsupported("qcow")),
    (0, b"MZ", Kind::Exe),
    (0, b"\x7fELF", Kind::Elf),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind::Ole),
    (0, b"%PDF-", Kind::Pdf),
    (0, b"{\\rt", Kind::Rtf),
    (0, b"\x4c\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46", Kind::Lnk),
    (0, b"\x89PNG\r\n\x1a\n", Kind::Media),
    (0, b"GIF8", Kind::Media),
    (0, b"\xff\xd8\xff", Kind::Media),
    (0, b"ID3", Kind::Media),
    (0, b"OggS", Kind::Media),
    (4, b"ftyp", Kind::Media),
    (0, b"-----BEGIN PGP MESSAGE-----", Kind::PgpMessage),
];

/// Header fields with which messages begin, in lower case.
const FIELDS: &[&str] = &[
    "received",
    "return-path",
    "delivered-to",
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "reply-to",
    "sender",
    "x-mailer",
    "dkim-signature",
    "arc-seal",
    "user-agent",
    "list-id",
    "x-original-to",
    "x-received",
];

/// The type of a part by its bytes.
pub fn sniff(data: &[u8]) -> Kind {
    for &(offset, magic, kind) in MAGIC {
        if data.get(offset..).is_some_and(|d| d.starts_with(magic)) {
            return kind;
        }
    }
    // What zstd wrote before its format was fixed, and still reads.
    if matches!(data, [0x22..=0x27, 0xb5, 0x2f, 0xfd, ..]) {
        return Kind::Unsupported("zstd-0");
    }
    // Zstandard frames may have frames to be skipped before them.
    if matches!(data, [0x50..0x60, 0x2a, 0x4d, 0x18, ..]) {
        return Kind::Zstd;
    }
    if is_tar(data) {
        return Kind::Tar;
    }
    if crate::mail::cms::is_cms(data) {
        return Kind::Cms;
    }
    // A block begins it, or it is a stream of nothing, which another one may follow.
    if data.len() > 10
        && data.starts_with(b"BZh")
        && data[3].is_ascii_digit()
        && matches!(&data[4..10], b"1AY&SY" | b"\x17\x72\x45\x38\x50\x90")
    {
        return Kind::Bzip2;
    }
    if cpio::begins(data) {
        return Kind::Cpio;
    }
    if lha::begins(data) {
        return Kind::Lha;
    }
    if arj::begins(data) {
        return Kind::Arj;
    }
    if is_lzma(data) {
        return Kind::Lzma;
    }
    if sis::begins(data) {
        return Kind::Sis;
    }
    if iso::begins(data) {
        return Kind::Iso;
    }
    if iso::has_udf(data) {
        return Kind::Udf;
    }
    // Apple disk image: the trailer is its last 512 bytes.
    if data.len() > 512 && data[data.len() - 512..].starts_with(b"koly\0\0\0\x04") {
        return Kind::Unsupported("dmg");
    }
    match text_kind(data) {
        kind if is_text(data) => kind,
        // What these begin with is sure enough, and their readers pass over bytes that no text has.
        kind
        @ (Kind::Message | Kind::Mbox | Kind::Html | Kind::Uuencoded | Kind::Relationships) => kind,
        _ => Kind::Data,
    }
}

/// What a part is besides its first type.
#[derive(Debug, Default)]
pub(crate) struct Also {
    /// The types, with where they begin.
    pub(crate) found: Vec<(Kind, usize)>,
    /// There are more archives than are opened.
    pub(crate) more: bool,
}

/// The other types that a part has besides `kind`: polyglots, self-extracting archives, junk in front. Readers of these
/// types find them there, so they are opened too. `opened` says of the bytes where an archive begins whether they were
/// opened before: members that are stored as they are lie plainly in their container.
pub(crate) fn also(data: &[u8], kind: Kind, opened: &mut dyn FnMut(&[u8]) -> bool) -> Also {
    let mut also = Also::default();
    let mut found = |kind, at| also.found.push((kind, at));
    if kind != Kind::Zip && has_zip_end(data) {
        found(Kind::Zip, 0);
    }
    if kind != Kind::Tar && kind != Kind::Message && is_tar(data) {
        found(Kind::Tar, 0);
    }
    if kind != Kind::Lha && lha::begins(data) {
        found(Kind::Lha, 0);
    }
    if kind != Kind::Iso && iso::begins(data) {
        found(Kind::Iso, 0);
    }
    if kind != Kind::Udf && iso::has_udf(data) {
        found(Kind::Udf, 0);
    }
    // Viewers look for the beginning of a PDF in this much (ISO 32000-1, annex H, note 13).
    if kind != Kind::Pdf
        && let Some(at) = memmem::find(&data[..data.len().min(1024 + 5)], b"%PDF-")
    {
        found(Kind::Pdf, at);
    }
    // Browsers go by the extension of a local file, whatever it begins with.
    let page = match kind {
        Kind::Text | Kind::Relationships => true,
        Kind::Pdf | Kind::Rtf | Kind::Media | Kind::Data | Kind::PgpMessage => html::shows(data),
        _ => false,
    };
    if page && html::may_carry(data) {
        found(Kind::Html, 0);
    }
    for one in CARRIED {
        also.carried(data, one, opened);
    }
    also
}

/// True when the data begins with an archive that is found behind other bytes as well.
pub(crate) fn is_carried(data: &[u8]) -> bool {
    CARRIED.iter().any(|one| {
        data.get(one.offset..).is_some_and(|d| d.starts_with(one.magic)) && (one.begins)(data)
    })
}

impl Also {
    /// Adds the archives of one type that lie behind other bytes.
    fn carried(&mut self, data: &[u8], one: &Carried, opened: &mut dyn FnMut(&[u8]) -> bool) {
        let places = memmem::find_iter(data, one.magic).filter_map(|at| at.checked_sub(one.offset));
        let begins = |at: &usize| *at > 0 && (one.begins)(&data[*at..]);
        let mut places = places.filter(begins).filter(|&at| !opened(&data[at..]));
        self.found.extend(places.by_ref().take(CARRIED_MAX).map(|at| (one.kind, at)));
        self.more |= places.next().is_some();
    }
}

/// An archive that is found behind other bytes.
struct Carried {
    magic: &'static [u8],
    /// Where in the archive the magic lies.
    offset: usize,
    /// Makes sure that the magic is no chance.
    begins: fn(&[u8]) -> bool,
    kind: Kind,
}

const CARRIED: &[Carried] = &[
    Carried { magic: arj::MAGIC, offset: 0, begins: arj::archive_begins, kind: Kind::Arj },
    Carried { magic: sevenz::MAGIC, offset: 0, begins: sevenz::begins, kind: Kind::SevenZip },
    Carried { magic: b"Rar!\x1a\x07", offset: 0, begins: rar::begins, kind: Kind::Rar },
    Carried { magic: cab::MAGIC, offset: 0, begins: cab::begins, kind: Kind::Cab },
    // Its magic is behind a word of flags.
    Carried { magic: nsis::MAGIC, offset: 4, begins: nsis::begins, kind: Kind::Nsis },
];

/// Archives of one type that are opened behind other bytes. Installers carry a few, the largest some dozens.
const CARRIED_MAX: usize = 64;

/// True when a ZIP archive lies in the data though it does not begin it: an end record near the end
/// (APPNOTE.TXT 4.3.16: at most 65,535 bytes of comment follow it).
pub fn has_zip_end(data: &[u8]) -> bool {
    let tail = &data[data.len().saturating_sub(22 + 65_535)..];
    memmem::rfind(tail, b"PK\x05\x06").is_some()
}

/// True when the bytes carry a tar header, whatever else they begin like.
pub fn is_tar(data: &[u8]) -> bool {
    let Some(header) = data.get(..512) else { return false };
    if header[257..].starts_with(b"ustar") {
        return true;
    }
    // The old format has no magic; its checksum must agree and its name must be printable.
    header[0].is_ascii_graphic() && crate::archive::tar::checksum_agrees(header)
}

/// LZMA alone has no magic: the usual properties, a dictionary as encoders choose them (2^n or 2^n + 2^(n-1), or
/// the largest), an uncompressed size that is unknown or below 1 TiB, and the zero with which its range coder begins.
fn is_lzma(data: &[u8]) -> bool {
    let Some((&[0x5d, a, b, c, d], rest)) = data.split_first_chunk() else { return false };
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    let top = 1u64 << dictionary.checked_ilog2().unwrap_or(0);
    let usual = u64::from(dictionary) == top || u64::from(dictionary) == top + top / 2;
    dictionary >= 1 << 12
        && (usual || dictionary == u32::MAX)
        && rest.get(8) == Some(&0)
        && (rest[..8] == [0xff; 8] || rest[5..8] == [0; 3])
}

fn is_text(data: &[u8]) -> bool {
    let head = &data[..data.len().min(512)];
    !head.is_empty()
        && head
            .iter()
            .all(|&b| b >= 0x20 && b != 0x7f || matches!(b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b))
}

fn text_kind(data: &[u8]) -> Kind {
    // As much as headers have that are read at all; what is no field ends it.
    let fields = &data[..data.len().min(1 << 20)];
    let head = &data[..data.len().min(4096)];
    let trimmed = head.trim_ascii_start();
    let begins =
        |word: &[u8]| trimmed.get(..word.len()).is_some_and(|d| d.eq_ignore_ascii_case(word));
    if trimmed.starts_with(b"<") && ooxml::is_relationships(head) {
        return Kind::Relationships;
    }
    if begins(b"<!doctype html")
        || begins(b"<html")
        || begins(b"<head")
        || begins(b"<body")
        || begins(b"<script")
    {
        return Kind::Html;
    }
    if crate::mail::uu::begin_line(data).is_some() {
        return Kind::Uuencoded;
    }
    if head.starts_with(b"From ") {
        let rest = memchr::memchr(b'\n', head).map_or(&head[..0], |i| &fields[i + 1..]);
        if has_fields(rest) {
            return Kind::Mbox;
        }
    }
    if has_fields(fields) { Kind::Message } else { Kind::Text }
}

/// True when the lines that begin `head`, up to the first that is no header field, show a message: two known fields, or one
/// that says that there are parts in it.
fn has_fields(head: &[u8]) -> bool {
    let mut seen = [false; FIELDS.len()];
    // Lines that end in CR alone are read by some clients.
    let first = memchr::memchr2(b'\r', b'\n', head);
    let end = match first {
        Some(at) if head[at] == b'\r' && head.get(at + 1) != Some(&b'\n') => b'\r',
        _ => b'\n',
    };
    for line in head.split(|&b| b == end) {
        if line.first().is_some_and(|&b| b == b' ' || b == b'\t') {
            continue;
        }
        let Some(colon) = memchr::memchr(b':', line) else { break };
        let name = &line[..colon];
        if name.is_empty() || name.iter().any(|&b| !b.is_ascii_graphic()) {
            break;
        }
        if let Some(i) = FIELDS.iter().position(|f| name.eq_ignore_ascii_case(f.as_bytes())) {
            seen[i] = true;
            let parts = FIELDS[i] == "content-type" && {
                let value = line[colon + 1..].trim_ascii_start();
                value.get(..9).is_some_and(|v| v.eq_ignore_ascii_case(b"multipart"))
            };
            if parts || seen.iter().filter(|&&s| s).count() >= 2 {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_by_bytes() {
        let mut tar = vec![0; 1024];
        tar[..5].copy_from_slice(b"a.txt");
        tar[257..262].copy_from_slice(b"ustar");
        let mut iso = vec![0; 40_000];
        iso[32769..32774].copy_from_slice(b"CD001");
        for (data, kind) in [
            (&b"PK\x03\x04\x14\0"[..], Kind::Zip),
            (b"\x1f\x8b\x08\0", Kind::Gzip),
            (&tar, Kind::Tar),
            (&iso, Kind::Iso),
            (b"BZh91AY&SY\0\0", Kind::Bzip2),
            (b"BZh is not a bzip2 file", Kind::Text),
            (b"Rar!\x1a\x07\x01\0", Kind::Rar),
            (b"MZ\x90\0", Kind::Exe),
            (b"hello", Kind::Text),
            (b"", Kind::Data),
            (b"\0\x01\x02", Kind::Data),
            (b" <!DOCTYPE HTML><p>", Kind::Html),
            (b"Received: from a\r\n\tby b\r\nSubject: hi\r\n\r\n", Kind::Message),
            (b"To: the reader\nthis is a letter, not a message\n", Kind::Text),
            (b"From a@b Mon Jan  1\nFrom: a@b\nTo: c@d\n\nhi\n", Kind::Mbox),
            (b"begin 644 a.txt\n#86)C\n`\nend\n", Kind::Uuencoded),
        ] {
            assert_eq!(
                sniff(data),
                kind,
                "{:?}",
                String::from_utf8_lossy(&data[..data.len().min(30)])
            );
        }
    }
}
