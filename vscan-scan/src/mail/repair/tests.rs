//! Repairs of messages: by hand, over generated trees, and of what nobody should touch.

use super::super::tests::{OCTETS, attached, base64, forwarded, mime, qp};
use super::*;
use crate::object::tests::{MARK, scan_with};
use crate::report::{Report, Verdict};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const NOTICE: &str = "A portion was removed: it held a test.\nAsk the postmaster.";

pub(crate) fn scan(message: &[u8]) -> Report {
    scan_with(&Limits::default(), ObjectKind::Message, message)
}

fn plan(report: &Report, remedies: &[Remedy]) -> Plan {
    let orders = report
        .findings
        .iter()
        .map(|f| Order { part: f.part, remedies: remedies.to_vec() })
        .collect();
    Plan { orders, notice: NOTICE.into(), size_max: 1 << 30, ..Plan::default() }
}

fn asked(message: &[u8], plan: &Plan) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(60);
    repair(&Limits::default(), &Object::new(ObjectKind::Message, message, deadline), plan)
}

#[track_caller]
fn repaired(message: &[u8], plan: &Plan) -> (Vec<u8>, Vec<Done>) {
    match asked(message, plan) {
        Answer::Repaired(repaired) => (repaired.apply(message), repaired.done),
        Answer::Unrepairable { why } => {
            panic!("unrepairable: {why}\n{}", String::from_utf8_lossy(message))
        }
    }
}

#[track_caller]
fn treated(message: &str, remedy: Remedy) -> String {
    let report = scan(message.as_bytes());
    assert_eq!(report.verdict, Verdict::Infected, "{message}");
    let (treated, done) = repaired(message.as_bytes(), &plan(&report, &[remedy]));
    assert!(!done.is_empty() && done.iter().all(|d| d.remedy == remedy), "{done:?}");
    let text = String::from_utf8(treated).unwrap();
    let again = scan(text.as_bytes());
    assert_eq!(again.verdict, Verdict::Clean, "{again:#?}\n{text}");
    text
}

#[track_caller]
fn refused(what: &str, message: &str) -> String {
    let report = scan(message.as_bytes());
    assert_eq!(report.verdict, Verdict::Infected, "{what}: {message}");
    let remedies = [Remedy::Strip, Remedy::Replace, Remedy::Scramble];
    match asked(message.as_bytes(), &plan(&report, &remedies)) {
        Answer::Unrepairable { why } => why,
        Answer::Repaired(repaired) => panic!("{what}: {repaired:?}"),
    }
}

fn parsed(message: &str) -> mail_parser::Message<'_> {
    mail_parser::MessageParser::default().parse(message).unwrap()
}

#[test]
fn a_portion_is_removed_with_its_delimiter_and_nothing_else() {
    let message = attached(OCTETS, &base64(MARK));
    let out = treated(&message, Remedy::Strip);
    let start = message.find("\r\n--=_b\r\nContent-Type: application").unwrap();
    let end = message.find("\r\n--=_b--").unwrap();
    assert_eq!(out, [&message[..start], &message[end..]].concat());
    assert_eq!(parsed(&out).attachment_count(), 0);
    // The first of two, and in a message inside.
    let first = message.replace(
        "--=_b\r\nContent-Type: text/plain\r\n\r\nHello.\r\n",
        &format!("--=_b\r\n{OCTETS}\r\n\r\n{}\r\n", base64(MARK)),
    );
    let first = first.replacen(&format!("{}\r\n--=_b--", base64(MARK)), "Q0xFQU4=\r\n--=_b--", 1);
    let out = treated(&first, Remedy::Strip);
    assert!(out.contains("Q0xFQU4=") && out.contains("Preamble.\r\n--=_b\r\n"), "{out}");
    let inner = forwarded(&message);
    let out = treated(&inner, Remedy::Strip);
    assert_eq!(out.len() + (end - start), inner.len());
}

