//! Interfaces, and the rules and routes that deliver marked packets to this machine.

use std::{collections::BTreeMap, io};

use super::{
    marks::Marks,
    netlink::{Family, Message, Received, Socket},
};

/// `rtm_protocol` of what vscan adds: how its rules and routes are known. Not assigned in `linux/rtnetlink.h`.
const PROTOCOL: u8 = 118;
/// Where the rule stands: behind `local` (0), before anything that routes by other marks (wg-quick: 32764).
const PRIORITY: u32 = 100;
/// Rule action "look up in a table" (`FR_ACT_TO_TBL`).
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
/// Length of `struct fib_rule_hdr` and of `struct rtmsg`.
const FIXED: usize = 12;
/// Length of `struct ifinfomsg`.
const IFINFO: usize = 16;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Index in this network namespace.
    pub(super) index: u32,
    /// `ARPHRD_*` type.
    pub(super) kind: u16,
    /// Whether it is administratively up.
    pub(super) up: bool,
}

/// All interfaces of this network namespace, by name.
pub(super) fn links() -> io::Result<BTreeMap<String, Link>> {
    let mut socket = Socket::open(Family::Route, 0)?;
    let messages = socket.dump(Message::new(libc::RTM_GETLINK, 0, &[0; IFINFO]))?;
    Ok(messages.iter().filter_map(link).collect())
}

fn link(message: &Received) -> Option<(String, Link)> {
    if message.kind != libc::RTM_NEWLINK {
        return None;
    }
    let p = &message.payload;
    let kind = u16::from_ne_bytes(p.get(2..4)?.try_into().ok()?);
    let index = u32::from_ne_bytes(p.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(p.get(8..12)?.try_into().ok()?);
    let name = message.attributes(IFINFO).find(libc::IFLA_IFNAME)?;
    let name = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()?;
    Some((name.to_owned(), Link { index, kind, up: flags & libc::IFF_UP as u32 != 0 }))
}

/// A socket that hears of interfaces that come, go and change, and of rules that do. Not of routes: a
/// router that speaks BGP would hear of little else.
pub(super) fn monitor() -> io::Result<Socket> {
    /// `RTNLGRP_IPV4_RULE` and `RTNLGRP_IPV6_RULE` as bits.
    const RULES: u32 = 1 << 7 | 1 << 18;
    Socket::open(Family::Route, libc::RTMGRP_LINK as u32 | RULES)
}

/// The address families that have rules and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

impl Ip {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn family(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }
}

/// Adds the rule and the route of both families; what is there already stays.
///
/// # Errors
/// What the kernel says, with the step that failed. No IPv6 in this kernel or on `lo` is none: the families that could
/// be set up are given back.
pub(super) fn install(marks: &Marks, table: u32) -> Result<Vec<Ip>, (String, io::Error)> {
    let step = |what: &str, e: io::Error| (what.to_owned(), e);
    let mut socket = Socket::open(Family::Route, 0).map_err(|e| step("netlink", e))?;
    let lo = links().map_err(|e| step("listing interfaces", e))?.remove("lo");
    let lo = lo.map_or(1, |link| link.index);
    let mut done = Vec::new();
    for ip in Ip::BOTH {
        if ip == Ip::V6 && !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            continue;
        }
        // the route first: a rule without its route would send packets on to the other tables
        match change(&mut socket, route(libc::RTM_NEWROUTE, ip, table, lo)) {
            Ok(()) => {}
            // IPv6 switched off on lo (disable_ipv6)
            Err(e) if ip == Ip::V6 && e.raw_os_error() != Some(libc::EPERM) => {
                tracing::warn!(error = %e, "no IPv6 route to this machine itself: IPv6 is not intercepted");
                continue;
            }
            Err(e) => return Err(step("adding the local route", e)),
        }
        change(&mut socket, rule(libc::RTM_NEWRULE, ip, marks, table))
            .map_err(|e| step("adding the rule for marked packets", e))?;
        done.push(ip);
    }
    Ok(done)
}

