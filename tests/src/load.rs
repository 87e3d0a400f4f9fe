//! Load: many sessions at once, and what went through in a second.

use crate::ftp::{Client, Mode, Server};
use crate::host::Host;
use crate::lab::{Family, Lab};
use crate::peers::Vsftpd;
use crate::raw::{self, Peer};
use crate::{fixtures, smtp};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one write of a stream.
const CHUNK: usize = 256 * 1024;

/// Different contents that are sent in turn, so that nobody profits from having seen one before.
const VARIANTS: usize = 32;

/// Units of work and the seconds that they took.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Files, messages or bytes.
    pub count: f64,
    /// Wall clock.
    pub seconds: f64,
}

impl Done {
    /// Per second.
    pub fn rate(self) -> f64 {
        self.count / self.seconds
    }
}

/// Settings of both networks that keep load generators from measuring themselves.
pub fn prepare(lab: &Lab) -> Result<()> {
    // Ended connections must not fill tables over a run.
    lab.gateway.sh(
        "f=/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait; [ ! -e $f ] || echo 3 > $f",
    )?;
    for host in [lab.client(), lab.server()] {
        host.sh("echo 8 > /proc/sys/net/ipv4/tcp_max_tw_buckets")?;
    }
    Ok(())
}

/// Sends as much as goes over one connection to a port that is none of ours; bytes.
pub fn stream(lab: &Lab, port: u16, time: Duration) -> Result<Done> {
    let listener = raw::listen(lab.server(), port)?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| -> Result<f64> {
            let (mut stream, _) = listener.accept()?;
            let mut buffer = vec![0; CHUNK];
            let mut bytes = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(bytes as f64),
                    count => bytes += count,
                }
            }
        });
        let to = lab.dial(Family::V4, port);
        let mut stream = lab.client().within(|| raw::connect(None, to, Duration::from_secs(5)))?;
        let block = vec![0x5a; CHUNK];
        let start = Instant::now();
        while start.elapsed() < time {
            stream.write_all(&block)?;
        }
        stream.shutdown(Shutdown::Write)?;
        // The receiver's end of file comes back: everything has arrived.
        stream.read_to_end(&mut Vec::new())?;
        let seconds = start.elapsed().as_secs_f64();
        let count = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Done { count, seconds })
    })
}

/// Downloads one file; bytes.
pub fn download(lab: &Lab, name: &str) -> Result<Done> {
    lab.client().within(|| {
        let control =
            Peer::new(raw::connect(None, lab.dial(Family::V4, 21), Duration::from_secs(5))?)?;
        let mut client = Client::greet(control, lab.client().door(), Mode::Epsv)?;
        let start = Instant::now();
        let mut bytes = 0;
        let (end, reply) =
            client.receive(&format!("RETR {name}"), &mut |piece| bytes += piece.len())?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(end == Some(raw::End::Fin) && reply.starts_with("226"), "{reply}");
        Ok(Done { count: bytes as f64, seconds })
    })
}

/// Uploads one file of zeros; bytes.
pub fn upload(lab: &Lab, name: &str, bytes: u64) -> Result<Done> {
    lab.client().within(|| {
        let control =
            Peer::new(raw::connect(None, lab.dial(Family::V4, 21), Duration::from_secs(5))?)?;
        let mut client = Client::greet(control, lab.client().door(), Mode::Epsv)?;
        let block = vec![0; CHUNK];
        let times = usize::try_from(bytes)? / CHUNK;
        let start = Instant::now();
        let reply = client.send_blocks(&format!("STOR {name}"), &block, times)?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(reply.starts_with("226"), "{reply}");
        Ok(Done { count: bytes as f64, seconds })
    })
}

/// Names and contents of the files that [`files`] downloads.
fn served(size: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..VARIANTS).map(move |variant| {
        let content = fixtures::random(size, (size + variant) as u64);
        (format!("file-{size}-{variant}"), content)
    })
}

/// Puts the files on the lab's own server that [`files`] downloads.
pub fn put_files(server: &Server, size: usize) {
    for (name, content) in served(size) {
        server.put(&name, content);
    }
}

/// Starts vsftpd with the files that [`files`] downloads, in these sizes, and a large one of zeros, all
/// in memory: a disk would be measured instead.
pub fn vsftpd(host: &Host, sizes: &[usize], large: (&str, u64)) -> Result<Vsftpd> {
    let server =
        Vsftpd::start_with(host, 21, "xferlog_enable=NO\nlog_ftp_protocol=NO\nsyslog_enable=NO\n")?;
    let stage = host.dir().join("stage");
    fs::create_dir(&stage)?;
    for &size in sizes {
        for (name, content) in served(size) {
            fs::write(stage.join(name), content)?;
        }
    }
    // Mounted where only this host sees it, so that copying is the host's to do as well.
    let (files, stage) = (server.files().display(), stage.display());
    host.sh(&format!(
        "mount -t tmpfs -o mode=777 tmpfs {files}; cp {stage}/* {files}/; rm -r {stage}; \
         truncate -s {} {files}/{}; chmod 644 {files}/*",
        large.1, large.0
    ))?;
    Ok(server)
}

