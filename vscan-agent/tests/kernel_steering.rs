//! Who is steered to the gateway and who is not: every topology, both families, BPF on tcx and clsact and nftables alone,
//! with and without a firewall that drops by default. Needs root.

mod kernel_lab;

use std::time::Duration;

use anyhow::{Context, Result};
use kernel_lab::{Bpffs, Relay, WAYS, Way, case, config, install, meet, serve};
use vscan_agent::kernel::Steering;
use vscan_tests::{
    lab::{self, FAMILIES, Family, Firewall, Lab, STRICT, Topology},
    raw::{Attempt, attempt},
};

/// An answer comes within this, if any: a second later the packet is sent again.
const SILENCE: Duration = Duration::from_millis(700);

/// What the configuration must say in a topology.
fn settings(topology: Topology, firewall: Firewall) -> (&'static str, &'static str) {
    let access = if firewall == STRICT {
        "[[access]]\naction = \"allow\"\nfrom = [\"10.1.0.2\", \"fd00:1::2\"]\n"
    } else {
        ""
    };
    let gateway = match topology {
        Topology::OnGateway => "publish = [\"192.0.2.1\", \"2001:db8:2::1\"]",
        Topology::FromGateway => "intercept_own = true",
        Topology::Plain
        | Topology::Masquerade
        | Topology::Forward
        | Topology::ForwardFromOtherPort => "",
    };
    (gateway, access)
}

fn steered(topology: Topology) -> Result<()> {
    for firewall in [Firewall::default(), STRICT] {
        for way in WAYS {
            let lab = Lab::with_firewall(topology, firewall)?;
            let bpffs = Bpffs::mount(&lab)?;
            let (gateway, access) = settings(topology, firewall);
            let config = config(way, &bpffs, gateway, access);
            for port in [21, 25, 7000] {
                serve(lab.server(), port)?;
            }
            let _relay = Relay::start(&lab, &config)?;
            let kernel = install(&lab, &config)?;
            assert_eq!(way.bpf(), matches!(kernel.steering(), Steering::Bpf(_)));
            for family in FAMILIES {
                for port in [21, 25] {
                    let name = format!("{topology:?} {firewall:?} {}", case(way, family, port));
                    kernel.beat()?;
                    let dialled = lab.dial(family, port);
                    let (_peer, met) =
                        meet(lab.client(), None, dialled).with_context(|| name.clone())?;
                    let (client, as_dialled, server) =
                        met.gateway.with_context(|| format!("passed: {name}"))?;
                    assert_eq!(as_dialled, dialled, "{name}");
                    assert_eq!(server.port(), port, "{name}");
                    assert_eq!(met.server, lab.seen_as(family), "{name}");
                    if topology != Topology::Masquerade {
                        assert_eq!(client, lab.seen_as(family), "{name}");
                    }
                }
                if topology != Topology::OnGateway || firewall == Firewall::default() {
                    let (_peer, met) = meet(lab.client(), None, lab.dial(family, 7000))?;
                    assert_eq!(met.gateway, None, "another port, {topology:?} {way:?} {family:?}");
                }
            }
            let counts = lab.gateway.within(|| Ok(kernel.counts()?))?;
            assert!(counts.steered >= 4, "{counts:?}");
            lab.gateway.within(|| Ok(kernel.uninstall()?))?;
        }
    }
    Ok(())
}

#[test]
fn plain_routing() -> Result<()> {
    steered(Topology::Plain)
}

#[test]
fn masquerade() -> Result<()> {
    steered(Topology::Masquerade)
}

#[test]
fn port_forward() -> Result<()> {
    steered(Topology::Forward)
}

#[test]
fn port_forward_from_another_port() -> Result<()> {
    steered(Topology::ForwardFromOtherPort)
}

#[test]
fn a_server_on_the_gateway_itself() -> Result<()> {
    steered(Topology::OnGateway)
}

#[test]
fn the_gateways_own_connections() -> Result<()> {
    steered(Topology::FromGateway)
}

/// A redirect must not become a hole.
#[test]
fn what_the_firewall_refused_stays_refused() -> Result<()> {
    for way in WAYS {
        let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
        let bpffs = Bpffs::mount(&lab)?;
        let (gateway, access) = settings(Topology::Plain, STRICT);
        let config = config(way, &bpffs, gateway, access);
        for host in [&lab.inside, &lab.outside, &lab.gateway] {
            serve(host, 25)?;
        }
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        for (family, agent) in [
            (Family::V4, "alive"),
            (Family::V6, "alive"),
            (Family::V4, "down"),
            (Family::V6, "down"),
        ] {
            let tries = [
                (
                    "an inside host that may not",
                    &lab.inside,
                    Some(lab::inside_second(family)),
                    lab::outside(family),
                ),
                ("from outside to inside", &lab.outside, None, lab::inside(family)),
                ("from outside to the gateway", &lab.outside, None, lab::gateway(family)),
            ];
            for (name, host, source, to) in tries {
                if agent == "alive" {
                    kernel.beat()?
                } else {
                    kernel.down()?
                }
                let met = attempt(host, source, (to, 25).into(), SILENCE)?;
                assert_eq!(
                    met,
                    Attempt::Silent,
                    "{name}, agent {agent}: {}",
                    case(way, family, 25)
                );
            }
        }
        lab.gateway.within(|| Ok(kernel.uninstall()?))?;
    }
    Ok(())
}

/// Without any firewall, connections from outside that nobody published go their way, uninspected.
#[test]
fn what_is_not_public_passes() -> Result<()> {
    for way in [Way::Tcx, Way::Nft] {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let publish = "publish = [\"10.1.0.2:25\", \"[fd00:1::2]:25\"]";
        let config = config(way, &bpffs, publish, "");
        for port in [21, 25] {
            serve(&lab.inside, port)?;
        }
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        for family in FAMILIES {
            let (_peer, met) = meet(&lab.outside, None, (lab::inside(family), 21).into())?;
            assert_eq!(met.gateway, None);
            let (_peer, met) = meet(&lab.outside, None, (lab::inside(family), 25).into())?;
            assert!(met.gateway.is_some());
        }
        lab.gateway.within(|| Ok(kernel.uninstall()?))?;
    }
    Ok(())
}
