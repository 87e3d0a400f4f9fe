use super::*;
use std::path::Path;
use vscan_scan::report::{Finding, Unread};

fn config(treat: &str) -> Config {
    let text = format!("[gateway]\ninterfaces = [\"a\"]\ninside = [\"10.0.0.0/8\"]\n{treat}");
    Config::parse(&text, Path::new("test")).unwrap_or_else(|e| panic!("{e}"))
}

fn report(infected: &[&str], unread: &[Reason], error: bool) -> Report {
    let mut report = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
    report.findings = infected
        .iter()
        .map(|n| Finding { name: (*n).to_owned(), engine: "yara".to_owned(), ..Finding::default() })
        .collect();
    report.unread = unread
        .iter()
        .map(|r| Unread { reason: *r, path: Vec::new(), detail: String::new(), part: 0 })
        .collect();
    report.error = error.then(|| "crashed".to_owned());
    report.verdict = match (infected.is_empty(), unread.is_empty(), error) {
        (false, _, _) => Verdict::Infected,
        (true, false, _) => Verdict::Unscannable,
        (true, true, true) => Verdict::Error,
        (true, true, false) => Verdict::Clean,
    };
    report
}

/// `action rule temporary` for an inbound message from outside.
fn decided(treat: &str, report: &Report) -> String {
    decided_as(treat, report, Protocol::Smtp, b"")
}

fn decided_as(treat: &str, report: &Report, protocol: Protocol, name: &[u8]) -> String {
    let facts = Facts {
        protocol,
        direction: Direction::Inbound,
        client: "203.0.113.1".parse().unwrap(),
        server: "10.0.0.25".parse().unwrap(),
        name,
        report,
    };
    let d = decide(&config(treat), &facts);
    format!("{} {}{}", d.action, d.rule, if d.temporary { " temporary" } else { "" })
}

#[test]
fn defaults_never_deliver_what_was_not_read() {
    assert_eq!(decided("", &report(&[], &[], false)), "pass clean");
    assert_eq!(decided("", &report(&["EICAR"], &[], false)), "block default");
    assert_eq!(decided("", &report(&[], &[], true)), "block default temporary");
    for reason in crate::config::REASONS {
        let expected = match reason {
            Reason::EncryptedMail => "pass default",
            _ => "block default",
        };
        assert_eq!(decided("", &report(&[], &[*reason], false)), expected, "{reason:?}");
    }
}

#[test]
fn encrypted_mail_passes_only_alone_and_only_as_mail() {
    let mail = [Reason::EncryptedMail];
    assert_eq!(decided_as("", &report(&[], &mail, false), Protocol::Ftp, b"a"), "block default");
    assert_eq!(decided("", &report(&["EICAR"], &mail, false)), "block default");
    assert_eq!(
        decided("", &report(&[], &[Reason::EncryptedMail, Reason::Encrypted], false)),
        "block default"
    );
    assert_eq!(decided("", &report(&[], &mail, true)), "block default temporary");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = "\
[[treat]]\nprotocol = \"ftp\"\naction = \"pass\"\n
[[treat]]\nfrom = \"10.0.0.0/8\"\naction = \"pass\"\n
[[treat]]\ndirection = \"outbound\"\naction = \"pass\"\n
[[treat]]\nextension = \"exe\"\naction = \"pass\"\n
[[treat]]\nverdict = \"infected\"\nto = \"10.0.0.0/24\"\naction = \"quarantine\"\n
[[treat]]\naction = \"block\"\n";
    assert_eq!(decided(rules, &report(&["X"], &[], false)), "quarantine treat[4]");
    assert_eq!(decided(rules, &report(&[], &[Reason::Size], false)), "block treat[5]");
    assert_eq!(decided(rules, &report(&[], &[], true)), "block treat[5] temporary");
    assert_eq!(
        decided(rules, &report(&[], &[], false)),
        "pass clean",
        "clean is no matter of rules"
    );
    assert_eq!(
        decided_as(rules, &report(&["X"], &[], false), Protocol::Ftp, b"a.txt"),
        "pass treat[0]"
    );
    assert_eq!(
        decided_as(rules, &report(&["X"], &[], false), Protocol::Smtp, b"/a/B.EXE"),
        "pass treat[3]"
    );
}

#[test]
fn a_rule_for_one_detection_does_not_let_another_pass_with_it() {
    let rules = "[[treat]]\ndetection = \"False.Positive.*\"\naction = \"pass\"\n";
    assert_eq!(decided(rules, &report(&["false.positive.7"], &[], false)), "pass treat[0]");
    assert_eq!(
        decided(rules, &report(&["False.Positive.7", "Win.Trojan"], &[], false)),
        "block default"
    );
    assert_eq!(
        decided(rules, &report(&["False.Positive.7"], &[Reason::Encrypted], false)),
        "block default"
    );
    assert_eq!(
        decided(rules, &report(&["False.Positive.7"], &[], true)),
        "block default temporary",
        "the rest was not read"
    );
}

#[test]
fn the_strictest_wins_and_permanent_beats_temporary() {
    let rules = "[[treat]]\nreason = \"encrypted\"\naction = \"quarantine\"\n";
    assert_eq!(decided(rules, &report(&["X"], &[Reason::Encrypted], true)), "quarantine treat[0]");
    assert_eq!(decided("", &report(&["X"], &[], true)), "block default");
    let rules = "[[treat]]\nverdict = \"error\"\naction = \"pass\"\n";
    assert_eq!(decided(rules, &report(&[], &[], true)), "pass treat[0]");
}

#[test]
fn a_report_without_particulars_is_still_not_clean() {
    for (verdict, expected) in [
        (Verdict::Infected, "block default"),
        (Verdict::Unscannable, "block default"),
        (Verdict::Error, "block default temporary"),
    ] {
        let report = Report { verdict, error: None, ..Report::error("") };
        assert_eq!(decided("", &report), expected);
    }
}