#[test]
fn a_text_takes_the_portions_place() {
    let out = treated(&attached(OCTETS, &base64(MARK)), Remedy::Replace);
    let message = parsed(&out);
    assert_eq!(message.text_body_count(), 2);
    assert_eq!(message.body_text(1).unwrap().trim_end(), NOTICE.replace('\n', "\r\n"));
    // What 7bit does not carry, and what looks like a delimiter.
    let notice = "Gef\u{e4}hrlich: \u{20ac}\n--=_b--\nFrom me\n.";
    let message = attached(OCTETS, &base64(MARK));
    let report = scan(message.as_bytes());
    let plan = Plan { notice: notice.into(), ..plan(&report, &[Remedy::Replace]) };
    let (out, _) = repaired(message.as_bytes(), &plan);
    assert!(out.is_ascii() && out.split(|&b| b == b'\n').all(|line| line.len() <= 79));
    let out = String::from_utf8(out).unwrap();
    assert_eq!(parsed(&out).body_text(1).unwrap(), notice.replace('\n', "\r\n"));
}

#[test]
fn a_portion_is_made_unreadable_in_its_place() {
    let message = attached(OCTETS, &base64(MARK));
    let out = treated(&message, Remedy::Scramble);
    assert_eq!(out.len(), message.len());
    let binary = parsed(&out).attachment(0).unwrap().contents().to_vec();
    assert_eq!(binary.len(), MARK.len() + 1, "padding became letters");
    assert!(binary.iter().all(|&b| b == 0));
    for (encoding, body) in [
        ("quoted-printable", qp(MARK)),
        ("8bit", String::from_utf8(MARK.to_vec()).unwrap()),
        ("x-uuencode", super::uu::encode("m", MARK, "\r\n")),
    ] {
        let fields = format!("Content-Type: a/b\r\nContent-Transfer-Encoding: {encoding}");
        let out = treated(&attached(&fields, &body), Remedy::Scramble);
        assert!(!out.contains(&body));
    }
}

#[test]
fn a_message_that_is_one_portion_becomes_a_text() {
    let fields = format!("{OCTETS}\r\nContent-Description: x\r\nX-Other: stays");
    for remedy in [Remedy::Strip, Remedy::Replace] {
        let out = treated(&mime(&fields, &base64(MARK)), remedy);
        let message = parsed(&out);
        assert_eq!(message.parts.len(), 1);
        assert!(!out.contains("octet-stream") && !out.contains("Content-Description"), "{out}");
        assert!(out.contains("X-Other: stays\r\n") && out.contains("Subject: s\r\n"));
        let text = message.body_text(0).unwrap_or_default().into_owned();
        let expected = if remedy == Remedy::Strip { "" } else { "A portion was removed" };
        assert!(
            text.starts_with(expected) && (remedy == Remedy::Replace) != text.trim().is_empty()
        );
    }
    let text = format!("From: a@b.c\r\n\r\n{}\r\n", String::from_utf8_lossy(MARK));
    let out = treated(&text, Remedy::Strip);
    assert!(out.starts_with("From: a@b.c\r\nMIME-Version: 1.0\r\nContent-Type: text/plain"));
}

#[test]
fn a_multipart_keeps_one_part() {
    let all = mime(
        "Content-Type: multipart/mixed; boundary=b",
        &format!(
            "--b\r\n{OCTETS}\r\n\r\n{0}\r\n--b\r\n{OCTETS}\r\n\r\n{0}\r\n--b--\r\n",
            base64(MARK)
        ),
    );
    let out = treated(&all, Remedy::Strip);
    assert_eq!(out.matches("--b\r\n").count(), 1, "{out}");
    assert_eq!(parsed(&out).parts.len(), 2);
    // Without its last delimiter the message still ends in a line end.
    let open = attached(OCTETS, &base64(MARK)).replace("--=_b--\r\n", "");
    let out = treated(&open, Remedy::Strip);
    assert!(out.ends_with("Hello.\r\n"), "{out}");
}

#[test]
fn sections_of_texts_are_cut_out() {
    let uu = super::uu::encode("m.com", MARK, "\r\n");
    let text = format!("see:\r\n{uu}bye\r\n");
    let message = mime("Content-Type: text/plain", &text);
    assert_eq!(
        treated(&message, Remedy::Strip),
        mime("Content-Type: text/plain", "see:\r\nbye\r\n")
    );
    let out = treated(&message, Remedy::Replace);
    assert!(out.ends_with(
        "see:\r\nA portion was removed: it held a test.\r\nAsk the postmaster.\r\nbye\r\n"
    ));
    assert_eq!(treated(&message, Remedy::Scramble).len(), message.len());
    // In an encoded text the text is encoded again.
    for encoding in ["base64", "quoted-printable"] {
        let body = if encoding == "base64" { base64(text.as_bytes()) } else { qp(text.as_bytes()) };
        let fields = format!("Content-Type: text/plain\r\nContent-Transfer-Encoding: {encoding}");
        let out = treated(&attached(&fields, &body), Remedy::Strip);
        assert_eq!(parsed(&out).body_text(1).unwrap(), "see:\r\nbye\r\n", "{out}");
    }
    // A text before the first part is nobody's.
    let preamble = attached("Content-Type: a/b", "x").replace("Preamble.", uu.trim_end());
    assert!(!treated(&preamble, Remedy::Strip).contains("begin 644"));
}

