//! Foreign firewalls: what they would drop of our traffic, and what a redirect would take past them.
//!
//! Reads the ruleset; changes nothing. A chain counts as dropping by default when its policy is drop or its last rule drops or
//! rejects without a condition. Rules of iptables-nft are seen as far as nft shows them.

use std::fmt;

use serde_json::Value;

use super::{Error, marks::Marks, nft, ruleset::TABLE};

/// A foreign chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Table.
    pub table: String,
    /// Name.
    pub name: String,
    /// Whether a rule in it, or in a chain that it jumps to, accepts packets with the client mark. None: it has rules of
    /// iptables extensions that cannot be read.
    pub accepts_ours: Option<bool>,
    /// Whether iptables made it.
    pub iptables: bool,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl Chain {
    /// The command that makes an input chain accept intercepted connections.
    #[must_use]
    pub fn accept_rule(&self, marks: &Marks) -> String {
        let (client, mask) = (marks.client, marks.mask);
        if self.iptables {
            let program = if self.family == "ip6" { "ip6tables" } else { "iptables" };
            format!("{program} -I {} -m mark --mark {client:#x}/{mask:#x} -j ACCEPT", self.name)
        } else {
            format!("nft insert rule {self} meta mark and {mask:#x} == {client:#x} accept")
        }
    }
}

/// Foreign chains that drop by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// In the forward hook: an intercepted connection does not pass through them.
    pub forward: Vec<Chain>,
    /// In the input hook: an intercepted connection passes through them, and must be accepted by its mark.
    pub input: Vec<Chain>,
    /// In the output hook: what the gateway sends passes through them.
    pub output: Vec<Chain>,
    /// Whether rules of the old iptables (not of nftables) are there, which cannot be read here.
    pub legacy_iptables: bool,
}

impl Foreign {
    /// Reads the ruleset of this network namespace.
    ///
    /// # Errors
    /// `nft` cannot be run.
    pub fn read() -> Result<Self, Error> {
        let mut foreign = Self::of(&nft::list()?, 0, 0);
        foreign.legacy_iptables = legacy_iptables();
        Ok(foreign)
    }

    /// As [`read`](Self::read), and knows whether each chain accepts our mark.
    ///
    /// # Errors
    /// `nft` cannot be run.
    pub fn read_for(marks: &Marks) -> Result<Self, Error> {
        let mut foreign = Self::of(&nft::list()?, marks.client, marks.mask);
        foreign.legacy_iptables = legacy_iptables();
        Ok(foreign)
    }

    fn of(ruleset: &Value, client: u32, mask: u32) -> Self {
        let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut foreign = Self::default();
        for chain in objects.iter().filter_map(|o| o.get("chain")) {
            let word = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            let (family, table, name) = (word("family"), word("table"), word("name"));
            if (family.as_str(), table.as_str()) == ("inet", TABLE)
                || !["ip", "ip6", "inet"].contains(&family.as_str())
            {
                continue;
            }
            let of_hook = match word("hook").as_str() {
                "forward" => &mut foreign.forward,
                "input" => &mut foreign.input,
                "output" => &mut foreign.output,
                _ => continue,
            };
            let rules = Rules { objects, family: &family, table: &table };
            if word("policy") != "drop" && !rules.ends_in_drop(&name) {
                continue;
            }
            let accepts_ours = rules.accepts(&name, client, mask, 0);
            // iptables-nft makes these tables with chains in capitals
            let iptables = ["filter", "mangle", "security"].contains(&table.as_str())
                && name.chars().all(|c| c.is_ascii_uppercase())
                && family != "inet";
            of_hook.push(Chain { family, table, name, accepts_ours, iptables });
        }
        foreign
    }
}

/// Chains that jump to chains are followed this deep, as deep as the kernel does (`NFT_JUMP_STACK_SIZE`).
const JUMPS_MAX: usize = 16;

/// The rules of a table.
#[derive(Clone, Copy)]
struct Rules<'a> {
    objects: &'a [Value],
    family: &'a str,
    table: &'a str,
}

