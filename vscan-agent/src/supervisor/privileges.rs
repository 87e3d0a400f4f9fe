//! What each of the three processes may do, and how it comes to be no more than that.
//!
//! | process | effective | why |
//! |---|---|---|
//! | supervisor | CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON | nftables, routes; load BPF programs that read packets |
//! | gateway | CAP_NET_RAW, CAP_NET_BIND_SERVICE | transparent sockets and marks; active FTP from port 20 |
//! | scanner | none | |
//!
//! The supervisor also keeps the gateway's two as permitted, to hand them on to a restarted gateway, and
//! CAP_SETPCAP, to take everything else out of its children's bounding sets.
//! See capabilities(7), "Ambient" and "securebits".

use caps::{CapSet, Capability, CapsHashSet};
use rustix::{process::Signal, thread::CapabilitiesSecureBits};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::Command,
};

/// Effective capabilities of the supervisor once everything is set up.
pub const SUPERVISOR: &[Capability] =
    &[Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];

/// All capabilities of the gateway.
pub const GATEWAY: &[Capability] = &[Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE];

/// All capabilities of the scanner.
pub const SCANNER: &[Capability] = &[];

/// Privileges that are missing or cannot be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Not started with enough.
    #[error(
        "vscan run lacks {missing}: start it as root, or by the shipped systemd unit, \
         or with these as ambient capabilities"
    )]
    Missing {
        /// The names of the capabilities.
        missing: String,
    },
    /// The kernel refused a change.
    #[error("capabilities cannot be changed: {0}")]
    Change(String),
}

impl From<caps::errors::CapsError> for PrivilegeError {
    fn from(error: caps::errors::CapsError) -> Self {
        Self::Change(error.to_string())
    }
}

/// Checks at the start that nothing needed is missing, and that user id 0 alone gives no privilege.
///
/// CAP_BPF and CAP_PERFMON are not asked for here: without them nftables steers alone, if the
/// configuration allows it.
///
/// # Errors
/// [`PrivilegeError::Missing`].
pub fn prepare() -> Result<(), PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let missing: Vec<String> = [Capability::CAP_NET_ADMIN]
        .iter()
        .chain(GATEWAY)
        .filter(|capability| !permitted.contains(capability))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(PrivilegeError::Missing { missing: missing.join(", ") });
    }
    if permitted.contains(&Capability::CAP_SETPCAP) {
        let bits = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
        rustix::thread::set_capabilities_secure_bits(bits)
            .map_err(|error| PrivilegeError::Change(error.to_string()))?;
    }
    Ok(())
}

/// Gives up everything that is not needed. No thread may exist yet: each would keep what it has.
///
/// # Errors
/// [`PrivilegeError::Change`].
pub fn settle() -> Result<(), PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet =
        SUPERVISOR.iter().chain(GATEWAY).chain(&[Capability::CAP_SETPCAP]).copied().collect();
    let keep: CapsHashSet = keep.intersection(&permitted).copied().collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported() {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    let effective: CapsHashSet =
        SUPERVISOR.iter().copied().filter(|capability| keep.contains(capability)).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    let inheritable = keep.difference(&[Capability::CAP_SETPCAP].into()).copied().collect();
    caps::set(None, CapSet::Inheritable, &inheritable)?;
    // nft(8) is spawned with it.
    caps::raise(None, CapSet::Ambient, Capability::CAP_NET_ADMIN)?;
    Ok(())
}

/// Gives up everything: scanning mailboxes needs no privilege. No thread may exist yet.
///
/// # Errors
/// [`PrivilegeError::Change`].
pub fn renounce() -> Result<(), PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // Otherwise user id 0 would have everything again behind the next execve(2).
        let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED;
        rustix::thread::set_capabilities_secure_bits(bits)
            .map_err(|error| PrivilegeError::Change(error.to_string()))?;
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Permitted)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(())
}

/// Makes the child of `command` run with exactly `capabilities`, die with this thread, never gain
/// privileges, and inherit `descriptors` under their present numbers.
///
/// The descriptors are closed here when `command` is dropped.
pub fn confine(
    command: &mut Command,
    capabilities: &'static [Capability],
    descriptors: Vec<OwnedFd>,
) {
    let parent = rustix::process::getpid();
    let setup = move || {
        for descriptor in &descriptors {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        let wanted: CapsHashSet = capabilities.iter().copied().collect();
        let change = |error: caps::errors::CapsError| io::Error::other(error.to_string());
        caps::clear(None, CapSet::Ambient).map_err(change)?;
        let permitted = caps::read(None, CapSet::Permitted).map_err(change)?;
        if permitted.contains(&Capability::CAP_SETPCAP) {
            caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(change)?;
            for capability in caps::runtime::thread_all_supported().difference(&wanted) {
                caps::drop(None, CapSet::Bounding, *capability).map_err(change)?;
            }
        }
        caps::set(None, CapSet::Effective, &wanted).map_err(change)?;
        caps::set(None, CapSet::Permitted, &wanted).map_err(change)?;
        caps::set(None, CapSet::Inheritable, &wanted).map_err(change)?;
        for capability in capabilities {
            caps::raise(None, CapSet::Ambient, *capability).map_err(change)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the signal was asked for.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::other("the supervisor is gone"));
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec of a process whose only thread calls this; it
    // makes system calls and small allocations, and touches no lock that another thread could hold.
    unsafe {
        command.pre_exec(setup);
    }
}

/// The number under which a child inherits `descriptor`, for its command line.
pub fn inherited_number(descriptor: &OwnedFd) -> String {
    descriptor.as_raw_fd().to_string()
}
