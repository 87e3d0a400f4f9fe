//! clamd's protocol (clamd(8)): one command on each connection, with a NUL behind it (`z`), and one answer.

use super::Error;
use crate::blocking;
use crate::config::ClamdAddress;
use crate::spool::Object;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

/// Bytes of an object in one chunk.
const CHUNK: usize = 64 * 1024;

/// Bytes of the longest answer: clamd's own buffer for one has 1 KiB, and names are in it.
const ANSWER_MAX: usize = 4096;

/// What clamd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `stream: OK`, `fd[10]: OK`
    Clean,
    /// `stream: NAME FOUND`
    Found(String),
    /// `INSTREAM size limit exceeded. ERROR`
    TooLarge,
}

/// Reads the answer to `INSTREAM` or `FILDES`.
pub(super) fn reply(answer: &[u8]) -> Result<Reply, Error> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim_end_matches('\n');
    if let Some(why) = text.strip_suffix(" ERROR") {
        return if why.starts_with("INSTREAM size limit exceeded") {
            Ok(Reply::TooLarge)
        } else {
            Err(Error::Refused(why.to_owned()))
        };
    }
    let said = text.split_once(": ").filter(|(what, _)| {
        let number = what.strip_prefix("fd[").and_then(|rest| rest.strip_suffix(']'));
        *what == "stream"
            || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    match said {
        Some((_, "OK")) => Ok(Reply::Clean),
        Some((_, found)) => match found.strip_suffix(" FOUND") {
            Some(name) if !name.is_empty() => Ok(Reply::Found(plain(name).to_owned())),
            Some(_) | None => Err(Error::NotUnderstood(text.to_owned())),
        },
        None => Err(Error::NotUnderstood(text.to_owned())),
    }
}

/// A name without the hash and size that `ExtendedDetectionInfo` puts behind it: `NAME(md5:size)`.
fn plain(name: &str) -> &str {
    let cut = name.strip_suffix(')').and_then(|rest| rest.rsplit_once('('));
    match cut.and_then(|(name, inside)| Some((name, inside.split_once(':')?))) {
        Some((name, (hash, size)))
            if hash.len() == 32
                && hash.bytes().all(|b| b.is_ascii_hexdigit())
                && size.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        Some(_) | None => name,
    }
}

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

async fn connect(address: &ClamdAddress) -> Result<Connection, Error> {
    match address {
        ClamdAddress::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
        ClamdAddress::Tcp(address) => match TcpStream::connect(address).await {
            Ok(stream) => stream.set_nodelay(true).map(|()| Connection::Tcp(stream)),
            Err(error) => Err(error),
        },
    }
    .map_err(Error::Connect)
}

/// Asks for the version of the program and of its signatures.
pub(super) async fn version(address: &ClamdAddress) -> Result<String, Error> {
    let answer = match connect(address).await? {
        Connection::Unix(mut stream) => exchange(&mut stream, b"zVERSION\0").await?,
        Connection::Tcp(mut stream) => exchange(&mut stream, b"zVERSION\0").await?,
    };
    let text = String::from_utf8_lossy(&answer).trim().to_owned();
    // Others answer in other words, and so does a clamd that knows no such command.
    if text.starts_with("ClamAV ") { Ok(text) } else { Err(Error::NotUnderstood(text)) }
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    command: &[u8],
) -> Result<Vec<u8>, Error> {
    stream.write_all(command).await?;
    answer(stream).await
}

/// Has it scan the object's bytes.
pub(super) async fn instream(address: &ClamdAddress, object: &Object) -> Result<Reply, Error> {
    match connect(address).await? {
        Connection::Unix(stream) => stream_to(stream, object).await,
        Connection::Tcp(stream) => stream_to(stream, object).await,
    }
}

async fn stream_to(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    object: &Object,
) -> Result<Reply, Error> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let answer = answer(&mut reader);
    tokio::pin!(answer);
    tokio::select! {
        // In this sequence, so that an answer to the whole is known as one.
        biased;
        sent = send(&mut writer, object) => match sent {
            Ok(()) => reply(&answer.await?),
            // It closes what is too large for it, and says so.
            Err(error) => match answer.await {
                Ok(said) => early(&said),
                Err(_) => Err(error.into()),
            },
        },
        said = &mut answer => early(&said?),
    }
}

