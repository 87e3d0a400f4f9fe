//! File formats: how their first bytes look, which extensions their files carry, what they are for.
//!
//! One table for policies about types and names. It answers by look-ups in the first bytes alone, for whoever sees an
//! object pass; the scanner's own `sniff` reads more and is what decoders go by.

/// What files of a format are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Machine code, and what starts it.
    Executable,
    /// Text that an interpreter runs.
    Script,
    /// Containers of files.
    Archive,
    /// Images of disks.
    Disk,
    /// Documents, which may carry macros.
    Document,
    /// Pictures.
    Image,
    /// Sound.
    Audio,
    /// Film.
    Video,
    /// Text for people.
    Text,
    /// Fonts.
    Font,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 10] = [
        Self::Executable,
        Self::Script,
        Self::Archive,
        Self::Disk,
        Self::Document,
        Self::Image,
        Self::Audio,
        Self::Video,
        Self::Text,
        Self::Font,
    ];

    /// Its word in configuration and replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Executable => "executable",
            Self::Script => "script",
            Self::Archive => "archive",
            Self::Disk => "disk",
            Self::Document => "document",
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Text => "text",
            Self::Font => "font",
        }
    }

    /// Whether opening such a file runs it.
    #[must_use]
    pub const fn runs(self) -> bool {
        matches!(self, Self::Executable | Self::Script)
    }
}

/// A format.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    /// Its name, as in [`Report::kind`](crate::report::Report::kind) where the scanner knows it too.
    pub name: &'static str,
    /// What it is for.
    pub class: Class,
    /// Extensions of its files, in lower case.
    pub extensions: &'static [&'static str],
    /// Ways its files begin: bytes and where they stand, all of one way. None: text, or without a sign of its own.
    magic: &'static [&'static [(usize, &'static [u8])]],
}

/// What the first bytes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// This format.
    Format(&'static Format),
    /// Text of no format that shows.
    Text,
    /// Nothing that is known.
    Data,
}

impl Head {
    /// Its name: that of the format, `text` or `data`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Format(format) => format.name,
            Self::Text => "text",
            Self::Data => "data",
        }
    }
}

/// First bytes that tell as much as there is to tell: behind them stands the sign of ISO 9660 (ECMA-119 section 8.4).
pub const HEAD: usize = 32769 + 5;

/// Bytes that have to be text for a file to be taken for text.
const TEXT_HEAD: usize = 4096;

/// What a file that begins like this is. With fewer than [`HEAD`] bytes of a longer file some formats do not show.
#[must_use]
pub fn of_head(head: &[u8]) -> Head {
    let begins = |(offset, bytes): &(usize, &[u8])| {
        head.get(*offset..).is_some_and(|rest| rest.starts_with(bytes))
    };
    if let Some(format) = FORMATS.iter().find(|f| f.magic.iter().any(|way| way.iter().all(begins)))
    {
        return Head::Format(format);
    }
    let start = &head[..head.len().min(TEXT_HEAD)];
    let words = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    for (word, name) in TEXT_MAGIC {
        if words.get(..word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word)) {
            return by_name(name).map_or(Head::Text, Head::Format);
        }
    }
    let is_text =
        |b: &u8| *b >= 0x20 && *b != 0x7f || matches!(b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b);
    if !start.is_empty() && start.iter().all(is_text) { Head::Text } else { Head::Data }
}

/// The formats whose files carry this extension; upper or lower case.
pub fn of_extension(extension: &str) -> impl Iterator<Item = &'static Format> {
    let extension = extension.to_ascii_lowercase();
    FORMATS.iter().filter(move |format| format.extensions.contains(&extension.as_str()))
}

/// The format of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// Whether a file with this extension may begin like that.
///
/// Where the extension is one of known formats, it has to be one of those; with another extension it must be nothing
/// that is known, lest a known format hides behind a made-up name.
#[must_use]
pub fn agrees(extension: &str, head: Head) -> bool {
    let mut known = of_extension(extension).peekable();
    if known.peek().is_none() {
        return matches!(head, Head::Text | Head::Data);
    }
    known.any(|format| match head {
        Head::Format(found) => found == format,
        Head::Text => {
            format.magic.is_empty() && matches!(format.class, Class::Text | Class::Script)
        }
        // text in UTF-16 and the like is none of ASCII, so that it cannot be told from other data
        Head::Data => false,
    })
}

