//! What receivers make of a file that is transferred with TYPE A.
//!
//! On the wire lines end with CRLF (RFC 959 section 3.1.1.1); what a receiver stores has its own line ends,
//! and receivers differ on a CR without LF. A pattern with a line end inside is in one of the forms and
//! not in the others, so that all of them have to be clean.

use crate::spool::{Object, Spool, SpoolError, Writer};
use std::io::Read;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// How a receiver undoes line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// CRLF becomes LF, another CR stays: vsftpd, ProFTPD, pyftpdlib; lftp, Python's ftplib.
    Lines,
    /// As `Lines`, and CR NUL becomes CR (RFC 854): BSD's ftp and ftpd, tnftp.
    Telnet,
    /// Every line end becomes LF, a CR by itself too: curl.
    AnyEnd,
    /// Every CR is left out.
    NoCr,
}

const READINGS: [Reading; 4] = [Reading::Lines, Reading::Telnet, Reading::AnyEnd, Reading::NoCr];

/// Undoes line ends piece by piece.
struct Decoder {
    reading: Reading,
    /// The last byte was a CR, whose fate the next one decides.
    cr: bool,
}

impl Decoder {
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            if std::mem::take(&mut self.cr) {
                match (byte, self.reading) {
                    // CRLF: the LF alone.
                    (b'\n', _) => {}
                    (0, Reading::Telnet) => {
                        out.push(b'\r');
                        continue;
                    }
                    (_, _) => self.end(out),
                }
            }
            if byte == b'\r' {
                self.cr = true;
            } else {
                out.push(byte);
            }
        }
    }

    /// A CR without LF.
    fn end(&self, out: &mut Vec<u8>) {
        match self.reading {
            Reading::Lines | Reading::Telnet => out.push(b'\r'),
            Reading::AnyEnd => out.push(b'\n'),
            Reading::NoCr => {}
        }
    }
}

/// The forms that receivers store, each once and without those that are as the wire's.
///
/// # Errors
/// The spool cannot hold them.
pub(super) fn forms(spool: &Spool, object: &Object) -> Result<Vec<Object>, SpoolError> {
    let mut writers: Vec<(Decoder, Writer)> = READINGS
        .into_iter()
        .map(|reading| (Decoder { reading, cr: false }, spool.writer()))
        .collect();
    if !has_cr(object)? {
        return Ok(Vec::new());
    }
    let mut reader = object.reader();
    let (mut bytes, mut out) = (vec![0; CHUNK], Vec::new());
    loop {
        let count = reader.read(&mut bytes)?;
        for (decoder, writer) in &mut writers {
            out.clear();
            decoder.take(&bytes[..count], &mut out);
            if count == 0 && decoder.cr {
                decoder.end(&mut out);
            }
            writer.write(&out)?;
        }
        if count == 0 {
            break;
        }
    }
    let mut forms: Vec<Object> = Vec::new();
    for (_, writer) in writers {
        let form = writer.finish()?;
        let known = forms.iter().chain([object]).any(|other| other.hash() == form.hash());
        if !known {
            forms.push(form);
        }
    }
    Ok(forms)
}

fn has_cr(object: &Object) -> Result<bool, SpoolError> {
    let mut reader = object.reader();
    let mut bytes = vec![0; CHUNK];
    loop {
        match reader.read(&mut bytes)? {
            0 => return Ok(false),
            count if memchr::memchr(b'\r', &bytes[..count]).is_some() => return Ok(true),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(reading: Reading, wire: &[u8], step: usize) -> Vec<u8> {
        let mut decoder = Decoder { reading, cr: false };
        let mut out = Vec::new();
        wire.chunks(step).for_each(|piece| decoder.take(piece, &mut out));
        if decoder.cr {
            decoder.end(&mut out);
        }
        out
    }

    #[test]
    fn every_receiver_has_its_own_reading() {
        let wire = b"a\r\nb\rc\r\0d\r\r\ne\nf\r";
        for (reading, stored) in [
            (Reading::Lines, &b"a\nb\rc\r\0d\r\ne\nf\r"[..]),
            (Reading::Telnet, b"a\nb\rc\rd\r\ne\nf\r"),
            (Reading::AnyEnd, b"a\nb\nc\n\0d\n\ne\nf\n"),
            (Reading::NoCr, b"a\nbc\0d\ne\nf"),
        ] {
            for step in 1..=wire.len() {
                assert_eq!(decoded(reading, wire, step), stored, "{reading:?} by {step}");
            }
        }
    }

    #[test]
    fn forms_that_are_alike_are_scanned_once() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 1 << 20, 1 << 20, 1 << 20).unwrap();
        let count = |wire: &[u8]| {
            let mut writer = spool.writer();
            writer.write(wire).unwrap();
            forms(&spool, &writer.finish().unwrap()).unwrap().len()
        };
        assert_eq!(count(b"no line end but\nthis"), 0);
        assert_eq!(count(b"one\r\ntwo\r\n"), 1);
        assert_eq!(count(b"one\rtwo\r\0three\r\n"), 4);
        assert_eq!(spool.used(), (0, 0));
    }
}
