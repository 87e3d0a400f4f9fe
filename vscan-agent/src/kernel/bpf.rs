//! The BPF programs in the kernel: loaded, attached, pinned, told what to go by.
//!
//! Pins lie in a directory of the build's own below `paths.bpffs`. A program is loaded at each start; maps of the same
//! build are taken over with what they know; links are handed from the old program to the new one. Pins of another build
//! are removed when the new programs are attached.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use vscan_common::{Address, Settings, names, net};

use super::{
    marks::Marks,
    netlink::{Family, Message, Socket},
    route::Link,
};
use crate::config::{self, Config};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/object.rs"));
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// tcx links, from Linux 6.6 on.
    Tcx,
    /// A clsact qdisc and a filter.
    Clsact,
}

/// Why there are no BPF programs.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The object was not there when vscan was built.
    #[error("vscan was built without its BPF programs (`cargo xtask build` builds both)")]
    NotBuilt,
    /// Not root, or without the capabilities.
    #[error(
        "no permission to load BPF programs: CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed"
    )]
    Permission,
    /// The directory for pins is not on a bpffs.
    #[error(
        "{path} is not on a BPF file system: `mount -t bpf bpf {mount}`, or change paths.bpffs"
    )]
    NoBpffs {
        /// The directory.
        path: PathBuf,
        /// Where one should be.
        mount: PathBuf,
    },
    /// Pins cannot be made or removed.
    #[error("{path}: {error}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A device whose packets begin with neither an Ethernet nor an IP header.
    #[error(
        "interface {interface} is of ARPHRD type {kind}, whose packets the BPF programs cannot read"
    )]
    Device {
        /// The interface.
        interface: String,
        /// `ARPHRD_*`, see `linux/if_arp.h`.
        kind: u16,
    },
    /// The kernel or the loader refused.
    #[error("BPF: {0}")]
    Refused(String),
}

/// The programs, loaded.
pub(super) struct Bpf {
    ebpf: Ebpf,
    heartbeat: Array<MapData, u64>,
    settings: Array<MapData, Settings>,
    nets: LpmTrie<MapData, Address, u32>,
    base: PathBuf,
    pins: PathBuf,
    attach: Attach,
    attached: BTreeMap<String, Link>,
}

impl std::fmt::Debug for Bpf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bpf").field("pins", &self.pins).field("attached", &self.attached).finish()
    }
}

/// Priority of our clsact filter: far behind those that choose none (49152 and down), which is of no importance, since
/// all that return "continue" are run.
const PRIORITY: u16 = 0x5653;