/// Sessions that download and upload files of this size in turn, for this time; files.
pub fn files(lab: &Lab, sessions: usize, size: usize, time: Duration) -> Result<Done> {
    let contents: Vec<_> =
        (0..VARIANTS).map(|variant| fixtures::random(size, (size + variant) as u64)).collect();
    many(sessions, time, |number| {
        lab.client().enter()?;
        let control =
            Peer::new(raw::connect(None, lab.dial(Family::V4, 21), Duration::from_secs(5))?)?;
        let mut client = Client::greet(control, lab.client().door(), Mode::Epsv)?;
        let contents = &contents;
        let mut round = number;
        Ok(move || {
            round += 1;
            let variant = round / 2 % VARIANTS;
            if round % 2 == 0 {
                let mut bytes = 0;
                let (end, reply) = client
                    .receive(&format!("RETR file-{size}-{variant}"), &mut |piece| {
                        bytes += piece.len()
                    })?;
                ensure!(
                    bytes == size && end == Some(raw::End::Fin) && reply.starts_with("226"),
                    "{bytes} bytes came: {reply}"
                );
            } else {
                let reply = client.upload_here(&format!("up-{number}"), &contents[variant])?.reply;
                ensure!(reply.starts_with("226"), "{reply}");
            }
            Ok(())
        })
    })
}

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialogue {
    /// Waits for each reply before it sends the next command, as most clients do; many messages on a connection.
    Lockstep,
    /// As [`Dialogue::Lockstep`], with a connection for each message.
    Connecting,
    /// For all three at once (RFC 2920).
    Pipelined,
}

/// Sessions that send MIME messages of about this size, for this time; messages.
pub fn messages(
    lab: &Lab,
    sessions: usize,
    size: usize,
    dialogue: Dialogue,
    time: Duration,
) -> Result<Done> {
    let mails = mails(size);
    many(sessions, time, |number| {
        let mut sender = Sender::new(lab, &mails, number, dialogue)?;
        Ok(move || sender.send())
    })
}

/// One session that sends MIME messages of about this size, for this time; seconds that each took from MAIL to
/// its 250, ascending.
pub fn message_times(lab: &Lab, size: usize, time: Duration) -> Result<Vec<f64>> {
    let mails = mails(size);
    let taken = Mutex::new(Vec::new());
    many(1, time, |number| {
        let mut sender = Sender::new(lab, &mails, number, Dialogue::Lockstep)?;
        let taken = &taken;
        Ok(move || {
            let start = Instant::now();
            sender.send()?;
            taken
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(start.elapsed().as_secs_f64());
            Ok(())
        })
    })?;
    let mut taken = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

/// Messages with an attachment, on the wire, of about this size.
pub(crate) fn mails(size: usize) -> Vec<Vec<u8>> {
    // A third of base64 is overhead, and a message has some 400 bytes of headers and text.
    let attachment = size.saturating_sub(400) * 57 / 78;
    (0..VARIANTS)
        .map(|variant| {
            let content = fixtures::random(attachment, (size + variant) as u64);
            smtp::wire(&fixtures::message_with_attachment("load", "data.bin", &content))
        })
        .collect()
}

/// One that sends messages, in the client's network.
struct Sender<'a> {
    lab: &'a Lab,
    mails: &'a [Vec<u8>],
    round: usize,
    dialogue: Dialogue,
    /// None between two connections.
    client: Option<smtp::Client>,
}

impl<'a> Sender<'a> {
    fn new(lab: &'a Lab, mails: &'a [Vec<u8>], number: usize, dialogue: Dialogue) -> Result<Self> {
        lab.client().enter()?;
        let mut sender = Self { lab, mails, round: number, dialogue, client: None };
        if dialogue != Dialogue::Connecting {
            sender.client = Some(sender.connect()?);
        }
        Ok(sender)
    }

    fn connect(&self) -> Result<smtp::Client> {
        let to = self.lab.dial(Family::V4, 25);
        smtp::Client::on(raw::connect(None, to, Duration::from_secs(5))?)
    }

    fn send(&mut self) -> Result<()> {
        self.round += 1;
        let mail = &self.mails[self.round % VARIANTS];
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let reply = match self.dialogue {
            Dialogue::Lockstep | Dialogue::Connecting => client.send_in_steps(mail)?,
            Dialogue::Pipelined => client.send(mail)?,
        };
        ensure!(reply.starts_with("250"), "{reply}");
        match self.dialogue {
            Dialogue::Connecting => client.quit()?,
            Dialogue::Lockstep | Dialogue::Pipelined => self.client = Some(client),
        }
        Ok(())
    }
}

/// Runs workers side by side until the time is over; counts what they did.
pub(crate) fn many<W: FnMut() -> Result<()>>(
    sessions: usize,
    time: Duration,
    prepare: impl Fn(usize) -> Result<W> + Sync,
) -> Result<Done> {
    let barrier = Barrier::new(sessions);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions)
            .map(|number| {
                let (barrier, prepare) = (&barrier, &prepare);
                scope.spawn(move || -> Result<(usize, f64)> {
                    let worker = prepare(number);
                    barrier.wait();
                    let mut worker = worker?;
                    let start = Instant::now();
                    let mut count = 0;
                    while start.elapsed() < time {
                        worker()?;
                        count += 1;
                    }
                    Ok((count, start.elapsed().as_secs_f64()))
                })
            })
            .collect();
        let mut done = Done { count: 0.0, seconds: 0.0 };
        for thread in threads {
            let (count, seconds) =
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            done.count += count as f64;
            done.seconds = done.seconds.max(seconds);
        }
        Ok(done)
    })
}

/// Opens idle, logged-in FTP sessions and gives the process's growth for each, in KiB of resident memory.
pub fn idle(lab: &Lab, pid: u32, sessions: usize) -> Result<f64> {
    let open = |count: usize| -> Result<Vec<Client>> {
        (0..count)
            .map(|_| Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv))
            .collect()
    };
    // What is allocated once is not the sessions'.
    let first = open(8)?;
    let before = resident(pid)?;
    let mut held = open(sessions)?;
    for client in &mut held {
        client.control().ask("NOOP", "200")?;
    }
    let after = resident(pid)?;
    drop(first);
    if after <= before {
        bail!("the process did not grow: {before} to {after} KiB");
    }
    Ok((after - before) / sessions as f64)
}

/// Resident memory of a process in KiB.
pub fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