#[test]
fn encoded_messages_are_encoded_again() {
    let inner = attached(OCTETS, &base64(MARK));
    for (encoding, body) in
        [("base64", base64(inner.as_bytes())), ("quoted-printable", qp(inner.as_bytes()))]
    {
        let fields =
            format!("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: {encoding}");
        let message = attached(&fields, &body).replace("=_b", "=_o");
        let out = treated(&message, Remedy::Strip);
        let expected = {
            let start = inner.find("\r\n--=_b\r\nContent-Type: application").unwrap();
            let end = inner.find("\r\n--=_b--").unwrap();
            [&inner[..start], &inner[end..]].concat()
        };
        let again = parsed(&out);
        let part = again.parts.iter().find(|p| p.is_message()).unwrap();
        assert_eq!(part.message().unwrap().raw_message(), expected.as_bytes());
    }
}

#[test]
fn what_readers_disagree_on_is_not_edited() {
    let whole = attached(OCTETS, &base64(MARK));
    for (what, message) in [
        ("two boundaries", whole.replace("boundary=\"=_b\"", "boundary=x; boundary=\"=_b\"")),
        ("another boundary", whole.replace("boundary=\"=_b\"", "boundary=\"=_other\"")),
        ("no boundary", whole.replace("; boundary=\"=_b\"", "")),
        ("a tail", whole.replacen("\r\n--=_b\r\n", "\r\n--=_bx\r\n\r\nx\r\n--=_b\r\n", 1)),
        (
            "behind the end",
            whole.replacen("Hello.\r\n--=_b\r\n", "Hello.\r\n--=_b--\r\n--=_b\r\n", 1),
        ),
        ("bare LF", whole.replacen("Hello.\r\n--=_b\r\n", "Hello.\n--=_b\r\n", 1)),
        (
            "two types",
            whole.replacen(
                "Content-Type: multipart",
                "Content-Type: text/plain\r\nContent-Type: multipart",
                1,
            ),
        ),
        ("comment", whole.replacen("multipart/mixed;", "multipart/mixed (or not);", 1)),
        ("NUL", whole.replacen("MIME-Version", "X: \0\r\nMIME-Version", 1)),
        ("CR alone", whole.replace("\r\n", "\r")),
    ] {
        let why = refused(what, &message);
        assert_eq!(why, "no portion on which all mail readers agree", "{what}");
    }
    // The doubt ends at the portion around it: an attached message is removed as a whole.
    let inner = whole.replace("boundary=\"=_b\"", "boundary=x; boundary=\"=_b\"");
    let out = treated(&forwarded(&inner), Remedy::Strip);
    assert!(!out.contains("boundary=x") && out.contains("Hello."), "{out}");
    // Two encodings: where the portion lies is clear, what is in it is not.
    let two = whole.replace(": base64", ": 7bit\r\nContent-Transfer-Encoding: base64");
    assert!(!treated(&two, Remedy::Strip).contains("octet-stream"));
    let report = scan(two.as_bytes());
    assert!(matches!(
        asked(two.as_bytes(), &plan(&report, &[Remedy::Scramble])),
        Answer::Unrepairable { .. }
    ));
}