impl Bpf {
    /// Loads the programs and takes over or makes the maps. Nothing is attached yet.
    pub(super) fn load(config: &Config, marks: &Marks, ttl: Duration) -> Result<Self, BpfError> {
        let object = embedded::OBJECT.ok_or(BpfError::NotBuilt)?;
        let base = config.paths.bpffs.clone();
        require_bpffs(&base)?;
        let pins = base.join(format!("build_{}", &blake3::hash(object).to_hex().as_str()[..16]));
        fs::create_dir_all(&pins).map_err(|error| BpfError::Pin { path: pins.clone(), error })?;
        let mut loader = EbpfLoader::new();
        for name in names::PINNED {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load(object).map_err(refused)?;
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| BpfError::Refused(format!("the object has no map {name}")))
        };
        let heartbeat = map(names::HEARTBEAT)?.try_into().map_err(refused)?;
        let settings = map(names::SETTINGS)?.try_into().map_err(refused)?;
        let nets = map(names::NETS)?.try_into().map_err(refused)?;
        let attach = match config.gateway.attach {
            config::Attach::Tcx => Attach::Tcx,
            config::Attach::Clsact => Attach::Clsact,
            config::Attach::Auto if tcx() => Attach::Tcx,
            config::Attach::Auto => Attach::Clsact,
        };
        let mut this =
            Self { ebpf, heartbeat, settings, nets, base, pins, attach, attached: BTreeMap::new() };
        this.configure(config, marks, ttl)?;
        Ok(this)
    }

    /// How the programs are attached.
    pub(super) fn attach(&self) -> Attach {
        self.attach
    }

    /// What the programs log. To be taken before [`start`](Self::start), once.
    pub(super) fn logger<T: log::Log>(&mut self, logger: T) -> Result<EbpfLogger<T>, BpfError> {
        EbpfLogger::init_with_logger(&mut self.ebpf, logger).map_err(refused)
    }

    /// Lets the kernel verify and translate the programs.
    pub(super) fn start(&mut self) -> Result<(), BpfError> {
        for name in [names::PROGRAM_L2, names::PROGRAM_L3] {
            self.program(name)?.load().map_err(refused)?;
        }
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, BpfError> {
        self.ebpf
            .program_mut(name)
            .ok_or_else(|| BpfError::Refused(format!("the object has no program {name}")))?
            .try_into()
            .map_err(refused)
    }

    /// Tells the programs what to go by; what is in both the old and the new configuration holds at every moment.
    pub(super) fn configure(
        &mut self,
        config: &Config,
        marks: &Marks,
        ttl: Duration,
    ) -> Result<(), BpfError> {
        let networks = networks(&config.gateway.deny, &config.gateway.exempt);
        for (net, flags) in &networks {
            self.nets.insert(&key(*net), *flags, 0).map_err(refused)?;
        }
        let wanted: Vec<(u32, Address)> =
            networks.keys().map(|n| key(*n)).map(|k| (k.prefix_len(), k.data())).collect();
        let stale: Vec<Key<Address>> = self
            .nets
            .keys()
            .filter_map(Result::ok)
            .filter(|k| !wanted.contains(&(k.prefix_len(), k.data())))
            .collect();
        for key in stale {
            self.nets.remove(&key).map_err(refused)?;
        }
        self.settings.set(0, settings(config, marks, ttl), 0).map_err(refused)
    }

    /// The agent lives, at this time of `CLOCK_MONOTONIC`; 0: it does not.
    pub(super) fn beat(&mut self, now_ns: u64) -> Result<(), BpfError> {
        self.heartbeat.set(0, now_ns, 0).map_err(refused)
    }

    /// Attaches to every wanted interface that is there, and lets go of what is gone. Gives the errors of those that
    /// could not be attached to.
    pub(super) fn follow(
        &mut self,
        wanted: &[String],
        there: &BTreeMap<String, Link>,
    ) -> Vec<(String, BpfError)> {
        let gone: Vec<(String, u32)> = self
            .attached
            .iter()
            .filter(|(name, link)| {
                !wanted.contains(name) || there.get(*name).is_none_or(|l| l.index != link.index)
            })
            .map(|(name, link)| (name.clone(), link.index))
            .collect();
        for (name, index) in gone {
            self.attached.remove(&name);
            self.detach(&name, index, there.get(&name).is_some_and(|l| l.index == index));
        }
        let mut errors = Vec::new();
        for name in wanted {
            let Some(link) = there.get(name) else { continue };
            if self.attached.contains_key(name) {
                continue;
            }
            match self.attach_to(name, link) {
                Ok(()) => {
                    tracing::info!(interface = %name, attach = ?self.attach, "BPF program attached");
                    self.attached.insert(name.clone(), link.clone());
                }
                Err(error) => errors.push((name.clone(), error)),
            }
        }
        errors
    }

    fn attach_to(&mut self, name: &str, link: &Link) -> Result<(), BpfError> {
        let which = program_for(name, link.kind)?;
        let (pin, attach) = (self.link_pin(link.index), self.attach);
        let marker = self.qdisc_pin(link.index);
        match attach {
            Attach::Tcx => {
                detach_filters(name);
                let program = self.program(which)?;
                if let Ok(old) = PinnedLink::from_pin(&pin) {
                    let handed_on = SchedClassifierLink::try_from(FdLink::from(old))
                        .map_err(refused)
                        .and_then(|old| program.attach_to_link(old).map_err(refused));
                    if let Ok(id) = handed_on {
                        // the pin keeps the link; our descriptor of it is not needed
                        drop(program.take_link(id).map_err(refused)?);
                        return Ok(());
                    }
                    // the device of that index went away, and the link with it
                    remove(&pin)?;
                }
                // first, so that programs behind it see our marks and cannot hide packets from it
                let order = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program
                    .attach_with_options(name, TcAttachType::Ingress, order)
                    .map_err(refused)?;
                let link =
                    FdLink::try_from(program.take_link(id).map_err(refused)?).map_err(refused)?;
                link.pin(&pin).map_err(refused)?;
            }
            Attach::Clsact => {
                if pin.exists() {
                    remove(&pin)?;
                }
                detach_filters(name);
                match qdisc(libc::RTM_NEWQDISC, link.index) {
                    Ok(()) => {
                        // remembers that the qdisc is ours to remove
                        if !marker.exists() {
                            self.heartbeat_pin(&marker)?;
                        }
                    }
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(e) => return Err(BpfError::Refused(format!("clsact on {name}: {e}"))),
                }
                let program = self.program(which)?;
                let options = TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: TcHandle::from(1),
                    ..NlOptions::default()
                });
                let id = program
                    .attach_with_options(name, TcAttachType::Ingress, options)
                    .map_err(refused)?;
                // dropping it would detach it: it stays when the agent dies
                std::mem::forget(program.take_link(id).map_err(refused)?);
            }
        }
        Ok(())
    }

    fn heartbeat_pin(&self, path: &Path) -> Result<(), BpfError> {
        let map = MapData::from_pin(self.pins.join(names::HEARTBEAT)).map_err(refused)?;
        map.pin(path).map_err(refused)
    }

    fn detach(&self, name: &str, index: u32, is_there: bool) {
        let _ = fs::remove_file(self.link_pin(index));
        let marker = self.qdisc_pin(index);
        if is_there {
            detach_filters(name);
            if marker.exists() {
                let _ = qdisc(libc::RTM_DELQDISC, index);
            }
        }
        let _ = fs::remove_file(marker);
    }

    // a bpffs takes no dots, so interface names are not used
    fn link_pin(&self, index: u32) -> PathBuf {
        self.pins.join(format!("link_{index}"))
    }

    fn qdisc_pin(&self, index: u32) -> PathBuf {
        self.pins.join(format!("clsact_{index}"))
    }

    /// Removes the pins of other builds, whose programs go with them.
    pub(super) fn remove_others(&self) -> Result<(), BpfError> {
        for other in builds(&self.base)? {
            if other != self.pins {
                tracing::info!(pins = %other.display(), "replacing the BPF programs of another build");
                // their qdiscs are ours now
                for index in qdiscs(&other) {
                    let marker = self.qdisc_pin(index);
                    if self.attach == Attach::Clsact && !marker.exists() {
                        self.heartbeat_pin(&marker)?;
                    } else if self.attach == Attach::Tcx {
                        let _ = qdisc(libc::RTM_DELQDISC, index);
                    }
                }
                remove_all(&other)?;
            }
        }
        Ok(())
    }

    /// The maps that the gateway needs, as descriptors of their own.
    pub(super) fn descriptors(&self) -> Result<Vec<(&'static str, OwnedFd)>, BpfError> {
        [names::FLOWS, names::KILL, names::EVENTS, names::COUNTERS, names::HEARTBEAT]
            .into_iter()
            .map(|name| {
                let map = MapData::from_pin(self.pins.join(name)).map_err(refused)?;
                let fd = map.fd().as_fd().try_clone_to_owned().map_err(refused)?;
                Ok((name, fd))
            })
            .collect()
    }
}

