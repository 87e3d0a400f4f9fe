use super::*;
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;
use vscan_scan::report::{Reason, Verdict};

const LEAST: &str = "\
[gateway]
interfaces = [\"lan0\", \"wan0\"]
inside = [\"192.168.0.0/16\", \"fd00::/8\"]
";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("vscan.toml"))
}

fn with(more: &str) -> Result<Config, ConfigErrors> {
    parse(&format!("{LEAST}{more}"))
}

/// The messages, as the user sees them.
fn complaints(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn least_configuration_has_defaults() {
    let c = parse(LEAST).unwrap();
    assert_eq!(c.ftp, Ftp::default());
    assert_eq!(c.smtp, Smtp::default());
    assert_eq!(c.paths.control, Path::new("/run/vscan/control.sock"));
    assert_eq!(c.gateway.table.get(), 181);
    assert_eq!(c.gateway.on_agent_down, OnAgentDown::Closed);
    assert_eq!(c.metrics.listen, Some("127.0.0.1:9321".parse().unwrap()));
    let defaults = Config {
        gateway: Gateway {
            interfaces: c.gateway.interfaces.clone(),
            inside: c.gateway.inside.clone(),
            ..Gateway::default()
        },
        ..Config::defaults()
    };
    assert_eq!(c, defaults);
}

#[test]
fn the_example_is_right_and_says_the_defaults() {
    let text = include_str!("../../../deploy/vscan.toml");
    let example = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let defaults = Config {
        gateway: Gateway {
            interfaces: example.gateway.interfaces.clone(),
            inside: example.gateway.inside.clone(),
            ..Gateway::default()
        },
        ..Config::defaults()
    };
    assert_eq!(example, defaults);
    // every key that is shown in a comment is one that can be written, with the default shown
    let shown: String = text
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(shown.lines().count() == text.lines().count() && shown.contains("\nhold_max ="));
    let mut uncommented = parse(&shown).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((uncommented.access.len(), uncommented.treat.len()), (4, 3), "the examples");
    uncommented.access.clear();
    uncommented.outbound.exempt.clear();
    uncommented.treat.clear();
    // as many as there are cores, so no number could be shown
    uncommented.gateway.workers = defaults.gateway.workers;
    uncommented.scan.workers = defaults.scan.workers;
    uncommented.scan.threads = defaults.scan.threads;
    assert_eq!(uncommented.gateway.rate_limit.take().map(|r| r.per_second.get()), Some(50));
    assert_eq!(uncommented.paths.scanner.take().unwrap(), Path::new("/usr/bin/vscan-scanner"));
    // in the state directory, wherever that is
    let key = uncommented.scan.rules_key.take();
    assert_eq!(key.as_deref(), Some(Path::new("/var/lib/vscan/rules.key")));
    // what has no default
    let clamd = uncommented.scan.clamd.take().unwrap();
    let said = (clamd.address.to_string(), clamd.ignore.len(), clamd.size_max);
    assert_eq!(said, ("/run/clamav/clamd.ctl".to_owned(), 2, 25 << 20));
    let update = &mut uncommented.scan.update;
    assert!(
        matches!(update.source.take(), Some(Origin::Url(_))) && update.public_key.take().is_some()
    );
    assert_eq!(update.directory.take().as_deref(), Some(Path::new("/var/lib/vscan/rules")));
    update.corpus.clear();
    assert_eq!(uncommented.notify.relay.take().unwrap().to_string(), "mail.example.com:25");
    let notify = &mut uncommented.notify;
    assert!(notify.name.take().is_some() && notify.from.take().is_some());
    assert!(notify.templates.take().is_some());
    notify.admin.clear();
    notify.domains.clear();
    uncommented.gateway.exempt.clear();
    uncommented.gateway.deny.clear();
    uncommented.gateway.publish.clear();
    uncommented.scan.skip_extensions.clear();
    uncommented.scan.skip_types.clear();
    uncommented.types.forbid.clear();
    let tls = &mut uncommented.tls;
    assert_eq!((tls.certificates.len(), tls.rules.len(), tls.destinations.len()), (1, 1, 1));
    assert_eq!(tls.authority.take().map(|it| it.lifetime.as_secs()), Some(7 * 86_400));
    assert_eq!(tls.never_open.len(), 2);
    tls.certificates.clear();
    tls.rules.clear();
    tls.destinations.clear();
    tls.never_open.clear();
    let shown = uncommented.mailboxes.remove(0);
    let least = "[mailbox.support]\nhost = \"imap.example.com\"\nuser = \"support@example.com\"\n\
                 secret_file = \"/etc/vscan/secrets/support\"\n";
    let least = with(least).unwrap().mailboxes.remove(0);
    // what has no default
    assert!(shown.ca.is_some() && shown.domain.is_some() && shown.keyword.is_some());
    assert!(shown.quarantine_folder.is_some() && !shown.exclude.is_empty());
    let without = Mailbox {
        ca: None,
        domain: None,
        keyword: None,
        quarantine_folder: None,
        exclude: Vec::new(),
        ..shown
    };
    assert_eq!(without, least);
    assert_eq!(uncommented, defaults);
}

#[test]
fn everything_can_be_said() {
    let c = with(
        r#"
exempt = ["10.9.0.0/16", "10.8.0.1"]
deny = ["2001:db8:bad::/48"]
on_agent_down = "open"
steering = "nft"
attach = "clsact"
publish = ["192.168.1.5:25", "[fd00::5]:25", "192.168.2.0/24", "fd00:2::1"]
intercept_own = true
rate_limit = { per_second = 50 }
marks = { client = 0x100, upstream = 0x200, bypass = 0x400, related = 0x300, mask = 0xf00 }
table = 200
tproxy_port = 4000
max_sessions = 100
workers = 2
busy_poll = "250us"
drain = "1m 30s"
connect_timeout = "500ms"
idle_timeout = "1h"

[paths]
run_dir = "/run/a"
state_dir = "/var/a"
events = "/tmp/events"

[[access]]
action = "deny"
from = "192.168.9.0/24"
protocol = "ftp"

[[access]]
to = ["0.0.0.0/0"]

[ftp]
ports = [21, 2121]
tls = "refuse"

[smtp]
ports = [25, 587]
starttls = "strip"
bare_newline = "refuse"
noop_interval = "10s"

[scan]
rules = ["/tmp/rules"]
skip_extensions = ["TXT"]
deadline = "1500ms"
workers = 1
[scan.limits]
object_size = "1 MiB"
header_bytes = 4096

[[treat]]
protocol = ["smtp"]
direction = ["inbound", "internal"]
verdict = "unscannable"
reason = ["encrypted", "encrypted-mail"]
action = "pass"

[[treat]]
detection = "Win.*"
extension = ["exe"]
from = "10.0.0.0/8"
to = "192.0.2.1"
action = "quarantine"

[quarantine]
max_age = "none"
max_size = "10 GB"
min_free = 0

[spool]
memory = "1 GiB"

[metrics]
listen = "none"

[log]
level = "info,vscan_agent::net=debug"
format = "json"
"#,
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(c.gateway.publish.len(), 4);
    assert_eq!(c.gateway.publish[1].net, "fd00::5/128".parse().unwrap());
    assert_eq!(c.gateway.publish[1].port.map(|p| p.get()), Some(25));
    assert_eq!(c.gateway.publish[3].port, None);
    assert_eq!(c.gateway.busy_poll, Duration::from_micros(250));
    assert_eq!(c.gateway.drain, Duration::from_secs(90));
    assert_eq!(c.gateway.rate_limit.map(|r| r.burst.get()), Some(50));
    assert_eq!(c.gateway.marks.related, 0x300);
    assert_eq!(c.paths.control, Path::new("/run/a/control.sock"));
    assert_eq!(c.paths.quarantine, Path::new("/var/a/quarantine"));
    assert_eq!(c.access[0].from, ["192.168.9.0/24".parse().unwrap()]);
    assert_eq!(c.access[1].action, Permission::Allow);
    assert_eq!(c.scan.limits.seconds, 2, "the deadline, rounded up");
    assert_eq!(c.scan.limits.header_bytes, 4096);
    assert_eq!(c.treat[0].verdict, [Verdict::Unscannable]);
    assert_eq!(c.treat[0].reason, [Reason::Encrypted, Reason::EncryptedMail]);
    assert!(c.treat[1].detection[0].matches("win.trojan"));
    assert_eq!(
        c.quarantine,
        Quarantine { max_age: None, max_size: Some(10_000_000_000), min_free: 0 }
    );
    assert_eq!(c.metrics.listen, None);
}

#[test]
fn every_error_at_once_with_place_and_help() {
    let text = r#"[gateway]
interfaces = ["lan0", "a name that is too long"]
inside = ["192.168.1.1/16", "nonsense"]
on_agent_down = "opne"
max_sesions = 5

[ftp]
ports = [0]
tls = "terminate"
resume = "part"
hold_back = "64 KiB"

[spool]
memory = "lots"

[[treat]]
verdict = "infected"
action = "strp"

[mailboxes.support]
host = "x"
"#;
    assert_eq!(
        complaints(text),
        r#"vscan.toml:2:23: `gateway.interfaces[1]`: "a name that is too long" cannot be the name of an interface
  2 | interfaces = ["lan0", "a name that is too long"]
    |                       ^^^^^^^^^^^^^^^^^^^^^^^^^
  help: `ip link` lists them; a name has 1 to 15 bytes, no space and no slash
vscan.toml:3:11: `gateway.inside[0]`: "192.168.1.1/16" has bits set behind its prefix
  3 | inside = ["192.168.1.1/16", "nonsense"]
    |           ^^^^^^^^^^^^^^^^
  help: write "192.168.0.0/16" for the network, or "192.168.1.1" for the host
vscan.toml:3:29: `gateway.inside[1]`: "nonsense" is not a network
  3 | inside = ["192.168.1.1/16", "nonsense"]
    |                             ^^^^^^^^^^
  help: write an address with its prefix length, as in "192.168.0.0/16" or "fd00::/8"
vscan.toml:4:17: `gateway.on_agent_down`: "opne" is not known here
  4 | on_agent_down = "opne"
    |                 ^^^^^^
  help: did you mean "open"?
vscan.toml:5:1: unknown key `gateway.max_sesions`
  5 | max_sesions = 5
    | ^^^^^^^^^^^
  help: did you mean `max_sessions`?
vscan.toml:8:10: `ftp.ports[0]`: must be a port from 1 to 65535, this is 0
  8 | ports = [0]
    |          ^
vscan.toml:9:7: TLS is to be opened, and there is no certificate to show clients
  9 | tls = "terminate"
    |       ^^^^^^^^^^^
  help: write [[tls.certificate]] with chain and key for servers of your own, [tls.authority] with certificate and key for those of others
vscan.toml:10:10: `ftp.resume`: "part" is not known here
  10 | resume = "part"
     |          ^^^^^^
  help: choose one of "whole", "refuse"
vscan.toml:11:13: `ftp.hold_back` must be at least 128 KiB
  11 | hold_back = "64 KiB"
     |             ^^^^^^^^
vscan.toml:14:10: `spool.memory`: "lots" is not a size
  14 | memory = "lots"
     |          ^^^^^^
  help: write a number and one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB
vscan.toml:18:10: `treat[0].action`: "strp" is not known here
  18 | action = "strp"
     |          ^^^^^^
  help: did you mean "strip"?
vscan.toml:20:2: unknown table `mailboxes`
  20 | [mailboxes.support]
     |  ^^^^^^^^^
  help: did you mean `mailbox`?"#
    );
    assert_eq!(parse(text).unwrap_err().exit_code(), 78);
}

#[test]
fn what_is_missing_is_said() {
    assert_eq!(
        complaints(""),
        "\
vscan.toml: `gateway.interfaces` is missing
  help: write interfaces = [\"lan0\", \"wan0\"] below [gateway]
vscan.toml: `gateway.inside` is missing
  help: write inside = [\"192.168.0.0/16\"] below [gateway]"
    );
    assert!(complaints("[gateway]\ninterfaces = []\ninside = []\n").contains("must not be empty"));
}

#[test]
fn what_contradicts_is_said() {
    for (more, expected) in [
        ("[smtp]\nports = [21]\n", "port 21 is in both `ftp.ports` and `smtp.ports`"),
        ("[smtp]\nlmtp_ports = [25]\n", "port 25 is in both `smtp.ports` and `smtp.lmtp_ports`"),
        ("[smtp]\nlmtp_ports = [21]\n", "port 21 is in both `ftp.ports` and `smtp.lmtp_ports`"),
        ("[smtp]\nlmtp_ports = [24, 24]\n", "`smtp.lmtp_ports` names 24 twice"),
        ("[smtp]\nhide_extensions = [\"X Y\"]\n", "\"X Y\" is not an extension's keyword"),
        ("[ftp]\nports = []\n[smtp]\nports = []\n", "both empty"),
        ("[ftp]\nports = [21, 21]\n", "names 21 twice"),
        ("[ftp]\nports = [12321]\n", "the port of `gateway.tproxy_port`"),
        ("marks = { client = 0x101 }\n", "0x101 has bits outside of the mask 0xff"),
        ("marks = { client = 0x82 }\n", "`gateway.marks.upstream` equals `gateway.marks.client`"),
        ("table = 254\n", "254 (main)"),
        ("rate_limit = { burst = 5 }\n", "`gateway.rate_limit.per_second` is missing"),
        ("rate_limit = 5\n", "`gateway.rate_limit` must be a table"),
        ("connect_timeout = \"0s\"\n", "must be more than 0"),
        ("busy_poll = \"1s\"\n", "`gateway.busy_poll` must be at most 10ms"),
        ("drain = 30\n", "a duration needs a unit"),
        ("exempt = \"10.0.0.0/8\"\n", "must be an array"),
        ("publish = [\"192.168.0.1:70000\"]\n", "\"70000\" is not a port"),
        ("[spool]\nhold_max = \"1 TiB\"\n", "such an object could never be held"),
        ("[paths]\nspool = \"tmp\"\n", "relative path"),
        ("[scan]\nrules = []\n", "`scan.rules` must not be empty"),
        ("[scan]\nskip_extensions = [\"*.txt\"]\n", "not a file name's extension"),
        ("[scan]\nworkers = 2000\n", "at most 1024"),
        ("[scan]\nthreads = 17\n", "at most 16"),
        ("[[treat]]\nverdict = \"infected\"\n", "`treat[0].action` is missing"),
        ("[[treat]]\nverdict = \"clean\"\naction = \"block\"\n", "a clean object always passes"),
        (
            "[[treat]]\nverdict = \"infected\"\nreason = \"size\"\naction = \"pass\"\n",
            "only matches verdict \"unscannable\"",
        ),
        ("[treat]\naction = \"pass\"\n", "write [[treat]]"),
        ("[[treat]]\naction = [\"block\", \"strip\"]\n", "is never tried"),
        ("[[treat]]\naction = [\"strip\", \"strip\"]\n", "names \"strip\" twice"),
        ("[[treat]]\naction = \"redirect\"\n", "\"redirect\" is not known here"),
        ("[[treat]]\nprotocol = \"ftp\"\naction = \"replace\"\n", "is for mail only"),
        (
            "[[treat]]\nprotocol = \"ftp\"\nsender = \"a@b\"\naction = \"block\"\n",
            "means nothing to ftp",
        ),
        (
            "[[treat]]\nprotocol = \"smtp\"\nuser = \"a\"\naction = \"block\"\n",
            "means nothing to smtp",
        ),
        ("[[treat]]\nsender = \"<a@b>\"\naction = \"block\"\n", "is no pattern for addresses"),
        ("[[treat]]\nmin_size = 2\nmax_size = 1\naction = \"block\"\n", "is more than `max_size`"),
        ("[[treat]]\naction = \"tag\"\nsubject = \"a\\nb\"\n", "without control characters"),
        ("[[treat]]\naction = \"block\"\nredirect = \"nobody\"\n", "is not a mail address"),
        ("[[treat]]\naction = \"block\"\nnotify = \"recipient\"\n", "`notify.relay` is missing"),
        (
            "[notify]\nrelay = \"mx\"\n[[treat]]\naction = \"block\"\nnotify = \"admin\"\n",
            "`notify.admin` is missing",
        ),
        ("[notify]\nrelay = \"mx:0\"\n", "is not a mail server"),
        ("[notify]\nrelay = \"smtp://mx\"\n", "is not a mail server"),
        ("[notify]\nlogin = \"x\"\ntls = \"always\"\n", "go together"),
        ("[notify]\nlogin = \"x\"\npassword_file = \"/x\"\n", "in the clear"),
        ("[metrics]\nlisten = \"everywhere\"\n", "\"none\" turns it off"),
        ("[log]\nlevel = \"a=b=c\"\n", "`log.level`"),
    ] {
        let said = with(more).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(expected), "{more}\n{said}");
        assert_eq!(said.matches("vscan.toml:").count(), 1, "one complaint:\n{said}");
    }
}

#[test]
fn syntax_errors_have_their_place_too() {
    let said = complaints("[gateway\ninterfaces = [\n");
    assert!(said.starts_with("vscan.toml:1:9: "), "{said}");
    let said = complaints("[gateway]\ntable = 1\ntable = 2\n");
    assert!(said.starts_with("vscan.toml:3:1: duplicate key"), "{said}");
}

#[test]
fn places_count_characters_and_survive_tabs() {
    let said = complaints(&format!("{LEAST}[log]\n\tformat = \"Grüße\" # é\n"));
    assert!(
        said.contains("vscan.toml:5:11: ")
            && said.contains("5 |  format = \"Grüße\" # é\n    |           ^^^^^^^"),
        "{said}"
    );
}

#[test]
fn unreadable_files_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no.toml");
    let error = Config::load(&path).unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert!(error.to_string().ends_with("no such file; name the configuration with --config"));
    std::fs::write(&path, b"\xff").unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().ends_with("is not UTF-8 at byte 0"));
}

#[test]
fn the_control_socket_is_found_in_a_file_that_is_wrong_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vscan.toml");
    let socket = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Config::control_socket(&path)
    };
    let found = socket("[gateway]\nx = 1\n[paths]\nrun_dir = \"/run/a\"\n").unwrap();
    assert_eq!(found, Path::new("/run/a/control.sock"));
    assert_eq!(socket("").unwrap(), Path::new("/run/vscan/control.sock"));
    assert_eq!(socket("[paths]\nrun_dir = 1\n").unwrap_err().exit_code(), 78);
    assert_eq!(socket("[paths\n").unwrap_err().problems().len(), 1);
}

