use super::Rules;
use super::explain::explain;
use crate::config::{Config, Protocol};
use std::path::Path;
use std::sync::Arc;
use vscan_proto::ftp::Permit;

fn config(rules: &str) -> Config {
    let text = format!("[gateway]\ninterfaces = [\"lan\"]\ninside = [\"10.0.0.0/8\"]\n{rules}");
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

fn ftp(rules: &str) -> Option<Arc<Rules>> {
    let (client, server) = ("10.0.0.5".parse().unwrap(), "192.0.2.1".parse().unwrap());
    Rules::of(&config(rules), Protocol::Ftp, client, server)
}

const READ_ONLY: &str = "[[access]]\ncommands = [\"read\", \"list\"]\n";

#[test]
fn a_session_that_no_condition_concerns_has_no_rules() {
    assert!(ftp("").is_none());
    assert!(ftp("[[access]]\n").is_none());
    assert!(ftp("[[access]]\nfrom = [\"10.9.0.0/16\"]\nuser = [\"joe\"]\n[[access]]\n").is_none());
    assert!(ftp("[[access]]\nsender = [\"*@example.org\"]\n[[access]]\n").is_none());
    assert!(ftp("[[access]]\n[[access]]\ncommands = [\"read\"]\n").is_none(), "decided before it");
    assert!(ftp(READ_ONLY).is_some());
}

#[test]
fn a_read_only_gateway() {
    let rules = ftp(READ_ONLY).unwrap();
    assert!(rules.login(b"anybody"));
    for (line, permitted) in [
        ("RETR a", true),
        ("retr a", true),
        ("LIST", true),
        ("MLST a", true),
        ("SIZE a", true),
        ("MDTM a", true),
        ("MDTM 20200101", true),
        ("MDTM 20200101000000 a", false),
        ("STAT", true),
        ("STAT a", true),
        ("CWD a", true),
        ("PASS x", true),
        ("TYPE I", true),
        ("STOR a", false),
        ("stor a", false),
        ("STOU", false),
        ("APPE a", false),
        ("DELE a", false),
        ("RNFR a", false),
        ("RNTO a", false),
        ("XMKD a", false),
        ("RMD a", false),
        ("SITE CHMOD 777 a", false),
        ("SITE HELP", false),
        ("XYZW a", false),
    ] {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let given = rules.command(Some(b"joe"), verb.as_bytes(), argument.as_bytes());
        assert_eq!(given, permitted, "{line}");
    }
}

#[test]
fn a_forbidden_group_takes_all_that_may_do_the_same() {
    let rules =
        ftp("[[access]]\naction = \"deny\"\ncommands = [\"delete\"]\n[[access]]\n").unwrap();
    let may = |verb: &str| rules.command(Some(b"joe"), verb.as_bytes(), b"x");
    assert!(may("STOR") && may("RETR") && may("LIST") && may("SIZE"));
    assert!(!may("DELE") && !may("RMDA") && !may("SITE") && !may("XQZZ"));
    let rules = ftp("[[access]]\naction = \"deny\"\ncommands = [\"SITE\"]\n[[access]]\n").unwrap();
    assert!(!rules.command(None, b"Site", b"x") && rules.command(None, b"DELE", b"x"));
}

#[test]
fn no_upload_by_anonymous() {
    let rules =
        ftp("[[access]]\nuser = [\"anonymous\", \"ftp\"]\ncommands = [\"read\", \"list\"]\n\
         [[access]]\naction = \"deny\"\nuser = [\"anonymous\", \"ftp\"]\n\
         [[access]]\nuser = [\"j*\"]\n")
        .unwrap();
    assert!(rules.login(b"Anonymous") && rules.login(b"joe") && !rules.login(b"bob"));
    assert!(rules.command(Some(b"ANONYMOUS"), b"RETR", b"x"));
    assert!(!rules.command(Some(b"anonymous"), b"STOR", b"x"));
    assert!(rules.command(Some(b"joe"), b"STOR", b"x"));
    assert!(!rules.command(None, b"STOR", b"x"), "nobody is neither of them");
    for name in [&b" joe"[..], b"joe ", b"joe\t", b"", b"j\x01oe"] {
        assert!(!rules.login(name), "{}", name.escape_ascii());
    }
    let rules = ftp("[[access]]\naction = \"deny\"\nuser = [\"anonymous\"]\n[[access]]\n").unwrap();
    assert!(!rules.login(b"anonymous") && !rules.login(b"anonymous "), "may be taken for it");
    assert!(rules.login(b"joe"));
}

#[test]
fn senders_recipients_and_authentication() {
    use vscan_proto::smtp::Permit;
    let (client, server) = ("10.0.0.5".parse().unwrap(), "192.0.2.1".parse().unwrap());
    let rules = |text: &str| Rules::of(&config(text), Protocol::Smtp, client, server);
    let own = rules(
        "[[access]]\nsender = [\"*@example.org\", \"\\\"\\\"\"]\n\
         [[access]]\nrecipient = [\"postmaster@*\"]\n[[access]]\nauth = true\n",
    )
    .unwrap();
    let (joe, eve) = (&b"Joe@Example.org"[..], &b"eve@evil.example"[..]);
    assert!(own.sender(joe, false) && own.recipient(joe, eve, false));
    assert!(own.sender(eve, false), "to some recipient at least");
    assert!(own.recipient(eve, b"postmaster@example.net", false));
    assert!(!own.recipient(eve, b"x@example.net", false));
    assert!(own.recipient(eve, b"x@example.net", true));
    assert!(!own.recipient(eve, b"x%postmaster@example.net", false));
    let deny = rules("[[access]]\naction = \"deny\"\nsender = [\"eve@*\"]\n[[access]]\n").unwrap();
    assert!(!deny.sender(eve, true) && !deny.sender(b"@a:eve@evil.example", true));
    assert!(!deny.sender(b"\"eve\"@evil.example", true) && deny.sender(joe, false));
    assert!(rules("[[access]]\nuser = [\"joe\"]\n[[access]]\n").is_none(), "that is about FTP");
}

#[test]
fn the_list_is_explained_and_its_mistakes_are_named() {
    let text = |rules: &str| {
        explain(&config(rules))
            .into_iter()
            .map(|r| format!("{}{}", if r.doubtful { "? " } else { "" }, r.text))
            .collect::<Vec<_>>()
    };
    assert_eq!(text(""), ["no [[access]]: clients inside may reach every server"]);
    let said = text(
        "[[access]]\nfrom = [\"10.1.0.0/16\"]\nuser = [\"anonymous\"]\ncommands = [\"read\"]\n\
         [[access]]\naction = \"deny\"\nfrom = [\"10.0.0.0/8\"]\n\
         [[access]]\nfrom = [\"10.2.0.0/16\"]\nprotocol = [\"smtp\"]\n",
    );
    assert_eq!(
        said[0],
        "access[0]: allow ftp from 10.1.0.0/16 to anywhere, user anonymous, commands read: intercepted and scanned, \
         the rest is left to the rules below"
    );
    assert!(
        said.iter().any(|s| s.starts_with("? access[2] never decides anything: access[1]")),
        "{said:#?}"
    );
    assert!(said.iter().any(|s| s.starts_with("ftp: AUTH is refused")), "{said:#?}");
    assert!(!said.iter().any(|s| s.starts_with("smtp: STARTTLS")), "{said:#?}");
    let said = text("[[access]]\naction = \"deny\"\nuser = [\"anonymous\"]\n");
    assert!(said.iter().any(|s| s.starts_with("? access[0] denies a part")), "{said:#?}");
    assert!(said.iter().any(|s| s.starts_with("? smtp: no rule allows")), "{said:#?}");
}
