//! What is possible on this machine, and what would get in the way: the checks of `vscan doctor`.

use std::{fs, path::Path};

use super::{bpf, firewall::Foreign, marks::Marks, nft, route};
use crate::config::{Config, OnAgentDown, Steering};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, but the user should know.
    Warning,
    /// vscan does not work like this.
    Bad,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing.
    pub advice: String,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Good, found: found.into(), advice: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Bad, found: found.into(), advice: advice.into() }
    }
}

/// Looks at everything; changes nothing.
#[must_use]
pub fn run(config: &Config) -> Vec<Check> {
    let marks = Marks::of(&config.gateway.marks);
    let mut checks = vec![kernel(), capabilities()];
    checks.push(steering(config));
    checks.extend(nftables());
    checks.extend(interfaces(config));
    checks.extend(sysctls(config));
    checks.extend(firewall(config, &marks));
    checks.push(state(config));
    checks
}

fn kernel() -> Check {
    let (major, minor) = bpf::kernel_version();
    let version = format!("Linux {major}.{minor}");
    // 5.19: maps without CAP_BPF by descriptor; older ones lack more
    if (major, minor) < (5, 19) {
        return Check::bad("kernel", version, "Linux 5.19 or later is needed");
    }
    Check::good("kernel", version)
}

fn capabilities() -> Check {
    use caps::{CapSet, Capability};
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    if has.contains(&Capability::CAP_NET_ADMIN) {
        return Check::good("privileges", "CAP_NET_ADMIN");
    }
    Check::bad("privileges", "no CAP_NET_ADMIN", "run as root; the checks below are incomplete")
}

fn steering(config: &Config) -> Check {
    const NAME: &str = "steering";
    if config.gateway.steering == Steering::Nft {
        return Check::good(NAME, "nftables alone, by configuration");
    }
    let problem = if bpf::is_built() {
        bpf::require_bpffs(&config.paths.bpffs)
            .err()
            .or_else(|| (!may_load()).then_some(bpf::BpfError::Permission))
            .map(|e| e.to_string())
    } else {
        Some(bpf::BpfError::NotBuilt.to_string())
    };
    match (problem, config.gateway.steering) {
        (None, _) => {
            let how = if bpf::tcx() { "tcx" } else { "clsact: tcx comes with Linux 6.6" };
            Check::good(NAME, format!("BPF programs ({how}) and nftables"))
        }
        (Some(problem), Steering::Bpf) => {
            Check::bad(NAME, problem, "or gateway.steering = \"auto\"")
        }
        (Some(problem), Steering::Auto | Steering::Nft) => {
            Check::warning(NAME, format!("nftables alone: {problem}"), "")
        }
    }
}

fn may_load() -> bool {
    use caps::{CapSet, Capability};
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    has.contains(&Capability::CAP_SYS_ADMIN)
        || (has.contains(&Capability::CAP_BPF) && has.contains(&Capability::CAP_PERFMON))
}

/// Modules of the kernel that the rules need, with the option that builds them in.
const MODULES: [(&str, &str); 6] = [
    ("nft_tproxy", "NFT_TPROXY"),
    ("nft_socket", "NFT_SOCKET"),
    ("nft_ct", "NFT_CT"),
    ("nft_reject_inet", "NFT_REJECT_INET"),
    ("nft_fib_inet", "NFT_FIB_INET"),
    ("nft_nat", "NFT_NAT"),
];

fn nftables() -> Vec<Check> {
    const NAME: &str = "nftables";
    if let Err(error) = nft::list() {
        return vec![Check::bad(NAME, error.to_string(), "apt-get install nftables")];
    }
    let missing: Vec<&str> = MODULES
        .iter()
        .filter(|(module, option)| !is_module_there(module, option))
        .map(|(module, _)| *module)
        .collect();
    if missing.is_empty() {
        return vec![Check::good(NAME, "nft runs, the kernel has what the rules need")];
    }
    vec![Check::warning(
        NAME,
        format!("cannot be seen: {}", missing.join(", ")),
        format!("if the start fails: `modprobe -a {}`", missing.join(" ")),
    )]
}

