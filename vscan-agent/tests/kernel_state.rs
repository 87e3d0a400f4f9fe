//! What the kernel does besides steering: exceptions, limits, an agent that is down or hangs, resets on request, devices of
//! all kinds, pins of another build, reloads, and leaving nothing behind. Needs root.

mod kernel_lab;

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kernel_lab::{
    Bpffs, Relay, WAYS, Way, config, echo, install, meet, serve, transparent, try_install,
};
use vscan_agent::kernel::{
    self, Counter, Counts, Error, HEARTBEAT_TTL, Kernel, Phase, View, What, Why,
};
use vscan_tests::{
    host::{Host, LabDir},
    lab::{self, FAMILIES, Family, Lab, STRICT, Topology},
    raw::{Attempt, End, Peer, attempt},
    wait,
};

const SILENCE: Duration = Duration::from_millis(700);

fn counts(lab: &Lab, kernel: &Kernel) -> Result<Counts> {
    lab.gateway.within(|| Ok(kernel.counts()?))
}

fn view(kernel: &Kernel) -> Result<View> {
    let maps: Vec<(&str, OwnedFd)> = kernel.gateway_descriptors()?;
    View::new(maps)?.context("no view")
}

fn uninstall(lab: &Lab, kernel: Kernel) -> Result<()> {
    lab.gateway.within(|| Ok(kernel.uninstall()?))
}

/// Our programs on an interface of the gateway, by tcx and by clsact.
fn programs(lab: &Lab, interface: &str) -> usize {
    use aya::programs::{SchedClassifier, TcAttachType};
    let ours = |name: &str| name.starts_with("vscan_l");
    let tcx = lab.gateway.within(|| {
        let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
        Ok(programs.iter().filter(|p| p.name_as_str().is_some_and(ours)).count())
    });
    let filters = lab.gateway.sh(&format!("tc filter show dev {interface} ingress"));
    tcx.unwrap_or(0)
        + filters.map_or(0, |text| {
            text.lines().filter(|l| l.contains("handle") && l.contains("vscan_l")).count()
        })
}

fn ruleset(lab: &Lab) -> Result<String> {
    lab.gateway.sh("nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; tc qdisc")
}