/// Text formats by their first word, white space before it aside; letters match either case.
const TEXT_MAGIC: &[(&[u8], &str)] = &[
    (b"<!doctype html", "html"),
    (b"<html", "html"),
    (b"<head", "html"),
    (b"<body", "html"),
    (b"<script", "html"),
    (b"<?php", "php"),
    (b"<%", "asp"),
    (b"<svg", "svg"),
    (b"<?xml", "xml"),
    (b"@echo", "batch"),
];

const fn format(
    name: &'static str,
    class: Class,
    extensions: &'static [&'static str],
    magic: &'static [&'static [(usize, &'static [u8])]],
) -> Format {
    Format { name, class, extensions, magic }
}

/// The longer and surer signs first.
static FORMATS: &[Format] = &[
    // what runs
    format(
        "exe",
        Class::Executable,
        &[
            "exe", "dll", "scr", "sys", "com", "cpl", "ocx", "drv", "efi", "pif", "mui", "ax",
            "acm", "tsp", "xll", "wll",
        ],
        &[&[(0, b"MZ")]],
    ),
    format(
        "elf",
        Class::Executable,
        &["elf", "so", "ko", "o", "axf", "prx"],
        &[&[(0, b"\x7fELF")]],
    ),
    format(
        "macho",
        Class::Executable,
        &["dylib", "bundle"],
        &[
            &[(0, b"\xfe\xed\xfa\xce")],
            &[(0, b"\xfe\xed\xfa\xcf")],
            &[(0, b"\xce\xfa\xed\xfe")],
            &[(0, b"\xcf\xfa\xed\xfe")],
        ],
    ),
    // a fat Mach-O begins alike
    format("class", Class::Executable, &["class"], &[&[(0, b"\xca\xfe\xba\xbe")]]),
    format("dex", Class::Executable, &["dex"], &[&[(0, b"dex\n")]]),
    format("wasm", Class::Executable, &["wasm"], &[&[(0, b"\0asm")]]),
    format(
        "lnk",
        Class::Executable,
        &["lnk"],
        &[&[(0, b"\x4c\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46")]],
    ),
    format(
        "script",
        Class::Script,
        &[
            "sh", "bash", "csh", "ksh", "zsh", "fish", "pl", "pm", "py", "pyw", "rb", "tcl", "awk",
            "lua", "run",
        ],
        &[&[(0, b"#!")], &[(0, b"\xef\xbb\xbf#!")]],
    ),
    format("batch", Class::Script, &["bat", "cmd", "btm"], &[]),
    format("powershell", Class::Script, &["ps1", "psm1", "psd1", "ps1xml", "psc1", "msh"], &[]),
    format(
        "wsh",
        Class::Script,
        &["js", "jse", "mjs", "vbs", "vbe", "vb", "wsf", "wsc", "wsh", "ws", "sct", "hta"],
        &[],
    ),
    format("php", Class::Script, &["php", "php3", "php4", "php5", "phtml", "phar"], &[]),
    format("asp", Class::Script, &["asp", "aspx", "ashx", "asmx", "jsp", "jspx", "cfm"], &[]),
    format(
        "settings",
        Class::Script,
        &[
            "reg",
            "inf",
            "scf",
            "url",
            "desktop",
            "msc",
            "application",
            "appref-ms",
            "gadget",
            "settingcontent-ms",
        ],
        &[],
    ),
    // a compound file that installs; by its bytes it is ole
    format(
        "installer",
        Class::Executable,
        &["msi", "msp", "mst", "msix", "appx", "apk", "ipa", "crx", "xpi"],
        &[],
    ),
    // containers
    format(
        "zip",
        Class::Archive,
        &[
            "zip", "zipx", "jar", "war", "ear", "cbz", "kmz", "vsix", "nupkg", "whl", "apk", "ipa",
            "crx", "xpi", "msix", "appx",
        ],
        &[
            &[(0, b"PK\x03\x04")],
            &[(0, b"PK\x05\x06")],
            &[(0, b"PK00PK\x03\x04")],
            &[(0, b"PK\x07\x08PK\x03\x04")],
        ],
    ),
    format("rar", Class::Archive, &["rar", "cbr"], &[&[(0, b"Rar!\x1a\x07")], &[(0, b"RE~^")]]),
    format("7z", Class::Archive, &["7z", "cb7"], &[&[(0, b"7z\xbc\xaf\x27\x1c")]]),
    format("gzip", Class::Archive, &["gz", "tgz", "svgz", "emz"], &[&[(0, b"\x1f\x8b\x08")]]),
    format("bzip2", Class::Archive, &["bz2", "tbz", "tbz2"], &[&[(0, b"BZh"), (4, b"1AY&SY")]]),
    format("xz", Class::Archive, &["xz", "txz"], &[&[(0, b"\xfd7zXZ\0")]]),
    format("lzip", Class::Archive, &["lz"], &[&[(0, b"LZIP\x01")]]),
    format("lz4", Class::Archive, &["lz4"], &[&[(0, b"\x04\x22\x4d\x18")]]),
    format("zstd", Class::Archive, &["zst", "tzst"], &[&[(0, b"\x28\xb5\x2f\xfd")]]),
    format("compress", Class::Archive, &["z", "taz"], &[&[(0, b"\x1f\x9d")]]),
    format("cab", Class::Archive, &["cab", "msu"], &[&[(0, b"MSCF\0\0\0\0")], &[(0, b"ISc(")]]),
    format("arj", Class::Archive, &["arj"], &[&[(0, b"\x60\xea")]]),
    format("lha", Class::Archive, &["lha", "lzh"], &[&[(2, b"-lh")], &[(2, b"-lz")]]),
    format("ace", Class::Archive, &["ace"], &[&[(7, b"**ACE**")]]),
    format("ar", Class::Archive, &["a", "ar", "deb", "udeb"], &[&[(0, b"!<arch>\n")]]),
    format("rpm", Class::Archive, &["rpm", "srpm"], &[&[(0, b"\xed\xab\xee\xdb")]]),
    format(
        "cpio",
        Class::Archive,
        &["cpio"],
        &[&[(0, b"070701")], &[(0, b"070702")], &[(0, b"070707")]],
    ),
    format("xar", Class::Archive, &["xar", "pkg"], &[&[(0, b"xar!\0")]]),
    format("chm", Class::Executable, &["chm"], &[&[(0, b"ITSF\x03\0\0\0")]]),
    format("tar", Class::Archive, &["tar"], &[&[(257, b"ustar")]]),
    // disks
    format("iso9660", Class::Disk, &["iso", "img", "udf"], &[&[(32769, b"CD001")]]),
    format("wim", Class::Disk, &["wim", "swm", "esd"], &[&[(0, b"MSWIM\0\0\0")]]),
    format("squashfs", Class::Disk, &["squashfs", "sqfs", "snap"], &[&[(0, b"hsqs")]]),
    format("vhd", Class::Disk, &["vhd"], &[&[(0, b"conectix")]]),
    format("vhdx", Class::Disk, &["vhdx"], &[&[(0, b"vhdxfile")]]),
    format("vmdk", Class::Disk, &["vmdk"], &[&[(0, b"KDMV")]]),
    format("qcow", Class::Disk, &["qcow", "qcow2"], &[&[(0, b"QFI\xfb")]]),
    // its sign stands at its end
    format("dmg", Class::Disk, &["dmg"], &[]),
    // documents
    format(
        "ole",
        Class::Document,
        &[
            "doc", "dot", "xls", "xlt", "xla", "ppt", "pps", "pot", "msg", "vsd", "pub", "mpp",
            "thm", "msi", "msp", "mst",
        ],
        &[&[(0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")]],
    ),
    format(
        "office",
        Class::Document,
        &[
            "docx", "docm", "dotx", "dotm", "xlsx", "xlsm", "xlsb", "xltx", "xltm", "xlam", "pptx",
            "pptm", "ppsx", "ppsm", "potx", "potm", "ppam", "vsdx", "vsdm", "odt", "ods", "odp",
            "odg", "ott", "ots", "otp", "epub",
        ],
        &[],
    ),
    format("pdf", Class::Document, &["pdf"], &[&[(0, b"%PDF-")]]),
    format(
        "postscript",
        Class::Document,
        &["ps", "eps"],
        &[&[(0, b"%!PS")], &[(0, b"\xc5\xd0\xd3\xc6")]],
    ),
    format("rtf", Class::Document, &["rtf"], &[&[(0, b"{\\rt")]]),
    format("html", Class::Document, &["html", "htm", "xhtml", "shtml", "mht", "mhtml"], &[]),
    format("one", Class::Document, &["one"], &[&[(0, b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d")]]),
    format("djvu", Class::Document, &["djvu", "djv"], &[&[(0, b"AT&TFORM")]]),
    // pictures
    format("png", Class::Image, &["png", "apng"], &[&[(0, b"\x89PNG\r\n\x1a\n")]]),
    format("gif", Class::Image, &["gif"], &[&[(0, b"GIF87a")], &[(0, b"GIF89a")]]),
    format("jpeg", Class::Image, &["jpg", "jpeg", "jpe", "jfif"], &[&[(0, b"\xff\xd8\xff")]]),
    format(
        "tiff",
        Class::Image,
        &["tif", "tiff", "dng", "nef", "cr2", "arw"],
        &[&[(0, b"II*\0")], &[(0, b"MM\0*")]],
    ),
    format("webp", Class::Image, &["webp"], &[&[(0, b"RIFF"), (8, b"WEBP")]]),
    format("jp2", Class::Image, &["jp2", "jpx"], &[&[(4, b"jP  \r\n\x87\n")]]),
    format("psd", Class::Image, &["psd", "psb"], &[&[(0, b"8BPS")]]),
    format(
        "heif",
        Class::Image,
        &["heic", "heif", "avif"],
        &[&[(4, b"ftyphei")], &[(4, b"ftypmif1")], &[(4, b"ftypavi")]],
    ),
    format("bmp", Class::Image, &["bmp", "dib"], &[&[(0, b"BM"), (6, b"\0\0\0\0")]]),
    format("icon", Class::Image, &["ico", "cur"], &[&[(0, b"\0\0\x01\0")], &[(0, b"\0\0\x02\0")]]),
    format("svg", Class::Document, &["svg"], &[]),
    // sound
    format("flac", Class::Audio, &["flac"], &[&[(0, b"fLaC")]]),
    format("wav", Class::Audio, &["wav"], &[&[(0, b"RIFF"), (8, b"WAVE")]]),
    format(
        "aiff",
        Class::Audio,
        &["aif", "aiff", "aifc"],
        &[&[(0, b"FORM"), (8, b"AIFF")], &[(0, b"FORM"), (8, b"AIFC")]],
    ),
    format("midi", Class::Audio, &["mid", "midi"], &[&[(0, b"MThd\0\0\0\x06")]]),
    format("m4a", Class::Audio, &["m4a", "m4b"], &[&[(4, b"ftypM4A")], &[(4, b"ftypM4B")]]),
    format(
        "mp3",
        Class::Audio,
        &["mp3"],
        &[&[(0, b"ID3")], &[(0, b"\xff\xfb")], &[(0, b"\xff\xf3")], &[(0, b"\xff\xf2")]],
    ),
    format("ogg", Class::Audio, &["ogg", "oga", "ogv", "opus", "spx"], &[&[(0, b"OggS")]]),
    // film
    format(
        "mp4",
        Class::Video,
        &["mp4", "m4v", "mov", "3gp", "3g2", "qt"],
        &[&[(4, b"ftyp")], &[(4, b"moov")]],
    ),
    format(
        "matroska",
        Class::Video,
        &["mkv", "webm", "mka", "mks"],
        &[&[(0, b"\x1a\x45\xdf\xa3")]],
    ),
    format("avi", Class::Video, &["avi"], &[&[(0, b"RIFF"), (8, b"AVI ")]]),
    format(
        "asf",
        Class::Video,
        &["wmv", "wma", "asf"],
        &[&[(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")]],
    ),
    format("flv", Class::Video, &["flv"], &[&[(0, b"FLV\x01")]]),
    format(
        "mpeg",
        Class::Video,
        &["mpg", "mpeg", "vob", "m2p"],
        &[&[(0, b"\0\0\x01\xba")], &[(0, b"\0\0\x01\xb3")]],
    ),
    format(
        "mpegts",
        Class::Video,
        &["ts", "m2ts", "mts"],
        &[&[(0, b"\x47"), (188, b"\x47"), (376, b"\x47")]],
    ),
    // fonts
    format("woff", Class::Font, &["woff", "woff2"], &[&[(0, b"wOFF")], &[(0, b"wOF2")]]),
    format(
        "ttf",
        Class::Font,
        &["ttf", "otf", "ttc"],
        &[&[(0, b"\0\x01\0\0\0")], &[(0, b"OTTO")], &[(0, b"ttcf")]],
    ),
    // text
    format("xml", Class::Text, &["xml", "xsd", "rss", "atom", "gpx", "kml"], &[]),
    format("pgp", Class::Text, &["asc", "pgp"], &[&[(0, b"-----BEGIN PGP MESSAGE-----")]]),
    format(
        "text",
        Class::Text,
        &[
            "txt",
            "text",
            "log",
            "csv",
            "tsv",
            "md",
            "markdown",
            "rst",
            "json",
            "yaml",
            "yml",
            "toml",
            "ini",
            "cfg",
            "conf",
            "properties",
            "nfo",
            "diz",
            "asc",
            "sig",
            "md5",
            "sha1",
            "sha256",
            "sha512",
            "sfv",
            "srt",
            "vtt",
            "sub",
            "m3u",
            "m3u8",
            "pls",
            "cue",
            "tex",
            "bib",
            "c",
            "h",
            "cc",
            "cpp",
            "hpp",
            "rs",
            "go",
            "java",
            "sql",
            "patch",
            "diff",
            "po",
            "ics",
            "vcf",
            "css",
        ],
        &[],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_show_their_format() {
        let mut iso = vec![0; 40_000];
        iso[32769..32774].copy_from_slice(b"CD001");
        for (head, name) in [
            (&b"MZ\x90\0"[..], "exe"),
            (b"PK\x03\x04....", "zip"),
            (b"#!/bin/sh\n", "script"),
            (b"\xef\xbb\xbf#!/bin/sh\n", "script"),
            (b"  <!DOCTYPE HTML>", "html"),
            (b"<?php echo 1;", "php"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "wav"),
            (b"RIFF\x10\0\0\0AVI LIST", "avi"),
            (b"\0\0\0\x20ftypisom", "mp4"),
            (b"\0\0\0\x20ftypM4A ", "m4a"),
            (&iso, "iso9660"),
            (&iso[..4096], "data"),
            (b"BM and so on", "text"),
            (b"hello\n", "text"),
            (b"", "data"),
            (b"\0\x01\x02", "data"),
        ] {
            let shown = String::from_utf8_lossy(&head[..head.len().min(20)]);
            assert_eq!(of_head(head).name(), name, "{shown:?}");
        }
    }

    #[test]
    fn names_that_lie_are_told() {
        let mut iso = vec![0; 40_000];
        iso[32769..32774].copy_from_slice(b"CD001");
        for (extension, head, agree) in [
            ("iso", &iso[..], true),
            ("iso", b"MZ\x90\0", false),
            ("iso", b"\0\0\0\0", false),
            ("TXT", b"hello", true),
            ("txt", b"#!/bin/sh\n", false),
            ("txt", b"MZ\x90\0", false),
            ("txt", b"\0\x01", false),
            ("jpg", b"\xff\xd8\xff\xe0", true),
            ("jpg", b"GIF89a", false),
            ("jpg", b"<html>", false),
            ("sh", b"#!/bin/sh\n", true),
            ("sh", b"hello", false),
            ("bat", b"dir\n", true),
            ("unheard-of", b"\0\x01", true),
            ("unheard-of", b"some text", true),
            ("unheard-of", b"PK\x03\x04", false),
            ("apk", b"PK\x03\x04", true),
        ] {
            assert_eq!(
                agrees(extension, of_head(head)),
                agree,
                "{extension} {}",
                head[..4.min(head.len())].escape_ascii()
            );
        }
    }

    #[test]
    fn the_table_is_consistent() {
        for (n, format) in FORMATS.iter().enumerate() {
            assert!(FORMATS[..n].iter().all(|other| other.name != format.name), "{}", format.name);
            for extension in format.extensions {
                assert_eq!(*extension, extension.to_ascii_lowercase());
            }
            for (offset, bytes) in format.magic.iter().flat_map(|way| way.iter()) {
                assert!(offset + bytes.len() <= HEAD, "{} does not show in the head", format.name);
            }
        }
        for (_, name) in TEXT_MAGIC {
            assert!(by_name(name).is_some(), "{name}");
        }
        assert!(Class::ALL.iter().all(|c| FORMATS.iter().any(|f| f.class == *c)));
    }
}