/// Loaded, built in, or there to be loaded.
fn is_module_there(module: &str, option: &str) -> bool {
    if Path::new("/sys/module").join(module).exists() {
        return true;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let lib = Path::new("/lib/modules").join(&release);
    let lists = ["modules.builtin", "modules.dep"];
    let file = format!("/{module}.ko");
    if lists.iter().any(|l| fs::read_to_string(lib.join(l)).is_ok_and(|t| t.contains(&file))) {
        return true;
    }
    let built_in = format!("CONFIG_{option}=y\n");
    // a kernel without /lib/modules has its options in /boot, if anywhere
    fs::read_to_string(format!("/boot/config-{release}")).is_ok_and(|t| t.contains(&built_in))
        || !lib.exists()
}

fn interfaces(config: &Config) -> Vec<Check> {
    const NAME: &str = "interfaces";
    let links = match route::links() {
        Ok(links) => links,
        Err(error) => return vec![Check::bad(NAME, error.to_string(), "")],
    };
    let mut checks = Vec::new();
    for interface in &config.gateway.interfaces {
        let name = interface.as_str();
        match links.get(name) {
            None => checks.push(Check::bad(
                NAME,
                format!("{name} does not exist"),
                "correct gateway.interfaces",
            )),
            Some(link) if !link.up => {
                let advice = format!("ip link set {name} up");
                checks.push(Check::warning(NAME, format!("{name} is down"), advice));
            }
            Some(_) => {}
        }
    }
    if !links.get("lo").is_some_and(|lo| lo.up) {
        checks.push(Check::bad(NAME, "lo is down", "ip link set lo up"));
    }
    if checks.is_empty() {
        let names: Vec<&str> = config.gateway.interfaces.iter().map(|i| i.as_str()).collect();
        checks.push(Check::good(NAME, format!("{} are there and up", names.join(", "))));
    }
    checks
}

fn sysctl(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    Some(text.trim().to_owned())
}

fn sysctls(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let v4 = sysctl("net/ipv4/ip_forward").is_some_and(|v| v == "1");
    let v6 = sysctl("net/ipv6/conf/all/forwarding").is_some_and(|v| v == "1");
    checks.push(match (v4, v6) {
        (true, true) => Check::good("forwarding", "IPv4 and IPv6"),
        (true, false) => Check::good("forwarding", "IPv4 only"),
        (false, true) => Check::good("forwarding", "IPv6 only"),
        (false, false) => Check::warning(
            "forwarding",
            "off: this machine is no router",
            "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ),
    });
    let mut names: Vec<&str> = config.gateway.interfaces.iter().map(|i| i.as_str()).collect();
    names.push("all");
    names.push("lo");
    let of = |key: &str| -> Vec<&str> {
        names
            .iter()
            .copied()
            .filter(|n| sysctl(&format!("net/ipv4/conf/{n}/{key}")).is_some_and(|v| v == "1"))
            .collect()
    };
    let marked = of("src_valid_mark");
    if !marked.is_empty() {
        // the route back of an intercepted packet is then looked up with our mark, and found to be lo
        checks.push(Check::bad(
            "src_valid_mark",
            format!("1 on {}: intercepted IPv4 packets are dropped as spoofed", marked.join(", ")),
            format!(
                "sysctl -w {}",
                marked
                    .iter()
                    .map(|n| format!("net.ipv4.conf.{n}.src_valid_mark=0"))
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        ));
    }
    let route_localnet = of("route_localnet");
    if !route_localnet.is_empty() {
        checks.push(Check::warning(
            "route_localnet",
            format!(
                "1 on {}: others can reach the listener on 127.0.0.1",
                route_localnet.join(", ")
            ),
            "set it to 0 unless something needs it",
        ));
    }
    let strict = of("rp_filter");
    if !strict.is_empty() {
        checks.push(Check::good(
            "rp_filter",
            format!("strict on {}: fine as long as routes are symmetric", strict.join(", ")),
        ));
    }
    let bridged = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .iter()
        .any(|key| sysctl(&format!("net/bridge/{key}")).is_some_and(|v| v == "1"));
    if bridged {
        checks.push(Check::warning(
            "br_netfilter",
            "bridged packets pass through nftables too: connections between ports of a guarded bridge are intercepted",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, unless containers need it",
        ));
    }
    checks
}

fn firewall(config: &Config, marks: &Marks) -> Vec<Check> {
    const NAME: &str = "firewall";
    let foreign = match Foreign::read_for(marks) {
        Ok(foreign) => foreign,
        Err(error) => return vec![Check::warning(NAME, error.to_string(), "")],
    };
    let mut checks = Vec::new();
    for chain in &foreign.forward {
        if config.access.is_empty() {
            checks.push(Check::bad(
                NAME,
                format!("{chain} drops forwarded connections by default; an intercepted one does not pass through it"),
                "say with [[access]] which connections it accepts: those and no others are intercepted",
            ));
        } else {
            checks.push(Check::warning(
                NAME,
                format!(
                    "{chain} drops by default; what [[access]] allows does not pass through it"
                ),
                "compare the two",
            ));
        }
    }
    for chain in &foreign.input {
        let rule = chain.accept_rule(marks);
        match chain.accepts_ours {
            Some(true) => {}
            Some(false) => checks.push(Check::bad(
                NAME,
                format!("{chain} drops by default, intercepted connections too"),
                rule,
            )),
            None => checks.push(Check::warning(
                NAME,
                format!("{chain} drops by default and has rules that cannot be read"),
                format!("unless it accepts our mark already: {rule}"),
            )),
        }
    }
    for chain in &foreign.output {
        checks.push(Check::warning(
            NAME,
            format!("{chain} drops by default: the gateway's connections to servers pass through it"),
            format!(
                "nft insert rule {chain} meta mark and {:#x} == {:#x} accept; established connections too",
                marks.mask, marks.upstream
            ),
        ));
    }
    if foreign.legacy_iptables {
        checks.push(Check::warning(
            NAME,
            "rules of the old iptables are loaded, which cannot be read here",
            "if their FORWARD drops, configure [[access]]; if their INPUT drops, accept our mark",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::good(NAME, "no foreign chain drops by default"));
    }
    checks
}

fn state(config: &Config) -> Check {
    const NAME: &str = "state";
    let table = nft::exists().unwrap_or(false);
    let rule = route::is_installed(config.gateway.table.get()).unwrap_or(false);
    let down = match config.gateway.on_agent_down {
        OnAgentDown::Open => "without an agent connections pass uninspected",
        OnAgentDown::Closed => "without an agent connections are refused",
    };
    match (table, rule) {
        (true, true) => Check::good(NAME, format!("installed; {down}")),
        (false, false) => Check::good(NAME, format!("not installed; when it is, {down}")),
        (true, false) | (false, true) => {
            Check::warning(NAME, "half installed", "restart vscan, or `vscan cleanup`")
        }
    }
}
