//! Proof of the sandbox: children under the very functions that confine workers try what they must not do.
//!
//! Without the test harness, because only a process of one thread may fork.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::undocumented_unsafe_blocks,
    reason = "a test without harness: a failure is a panic; raw system calls are what it tries"
)]

use rustix::process::{WaitOptions, getpid, waitpid};
use std::net::TcpStream;
use std::sync::atomic::{AtomicI32, Ordering};
use vscan_scan::process::crew::{Cores, Crew};
use vscan_scan::process::sandbox;
use vscan_scan::process::sys::{self, Forked};

/// How a child ended: its exit code or its signal.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Code(i32),
    Signal(i32),
}

fn confined(seccomp: bool, what: impl FnOnce() -> i32) -> End {
    child(seccomp, |_| what(), 0)
}

/// The same on a helper of the worker: its own thread does nothing.
fn by_helper(seccomp: bool, what: Attempt) -> End {
    let lend = |crew: Crew| {
        let said = AtomicI32::new(i32::MIN);
        crew.lend(&|_| said.store(what(), Ordering::SeqCst), || {
            while said.load(Ordering::SeqCst) == i32::MIN {
                std::hint::spin_loop();
            }
        });
        said.into_inner()
    };
    child(seccomp, lend, 1)
}

/// Forks a child with so many helpers, confined in the order in which workers are.
fn child(seccomp: bool, what: impl FnOnce(Crew) -> i32, helpers: usize) -> End {
    let parent = getpid();
    match sys::fork().expect("fork") {
        Forked::Child => {
            let filter = sandbox::worker_filter(std::process::id()).expect("filter");
            sandbox::confine_worker(parent, 64 << 20).expect("confine");
            let crew = Crew::start(helpers, Cores::alone(2)).expect("helpers");
            if seccomp {
                sandbox::filter(&filter).expect("seccomp");
            }
            sys::exit(what(crew))
        }
        Forked::Parent(pid) => {
            let (_, status) =
                waitpid(Some(pid), WaitOptions::empty()).expect("waitpid").expect("status");
            match status.exit_status() {
                Some(code) => End::Code(code),
                None => End::Signal(status.terminating_signal().expect("a signal")),
            }
        }
    }
}

type Attempt = fn() -> i32;

const SIGSYS: End = End::Signal(libc::SIGSYS);