#[test]
fn signed_mail_is_edited_only_when_told() {
    let signed = attached(OCTETS, &base64(MARK)).replace(
        "multipart/mixed;",
        "multipart/signed; protocol=\"application/pgp-signature\"; micalg=pgp-sha256;",
    );
    assert_eq!(refused("signed", &signed), "inside a signature");
    let report = scan(signed.as_bytes());
    let told = Plan { edit_signed: true, ..plan(&report, &[Remedy::Strip]) };
    repaired(signed.as_bytes(), &told);
    // Around a signature nothing is inside it: an attached message that is signed is removed as a whole.
    let out = treated(&forwarded(&signed), Remedy::Strip);
    assert!(!out.contains("micalg") && out.contains("Hello."), "{out}");
    // The fields on top are not signed.
    let clean = attached("Content-Type: a/b", "x").replace("multipart/mixed", "multipart/signed");
    let fields = vec![("X-Vscan".to_owned(), "clean".to_owned())];
    let (out, _) = repaired(clean.as_bytes(), &Plan { fields, size_max: 9999, ..Plan::default() });
    assert_eq!(out, format!("X-Vscan: clean\r\n{clean}").as_bytes());
}

#[test]
fn the_header_tells_what_was_done() {
    let check = |message: &str, subject: Option<&str>, expected: &str| {
        let plan = Plan {
            fields: vec![("X-Vscan".into(), "replaced 1 portion\r\nX-Evil: 1".into())],
            subject_prefix: subject.map(Into::into),
            size_max: 9999,
            ..Plan::default()
        };
        let (out, _) = repaired(message.as_bytes(), &plan);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    };
    let field = "X-Vscan: replaced 1 portion X-Evil: 1\r\n";
    // Fields of that name that are there already are not ours.
    check(
        "A: b\r\nx-vscan: clean,\r\n honestly\r\nSubject: hi\r\n\r\nx-vscan: text\r\n",
        Some("[VIRUS] "),
        &format!("{field}A: b\r\nSubject: [VIRUS] hi\r\n\r\nx-vscan: text\r\n"),
    );
    check(
        "Subject: [VIRUS] hi\r\n\r\n",
        Some("[VIRUS] "),
        &format!("{field}Subject: [VIRUS] hi\r\n\r\n"),
    );
    check("A: b\r\n\r\n", Some("[V] "), &format!("{field}Subject: [V]\r\nA: b\r\n\r\n"));
    check("Subject:\r\nA: b\r\n\r\n", Some("[V]"), &format!("{field}Subject: [V]\r\nA: b\r\n\r\n"));
    check("Subject:hi\r\n\r\n", Some("[V]"), &format!("{field}Subject: [V] hi\r\n\r\n"));
    check("From me Mon\r\nA: b\r\n\r\n", None, &format!("From me Mon\r\n{field}A: b\r\n\r\n"));
    check("no header\r\nat all\r\n", None, &format!("{field}\r\nno header\r\nat all\r\n"));
    check("\r\nonly a body\r\n", None, &format!("{field}\r\nonly a body\r\n"));
    check("A: b\n\nunix\n", None, &format!("{}A: b\n\nunix\n", field.replace("\r\n", "\n")));
    // Encoded words stay words.
    let plan =
        Plan { subject_prefix: Some("[Gefahr\u{fc}] ".into()), size_max: 9999, ..Plan::default() };
    for subject in ["=?utf-8?q?hi?= you", "hi you"] {
        let message = format!("Subject: {subject}\r\n\r\n");
        let (out, _) = repaired(message.as_bytes(), &plan);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(parsed(&out).subject().unwrap(), "[Gefahr\u{fc}] hi you", "{out}");
    }
    let long = format!("Subject: {}\r\n\r\n", "word ".repeat(180).trim_end());
    let (out, _) = repaired(long.as_bytes(), &plan);
    assert!(out.split(|&b| b == b'\n').all(|line| line.len() <= 998));
}

#[test]
fn the_header_tells_it_where_its_first_field_goes() {
    // The field that describes the portion is the first of the message, and gives way with it.
    let message = format!("{OCTETS}\r\nSubject: x\r\n\r\n{}", base64(MARK));
    let report = scan(message.as_bytes());
    let fields = vec![("X-Vscan".into(), "treated".into())];
    for remedy in [Remedy::Replace, Remedy::Strip] {
        let plan = Plan { fields: fields.clone(), ..plan(&report, &[remedy]) };
        let (out, _) = repaired(message.as_bytes(), &plan);
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("X-Vscan: treated\r\n") && !out.contains("octet"), "{out}");
    }
}

