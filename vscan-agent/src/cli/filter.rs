//! The filters of `vscan flows`, in the manner of `hubble observe`.

use crate::config::{Protocol, verdict_str};
use crate::observe::FlowRecord;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ipnet::IpNet;
use jiff::Timestamp;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// What to list: alternatives of each kind, and none of the reversed ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters(Vec<Filter>);

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    reversed: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    FromIp(IpNet),
    ToIp(IpNet),
    Ip(IpNet),
    Port(u16),
    Protocol(Protocol),
    Verdict(String),
    State(String),
    User(String),
}

/// Option, value's name, help.
const KINDS: &[(&str, &str, &str)] = &[
    ("from-ip", "NET", "Client address or network"),
    ("to-ip", "NET", "Server address or network"),
    ("ip", "NET", "Client or server address or network"),
    ("port", "PORT", "Server port"),
    ("protocol", "NAME", "ftp or smtp"),
    ("verdict", "NAME", "clean, infected, unscannable, error, uninspected, or none"),
    ("state", "NAME", "State, as the listing shows it"),
    ("user", "TEXT", "Part of the FTP user's or SMTP sender's name"),
];

impl Test {
    fn parse(kind: &str, value: &str) -> Result<Self, String> {
        let net = || {
            value
                .parse::<IpNet>()
                .or_else(|_| value.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("{value:?} is not an address or network"))
        };
        let among = |words: &[&str]| {
            if words.contains(&value) {
                Ok(value.to_owned())
            } else {
                Err(format!("{value:?} is not one of {}", words.join(", ")))
            }
        };
        Ok(match kind {
            "from-ip" => Self::FromIp(net()?),
            "to-ip" => Self::ToIp(net()?),
            "ip" => Self::Ip(net()?),
            "port" => Self::Port(value.parse().map_err(|_| format!("{value:?} is not a port"))?),
            "protocol" => Self::Protocol(
                Protocol::ALL
                    .iter()
                    .copied()
                    .find(|p| p.as_str() == value)
                    .ok_or_else(|| format!("{value:?} is not ftp or smtp"))?,
            ),
            "verdict" => Self::Verdict(among(&[
                "clean",
                "infected",
                "unscannable",
                "error",
                "uninspected",
                "none",
            ])?),
            "state" => Self::State(value.to_owned()),
            _ => Self::User(value.to_owned()),
        })
    }

    fn matches(&self, flow: &FlowRecord) -> bool {
        let from = |net: &IpNet| net.contains(&flow.client.ip().to_canonical());
        let to = |net: &IpNet| {
            net.contains(&flow.server.ip().to_canonical())
                || net.contains(&flow.real_server.ip().to_canonical())
        };
        match self {
            Self::FromIp(net) => from(net),
            Self::ToIp(net) => to(net),
            Self::Ip(net) => from(net) || to(net),
            Self::Port(port) => flow.server.port() == *port || flow.real_server.port() == *port,
            Self::Protocol(protocol) => flow.protocol == *protocol,
            Self::Verdict(word) => match word.as_str() {
                "uninspected" => flow.uninspected.is_some(),
                "none" => flow.verdict.is_none() && flow.uninspected.is_none(),
                word => flow.verdict.is_some_and(|v| verdict_str(v) == word),
            },
            Self::State(state) => flow.state == *state,
            Self::User(part) => flow.user.as_deref().is_some_and(|u| u.contains(part.as_str())),
        }
    }
}

impl Filters {
    /// Whether the flow is to be listed.
    #[must_use]
    pub fn matches(&self, flow: &FlowRecord) -> bool {
        let kind = |f: &Filter| std::mem::discriminant(&f.test);
        self.0.iter().all(|filter| {
            if filter.reversed {
                !filter.test.matches(flow)
            } else {
                self.0
                    .iter()
                    .filter(|other| !other.reversed && kind(other) == kind(filter))
                    .any(|other| other.test.matches(flow))
            }
        })
    }
}

