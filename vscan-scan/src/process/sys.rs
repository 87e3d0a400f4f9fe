//! fork, descriptors by number, read-only mappings and shared counters: the unsafe calls, each behind a safe function.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The parent, with the child's process id.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks a process that has one thread.
///
/// # Errors
/// Those of fork(2); `Unsupported` when there is a second thread, whose locks the child would inherit
/// without their owner.
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    // Without a view of /proc (after landlock) the caller has checked before.
    if threads.is_ok_and(|n| n != 1) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork with more than one thread"));
    }
    // SAFETY: the process has one thread, so the child's copy of memory and locks is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid)
            .map(Forked::Parent)
            .ok_or_else(|| io::Error::other("fork returned no process")),
    }
}

/// Switches backtraces off: the runtime would look for source files where a worker may not look, and end as
/// a breach of the sandbox what was an abort for want of memory. To be called first in `main`.
pub fn forget_backtrace() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: no other thread exists that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
}

/// Gives memory that was freed back to the system: what lies free in a process that forks is copied as soon as a child
/// takes it into use.
pub fn trim() {
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes over a descriptor that the parent process left open at this number.
///
/// # Errors
/// When nothing is open there.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD reads a flag and is defined for every number.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("descriptor {number} is not open"),
        ));
    }
    // SAFETY: it is open, and this function is called once for each number named on the command line,
    // before anything else in the process opens descriptors.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Moves the two descriptors to 3 and 4 and closes all others but 0, 1 and 2. For a child that never returns to
/// code that owns one of the others.
///
/// # Errors
/// Those of dup3(2), fcntl(2) and close_range(2).
pub fn keep_only(socket: OwnedFd, pipe: OwnedFd) -> io::Result<(BorrowedFd<'static>, OwnedFd)> {
    // Out of the way first: either may lie where the other has to go.
    let high =
        [rustix::io::fcntl_dupfd_cloexec(&socket, 5)?, rustix::io::fcntl_dupfd_cloexec(&pipe, 5)?];
    std::mem::forget((socket, pipe));
    for (fd, number) in high.iter().zip([3, 4]) {
        // SAFETY: descriptors 3 and 4 of the child are owned by values that the child never drops.
        if unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    std::mem::forget(high);
    // SAFETY: as above; the owners of the closed descriptors are never dropped in the child.
    if unsafe { libc::close_range(5, libc::c_uint::MAX, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: 3 is open now and stays so until the process ends; 4 is open and nothing else owns it.
    Ok(unsafe { (BorrowedFd::borrow_raw(3), OwnedFd::from_raw_fd(4)) })
}

/// A write past `RLIMIT_FSIZE` fails with `EFBIG` from now on, instead of ending the process (SIGXFSZ, setrlimit(2)).
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is no handler: nothing of ours runs in a signal's context.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Makes the calling thread, and those that it starts, batch work (`SCHED_BATCH`, sched(7)): who computes for a while
/// interrupts nobody when it is woken, such as the session's thread that has just given it an object.
pub fn compute() {
    let none = libc::sched_param { sched_priority: 0 };
    // It may be forbidden to us, and is a matter of speed alone.
    // SAFETY: the parameters are valid for the call, which only reads them.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) };
}

/// So many zeros that all processes share which this one forks. They stay until the process ends.
///
/// # Errors
/// Those of mmap(2).
pub fn shared_counters(count: usize) -> io::Result<&'static [AtomicU32]> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let bytes = count.max(1) * size_of::<AtomicU32>();
    // SAFETY: a new mapping at an address that the kernel chooses; nothing else refers to it.
    let at = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED)?
    };
    // SAFETY: pages of zeros, aligned, long enough and never unmapped; atomics may be written by other processes too.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), count) })
}

/// Ends the process without running destructors or handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A read-only view of a file.
#[derive(Debug)]
pub struct Mapping {
    at: *mut std::ffi::c_void,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes, more than none.
    ///
    /// The file must not shrink: a read past its end is SIGBUS. A sealed memfd cannot; an unlinked spool file
    /// is written by the gateway alone and complete. Should it shrink all the same, or should its disk fail,
    /// the worker dies and the object's verdict is `error`: no bytes are taken for others.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: impl AsFd, len: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else refers to it.
        let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, file, 0)? };
        Ok(Self { at, len })
    }

    /// The same without reading the file ahead: for one of which little is asked. The same holds of shrinking.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn sparse(file: impl AsFd, len: usize) -> io::Result<Self> {
        // SAFETY: as above.
        let at =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
        Ok(Self { at, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for `len` bytes as long as `self` lives. The gateway does not write to an
        // object that it has handed over (memfd: sealed against it).
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, to which no reference is left.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}
