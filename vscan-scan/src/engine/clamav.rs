//! ClamAV's signatures, as far as they say the same in another language.
//!
//! Body signatures (`.ndb`) and logical ones (`.ldb`) become YARA rules: what ClamAV's matcher knows, rules can say,
//! and so they are planned, filtered and scanned like all others. What has no like is left to a clamd and counted by
//! kind: bytecode, PCRE, icons, normalised text, macros, byte comparisons. Hashes of files and of sections of Windows
//! programs are lists ([`super::hashes`]). The forms are those of ClamAV's "Signatures" manual.

use super::hashes::{self, Algorithm, Entry};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Read;

/// Largest file inside a database; the largest of ClamAV's has 300 MiB.
const MEMBER_MAX: u64 = 1 << 30;

/// Length of the header of a `.cvd` or `.cld`.
const CVD_HEADER: usize = 512;

/// Metadata of the rules made here: ClamAV's name, by which detections are told.
pub const NAME_KEY: &str = "clamav_name";

/// What was read of ClamAV's files.
#[derive(Debug, Default)]
pub struct Database {
    /// YARA rules for body and logical signatures.
    pub rules: String,
    /// Number of them.
    pub rule_count: u64,
    /// Hashes of files.
    pub files: Vec<Entry>,
    /// Hashes of sections of Windows programs.
    pub sections: Vec<Entry>,
    /// Hashes of files that are let pass.
    pub allowed: Vec<Entry>,
    /// Names that are left out.
    pub ignored: HashSet<String>,
    /// Signatures that have no like here, by the reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The same by their names, where a signature is one line.
    pub skipped_names: Vec<(String, &'static str)>,
}

impl Database {
    /// Reads the names that are left out (`.ign`, `.ign2`); to be done before all others.
    pub fn read_ignored(&mut self, text: &[u8]) {
        for line in lines(text) {
            // `.ign` has `database:line:name`, `.ign2` has `name` or `name:md5`.
            let fields: Vec<&str> = line.split(':').collect();
            let name = match fields[..] {
                [_, number, name, ..] if number.parse::<u64>().is_ok() => name,
                [name, ..] => name,
                [] => continue,
            };
            self.ignored.insert(name.to_owned());
        }
    }

    /// Reads a file of this ending; its lines with what is wrong with them.
    pub fn read(&mut self, ending: &str, text: &[u8]) -> Vec<(usize, String)> {
        let mut wrong = Vec::new();
        for (number, line) in text.split(|&b| b == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read = match ending {
                "hdb" | "hsb" | "hdu" | "hsu" => self.file_hash(line),
                "mdb" | "msb" | "mdu" | "msu" => self.section_hash(line),
                "fp" | "sfp" => hashes::line(line).map(|entry| self.allowed.extend(entry)),
                "ndb" | "ndu" => self.body(line),
                "ldb" | "ldu" => self.logical(line),
                _ => Err("an ending that is not known here".into()),
            };
            if let Err(message) = read {
                wrong.push((number + 1, message));
            }
        }
        wrong
    }

    /// Counts signatures without names.
    pub fn skip_unnamed(&mut self, reason: &'static str, count: u64) {
        *self.skipped.entry(reason).or_default() += count;
    }

    /// Number of signatures that have no like here.
    #[must_use]
    pub fn skipped_count(&self) -> u64 {
        self.skipped.values().sum()
    }

    fn skip(&mut self, name: &str, reason: &'static str) {
        self.skip_unnamed(reason, 1);
        self.skipped_names.push((name.to_owned(), reason));
    }

    fn file_hash(&mut self, line: &str) -> Result<(), String> {
        if let Some(entry) = hashes::line(line)?
            && !self.ignored.contains(&entry.name)
        {
            self.files.push(entry);
        }
        Ok(())
    }

    /// `SIZE:HASH:NAME`
    fn section_hash(&mut self, line: &str) -> Result<(), String> {
        let mut fields = line.split(':');
        let (Some(size), Some(hash), Some(name)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err("not `size:hash:name`".into());
        };
        let hash = hashes::hex(hash).ok_or("no hash")?;
        let algorithm =
            Algorithm::ALL.into_iter().find(|a| a.bytes() == hash.len()).ok_or("no hash")?;
        let size = match size {
            "*" => None,
            size => Some(size.parse().map_err(|_| "no size")?),
        };
        if !self.ignored.contains(name) {
            self.sections.push(Entry { algorithm, hash, size, name: name.to_owned() });
        }
        Ok(())
    }