impl clap::Args for Filters {
    fn augment_args(mut command: Command) -> Command {
        for (name, value, help) in KINDS {
            command = command.arg(
                Arg::new(*name)
                    .long(*name)
                    .value_name(*value)
                    .help(*help)
                    .action(ArgAction::Append)
                    .help_heading("Filters"),
            );
        }
        command.arg(
            Arg::new("not")
                .long("not")
                .help("Reverse the filter that follows")
                .num_args(0)
                .default_missing_value("true")
                .action(ArgAction::Append)
                .help_heading("Filters"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Filters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let invalid = |text: String| clap::Error::raw(ErrorKind::ValueValidation, text + "\n");
        let mut found: Vec<(usize, &str, &String)> = Vec::new();
        for (name, _, _) in KINDS {
            let indices = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            found.extend(indices.zip(values).map(|(index, value)| (index, *name, value)));
        }
        found.sort_unstable();
        let mut nots: Vec<usize> = matches.indices_of("not").into_iter().flatten().collect();
        let mut filters = Vec::with_capacity(found.len());
        let mut after = 0;
        for (index, name, value) in found {
            let count = nots.iter().filter(|n| (after..index).contains(*n)).count();
            nots.retain(|n| *n > index);
            let test = Test::parse(name, value).map_err(|e| invalid(format!("--{name}: {e}")))?;
            filters.push(Filter { reversed: count % 2 == 1, test });
            after = index;
        }
        if !nots.is_empty() {
            return Err(invalid("--not: no filter follows it".to_owned()));
        }
        Ok(Self(filters))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A point in time, given as one or as how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(pub Timestamp);

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        let wrong =
            || format!("{text:?} is neither a time (2026-11-22T01:30:00Z) nor a duration (5m)");
        let ago = ago(text).ok_or_else(wrong)?;
        Timestamp::now().checked_sub(ago).map(Self).map_err(|_| wrong())
    }
}

/// `90s`, `5m`, `2h`, `1d`, or several of them: `1h30m`.
fn ago(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit = match rest.as_bytes()[end] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(number.checked_mul(unit)?))?;
        rest = rest[end + 1..].trim_start();
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command as Sub};
    use crate::config::Direction;
    use clap::Parser;
    use vscan_scan::report::Verdict;

    fn flow(
        client: &str,
        server: &str,
        protocol: Protocol,
        verdict: Option<Verdict>,
    ) -> FlowRecord {
        FlowRecord {
            id: None,
            protocol,
            direction: Direction::Outbound,
            state: "open".to_owned(),
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
            real_server: server.parse().unwrap(),
            command: None,
            transfer: None,
            user: Some("anonymous".to_owned()),
            object: None,
            objects: 0,
            bytes_from_client: 0,
            bytes_from_server: 0,
            verdict,
            detection: None,
            uninspected: None,
            tls: None,
            started: Timestamp::UNIX_EPOCH,
            ended: None,
            age: 0.0,
        }
    }

    fn filters(args: &str) -> Result<Filters, clap::Error> {
        let line = format!("vscan flows {args}");
        match Cli::try_parse_from(line.split_whitespace())?.command {
            Sub::Flows(flows) => Ok(flows.filters),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_are_joined_alternatives_are_not_and_not_reverses_the_next() {
        let ftp = flow("10.0.0.1:40000", "192.0.2.1:21", Protocol::Ftp, Some(Verdict::Infected));
        let smtp = flow("10.0.0.2:40000", "[2001:db8::1]:25", Protocol::Smtp, None);
        for (args, is_ftp, is_smtp) in [
            ("", true, true),
            ("--protocol ftp", true, false),
            ("--protocol ftp --protocol smtp", true, true),
            ("--not --protocol ftp", false, true),
            ("--from-ip 10.0.0.0/24 --port 21", true, false),
            ("--from-ip 10.0.0.0/24 --not --port 21", false, true),
            ("--not --port 21 --from-ip 10.0.0.0/24", false, true),
            ("--not --port 21 --not --port 25", false, false),
            ("--ip 2001:db8::/32", false, true),
            ("--to-ip 192.0.2.1", true, false),
            ("--from-ip 192.0.2.1", false, false),
            ("--verdict infected", true, false),
            ("--verdict none", false, true),
            ("--not --verdict none --state open", true, false),
            ("--user nonym", true, true),
            ("--user root", false, false),
        ] {
            let filters = filters(args).unwrap();
            assert_eq!(
                (filters.matches(&ftp), filters.matches(&smtp)),
                (is_ftp, is_smtp),
                "{args}"
            );
        }
    }

    #[test]
    fn wrong_filters_are_refused_with_their_name() {
        for (args, part) in [
            ("--ip 10.0.0.1/33", "--ip: \"10.0.0.1/33\""),
            ("--port 70000", "--port: "),
            ("--verdict sick", "infected"),
            ("--protocol http", "ftp or smtp"),
            ("--port 21 --not", "--not: no filter follows"),
        ] {
            let error = filters(args).unwrap_err().to_string();
            assert!(error.contains(part), "{args}: {error}");
        }
    }

    #[test]
    fn durations_and_times() {
        assert_eq!(ago("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(ago("5"), None);
        assert_eq!(ago("0s"), None);
        assert_eq!(ago("99999999999999999999d"), None);
        let time: Since = "2026-11-22T01:30:00Z".parse().unwrap();
        assert_eq!(time.0.as_second(), 1_795_311_000);
        assert!("yesterday".parse::<Since>().is_err());
        assert!("18446744073709551615s".parse::<Since>().is_err());
    }
}