/// Removes everything that any build pinned or attached; gives what was removed.
pub(super) fn cleanup(
    base: &Path,
    there: &BTreeMap<String, Link>,
) -> Result<Vec<String>, BpfError> {
    let mut removed = Vec::new();
    for (name, link) in there {
        if detach_filters(name) {
            removed.push(format!("BPF filter on {name}"));
        }
        for pins in builds(base)? {
            if qdiscs(&pins).contains(&link.index) && qdisc(libc::RTM_DELQDISC, link.index).is_ok()
            {
                removed.push(format!("clsact qdisc on {name}"));
            }
        }
    }
    for pins in builds(base)? {
        remove_all(&pins)?;
        removed.push(format!("BPF pins {}", pins.display()));
    }
    // the configured directory itself: ours if it was empty but for builds
    let _ = fs::remove_dir(base);
    Ok(removed)
}

/// The builds whose pins are there.
fn builds(base: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(BpfError::Pin { path: base.to_owned(), error }),
    };
    Ok(entries
        .filter_map(Result::ok)
        .filter(|e| e.file_name().to_string_lossy().starts_with("build_"))
        .map(|e| e.path())
        .collect())
}

/// The interfaces, by index, that a build gave a clsact qdisc.
fn qdiscs(pins: &Path) -> Vec<u32> {
    fs::read_dir(pins)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().to_string_lossy().strip_prefix("clsact_")?.parse().ok())
        .collect()
}

