//! Candidates for passwords: senders of encrypted archives write the password into the same message.
//!
//! First come the words behind words that mean "password", in the languages below, then what stands in quotes, then
//! words with digits or signs in them, then all other short words, in the sequence in which they stand. Texts and
//! subjects of the message and of the messages in it are looked at, as far as the bounds below go.

use super::encoding;
use super::headers::{self, Encoding, Headers};
use super::{multipart, words};
use crate::archive::caught;
use crate::limits::Limits;
use crate::sniff::{self, Kind};
use crate::wire::ObjectKind;
use mail_parser::decoders::html::html_to_text;

/// Candidates tried: an AES key takes a millisecond each.
const CANDIDATES_MAX: usize = 96;

/// Letters of a candidate.
const LETTERS_MAX: usize = 64;

/// Letters of one that nothing but its shortness makes a candidate.
const SHORT: std::ops::RangeInclusive<usize> = 3..=20;

/// Bytes of text that are looked at.
const TEXT_MAX: usize = 256 * 1024;

/// Messages and multiparts in each other that are looked at.
const DEPTH_MAX: u32 = 8;

/// Words behind the word for password: "the password for the file is ...".
const BEHIND: usize = 6;

/// What passwords are called.
const KEYWORDS: &[&str] = &[
    "password",
    "passwd",
    "passcode",
    "passphrase",
    "pwd",
    "pass",
    "pw",
    "pin",
    "code",
    "key",
    "passwort",
    "kennwort",
    "losung",
    "mot de passe",
    "mdp",
    "contraseña",
    "clave",
    "senha",
    "palavra-passe",
    "parola",
    "wachtwoord",
    "hasło",
    "heslo",
    "lösenord",
    "adgangskode",
    "salasana",
    "jelszó",
    "lozinka",
    "şifre",
    "sifre",
    "parool",
    "пароль",
    "парол",
    "κωδικός",
    "סיסמה",
    "كلمة المرور",
    "密码",
    "密碼",
    "パスワード",
    "비밀번호",
    "암호",
];

/// Passwords that everybody uses who sends samples of malware.
const CUSTOMARY: &[&str] = &["infected", "virus", "malware", "password"];

/// The candidates that an object tells, the likeliest first; none for one that is no message.
pub(crate) fn told(limits: &Limits, object: &[u8], kind: ObjectKind) -> Vec<String> {
    if kind != ObjectKind::Message && sniff::sniff(object) != Kind::Message {
        return Vec::new();
    }
    let mut text = String::new();
    let mut room = object.len().saturating_mul(DEPTH_MAX as usize);
    collect(limits, object, &mut text, 0, &mut room);
    candidates(&text)
}

/// Appends subject and texts of an entity. `room`: bytes that are still looked at, for with several boundaries in each other
/// every part is seen many times.
fn collect(limits: &Limits, data: &[u8], text: &mut String, depth: u32, room: &mut usize) {
    match room.checked_sub(data.len()) {
        Some(left) => *room = left,
        None => return,
    }
    let Some(view) = headers::views(data, limits).into_iter().next() else { return };
    for field in headers::fields(&view.head).take(limits.headers as usize) {
        if let Some(value) = subject(field) {
            append(text, &words::decode_words(value));
        }
    }
    let headers = Headers::parse(limits, &view.head);
    let body = &data[view.body..];
    if text.len() >= TEXT_MAX || depth >= DEPTH_MAX {
        return;
    }
    if headers.is("multipart", "") {
        for boundary in &headers.boundaries {
            let delimiters = multipart::delimiters(body, boundary, PARTS_MAX);
            for segment in multipart::segments(&delimiters.loose, body.len()) {
                if segment.what == multipart::What::Part {
                    collect(limits, &body[segment.range], text, depth + 1, room);
                }
            }
        }
        return;
    }
    let message = headers.is("message", "rfc822");
    if !message && !headers.types.iter().all(|t| t.main == "text") {
        return;
    }
    let encoding = headers.encodings().first().copied().unwrap_or(Encoding::Identity);
    let decoded = encoding::decode(encoding, body).data;
    if message {
        return collect(limits, &decoded, text, depth + 1, room);
    }
    let decoded = &decoded[..decoded.len().min(TEXT_MAX)];
    let charset = headers.types.first().map(|t| t.charset.clone()).unwrap_or_default();
    let plain = words::decode(charset.as_bytes(), decoded);
    if headers.is("text", "html") || sniff::sniff(decoded) == Kind::Html {
        append(text, &caught(|| Ok(html_to_text(&plain))).unwrap_or_default());
    } else {
        append(text, &plain);
    }
}

/// Parts of one multipart that are looked at.
const PARTS_MAX: usize = 64;

fn subject(field: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', field)?;
    field[..colon].trim_ascii().eq_ignore_ascii_case(b"subject").then(|| &field[colon + 1..])
}

fn append(text: &mut String, more: &str) {
    let room = TEXT_MAX.saturating_sub(text.len());
    text.push_str(&more[..more.floor_char_boundary(room.min(more.len()))]);
    text.push('\n');
}

