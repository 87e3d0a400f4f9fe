//! What zygote and workers may not do: capabilities, landlock, resource limits, seccomp.
//!
//! The zygote drops what it can once the rules are loaded. A worker then keeps memory, time, its one socket
//! and the error output; any other system call ends it.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::{Resource, Rlimit, Signal, getppid, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition as Cond, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::io;

/// A sandbox that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{0}: {1}")]
    Call(&'static str, #[source] io::Error),
    /// Landlock refused.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter cannot be built or installed.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The parent ended before the sandbox stood.
    #[error("the parent process is gone")]
    Orphan,
}

fn call<T>(what: &'static str, result: rustix::io::Result<T>) -> Result<T, Error> {
    result.map_err(|e| Error::Call(what, e.into()))
}

/// Drops every capability from every set, and sets no_new_privs.
///
/// # Errors
/// When a capability is left. The bounding set can only be emptied by a process with CAP_SETPCAP; without
/// it, no_new_privs already keeps its contents out of reach.
pub fn drop_capabilities() -> Result<(), Error> {
    call("no_new_privs", rustix::thread::set_no_new_privs(true))?;
    for capability in CapabilitySet::all().iter() {
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    call("ambient capabilities", rustix::thread::clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    call("capabilities", rustix::thread::set_capabilities(None, sets))?;
    let left = call("capabilities", rustix::thread::capabilities(None))?;
    if left == sets {
        Ok(())
    } else {
        Err(Error::Call("capabilities", io::Error::other("some are left")))
    }
}

/// Denies the file system and TCP, and the abstract sockets and processes outside, as far as this kernel's
/// landlock goes. False: the kernel has none.
///
/// # Errors
/// When landlock is there but refuses.
pub fn landlock() -> Result<bool, Error> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Takes a worker's rights away; [`filter`] comes after it, and its helpers start between the two: a thread has what
/// the one has that makes it. `data_bytes` bounds
/// private writable memory (RLIMIT_DATA; RLIMIT_AS would count the address space that WebAssembly reserves).
///
/// # Errors
/// When any of it cannot be had; the worker then must not read objects.
pub fn confine_worker(parent: rustix::process::Pid, data_bytes: u64) -> Result<(), Error> {
    call("PR_SET_PDEATHSIG", rustix::process::set_parent_process_death_signal(Some(Signal::KILL)))?;
    if getppid() != Some(parent) {
        return Err(Error::Orphan);
    }
    // the error output may be a file: what cannot be said there is no reason to die
    super::sys::ignore_file_size_signal();
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        // Its socket, the standard three, an object, and one to spare for the duplicate in flight.
        (Resource::Nofile, 8),
        (Resource::Data, data_bytes),
    ] {
        call(
            "setrlimit",
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }),
        )?;
    }
    drop_capabilities()?;
    landlock()?;
    Ok(())
}

/// Installs a filter in all threads at once; the last door to close.
///
/// # Errors
/// When the kernel refuses it.
pub fn filter(filter: &BpfProgram) -> Result<(), Error> {
    Ok(seccompiler::apply_filter_all_threads(filter)?)
}

/// The system calls of a worker: memory, time, its descriptors. Everything else ends the process.
///
/// # Errors
/// On an architecture for which there are no filters.
pub fn worker_filter(own_pid: u32) -> Result<BpfProgram, Error> {
    let free = [
        // One request and one report at a time, and the object behind a descriptor.
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_fstat,
        libc::SYS_close,
        // Memory; mmap and mprotect are below.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        // Time and locks.
        libc::SYS_clock_gettime,
        libc::SYS_futex,
        libc::SYS_restart_syscall,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        // Signals that the process raises itself: traps of WebAssembly, abort.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        free.into_iter().map(|call| (call, Vec::new())).collect();
    let arg = |index, len, op, value| Cond::new(index, len, op, value);
    let exec = libc::PROT_EXEC as u64;
    // No memory that can be executed beyond what was there at the fork.
    let not_executable = |index| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        Ok(vec![SeccompRule::new(vec![arg(index, Len::Dword, Op::MaskedEq(exec), 0)?])?])
    };
    let build = || -> Result<BpfProgram, seccompiler::BackendError> {
        rules.insert(libc::SYS_mmap, not_executable(2)?);
        rules.insert(libc::SYS_mprotect, not_executable(2)?);
        // Messages of a panic or an abort.
        rules
            .insert(libc::SYS_write, vec![SeccompRule::new(vec![arg(0, Len::Dword, Op::Eq, 2)?])?]);
        rules.insert(
            libc::SYS_tgkill,
            vec![SeccompRule::new(vec![arg(0, Len::Dword, Op::Eq, u64::from(own_pid))?])?],
        );
        SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into()?,
        )?
        .try_into()
    };
    let program = build().map_err(seccompiler::Error::from)?;
    Ok(program)
}