    /// `NAME:TARGET:OFFSET:HEX[:MIN[:MAX]]`
    fn body(&mut self, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, target, offset, signature, ..] = fields[..] else {
            return Err("not `name:target:offset:hex`".into());
        };
        if self.ignored.contains(name) {
            return Ok(());
        }
        let Some(target) = target_condition(target)? else {
            self.skip(name, "normalised text");
            return Ok(());
        };
        let pattern = match pattern(signature, "") {
            Ok(pattern) => pattern,
            Err(reason) => {
                self.skip(name, reason);
                return Ok(());
            }
        };
        let Some(found) = placed(offset, "$_a0") else {
            self.skip(name, "offset");
            return Ok(());
        };
        self.rule(name, &[pattern], &and(&target, &found));
        Ok(())
    }

    /// `NAME;TARGET DESCRIPTION;EXPRESSION;SUBSIGNATURE;...`
    fn logical(&mut self, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.split(';').collect();
        let [name, description, expression, ref subsignatures @ ..] = fields[..] else {
            return Err("not `name;description;expression;subsignatures`".into());
        };
        if self.ignored.contains(name) {
            return Ok(());
        }
        let mut condition = String::new();
        for item in description.split(',') {
            match item.split_once(':') {
                // Levels are those of ClamAV's engine.
                Some(("Engine", _)) | None => {}
                Some(("Target", target)) => match target_condition(target)? {
                    Some(target) => condition = and(&condition, &target),
                    None => {
                        self.skip(name, "normalised text");
                        return Ok(());
                    }
                },
                Some(("FileSize", range)) => {
                    let Some((from, to)) = range.split_once('-') else {
                        return Err("no range of sizes".into());
                    };
                    let (Ok(from), Ok(to)) = (from.parse::<u64>(), to.parse::<u64>()) else {
                        return Err("no range of sizes".into());
                    };
                    condition =
                        and(&condition, &format!("filesize >= {from} and filesize <= {to}"));
                }
                Some(_) => {
                    self.skip(name, "icons and containers");
                    return Ok(());
                }
            }
        }
        let mut patterns = Vec::new();
        let mut offsets = Vec::new();
        for subsignature in subsignatures {
            if subsignature.contains('/') {
                self.skip(name, "regular expressions");
                return Ok(());
            }
            if subsignature.contains("${")
                || subsignature.contains('#')
                || subsignature.contains("fuzzy_img")
            {
                self.skip(name, "macros, comparisons and pictures");
                return Ok(());
            }
            let (body, flags) = subsignature.split_once("::").unwrap_or((subsignature, ""));
            let (offset, body) = body.rsplit_once(':').unwrap_or(("*", body));
            match pattern(body, flags) {
                Ok(pattern) => patterns.push(pattern),
                Err(reason) => {
                    self.skip(name, reason);
                    return Ok(());
                }
            }
            offsets.push(offset);
        }
        match logic(expression, &offsets) {
            Some(logic) => {
                let condition = and(&condition, &format!("({logic})"));
                self.rule(name, &patterns, &condition);
            }
            None => self.skip(name, "expressions"),
        }
        Ok(())
    }

    fn rule(&mut self, name: &str, patterns: &[String], condition: &str) {
        let escaped: String = name
            .chars()
            .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' })
            .collect();
        let number = self.rule_count;
        // Writing to a string does not fail.
        let _ =
            write!(self.rules, "rule clamav_{number} {{ meta: {NAME_KEY} = \"{escaped}\" strings:");
        // An underscore: what the condition does not use is no error.
        for (i, pattern) in patterns.iter().enumerate() {
            let _ = write!(self.rules, " $_a{i} = {pattern}");
        }
        let _ = writeln!(self.rules, " condition: {condition} }}");
        self.rule_count += 1;
    }
}

/// The imports that the rules need.
pub const IMPORTS: &str = "import \"pe\"\n";

