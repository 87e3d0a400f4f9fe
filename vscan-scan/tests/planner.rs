//! The planner against yara-x: whatever the plan leaves out, the findings are those of all rules together, on one thread
//! and on several.
//!
//! For each rule something is made that it finds, or nearly so: its patterns behind the magic number that it asks for. That is
//! compared by itself, and as members of archives and attachments of mail; and so is each decoded part of programs, documents,
//! mails and archives, those that are committed here and those that Debian's packages bring.
//! Set `VSCAN_MEASURED_RULES` to a directory to try the rules there as well.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vscan_scan::engine::{Engines, Signatures};
use vscan_scan::limits::Limits;
use vscan_scan::object::{self, Engine, Hit, Object, Part};
use vscan_scan::process::crew::{Cores, Crew};
use vscan_scan::sniff;
use vscan_scan::wire::ObjectKind;
use yara_x::{Compiler, Rules, Scanner, SourceCode};
use yara_x_parser::Parser;
use yara_x_parser::ast::{AST, Expr, HexSubPattern, HexToken, MatchAnchor, Pattern, Rule};

/// Rules that are difficult to plan: negations, counts, references, modifiers, globals, modules.
const TRICKY: &str = r#"
import "pe"
import "elf"
import "math"
import "hash"

private rule hidden { strings: $a = "a hidden literal" condition: $a }
rule refers { condition: hidden and filesize > 3 }
rule refers_not { condition: not hidden and filesize < 40 }
rule none_of { strings: $a = "this must be missing" condition: none of them and filesize < 20 }
rule zero_of { strings: $a = "this must be missing too" condition: #a == 0 and filesize < 21 }
rule count { strings: $a = "counted literal" condition: #a > 1 }
rule count_few { strings: $a = "counted literal" condition: #a < 2 and filesize < 22 }
rule compares_counts { strings: $a = "counted" nocase $b = "counted" condition: #a > #b }
rule offset { strings: $a = "at an offset" condition: @a[1] > 10 }
rule length { strings: $a = /length [0-9]{2,5}x/ condition: !a[1] > 9 }
rule reads_near { strings: $a = "reads near by" condition: uint8(@a[1] + 13) == 0x21 }
rule two_of { strings: $a = "first of several" $b = "second of several" $c = "third of several" condition: 2 of them }
rule percent { strings: $p1 = "percent one" $p2 = "percent two" $p3 = "percent three" condition: 34% of ($p*) }
rule for_of { strings: $f1 = "for of this" $f2 = "or for that" condition: for any of them : ( $ in (0..400) ) }
rule for_of_not { strings: $f1 = "for of neither" condition: for all of them : ( not $ ) and filesize == 7 }
rule for_in { strings: $a = "in a loop" condition: for any i in (1..#a) : ( @a[i] > 100 ) }
rule for_all_in { condition: for all i in (0..2) : ( uint8(i) == 0x41 ) }
rule with_variable { strings: $a = "with variables" condition: with n = #a : ( n > 2 ) }
rule short_at { strings: $m = "MZ" $a = "behind the magic" condition: $m at 0 and $a }
rule short_in { strings: $m = "<?" $a = "system(" condition: $m in (0..20) and $a }
rule short_in_end { strings: $m = "?>" condition: $m in (filesize-10..filesize) and filesize < 400 }
rule wide_only { strings: $a = "wide characters" wide condition: $a }
rule wide_ascii_nocase { strings: $a = "Wide And Narrow" wide ascii nocase condition: $a }
rule xor_key { strings: $a = "under an unknown key" xor condition: $a }
rule xor_wide { strings: $a = "under a wide key" xor(1-255) wide condition: $a }
rule xor_short { strings: $a = "tiny xor" xor condition: $a }
rule base { strings: $a = "something in base64" base64 condition: $a }
rule base_wide { strings: $a = "something in wide base64" base64wide condition: $a }
rule base_own { strings: $a = "an alphabet of our own" base64("zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA9876543210+/") condition: $a }
rule full { strings: $a = "fullword" fullword condition: $a }
rule hex_jump { strings: $a = { 11 22 33 44 [2-6] 55 ?? 66 77 88 99 } condition: $a }
rule hex_masks { strings: $a = { 1? ?2 3? AA ?4 5? } condition: $a }
rule hex_either { strings: $a = { ( 10 20 30 40 50 | 60 70 80 90 A0 | 01 02 03 04 05 ) FE } condition: $a }
rule hex_not { strings: $a = { ~00 21 43 65 87 A9 } condition: $a }
rule regex_alternatives { strings: $a = /(alpha|beta|gamma) ray[0-9]/ condition: $a }
rule regex_optional { strings: $a = /opt(ional)?ly given/ condition: $a }
rule regex_nocase { strings: $a = /CaSe [a-f]+ blind/i condition: $a }
rule regex_wide { strings: $a = /wide regular/ wide nocase condition: $a }
rule regex_flags { strings: $a = /(?i)inner flag/ condition: $a }
rule regex_classes { strings: $a = /[xyz][0-9][0-9a-f]{3}-/ condition: $a }
rule regex_repeated { strings: $a = /(ab){4,}!/ condition: $a }
rule regex_braces { strings: $a = /foo{}bar baz/ condition: $a }
rule regex_angle { strings: $a = /left \<angle/ condition: $a }
rule is_pe { condition: pe.is_pe }
rule is_no_pe { condition: not pe.is_pe and filesize == 11 }
rule sections { condition: pe.number_of_sections > 2 }
rule no_imports { condition: pe.imports("kernel32.dll") == 0 and filesize == 12 }
rule imports_or { strings: $a = "instead of imports" condition: uint16(0) == 0x5A4D and (pe.imports("kernel32.dll") >= 1 or $a) }
rule exports_or { strings: $a = "instead of exports" condition: pe.exports("Nothing") or $a }
rule hash_or { strings: $a = "instead of a hash" condition: pe.imphash() == "00112233445566778899aabbccddeeff" or $a }
rule not_exports { condition: not pe.exports("Nothing") and filesize == 14 }
rule section_of { strings: $a = "instead of a section" condition: pe.section_index(".text") >= 0 or $a }
rule signed_or { strings: $a = "instead of a signature" condition: for any i in (0..pe.number_of_signatures) : (pe.signatures[i].issuer contains "x") or $a }
rule named_and { strings: $a = /lit{2}le/ condition: filename == "named.txt" or #a > 1 }
rule shape_code { strings: $a = { 81 ?? 74 63 [2-20] 80 ?? 02 73 } condition: $a }
rule shape_gap { strings: $a = { F7 4D [1-16] 3C [4-8] 50 45 } condition: $a }
rule shape_ends { strings: $a = { ( C3 | 5? ) 66 81 ?? 77 67 } condition: $a }
rule shape_wide { strings: $a = /q\^[a-c]{2,3}z/ wide ascii nocase condition: $a }
rule shape_short { strings: $a = "<%" $b = "%>" wide condition: any of them }
rule shape_unbounded { strings: $a = /x~y.*z~w/ condition: $a }
rule shape_optional { strings: $a = /k\^?e\^y\^?s\^/ condition: $a }
rule elf_type { condition: elf.type == elf.ET_DYN or elf.type == elf.ET_EXEC }
rule entropy { condition: math.entropy(0, filesize) > 7.9 and filesize > 200 }
rule hashed { condition: hash.md5(0, filesize) == "5d41402abc4b2a76b9719d911017c592" }
rule magic { strings: $a = "a magic word" condition: uint16be(0) == 0x4d5a and uint32(uint32(0x3c)) == 0x00004550 and $a }
rule magic_or { strings: $a = "or a magic word" condition: uint32(0) == 0x464c457f or $a }
rule magic_not { strings: $a = "other than magic" condition: uint16(0) != 0x5a4d and $a }
rule undefined_not { strings: $a = "beyond the end" condition: not defined uint8(filesize + 1) and $a }
rule named { condition: filename == "named.txt" }
rule sums { strings: $a = "one of the sum" $b = "two of the sum" condition: #a + #b > 1 }
rule always { condition: filesize == 13 }
rule zeros { strings: $a = { 00 00 00 00 00 00 00 00 00 00 00 00 90 90 } condition: $a }
rule anchored_any { strings: $a = "BEGIN" $b = "START" condition: any of them at 0 }
rule xor_seven { strings: $a = "http://" xor condition: $a }
rule xor_keys { strings: $a = "//:ptth" xor(16-31) condition: $a }
rule xor_one_key { strings: $a = "exactly" xor(0x20) wide ascii condition: $a }
rule xor_other_keys { strings: $a = "https://" xor $b = "https://" condition: $a and #a > #b }
rule xor_other_full { strings: $a = "ftps://" xor $b = "ftps://" fullword condition: #a > #b }
rule name_matches { condition: filename matches /\.te?xt\.(exe|com)$/i }
rule name_equals { condition: filename iequals "Report.DOC" }
rule name_ends { condition: filename iendswith ".Scr" and filesize < 60 }
rule name_starts { condition: filename startswith "inv" and filename contains "oice" }
rule ending { condition: extension == ".jpg" and filetype != "JPEG" and filesize < 50 }
rule kelvin { condition: filename icontains "k2k" }
rule path { condition: filepath icontains "EPORT" and not filename == "x" }
rule owned { condition: owner == "" and filename == "owned" }
rule confirmed { strings: $a = { 00 02 00 01 00 02 ?? ?? 33 [2-3] 44 ~55 66 } condition: $a }
rule confirmed_wide { strings: $a = /zero[0-9]{2}x.y/ wide ascii nocase condition: $a }
rule pe_time { condition: pe.timestamp == 0x12345678 }
rule pe_not { condition: pe.is_pe and not (pe.timestamp == 1 or (pe.machine == 7 and pe.is_dll())) }
rule pe_sections { condition: for any s in pe.sections : ( s.name == ".odd" ) }
rule pe_section_at { condition: for any i in (0..pe.number_of_sections) : ( pe.sections[i].name == ".odd" ) }
rule pe_section_index { condition: pe.section_index(".odd") >= 0 }
rule pe_exports { condition: pe.exports("SsSs") and pe.number_of_exports == 1 }
rule pe_imports { condition: pe.imports("kernel32.dll", "createfilea") and pe.imports("Kernel32.dll") == 2 }
rule pe_imphash { condition: pe.imphash() == "PEHASH" }
rule pe_imphash_not { strings: $a = "beside a hash" condition: pe.imphash() != "PEHASH" or $a }
rule pe_nested { condition: (pe.timestamp > 5 and ((pe.machine == 0x14c) or pe.machine == 1)) and (filesize > 3 or pe.entry_point == 7) }
rule pe_defined { condition: defined pe.timestamp and not defined pe.pdb_path }
rule pe_version { condition: pe.version_info["CompanyName"] contains "Nobody" or pe.timestamp == 0x12345679 }
rule pe_signed { condition: pe.number_of_signatures > 0 or for any i in (0..pe.number_of_signatures) : ( pe.signatures[i].serial == "00" or pe.timestamp == 0x1234567a ) }
rule tagged : one two { meta: x = 1 strings: $a = "with tags and meta" condition: $a }
"#;

/// A 32-bit program: a section with an odd name, an export, two imports.
fn program(timestamp: u32) -> Vec<u8> {
    let mut data = vec![0u8; 0x800];
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(60, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0\x4c\x01\x01\0");
    put(0x88, &timestamp.to_le_bytes());
    put(0x94, &[224, 0, 2, 1]);
    put(0x98, &[0x0b, 0x01]);
    for (at, value) in [
        (0x98 + 32, 0x1000u32),
        (0x98 + 36, 0x200),
        (0x98 + 92, 16),
        (0xf8, 0x1300),
        (0xfc, 0x80),
        (0x100, 0x1000),
        (0x104, 40),
        (0x178 + 8, 0x400),
        (0x178 + 12, 0x1000),
        (0x178 + 16, 0x400),
        (0x178 + 20, 0x400),
        (0x400, 0x1100),
        (0x40c, 0x1200),
        (0x410, 0x1140),
        (0x500, 0x1240),
        (0x504, 0x8000_0011),
        (0x710, 1),
        (0x714, 1),
        (0x718, 1),
        (0x71c, 0x1340),
        (0x720, 0x1350),
        (0x724, 0x1360),
        (0x740, 0x1010),
        (0x750, 0x1370),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x178, b".odd");
    put(0x600, b"KERNEL32.dll");
    put(0x640, b"\0\0CreateFileA");
    put(0x770, b"ssss");
    data
}

/// The hash of its imports, as its rule has it.
fn tricky() -> String {
    use md5::Digest;
    let hash = md5::Md5::digest("kernel32.createfilea,kernel32.ord17");
    TRICKY.replace("PEHASH", &hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// A global rule bounds its own file; private ones are not told.
const GLOBAL: &str = r#"
global rule small { condition: filesize < 300 }
private global rule secret { strings: $s = "open the door" condition: $s }
rule bounded { strings: $a = "bounded by a global" condition: $a }
rule bounded_always { condition: true }
"#;

fn plain(files: &[(PathBuf, Vec<u8>)]) -> Rules {
    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true);
    for variable in ["filename", "filepath", "extension", "filetype", "owner"] {
        compiler.define_global(variable, "").unwrap();
    }
    for (path, text) in files {
        compiler.new_namespace(&path.to_string_lossy());
        let added = compiler.add_source(SourceCode::from(&text[..])).map(|_| ());
        assert!(added.is_ok(), "{}: {}", path.display(), added.unwrap_err());
    }
    compiler.build()
}

/// Both sides of the comparison.
struct Pair<'r> {
    plain: Scanner<'r>,
    planned: Engines<'r>,
    /// The same on four threads, with seams at every 64 bytes.
    helped: Engines<'r>,
    found: BTreeSet<String>,
    /// Parts that were compared, by their types.
    parts: BTreeMap<&'static str, u32>,
}

impl<'r> Pair<'r> {
    fn new(rules: &'r Rules, loaded: &'r Signatures) -> Self {
        let mut plain = Scanner::new(rules);
        plain.fast_scan(true).max_matches_per_pattern(10_000);
        let crew = Crew::start(3, Cores::alone(4)).unwrap();
        let helped = Engines::new(loaded).helped_from(crew, 1, 64);
        let planned = Engines::new(loaded);
        Self { plain, planned, helped, found: BTreeSet::new(), parts: BTreeMap::new() }
    }

    fn compare(&mut self, name: &str, data: &[u8]) {
        let path = [name.to_owned()];
        self.part(&Part { data, kind: sniff::sniff(data), name, path: &path, detail: false });
    }

    /// Compares over an object and all that is decoded of it.
    fn object(&mut self, kind: ObjectKind, name: &str, data: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(600);
        let object = Object { name: Some(name), ..Object::new(kind, data, deadline) };
        object::scan(self, &Limits::default(), &object);
    }

    fn part(&mut self, part: &Part<'_>) {
        let Part { data, kind, name, .. } = *part;
        *self.parts.entry(kind.label()).or_default() += 1;
        for (variable, value) in [
            ("filename", name.to_owned()),
            ("filepath", part.path.join("/")),
            ("extension", extension(name)),
            ("filetype", kind.label().to_ascii_uppercase()),
        ] {
            self.plain.set_global(variable, value).unwrap();
        }
        let mut expected: Vec<String> = self
            .plain
            .scan(data)
            .unwrap()
            .matching_rules()
            .map(|rule| rule.identifier().to_owned())
            .collect();
        let (mut hits, mut together) = (Vec::new(), Vec::new());
        let part = Part { detail: true, ..*part };
        self.planned.scan(&part, &mut hits).unwrap();
        self.helped.scan(&part, &mut together).unwrap();
        assert_eq!(together, hits, "{} on four threads", part.path.join("/"));
        let mut hits: Vec<String> = hits.into_iter().map(|hit| hit.name).collect();
        expected.sort();
        hits.sort();
        assert_eq!(
            hits,
            expected,
            "{}: {} bytes: {}",
            part.path.join("/"),
            data.len(),
            data[..data.len().min(200)].escape_ascii()
        );
        self.found.extend(hits);
    }
}

impl Engine for Pair<'_> {
    fn name(&self) -> &'static str {
        "pair"
    }

    fn scan(&mut self, part: &Part<'_>, _: &mut Vec<Hit>) -> Result<(), String> {
        self.part(part);
        Ok(())
    }
}

/// As public rule sets expect it.
fn extension(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.rfind('.').filter(|&dot| dot > 0).map_or("", |dot| &name[dot..]).to_ascii_lowercase()
}

/// What the patterns of a rule match, one behind the other, behind the magic number of the rule.
fn sample(rule: &Rule<'_>, twice: bool) -> Vec<u8> {
    let mut data = Vec::new();
    head(&rule.condition, rule, &mut data);
    if data.is_empty() {
        data.extend_from_slice(b"....");
    }
    for _ in 0..if twice { 12 } else { 1 } {
        for pattern in rule.patterns.iter().flatten() {
            data.extend(one(pattern));
            data.extend_from_slice(b"\n.\n");
        }
    }
    data
}

/// The bytes at fixed places that a condition asks for.
fn head(expr: &Expr<'_>, rule: &Rule<'_>, data: &mut Vec<u8>) {
    let mut put = |at: usize, bytes: &[u8]| {
        if data.len() < at + bytes.len() {
            data.resize(at + bytes.len(), 0);
        }
        data[at..at + bytes.len()].copy_from_slice(bytes);
    };
    match expr {
        Expr::Eq(sides) => {
            if let (Expr::FuncCall(call), Expr::LiteralInteger(value)) = (&sides.lhs, &sides.rhs)
                && let [Expr::LiteralInteger(at)] = &call.args[..]
                && (0..4096).contains(&at.value)
            {
                let le = value.value.to_le_bytes();
                let width =
                    match call.identifier.name.trim_start_matches('u').trim_end_matches("be") {
                        "int8" => 1,
                        "int16" => 2,
                        "int32" => 4,
                        _ => return,
                    };
                let mut bytes = le[..width].to_vec();
                if call.identifier.name.ends_with("be") {
                    bytes.reverse();
                }
                put(at.value as usize, &bytes);
            }
        }
        Expr::PatternMatch(found) => {
            if let Some(MatchAnchor::At(at)) = &found.anchor
                && let Expr::LiteralInteger(at) = &at.expr
                && (0..4096).contains(&at.value)
                && let Some(pattern) = rule
                    .patterns
                    .iter()
                    .flatten()
                    .find(|p| p.identifier().name == found.identifier.name)
            {
                put(at.value as usize, &one(pattern));
            }
        }
        Expr::And(parts) => parts.operands().for_each(|part| head(part, rule, data)),
        Expr::Or(parts) => head(parts.first(), rule, data),
        _ => {}
    }
}

/// Something that a pattern matches.
fn one(pattern: &Pattern<'_>) -> Vec<u8> {
    let modifiers = pattern.modifiers();
    let mut bytes = match pattern {
        Pattern::Text(text) => text.text.value.to_vec(),
        Pattern::Hex(hex) => of_hex(&hex.sub_patterns),
        Pattern::Regexp(regexp) => {
            let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build();
            let mut hir = hir;
            let mut out = Vec::new();
            if let Ok(hir) = hir.parse(regexp.regexp.src) {
                of_hir(&hir, &mut out);
            }
            out
        }
    };
    if modifiers.wide().is_some() && (modifiers.ascii().is_none() || bytes.len() % 2 == 0) {
        bytes = bytes.iter().flat_map(|&b| [b, 0]).collect();
    }
    if modifiers.nocase().is_some() && bytes.len() % 3 == 0 {
        bytes.make_ascii_uppercase();
    }
    if modifiers.xor().is_some() {
        bytes.iter_mut().for_each(|b| *b ^= 0x41);
    }
    if modifiers.base64().is_some() || modifiers.base64wide().is_some() {
        let mut encoded = base64(&[b"x", &bytes[..], b"yz"].concat());
        if modifiers.base64wide().is_some() {
            encoded = encoded.iter().flat_map(|&b| [b, 0]).collect();
        }
        return encoded;
    }
    bytes
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    bits.chunks_exact(6)
        .map(|six| ALPHABET[six.iter().fold(0, |n, bit| n << 1 | usize::from(*bit))])
        .collect()
}

fn of_hex(pattern: &HexSubPattern) -> Vec<u8> {
    let mut out = Vec::new();
    for token in pattern.iter() {
        match token {
            HexToken::Byte(byte) => out.push(byte.value & byte.mask | 0x5a & !byte.mask),
            HexToken::NotByte(byte) => out.push(!byte.value),
            HexToken::Alternative(either) => {
                out.extend(of_hex(&either.alternatives[either.alternatives.len() - 1]));
            }
            HexToken::Jump(jump) => {
                out.resize(out.len() + jump.start.unwrap_or(0).min(1000) as usize, 0x5a);
            }
        }
    }
    out
}

fn of_hir(hir: &regex_syntax::hir::Hir, out: &mut Vec<u8>) {
    use regex_syntax::hir::{Class, HirKind};
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => out.extend_from_slice(&literal.0),
        HirKind::Class(Class::Bytes(class)) => {
            out.extend(class.iter().last().map(|r| r.end().min(b'z').max(r.start())))
        }
        HirKind::Class(Class::Unicode(_)) => out.push(b'a'),
        HirKind::Repetition(r) => (0..r.min.min(100)).for_each(|_| of_hir(&r.sub, out)),
        HirKind::Capture(capture) => of_hir(&capture.sub, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| of_hir(part, out)),
        HirKind::Alternation(parts) => of_hir(&parts[parts.len() - 1], out),
    }
}

/// A zip archive of stored members.
fn zip(members: &[Vec<u8>]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (i, data) in members.iter().enumerate() {
        let name = format!("{i}.txt");
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let mut common = vec![0; 8];
        for field in [crc.sum(), data.len() as u32, data.len() as u32, name.len() as u32] {
            common.extend(field.to_le_bytes());
        }
        directory.extend([&b"PK\x01\x02\x14\0\x14\0"[..], &common, &[0; 10]].concat());
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend([&b"PK\x03\x04\x14\0"[..], &common, name.as_bytes(), data].concat());
    }
    let (at, len) = (out.len() as u32, directory.len() as u32);
    let count = (members.len() as u16).to_le_bytes().repeat(2);
    out.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count].concat());
    out.extend([&len.to_le_bytes()[..], &at.to_le_bytes(), &[0, 0]].concat());
    out
}

/// A message with these attachments, encoded in turn by each of the usual ways.
fn mail(attachments: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"From: a@example.org\r\nSubject: samples\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=limit\r\n\r\n"
        .to_vec();
    for (i, data) in attachments.iter().enumerate() {
        let (encoding, body) = match i % 3 {
            0 => {
                let letters = base64(&[&data[..], &vec![0; (3 - data.len() % 3) % 3]].concat());
                ("base64", letters.chunks(76).collect::<Vec<_>>().join(&b"\r\n"[..]))
            }
            1 => {
                let letters = data.iter().map(|b| format!("={b:02X}"));
                let lines: Vec<String> = letters.collect();
                let lines: Vec<String> = lines.chunks(24).map(|line| line.concat()).collect();
                ("quoted-printable", lines.join("=\r\n").into_bytes())
            }
            _ => ("binary", data.clone()),
        };
        let head = format!(
            "--limit\r\nContent-Type: application/octet-stream; name={i}.bin\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n"
        );
        out.extend([head.as_bytes(), &body, b"\r\n"].concat());
    }
    out.extend(b"--limit--\r\n");
    out
}

/// The files under a directory, at most so many of them, evenly chosen, and none above so many bytes.
fn files(dir: &str, most: usize, size: u64) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut directories = vec![PathBuf::from(dir)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() <= size) {
                all.push(entry.path());
            }
        }
    }
    all.sort();
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step).collect()
}

/// Programs, documents, mails and archives.
fn corpus() -> Vec<(ObjectKind, PathBuf)> {
    const OWN: &str = env!("CARGO_MANIFEST_DIR");
    let mut all = Vec::new();
    for (dir, most, size) in [
        (&format!("{OWN}/tests/fixtures")[..], 1000, 1 << 20),
        (&format!("{OWN}/fuzz/corpus"), 600, 1 << 20),
        ("/usr/share/clamav-testfiles", 1000, 8 << 20),
        ("/usr/share/doc", 150, 256 << 10),
        ("/usr/share/man", 100, 256 << 10),
        ("/usr/share/perl", 40, 256 << 10),
        ("/usr/bin", 60, 1 << 20),
        ("/usr/lib/x86_64-linux-gnu", 30, 1 << 20),
    ] {
        all.extend(files(dir, most, size).into_iter().map(|path| (ObjectKind::File, path)));
    }
    for target in ["message", "charset", "names", "repair"] {
        let dir = format!("{OWN}/fuzz/corpus/{target}");
        all.extend(files(&dir, 150, 1 << 20).into_iter().map(|path| (ObjectKind::Message, path)));
    }
    all
}

/// Compares over samples of all rules, over them within other bytes, as members and attachments, and over the corpus.
fn differ(dir: &Path) -> (BTreeSet<String>, usize) {
    let mut files: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yar" || e == "yara"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    let rules = plain(&files);
    let loaded = Signatures::load(&[dir.to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    assert_eq!(loaded.count, rules.iter().len() as u64);
    let mut pair = Pair::new(&rules, &loaded);
    let mut count = 0;
    let mut all = Vec::new();
    let system = std::fs::read("/proc/self/exe").unwrap();
    for (_, text) in &files {
        pair.compare("rules.yar", text);
        let ast = AST::from(Parser::new(text));
        for rule in ast.rules() {
            count += 1;
            let samples = [sample(rule, false), sample(rule, true)];
            for data in &samples {
                pair.compare("sample", data);
            }
            // Beside other bytes: other rules are candidates too.
            if count % 16 == 0 {
                let place = count * 4096 % (system.len() - 40_000);
                pair.compare("mixed", &[&samples[0], &system[place..place + 40_000]].concat());
            }
            all.extend(samples);
        }
    }
    let before = pair.found.clone();
    for some in all.chunks(400) {
        pair.object(ObjectKind::File, "samples.zip", &zip(some));
        pair.object(ObjectKind::Message, "", &mail(some));
    }
    for (kind, path) in corpus() {
        let data = std::fs::read(&path).unwrap();
        pair.object(kind, &path.file_name().unwrap().to_string_lossy(), &data);
    }
    assert!(before.len() > 2 && pair.found.is_superset(&before));
    // It has been what it is said to be.
    for kind in [
        "elf",
        "exe",
        "text",
        "html",
        "message",
        "mbox",
        "ole",
        "pdf",
        "rtf",
        "zip",
        "gzip",
        "tar",
        "7z",
        "rar",
        "cab",
        "iso9660",
        "cpio",
        "rpm",
        "xz",
        "chm",
        "tnef",
        "uuencoded",
        "data",
    ] {
        assert!(pair.parts.contains_key(kind), "nothing of type {kind}: {:?}", pair.parts);
    }
    (pair.found, count)
}

#[test]
fn tricky_rules_find_what_they_find_without_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tricky.yar"), tricky()).unwrap();
    std::fs::write(dir.path().join("global.yar"), GLOBAL).unwrap();
    let (mut found, count) = differ(dir.path());
    let files: Vec<(PathBuf, Vec<u8>)> = ["global.yar", "tricky.yar"]
        .iter()
        .map(|name| (dir.path().join(name), std::fs::read(dir.path().join(name)).unwrap()))
        .collect();
    let rules = plain(&files);
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut pair = Pair::new(&rules, &loaded);
    let wide = |text: &str| -> Vec<u8> { text.bytes().flat_map(|b| [b, 0]).collect() };
    let xor = |bytes: &[u8], key: u8| -> Vec<u8> { bytes.iter().map(|b| b ^ key).collect() };
    let many = |text: &str, n: usize| text.repeat(n).into_bytes();
    let mut random = vec![0u8; 4096];
    let mut state = 7u64;
    for byte in &mut random {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 33) as u8;
    }
    for (name, data) in [
        ("a", b"".to_vec()),
        ("a", b"1234567".to_vec()),
        ("a", b"12345678901".to_vec()),
        ("a", b"123456789012".to_vec()),
        ("a", b"1234567890123".to_vec()),
        ("a", b"hello".to_vec()),
        ("a", b"AAA".to_vec()),
        ("named.txt", b"x".to_vec()),
        ("a", b"reads near by! and far".to_vec()),
        ("a", b"COUNTED literal, Counted literal".to_vec()),
        ("a", b"12345678901234".to_vec()),
        ("a", b"123456789012345".to_vec()),
        ("a", b"\x66\x81\x00\x77\x67".to_vec()),
        ("a", b"\xc3\x66\x81\x00\x77\x67".to_vec()),
        ("a", b"..\x5f\x66\x81\xff\x77\x67".to_vec()),
        ("a", b"\xf7\x4d............\x3c.....\x50\x45".to_vec()),
        ("a", b"\xf7\x4d............\x3c.........\x50\x45".to_vec()),
        ("a", b"Q^abZ q^aBcz".to_vec()),
        ("a", wide("q^AAz")),
        ("a", b"x~y .. z~w, ke^ys^ k^e^ys^ <%".to_vec()),
        ("a", wide("%>")),
        ("a", b"little little".to_vec()),
        (
            "a",
            b"instead of exports, instead of a hash, instead of a section, instead of a signature"
                .to_vec(),
        ),
        ("a", b"MZ instead of imports".to_vec()),
        ("a", many("with variables ", 3)),
        ("a", many("in a loop; ", 20)),
        ("a", b"one of the sum, two of the sum".to_vec()),
        ("a", b"............at an offset".to_vec()),
        ("a", b"length 12345x".to_vec()),
        ("a", b"...?>".to_vec()),
        ("a", b"..<?php system($x)".to_vec()),
        ("a", wide("wide characters and WIDE AND NARROW, Wide Regular")),
        ("a", [b"....".to_vec(), xor(b"under an unknown key", 0x93), xor(b"tiny xor", 7)].concat()),
        ("a", xor(&wide("under a wide key"), 0x20)),
        ("a", b"uppercase INNER FLAG and case abc BLIND".to_vec()),
        ("a", b"left <angle and foo{}bar baz".to_vec()),
        ("a", b"open the door: bounded by a global".to_vec()),
        ("a", [b"open the door: bounded by a global".to_vec(), vec![b'.'; 400]].concat()),
        ("a", b"BEGIN".to_vec()),
        ("a", random),
        ("a", [vec![0; 12], vec![0x90; 2], vec![1; 40]].concat()),
        ("true", std::fs::read("/bin/true").unwrap()),
        (
            "a",
            [
                b"MZ".to_vec(),
                vec![0; 58],
                64u32.to_le_bytes().to_vec(),
                b"PE\0\0 a magic word, behind the magic".to_vec(),
            ]
            .concat(),
        ),
        ("a.text.EXE", b"x".to_vec()),
        ("a.txt.com", b"x".to_vec()),
        ("a.tt.com", b"x".to_vec()),
        ("rEPORT.doc", b"x".to_vec()),
        ("saver.SCR", b"x".to_vec()),
        ("invoice", b"x".to_vec()),
        ("invoke oice", b"x".to_vec()),
        ("photo.JPG", b"x".to_vec()),
        ("\u{212a}2K", b"x".to_vec()),
        ("owned", b"x".to_vec()),
        ("\u{2c67}2k.txt.exe", b"x".to_vec()),
        ("a", b"\0\x02\0\x01\0\x02..\x33...\x44\x56\x66".to_vec()),
        ("a", b"\0\x02\0\x01\0\x02\0\x02\0\x01\0\x02..\x33..\x44\x00\x66".to_vec()),
        ("a", b"\0\x02\0\x01\0\x02..\x33..\x44\x55\x66".to_vec()),
        ("a", b"ZERO99x\ny ZERO12x.y".to_vec()),
        ("a", wide("zero34X_Y")),
        ("a", program(0x1234_5678)),
        ("a", program(0x1234_5679)),
        ("a", program(0x1234_567a)),
        ("a", program(1)),
        ("a", [program(7), b"beside a hash".to_vec()].concat()),
    ] {
        pair.compare(name, &data);
    }
    // At every length: the headers are cut.
    (0..0x800).step_by(13).for_each(|len| pair.compare("a", &program(0x1234_5678)[..len]));
    // Under every key, at the beginning, in the middle and at the end.
    for key in 0..=255 {
        for text in ["http://", "//:ptth", "exactly", "https://", "ftps://"] {
            for there in [xor(text.as_bytes(), key), xor(&wide(text), key)] {
                pair.compare("a", &there);
                let place = usize::from(key) % 61;
                let plain = text.repeat(usize::from(key) % 3);
                let data =
                    [&vec![b'.'; place][..], &there, &[b'_'; 9], plain.as_bytes(), &there].concat();
                pair.compare("a", &data);
            }
        }
    }
    found.extend(std::mem::take(&mut pair.found));
    let names: Vec<String> = rules.iter().map(|r| r.identifier().to_owned()).collect();
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| !found.contains(*name))
        // Not told, or wants a real Windows program, or a value that is not made here.
        .filter(|name| {
            !["hidden", "secret", "sections", "is_pe", "base_own"].contains(&name.as_str())
        })
        .collect();
    assert!(missing.is_empty(), "of {count} rules these are never found: {missing:?}");
}

#[test]
fn shipped_rules_find_what_they_find_without_a_plan() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rules");
    let (found, count) = differ(&dir);
    assert!(found.len() * 3 >= count, "{} of {count} rules are found", found.len());
}

#[test]
fn measured_rules_find_what_they_find_without_a_plan() {
    let Some(dir) = std::env::var_os("VSCAN_MEASURED_RULES") else { return };
    let (found, count) = differ(Path::new(&dir));
    assert!(found.len() * 2 >= count, "{} of {count} rules are found", found.len());
}

/// Data that is made to be looked at everywhere: no scan may take much longer than without a plan.
#[test]
fn no_data_makes_the_plan_slow() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tricky.yar"), tricky()).unwrap();
    let files = [(dir.path().join("tricky.yar"), tricky().into_bytes())];
    let rules = plain(&files);
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut scanner = Scanner::new(&rules);
    scanner.fast_scan(true).max_matches_per_pattern(10_000);
    let mut engines = Engines::new(&loaded);
    let kinds: [&[u8]; 9] = [
        b"\0",
        b"\0\x02\0\x01",
        b"\0\x02\0\x01\0\x02..\x33..\x44",
        b"http:/",
        b"\x81\x01tc",
        b"\xf7\x4d",
        b"q^a",
        b"x~y",
        b"COUNTED literal MZ",
    ];
    for bytes in kinds {
        let mut data = b"MZ".to_vec();
        data.extend(bytes.iter().cycle().take(1 << 20));
        let path = ["a".to_owned()];
        let part =
            Part { data: &data, kind: sniff::sniff(&data), name: "a", path: &path, detail: false };
        let mut least = [Duration::MAX; 2];
        for _ in 0..3 {
            let started = Instant::now();
            scanner.scan(&data).unwrap();
            least[0] = least[0].min(started.elapsed());
            let started = Instant::now();
            engines.scan(&part, &mut Vec::new()).unwrap();
            least[1] = least[1].min(started.elapsed());
        }
        // A megabyte in a tenth of a second, whatever it is, or little more than without a plan.
        let bound = Duration::from_millis(100).max(least[0] * 3);
        assert!(least[1] < bound, "{}: {least:?}", bytes.escape_ascii());
    }
}

