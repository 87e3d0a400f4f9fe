//! What names and first bytes say: which types are forbidden, which files are not scanned. Pure.
//!
//! Whatever is forbidden is put into the report as a detection of the engine `types`, called `forbidden: ` and what it is,
//! so that `[[treat]]` decides on it as on any other.

use crate::config::{Forbidden, Scan, extension};
use vscan_scan::formats::{self, Class, Head};
use vscan_scan::report::{Part, Reason, Report};

/// The engine's name in reports.
pub const ENGINE: &str = "types";

/// Adds what `[types] forbid` says of an object and its parts to their report. `name`: a file's; empty for messages.
pub fn judge(forbidden: &[Forbidden], name: &[u8], report: &mut Report) {
    // a report on nothing has no type to speak of
    if forbidden.is_empty() || report.kind.is_empty() && name.is_empty() {
        return;
    }
    let name = String::from_utf8_lossy(name).into_owned();
    let own: Vec<&str> = if name.is_empty() { Vec::new() } else { vec![&name] };
    let mut found: Vec<(String, u32, Vec<String>)> = Vec::new();
    if let Some(what) = first(forbidden, &own, &report.kind) {
        let path = if name.is_empty() { Vec::new() } else { vec![name.clone()] };
        found.push((what, 0, path));
    }
    for part in report.tree.iter().filter(|part| part.number != 0) {
        let names: Vec<&str> =
            std::iter::once(&part.name).chain(&part.other_names).map(String::as_str).collect();
        if let Some(what) = first(forbidden, &names, &part.kind) {
            found.push((what, part.number, path(report, part)));
        }
    }
    for (what, part, path) in found {
        report.add_finding(&format!("forbidden: {what}"), ENGINE, &path, part);
    }
    if report.unlisted > 0 {
        let detail = format!("the types of {} parts are not known", report.unlisted);
        report.add_unread(Reason::Members, &detail, &[], 0);
    }
}

/// Whether a report has nothing worse than forbidden types.
#[must_use]
pub fn only_forbidden(report: &Report) -> bool {
    report.findings.iter().all(|finding| finding.engine == ENGINE)
}

fn path(report: &Report, part: &Part) -> Vec<String> {
    let mut names = vec![part.name.clone()];
    let mut at = part;
    // a part's number is higher than its parent's: this ends
    while let Some(parent) = at.parent.filter(|parent| *parent < at.number)
        && let Some(next) = report.tree.iter().find(|part| part.number == parent)
    {
        names.push(next.name.clone());
        at = next;
    }
    names.reverse();
    names
}

/// The first of the forbidden things that a part is, in words.
fn first(forbidden: &[Forbidden], names: &[&str], kind: &str) -> Option<String> {
    let names = || names.iter().map(|name| plain(name)).filter(|name| !name.is_empty());
    let extensions = || {
        names().filter_map(|name| {
            extension(name.as_bytes()).map(|e| String::from_utf8_lossy(&e).into_owned())
        })
    };
    forbidden.iter().find_map(|rule| {
        let is = match rule {
            Forbidden::Class(class) => {
                let of_kind = formats::by_name(kind).is_some_and(|format| format.class == *class);
                // what text is shows in its name only, and many a kind has no class of its own
                of_kind && *class != Class::Text
                    || extensions()
                        .any(|e| formats::of_extension(&e).any(|format| format.class == *class))
            }
            Forbidden::Word(word) => kind == word || extensions().any(|e| e == *word),
            Forbidden::Name(glob) => names().any(|name| glob.matches(name)),
            Forbidden::DoubleExtension => names().any(is_double),
        };
        is.then(|| rule.to_string())
    })
}

/// A name as a desktop takes it: the last component, without the dots and spaces at its end that Windows drops.
fn plain(name: &str) -> &str {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    last.trim_end_matches(|c: char| c == '.' || c.is_whitespace())
}

