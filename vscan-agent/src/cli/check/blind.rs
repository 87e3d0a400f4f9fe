//! The blind spots that a configuration has: what passes unread because it says so, and how much that was so far.

use super::Complaint;
use crate::config::{Config, FtpDelivery, FtpTls, OnAgentDown, TlsAction, Treat};
use crate::observe::control::{Answer, Request};
use crate::observe::{Blind, BlindSpots};
use vscan_scan::report::Verdict;

/// A note for each, with what the running agent has counted, if there is one.
pub(super) fn spots(config: &Config) -> Vec<Complaint> {
    let counted = match crate::cli::client::ask_once(&config.paths.control, &Request::Status) {
        Ok(Answer::Status(status)) => Some(status.blind),
        // Nobody has to run for a check.
        Ok(_) | Err(_) => None,
    };
    configured(config)
        .into_iter()
        .map(|(reason, text)| Complaint {
            severity: "note",
            about: "blind spot",
            file: None,
            line: None,
            column: None,
            message: match (reason, &counted) {
                (Some(reason), Some(counted)) => format!("{text}: {}", so_far(counted, reason)),
                (None, _) | (_, None) => text,
            },
        })
        .collect()
}

/// How much was not read for this reason since the agent started.
fn so_far(counted: &BlindSpots, reason: Blind) -> String {
    let (mut flows, mut objects, mut bytes) = (0, 0, 0);
    for unread in counted.spots.iter().flat_map(|spot| &spot.unread) {
        if unread.reason == reason {
            flows += unread.flows;
            objects += unread.objects;
            bytes += unread.bytes;
        }
    }
    let ((all_flows, _), (all_bytes, _)) = (counted.flows(), counted.bytes());
    let size = crate::cli::table::bytes;
    match (flows, objects) {
        (0, 0) if bytes == 0 => "nothing so far".to_owned(),
        (flows, 0) => format!(
            "{flows} of {all_flows} connections and {} of {} since the agent started",
            size(bytes),
            size(all_bytes)
        ),
        (_, objects) => format!(
            "{objects} files and messages, {} of {} since the agent started",
            size(bytes),
            size(all_bytes)
        ),
    }
}

/// What passes unread, in words, and the meter's reason for it where it has one.
fn configured(config: &Config) -> Vec<(Option<Blind>, String)> {
    let mut spots = Vec::new();
    let ftp = config.ftp.all_ports().next().is_some();
    let smtp = config.smtp.all_ports().next().is_some();
    let passes = match (
        smtp && config.smtp.starttls == TlsAction::Pass,
        ftp && config.ftp.tls == FtpTls::Pass,
    ) {
        (true, true) => Some("SMTP behind STARTTLS and FTP behind AUTH TLS pass"),
        (true, false) => Some("SMTP behind STARTTLS passes"),
        (false, true) => Some("FTP behind AUTH TLS passes"),
        (false, false) => None,
    };
    if let Some(who) = passes {
        let text = format!("{who} uninspected (smtp.starttls, ftp.tls)");
        spots.push((Some(Blind::Tls), text));
    }
    spots.extend(unopened(config));
    if !config.gateway.exempt.is_empty() {
        let nets: Vec<String> = config.gateway.exempt.iter().map(ToString::to_string).collect();
        let text = format!(
            "connections from and to {} pass uninspected (gateway.exempt)",
            nets.join(", ")
        );
        spots.push((Some(Blind::Exempt), text));
    }
    if config.gateway.on_agent_down == OnAgentDown::Open {
        let text = "while the agent is down or hangs, new connections pass uninspected \
                    (gateway.on_agent_down)";
        spots.push((Some(Blind::AgentDown), text.to_owned()));
    }
    let scan = &config.scan;
    if ftp && !(scan.skip_extensions.is_empty() && scan.skip_types.is_empty()) {
        let mut what = Vec::new();
        if !scan.skip_extensions.is_empty() {
            let verified = if scan.verify_type { ", if their first bytes agree" } else { "" };
            let named = scan.skip_extensions.join(", ");
            what.push(format!("files named {named}{verified} (scan.skip_extensions)"));
        }
        if !scan.skip_types.is_empty() {
            what.push(format!("files of type {} (scan.skip_types)", scan.skip_types.join(", ")));
        }
        let text = format!("{} pass unscanned over FTP", what.join(" and "));
        spots.push((Some(Blind::ExcludedType), text));
    }
    let leaves = config.treat.iter().enumerate().filter(|(_, treat)| passes_unread(treat));
    let rules: Vec<String> = leaves.map(|(index, _)| format!("treat[{index}]")).collect();
    if !rules.is_empty() {
        let rules = rules.join(", ");
        let text = format!("what could not be read whole is delivered all the same ({rules})");
        spots.push((Some(Blind::Unscannable), text));
    } else if smtp {
        let text = "mail that is encrypted as a whole (S/MIME, PGP) is delivered unless a [[treat]] says otherwise";
        spots.push((Some(Blind::Unscannable), text.to_owned()));
    }
    if ftp && config.ftp.delivery == FtpDelivery::Stream {
        let text = "all but the last bytes of a file over FTP are delivered before its verdict: \
                    partial protection (ftp.delivery)";
        spots.push((None, text.to_owned()));
    }
    spots
}

