//! The lab: client, gateway and server, their cables, addresses, routes and the gateway's firewall.
//!
//! ```text
//!   inside                     gateway                      outside
//!   10.1.0.0/16, fd00:1::/32   lan0 ........... wan0        192.0.2.0/24, 2001:db8:2::/64
//! ```
//! Addresses are the same in every lab: labs cannot see each other.

use crate::host::{Host, LabDir};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

/// Which Internet protocol a test goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Where client and server are, and what the gateway does with addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Client inside, server outside, routed.
    Plain,
    /// Client inside, server outside, the gateway hides the inside behind its outside address.
    Masquerade,
    /// Client outside, server inside; the gateway's outside address leads to the server, same port.
    Forward,
    /// As [`Topology::Forward`], from another port of the gateway: 8000 more.
    ForwardFromOtherPort,
    /// Client outside, the server is the gateway itself.
    OnGateway,
    /// The client is the gateway itself, server outside.
    FromGateway,
}

/// Every topology with a client apart from the gateway and a server apart from it.
pub const ROUTED: [Topology; 4] =
    [Topology::Plain, Topology::Masquerade, Topology::Forward, Topology::ForwardFromOtherPort];

/// The gateway's own firewall, there before vscan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Firewall {
    /// Forward only what is established, what the first inside host sends to ports 21, 25 and 7000,
    /// and what came by a port forward.
    pub forward_drop: bool,
    /// Let in only lo, ICMP, what is established, vscan's mark, and port 25 and 21 of the box itself in
    /// [`Topology::OnGateway`].
    pub input_drop: bool,
}

/// Both policies are drop.
pub const STRICT: Firewall = Firewall { forward_drop: true, input_drop: true };

/// Ports that are forwarded in [`Topology::Forward`]: FTP, SMTP, one that is not ours, and more servers of FTP and
/// SMTP.
const FORWARDED: [u16; 9] = [21, 25, 7000, 2121, 2122, 2123, 2526, 2527, 2528];

/// How far the dialled port is from the server's in [`Topology::ForwardFromOtherPort`].
const OTHER_PORT: u16 = 8000;

/// The mark bits by which the gateway's input chain knows vscan's traffic: value and mask.
pub const MARK: (u32, u32) = (0x81, 0xff);

/// A client, a gateway and a server.
#[derive(Debug)]
pub struct Lab {
    /// The gateway: interfaces `lan0` and `wan0`.
    pub gateway: Host,
    /// An inside host, 10.1.0.2 and fd00:1::2.
    pub inside: Host,
    /// An outside host, 192.0.2.2 and 2001:db8:2::2.
    pub outside: Host,
    topology: Topology,
    firewall: Firewall,
    dir: LabDir,
}

impl Lab {
    /// Builds a lab without a firewall.
    pub fn new(topology: Topology) -> Result<Self> {
        Self::with_firewall(topology, Firewall::default())
    }

    /// Builds a lab whose gateway has this firewall.
    pub fn with_firewall(topology: Topology, firewall: Firewall) -> Result<Self> {
        let dir = LabDir::new()?;
        let hosts = "10.1.0.2 inside.example\nfd00:1::2 inside.example\n\
                     192.0.2.2 server.example mail.server.example\n\
                     2001:db8:2::2 server.example mail.server.example\n\
                     192.0.2.1 gateway.example\n2001:db8:2::1 gateway.example\n";
        let [gateway, inside, outside] = std::thread::scope(|scope| {
            ["gateway", "inside", "outside"]
                .map(|name| scope.spawn(|| Host::new(name, &dir, hosts)))
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
        });
        let lab =
            Self { gateway: gateway?, inside: inside?, outside: outside?, topology, firewall, dir };
        lab.wire()?;
        lab.gateway.nft(&lab.ruleset(firewall)?)?;
        Ok(lab)
    }

