//! The real scanner process, started as the supervisor starts it, and a client as the gateway is one.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use vscan_scan::channel;
use vscan_scan::report::Report;
use vscan_scan::wire::{
    Answer, Ask, Content, DATAGRAM_MAX, ObjectKind, Request, Status, ToGateway, ToZygote,
};

/// The EICAR test file, put together so that no scanner stops at this source.
pub(crate) fn eicar() -> Vec<u8> {
    [&b"X5O!P%@AP[4\\PZX54(P^)7CC)7}"[..], b"$EICAR-STANDARD-ANTIVIRUS-", b"TEST-FILE!$H+H*"]
        .concat()
}

pub(crate) fn rules() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/rules")
}

/// A scanner process with its control socket.
pub(crate) struct Scanner {
    child: Child,
    pub(crate) control: Option<OwnedFd>,
    pub(crate) status: Status,
    buffer: Vec<u8>,
}

/// The gateway's end of a worker.
pub(crate) struct Worker {
    pub(crate) slot: u32,
    pub(crate) pid: i32,
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Scanner {
    pub(crate) fn start(rules: &[PathBuf], workers: u32, limits: &str) -> Self {
        Self::start_with(rules, workers, limits, 1)
    }

    /// The same with so many threads for a large part.
    pub(crate) fn start_with(rules: &[PathBuf], workers: u32, limits: &str, threads: u32) -> Self {
        let (ours, theirs) = channel::pair().unwrap();
        // The shell moves its input and output to the numbers that the scanner is told.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null")
            .arg(env!("CARGO_BIN_EXE_vscan-scanner"))
            .args(["--control-fd", "3", "--status-fd", "4", "--workers", &workers.to_string()])
            .args(["--threads", &threads.to_string()])
            .args(["--limits", limits, "--rules"])
            .args(rules)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let status = serde_json::from_str(&line).unwrap();
        Self { child, control: Some(ours), status, buffer: vec![0; DATAGRAM_MAX] }
    }

    pub(crate) fn shipped(workers: u32) -> Self {
        let scanner = Self::start(&[rules()], workers, "{}");
        assert!(matches!(scanner.status, Status::Ready { .. }), "{:?}", scanner.status);
        scanner
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next message of the zygote.
    pub(crate) fn next(&mut self) -> (ToGateway, Option<OwnedFd>) {
        let control = self.control.as_ref().unwrap();
        readable(control);
        channel::recv(control, &mut self.buffer).unwrap().expect("the zygote ended")
    }

    pub(crate) fn worker(&mut self) -> Worker {
        match self.next() {
            (ToGateway::Worker { slot, pid }, Some(socket)) => Worker::new(slot, pid, socket),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn exited(&mut self) -> (u32, i32, String) {
        match self.next() {
            (ToGateway::Exited { slot, pid, cause }, None) => (slot, pid, cause),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn kill(&self, worker: &Worker) {
        let order = ToZygote::Kill { slot: worker.slot, pid: worker.pid };
        channel::send(self.control.as_ref().unwrap(), &order, None).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    pub(crate) fn new(slot: u32, pid: i32, socket: OwnedFd) -> Self {
        Self { slot, pid, socket, buffer: vec![0; DATAGRAM_MAX] }
    }

    pub(crate) fn send(&mut self, kind: ObjectKind, name: &str, data: &[u8], inline: bool) {
        self.ask(Ask::Report { detail: false }, kind, name, data, inline);
    }

    pub(crate) fn ask(
        &mut self,
        ask: Ask,
        kind: ObjectKind,
        name: &str,
        data: &[u8],
        inline: bool,
    ) {
        let content = if inline {
            Content::Inline(data.to_vec())
        } else {
            Content::Descriptor { len: data.len() as u64 }
        };
        let request = Request {
            id: 1,
            object: None,
            ask,
            kind,
            name: Some(name.into()),
            passwords: Vec::new(),
            time_limit_ms: 60_000,
            content,
        };
        let file = (!inline).then(|| memfd(data));
        channel::send(&self.socket, &request, file.as_ref().map(AsFd::as_fd)).unwrap();
    }

    /// Asks for a look at an object that arrives: these are the bytes that are there.
    pub(crate) fn look(&mut self, number: u64, file: &File, len: u64) -> Option<Answer> {
        self.request(Some(number), Ask::Ahead, Some(file), len)
    }

    /// Asks for the report of an object that has arrived.
    pub(crate) fn report(&mut self, number: Option<u64>, file: &File, len: u64) -> Report {
        match self.request(number, Ask::Report { detail: false }, Some(file), len) {
            Some(Answer::Report(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn request(
        &mut self,
        object: Option<u64>,
        ask: Ask,
        file: Option<&File>,
        len: u64,
    ) -> Option<Answer> {
        let request = Request {
            id: 1,
            object,
            ask,
            kind: ObjectKind::File,
            name: Some("x".into()),
            passwords: Vec::new(),
            time_limit_ms: 60_000,
            content: Content::Descriptor { len },
        };
        channel::send(&self.socket, &request, file.map(AsFd::as_fd)).unwrap();
        self.any_answer()
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// None: the worker ended.
    pub(crate) fn answer(&mut self) -> Option<Report> {
        match self.any_answer() {
            Some(Answer::Report(report)) => Some(*report),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn any_answer(&mut self) -> Option<Answer> {
        readable(&self.socket);
        match channel::recv_answer(&self.socket, &mut self.buffer, 1) {
            Ok(answer) => answer,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => None,
            other => panic!("{other:?}"),
        }
    }

    /// The threads beside the one that reads requests.
    pub(crate) fn helpers(&self) -> Vec<PathBuf> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let mut tasks: Vec<PathBuf> = tasks.map(|task| task.unwrap().path()).collect();
        tasks.retain(|task| !task.ends_with(self.pid.to_string()));
        tasks
    }

    pub(crate) fn scan(&mut self, kind: ObjectKind, name: &str, data: &[u8]) -> Report {
        self.send(kind, name, data, data.len() <= vscan_scan::wire::INLINE_MAX);
        self.answer().expect("the worker ended")
    }
}

/// A sealed memfd, as the gateway makes them.
pub(crate) fn memfd(data: &[u8]) -> File {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let mut file = File::from(
        memfd_create("object", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap(),
    );
    file.write_all(data).unwrap();
    fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )
    .unwrap();
    file
}

/// Waits until something can be read, or fails: no test hangs.
pub(crate) fn readable(fd: impl AsFd) {
    let fd = fd.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })),
        Ok(1),
        "nothing came in 30 s"
    );
}