fn lines(text: &[u8]) -> impl Iterator<Item = String> {
    text.split(|&b| b == b'\n')
        .map(|line| String::from_utf8_lossy(line).trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn and(a: &str, b: &str) -> String {
    match (a, b) {
        ("", b) => b.to_owned(),
        (a, "") => a.to_owned(),
        (a, b) => format!("{a} and {b}"),
    }
}

/// What a target type asks of the file; none: something that does not exist here.
fn target_condition(target: &str) -> Result<Option<String>, String> {
    let condition = match target {
        "0" => "",
        "1" => "uint16(0) == 0x5a4d",
        "2" => "uint32be(0) == 0xd0cf11e0",
        "4" => "filetype == \"MESSAGE\"",
        "5" => "filetype == \"MEDIA\"",
        "6" => "uint32be(0) == 0x7f454c46",
        "9" => {
            "(uint32be(0) == 0xfeedface or uint32be(0) == 0xcefaedfe or uint32be(0) == 0xfeedfacf or \
                uint32be(0) == 0xcffaedfe or uint32be(0) == 0xcafebabe)"
        }
        "10" => "uint32be(0) == 0x25504446",
        "11" => {
            "(uint8(0) == 0x46 or uint8(0) == 0x43 or uint8(0) == 0x5a) and uint16be(1) == 0x5753"
        }
        "12" => "uint32be(0) == 0xcafebabe",
        // HTML and text as ClamAV normalises them.
        "3" | "7" => return Ok(None),
        other => {
            return Err(format!(
                "there is no target `{}`",
                &other[..other.floor_char_boundary(20)]
            ));
        }
    };
    Ok(Some(condition.to_owned()))
}

/// A pattern, or why there is none. `flags`: `i` whatever case, `w` wide, `a` plain too, `f` whole words.
fn pattern(signature: &str, flags: &str) -> Result<String, &'static str> {
    if let Some(bytes) = hashes::hex(signature)
        && !flags.is_empty()
    {
        let mut text = String::from("\"");
        for b in &bytes {
            let _ = write!(text, "\\x{b:02x}");
        }
        text.push('"');
        for flag in flags.chars() {
            text.push_str(match flag {
                'i' => " nocase",
                'w' => " wide",
                'a' => " ascii",
                'f' => " fullword",
                _ => return Err("modifiers"),
            });
        }
        return Ok(text);
    }
    if !flags.is_empty() && flags != "a" {
        return Err("modifiers of wildcards");
    }
    let mut tokens: Vec<String> = Vec::new();
    let mut rest = signature;
    while let Some(first) = rest.chars().next() {
        match first {
            '*' => {
                tokens.push("[-]".into());
                rest = &rest[1..];
            }
            '{' | '[' => {
                let close = if first == '{' { '}' } else { ']' };
                let (range, after) = rest[1..].split_once(close).ok_or("syntax")?;
                tokens.push(jump(range).ok_or("syntax")?);
                rest = after;
            }
            '!' | '(' => {
                let negated = first == '!';
                let body =
                    rest.strip_prefix('!').unwrap_or(rest).strip_prefix('(').ok_or("syntax")?;
                let (body, after) = body.split_once(')').ok_or("syntax")?;
                tokens.push(alternatives(body, negated)?);
                rest = after;
            }
            _ => {
                let pair = rest.get(..2).ok_or("syntax")?;
                if !pair.chars().all(|c| c == '?' || c.is_ascii_hexdigit()) {
                    return Err("syntax");
                }
                tokens.push(pair.to_owned());
                rest = &rest[2..];
            }
        }
    }
    // A pattern neither begins nor ends with a gap.
    let is_gap = |token: &String| token.starts_with('[');
    while tokens.last().is_some_and(is_gap) {
        tokens.pop();
    }
    if tokens.first().is_none_or(is_gap) {
        return Err("syntax");
    }
    if tokens.windows(2).any(|two| is_gap(&two[0]) && is_gap(&two[1])) {
        return Err("gaps");
    }
    if tokens.iter().all(|token| token == "??") {
        return Err("syntax");
    }
    Ok(format!("{{ {} }}", tokens.join(" ")))
}

/// `n`, `-n`, `n-`, `n-m`
fn jump(range: &str) -> Option<String> {
    let number = |text: &str| text.parse::<u32>().ok();
    Some(match range.split_once('-') {
        None => format!("[{}]", number(range)?),
        Some(("", to)) => format!("[0-{}]", number(to)?),
        Some((from, "")) => format!("[{}-]", number(from)?),
        Some((from, to)) if number(from)? <= number(to)? => {
            format!("[{}-{}]", number(from)?, number(to)?)
        }
        Some(_) => return None,
    })
}

/// `aa|bb|ccdd`
fn alternatives(body: &str, negated: bool) -> Result<String, &'static str> {
    let each: Vec<&str> = body.split('|').collect();
    if each.iter().any(|one| hashes::hex(one).is_none()) {
        // `(B)`, `(L)` and `(W)` are borders of words and lines; wildcards in alternatives are rare.
        return Err("borders and wildcards in alternatives");
    }
    match each[..] {
        [one] if negated && one.len() == 2 => Ok(format!("~{one}")),
        _ if negated => Err("negated alternatives"),
        _ => {
            let spaced: Vec<String> = each
                .iter()
                .map(|one| {
                    one.as_bytes()
                        .chunks(2)
                        .map(String::from_utf8_lossy)
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .collect();
            Ok(format!("( {} )", spaced.join(" | ")))
        }
    }
}

/// Where a pattern has to lie: `*`, `n`, `EOF-n`, `EP+n`, `EP-n`, `Sx+n`, `SEx`, `SL+n`, each perhaps with `,m` behind it.
fn placed(offset: &str, pattern: &str) -> Option<String> {
    let (base, span) = match offset.split_once(',') {
        Some((base, span)) => (base, span.parse::<u64>().ok()?),
        None => (offset, 0),
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let at = match base {
        "*" => return Some(pattern.to_owned()),
        base if base.starts_with("EOF-") => format!("filesize - {}", number(&base[4..])?),
        base if base.starts_with("EP+") => format!("pe.entry_point + {}", number(&base[3..])?),
        base if base.starts_with("EP-") => format!("pe.entry_point - {}", number(&base[3..])?),
        base if base.starts_with("SL+") => {
            format!(
                "pe.sections[pe.number_of_sections - 1].raw_data_offset + {}",
                number(&base[3..])?
            )
        }
        base if base.starts_with("SE") => {
            let section = format!("pe.sections[{}]", number(&base[2..])?);
            return Some(format!(
                "{pattern} in ({section}.raw_data_offset..{section}.raw_data_offset + {section}.raw_data_size)"
            ));
        }
        base if base.starts_with('S') => {
            let (section, shift) = base[1..].split_once('+')?;
            format!("pe.sections[{}].raw_data_offset + {}", number(section)?, number(shift)?)
        }
        base => number(base)?.to_string(),
    };
    Some(if span == 0 {
        format!("{pattern} at {at}")
    } else {
        format!("{pattern} in ({at}..{at} + {span})")
    })
}

/// The expression of a logical signature: numbers of subsignatures, `&`, `|`, brackets, and `=n`, `>n`, `<n` behind them.
fn logic(expression: &str, offsets: &[&str]) -> Option<String> {
    let mut parser = Logic { rest: expression, offsets, depth: 0 };
    let parsed = parser.alternatives()?;
    parser.rest.is_empty().then_some(parsed.text)
}

/// Deepest brackets.
const DEPTH_MAX: u32 = 32;

/// Terms behind each other; ClamAV takes 64 subsignatures.
const TERMS_MAX: usize = 256;

struct Logic<'a> {
    rest: &'a str,
    offsets: &'a [&'a str],
    depth: u32,
}

/// A part of an expression: as a condition, and the subsignatures whose matches it counts.
struct Counted {
    text: String,
    subsignatures: Vec<usize>,
}

impl Logic<'_> {
    /// Terms with `&` and `|` between them. Neither binds tighter: the first stands against all that follows, as
    /// ClamAV reads it.
    fn alternatives(&mut self) -> Option<Counted> {
        let mut terms = vec![(self.term()?, "")];
        while let Some(operator) = self.rest.chars().next().filter(|c| matches!(c, '&' | '|')) {
            self.rest = &self.rest[1..];
            terms.push((self.term()?, if operator == '&' { "and" } else { "or" }));
            if terms.len() > TERMS_MAX {
                return None;
            }
        }
        let (mut right, mut word) = terms.pop()?;
        while let Some((left, before)) = terms.pop() {
            let mut subsignatures = left.subsignatures;
            subsignatures.append(&mut right.subsignatures);
            right =
                Counted { text: format!("({} {word} {})", left.text, right.text), subsignatures };
            word = before;
        }
        Some(right)
    }

    fn term(&mut self) -> Option<Counted> {
        let counted = if let Some(inside) = self.rest.strip_prefix('(') {
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return None;
            }
            self.rest = inside;
            let inner = self.alternatives()?;
            self.rest = self.rest.strip_prefix(')')?;
            self.depth -= 1;
            inner
        } else {
            let number = usize::try_from(self.number()?).ok()?;
            let text = placed(self.offsets.get(number)?, &format!("$_a{number}"))?;
            Counted { text, subsignatures: vec![number] }
        };
        let Some(operator) = self.rest.chars().next().filter(|c| matches!(c, '=' | '>' | '<'))
        else {
            return Some(counted);
        };
        self.rest = &self.rest[1..];
        let times = self.number()?;
        // How many different ones of them there have to be.
        let different = match self.rest.strip_prefix(',') {
            Some(rest) => {
                self.rest = rest;
                Some(self.number()?)
            }
            None => None,
        };
        if counted.subsignatures.iter().any(|&i| self.offsets[i] != "*") {
            return None;
        }
        let sum: Vec<String> = counted.subsignatures.iter().map(|i| format!("#_a{i}")).collect();
        let mut text = match operator {
            '=' => format!("({} == {times})", sum.join(" + ")),
            '>' => format!("({} > {times})", sum.join(" + ")),
            // "Less than" asks for nothing in ClamAV 1.4, neither what is there more often nor what is not there at all.
            _ => "true".to_owned(),
        };
        if let Some(different) = different.filter(|&n| n > 0) {
            let each: Vec<String> =
                counted.subsignatures.iter().map(|i| format!("$_a{i}")).collect();
            text = format!("({text} and {different} of ({}))", each.join(", "));
        }
        Some(Counted { text, ..counted })
    }

    fn number(&mut self) -> Option<u64> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let number = self.rest[..end].parse().ok()?;
        self.rest = &self.rest[end..];
        Some(number)
    }
}