/// Puts back what of [`install`] is gone; says whether something was. A family that could not be set up is left alone.
///
/// # Errors
/// What the kernel says about IPv4.
pub(super) fn restore(marks: &Marks, table: u32, lo: u32) -> io::Result<bool> {
    let mut socket = Socket::open(Family::Route, 0)?;
    let mut restored = false;
    for ip in Ip::BOTH {
        for message in
            [route(libc::RTM_NEWROUTE, ip, table, lo), rule(libc::RTM_NEWRULE, ip, marks, table)]
        {
            match socket.request(message) {
                Ok(()) => restored = true,
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(_) if ip == Ip::V6 => break,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(restored)
}

/// Whether the rule and route of IPv4 are there.
pub(super) fn is_installed(table: u32) -> io::Result<bool> {
    Ok(!rules(&mut Socket::open(Family::Route, 0)?, Ip::V4, table)?.is_empty())
}

/// Removes every rule and route in the table that vscan added, whatever their marks; gives their number.
pub(super) fn uninstall(table: u32) -> io::Result<usize> {
    let mut socket = Socket::open(Family::Route, 0)?;
    let lo = links()?.remove("lo").map_or(1, |link| link.index);
    let mut removed = 0;
    for ip in Ip::BOTH {
        for mut message in rules(&mut socket, ip, table)? {
            // what was listed, as a request to delete it
            message.kind = libc::RTM_DELRULE;
            let request = Message::new(message.kind, 0, &message.payload);
            removed += usize::from(socket.request(request).is_ok());
        }
        match socket.request(route(libc::RTM_DELROUTE, ip, table, lo)) {
            Ok(()) => removed += 1,
            // not there, or no such family
            Err(e)
                if [
                    libc::ESRCH,
                    libc::ENODEV,
                    libc::EAFNOSUPPORT,
                    libc::EOPNOTSUPP,
                    libc::ENETDOWN,
                ]
                .contains(&e.raw_os_error().unwrap_or(0)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

fn rules(socket: &mut Socket, ip: Ip, table: u32) -> io::Result<Vec<Received>> {
    let mut fixed = [0; FIXED];
    fixed[0] = ip.family();
    let all = match socket.dump(Message::new(libc::RTM_GETRULE, 0, &fixed)) {
        Ok(all) => all,
        Err(e)
            if ip == Ip::V6
                && [libc::EAFNOSUPPORT, libc::EOPNOTSUPP]
                    .contains(&e.raw_os_error().unwrap_or(0)) =>
        {
            Vec::new()
        }
        Err(e) => return Err(e),
    };
    Ok(all
        .into_iter()
        .filter(|message| {
            let attributes = message.attributes(FIXED);
            message.payload.first() == Some(&ip.family())
                && attributes.u32(FRA_TABLE) == Some(table)
                && attributes.find(FRA_PROTOCOL) == Some(&[PROTOCOL])
        })
        .collect())
}

/// Applies a request that adds something; that it is there already is no error.
fn change(socket: &mut Socket, message: Message) -> io::Result<()> {
    match socket.request(message) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn rule(kind: u16, ip: Ip, marks: &Marks, table: u32) -> Message {
    let mut fixed = [0; FIXED];
    fixed[0] = ip.family();
    fixed[7] = FR_ACT_TO_TBL;
    Message::new(kind, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &fixed)
        .attribute(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
        .attribute(FRA_FWMARK, &marks.client.to_ne_bytes())
        .attribute(FRA_FWMASK, &marks.mask.to_ne_bytes())
        .attribute(FRA_TABLE, &table.to_ne_bytes())
        .attribute(FRA_PROTOCOL, &[PROTOCOL])
}

/// `local default dev lo table TABLE`.
fn route(kind: u16, ip: Ip, table: u32, lo: u32) -> Message {
    let mut fixed = [0; FIXED];
    fixed[0] = ip.family();
    // rtm_protocol, rtm_scope, rtm_type; the table comes as an attribute, since it may be larger than a byte
    fixed[5] = PROTOCOL;
    fixed[6] = libc::RT_SCOPE_HOST;
    fixed[7] = libc::RTN_LOCAL;
    // of a request to delete, the same bits mean something else (NLM_F_BULK)
    let flags = if kind == libc::RTM_NEWROUTE { libc::NLM_F_CREATE | libc::NLM_F_EXCL } else { 0 };
    Message::new(kind, flags, &fixed)
        .attribute(libc::RTA_TABLE, &table.to_ne_bytes())
        .attribute(libc::RTA_OIF, &lo.to_ne_bytes())
}