impl<'a> Rules<'a> {
    fn of_chain(self, chain: &str) -> impl Iterator<Item = &'a [Value]> {
        self.objects
            .iter()
            .filter_map(|o| o.get("rule"))
            .filter(move |r| {
                r["family"] == self.family && r["table"] == self.table && r["chain"] == *chain
            })
            .map(|r| r["expr"].as_array().map(Vec::as_slice).unwrap_or_default())
    }

    /// Whether the last rule drops or rejects whatever comes.
    fn ends_in_drop(self, chain: &str) -> bool {
        let Some(last) = self.of_chain(chain).last() else { return false };
        let harmless = |s: &Value| s.get("counter").is_some() || s.get("log").is_some();
        match last.split_last() {
            Some((end, before)) => {
                (end.get("drop").is_some() || end.get("reject").is_some())
                    && before.iter().all(harmless)
            }
            None => false,
        }
    }

    /// Whether a rule accepts packets by our mark. Rules that cannot be read make the answer unknown.
    fn accepts(self, chain: &str, client: u32, mask: u32, depth: usize) -> Option<bool> {
        let mut unknown = false;
        for expr in self.of_chain(chain) {
            unknown |= expr.iter().any(|s| s.get("xt").is_some());
            let ends_well = expr.iter().any(|s| s.get("accept").is_some());
            if ends_well && expr.iter().any(|s| matches_mark(s, client, mask)) {
                return Some(true);
            }
            for jump in expr.iter().filter_map(|s| s.get("jump").or_else(|| s.get("goto"))) {
                let Some(target) = jump["target"].as_str() else { continue };
                if depth < JUMPS_MAX {
                    match self.accepts(target, client, mask, depth + 1) {
                        Some(true) => return Some(true),
                        Some(false) => {}
                        None => unknown = true,
                    }
                }
            }
        }
        if unknown { None } else { Some(false) }
    }
}

/// Whether a statement is `meta mark [and M] == V` that holds for our mark.
fn matches_mark(statement: &Value, client: u32, mask: u32) -> bool {
    let matched = &statement["match"];
    if matched["op"] != "==" {
        return false;
    }
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let is_mark = |v: &Value| v["meta"]["key"] == "mark";
    let (left, right) = (&matched["left"], number(&matched["right"]));
    if is_mark(left) {
        // the other bits of the mark may be anything, most often 0
        return right == Some(client);
    }
    let and = left["&"].as_array().map(Vec::as_slice).unwrap_or_default();
    match and {
        [mark, bits] if is_mark(mark) => {
            number(bits).is_some_and(|bits| bits & !mask == 0 && right == Some(client & bits))
        }
        _ => false,
    }
}

/// The old iptables' tables of this network namespace; empty when its modules are not loaded.
fn legacy_iptables() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|path| std::fs::read_to_string(path).is_ok_and(|names| names.contains("filter")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "handle": 1, "type": "filter",
            "hook": hook, "prio": 0, "policy": policy}})
    }

    fn rule(chain: &str, expr: Value) -> Value {
        json!({"rule": {"family": "inet", "table": "fw", "chain": chain, "handle": 2, "expr": expr}})
    }

    fn read(objects: &[Value]) -> Foreign {
        Foreign::of(&json!({ "nftables": objects }), 0x81, 0xff)
    }

    #[test]
    fn policies_and_last_rules_drop() {
        let f = read(&[
            chain("inet", "fw", "forward", "forward", "drop"),
            chain("inet", "fw", "input", "input", "accept"),
            rule("input", json!([{"accept": null}])),
            rule(
                "input",
                json!([{"counter": {"packets": 5_000_000_000_u64, "bytes": 1}}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]),
            ),
            chain("inet", "vscan", "prerouting", "forward", "drop"),
            chain("bridge", "x", "forward", "forward", "drop"),
        ]);
        assert_eq!(f.forward.len(), 1);
        assert_eq!(f.input.len(), 1);
        assert_eq!(f.forward[0].to_string(), "inet fw forward");
    }

    #[test]
    fn a_conditional_drop_at_the_end_is_no_default() {
        let f = read(&[
            chain("inet", "fw", "input", "input", "accept"),
            rule(
                "input",
                json!([{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "wan"}}, {"drop": null}]),
            ),
        ]);
        assert!(f.input.is_empty());
    }

    #[test]
    fn our_mark_is_found_also_behind_a_jump() {
        let mark = json!({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 0xff]}, "right": 0x81}});
        let objects = [
            chain("inet", "fw", "input", "input", "drop"),
            rule("input", json!([{"jump": {"target": "more"}}])),
            rule("more", json!([mark, {"accept": null}])),
        ];
        assert_eq!(read(&objects).input[0].accepts_ours, Some(true));
        assert_eq!(read(&objects[..2]).input[0].accepts_ours, Some(false));
        let unreadable = [
            chain("inet", "fw", "input", "input", "drop"),
            rule("input", json!([{"xt": null}, {"accept": null}])),
        ];
        assert_eq!(read(&unreadable).input[0].accepts_ours, None);
    }

    #[test]
    fn the_rule_to_add_speaks_the_firewalls_language() {
        let marks = Marks::of(&crate::config::Marks::default());
        let f = read(&[
            chain("inet", "fw", "input", "input", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
        ]);
        assert_eq!(
            f.input[0].accept_rule(&marks),
            "nft insert rule inet fw input meta mark and 0xff == 0x81 accept"
        );
        assert_eq!(
            f.input[1].accept_rule(&marks),
            "iptables -I INPUT -m mark --mark 0x81/0xff -j ACCEPT"
        );
    }
}