#[test]
fn few_units_run_on_what_nothing_is_found_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for i in 0..1000 {
        text += &format!(
            "rule r{i} {{ strings: $a = \"a literal with the number {i}!\" condition: $a }}\n"
        );
    }
    std::fs::write(dir.path().join("many.yar"), text).unwrap();
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut engines = Engines::new(&loaded);
    let (needed, all) = engines.needed(b"nothing of the kind");
    assert_eq!(needed, 0);
    assert!(all >= 8, "{all} units");
    assert_eq!(engines.needed(b"... a literal with the number 777! ...").0, 1);
    let by_name: HashMap<&str, u32> = [
        ("by literal", loaded.rules[0].shares().by_literal),
        ("always", loaded.rules[0].shares().always),
    ]
    .into();
    assert_eq!(by_name["by literal"], 1000);
}

/// What a rule finds that asks for the time is found anew each time, also in what the worker remembers; nothing else is.
#[test]
fn rules_that_ask_for_the_time_are_asked_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let included = dir.path().join("included.inc");
    std::fs::write(&included, "import \"time\" rule also_even { strings: $a = \"tick\" condition: $a and time.now() % 2 == 0 }").unwrap();
    for (name, text) in [
        (
            "a.yar",
            "import \"time\" private rule even { condition: time.now() % 2 == 0 } \
                   rule is_even { strings: $a = \"tick\" condition: $a and even } \
                   rule asks_not { strings: $a = \"tick\" condition: $a }"
                .to_owned(),
        ),
        ("b.yar", "rule plain { strings: $a = \"tick\" condition: $a }".to_owned()),
        ("c.yar", format!("include \"{}\"", included.display())),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    let crew = Crew::start(2, Cores::alone(3)).unwrap();
    let helped = Engines::new(&loaded).remembering(100).helped_from(crew, 1, 64);
    // Threads that help are given all units of a part, which then is not remembered.
    for (mut engines, remembers) in
        [(Engines::new(&loaded).remembering(100), true), (helped, false)]
    {
        let until = Instant::now() + Duration::from_secs(10);
        let (mut odd, mut even, mut known) = (0, 0, 0);
        while odd == 0 || even == 0 || remembers && known < 2 {
            assert!(Instant::now() < until, "{odd} {even} {known}");
            let data = b"a tick";
            let part = Part { data, kind: sniff::sniff(data), name: "", path: &[], detail: false };
            let mut hits = Vec::new();
            engines.scan(&part, &mut hits).unwrap();
            assert!(engines.take_timely());
            known += engines.take_known();
            let mut names: Vec<String> = hits.into_iter().map(|hit| hit.name).collect();
            names.sort();
            match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["asks_not", "plain"] => odd += 1,
                ["also_even", "asks_not", "is_even", "plain"] => even += 1,
                // The second may have changed between two of them.
                _ => {}
            }
        }
        assert_eq!(known > 0, remembers);
    }
    // What none of them can match on does not depend on the time. A file that includes others is not looked into.
    std::fs::remove_file(dir.path().join("c.yar")).unwrap();
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut engines = Engines::new(&loaded).remembering(100);
    for (data, timely) in [(&b"nothing"[..], false), (b"a tick", true), (b"nothing", false)] {
        let part = Part { data, kind: sniff::sniff(data), name: "", path: &[], detail: false };
        engines.scan(&part, &mut Vec::new()).unwrap();
        assert_eq!(engines.take_timely(), timely, "{}", data.escape_ascii());
    }
}