/// Servers whose TLS passes, where that of others does not.
fn unopened(config: &Config) -> Option<(Option<Blind>, String)> {
    let mut what = Vec::new();
    if !config.tls.never_open.is_empty() {
        let peers: Vec<String> = config.tls.never_open.iter().map(ToString::to_string).collect();
        what.push(format!("of {} (tls.never_open)", peers.join(", ")));
    }
    let rules = config.tls.rules.iter().enumerate();
    let passing = rules.filter(|(_, rule)| rule.action == TlsAction::Pass);
    let rules: Vec<String> = passing.map(|(index, _)| format!("tls.rule[{index}]")).collect();
    if !rules.is_empty() {
        what.push(format!("that a rule lets pass ({})", rules.join(", ")));
    }
    (!what.is_empty())
        .then(|| (Some(Blind::Tls), format!("TLS {} passes uninspected", what.join(" and "))))
}

/// Whether the rule delivers what could not be read whole, as it came.
fn passes_unread(treat: &Treat) -> bool {
    let unread = treat.verdict.is_empty()
        || treat.verdict.iter().any(|v| matches!(v, Verdict::Unscannable | Verdict::Error));
    unread && treat.detection.is_empty() && treat.action.iter().any(|action| action.leaves_it())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn said(more: &str) -> Vec<String> {
        let text = format!("[gateway]\ninterfaces = [\"lan0\"]\ninside = [\"10.0.0.0/8\"]\n{more}");
        let config = Config::parse(&text, Path::new("vscan.toml")).unwrap();
        configured(&config).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn each_blind_spot_is_named() {
        let closed = "[ftp]\ntls = \"refuse\"\n[smtp]\nstarttls = \"refuse\"\n";
        let said_closed = said(closed);
        assert_eq!(said_closed.len(), 1, "{said_closed:?}");
        assert!(said_closed[0].contains("S/MIME"));
        let open = said(
            "exempt = [\"192.0.2.0/24\"]\non_agent_down = \"open\"\n\
             [ftp]\ndelivery = \"stream\"\n\
             [scan]\nskip_extensions = [\"iso\"]\nskip_types = [\"image\"]\n\
             [[treat]]\nverdict = [\"unscannable\"]\naction = [\"pass\"]\n\
             [[treat]]\nverdict = [\"infected\"]\naction = [\"block\"]\n",
        );
        let named = [
            "smtp.starttls, ftp.tls",
            "192.0.2.0/24",
            "gateway.on_agent_down",
            "scan.skip_types",
            "treat[0]",
            "ftp.delivery",
        ];
        assert_eq!(open.len(), named.len(), "{open:?}");
        for (text, name) in open.iter().zip(named) {
            assert!(text.contains(name), "{text}");
        }
        assert!(!open[4].contains("treat[1]"), "{}", open[4]);
        let listed = said(&format!(
            "{closed}[tls]\nnever_open = [\"*.bank.example\", \"192.0.2.0/24\"]\n\
             [[tls.rule]]\naction = \"refuse\"\n[[tls.rule]]\naction = \"pass\"\n"
        ));
        assert_eq!(
            listed[0],
            "TLS of *.bank.example, 192.0.2.0/24 (tls.never_open) and that a rule lets pass (tls.rule[1]) \
             passes uninspected"
        );
    }
}