#[test]
fn the_size_is_kept_and_orders_are_checked() {
    let message = attached(OCTETS, &base64(MARK));
    let report = scan(message.as_bytes());
    let plan = plan(&report, &[Remedy::Strip]);
    let small = Plan { size_max: 100, ..plan.clone() };
    assert!(matches!(asked(message.as_bytes(), &small), Answer::Unrepairable { .. }));
    let wrong =
        Plan { orders: vec![Order { part: 99, remedies: vec![Remedy::Strip] }], ..plan.clone() };
    assert!(matches!(asked(message.as_bytes(), &wrong), Answer::Unrepairable { .. }));
    let none = Plan { orders: vec![Order { part: 2, remedies: vec![] }], ..plan };
    assert!(matches!(asked(message.as_bytes(), &none), Answer::Unrepairable { .. }));
}

/// Finds the mark wherever it stands, as most rules do: in the raw message and everything around it too.
struct Anywhere;

impl object::Engine for Anywhere {
    fn name(&self) -> &'static str {
        "anywhere"
    }

    fn scan(&mut self, part: &object::Part<'_>, hits: &mut Vec<object::Hit>) -> Result<(), String> {
        if memchr::memmem::find(part.data, MARK).is_some() {
            hits.push("Mark".into());
        }
        Ok(())
    }
}

fn scan_anywhere(message: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::Message, message, deadline);
    object::scan(&mut Anywhere, &Limits::default(), &object)
}

#[test]
fn what_is_found_in_everything_around_it_is_repaired_where_it_is() {
    let text = format!("words, {} and words", String::from_utf8_lossy(MARK));
    let uu = super::uu::encode("f", text.as_bytes(), "\r\n");
    let inner = attached("Content-Type: text/html", &text);
    for (message, least) in [
        (attached("Content-Type: text/plain", &text), 2),
        (forwarded(&inner), 3),
        (forwarded(&forwarded(&inner)), 4),
        (mime("Content-Type: text/plain", &text), 2),
        (mime("Content-Type: text/plain", &uu), 1),
    ] {
        let report = scan_anywhere(message.as_bytes());
        assert!(report.findings.len() >= least, "{report:#?}");
        for remedy in [Remedy::Strip, Remedy::Replace, Remedy::Scramble] {
            let (out, done) = repaired(message.as_bytes(), &plan(&report, &[remedy]));
            assert_eq!(done.len(), 1, "{done:?}");
            let again = scan_anywhere(&out);
            assert_eq!(again.verdict, Verdict::Clean, "{}", String::from_utf8_lossy(&out));
            assert!(remedy == Remedy::Scramble || out.len() < message.len() + NOTICE.len() + 99);
        }
    }
}

/// Another reader: the parser of Python's standard library, which names each defect that it sees.
#[test]
fn python_sees_no_defect_in_treated_messages() {
    use std::io::Write;
    const SCRIPT: &str = r#"
import email, email.policy, sys
for raw in sys.stdin.buffer.read().split(b"\0"):
    message = email.message_from_bytes(raw, policy=email.policy.default)
    for part in message.walk():
        assert not part.defects, (part.defects, raw)
        if part.get_content_maintype() == "text":
            part.get_content()
        part.get_payload(decode=True)
print("seen", end="")
"#;
    let inner = attached(OCTETS, &base64(MARK)).replace("=_b", "=_i");
    let encoded = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit";
    let mut all: Vec<String> = Vec::new();
    for message in [
        attached(OCTETS, &base64(MARK)),
        attached(encoded, &inner),
        mime(OCTETS, &base64(MARK)),
        mime("Content-Type: text/plain", &format!("a\r\n{}", super::uu::encode("f", MARK, "\r\n"))),
        mime(
            "Content-Type: multipart/mixed; boundary=b",
            &format!("--b\r\n{OCTETS}\r\n\r\n{}\r\n--b--\r\n", base64(MARK)),
        ),
    ] {
        let report = scan(message.as_bytes());
        for remedy in [Remedy::Strip, Remedy::Replace, Remedy::Scramble] {
            let plan = Plan {
                notice: "Gef\u{e4}hrlich\n--=_b\n".into(),
                fields: vec![("X-Vscan".into(), "behandelt: gef\u{e4}hrlich ".repeat(9))],
                subject_prefix: Some("[gef\u{e4}hrlich] ".into()),
                ..plan(&report, &[remedy])
            };
            all.push(String::from_utf8(repaired(message.as_bytes(), &plan).0).unwrap());
        }
    }
    let mut python = std::process::Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(all.join("\0").as_bytes()).unwrap();
    assert_eq!(python.wait_with_output().unwrap().stdout, b"seen");
}