/// `invoice.pdf.exe`: what runs, behind the extension of something that is only looked at.
fn is_double(name: &str) -> bool {
    let mut parts = name.rsplit('.').map(str::trim);
    let (Some(last), Some(shown), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    formats::of_extension(last).any(|format| format.class.runs())
        && formats::of_extension(shown).any(|format| !format.class.runs())
}

/// Whether the rules of `[scan]` may let a file pass unscanned by its name alone or its first bytes, so that it is worth to
/// look at these.
#[must_use]
pub fn may_skip(scan: &Scan, name: &[u8]) -> bool {
    !scan.skip_types.is_empty() || scan.skips_extension(name)
}

/// Whether a file that begins like that passes unscanned.
#[must_use]
pub fn skips(scan: &Scan, name: &[u8], head: &[u8]) -> bool {
    let shown = formats::of_head(head);
    let by_type = match shown {
        Head::Format(format) => {
            scan.skip_types.iter().any(|t| t == format.name || t == format.class.as_str())
        }
        Head::Text | Head::Data => scan.skip_types.iter().any(|t| t == shown.name()),
    };
    if !by_type && !scan.skips_extension(name) {
        return false;
    }
    if !scan.verify_type {
        return true;
    }
    match extension(name) {
        Some(extension) => std::str::from_utf8(&extension).is_ok_and(|e| formats::agrees(e, shown)),
        // no extension, no lie
        None => by_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let text = format!("[gateway]\ninterfaces = [\"lan\"]\ninside = [\"10.0.0.0/8\"]\n{text}");
        Config::parse(&text, Path::new("test.toml")).unwrap()
    }

    fn report(parts: &[(&str, &str)]) -> Report {
        let mut report = Report::error("");
        report.verdict = vscan_scan::report::Verdict::Clean;
        report.error = None;
        report.kind = "message".to_owned();
        for (n, (name, kind)) in (0..).zip(parts) {
            report.tree.push(Part {
                number: n,
                parent: n.checked_sub(1),
                name: (*name).to_owned(),
                kind: (*kind).to_owned(),
                ..Part::default()
            });
        }
        report
    }

    fn forbidden(rules: &str, parts: &[(&str, &str)]) -> Vec<String> {
        let config = config(&format!("[types]\nforbid = [{rules}]\n"));
        let mut report = report(parts);
        judge(&config.types.forbid, b"", &mut report);
        report
            .findings
            .iter()
            .map(|f| format!("{} {} {}", f.part, f.name, f.path.join("/")))
            .collect()
    }

    #[test]
    fn forbidden_by_bytes_by_name_and_deep_inside() {
        let mail = [("message", "message"), ("a.zip", "zip"), ("photo.jpg", "exe")];
        assert_eq!(
            forbidden("\"executable\"", &mail),
            ["2 forbidden: executable message/a.zip/photo.jpg"]
        );
        assert_eq!(forbidden("\"exe\"", &mail), ["2 forbidden: exe message/a.zip/photo.jpg"]);
        assert_eq!(forbidden("\"archive\"", &mail), ["1 forbidden: archive message/a.zip"]);
        assert_eq!(forbidden("\"*.zip\", \"zip\"", &mail), ["1 forbidden: *.zip message/a.zip"]);
        assert_eq!(forbidden("\"script\"", &mail), [""; 0]);
        let scripts = [("message", "message"), ("X.VBS", "text"), ("run.js. .", "text")];
        assert_eq!(forbidden("\"script\"", &scripts).len(), 2);
        assert_eq!(forbidden("\"text\"", &[("message", "message"), ("x.bin", "text")]), [""; 0]);
    }

    #[test]
    fn double_extensions() {
        for (name, double) in [
            ("invoice.pdf.exe", true),
            ("invoice.PDF   .scr", true),
            ("dir.pdf/setup.exe", false),
            ("photo.jpg.js ", true),
            ("archive.tar.gz", false),
            ("setup.exe", false),
            (".pdf.exe", true),
            ("version.1.2.exe", false),
            ("script.sh.txt", false),
        ] {
            let parts = [("message", "message"), (name, "data")];
            let found = forbidden("\"double-extension\"", &parts);
            assert_eq!(found.len(), usize::from(double), "{name}: {found:?}");
        }
    }

    #[test]
    fn parts_that_are_not_listed_are_not_taken_for_harmless() {
        let rules = config("[types]\nforbid = [\"exe\"]\n").types.forbid;
        let mut many = report(&[("message", "message")]);
        many.unlisted = 3;
        judge(&rules, b"", &mut many);
        assert_eq!(many.unread.first().map(|u| u.reason), Some(Reason::Members));
        let mut none = many.clone();
        none.unread.clear();
        judge(&[], b"", &mut none);
        assert!(none.unread.is_empty() && none.findings.is_empty());
    }

    #[test]
    fn other_names_count_and_files_have_one() {
        let rules = config("[types]\nforbid = [\"executable\"]\n").types.forbid;
        let mut mail = report(&[("message", "message"), ("a.txt", "data")]);
        mail.tree[1].other_names.push("a.exe".to_owned());
        judge(&rules, b"", &mut mail);
        assert_eq!(mail.findings.len(), 1);
        assert!(only_forbidden(&mail));
        let mut file = report(&[]);
        file.kind = "data".to_owned();
        judge(&rules, b"dir/setup.msi", &mut file);
        assert_eq!(file.findings[0].name, "forbidden: executable");
    }

    #[test]
    fn what_is_skipped_has_to_be_what_it_says() {
        let head = |name: &str, head: &[u8], rules: &str| {
            let config = config(&format!("[scan]\n{rules}\n"));
            may_skip(&config.scan, name.as_bytes()) && skips(&config.scan, name.as_bytes(), head)
        };
        let (png, exe) = (&b"\x89PNG\r\n\x1a\n"[..], &b"MZ\x90\0"[..]);
        assert!(!head("a.png", png, ""));
        let names = "skip_extensions = [\"png\", \"txt\"]";
        assert!(head("a.png", png, names) && head("A.TXT", b"hello", names));
        assert!(
            !head("a.png", exe, names) && !head("a.txt", exe, names) && !head("a.exe", exe, names)
        );
        assert!(head("a.png", exe, &format!("{names}\nverify_type = false")));
        let types = "skip_types = [\"image\", \"mp4\"]";
        assert!(head("a.png", png, types) && head("a", png, types));
        assert!(head("film.mp4", b"\0\0\0\x20ftypisom", types));
        assert!(!head("a.exe", png, types), "a name that lies");
        assert!(!head("a.png", exe, types) && !head("a.png", b"hello", types));
        assert!(head("a.exe", png, &format!("{types}\nverify_type = false")));
    }
}