fn candidates(text: &str) -> Vec<String> {
    let mut out = Candidates::default();
    for behind in behind_keywords(text) {
        for word in behind.split_whitespace().take(BEHIND) {
            out.add(word);
        }
        // A phrase goes to the end of its line.
        out.add(behind.lines().next().unwrap_or_default().trim());
    }
    for (open, close) in [
        ('"', '"'),
        ('\'', '\''),
        ('«', '»'),
        ('„', '“'),
        ('“', '”'),
        ('‘', '’'),
        ('`', '`'),
        ('[', ']'),
    ] {
        let mut rest = text;
        while let Some(start) = rest.find(open) {
            rest = &rest[start + open.len_utf8()..];
            let near = &rest[..rest.floor_char_boundary((4 * LETTERS_MAX).min(rest.len()))];
            let Some(end) = near.find(close).filter(|&end| end <= LETTERS_MAX) else { continue };
            out.add(&rest[..end]);
        }
    }
    for word in CUSTOMARY {
        out.add(word);
    }
    let odd = |word: &&str| word.chars().any(|c| !c.is_alphabetic()) && !word.contains("://");
    for word in text.split_whitespace().filter(odd) {
        if SHORT.contains(&word.chars().count()) {
            out.add(word);
        }
    }
    for word in text.split_whitespace() {
        if SHORT.contains(&word.chars().count()) {
            out.add(word);
        }
    }
    out.0
}

/// The text behind each word for password, separators left out.
fn behind_keywords(text: &str) -> Vec<&str> {
    let lower = text.to_lowercase();
    let mut places = Vec::new();
    // Places are found in the text itself: lower case may have another length.
    if lower.len() == text.len() {
        for keyword in KEYWORDS {
            let found = lower.match_indices(keyword).take(CANDIDATES_MAX);
            places.extend(found.map(|(at, word)| at + word.len()));
        }
    } else {
        for (at, c) in text.char_indices().filter(|(_, c)| matches!(c, ':' | '=' | '：')) {
            places.push(at + c.len_utf8());
        }
    }
    places.sort_unstable();
    places
        .into_iter()
        .filter(|&at| text.is_char_boundary(at))
        .map(|at| {
            let separator =
                |c: char| c.is_whitespace() || matches!(c, ':' | '=' | '：' | '-' | '–' | '>');
            let end = text.ceil_char_boundary((at + 4 * LETTERS_MAX).min(text.len()));
            text[at..end].trim_start_matches(separator)
        })
        .take(CANDIDATES_MAX)
        .collect()
}

#[derive(Default)]
struct Candidates(Vec<String>);

impl Candidates {
    /// The word, and what is left of it without the signs around it.
    fn add(&mut self, word: &str) {
        let around = |c: char| !c.is_alphanumeric();
        let end = |c: char| {
            matches!(
                c,
                '.' | ',' | ';' | ':' | '!' | '?' | ')' | '"' | '\'' | '»' | '”' | '“' | '’'
            )
        };
        let trimmed = word.trim_end_matches(end);
        for form in [word, trimmed, word.trim_matches(around)] {
            if !form.is_empty()
                && form.chars().count() <= LETTERS_MAX
                && self.0.len() < CANDIDATES_MAX
                && !self.0.iter().any(|known| known == form)
            {
                self.0.push(form.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_word_comes_first() {
        for (text, password) in [
            ("The password is Sesame42.", "Sesame42"),
            ("Password: open sesame!", "open sesame!"),
            ("das Kennwort lautet: \u{201e}geheim\u{201c}.", "geheim"),
            ("Пароль: тайна7", "тайна7"),
            ("密码：abc123 谢谢", "abc123"),
            ("PW=x-Y_z", "x-Y_z"),
            ("password for the attached archive is: 7Kq", "7Kq"),
            ("contraseña -> hola", "hola"),
        ] {
            let found = candidates(text);
            let at = found.iter().position(|c| c == password);
            assert!(at.is_some_and(|at| at < 16), "{text}: {found:?}");
        }
        assert!(candidates("nothing but words, and 'quoted ones'").contains(&"quoted ones".into()));
        let long = "word ".repeat(10_000) + "pin 1234";
        let found = candidates(&long);
        assert!(found.contains(&"1234".into()) && found.len() <= CANDIDATES_MAX);
        assert!(candidates("").len() == CUSTOMARY.len());
    }

    #[test]
    fn subjects_and_all_texts_tell() {
        let inner = "Subject: =?utf-8?q?pw_s1?=\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n";
        let html = encoding::to_base64(b"<p>pass<b>word</b>: <i>h2</i></p>", 76, "\r\n");
        let message = format!(
            "Subject: pin s0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ncode: t3\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n{inner}{html}\r\n--b--\r\n"
        );
        let found = told(&Limits::default(), message.as_bytes(), ObjectKind::Message);
        for password in ["s0", "s1", "h2", "t3"] {
            assert!(found.iter().any(|c| c == password), "{password}: {found:?}");
        }
        assert!(told(&Limits::default(), b"pin: 1234", ObjectKind::File).is_empty());
    }
}