#[test]
fn exempt_networks_pass_denied_ones_are_dropped() -> Result<()> {
    for way in WAYS {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let more =
            "exempt = [\"10.1.0.3\", \"fd00:1::3/128\"]\ndeny = [\"10.1.0.4/32\", \"fd00:1::4\"]";
        let config = config(way, &bpffs, more, "");
        lab.inside
            .sh("ip addr add 10.1.0.4/16 dev eth0; ip addr add fd00:1::4/32 dev eth0 nodad")?;
        serve(&lab.outside, 21)?;
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        for family in FAMILIES {
            kernel.beat()?;
            let to = (lab::outside(family), 21).into();
            let (_peer, met) = meet(&lab.inside, Some(lab::inside_second(family)), to)?;
            assert_eq!(met.gateway, None, "{way:?} {family:?}");
            let denied = match family {
                Family::V4 => "10.1.0.4".parse()?,
                Family::V6 => "fd00:1::4".parse()?,
            };
            assert_eq!(
                attempt(&lab.inside, Some(denied), to, SILENCE)?,
                Attempt::Silent,
                "{way:?}"
            );
            kernel.beat()?;
            let (_peer, met) = meet(&lab.inside, None, to)?;
            assert!(met.gateway.is_some());
        }
        if way.bpf() {
            let view = view(&kernel)?;
            let seen = view.counters()?;
            assert!(seen.of(Counter::Denied) >= 2 && seen.of(Counter::Exempt) == 2, "{seen:?}");
            assert!(view.events().iter().any(|e| e.what == What::Denied));
            // nftables has no work left with them
            assert_eq!(counts(&lab, &kernel)?.denied, 0);
        } else {
            assert!(counts(&lab, &kernel)?.denied >= 2);
        }
        assert_eq!(counts(&lab, &kernel)?.exempt, 2);
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

#[test]
fn a_client_over_its_rate_is_dropped() -> Result<()> {
    for way in WAYS {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let config = config(way, &bpffs, "rate_limit = { per_second = 1, burst = 3 }", "");
        serve(&lab.outside, 21)?;
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        let to = (lab::outside(Family::V4), 21).into();
        let mut met = Vec::new();
        for _ in 0..6 {
            kernel.beat()?;
            // shorter than the time in which a SYN is sent again
            met.push(attempt(&lab.inside, None, to, Duration::from_millis(100))?);
        }
        assert_eq!(met[..3], [Attempt::Connected; 3], "{way:?} {met:?}");
        assert!(met.contains(&Attempt::Silent), "{way:?} {met:?}");
        // another client has its own share
        let other = Some(lab::inside_second(Family::V4));
        assert_eq!(attempt(&lab.inside, other, to, SILENCE)?, Attempt::Connected, "{way:?}");
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// The agent hangs: its listener is there, its heartbeat is not.
#[test]
fn a_hung_agent_is_passed_or_refused() -> Result<()> {
    for way in WAYS {
        for mode in ["open", "closed"] {
            let lab = Lab::new(Topology::Plain)?;
            let bpffs = Bpffs::mount(&lab)?;
            let config = config(way, &bpffs, &format!("on_agent_down = \"{mode}\""), "");
            serve(&lab.outside, 25)?;
            let _relay = Relay::start(&lab, &config)?;
            let kernel = install(&lab, &config)?;
            let to = (lab::outside(Family::V6), 25).into();
            let (mut before, met) = meet(&lab.inside, None, to)?;
            assert!(met.gateway.is_some());
            kernel.beat()?;
            let beaten = Instant::now();
            let passes = || -> Result<bool> {
                match mode {
                    "open" => Ok(meet(&lab.inside, None, to)?.1.gateway.is_none()),
                    _ => Ok(attempt(&lab.inside, None, to, SILENCE)? == Attempt::Refused),
                }
            };
            wait::until_true("the agent counts as hung", Duration::from_secs(5), || {
                passes().unwrap_or(false)
            })?;
            let took = beaten.elapsed();
            assert!(
                took < Duration::from_secs(3) && took > HEARTBEAT_TTL / 2,
                "{way:?} {mode} {took:?}"
            );
            // who was connected stays so
            echo(&mut before)?;
            if mode == "open" {
                // what passed stays passed when the agent is back, and only that
                let (mut passed, _) = meet(&lab.inside, None, to)?;
                kernel.beat()?;
                echo(&mut passed)?;
                assert!(counts(&lab, &kernel)?.down_passed >= 1);
            } else {
                assert!(counts(&lab, &kernel)?.down_refused >= 1);
            }
            kernel.beat()?;
            assert!(meet(&lab.inside, None, to)?.1.gateway.is_some(), "{way:?} {mode}");
            if way.bpf() {
                assert!(view(&kernel)?.counters()?.of(Counter::Down) >= 1);
            }
            uninstall(&lab, kernel)?;
        }
    }
    Ok(())
}

/// The agent is dead: nobody listens, whatever the heartbeat says.
#[test]
fn without_a_listener_the_next_rule_decides_at_once() -> Result<()> {
    for way in WAYS {
        for mode in ["open", "closed"] {
            let lab = Lab::new(Topology::Masquerade)?;
            let bpffs = Bpffs::mount(&lab)?;
            let config = config(way, &bpffs, &format!("on_agent_down = \"{mode}\""), "");
            serve(&lab.outside, 21)?;
            let kernel = install(&lab, &config)?;
            for family in FAMILIES {
                let to = (lab::outside(family), 21).into();
                if mode == "open" {
                    let (mut passed, met) = meet(&lab.inside, None, to)?;
                    assert_eq!(met.gateway, None);
                    // back again: this one is left alone, the next is taken
                    let relay = Relay::start(&lab, &config)?;
                    kernel.beat()?;
                    echo(&mut passed)?;
                    assert!(meet(&lab.inside, None, to)?.1.gateway.is_some());
                    drop(relay);
                } else {
                    assert_eq!(attempt(&lab.inside, None, to, SILENCE)?, Attempt::Refused);
                }
            }
            uninstall(&lab, kernel)?;
        }
    }
    Ok(())
}

#[test]
fn flows_are_seen_joined_and_reset_on_request() -> Result<()> {
    for (way, topology) in [
        (Way::Tcx, Topology::Plain),
        (Way::Tcx, Topology::Masquerade),
        (Way::Clsact, Topology::Forward),
    ] {
        let lab = Lab::new(topology)?;
        let bpffs = Bpffs::mount(&lab)?;
        let more = "exempt = [\"10.1.0.2\", \"192.0.2.2\", \"fd00:1::2\", \"2001:db8:2::2\"]";
        let config = config(way, &bpffs, more, "");
        serve(lab.server(), 25)?;
        let kernel = install(&lab, &config)?;
        let view = view(&kernel)?;
        for family in FAMILIES {
            let dialled = lab.dial(family, 25);
            let (mut peer, met) = meet(lab.client(), None, dialled)?;
            assert_eq!(met.gateway, None);
            let client = peer.stream().local_addr()?;
            let seen = view.uninspected(|_, _| false);
            let flow =
                seen.iter().find(|f| f.client == client).with_context(|| format!("{seen:?}"))?;
            assert_eq!((flow.server, flow.why, flow.phase), (dialled, Why::Exempt, Phase::Open));
            assert!(flow.from_client.packets >= 3 && flow.from_server.packets >= 2, "{flow:?}");
            assert_eq!(view.uninspected(|c, _| c == client).len(), seen.len() - 1);
            assert!(view.kill("192.0.2.99:1".parse()?, dialled).is_err());
            view.kill(client, dialled)?;
            peer.send("more\r\n")?;
            let (_, end) = peer.drain()?;
            assert!(matches!(end, End::Reset), "{end:?}");
            wait::until_true("the flow is seen as killed", Duration::from_secs(2), || {
                view.flows().iter().any(|f| f.client == client && f.killed)
            })?;
        }
        assert!(view.counters()?.of(Counter::Killed) >= 2);
        let events = view.events();
        assert!(events.iter().any(|e| e.what == What::Exempt), "{events:?}");
        assert_eq!(view.counters()?.of(Counter::EventsLost), 0);
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// The gateway has neither CAP_BPF nor CAP_NET_ADMIN.
#[test]
fn the_view_needs_no_capability() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Tcx, &bpffs, "exempt = [\"10.1.0.2\"]", "");
    serve(&lab.outside, 21)?;
    let kernel = install(&lab, &config)?;
    let (peer, _) = meet(&lab.inside, None, (lab::outside(Family::V4), 21).into())?;
    let (client, server) = (peer.stream().local_addr()?, peer.stream().peer_addr()?);
    let maps = kernel.gateway_descriptors()?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| -> Result<()> {
                caps::clear(None, caps::CapSet::Effective)?;
                caps::clear(None, caps::CapSet::Permitted)?;
                let view = View::new(maps)?.context("no view")?;
                ensure!(view.flows().iter().any(|f| f.client == client));
                ensure!(!view.events().is_empty());
                ensure!(view.heartbeat_age().is_some());
                view.kill(client, server)?;
                view.forget_killed()?;
                Ok(())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    uninstall(&lab, kernel)
}

/// Joins two namespaces by a pair of tun devices `t0`: packets without an Ethernet header.
const TUNNEL: &str = r#"
import ctypes, fcntl, os, select, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def tun(pid):
    ns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    assert libc.setns(ns, 0x40000000) == 0
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", b"t0", 0x1001))
    return fd
a, b = tun(sys.argv[1]), tun(sys.argv[2])
print("ready", flush=True)
while True:
    for fd in select.select([a, b], [], [])[0]:
        try: os.write(b if fd == a else a, os.read(fd, 65536))
        except OSError: pass
"#;

/// WireGuard, ppp and tun devices give packets that begin with the IP header.
#[test]
fn devices_without_ethernet_header_are_read() -> Result<()> {
    for way in WAYS {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let mut command = lab.gateway.command("python3");
        command
            .args(["-c", TUNNEL])
            .arg(lab.gateway.pid().to_string())
            .arg(lab.inside.pid().to_string());
        let tunnel = lab.gateway.start("tunnel", command)?;
        tunnel.wait_for_log("ready", Duration::from_secs(5))?;
        lab.gateway.sh("ip addr add 10.9.0.1/24 dev t0; ip addr add fd00:9::1/64 dev t0 nodad; ip link set t0 up")?;
        lab.inside.sh("ip addr add 10.9.0.2/24 dev t0; ip addr add 10.9.0.3/24 dev t0; ip addr add fd00:9::2/64 dev t0 nodad; ip link set t0 up; ip route add 192.0.2.0/24 via 10.9.0.1; ip route add 2001:db8:2::/64 via fd00:9::1")?;
        lab.outside.sh(
            "ip route add 10.9.0.0/24 via 192.0.2.1; ip route add fd00:9::/64 via 2001:db8:2::1",
        )?;
        let mut config = config(way, &bpffs, "exempt = [\"10.9.0.3\"]", "");
        let named = |n: &str| vscan_agent::config::Interface::new(n).expect("a name");
        config.gateway.interfaces = vec![named("wan0"), named("t0")];
        config.gateway.inside.push("10.9.0.0/24".parse()?);
        config.gateway.inside.push("fd00:9::/64".parse()?);
        serve(&lab.outside, 21)?;
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        for (source, taken) in [("10.9.0.2", true), ("10.9.0.3", false), ("fd00:9::2", true)] {
            kernel.beat()?;
            let source: std::net::IpAddr = source.parse()?;
            let to = if source.is_ipv4() { Family::V4 } else { Family::V6 };
            let (_peer, met) = meet(&lab.inside, Some(source), (lab::outside(to), 21).into())
                .with_context(|| format!("{source} {way:?}"))?;
            assert_eq!((met.gateway.is_some(), met.server), (taken, source), "{way:?}");
        }
        if way.bpf() {
            let seen = view(&kernel)?.counters()?;
            assert_eq!(
                (seen.of(Counter::Syns), seen.of(Counter::Exempt)),
                (3, 1),
                "{way:?} {seen:?}"
            );
            assert_eq!(seen.of(Counter::Unreadable), 0, "{way:?}");
        }
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// Sends a SYN to port 21 with these VLAN tags in front, and then one of a kind that is not ours.
const TAGGED: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
def frame(tags, dport):
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, bytes([10,1,0,2]), bytes([192,0,2,2]))
    tcp = struct.pack("!HHIIBBHHH", 40000, dport, 7, 0, 0x50, 2, 1000, 0, 0)
    return b"\xff" * 6 + bytes(s.getsockname()[4]) + tags + b"\x08\x00" + ip + tcp
dot1q, dot1ad = b"\x81\x00\x00\x09", b"\x88\xa8\x00\x07"
for tags in [dot1q, dot1ad + dot1q, dot1ad + dot1q + dot1q]:
    s.send(frame(tags, 21))
    s.send(frame(tags, 2121))
"#;

/// Tags are in the packet where a device is a trunk: the outer one is taken off by the kernel, inner ones are walked.
#[test]
fn vlan_tags_are_walked() -> Result<()> {
    for way in [Way::Tcx, Way::Clsact] {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let kernel = install(&lab, &config(way, &bpffs, "", ""))?;
        let sent = lab.inside.run(["python3", "-c", TAGGED])?;
        ensure!(sent.success(), "{}", sent.err);
        let view = view(&kernel)?;
        wait::until_true("three SYNs", Duration::from_secs(2), || {
            view.counters().is_ok_and(|c| c.of(Counter::Syns) == 3)
        })?;
        assert_eq!(view.counters()?.of(Counter::Packets), 3);
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// IPv6 extension headers: what BPF reads it decides, the rest nftables does.
#[test]
fn extension_headers_do_not_hide_a_connection() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Tcx, &bpffs, "", "");
    serve(&lab.outside, 21)?;
    let _relay = Relay::start(&lab, &config)?;
    let kernel = install(&lab, &config)?;
    let script = "import socket,struct\n\
        s=socket.socket(socket.AF_INET6)\n\
        s.setsockopt(41,59,bytes([0,0,1,4])+bytes(4))\n\
        s.settimeout(5)\n\
        s.connect(('2001:db8:2::2',21))\n\
        print(s.makefile().readline())\n";
    let said = lab.inside.run(["python3", "-c", script])?;
    ensure!(said.out.starts_with("gateway"), "{} {}", said.out, said.err);
    let seen = view(&kernel)?.counters()?;
    assert!(seen.of(Counter::Syns) == 1 && seen.of(Counter::Unreadable) == 0, "{seen:?}");
    uninstall(&lab, kernel)
}

/// An interface that goes away and comes back under its name is guarded again.
#[test]
fn interfaces_come_and_go() -> Result<()> {
    for way in [Way::Tcx, Way::Clsact] {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        lab.gateway.sh("ip link add d0 type veth peer name d1")?;
        let mut config = config(way, &bpffs, "", "");
        config.gateway.interfaces.push(vscan_agent::config::Interface::new("d0").expect("a name"));
        let kernel = install(&lab, &config)?;
        let attached = || programs(&lab, "d0") == 1;
        assert!(attached());
        lab.gateway.sh("ip link del d0")?;
        let pins = bpffs.pinned();
        lab.gateway.sh("ip link add d0 type veth peer name d1")?;
        wait::until_true("guarded again", Duration::from_secs(5), attached)?;
        ensure!(bpffs.pinned().len() <= pins.len() + 1, "{:?}", bpffs.pinned());
        uninstall(&lab, kernel)?;
        // the kernel detaches an unpinned link a moment later
        wait::until_true("let go", Duration::from_secs(2), || programs(&lab, "d0") == 0)?;
    }
    Ok(())
}

#[test]
fn pins_of_another_build_are_replaced() -> Result<()> {
    for (first, second) in [
        (Way::Tcx, Way::Tcx),
        (Way::Clsact, Way::Clsact),
        (Way::Tcx, Way::Clsact),
        (Way::Clsact, Way::Tcx),
        (Way::Tcx, Way::Nft),
        (Way::Clsact, Way::Nft),
    ] {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        serve(&lab.outside, 21)?;
        let before = ruleset(&lab)?;
        let exempt = "exempt = [\"10.1.0.2\"]";
        // an agent that was killed: nothing is taken back
        drop(install(&lab, &config(first, &bpffs, exempt, ""))?);
        let to = (lab::outside(Family::V4), 21).into();
        let (_kept, met) = meet(&lab.inside, None, to)?;
        assert_eq!(met.gateway, None, "the kernel goes on without the agent");
        let build = bpffs
            .pinned()
            .first()
            .and_then(|p| p.split('/').next().map(str::to_owned))
            .context("no pins")?;
        std::fs::rename(bpffs.pins().join(&build), bpffs.pins().join("build_0123456789abcdef"))?;
        let config = config(second, &bpffs, exempt, "");
        let _relay = Relay::start(&lab, &config)?;
        let kernel = install(&lab, &config)?;
        let pinned = bpffs.pinned();
        assert!(!pinned.iter().any(|p| p.contains("0123456789abcdef")), "{pinned:?}");
        // the kernel detaches an unpinned link a moment later
        let wanted = usize::from(second.bpf());
        wait::until_true("one program, or none", Duration::from_secs(2), || {
            programs(&lab, "lan0") == wanted
        })
        .with_context(|| format!("{first:?} {second:?}: {}", programs(&lab, "lan0")))?;
        let (_peer, met) = meet(&lab.inside, None, to)?;
        assert_eq!(met.gateway, None);
        uninstall(&lab, kernel)?;
        assert_eq!(ruleset(&lab)?, before, "{first:?} {second:?}");
        assert_eq!(bpffs.pinned(), Vec::<String>::new());
    }
    Ok(())
}

/// The same build started again keeps what its maps know, and the connections of the former agent's kernel.
#[test]
fn a_restart_takes_over_the_maps() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Tcx, &bpffs, "exempt = [\"10.1.0.2\"]", "");
    serve(&lab.outside, 21)?;
    let first = install(&lab, &config)?;
    let (mut peer, _) = meet(&lab.inside, None, (lab::outside(Family::V4), 21).into())?;
    let client = peer.stream().local_addr()?;
    drop(first);
    let second = install(&lab, &config)?;
    echo(&mut peer)?;
    let seen = view(&second)?.flows();
    assert!(seen.iter().any(|f| f.client == client && f.phase == Phase::Open), "{seen:?}");
    assert_eq!(programs(&lab, "lan0"), 1);
    uninstall(&lab, second)
}

#[test]
fn a_reload_has_no_gap_and_a_bad_one_changes_nothing() -> Result<()> {
    for way in WAYS {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        let first = config(way, &bpffs, "", "");
        for port in [21, 2121] {
            serve(&lab.outside, port)?;
        }
        let _relay = Relay::start(&lab, &first)?;
        let kernel = install(&lab, &first)?;
        let at = |port| (lab::outside(Family::V4), port).into();
        let (mut before, _) = meet(&lab.inside, None, at(21))?;
        assert_eq!(meet(&lab.inside, None, at(2121))?.1.gateway, None);
        kernel.beat()?;
        let second = config(way, &bpffs, "exempt = [\"10.1.0.3\"]", "[ftp]\nports = [21, 2121]\n");
        lab.gateway.within(|| Ok(kernel.update(&second)?))?;
        // no beat since: the heartbeat outlived the change
        assert!(meet(&lab.inside, None, at(2121))?.1.gateway.is_some());
        let exempt = Some(lab::inside_second(Family::V4));
        assert_eq!(meet(&lab.inside, exempt, at(21))?.1.gateway, None);
        echo(&mut before)?;
        let mut bad = second.clone();
        bad.gateway.interfaces.push(vscan_agent::config::Interface::new("nosuch").expect("a name"));
        let error = lab.gateway.within(|| Ok(kernel.update(&bad).err()))?;
        assert!(matches!(error, Some(Error::NoInterface { .. })), "{error:?}");
        let mut other = second.clone();
        other.gateway.marks.client = 0x91;
        let error = lab.gateway.within(|| Ok(kernel.update(&other).err()))?;
        assert!(matches!(error, Some(Error::NeedsRestart("gateway.marks"))), "{error:?}");
        kernel.beat()?;
        assert!(meet(&lab.inside, None, at(2121))?.1.gateway.is_some());
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

#[test]
fn a_flushed_table_is_put_back() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Nft, &bpffs, "", "");
    serve(&lab.outside, 21)?;
    let _relay = Relay::start(&lab, &config)?;
    let kernel = install(&lab, &config)?;
    lab.gateway.sh("nft flush ruleset")?;
    lab.gateway.within(|| Ok(kernel.beat()?))?;
    assert!(meet(&lab.inside, None, (lab::outside(Family::V4), 21).into())?.1.gateway.is_some());
    uninstall(&lab, kernel)
}

#[test]
fn a_removed_rule_or_route_is_put_back() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Nft, &bpffs, "", "");
    serve(&lab.outside, 21)?;
    let _relay = Relay::start(&lab, &config)?;
    let kernel = install(&lab, &config)?;
    let show = "ip rule show; ip -6 rule show; ip route show table 181; ip -6 route show table 181";
    let before = lab.gateway.sh(show)?;
    for removal in [
        "ip rule del table 181",
        "ip -6 rule del table 181",
        // As systemd-networkd does it; routes alone are not listened for.
        "ip route flush table 181; ip -6 route flush table 181; ip rule del table 181",
    ] {
        lab.gateway.sh(removal)?;
        wait::until("the rule and the route are not put back", Duration::from_secs(5), || {
            Ok((lab.gateway.sh(show)? == before).then_some(()))
        })
        .context(removal)?;
    }
    assert!(meet(&lab.inside, None, (lab::outside(Family::V4), 21).into())?.1.gateway.is_some());
    uninstall(&lab, kernel)
}

#[test]
fn a_failed_start_leaves_nothing_and_says_what_to_do() -> Result<()> {
    let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
    let bpffs = Bpffs::mount(&lab)?;
    let before = ruleset(&lab)?;
    let fails = |config: &vscan_agent::config::Config| -> Result<Error> {
        lab.gateway.within(|| Kernel::install(config).err().context("it started"))
    };
    let error = fails(&config(Way::Tcx, &bpffs, "", ""))?;
    assert!(matches!(error, Error::Forward { .. }), "{error}");
    assert!(error.to_string().contains("[[access]]") && error.exit_code() == 78, "{error}");

    let access = "[[access]]\naction = \"allow\"\n";
    let mut missing = config(Way::Tcx, &bpffs, "", access);
    missing.gateway.interfaces.push(vscan_agent::config::Interface::new("eth9").expect("a name"));
    let error = fails(&missing)?;
    assert!(error.to_string().contains("eth9") && error.to_string().contains("lan0"), "{error}");

    let mut nowhere = config(Way::Tcx, &bpffs, "", access);
    nowhere.paths.bpffs = lab.dir().join("no-bpffs/vscan");
    let error = fails(&nowhere)?;
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
    // asked for by no more than "auto", it is not needed
    nowhere.gateway.steering = vscan_agent::config::Steering::Auto;
    let kernel = try_install(&lab, &nowhere)?;
    assert!(kernel.steering().to_string().starts_with("nft ("), "{}", kernel.steering());
    uninstall(&lab, kernel)?;

    // a device that neither program can read (CAN), found after others were attached
    lab.gateway.sh("ip tuntap add mode tun name c0")?;
    let can = "import fcntl,struct;f=open('/dev/net/tun','r+b',0);fcntl.ioctl(f,0x400454ca,struct.pack('16sH22x',b'c0',0x1001));fcntl.ioctl(f,0x400454cd,280)";
    let said = lab.gateway.run(["python3", "-c", can])?;
    ensure!(said.success(), "{}", said.err);
    let mut unreadable = config(Way::Tcx, &bpffs, "", access);
    unreadable.gateway.interfaces.push(vscan_agent::config::Interface::new("c0").expect("a name"));
    let error = fails(&unreadable)?;
    assert!(error.to_string().contains("c0") && error.to_string().contains("280"), "{error}");
    lab.gateway.sh("ip link del c0")?;
    assert_eq!(ruleset(&lab)?, before);
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
    Ok(())
}

#[test]
fn cleanup_touches_nothing_else() -> Result<()> {
    for way in WAYS {
        let lab = Lab::new(Topology::Plain)?;
        let bpffs = Bpffs::mount(&lab)?;
        lab.gateway.sh("nft add table inet mine; nft add chain inet mine c; ip rule add fwmark 0x5 lookup 181 pref 200; ip route add 203.0.113.0/24 via 192.0.2.2 table 181; tc qdisc add dev lan0 clsact")?;
        let before = ruleset(&lab)?;
        let config = config(way, &bpffs, "", "");
        drop(install(&lab, &config)?);
        assert_ne!(ruleset(&lab)?, before);
        let removed = lab.gateway.within(|| Ok(kernel::cleanup(&config)?))?;
        assert!(removed.iter().any(|r| r.contains("inet vscan")), "{removed:?}");
        assert_eq!(ruleset(&lab)?, before, "{way:?}");
        assert_eq!(bpffs.pinned(), Vec::<String>::new());
        assert!(lab.gateway.within(|| Ok(kernel::cleanup(&config)?))?.is_empty());
    }
    Ok(())
}

/// The socket is the rule: a data channel's listener on the server's own address and a free port.
#[test]
fn a_listener_on_a_foreign_address_is_reached() -> Result<()> {
    for way in WAYS {
        let lab = Lab::with_firewall(Topology::Masquerade, STRICT)?;
        let bpffs = Bpffs::mount(&lab)?;
        let config = config(
            way,
            &bpffs,
            "",
            "[[access]]\naction = \"allow\"\nfrom = [\"10.1.0.2\", \"fd00:1::2\"]\n",
        );
        let kernel = install(&lab, &config)?;
        for family in FAMILIES {
            let listener = lab.gateway.within(|| {
                let socket = transparent(lab::outside(family))?;
                socket.bind(&std::net::SocketAddr::new(lab::outside(family), 0).into())?;
                socket.listen(1)?;
                Ok(std::net::TcpListener::from(socket))
            })?;
            let mut peer = Peer::connect(&lab.inside, listener.local_addr()?)?;
            let (mut data, from) = vscan_tests::raw::accept(&listener)?;
            assert_eq!(from.ip(), lab::inside(family));
            peer.send("file\r\n")?;
            assert_eq!(data.line()?.trim(), "file");
        }
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// Active FTP data leaves with the address that the client dialled, though masquerade would choose the primary one.
#[test]
fn active_data_keeps_a_secondary_address() -> Result<()> {
    use std::net::SocketAddr;
    let lab = Lab::new(Topology::Forward)?;
    let bpffs = Bpffs::mount(&lab)?;
    lab.gateway.sh("ip addr add 192.0.2.9/24 dev wan0; nft 'add chain inet firewall hide { type nat hook postrouting priority srcnat; }'; nft add rule inet firewall hide oifname wan0 masquerade")?;
    let config = config(Way::Tcx, &bpffs, "", "");
    let kernel = install(&lab, &config)?;
    let marks = kernel::marks::Marks::of(&config.gateway.marks);
    // A port for each: the ends of a connection that has just ended are not free at once.
    for (mark, seen, port) in
        [(marks.upstream, "192.0.2.1", 40000), (marks.active, "192.0.2.9", 40001)]
    {
        let listener = vscan_tests::raw::listen(&lab.outside, port)?;
        let socket = lab.gateway.within(|| {
            let socket = transparent("192.0.2.9".parse()?)?;
            socket.set_reuse_address(true)?;
            socket.set_mark(mark)?;
            socket.bind(&"192.0.2.9:20".parse::<SocketAddr>()?.into())?;
            socket.connect_timeout(
                &SocketAddr::from(([192, 0, 2, 2], port)).into(),
                Duration::from_secs(3),
            )?;
            Ok(std::net::TcpStream::from(socket))
        })?;
        let (mut peer, from) = vscan_tests::raw::accept(&listener)?;
        assert_eq!(from.ip().to_string(), seen);
        peer.send("data\r\n")?;
        assert_eq!(Peer::new(socket)?.line()?.trim(), "data");
    }
    uninstall(&lab, kernel)
}

/// Without BPF, conntrack shows what passes: with both ends' real addresses.
#[test]
fn conntrack_shows_what_passes() -> Result<()> {
    for (way, topology) in
        [(Way::Nft, Topology::Masquerade), (Way::Tcx, Topology::ForwardFromOtherPort)]
    {
        let lab = Lab::new(topology)?;
        let bpffs = Bpffs::mount(&lab)?;
        let config = config(way, &bpffs, "on_agent_down = \"open\"\nexempt = [\"fd00:1::2\"]", "");
        serve(lab.server(), 25)?;
        let kernel = try_install(&lab, &config)?;
        for (family, why) in [(Family::V4, Why::AgentDown), (Family::V6, Why::Exempt)] {
            let dialled = lab.dial(family, 25);
            let (peer, _) = meet(lab.client(), None, dialled)?;
            let client = peer.stream().local_addr()?;
            let passing = lab.gateway.within(|| Ok(kernel.passing()?))?;
            let flow = passing
                .iter()
                .find(|f| f.client == client)
                .with_context(|| format!("{passing:?}"))?;
            assert_eq!((flow.server, flow.why, flow.phase), (dialled, why, Phase::Open));
            let real = if topology == Topology::Masquerade {
                lab::outside(family)
            } else {
                lab::inside(family)
            };
            assert_eq!(flow.real_server, Some((real, 25).into()));
        }
        uninstall(&lab, kernel)?;
    }
    Ok(())
}

/// What the BPF programs say arrives in the agent's log.
#[test]
fn messages_of_the_programs_arrive_in_the_log() -> Result<()> {
    use std::sync::{Arc, Mutex};
    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Text {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = Text::default();
    let writer = text.clone();
    // the messages come from a thread of the kernel state: the log of the whole process; no other test reads it
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Tcx, &bpffs, "deny = [\"10.1.0.3\"]", "");
    let kernel = install(&lab, &config)?;
    let source = Some(lab::inside_second(Family::V4));
    let met = attempt(&lab.inside, source, (lab::outside(Family::V4), 2121).into(), SILENCE)?;
    assert_eq!(met, Attempt::Refused);
    let met = attempt(&lab.inside, source, (lab::outside(Family::V4), 21).into(), SILENCE)?;
    assert_eq!(met, Attempt::Silent);
    wait::until_true("two messages", Duration::from_secs(3), || {
        let text = String::from_utf8_lossy(&text.0.lock().unwrap()).into_owned();
        text.contains("vscan_ebpf: first packet from or to our ports")
            && text.contains("vscan_ebpf: first connection from a denied network")
    })?;
    uninstall(&lab, kernel)
}

/// ICMP errors about packets of our legs go to the peers' addresses; they must reach our sockets.
#[test]
fn path_mtu_discovery_reaches_the_gateways_sockets() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bpffs = Bpffs::mount(&lab)?;
    let config = config(Way::Tcx, &bpffs, "", "");
    // a server behind a link that is too narrow for the upstream leg's packets
    let dir = LabDir::new()?;
    let far = Host::new("far", &dir, "")?;
    lab.outside.sh(&format!(
        "ip link add n0 type veth peer name eth0 netns {}; ip link set n0 mtu 1280 up; \
         ip addr add 198.51.100.1/24 dev n0; ip addr add 2001:db8:9::1/64 dev n0 nodad",
        far.pid()
    ))?;
    far.sh(
        "ip link set eth0 up; ip addr add 198.51.100.2/24 dev eth0; ip addr add 2001:db8:9::2/64 dev eth0 nodad; \
         ip route add default via 198.51.100.1; ip route add default via 2001:db8:9::1",
    )?;
    lab.gateway.sh("ip route add 198.51.100.0/24 via 192.0.2.2; ip route add 2001:db8:9::/64 via 2001:db8:2::2")?;
    serve(&far, 21)?;
    let _relay = Relay::start(&lab, &config)?;
    let kernel = install(&lab, &config)?;
    for to in ["198.51.100.2:21", "[2001:db8:9::2]:21"] {
        kernel.beat()?;
        let (mut peer, met) = meet(&lab.inside, None, to.parse()?)?;
        assert!(met.gateway.is_some());
        let sent = vec![b'x'; 100_000];
        peer.send(&sent)?;
        assert_eq!(peer.take(sent.len()).with_context(|| to)?, sent);
    }
    uninstall(&lab, kernel)
}
