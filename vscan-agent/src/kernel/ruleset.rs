//! The table `inet vscan`, as rules: who is steered, who passes, who is refused. Pure; `nft` applies it.
//!
//! The chains, in the order a packet meets them:
//!
//! | chain | what happens there |
//! |---|---|
//! | `prerouting` | ours by socket or mark: delivered; a SYN from a guarded interface: `classify` |
//! | `classify` | not our port: out; denied: dropped; exempt: `pass`; by client: `inside` or `outside` |
//! | `inside` | the `[[access]]` rules, first match wins |
//! | `outside` | `[[access]]` may forbid; then `public` |
//! | `public` | only what DNAT or `publish` made public |
//! | `fresh` | no heartbeat: `down` |
//! | `steer` | tproxy, if the gateway listens; else reset what was ours, and `down` |
//! | `down` | `on_agent_down`: `pass`, or reset |
//! | `pass` | remembered as uninspected, so that it stays so when the agent is back |
//! | `own` | connections of this machine itself, looped over lo by `output` |
//! | `output` | replies of a server on this machine; its own connections, if wanted |
//! | `postrouting` | active FTP data keeps the address that the client dialled |

use nftables::{
    batch::Batch,
    expr::{BinaryOperation, Expression, MetaKey},
    schema::{
        Chain, Counter, FlushObject, NfCmd, NfListObject, NfObject, Nftables, Rule, Set, SetFlag,
        SetType, SetTypeValue, Table,
    },
    stmt::{Mangle, Match, NAT, NATFamily, Operator, Statement, TProxy},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};

mod words;

use self::words::{
    ACCEPT, DROP, RETURN, Statements, anonymous, any_or, any_or_dialled, count, ct, eq, goto,
    is_local, is_syn, jump, matches, meta, neq, number, over, payload, ports, reset, text,
    transparent, with,
};
use super::marks::Marks;
use crate::config::{Config, OnAgentDown, Permission, Protocol};

// Protocols by number (IANA): nft finds names in /etc/protocols, which a small system does not have.
const ICMP: u32 = 1;
const TCP: u32 = 6;
const ICMPV6: u32 = 58;

/// The name of the table, of family inet.
pub(super) const TABLE: &str = "vscan";
/// The set whose one element, protocol TCP, is there while the agent lives.
pub(super) const ALIVE: &str = "alive";
/// The sets of hosts whose new SMTP connections are refused, by family.
pub(super) const CUT: [&str; 2] = ["cut4", "cut6"];
/// Behind DNAT (-100): addresses and ports are the real ones, and `getsockname` of the client leg shows them.
const PREROUTING: i32 = -95;
/// As the kernel's own mangle: before any firewall's output rules.
const OUTPUT: i32 = -150;
/// Just before source NAT (100): the first that translates a connection wins.
const POSTROUTING: i32 = 99;

/// Named counters, in the order of [`Counts`](super::nft::Counts).
pub(super) const COUNTERS: [&str; 7] =
    ["steered", "exempt", "down_passed", "down_refused", "denied", "limited", "reset"];

/// What the rules are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// The configuration.
    pub(super) config: &'a Config,
    /// The marks.
    pub(super) marks: Marks,
    /// Whether nftables limits the rate of connections, since no BPF program does.
    pub(super) limit_rate: bool,
    /// Whether servers on this machine itself are reached only if `publish` or DNAT says so, even from inside: a foreign
    /// input chain drops by default and no `[[access]]` says what it would have let in.
    pub(super) guard_local: bool,
}

/// The commands that make the table, or make it anew, in one transaction.
///
/// `anew` removes a table of another build first. Otherwise rules are replaced and the heartbeat stays: an update has no
/// moment without steering.
pub(super) fn install(plan: Plan<'_>, anew: bool) -> Nftables<'static> {
    let mut b = Batch::new();
    b.add(NfListObject::Table(table()));
    if anew {
        b.delete(NfListObject::Table(table()));
        b.add(NfListObject::Table(table()));
    }
    for name in COUNTERS {
        b.add(NfListObject::Counter(Counter {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            ..Counter::default()
        }));
    }
    b.add(NfListObject::Set(Box::new(Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: ALIVE.into(),
        set_type: SetTypeValue::Single(SetType::InetProto),
        flags: Some([SetFlag::Timeout].into()),
        ..Set::default()
    })));
    for (name, kind) in CUT.into_iter().zip([SetType::Ipv4Addr, SetType::Ipv6Addr]) {
        b.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            set_type: SetTypeValue::Single(kind),
            flags: Some([SetFlag::Timeout].into()),
            ..Set::default()
        })));
    }
    let base = |name: &'static str, kind, hook, priority| Chain {
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..chain(name)
    };
    for c in [
        base("prerouting", NfChainType::Filter, NfHook::Prerouting, PREROUTING),
        base("output", NfChainType::Route, NfHook::Output, OUTPUT),
        base("postrouting", NfChainType::NAT, NfHook::Postrouting, POSTROUTING),
        chain("classify"),
        chain("inside"),
        chain("outside"),
        chain("public"),
        chain("fresh"),
        chain("steer"),
        chain("down"),
        chain("pass"),
        chain("own"),
    ] {
        b.add(NfListObject::Chain(c));
    }
    b.add_cmd(NfCmd::Flush(FlushObject::Table(table())));
    for (chain, statements) in Rules::of(plan).0 {
        b.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: chain.into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }
    b.to_nftables()
}

