//! The words that rules are made of: matches, verdicts, sets of networks.

use std::{borrow::Cow, num::NonZeroU16};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::{
    expr::{
        BinaryOperation, CT, CTDir, Expression, Fib, FibFlag, FibResult, Meta, MetaKey,
        NamedExpression, Payload, PayloadField, Prefix, SetItem, Socket, SocketAttr,
    },
    stmt::{self, JumpTarget, Limit, Match, Meter, Operator, Reject, RejectType, Statement},
};

use crate::config::{Config, Protocol, RateLimit};

/// What a rule consists of.
pub(super) type Statements = Vec<Statement<'static>>;

pub(super) const ACCEPT: Statement<'static> = Statement::Accept(None);
pub(super) const DROP: Statement<'static> = Statement::Drop(None);
pub(super) const RETURN: Statement<'static> = Statement::Return(None);

pub(super) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(super) fn jump(chain: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

pub(super) fn reset() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

pub(super) fn count(name: &'static str) -> Statement<'static> {
    Statement::Counter(stmt::Counter::Named(name.into()))
}

pub(super) fn with<const N: usize>(
    mut statements: Statements,
    more: [Statement<'static>; N],
) -> Statements {
    statements.extend(more);
    statements
}

pub(super) fn text(text: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(text.into())
}

pub(super) const fn number(number: u32) -> Expression<'static> {
    Expression::Number(number)
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn anonymous(
    elements: impl IntoIterator<Item = Expression<'static>>,
) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(elements.into_iter().map(SetItem::Element).collect()))
}

pub(super) fn eq(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(super) fn neq(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

/// `tcp flags & (fin | syn | rst | ack) == syn`
pub(super) fn is_syn() -> Statement<'static> {
    // RFC 9293 3.1: FIN 1, SYN 2, RST 4, ACK 16
    let bits = BinaryOperation::AND(payload("tcp", "flags"), number(0x17));
    eq(Expression::BinaryOperation(Box::new(bits)), number(0x02))
}

/// `fib daddr type local`
pub(super) fn is_local() -> Statement<'static> {
    let fib = Fib { result: FibResult::Type, flags: [FibFlag::Daddr].into() };
    eq(Expression::Named(NamedExpression::Fib(fib)), text("local"))
}

/// `socket transparent 1`
pub(super) fn transparent() -> Statement<'static> {
    let key = Cow::Owned(SocketAttr::Transparent);
    eq(Expression::Named(NamedExpression::Socket(Socket { key })), number(1))
}

pub(super) fn ports(config: &Config, protocols: &[Protocol]) -> Expression<'static> {
    let mut all: Vec<NonZeroU16> = Vec::new();
    for protocol in protocols {
        match protocol {
            Protocol::Ftp => all.extend(config.ftp.all_ports()),
            Protocol::Smtp => all.extend(config.smtp.all_ports()),
            // the scanner of mailboxes opens its connections itself
            Protocol::Mailbox => {}
        }
    }
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        // a protocol without ports: nothing is sent to port 0
        return number(0);
    }
    anonymous(all.into_iter().map(|p| number(u32::from(p.get()))))
}

/// New connections of one client over the limit.
pub(super) fn over(limit: RateLimit, protocol: &'static str) -> Statement<'static> {
    Statement::Meter(Meter {
        name: if protocol == "ip" { "rate4" } else { "rate6" }.into(),
        key: payload(protocol, "saddr"),
        stmt: Box::new(Statement::Limit(Limit {
            rate: limit.per_second.get(),
            rate_unit: None,
            per: Some("second".into()),
            burst: Some(limit.burst.get()),
            burst_unit: None,
            inv: Some(true),
        })),
    })
}

/// Statements that hold for one family, or for both.
#[derive(Clone)]
pub(super) struct Condition {
    /// None: both.
    pub(super) v6: Option<bool>,
    pub(super) statements: Statements,
}

impl Condition {
    /// Whether both can hold for one packet.
    pub(super) fn fits(&self, other: &Self) -> bool {
        match (self.v6, other.v6) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        }
    }
}

/// A match of an address against networks, once a family that has any.
pub(super) fn matches(field: &'static str, nets: &[IpNet]) -> Vec<Statements> {
    conditions(nets, |v6| payload(if v6 { "ip6" } else { "ip" }, field))
        .into_iter()
        .map(|c| c.statements)
        .collect()
}

/// As [`matches`], but no network means any address.
pub(super) fn any_or(field: &'static str, nets: &[IpNet]) -> Vec<Condition> {
    if nets.is_empty() {
        return vec![Condition { v6: None, statements: Vec::new() }];
    }
    conditions(nets, |v6| payload(if v6 { "ip6" } else { "ip" }, field))
}

/// The server as the client dialled it: before DNAT.
pub(super) fn any_or_dialled(nets: &[IpNet]) -> Vec<Condition> {
    if nets.is_empty() {
        return vec![Condition { v6: None, statements: Vec::new() }];
    }
    conditions(nets, |v6| {
        Expression::Named(NamedExpression::CT(CT {
            key: if v6 { "ip6 daddr" } else { "ip daddr" }.into(),
            family: None,
            dir: Some(CTDir::Original),
        }))
    })
}

pub(super) fn conditions(
    nets: &[IpNet],
    key: impl Fn(bool) -> Expression<'static>,
) -> Vec<Condition> {
    let mut conditions = Vec::new();
    // aggregated: nft refuses a set whose intervals overlap
    let v4: Vec<Ipv4Net> =
        nets.iter().filter_map(|n| if let IpNet::V4(n) = n { Some(*n) } else { None }).collect();
    let v6: Vec<Ipv6Net> =
        nets.iter().filter_map(|n| if let IpNet::V6(n) = n { Some(*n) } else { None }).collect();
    let v4: Vec<IpNet> = Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4).collect();
    let v6: Vec<IpNet> = Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6).collect();
    for (is_v6, nets) in [(false, v4), (true, v6)] {
        if nets.is_empty() {
            continue;
        }
        let statement = if nets.iter().any(|n| n.prefix_len() == 0) {
            // a set of everything is no interval: the family says it
            eq(meta(MetaKey::Nfproto), text(if is_v6 { "ipv6" } else { "ipv4" }))
        } else {
            eq(key(is_v6), anonymous(nets.into_iter().map(prefix)))
        };
        conditions.push(Condition { v6: Some(is_v6), statements: vec![statement] });
    }
    conditions
}

pub(super) fn prefix(net: IpNet) -> Expression<'static> {
    let address = text(net.network().to_string());
    if net.prefix_len() == net.max_prefix_len() {
        return address;
    }
    let prefix = Prefix { addr: Box::new(address), len: u32::from(net.prefix_len()) };
    Expression::Named(NamedExpression::Prefix(prefix))
}
