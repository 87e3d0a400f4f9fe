//! The connections that pass uninspected as conntrack knows them, by their mark: what shows them where no BPF program does.
//!
//! Formats: `linux/netfilter/nfnetlink_conntrack.h`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{
    marks::Marks,
    netlink::{Attributes, Family, Message, Socket},
    view::{Phase, Seen, Traffic, Why},
};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`
const GET: u16 = 1 << 8 | 1;
/// `struct nfgenmsg`
const FIXED: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_TIMESTAMP: u16 = 20;
const CTA_MARK_MASK: u16 = 21;

/// The connections with the bypass mark. Traffic is 0 unless `net.netfilter.nf_conntrack_acct` is 1, the age 0 unless
/// `nf_conntrack_timestamp` is; idle time is not known. `is_exempt` says of an address whether its network is exempt.
pub(super) fn passing(marks: &Marks, is_exempt: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Seen>> {
    let request = Message::new(GET, 0, &[0; FIXED])
        .attribute(CTA_MARK, &marks.bypass.to_be_bytes())
        .attribute(CTA_MARK_MASK, &marks.mask.to_be_bytes());
    let connections = Socket::open(Family::Netfilter, 0)?.dump(request)?;
    Ok(connections.iter().filter_map(|c| seen(c.attributes(FIXED), &is_exempt)).collect())
}

/// The address by which `peer` knows the local end of a connection: the destination of what it answers.
pub(super) fn known_as(local: SocketAddr, peer: SocketAddr) -> io::Result<IpAddr> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (source, destination) = if local.is_ipv4() { (1, 2) } else { (3, 4) };
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // `struct nfgenmsg`: family, version, resource
    let request = Message::new(GET, 0, &[family as u8, 0, 0, 0]).nested(CTA_TUPLE_ORIG, |tuple| {
        tuple
            .nested(1, |ip| {
                ip.attribute(source, &bytes(local.ip())).attribute(destination, &bytes(peer.ip()))
            })
            .nested(2, |proto| {
                proto
                    .attribute(1, &[libc::IPPROTO_TCP as u8])
                    .attribute(2, &local.port().to_be_bytes())
                    .attribute(3, &peer.port().to_be_bytes())
            })
    });
    let connection = Socket::open(Family::Netfilter, 0)?.ask(request)?;
    let reply = connection.attributes(FIXED).find(CTA_TUPLE_REPLY).and_then(tuple);
    let (_, known) = reply.ok_or_else(|| io::Error::other("a connection without addresses"))?;
    Ok(known.ip())
}

fn seen(connection: Attributes<'_>, is_exempt: impl Fn(IpAddr) -> bool) -> Option<Seen> {
    let (client, server) = tuple(connection.find(CTA_TUPLE_ORIG)?)?;
    let (real_server, _) = tuple(connection.find(CTA_TUPLE_REPLY)?)?;
    let why = if is_exempt(client.ip()) || is_exempt(server.ip()) || is_exempt(real_server.ip()) {
        Why::Exempt
    } else {
        Why::AgentDown
    };
    let age = connection.find(CTA_TIMESTAMP).and_then(|t| number(Attributes(t).find(1)?)).and_then(
        |started| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().ok()?;
            now.checked_sub(Duration::from_nanos(started))
        },
    );
    Some(Seen {
        client,
        server,
        real_server: Some(real_server),
        from_client: traffic(connection, CTA_COUNTERS_ORIG),
        from_server: traffic(connection, CTA_COUNTERS_REPLY),
        age: age.unwrap_or_default(),
        idle: Duration::ZERO,
        why,
        phase: phase(connection),
        killed: false,
    })
}

/// Source and destination of one direction.
fn tuple(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, proto) =
        (Attributes(Attributes(bytes).find(1)?), Attributes(Attributes(bytes).find(2)?));
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = ip.find(v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.find(v6)?).ok()?).into())
    };
    let port = |kind| Some(u16::from_be_bytes(proto.find(kind)?.try_into().ok()?));
    Some((SocketAddr::new(address(1, 3)?, port(2)?), SocketAddr::new(address(2, 4)?, port(3)?)))
}

fn traffic(connection: Attributes<'_>, kind: u16) -> Traffic {
    let counters = connection.find(kind).map(Attributes);
    let value = |kind| counters.and_then(|c| number(c.find(kind)?)).unwrap_or(0);
    Traffic { packets: value(1), bytes: value(2) }
}

/// From the state of the TCP tracker (`enum tcp_conntrack`).
fn phase(connection: Attributes<'_>) -> Phase {
    const SYN_RECV: u8 = 2;
    const ESTABLISHED: u8 = 3;
    const SYN_SENT2: u8 = 9;
    let state = connection
        .find(CTA_PROTOINFO)
        .and_then(|info| Attributes(info).find(1))
        .and_then(|tcp| Attributes(tcp).find(1))
        .and_then(|state| state.first().copied());
    match state {
        Some(0..=SYN_RECV | SYN_SENT2) => Phase::Opening,
        Some(ESTABLISHED) | None => Phase::Open,
        Some(_) => Phase::Closed,
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