#[test]
fn extensions_of_names_from_the_wire() {
    assert_eq!(extension(b"/a/b.TxT"), Some(b"txt".to_vec()));
    for none in [&b"/a.txt/b"[..], b"txt", b"a.", b""] {
        assert_eq!(extension(none), None, "{}", none.escape_ascii());
    }
}

#[test]
fn directions_and_protocols() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let c = parse(LEAST).unwrap();
    let (inside, outside) = (ip("192.168.3.4"), ip("203.0.113.1"));
    assert_eq!(c.direction(inside, outside), Direction::Outbound);
    assert_eq!(c.direction(outside, ip("fd12::1")), Direction::Inbound);
    assert_eq!(c.direction(inside, inside), Direction::Internal);
    assert_eq!(c.direction(outside, outside), Direction::Transit);
    assert!(c.is_inside(ip("::ffff:192.168.3.4")), "mapped addresses are what they stand for");
    assert_eq!(
        (c.protocol(21), c.protocol(25), c.protocol(80)),
        (Some(Protocol::Ftp), Some(Protocol::Smtp), None)
    );
}

#[test]
fn a_repeated_reason_list_names_every_reason_once() {
    let mut words: Vec<&str> = REASONS.iter().map(|r| r.as_str()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), REASONS.len());
    for word in words {
        let c = with(&format!("[[treat]]\nreason = \"{word}\"\naction = \"block\"\n")).unwrap();
        assert_eq!(c.treat[0].reason[0].as_str(), word);
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = parse(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn no_damage_to_a_configuration_makes_it_panic(at in 0usize..400, put in "\\PC{0,3}", take in 0usize..4) {
        let mut text = format!("{LEAST}rate_limit = {{ per_second = 5 }}\n[scan]\nrules = [\"/é\"]\n[[treat]]\naction = \"pass\"\n");
        let at = text.floor_char_boundary(at.min(text.len()));
        let end = text.ceil_char_boundary((at + take).min(text.len()));
        text.replace_range(at..end, &put);
        if let Err(e) = parse(&text) {
            prop_assert!(!e.problems().is_empty());
            prop_assert!(!e.to_string().is_empty());
        }
    }
}

#[test]
fn a_relay_is_a_name_or_an_address_with_a_port() {
    for (written, read) in [
        ("mx.example.com", "mx.example.com:25"),
        ("192.0.2.1:2525", "192.0.2.1:2525"),
        ("2001:db8::1", "[2001:db8::1]:25"),
        ("[2001:db8::1]:587", "[2001:db8::1]:587"),
    ] {
        let c = with(&format!("[notify]\nrelay = \"{written}\"\n")).unwrap();
        assert_eq!(c.notify.relay.unwrap().to_string(), read);
    }
    assert_eq!(with("[notify]\nrelay = \"none\"\n").unwrap().notify.relay, None);
}

#[test]
fn addresses_match_whole_by_domain_or_as_nobody() {
    let c = with("[[treat]]\nsender = [\"<>\", \"Example.com\", \"bob@*\"]\naction = \"pass\"\n")
        .unwrap();
    let matches = |address: &str| c.treat[0].sender.iter().any(|m| m.matches(address.as_bytes()));
    assert!(matches("") && matches("a@EXAMPLE.com") && matches("bob@x"));
    assert!(!matches("a@b.example.com") && !matches("a@notexample.com") && !matches("xbob@x"));
}

#[test]
fn tls_is_read_and_what_is_missing_told() {
    let c = with(
        r#"
[smtp]
ports = [25]
tls_ports = [465]
starttls = "terminate"
[tls]
never_open = ["*.bank.example", "203.0.113.0/24", "2001:db8::1"]
verify = "public"
[[tls.certificate]]
chain = "/a/mx.pem"
key = "credential:mx.key"
[[tls.rule]]
action = "pass"
direction = "outbound"
server_name = "*.example.org"
[[tls.destination]]
to = "192.168.1.5"
name = "mx.internal"
verify = "pinned"
ca = "/a/ca.pem"
min_version = "1.3"
"#,
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert!(c.opens_tls() && c.smtp.begins_with_tls(465) && !c.smtp.begins_with_tls(25));
    assert_eq!(c.protocol(465), Some(Protocol::Smtp));
    assert!(matches!(c.tls.never_open[2], Peer::Net(_)));
    assert_eq!(c.tls.certificates[0].key, KeyFile::Credential("mx.key".to_owned()));
    let (upstream, name) = c.tls.upstream_of("192.168.1.5".parse().unwrap(), None);
    assert_eq!((upstream.verify, name), (Verify::Pinned, Some("mx.internal")));
    assert_eq!(upstream.min_version, TlsVersion::Tls13);
    let (upstream, name) = c.tls.upstream_of("192.168.1.6".parse().unwrap(), Some("x"));
    assert_eq!((upstream.verify, name), (Verify::Public, None));
    for (text, said) in [
        ("[smtp]\nstarttls = \"terminate\"\n", "there is no certificate to show clients"),
        ("[tls]\nverify = \"pinned\"\n", "`tls.ca` is missing"),
        ("[tls]\nca = \"/x\"\n", "`tls.ca` is only for verify = \"pinned\""),
        ("[[tls.rule]]\nto = []\n", "`tls.rule[0].action` is missing"),
        (
            "[[tls.rule]]\naction = \"strip\"\nserver_name = \"a.b\"\n",
            "\"strip\" cannot depend on `server_name`",
        ),
        ("[[tls.certificate]]\nchain = \"/x\"\n", "`tls.certificate[0].key` is missing"),
        ("[tls.authority]\nlifetime = \"1h\"\n", "`tls.authority.lifetime` must be from 1d"),
        ("[tls]\nnever_open = [\"a b\"]\n", "is no pattern for host names"),
        ("[[tls.destination]]\nname = \"a_ b\"\n", "is no host name"),
        ("[smtp]\ntls_ports = [25]\n", "port 25 is in both `smtp.ports` and `smtp.tls_ports`"),
    ] {
        let told = with(text).unwrap_err().to_string();
        assert!(told.contains(said), "{text}: {told}");
    }
}