fn remove(path: &Path) -> Result<(), BpfError> {
    fs::remove_file(path).map_err(|error| BpfError::Pin { path: path.to_owned(), error })
}

fn remove_all(pins: &Path) -> Result<(), BpfError> {
    let failed = |error| BpfError::Pin { path: pins.to_owned(), error };
    for entry in fs::read_dir(pins).map_err(failed)? {
        fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    fs::remove_dir(pins).map_err(failed)
}

/// Removes our filters from a clsact qdisc; gives whether there were any.
fn detach_filters(interface: &str) -> bool {
    // "none of that name" and "no such qdisc" are what is wanted
    [names::PROGRAM_L2, names::PROGRAM_L3]
        .map(|name| tc::qdisc_detach_program(interface, TcAttachType::Ingress, name).is_ok())
        .contains(&true)
}

/// Adds or removes the clsact qdisc.
fn qdisc(kind: u16, index: u32) -> io::Result<()> {
    /// `TC_H_CLSACT`
    const PARENT: u32 = 0xffff_fff1;
    /// `TC_H_MAKE(TC_H_CLSACT, 0)`
    const HANDLE: u32 = 0xffff_0000;
    const TCA_KIND: u16 = 1;
    // struct tcmsg: family and padding, index, handle, parent, info
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&HANDLE.to_ne_bytes());
    fixed[12..16].copy_from_slice(&PARENT.to_ne_bytes());
    let flags = if kind == libc::RTM_NEWQDISC { libc::NLM_F_CREATE | libc::NLM_F_EXCL } else { 0 };
    Socket::open(Family::Route, 0)?
        .request(Message::new(kind, flags, &fixed).string(TCA_KIND, "clsact"))
}

/// The program for a device, by how its packets begin (`linux/if_arp.h`).
fn program_for(interface: &str, kind: u16) -> Result<&'static str, BpfError> {
    const ARPHRD_NONE: u16 = 0xfffe;
    const ARPHRD_RAWIP: u16 = 519;
    match kind {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(names::PROGRAM_L2),
        libc::ARPHRD_PPP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_NONE
        | ARPHRD_RAWIP => Ok(names::PROGRAM_L3),
        kind => Err(BpfError::Device { interface: interface.to_owned(), kind }),
    }
}

/// Whether the kernel has tcx (6.6).
pub(super) fn tcx() -> bool {
    kernel_version() >= (6, 6)
}

/// Version of the running kernel.
pub(super) fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the object was there when this program was built.
pub(super) fn is_built() -> bool {
    embedded::OBJECT.is_some()
}

/// Whether the directory, or the nearest above it that exists, is on a bpffs.
pub(super) fn require_bpffs(base: &Path) -> Result<(), BpfError> {
    /// `BPF_FS_MAGIC`
    const MAGIC: u64 = 0xcafe_4a11;
    let there = base.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let is_bpffs = rustix::fs::statfs(there).is_ok_and(|s| s.f_type as u64 & 0xffff_ffff == MAGIC);
    if is_bpffs {
        return Ok(());
    }
    let mount = base.parent().unwrap_or(base).to_owned();
    Err(BpfError::NoBpffs { path: base.to_owned(), mount })
}

