use super::*;
use crate::config::Config;
use std::path::Path;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("vscan.toml")).map_err(|errors| errors.to_string())
}

fn one(text: &str) -> Mailbox {
    let mut config = parse(&format!("[mailbox.x]\n{text}")).unwrap_or_else(|e| panic!("{e}"));
    config.mailboxes.remove(0)
}

const LEAST: &str = "host = \"imap.example.org\"\nuser = \"ann\"\nsecret_file = \"/s\"\n";

#[test]
fn a_file_with_mailboxes_alone_needs_no_gateway() {
    let config = parse(&format!("[mailbox.a]\n{LEAST}[mailbox.b]\n{LEAST}port = 1993\n")).unwrap();
    let named: Vec<(&str, u16)> =
        config.mailboxes.iter().map(|m| (m.name.as_str(), m.port.get())).collect();
    assert_eq!(named, [("a", 993), ("b", 1993)]);
    assert!(config.gateway.interfaces.is_empty());
    assert!(parse("").unwrap_err().contains("`gateway.interfaces` is missing"));
    let half = parse(&format!("[gateway]\n[mailbox.a]\n{LEAST}")).unwrap_err();
    assert!(half.contains("`gateway.inside` is missing"), "{half}");
}

#[test]
fn the_example_for_users_is_right() {
    let example = include_str!("../../../../deploy/mailbox.toml");
    let config = parse(example).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((config.mailboxes.len(), config.treat.len()), (1, 1));
    assert_eq!(config.metrics.listen, None, "many users have one machine");
}

#[test]
fn whose_mail_it_is() {
    let secret = || Secret::File("/s".into());
    assert_eq!(one(LEAST).identity, Identity::One { user: "ann".to_owned(), secret: secret() });
    let behalf = one(&format!("{LEAST}users = [\"bob\"]\nusers_file = \"/u\"\nmaster = \"*\"\n"));
    assert_eq!(
        behalf.identity,
        Identity::Behalf {
            admin: "ann".to_owned(),
            secret: secret(),
            master: Master::Separator("*".to_owned()),
            users: vec!["bob".to_owned()],
            file: Some("/u".into()),
        }
    );
    let file = one("host = \"h\"\naccounts_file = \"/a\"\n");
    assert_eq!(file.identity, Identity::File("/a".into()));
    let domain = one(&format!("{LEAST}domain = \"example.org\"\n"));
    assert_eq!(domain.address("ann").unwrap(), "ann@example.org");
    assert_eq!(domain.address("ann@example.com").unwrap(), "ann@example.com");
    assert_eq!(one(LEAST).address("ann"), None);
}

#[test]
fn rescan_and_what_is_remembered() {
    assert!(one(LEAST).rescan.is_none() && !one(LEAST).remember_read);
    let again = one(&format!("{LEAST}rescan_age = \"7d\"\nrescan_rate = 5\n"));
    assert!(again.remember_read);
    let rescan = again.rescan.unwrap();
    assert_eq!((rescan.age, rescan.rate.get()), (Duration::from_secs(7 * 86_400), 5));
    assert!(one(&format!("{LEAST}rescan_age = \"none\"\n")).rescan.is_none());
}

#[test]
fn what_contradicts_or_is_missing_is_said() {
    for (text, expected) in [
        ("user = \"a\"\nsecret_file = \"/s\"\n", "`mailbox.x.host` is missing"),
        ("host = \"h\"\nsecret_file = \"/s\"\n", "`mailbox.x.user` is missing"),
        ("host = \"h\"\nuser = \"a\"\n", "`mailbox.x.secret_file` is missing"),
        (&format!("{LEAST}credential = \"c\"\n"), "more than one of `mailbox.x.secret_file`"),
        (&format!("{LEAST}secret_command = [\"pass\"]\n"), "must begin with a program"),
        (&format!("{LEAST}security = \"none\"\n"), "would travel to imap.example.org in the clear"),
        (&format!("{LEAST}master = \"*\"\n"), "is for logins on behalf of users"),
        (&format!("{LEAST}users = [\"b\"]\nauth = \"xoauth2\"\n"), "a token is for one user"),
        (&format!("{LEAST}users = [\"b\"]\nauth = \"login\"\n"), "LOGIN names one user only"),
        (&format!("{LEAST}users = [\"b\"]\nmaster = \"ab\"\n"), "is no way to log in for others"),
        (&format!("{LEAST}accounts_file = \"/a\"\n"), "no other can be given beside it"),
        (&format!("{LEAST}folders = []\n"), "`mailbox.x.folders` must not be empty"),
        (&format!("{LEAST}interval = \"10ms\"\n"), "must be at least 1s"),
        (&format!("{LEAST}keyword = \"a b\"\n"), "cannot be a keyword of IMAP"),
        (&format!("{LEAST}rescan_rate = 5\n"), "means nothing without `rescan_age`"),
        (
            &format!("{LEAST}rescan_age = \"1d\"\nremember_read = false\n"),
            "what is scanned again has to be remembered",
        ),
        (&format!("{LEAST}colour = 5\n"), "unknown key `mailbox.x.colour`"),
    ] {
        let said = parse(&format!("[mailbox.x]\n{text}")).unwrap_err();
        assert!(said.contains(expected), "{text}: {said}");
    }
    let said = parse(&format!("[mailbox.\"a/b\"]\n{LEAST}")).unwrap_err();
    assert!(said.contains("cannot be the name of a mailbox"), "{said}");
    for host in ["localhost", "127.0.0.1", "::1"] {
        let text = LEAST.replace("imap.example.org", host);
        let mailbox = one(&format!("{text}security = \"none\"\n"));
        assert_eq!((mailbox.port.get(), mailbox.security), (143, MailboxSecurity::None));
    }
}

#[test]
fn rules_speak_of_accounts_and_folders() {
    let rule = "[[treat]]\nprotocol = \"mailbox\"\nuser = \"a*\"\nfolder = \"INBOX\"\naction = \"strip\"\n";
    assert_eq!(parse(&format!("[mailbox.x]\n{LEAST}{rule}")).unwrap().treat.len(), 1);
    let said =
        parse(&format!("[mailbox.x]\n{LEAST}{}", rule.replace("mailbox", "ftp"))).unwrap_err();
    assert!(said.contains("`treat[0].folder` means nothing to ftp"), "{said}");
    let access = "[[access]]\nprotocol = \"mailbox\"\n";
    let said = parse(&format!("[mailbox.x]\n{LEAST}{access}")).unwrap_err();
    assert!(said.contains("no connection is of \"mailbox\""), "{said}");
}