/// When a `.cvd` or `.cld` was built, in seconds since 1970: the last field of its header.
#[must_use]
pub fn built(bytes: &[u8]) -> Option<i64> {
    let header = bytes.get(..CVD_HEADER).filter(|h| h.starts_with(b"ClamAV-VDB:"))?;
    String::from_utf8_lossy(header).trim().rsplit(':').next()?.trim().parse().ok()
}

/// The files of a `.cvd` or `.cld`: name and content. A `.cvd` is compressed; its MD5, which stands in its header, has
/// to agree. Its RSA signature is freshclam's to check: what lies in a directory of rules is trusted.
///
/// # Errors
/// In words, when it is none.
pub fn unpack(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let header = bytes.get(..CVD_HEADER).filter(|h| h.starts_with(b"ClamAV-VDB:"));
    let header = header.ok_or("is no ClamAV database")?;
    let body = &bytes[CVD_HEADER..];
    let mut unpacked = Vec::new();
    if body.starts_with(b"\x1f\x8b") {
        let header = String::from_utf8_lossy(header);
        // ClamAV-VDB:time:version:signatures:level:md5:signature:builder:seconds
        let told = header
            .split(':')
            .skip(1)
            .find_map(|field| (field.len() == 32).then(|| hashes::hex(field)).flatten());
        if told.is_some_and(|told| told != Algorithm::Md5.hash(body)) {
            return Err("was altered: its MD5 does not agree".into());
        }
        flate2::read::MultiGzDecoder::new(body)
            .take(MEMBER_MAX)
            .read_to_end(&mut unpacked)
            .map_err(|e| format!("cannot be unpacked: {e}"))?;
    } else {
        unpacked.extend_from_slice(body);
    }
    let mut files = Vec::new();
    let mut rest = &unpacked[..];
    while let Some(head) = rest.get(..512).filter(|head| head[0] != 0) {
        let text = |from: usize, to: usize| {
            let field = &head[from..to];
            String::from_utf8_lossy(field.split(|&b| b == 0).next().unwrap_or_default())
                .trim()
                .to_owned()
        };
        let size = usize::from_str_radix(&text(124, 136), 8).map_err(|_| "is no tar inside")?;
        let content = rest.get(512..512 + size).ok_or("ends too early")?;
        if matches!(head[156], b'0' | 0) {
            files.push((text(0, 100), content.to_vec()));
        }
        rest = rest.get(512 + size.next_multiple_of(512)..).unwrap_or_default();
    }
    Ok(files)
}