fn settings(config: &Config, marks: &Marks, ttl: Duration) -> Settings {
    let mut settings = Settings {
        ttl_ns: ttl.as_nanos() as u64,
        mask: marks.mask,
        bypass: marks.bypass,
        down: marks.down,
        reset: marks.reset,
        ..Settings::NONE
    };
    if let Some(limit) = config.gateway.rate_limit {
        let each = 1_000_000_000 / u64::from(limit.per_second.get());
        settings.rate_ns = each.max(1);
        settings.burst_ns = u64::from(limit.burst.get() - 1) * each;
    }
    for port in config.ftp.all_ports().chain(config.smtp.all_ports()) {
        settings.add_port(port.get());
    }
    settings
}

/// The networks with their flags; a longer prefix has the flags of those that contain it, since only the longest is found.
fn networks(deny: &[IpNet], exempt: &[IpNet]) -> BTreeMap<IpNet, u32> {
    let lists = [(deny, net::DENY), (exempt, net::EXEMPT)];
    let mut all = BTreeMap::new();
    for (nets, _) in lists {
        for net in nets {
            let net = net.trunc();
            let flags = lists
                .iter()
                .filter(|(nets, _)| nets.iter().any(|other| other.contains(&net)))
                .fold(0, |flags, (_, flag)| flags | flag);
            all.insert(net, flags);
        }
    }
    all
}

fn key(net: IpNet) -> Key<Address> {
    let extra = if matches!(net.network(), IpAddr::V4(_)) { Address::V4_PREFIX } else { 0 };
    Key::new(extra + u32::from(net.prefix_len()), net.network().into())
}

/// What aya or the kernel says, as one line that keeps the cause; a lack of permission gets a name.
fn refused<E: std::error::Error + 'static>(error: E) -> BpfError {
    let mut text = error.to_string();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(libc::EPERM)
        {
            return BpfError::Permission;
        }
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    tracing::debug!(error = %text, "BPF");
    // a verifier log says in its last lines what it does not like; the debug log has it whole
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let short = match lines.as_slice() {
        [first, .., before, last] if first.contains("Verifier") => {
            let call = first.split(". Verifier").next().unwrap_or_default();
            format!("{call}: {before}: {last}")
        }
        [first, ..] => (*first).to_owned(),
        [] => String::new(),
    };
    BpfError::Refused(short.chars().take(500).collect())
}

/// A map from a descriptor that was handed over.
pub(super) fn adopt(fd: OwnedFd) -> Result<Map, MapError> {
    Map::from_map_data(MapData::from_fd(fd)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_knows_all_that_contain_it() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let deny = nets(&["10.0.0.0/8", "10.1.2.3/32", "fd00::/8"]);
        let exempt = nets(&["10.1.0.0/16", "2001:db8::/32"]);
        let all = networks(&deny, &exempt);
        let flags = |net: &str| all[&net.parse::<IpNet>().unwrap()];
        assert_eq!(flags("10.0.0.0/8"), net::DENY);
        assert_eq!(flags("10.1.0.0/16"), net::DENY | net::EXEMPT);
        assert_eq!(flags("10.1.2.3/32"), net::DENY | net::EXEMPT);
        assert_eq!(flags("2001:db8::/32"), net::EXEMPT);
    }

    #[test]
    fn ipv4_prefixes_are_mapped() {
        let k = key("192.0.2.0/24".parse().unwrap());
        assert_eq!((k.prefix_len(), k.data()), (120, Address::from(IpAddr::from([192, 0, 2, 0]))));
        assert_eq!(key("::/0".parse().unwrap()).prefix_len(), 0);
    }

    #[test]
    fn devices_have_their_program() {
        assert_eq!(program_for("eth0", 1).unwrap(), names::PROGRAM_L2);
        assert_eq!(program_for("wg0", 0xfffe).unwrap(), names::PROGRAM_L3);
        assert_eq!(program_for("ppp0", 512).unwrap(), names::PROGRAM_L3);
        assert!(program_for("can0", 280).is_err());
    }
}