fn main() {
    sys::forget_backtrace();
    // What a worker does is allowed.
    assert_eq!(confined(true, || 7), End::Code(7));
    assert_eq!(
        confined(true, || vec![1u8; 8 << 20].iter().map(|&b| i32::from(b)).sum::<i32>() >> 20),
        End::Code(8)
    );
    assert_eq!(
        confined(true, || std::time::Instant::now().elapsed().as_secs() as i32),
        End::Code(0)
    );
    println!("allowed: memory and time");

    // An error output that is a file takes nothing, and nobody dies of it.
    let error_output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).expect("dup");
    let file = tempfile::tempfile().expect("a file");
    rustix::stdio::dup2_stderr(&file).expect("dup2");
    let told =
        confined(true, || i32::from(rustix::io::write(rustix::stdio::stderr(), b"x").is_ok()));
    rustix::stdio::dup2_stderr(&error_output).expect("dup2");
    assert_eq!(told, End::Code(0), "a write to a file as the error output");
    println!("refused: a file as the error output");

    // What reaches outside ends it.
    let forbidden: [(&str, Attempt); 13] = [
        ("open", || i32::from(std::fs::File::open("/etc/passwd").is_ok())),
        ("create", || i32::from(std::fs::File::create("/tmp/vscan-sandbox-test").is_ok())),
        ("readdir", || i32::from(std::fs::read_dir("/proc").is_ok())),
        ("unlink", || i32::from(std::fs::remove_file("/nonexistent").is_ok())),
        ("socket and connect", || i32::from(TcpStream::connect("127.0.0.1:9").is_ok())),
        ("bind", || i32::from(std::net::UdpSocket::bind("127.0.0.1:0").is_ok())),
        ("unix socket", || i32::from(std::os::unix::net::UnixStream::pair().is_ok())),
        ("exec", || i32::from(std::process::Command::new("/bin/true").spawn().is_ok())),
        ("thread", || i32::from(std::thread::Builder::new().spawn(|| ()).is_ok())),
        ("kill", || unsafe { libc::kill(1, 0) }),
        ("ptrace", || unsafe { libc::ptrace(libc::PTRACE_TRACEME) as i32 }),
        ("executable memory", || {
            let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    rwx,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            i32::from(at != libc::MAP_FAILED)
        }),
        ("write to what is not the error output", || unsafe {
            libc::write(1, "x".as_ptr().cast(), 1) as i32
        }),
    ];
    for (what, attempt) in forbidden {
        assert_eq!(confined(true, attempt), SIGSYS, "{what}");
        assert_eq!(by_helper(true, attempt), SIGSYS, "{what}, by a helper: the whole process");
        println!("ended by the filter: {what}");
    }
    assert_eq!(by_helper(true, || 7), End::Code(7));

    // Landlock and the empty capabilities stand by themselves, should a system call be missed.
    if sandbox_has_landlock() {
        assert_eq!(
            confined(false, || i32::from(std::fs::File::open("/etc/passwd").is_ok())),
            End::Code(0)
        );
        assert_eq!(confined(false, || i32::from(std::fs::read_dir("/").is_ok())), End::Code(0));
        assert_eq!(by_helper(false, || i32::from(std::fs::read_dir("/").is_ok())), End::Code(0));
        let capable = || {
            let sets = rustix::thread::capabilities(None).expect("capabilities");
            i32::from(!sets.effective.is_empty() || !sets.permitted.is_empty())
        };
        assert_eq!(by_helper(false, capable), End::Code(0));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_ok(),
            "it can be reached from outside the sandbox"
        );
        let refused = move || {
            let error = TcpStream::connect(("127.0.0.1", port)).map(drop).err();
            error
                .map_or(1, |e| if e.kind() == std::io::ErrorKind::PermissionDenied { 0 } else { 2 })
        };
        assert_eq!(confined(false, refused), End::Code(0));
        println!("denied by landlock: files, TCP");
    }

    // More memory than the limit: an allocation that can fail does, and is told.
    let tight = || match std::hint::black_box(Vec::<u8>::new()).try_reserve_exact(256 << 20) {
        Ok(()) => 1,
        Err(_) => 0,
    };
    assert_eq!(confined(true, tight), End::Code(0));
    assert_eq!(
        confined(true, || std::hint::black_box(vec![1u8; 256 << 20]).len() as i32),
        End::Signal(libc::SIGABRT)
    );
    let without_end = || {
        let mut all = Vec::new();
        loop {
            all.push(std::hint::black_box(vec![1u8; 1 << 20]));
        }
    };
    assert_eq!(confined(true, without_end), End::Signal(libc::SIGABRT));
    let by_helper_too = || i32::from(!std::hint::black_box(vec![1u8; 256 << 20]).is_empty());
    assert_eq!(by_helper(true, by_helper_too), End::Signal(libc::SIGABRT));
    println!("bounded: memory");

    // What goes wrong by itself ends by itself, and by no system call that the filter would have to end.
    assert_eq!(confined(true, || std::process::abort()), End::Signal(libc::SIGABRT));
    assert_eq!(by_helper(true, || std::process::abort()), End::Signal(libc::SIGABRT));
    let deep = by_helper(true, || i32::from(descend(std::hint::black_box(1)) == 0));
    assert!([End::Signal(libc::SIGABRT), End::Signal(libc::SIGSEGV)].contains(&deep), "{deep:?}");
    let deep = confined(true, || i32::from(descend(std::hint::black_box(1)) == 0));
    let faults = [End::Signal(libc::SIGABRT), End::Signal(libc::SIGSEGV)];
    assert!(faults.contains(&deep), "a stack without end: {deep:?}");
    println!("ended by themselves: abort, recursion");

    // What loops is ended from outside, by the signal that nothing can hold up.
    let parent = getpid();
    let Forked::Parent(pid) = sys::fork().expect("fork") else {
        let filter = sandbox::worker_filter(std::process::id()).expect("filter");
        sandbox::confine_worker(parent, 64 << 20).expect("confine");
        sandbox::filter(&filter).expect("seccomp");
        loop {
            std::hint::spin_loop();
        }
    };
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("waitpid").expect("status");
    assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
    println!("ended by order: a loop");
}

/// A recursion without end.
fn descend(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 1024]);
    if depth == 0 { 0 } else { descend(depth + 1) + room[(depth % 1024) as usize] }
}

/// Whether this kernel has landlock, asked of the kernel and not of the code under test.
fn sandbox_has_landlock() -> bool {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    version >= 4
}