/// The sections of a Windows program as their headers place them in the file (PE/COFF specification, section 4).
pub(super) fn sections(data: &[u8]) -> Vec<&[u8]> {
    let u16_at =
        |at: usize| data.get(at..).and_then(|d| d.first_chunk()).map(|b| u16::from_le_bytes(*b));
    let u32_at = |at: usize| {
        data.get(at..).and_then(|d| d.first_chunk()).map(|b| u32::from_le_bytes(*b) as usize)
    };
    let find = || -> Option<Vec<&[u8]>> {
        if !data.starts_with(b"MZ") {
            return None;
        }
        let pe = u32_at(0x3c)?;
        if data.get(pe..)?.first_chunk()? != b"PE\0\0" {
            return None;
        }
        // The loader takes no more than 96.
        let count = usize::from(u16_at(pe + 6)?).min(96);
        let table = pe + 24 + usize::from(u16_at(pe + 20)?);
        Some(
            (0..count)
                .map_while(|i| {
                    let header = table + 40 * i;
                    Some((u32_at(header + 16)?, u32_at(header + 20)?))
                })
                .filter_map(|(size, at)| data.get(at..at.checked_add(size)?))
                .filter(|section| !section.is_empty())
                .collect(),
        )
    };
    find().unwrap_or_default()
}

#[cfg(test)]
#[path = "clamav/tests.rs"]
mod tests;
