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
        folder: None,
        user: (protocol == Protocol::Ftp).then_some(b"alice"),
        sender: (protocol == Protocol::Smtp).then_some(b"eve@example.net"),
        recipients: &[],
        size: 1000,
        report,
    };
    said(&decide(&config(treat), &facts))
}

fn said(decision: &Decision<'_>) -> String {
    let temporary = matches!(decision.step(), Step::Refuse { temporary: true, .. });
    let temporary = if temporary { " temporary" } else { "" };
    format!("{} {}{temporary}", decision.action(), decision.rule())
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

/// A message whose portions `a.exe` (part 1) and `b.doc` (part 2) are infected, and the raw message too.
fn two_portions() -> Report {
    let mut report = report(&[], &[], false);
    let path = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    report.kind = "message".to_owned();
    report.add_finding("Trojan", "yara", &path(&["message"]), 0);
    report.add_finding("Trojan", "yara", &path(&["message", "a.exe"]), 1);
    report.add_finding("Macro", "yara", &path(&["message", "b.doc"]), 2);
    report.tree = vec![
        Part { number: 0, kind: "message".to_owned(), ..Part::default() },
        Part {
            number: 1,
            parent: Some(0),
            name: "a.exe".to_owned(),
            other_names: vec!["invoice.pdf".to_owned()],
            kind: "pe".to_owned(),
            ..Part::default()
        },
        Part {
            number: 2,
            parent: Some(0),
            name: "b.doc".to_owned(),
            kind: "ole".to_owned(),
            ..Part::default()
        },
    ];
    report
}

fn mail<'a>(report: &'a Report, recipients: &'a [Vec<u8>]) -> Facts<'a> {
    Facts {
        protocol: Protocol::Smtp,
        direction: Direction::Inbound,
        client: "203.0.113.1".parse().unwrap(),
        server: "10.0.0.25".parse().unwrap(),
        name: b"",
        user: None,
        folder: None,
        sender: Some(b"eve@example.net"),
        recipients,
        size: 1000,
        report,
    }
}

fn change<'c>(decision: &Decision<'c>) -> Change<'c> {
    match decision.step() {
        Step::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_portion_gets_its_own_remedies_and_the_whole_none() {
    let rules = "\
[[treat]]\ndetection = \"Macro\"\naction = [\"clean\", \"replace\", \"block\"]\n
[[treat]]\nverdict = \"infected\"\naction = [\"strip\", \"quarantine\"]\n";
    let (config, report) = (config(rules), two_portions());
    let mut decision = decide(&config, &mail(&report, &[]));
    let expected = [(1, vec![Treatment::Strip]), (2, vec![Treatment::Clean, Treatment::Replace])];
    assert_eq!(change(&decision).parts, expected);
    assert!(!change(&decision).edit_signed && !decision.delivers());
    // What was taken did not help with part 2; part 1 is tried as before.
    decision.fail(&[(1, Treatment::Strip), (2, Treatment::Clean)]);
    assert_eq!(decision.step(), Step::Refuse { keep: true, temporary: false });
    assert_eq!(said(&decision), "quarantine treat[1]");
}

#[test]
fn a_remedy_that_did_not_help_leads_to_the_next() {
    let rules = "[[treat]]\naction = [\"clean\", \"scramble\", \"replace\", \"substitute\"]\n";
    let (config, report) = (config(rules), two_portions());
    let mut decision = decide(&config, &mail(&report, &[]));
    decision.fail(&[(1, Treatment::Scramble), (2, Treatment::Clean)]);
    let expected =
        [(1, vec![Treatment::Replace]), (2, vec![Treatment::Scramble, Treatment::Replace])];
    // The raw message shows the same as part 1, and went on to the substitute.
    assert_eq!(decision.step(), Step::Substitute);
    decision.fail(&[]);
    assert_eq!(decision.step(), Step::Refuse { keep: false, temporary: false });

    let mut report = report;
    report.findings.remove(0);
    let mut decision = decide(&config, &mail(&report, &[]));
    decision.fail(&[(1, Treatment::Scramble), (2, Treatment::Clean)]);
    assert_eq!(change(&decision).parts, expected);
    decision.fail(&[]);
    assert_eq!(decision.step(), Step::Substitute, "nothing was possible");
}

#[test]
fn every_list_comes_to_an_end_in_a_refusal() {
    use proptest::prelude::*;
    let uncertain = ["warn", "tag", "clean", "scramble", "replace", "strip", "substitute"]
        .map(|w| format!("\"{w}\""));
    let lists = proptest::sample::subsequence(uncertain.to_vec(), 1..=7).prop_shuffle();
    proptest!(|(list in lists, error in any::<bool>())| {
        let rules = format!("[[treat]]\naction = [{}]\n", list.join(", "));
        let (config, mut report) = (config(&rules), two_portions());
        report.error = error.then(|| "x".to_owned());
        let mut decision = decide(&config, &mail(&report, &[]));
        let mut steps = 0;
        while !matches!(decision.step(), Step::Refuse { .. }) {
            prop_assert_ne!(decision.step(), Step::Deliver, "nothing here may be delivered as it came");
            decision.fail(&[]);
            steps += 1;
            prop_assert!(steps < 20);
        }
    });
}

#[test]
fn warnings_leave_it_and_say_so() {
    let rules = "\
[[treat]]\ndetection = \"Macro\"\naction = \"pass\"\n
[[treat]]\ndetection = \"Trojan\"\naction = \"tag\"\nsubject = \"[!]\"\n";
    let (config, report) = (config(rules), two_portions());
    let mut decision = decide(&config, &mail(&report, &[]));
    assert!(decision.delivers());
    let change = change(&decision);
    assert_eq!(
        (change.parts.len(), change.warned, change.subject),
        (0, vec!["Trojan".to_owned()], Some("[!]"))
    );
    decision.fail(&[]);
    assert_eq!(said(&decision), "block treat[1]", "a mark that is not possible");
}

#[test]
fn what_needs_mail_is_skipped_for_files() {
    let rules = "[[treat]]\naction = [\"strip\", \"substitute\", \"clean\", \"quarantine\"]\n";
    let (config, report) = (config(rules), two_portions());
    let facts = Facts {
        protocol: Protocol::Ftp,
        name: b"/pub/a.zip",
        sender: None,
        user: Some(b"alice"),
        ..mail(&report, &[])
    };
    let mut decision = decide(&config, &facts);
    assert_eq!(change(&decision).parts, [(1, vec![Treatment::Clean]), (2, vec![Treatment::Clean])]);
    decision.fail(&[]);
    assert_eq!(decision.step(), Step::Refuse { keep: true, temporary: false });
}

#[test]
fn over_several_recipients_the_strictest_wins() {
    let rules = "\
[[treat]]\nrecipient = \"abuse@example.com\"\naction = \"pass\"\n
[[treat]]\nrecipient = [\"*.example.org\", \"bob@example.com\"]\naction = [\"replace\", \"block\"]\n
[[treat]]\naction = \"quarantine\"\n";
    let (config, report) = (config(rules), two_portions());
    let decided = |recipients: &[&str]| {
        let recipients: Vec<Vec<u8>> = recipients.iter().map(|r| r.as_bytes().to_vec()).collect();
        said(&decide(&config, &mail(&report, &recipients)))
    };
    assert_eq!(decided(&["abuse@example.com"]), "pass treat[0]");
    assert_eq!(decided(&["Abuse@Example.com", "bob@example.com"]), "replace treat[1]");
    assert_eq!(decided(&["bob@example.com", "x@a.example.org"]), "replace treat[1]");
    assert_eq!(
        decided(&["abuse@example.com", "eve@example.net", "bob@example.com"]),
        "quarantine treat[2]"
    );
    // Past those that are named there may be anybody.
    assert_eq!(decided(&["abuse@example.com"; RECIPIENTS_MAX]), "quarantine treat[2]");
    assert_eq!(decided(&["abuse@example.com", ""]), "quarantine treat[2]");
}

/// However a recipient is written: it cannot take another one's place.
#[test]
fn recipients_that_are_not_plain_get_no_favours_and_every_refusal() {
    let rules = "\
[[treat]]\nrecipient = \"boss@example.com\"\naction = [\"quarantine\"]\n
[[treat]]\nrecipient = \"*@test.example\"\naction = \"pass\"\n
[[treat]]\nrecipient = \"*.example.org\"\naction = [\"replace\", \"block\"]\n
[[treat]]\naction = \"warn\"\n";
    let (config, report) = (config(rules), two_portions());
    let decided = |recipient: &[u8]| said(&decide(&config, &mail(&report, &[recipient.to_vec()])));
    assert_eq!(decided(b"bob@example.com"), "warn treat[3]");
    assert_eq!(decided(b"bob@test.example"), "pass treat[1]");
    for boss in [
        &b"\"boss\"@example.com"[..],
        b"\"b\\oss\"@Example.COM.",
        b"@relay.example:boss@example.com",
        b"boss%example.com@test.example",
        b"example.com!boss@test.example",
        b"\"boss@example.com\"@test.example",
        b"",
    ] {
        assert_eq!(decided(boss), "quarantine treat[0]", "{}", boss.escape_ascii());
    }
}

#[test]
fn rules_look_at_sender_user_name_type_and_size() {
    let report = two_portions();
    let passes = |rule: &str| {
        let config = config(&format!("[[treat]]\n{rule}\naction = \"pass\"\n"));
        let decision = decide(&config, &mail(&report, &[]));
        decision.points.iter().filter(|p| p.rule.is_some()).count()
    };
    for (rule, points) in [
        ("sender = \"example.net\"", 3),
        ("sender = \"EVE@*\"", 3),
        ("sender = [\"<>\", \"example.com\"]", 0),
        ("user = \"*\"", 0),
        ("name = \"*.exe\"", 1),
        ("name = \"invoice.*\"", 1),
        ("extension = \"pdf\"", 1),
        ("extension = [\"doc\", \"exe\"]", 2),
        ("name = \"message\"", 0),
        ("type = \"pe\"", 1),
        ("type = \"message\"", 3),
        ("min_size = 1000\nmax_size = 1000", 3),
        ("min_size = 1001", 0),
        ("max_size = \"999\"", 0),
    ] {
        assert_eq!(passes(rule), points, "{rule}");
    }
    let config = config("[[treat]]\nuser = \"ali*\"\nname = \"/pub/*\"\naction = \"pass\"\n");
    let file = |user: &'static [u8], name: &'static [u8]| {
        let facts = Facts { sender: None, user: Some(user), name, ..mail(&report, &[]) };
        decide(&config, &facts).delivers()
    };
    assert!(
        file(b"alice", b"/pub/x/a.zip")
            && !file(b"bob", b"/pub/a.zip")
            && !file(b"alice", b"/a.zip")
    );
}

#[test]
fn keeping_redirecting_and_telling_are_the_sum_of_the_rules() {
    let rules = "\
[notify]\nrelay = \"mail\"\nadmin = \"root@example.com\"\n
[[treat]]\ndetection = \"Macro\"\naction = \"block\"\nnotify = [\"admin\"]\nredirect = \"lab@example.com\"\n
[[treat]]\ndetection = \"Trojan\"\naction = \"pass\"\nnotify = \"recipient\"\n";
    let (config, report) = (config(rules), two_portions());
    let decision = decide(&config, &mail(&report, &[]));
    assert!(decision.keeps() && decision.tells(Party::Admin) && decision.tells(Party::Recipient));
    assert!(!decision.tells(Party::Sender));
    assert_eq!(
        decision.redirects().map(ToString::to_string).collect::<Vec<_>>(),
        ["lab@example.com"]
    );
}