/// What was said before it had everything: only a refusal means something, and a detection.
fn early(said: &[u8]) -> Result<Reply, Error> {
    match reply(said)? {
        Reply::Clean => Err(Error::Early(String::from_utf8_lossy(said).into_owned())),
        other @ (Reply::Found(_) | Reply::TooLarge) => Ok(other),
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), object: &Object) -> io::Result<()> {
    const COMMAND: &[u8] = b"zINSTREAM\0";
    let mut chunk = Vec::with_capacity(COMMAND.len() + CHUNK + 8);
    chunk.extend_from_slice(COMMAND);
    let mut at = 0;
    while at < object.len() {
        let want = usize::try_from(object.len() - at).unwrap_or(usize::MAX).min(CHUNK);
        let start = chunk.len();
        chunk.resize(start + 4 + want, 0);
        let count = match object.inline() {
            Some(_) => object.read_at(&mut chunk[start + 4..], at)?,
            None => blocking::in_place(|| object.read_at(&mut chunk[start + 4..], at))?,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(start + 4 + count);
        let header = u32::try_from(count).map_err(io::Error::other)?.to_be_bytes();
        chunk[start..start + 4].copy_from_slice(&header);
        at += count as u64;
        if at == object.len() {
            chunk.extend_from_slice(&[0; 4]);
        }
        writer.write_all(&chunk).await?;
        chunk.clear();
    }
    if object.is_empty() {
        chunk.extend_from_slice(&[0; 4]);
        writer.write_all(&chunk).await?;
    }
    writer.flush().await
}

/// Has it scan the object behind a descriptor.
pub(super) async fn fildes(address: &ClamdAddress, object: &Object) -> Result<Reply, Error> {
    let descriptor = match object.descriptor()? {
        Some(descriptor) => descriptor,
        None => copied(object.inline().unwrap_or_default())?,
    };
    let Connection::Unix(mut stream) = connect(address).await? else {
        return Err(Error::Connect(io::ErrorKind::Unsupported.into()));
    };
    stream.write_all(b"zFILDES\0").await?;
    loop {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || pass(&stream, &descriptor)) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    reply(&answer(&mut stream).await?)
}

/// One byte with the descriptor attached.
fn pass(stream: &UnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, flags)?;
    Ok(())
}

/// A descriptor for bytes that have none.
fn copied(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("vscan-object", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Reads up to the NUL that ends an answer.
async fn answer(reader: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Error> {
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    loop {
        let count = reader.read(&mut piece).await?;
        if let Some(end) = piece[..count].iter().position(|&b| b == 0) {
            answer.extend_from_slice(&piece[..end]);
            return Ok(answer);
        }
        if count == 0 {
            return Err(Error::Truncated);
        }
        answer.extend_from_slice(&piece[..count]);
        if answer.len() > ANSWER_MAX {
            answer.truncate(80);
            return Err(Error::NotUnderstood(String::from_utf8_lossy(&answer).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_are_answers() {
        let clean = |text: &str| matches!(reply(text.as_bytes()), Ok(Reply::Clean));
        assert!(clean("stream: OK") && clean("fd[10]: OK") && clean("stream: OK\n"));
        for wrong in [
            "",
            "OK",
            "stream: ok",
            "stream: OK ",
            "stream:OK",
            "fd[]: OK",
            "fd[x]: OK",
            "other: OK",
            "stream: NOT OK",
            "stream:  FOUND",
            "stream: x FOUND y",
            "UNKNOWN COMMAND",
            "PONG",
            "\u{fffd}",
        ] {
            let got = reply(wrong.as_bytes());
            assert!(matches!(got, Err(Error::NotUnderstood(_))), "{wrong:?}: {got:?}");
        }
        let found = |text: &str| match reply(text.as_bytes()) {
            Ok(Reply::Found(name)) => name,
            other => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(found("stream: Win.Test.EICAR_HDB-1 FOUND"), "Win.Test.EICAR_HDB-1");
        assert_eq!(found("fd[3]: a: b FOUND"), "a: b");
        assert_eq!(
            found("stream: X.UNOFFICIAL(44d88612fea8a8f36de82e1278abb02f:68) FOUND"),
            "X.UNOFFICIAL"
        );
        assert_eq!(found("stream: X(1) FOUND"), "X(1)");
        assert_eq!(reply(b"INSTREAM size limit exceeded. ERROR").unwrap(), Reply::TooLarge);
        for failed in [
            "fd[9]: Can't open file. ERROR",
            "stream: lstat() failed. ERROR",
            "COMMAND READ TIMED OUT ERROR",
        ] {
            assert!(matches!(reply(failed.as_bytes()), Err(Error::Refused(_))), "{failed}");
        }
    }
}