/// A tree of entities.
#[derive(Clone, Debug)]
enum Tree {
    Leaf { infected: bool, encoding: u8, len: usize },
    Section { infected: bool, encoded: bool },
    Multipart(Vec<Tree>),
    Message(Box<Tree>, bool),
}

/// Writes trees; remembers what the clean leaves hold.
#[derive(Default)]
struct Writer {
    boundary: usize,
    clean: Vec<Vec<u8>>,
    infected: usize,
}

impl Writer {
    fn content(&mut self, infected: bool, len: usize) -> Vec<u8> {
        if infected {
            self.infected += 1;
            return MARK.to_vec();
        }
        let number = self.clean.len();
        let text = format!("clean {number} {}", "words, and more words. ".repeat(len));
        self.clean.push(text.clone().into_bytes());
        text.into_bytes()
    }

    fn entity(&mut self, tree: &Tree) -> String {
        match tree {
            Tree::Leaf { infected, encoding, len } => {
                let content = self.content(*infected, *len);
                let (name, body) = match encoding {
                    0 => ("base64", base64(&content)),
                    1 => ("quoted-printable", qp(&content)),
                    2 => ("8bit", String::from_utf8(content).unwrap()),
                    _ => ("7bit", String::from_utf8(content).unwrap()),
                };
                format!(
                    "Content-Type: application/x-leaf\r\nContent-Transfer-Encoding: {name}\r\n\r\n{body}"
                )
            }
            Tree::Section { infected, encoded } => {
                let content = self.content(*infected, 1);
                let text = format!("see\r\n{}bye", super::uu::encode("f", &content, "\r\n"));
                if *encoded {
                    format!(
                        "Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n{}",
                        base64(text.as_bytes())
                    )
                } else {
                    format!("Content-Type: text/plain\r\n\r\n{text}")
                }
            }
            Tree::Multipart(children) => {
                self.boundary += 1;
                let boundary = format!("=_{}_=", self.boundary);
                let mut out = format!(
                    "Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\npre\r\n"
                );
                for child in children {
                    out += &format!("--{boundary}\r\n{}\r\n", self.entity(child));
                }
                out + &format!("--{boundary}--\r\n")
            }
            Tree::Message(inner, encoded) => {
                let inner = self.message(inner);
                if *encoded {
                    format!(
                        "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n{}",
                        base64(inner.as_bytes())
                    )
                } else {
                    format!("Content-Type: message/rfc822\r\n\r\n{inner}")
                }
            }
        }
    }

    fn message(&mut self, tree: &Tree) -> String {
        format!("From: a@b.c\r\nSubject: t\r\nMIME-Version: 1.0\r\n{}", self.entity(tree))
    }
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), 0u8..4, 0usize..40).prop_map(|(infected, encoding, len)| Tree::Leaf {
            infected,
            encoding,
            len
        }),
        (any::<bool>(), any::<bool>())
            .prop_map(|(infected, encoded)| Tree::Section { infected, encoded }),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..5).prop_map(Tree::Multipart),
            1 => (inner, any::<bool>()).prop_map(|(t, e)| Tree::Message(Box::new(t), e)),
        ]
    })
}

