//! The corpus of the fuzz targets, replayed: every file, whole and cut at every length, as message and as file.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

#[path = "../fuzz/checks/walk.rs"]
mod checks;
#[path = "../fuzz/checks/clean.rs"]
mod cleans;
#[path = "../fuzz/checks/forms.rs"]
mod forms;
#[path = "../fuzz/checks/gateway.rs"]
mod gateway;
#[path = "../fuzz/checks/repair.rs"]
mod repairs;

use std::path::{Path, PathBuf};
use vscan_scan::sniff::Kind;
use vscan_scan::wire::ObjectKind;

fn files(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 10, "the corpus is gone");
    files
}

#[test]
fn the_corpus_is_survived() {
    for target in ["message", "file"] {
        for path in files(target) {
            let data = std::fs::read(&path).unwrap();
            for kind in [ObjectKind::Message, ObjectKind::File] {
                for len in 0..=data.len() {
                    checks::walk(kind, &data[..len]);
                }
            }
        }
    }
}

/// What the targets for encoded sections put before their bytes.
const BEGINNINGS: [(&str, &[u8]); 4] = [
    ("tnef", b"\x78\x9f\x3e\x22\x01\0"),
    ("binhex", b"(This file must be converted with BinHex 4.0)\n\n:"),
    ("yenc", b"=ybegin line=128 "),
    ("uu", b"begin 644 "),
];

#[test]
fn the_corpora_of_sections_are_survived() {
    for (target, beginning) in BEGINNINGS {
        for path in all_files(target) {
            let data = [beginning, &std::fs::read(&path).unwrap()].concat();
            for len in 0..=data.len() {
                checks::walk(ObjectKind::File, &data[..len]);
            }
        }
    }
}

#[test]
fn the_corpus_of_repairs_is_survived() {
    for path in all_files("repair") {
        let data = std::fs::read(&path).unwrap();
        for len in 0..=data.len() {
            repairs::repair(&data[..len]);
        }
    }
}

fn all_files(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 4, "the corpus is gone");
    files
}

/// The targets of one decoder each, and the type that their bytes are taken for.
const KINDS: &[(&str, Kind)] = &[
    ("tar", Kind::Tar),
    ("ar", Kind::Ar),
    ("cpio", Kind::Cpio),
    ("rpm", Kind::Rpm),
    ("zip", Kind::Zip),
    ("sevenz", Kind::SevenZip),
    ("rar", Kind::Rar),
    ("cab", Kind::Cab),
    ("arj", Kind::Arj),
    ("lha", Kind::Lha),
    ("compress", Kind::Compress),
    ("szdd", Kind::Szdd),
    ("gzip", Kind::Gzip),
    ("bzip2", Kind::Bzip2),
    ("xz", Kind::Xz),
    ("lzma", Kind::Lzma),
    ("lzip", Kind::Lzip),
    ("zstd", Kind::Zstd),
    ("iso", Kind::Iso),
    ("chm", Kind::Chm),
    ("sis", Kind::Sis),
    ("nsis", Kind::Nsis),
    ("ole", Kind::Ole),
    ("pdf", Kind::Pdf),
    ("rtf", Kind::Rtf),
    ("html", Kind::Html),
    ("ooxml", Kind::Relationships),
    ("lz4", Kind::Lz4),
    ("mbox", Kind::Mbox),
    ("cms", Kind::Cms),
    ("pgp", Kind::PgpMessage),
];

/// The targets that put their bytes into a form.
type Form = (&'static str, ObjectKind, fn(&[u8]) -> Option<Vec<u8>>);
const FORMS: &[Form] = &[
    ("zip_member", ObjectKind::File, forms::zip_member),
    ("pdf_stream", ObjectKind::File, forms::pdf_stream),
    ("vba", ObjectKind::File, forms::vba),
    ("names", ObjectKind::Message, |data| Some(forms::names(data))),
    ("charset", ObjectKind::Message, forms::charset),
];

#[test]
fn the_corpora_of_forms_are_survived() {
    for (target, kind, form) in FORMS {
        for path in files_of(target) {
            let data = std::fs::read(&path).unwrap();
            for len in (0..=data.len()).step_by(data.len() / 100 + 1) {
                if let Some(whole) = form(&data[..len]) {
                    checks::walk(*kind, &whole);
                }
            }
        }
    }
    for path in files_of("udf") {
        let data = std::fs::read(&path).unwrap();
        for len in (0..=data.len()).step_by(data.len() / 100 + 1) {
            checks::walk_as(Kind::Udf, &forms::udf(&data[..len]));
        }
    }
    let passwords = ["wrong".to_owned(), "secret".to_owned()];
    for path in files_of("encrypted") {
        let data = std::fs::read(&path).unwrap();
        for len in (0..=data.len()).step_by(data.len() / 20 + 1) {
            checks::walk_with(&passwords, &data[..len]);
        }
    }
}

#[test]
fn the_corpora_of_cleaning_and_of_the_gateway_are_survived() {
    type Check = (&'static str, fn(&[u8]));
    let checks: [Check; 3] =
        [("clean", cleans::clean), ("head", gateway::head), ("answers", gateway::answers)];
    for (target, check) in checks {
        for path in files_of(target) {
            let data = std::fs::read(&path).unwrap();
            for len in (0..=data.len()).step_by(data.len() / 100 + 1) {
                check(&data[..len]);
            }
        }
    }
}

fn files_of(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!files.is_empty(), "the corpus of {target} is gone");
    files.sort();
    files
}

#[test]
fn the_corpora_of_decoders_are_survived() {
    for &(target, kind) in KINDS {
        for path in files_of(target) {
            let data = std::fs::read(&path).unwrap();
            for len in (0..=data.len()).step_by(data.len() / 100 + 1) {
                checks::walk_as(kind, &data[..len]);
            }
        }
    }
}

/// Bytes changed here and there, copied and taken away: what hostile files are.
#[test]
fn changes_of_the_corpora_are_survived() {
    const CHANGES: u32 = 40;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    for &(target, kind) in KINDS {
        for path in files_of(target) {
            let whole = std::fs::read(&path).unwrap();
            for _ in 0..CHANGES {
                let mut data = whole.clone();
                for _ in 0..=random(4) {
                    let at = random(data.len());
                    match random(4) {
                        0 => data[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                        1 => data[at] ^= 1 << random(8),
                        2 => data.truncate(at.max(1)),
                        _ => {
                            let (from, len) = (random(data.len()), random(16));
                            let piece: Vec<u8> = data[from..].iter().copied().take(len).collect();
                            data.splice(at..at, piece);
                        }
                    }
                }
                checks::walk_as(kind, &data);
            }
        }
    }
}