    fn wire(&self) -> Result<()> {
        // The kernel tells of a carrier at once only where the two ends' indices differ; otherwise up to
        // a second later (net/core/link_watch.c, linkwatch_urgent_event).
        for (cable, index, host) in [("lan0", "11", &self.inside), ("wan0", "12", &self.outside)] {
            let (gateway, host) = (self.gateway.pid().to_string(), host.pid().to_string());
            let status = Command::new("ip")
                .args(["link", "add", cable, "index", index, "netns", &gateway, "type", "veth"])
                .args(["peer", "name", "eth0", "index", "9", "netns", &host])
                .status()
                .context("cannot run ip (package iproute2)")?;
            ensure!(status.success(), "cannot make a veth pair");
        }
        std::thread::scope(|scope| {
            let gateway = scope.spawn(|| {
                self.gateway.sh("ip -batch - <<.\n\
                     addr add 10.1.0.1/16 dev lan0\naddr add fd00:1::1/32 dev lan0 nodad\n\
                     addr add 192.0.2.1/24 dev wan0\naddr add 2001:db8:2::1/64 dev wan0 nodad\n\
                     link set lan0 up\nlink set wan0 up\n.")
            });
            let inside = scope.spawn(|| {
                self.inside.sh(
                    "ip -batch - <<.\n\
                     addr add 10.1.0.2/16 dev eth0\naddr add fd00:1::2/32 dev eth0 nodad\n\
                     addr add 10.1.0.3/16 dev eth0\naddr add fd00:1::3/32 dev eth0 nodad preferred_lft 0\n\
                     link set eth0 up\n\
                     route add default via 10.1.0.1 src 10.1.0.2\n\
                     route add default via fd00:1::1 src fd00:1::2\n.",
                )
            });
            let outside = scope.spawn(|| {
                // Behind masquerade the inside must not be known out there.
                let route = if self.topology == Topology::Masquerade {
                    ""
                } else {
                    "route add 10.1.0.0/16 via 192.0.2.1\nroute add fd00:1::/32 via 2001:db8:2::1\n"
                };
                self.outside.sh(&format!(
                    "ip -batch - <<.\n\
                     addr add 192.0.2.2/24 dev eth0\naddr add 2001:db8:2::2/64 dev eth0 nodad\n\
                     link set eth0 up\n{route}.",
                ))
            });
            for thread in [gateway, inside, outside] {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }

    fn ruleset(&self, firewall: Firewall) -> Result<String> {
        let mut rules = String::from("table inet firewall {\n");
        let policy = |drop| if drop { "drop" } else { "accept" };
        writeln!(
            rules,
            "chain forward {{ type filter hook forward priority filter; policy {};\n\
             ct state established,related accept\nmeta l4proto {{ 1, 58 }} accept\n\
             iifname lan0 oifname wan0 ip saddr 10.1.0.2 tcp dport {{ 21, 25, 7000 }} accept\n\
             iifname lan0 oifname wan0 ip6 saddr fd00:1::2 tcp dport {{ 21, 25, 7000 }} accept\n\
             ct status dnat accept\n}}",
            policy(firewall.forward_drop)
        )?;
        let own =
            if self.topology == Topology::OnGateway { "tcp dport { 21, 25 } accept\n" } else { "" };
        writeln!(
            rules,
            "chain input {{ type filter hook input priority filter; policy {};\n\
             iifname lo accept\nct state established accept\nmeta l4proto {{ 1, 58 }} accept\n\
             meta mark & {:#x} == {:#x} accept\n{own}}}",
            policy(firewall.input_drop),
            MARK.1,
            MARK.0,
        )?;
        match self.topology {
            Topology::Masquerade => rules.push_str(
                "chain srcnat { type nat hook postrouting priority srcnat; oifname wan0 masquerade; }\n",
            ),
            Topology::Forward | Topology::ForwardFromOtherPort => {
                rules.push_str("chain dstnat { type nat hook prerouting priority dstnat;\n");
                for port in FORWARDED {
                    let from = self.dialled_port(port);
                    writeln!(
                        rules,
                        "iifname wan0 ip daddr 192.0.2.1 tcp dport {from} dnat ip to 10.1.0.2:{port}\n\
                         iifname wan0 ip6 daddr 2001:db8:2::1 tcp dport {from} dnat ip6 to [fd00:1::2]:{port}"
                    )?;
                }
                rules.push_str("}\n");
            }
            Topology::Plain | Topology::OnGateway | Topology::FromGateway => {}
        }
        rules.push_str("}\n");
        Ok(rules)
    }

    /// What it is.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The gateway's own firewall.
    pub fn firewall(&self) -> Firewall {
        self.firewall
    }

    /// A directory for files of the test.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The host that the client runs on.
    pub fn client(&self) -> &Host {
        match self.topology {
            Topology::Plain | Topology::Masquerade => &self.inside,
            Topology::Forward | Topology::ForwardFromOtherPort | Topology::OnGateway => {
                &self.outside
            }
            Topology::FromGateway => &self.gateway,
        }
    }

    /// The host that the server runs on.
    pub fn server(&self) -> &Host {
        match self.topology {
            Topology::Plain | Topology::Masquerade | Topology::FromGateway => &self.outside,
            Topology::Forward | Topology::ForwardFromOtherPort => &self.inside,
            Topology::OnGateway => &self.gateway,
        }
    }

    fn dialled_port(&self, port: u16) -> u16 {
        if self.topology == Topology::ForwardFromOtherPort { port + OTHER_PORT } else { port }
    }

    /// The address that the client dials for the server's `port`.
    pub fn dial(&self, family: Family, port: u16) -> SocketAddr {
        let host = match self.topology {
            Topology::Plain | Topology::Masquerade | Topology::FromGateway => outside(family),
            Topology::Forward | Topology::ForwardFromOtherPort | Topology::OnGateway => {
                gateway(family)
            }
        };
        SocketAddr::new(host, self.dialled_port(port))
    }

    /// The address that the server must see as the client's.
    pub fn seen_as(&self, family: Family) -> IpAddr {
        match self.topology {
            Topology::Plain => inside(family),
            Topology::Masquerade | Topology::FromGateway => gateway(family),
            Topology::Forward | Topology::ForwardFromOtherPort | Topology::OnGateway => {
                outside(family)
            }
        }
    }
}

/// The inside host's address.
pub fn inside(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2)),
    }
}

/// The inside host's second address, which the firewall does not let out.
pub fn inside_second(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 1, 0, 3)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3)),
    }
}

/// The outside host's address.
pub fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)),
    }
}

/// The gateway's address on the outside.
pub fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)),
    }
}