/// All leaves as mail-parser, another reader, sees them; uuencoded sections opened.
fn leaves(message: &mail_parser::Message<'_>, out: &mut Vec<Vec<u8>>) {
    for part in &message.parts {
        match &part.body {
            mail_parser::PartType::Message(inner) => leaves(inner, out),
            mail_parser::PartType::Multipart(_) => {}
            _ => {
                let sections: Vec<_> = super::uu::sections(part.contents()).collect();
                if sections.is_empty() {
                    out.push(part.contents().to_vec());
                }
                out.extend(sections.into_iter().map(|s| s.data));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_tree_is_repaired_and_keeps_its_other_portions(tree in trees(), remedy in 0usize..3) {
        let mut writer = Writer::default();
        let message = writer.message(&tree);
        let report = scan(message.as_bytes());
        prop_assert_eq!(report.verdict == Verdict::Infected, writer.infected > 0);
        let remedy = [Remedy::Strip, Remedy::Replace, Remedy::Scramble][remedy];
        let plan = Plan {
            fields: vec![("X-Vscan".into(), "treated".into())],
            ..plan(&report, &[remedy])
        };
        let (out, done) = repaired(message.as_bytes(), &plan);
        prop_assert!(done.len() >= writer.infected.min(report.findings.len()));
        let text = String::from_utf8(out).unwrap();
        let again = scan(text.as_bytes());
        prop_assert_eq!(again.verdict, Verdict::Clean, "{:?}\n{}\n---\n{}", again, message, text);
        prop_assert!(text.starts_with("X-Vscan: treated\r\n"));
        let mut seen = Vec::new();
        leaves(&parsed(&text), &mut seen);
        let mut seen = seen.iter();
        for clean in &writer.clean {
            // In their sequence, byte for byte, but for the line end that a body may have.
            prop_assert!(
                seen.any(|s| s == clean || s.strip_suffix(b"\r\n") == Some(clean)),
                "{} is lost\n{}\n---\n{}", String::from_utf8_lossy(clean), message, text
            );
        }
    }

    #[test]
    fn any_change_of_a_message_keeps_edits_inside(at in 0usize..2000, byte: u8, cut in 0usize..2000) {
        let mut message = forwarded(&attached(OCTETS, &base64(MARK))).into_bytes();
        let at = at % message.len();
        message[at] = byte;
        message.truncate(message.len() - cut % 200);
        let orders = (0..6).map(|part| Order { part, remedies: vec![Remedy::Clean, Remedy::Strip] }).collect();
        let plan = Plan { orders, size_max: 1 << 20, subject_prefix: Some("[x]".into()), ..Plan::default() };
        if let Answer::Repaired(repaired) = asked(&message, &plan) {
            let mut end = 0;
            for edit in &repaired.edits {
                prop_assert!(edit.at >= end && edit.at + edit.len <= message.len() as u64);
                end = edit.at + edit.len;
            }
        }
    }
}

#[test]
fn a_substitute_keeps_who_wrote_to_whom_and_nothing_else() {
    let message = b"Received: by mx\r\nX-Vscan: clean\r\nFrom: a@b\r\nTo: c@d,\r\n e@f\r\nSubject: hello\r\n\
        X-Evil: EVIL\r\nContent-Type: multipart/mixed; boundary=x\r\nMessage-ID: <1@b>\r\nDate: now\r\n\r\n\
        --x\r\n\r\nEVIL\r\n--x--\r\n";
    let plan = Plan {
        notice: "It is kept.\nAs 1.".into(),
        fields: vec![("X-Vscan".into(), "substituted".into())],
        substitute: true,
        size_max: 10_000,
        ..Plan::default()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let repaired = |data: &[u8], kind, plan: &Plan| {
        let object = Object::new(kind, data, deadline);
        match super::repair(&Limits::default(), &object, plan) {
            Answer::Repaired(repaired) => Ok(repaired.apply(data)),
            Answer::Unrepairable { why } => Err(why),
        }
    };
    let substitute = repaired(message, ObjectKind::Message, &plan).unwrap();
    assert_eq!(
        String::from_utf8(substitute).unwrap(),
        "X-Vscan: substituted\r\nReceived: by mx\r\nFrom: a@b\r\nTo: c@d,\r\n e@f\r\nSubject: hello\r\n\
         Message-ID: <1@b>\r\nDate: now\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\
         Content-Transfer-Encoding: 7bit\r\n\r\nIt is kept.\r\nAs 1.\r\n"
    );
    assert!(repaired(message, ObjectKind::File, &plan).is_err());
    assert!(repaired(message, ObjectKind::Message, &Plan { size_max: 9, ..plan.clone() }).is_err());
    // Whatever it is, a message comes of it.
    for odd in [
        &b""[..],
        b"\r\n",
        b"no header",
        b"From: a\0b\r\nTo: x\r\n\r\nEVIL",
        b"From: x\r\n \r\nTo: y\r\n\r\n",
    ] {
        let text = String::from_utf8(repaired(odd, ObjectKind::Message, &plan).unwrap()).unwrap();
        assert!(text.starts_with("X-Vscan: substituted") && text.contains("It is kept."), "{text}");
        assert!(!text.contains('\0') && !text.contains("EVIL"), "{text}");
    }
}