/// The command that removes the table.
pub(super) fn remove() -> Nftables<'static> {
    Nftables {
        objects: vec![NfObject::CmdObject(NfCmd::Delete(NfListObject::Table(table())))].into(),
    }
}

fn table() -> Table<'static> {
    Table { family: NfFamily::INet, name: TABLE.into(), handle: None }
}

fn chain(name: &'static str) -> Chain<'static> {
    Chain { family: NfFamily::INet, table: TABLE.into(), name: name.into(), ..Chain::default() }
}

/// All rules, with the chain each belongs to.
struct Rules(Vec<(&'static str, Statements)>);

impl Rules {
    fn of(plan: Plan<'_>) -> Self {
        let mut rules = Self(Vec::new());
        rules.prerouting(plan);
        rules.classify(plan);
        rules.access(plan);
        rules.steer(plan);
        rules.output(plan);
        for (family, protocol) in [(NATFamily::IP, "ip"), (NATFamily::IP6, "ip6")] {
            let to_itself = NAT {
                addr: Some(payload(protocol, "saddr")),
                family: Some(family),
                port: None,
                flags: None,
            };
            let nfproto = if protocol == "ip" { "ipv4" } else { "ipv6" };
            rules.add(
                "postrouting",
                vec![
                    eq(meta(MetaKey::Nfproto), text(nfproto)),
                    plan.marks.on_packet(plan.marks.active),
                    Statement::SNAT(Some(to_itself)),
                ],
            );
        }
        rules
    }

    fn add(&mut self, chain: &'static str, statements: Statements) {
        self.0.push((chain, statements));
    }

    fn prerouting(&mut self, plan: Plan<'_>) {
        let m = plan.marks;
        let mut add = |statements| self.add("prerouting", statements);
        // by far the most packets: a connection that is none of ours, and no word of the BPF programs on it
        add(vec![
            eq(meta(MetaKey::L4proto), number(TCP)),
            m.on_packet(0),
            m.on_connection(0),
            eq(ct("state"), text("established")),
            ACCEPT,
        ]);
        let from_lo = || eq(meta(MetaKey::Iifname), text("lo"));
        // our own upstream legs to a server on this machine come back over lo
        for mark in [m.upstream, m.active] {
            add(vec![from_lo(), m.on_packet(mark), ACCEPT]);
        }
        // ICMP errors about our legs' packets carry the peers' addresses: without this, path MTU discovery fails
        for mark in [m.client, m.upstream] {
            add(vec![
                eq(meta(MetaKey::L4proto), anonymous([ICMP, ICMPV6].map(number))),
                eq(ct("state"), text("related")),
                m.on_connection(mark),
                m.mark_packet(m.client),
                ACCEPT,
            ]);
        }
        add(vec![neq(meta(MetaKey::L4proto), number(TCP)), ACCEPT]);
        // a conntrack helper's related connection inherits our mark: its answers would come to us instead of the client
        for mark in [m.client, m.upstream] {
            add(vec![
                eq(ct("state"), text("related")),
                m.on_connection(mark),
                m.mark_connection(m.related),
            ]);
        }
        // answers to our upstream legs, on whatever interface they come
        add(vec![
            m.on_connection(m.upstream),
            eq(ct("direction"), text("reply")),
            transparent(),
            m.mark_packet(m.client),
            ACCEPT,
        ]);
        add(vec![from_lo(), m.on_packet(m.client), goto("own")]);
        let guarded = plan.config.gateway.interfaces.iter();
        let guarded = anonymous(guarded.map(|i| text(i.as_str().to_owned())));
        add(vec![neq(meta(MetaKey::Iifname), guarded), ACCEPT]);
        // what the BPF programs said
        add(vec![m.on_packet(m.reset), count("reset"), reset()]);
        add(vec![m.on_packet(m.bypass), count("exempt"), goto("pass")]);
        add(vec![m.on_connection(m.bypass), ACCEPT]);
        // before the next rule: a socket in TIME_WAIT matches there too, and would have the SYN of a port used again
        // answered by a bare ACK; tproxy gives it to the listener (nf_tproxy_handle_time_wait4)
        add(vec![is_syn(), jump("classify")]);
        // the socket is the rule: client legs, and listeners for data channels, whose connections are ours from here on
        add(vec![
            transparent(),
            m.mark_packet(m.client),
            eq(ct("state"), text("new")),
            m.mark_connection(m.client),
            ACCEPT,
        ]);
        add(vec![m.on_packet(m.client), ACCEPT]);
        // ours, but no socket any more: to the listener, which resets it
        add(vec![m.on_connection(m.client), eq(ct("direction"), text("original")), goto("steer")]);
    }

    fn classify(&mut self, plan: Plan<'_>) {
        let gateway = &plan.config.gateway;
        let ours = ports(plan.config, &[Protocol::Ftp, Protocol::Smtp]);
        self.add("classify", vec![neq(payload("tcp", "dport"), ours), RETURN]);
        for (set, family) in CUT.into_iter().zip(["ip", "ip6"]) {
            self.add(
                "classify",
                vec![
                    eq(payload(family, "saddr"), text(format!("@{set}"))),
                    eq(payload("tcp", "dport"), ports(plan.config, &[Protocol::Smtp])),
                    count("denied"),
                    reset(),
                ],
            );
        }
        // the BPF programs know these too; here are those packets that they could not read
        for denied in matches("saddr", &gateway.deny) {
            self.add("classify", with(denied, [count("denied"), DROP]));
        }
        for side in ["saddr", "daddr"] {
            for exempt in matches(side, &gateway.exempt) {
                self.add("classify", with(exempt, [count("exempt"), goto("pass")]));
            }
        }
        if let (true, Some(limit)) = (plan.limit_rate, gateway.rate_limit) {
            for protocol in ["ip", "ip6"] {
                self.add("classify", vec![over(limit, protocol), count("limited"), DROP]);
            }
        }
        for inside in matches("saddr", &gateway.inside) {
            self.add("classify", with(inside, [goto("inside")]));
        }
        self.add("classify", vec![goto("outside")]);
    }

    fn access(&mut self, plan: Plan<'_>) {
        let config = plan.config;
        for rule in &config.access {
            // what only the dialogue shows is decided there: an allow may be one, a deny must not yet be
            if rule.action == Permission::Deny && rule.is_conditional() {
                continue;
            }
            let protocols: &[Protocol] = if rule.protocol.is_empty() {
                &[Protocol::Ftp, Protocol::Smtp]
            } else {
                &rule.protocol
            };
            for from in any_or("saddr", &rule.from) {
                for to in any_or_dialled(&rule.to) {
                    if !from.fits(&to) {
                        continue;
                    }
                    let mut statements = from.statements.clone();
                    statements.extend(to.statements.clone());
                    statements.push(eq(payload("tcp", "dport"), ports(config, protocols)));
                    let (inside, outside) = match rule.action {
                        Permission::Allow => (goto("fresh"), goto("public")),
                        Permission::Deny => (RETURN, RETURN),
                    };
                    self.add("inside", with(statements.clone(), [inside]));
                    self.add("outside", with(statements, [outside]));
                }
            }
        }
        if config.access.is_empty() {
            if plan.guard_local {
                self.add("inside", vec![is_local(), goto("public")]);
            }
            self.add("inside", vec![goto("fresh")]);
        }
        // no rule speaks of a client outside: public services are guarded, all else is the firewall's
        self.add("outside", vec![goto("public")]);
        let dnat =
            Statement::Match(Match { left: ct("status"), right: text("dnat"), op: Operator::IN });
        self.add("public", vec![dnat, goto("fresh")]);
        for published in &config.gateway.publish {
            for net in matches("daddr", &[published.net]) {
                let mut statements = net;
                if let Some(port) = published.port {
                    statements.push(eq(payload("tcp", "dport"), number(u32::from(port.get()))));
                }
                self.add("public", with(statements, [goto("fresh")]));
            }
        }
    }

    fn steer(&mut self, plan: Plan<'_>) {
        let m = plan.marks;
        let open = plan.config.gateway.on_agent_down == OnAgentDown::Open;
        let port = plan.config.gateway.tproxy_port.get();
        // whether the agent lives matters only to who would be steered: the rest stays with the firewall
        self.add("fresh", vec![m.on_packet(m.down), goto("down")]);
        self.add(
            "fresh",
            vec![neq(meta(MetaKey::L4proto), text(format!("@{ALIVE}"))), goto("down")],
        );
        self.add("fresh", vec![goto("steer")]);
        for (chain, counted) in [("steer", true), ("own", false)] {
            if chain == "own" {
                // answers of a server on this machine to our upstream leg: already on their way to its socket
                self.add(chain, vec![eq(ct("direction"), text("reply")), ACCEPT]);
            }
            for (nfproto, family, address) in [("ipv4", "ip", "127.0.0.1"), ("ipv6", "ip6", "::1")]
            {
                let mut statements = vec![
                    eq(meta(MetaKey::Nfproto), text(nfproto)),
                    eq(meta(MetaKey::L4proto), number(TCP)),
                    Statement::TProxy(TProxy {
                        family: Some(family.into()),
                        port,
                        addr: Some(address.into()),
                    }),
                    m.mark_packet(m.client),
                    m.mark_connection(m.client),
                ];
                if counted {
                    statements.push(count("steered"));
                }
                statements.push(ACCEPT);
                self.add(chain, statements);
            }
        }
        // looped already, so it cannot pass any more: dropped, the next try goes by the heartbeat
        self.add("own", vec![if open { DROP } else { reset() }]);
        self.add("steer", vec![m.on_connection(m.client), reset()]);
        self.add("steer", vec![goto("down")]);
        if open {
            self.add("down", vec![count("down_passed"), goto("pass")]);
        } else {
            self.add("down", vec![count("down_refused"), reset()]);
        }
        self.add("pass", vec![m.mark_connection(m.bypass), ACCEPT]);
    }

    fn output(&mut self, plan: Plan<'_>) {
        let (m, gateway) = (plan.marks, &plan.config.gateway);
        for mark in [m.upstream, m.active] {
            self.add(
                "output",
                vec![
                    m.on_packet(mark),
                    eq(ct("state"), text("new")),
                    m.mark_connection(m.upstream),
                ],
            );
            self.add("output", vec![m.on_packet(mark), ACCEPT]);
        }
        self.add(
            "output",
            vec![
                m.on_connection(m.upstream),
                eq(ct("direction"), text("reply")),
                m.mark_packet(m.client),
                ACCEPT,
            ],
        );
        let own: &[Protocol] = match (gateway.intercept_own, plan.config.smtp.own_mail) {
            (true, _) => &[Protocol::Ftp, Protocol::Smtp],
            (false, true) => &[Protocol::Smtp],
            (false, false) => return,
        };
        self.add("output", vec![neq(meta(MetaKey::L4proto), number(TCP)), ACCEPT]);
        self.add("output", vec![is_local(), ACCEPT]);
        self.add(
            "output",
            vec![
                m.on_connection(m.client),
                eq(ct("direction"), text("original")),
                m.mark_packet(m.client),
                ACCEPT,
            ],
        );
        let ours = ports(plan.config, own);
        self.add("output", vec![neq(payload("tcp", "dport"), ours), ACCEPT]);
        self.add("output", vec![m.on_connection(m.bypass), ACCEPT]);
        for exempt in matches("daddr", &gateway.exempt) {
            self.add(
                "output",
                with(exempt, [m.mark_connection(m.bypass), count("exempt"), ACCEPT]),
            );
        }
        self.add(
            "output",
            vec![is_syn(), neq(meta(MetaKey::L4proto), text(format!("@{ALIVE}"))), goto("down")],
        );
        self.add("output", vec![is_syn(), count("steered"), m.mark_packet(m.client), ACCEPT]);
    }
}

impl Marks {
    fn masked(&self, left: Expression<'static>, value: u32) -> Statement<'static> {
        let bits = BinaryOperation::AND(left, number(self.mask));
        eq(Expression::BinaryOperation(Box::new(bits)), number(value))
    }

    /// Whether the packet has this mark.
    fn on_packet(&self, value: u32) -> Statement<'static> {
        self.masked(meta(MetaKey::Mark), value)
    }

    /// Whether the connection has this mark.
    fn on_connection(&self, value: u32) -> Statement<'static> {
        self.masked(ct("mark"), value)
    }

    fn marked(&self, key: Expression<'static>, value: u32) -> Statement<'static> {
        let others = BinaryOperation::AND(key.clone(), number(!self.mask));
        let others = Expression::BinaryOperation(Box::new(others));
        let value = BinaryOperation::OR(vec![others, number(value)]);
        Statement::Mangle(Mangle { key, value: Expression::BinaryOperation(Box::new(value)) })
    }

    /// Marks the packet, leaving the bits that are not ours.
    fn mark_packet(&self, value: u32) -> Statement<'static> {
        self.marked(meta(MetaKey::Mark), value)
    }

    /// Marks the connection, leaving the bits that are not ours.
    fn mark_connection(&self, value: u32) -> Statement<'static> {
        self.marked(ct("mark"), value)
    }
}

#[cfg(test)]
mod tests;
