//! Commands of the client: verb, argument, and the Telnet controls that may surround them
//! (RFC 959 section 4.1, RFC 1123 section 4.1.2.10).
//!
//! Only what a line says; what is done about it is the session's business.

use bytes::{BufMut, Bytes, BytesMut};

use crate::line::{Ending, Line};

/// Longest command line in bytes, CRLF included: a path of `PATH_MAX` (4096) fits even with every byte
/// doubled by Telnet escaping, behind a verb.
pub const COMMAND_LIMIT: usize = 2 * 4096 + 64;

/// Longest verb: four letters in RFC 959; later ones and SITE-like extensions are a little longer.
const VERB_LIMIT: usize = 12;

/// Telnet's "interpret as command" (RFC 854).
const IAC: u8 = 0xff;
const WILL: u8 = 0xfb;
/// The first byte after IAC that is a Telnet command (SE).
const FIRST_COMMAND: u8 = 0xf0;

/// The verbs that mean something to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// ABOR: stop the transfer.
    Abor,
    /// ADAT, MIC, CONF, ENC: security data, and commands wrapped in it (RFC 2228).
    Adat,
    /// APPE: append to a file.
    Appe,
    /// AUTH: begin a security exchange (RFC 2228, 4217).
    Auth,
    /// CCC: the control connection goes on in the clear (RFC 2228, 4217).
    Ccc,
    /// CDUP, XCUP: to the parent directory.
    Cdup,
    /// COMB: makes one file out of several (Globalscape).
    Comb,
    /// CPSV: passive with the TLS roles swapped, for server-to-server transfers.
    Cpsv,
    /// CWD, XCWD: to another directory.
    Cwd,
    /// EPRT: active data connection, any family (RFC 2428).
    Eprt,
    /// EPSV: passive data connection, any family (RFC 2428).
    Epsv,
    /// ERET: download of a part of a file (GridFTP, GFD.020).
    Eret,
    /// ESTO: upload of a part of a file (GridFTP, GFD.020).
    Esto,
    /// FEAT: list of extensions (RFC 2389).
    Feat,
    /// LIST: listing over the data connection.
    List,
    /// LPRT: active data connection of RFC 1639.
    Lprt,
    /// LPSV: passive data connection of RFC 1639.
    Lpsv,
    /// MLSD: machine-readable listing over the data connection (RFC 3659).
    Mlsd,
    /// MODE: transfer mode.
    Mode,
    /// NLST: names over the data connection.
    Nlst,
    /// PASV: passive data connection, IPv4.
    Pasv,
    /// PBSZ: protection buffer size (RFC 2228, 4217).
    Pbsz,
    /// PORT: active data connection, IPv4.
    Port,
    /// PROT: whether data connections are protected (RFC 2228, 4217).
    Prot,
    /// QUIT: end of the session.
    Quit,
    /// RANG: byte range of the next transfer, an expired draft.
    Rang,
    /// REIN: back to the state before USER.
    Rein,
    /// REST: restart position.
    Rest,
    /// RETR: download.
    Retr,
    /// SPAS: passive with several addresses (GridFTP, GFD.020).
    Spas,
    /// SPOR: active with several addresses (GridFTP, GFD.020).
    Spor,
    /// SPSV: passive with a ticket, an expired draft.
    Spsv,
    /// SSCN: the server takes the client's part in TLS, for server-to-server transfers.
    Sscn,
    /// STAT: status, or a listing over the control connection.
    Stat,
    /// STOR: upload.
    Stor,
    /// STOU: upload under a name of the server's choice.
    Stou,
    /// STRU: file structure.
    Stru,
    /// THMB: download of a picture made smaller by the server, an expired draft.
    Thmb,
    /// TYPE: representation of the data.
    Type,
    /// USER: name of the user.
    User,
    /// Every other well-formed verb: relayed.
    Other,
}

impl Verb {
    fn parse(verb: &[u8]) -> Self {
        let mut upper = [0u8; 4];
        let Some(upper) = upper.get_mut(..verb.len()) else { return Self::Other };
        upper.copy_from_slice(verb);
        upper.make_ascii_uppercase();
        match &*upper {
            b"ABOR" => Self::Abor,
            b"ADAT" | b"MIC" | b"CONF" | b"ENC" => Self::Adat,
            b"APPE" => Self::Appe,
            b"AUTH" => Self::Auth,
            b"CCC" => Self::Ccc,
            b"CDUP" | b"XCUP" => Self::Cdup,
            b"COMB" => Self::Comb,
            b"CPSV" => Self::Cpsv,
            b"CWD" | b"XCWD" => Self::Cwd,
            b"EPRT" => Self::Eprt,
            b"EPSV" => Self::Epsv,
            b"ERET" => Self::Eret,
            b"ESTO" => Self::Esto,
            b"FEAT" => Self::Feat,
            b"LIST" => Self::List,
            b"LPRT" => Self::Lprt,
            b"LPSV" => Self::Lpsv,
            b"MLSD" => Self::Mlsd,
            b"MODE" => Self::Mode,
            b"NLST" => Self::Nlst,
            b"PASV" => Self::Pasv,
            b"PBSZ" => Self::Pbsz,
            b"PORT" => Self::Port,
            b"PROT" => Self::Prot,
            b"QUIT" => Self::Quit,
            b"RANG" => Self::Rang,
            b"REIN" => Self::Rein,
            b"REST" => Self::Rest,
            b"RETR" => Self::Retr,
            b"SPAS" => Self::Spas,
            b"SPOR" => Self::Spor,
            b"SPSV" => Self::Spsv,
            b"SSCN" => Self::Sscn,
            b"STAT" => Self::Stat,
            b"STOR" => Self::Stor,
            b"STOU" => Self::Stou,
            b"STRU" => Self::Stru,
            b"THMB" => Self::Thmb,
            b"TYPE" => Self::Type,
            b"USER" => Self::User,
            _ => Self::Other,
        }
    }

    /// The verb as it is written; empty for [`Verb::Other`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Abor => "ABOR",
            Self::Adat => "ADAT",
            Self::Appe => "APPE",
            Self::Auth => "AUTH",
            Self::Ccc => "CCC",
            Self::Cdup => "CDUP",
            Self::Comb => "COMB",
            Self::Cpsv => "CPSV",
            Self::Cwd => "CWD",
            Self::Eprt => "EPRT",
            Self::Epsv => "EPSV",
            Self::Eret => "ERET",
            Self::Esto => "ESTO",
            Self::Feat => "FEAT",
            Self::List => "LIST",
            Self::Lprt => "LPRT",
            Self::Lpsv => "LPSV",
            Self::Mlsd => "MLSD",
            Self::Mode => "MODE",
            Self::Nlst => "NLST",
            Self::Pasv => "PASV",
            Self::Pbsz => "PBSZ",
            Self::Port => "PORT",
            Self::Prot => "PROT",
            Self::Quit => "QUIT",
            Self::Rang => "RANG",
            Self::Rein => "REIN",
            Self::Rest => "REST",
            Self::Retr => "RETR",
            Self::Spas => "SPAS",
            Self::Spor => "SPOR",
            Self::Spsv => "SPSV",
            Self::Sscn => "SSCN",
            Self::Stat => "STAT",
            Self::Stor => "STOR",
            Self::Stou => "STOU",
            Self::Stru => "STRU",
            Self::Thmb => "THMB",
            Self::Type => "TYPE",
            Self::User => "USER",
            Self::Other => "",
        }
    }
}

/// A verb's letters in capitals, also of verbs that mean nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerbName {
    letters: [u8; VERB_LIMIT],
    length: u8,
}

impl VerbName {
    /// The letters.
    pub fn as_str(&self) -> &str {
        // Letters of ASCII are what `Command::parse` lets through.
        std::str::from_utf8(&self.letters[..usize::from(self.length)]).unwrap_or_default()
    }
}

/// One command of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The verb.
    pub verb: Verb,
    wire: Bytes,
    argument: Bytes,
}

/// A line that is no command: no verb of letters, or one that only begins like a verb that means
/// something here, or a CR or NUL inside that is not Telnet's CR NUL.
///
/// Such a line is not relayed: a server may read in it a command that the gateway did not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an FTP command")]
pub struct Malformed;

impl Command {
    /// Reads a command line. Telnet controls (IP, Synch, option negotiation) are taken out.
    ///
    /// # Errors
    /// [`Malformed`] when the line is no command.
    pub fn parse(line: &Line) -> Result<Self, Malformed> {
        let (wire, text) = match memchr::memchr(IAC, line.content()) {
            None => (None, line.content_bytes()),
            Some(_) => without_telnet(line.content()),
        };
        let text = without_nul(text)?;
        let end = memchr::memchr(b' ', &text).unwrap_or(text.len());
        let verb = &text[..end];
        if verb.is_empty() || end > VERB_LIMIT || !verb.iter().all(u8::is_ascii_alphabetic) {
            return Err(Malformed);
        }
        if end > 4 && Verb::parse(&verb[..4]) != Verb::Other {
            // No such verb exists, and a server that compares four letters would take it for one.
            return Err(Malformed);
        }
        let verb = Verb::parse(verb);
        let argument = text.slice((end + 1).min(text.len())..);
        let wire = match (wire, line.ending()) {
            (None, Ending::Crlf) => line.raw().clone(),
            (None, Ending::Lf) => terminated(line.content()),
            (Some(cleaned), Ending::Crlf | Ending::Lf) => terminated(&cleaned),
        };
        Ok(Self { verb, wire, argument })
    }

    /// What goes to the server: the client's own bytes, unless Telnet controls had to be taken out
    /// or a bare LF made a CRLF.
    pub fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// The verb as the client wrote it.
    pub fn word(&self) -> &[u8] {
        let end = memchr::memchr2(b' ', b'\r', &self.wire).unwrap_or(self.wire.len());
        &self.wire[..end]
    }

    /// The verb, for listings.
    pub fn name(&self) -> VerbName {
        let mut name = VerbName::default();
        for (slot, letter) in name
            .letters
            .iter_mut()
            .zip(self.wire.iter().take_while(|byte| byte.is_ascii_alphabetic()))
        {
            *slot = letter.to_ascii_uppercase();
            name.length += 1;
        }
        name
    }

    /// The same line with another verb, for asking the server about the same file.
    pub fn with_verb(&self, verb: &str) -> Bytes {
        let end = self.wire.iter().position(|&byte| byte == b' ' || byte == b'\r');
        let mut line = BytesMut::with_capacity(verb.len() + self.wire.len());
        line.put_slice(verb.as_bytes());
        line.put_slice(&self.wire[end.unwrap_or(self.wire.len())..]);
        line.freeze()
    }

    /// What follows the first space, Telnet escaping undone. May hold any byte but LF and NUL.
    pub fn argument(&self) -> &Bytes {
        &self.argument
    }

    /// The file name's extension, if the argument is plain enough to be sure that the server sees
    /// the same one.
    pub fn extension(&self) -> Option<&str> {
        let name = std::str::from_utf8(&self.argument).ok()?;
        if name.chars().any(char::is_control) || name.trim() != name {
            return None;
        }
        let file = name.rsplit(['/', '\\']).next()?;
        let (stem, extension) = file.rsplit_once('.')?;
        (!stem.is_empty() && !extension.is_empty()).then_some(extension)
    }
}

/// Makes a CR of each CR NUL, which is how Telnet writes one (RFC 854, RFC 2640 section 3.1).
///
/// A CR or NUL by itself is none of a command: what reads the one as an end of line, or the other as an end
/// of text, would read another command than we do.
fn without_nul(text: Bytes) -> Result<Bytes, Malformed> {
    if memchr::memchr2(b'\r', 0, &text).is_none() {
        return Ok(text);
    }
    let mut plain = BytesMut::with_capacity(text.len());
    let mut rest = &text[..];
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'\r' => tail.strip_prefix(&[0]).ok_or(Malformed)?,
            0 => return Err(Malformed),
            _ => tail,
        };
        plain.put_u8(byte);
    }
    Ok(plain.freeze())
}

fn terminated(content: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(content.len() + 2);
    line.put_slice(content);
    line.put_slice(b"\r\n");
    line.freeze()
}

/// Takes Telnet controls out of a line. Gives the line for the server, still escaped, if it
/// changed, and the text with escaping undone.
fn without_telnet(content: &[u8]) -> (Option<Bytes>, Bytes) {
    let mut wire = BytesMut::with_capacity(content.len());
    let mut text = BytesMut::with_capacity(content.len());
    let mut at = 0;
    while at < content.len() {
        let byte = content[at];
        if byte != IAC {
            wire.put_u8(byte);
            text.put_u8(byte);
            at += 1;
            continue;
        }
        match content.get(at + 1) {
            Some(&IAC) => {
                wire.put_slice(&[IAC, IAC]);
                text.put_u8(IAC);
                at += 2;
            }
            // WILL, WONT, DO, DONT carry an option.
            Some(&next) if next >= WILL => at += 3,
            Some(&next) if next >= FIRST_COMMAND => at += 2,
            // Before the verb: the data mark of a Synch that was taken out of line. In a name:
            // a client that does not know of Telnet escaping.
            Some(_) | None => {
                if !text.is_empty() {
                    wire.put_u8(byte);
                    text.put_u8(byte);
                }
                at += 1;
            }
        }
    }
    let changed = wire != content;
    (changed.then(|| wire.freeze()), text.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::LineSplitter;
    use proptest::prelude::*;

    fn parse(input: &[u8]) -> Result<Command, Malformed> {
        let mut lines = LineSplitter::new(COMMAND_LIMIT);
        lines.push(input);
        Command::parse(&lines.next_line().unwrap().expect("a whole line"))
    }

    fn check(input: &[u8], verb: Verb, argument: &[u8], wire: &[u8]) {
        let command = parse(input).unwrap();
        assert_eq!((command.verb, &command.argument()[..]), (verb, argument));
        assert_eq!(&command.wire()[..], wire);
        let name = command.name();
        assert!(verb == Verb::Other || name.as_str() == verb.as_str());
        assert!(wire.to_ascii_uppercase().starts_with(name.as_str().as_bytes()));
    }

    #[test]
    fn commands_keep_their_bytes() {
        check(b"RETR a b.txt\r\n", Verb::Retr, b"a b.txt", b"RETR a b.txt\r\n");
        check(b"retr  x \r\n", Verb::Retr, b" x ", b"retr  x \r\n");
        check(b"nOOp\r\n", Verb::Other, b"", b"nOOp\r\n");
        check(b"SITE CHMOD 644 x\r\n", Verb::Other, b"CHMOD 644 x", b"SITE CHMOD 644 x\r\n");
        check(b"PASV\n", Verb::Pasv, b"", b"PASV\r\n");
        check(b"RETR a\r\0b\x07\r\n", Verb::Retr, b"a\rb\x07", b"RETR a\r\0b\x07\r\n");
        check(b"RETR \r\0\r\n", Verb::Retr, b"\r", b"RETR \r\0\r\n");
        check(b"RETR a\r\0\n", Verb::Retr, b"a\r", b"RETR a\r\0\r\n");
    }

    #[test]
    fn the_longest_name_fits() {
        for name in [&[0xff; 2 * 4096][..], &[b'x'; 4096]] {
            let line = [b"RETR ", name, b"\r\n"].concat();
            let command = parse(&line).unwrap();
            assert_eq!((command.argument().len(), &command.wire()[..]), (4096, &line[..]));
        }
    }

    #[test]
    fn telnet_controls_are_taken_out() {
        check(b"\xff\xf4\xff\xf2ABOR\r\n", Verb::Abor, b"", b"ABOR\r\n");
        check(b"\xff\xf4\xffABOR\r\n", Verb::Abor, b"", b"ABOR\r\n");
        check(b"\xf2ABOR\r\n".strip_prefix(b"\xf2").unwrap(), Verb::Abor, b"", b"ABOR\r\n");
        check(b"\xff\xfb\x01NOOP\r\n", Verb::Other, b"", b"NOOP\r\n");
        check(b"ST\xff\xf1OR x\r\n", Verb::Stor, b"x", b"STOR x\r\n");
        check(b"RETR \xff\xff\r\n", Verb::Retr, b"\xff", b"RETR \xff\xff\r\n");
        check(b"RETR na\xffme\r\n", Verb::Retr, b"na\xffme", b"RETR na\xffme\r\n");
        check(b"RETR x\xff\r\n", Verb::Retr, b"x\xff", b"RETR x\xff\r\n");
        check(b"RETR x\xff\xfb\r\n", Verb::Retr, b"x", b"RETR x\r\n");
    }

    #[test]
    fn what_is_no_command() {
        for bad in [&b"\r\n"[..], b" NOOP\r\n", b"STOR\tx\r\n", b"NOOP\rSTOR x\r\n", b"12\r\n"] {
            assert_eq!(parse(bad), Err(Malformed));
        }
        for bad in [&b"RETR a\r\0\0\r\n"[..], b"RETR \0\r\n", b"RETR a\r\r\0\r\n", b"NOOP\r\0\r\n"]
        {
            assert_eq!(parse(bad), Err(Malformed));
        }
        for bad in [&b"PASVX\r\n"[..], b"Restart 5\r\n", b"PORTS 10,0,0,1,4,1\r\n"] {
            assert_eq!(parse(bad), Err(Malformed));
        }
        for bad in [&b"P@SW\r\n"[..], b"RETR a\0b\r\n", b"\x16\x03\x01\n", b"ABCDEFGHIJKLM\r\n"] {
            assert_eq!(parse(bad), Err(Malformed));
        }
    }

    #[test]
    fn extensions() {
        let check = |argument: &str, expect: Option<&str>| {
            let line = format!("RETR {argument}\r\n");
            assert_eq!(parse(line.as_bytes()).unwrap().extension(), expect, "{argument}");
        };
        check("a.iso", Some("iso"));
        check("dir.d/a.tar.GZ", Some("GZ"));
        check("dir.txt/a", None);
        check("dir.txt\\a", None);
        for none in ["", "a", "a.", ".profile", "a.iso ", " a.iso", "a\x01.iso"] {
            check(none, None);
        }
        assert_eq!(parse(b"RETR \xfe.iso\r\n").unwrap().extension(), None);
    }

    proptest! {
        #[test]
        fn what_goes_upstream_reads_the_same(
            content in proptest::collection::vec(any::<u8>().prop_filter("LF", |&byte| byte != b'\n'), 0..40)
        ) {
            // Half of the cases begin as a command, else few would be one.
            let mut content = content;
            if content.len() % 2 == 0 {
                content.splice(0..0, *b"RETR ");
            }
            let mut line = content;
            line.push(b'\n');
            if let Ok(command) = parse(&line) {
                prop_assert!(command.wire().ends_with(b"\r\n"));
                prop_assert_eq!(parse(command.wire()), Ok(command));
            }
        }

        #[test]
        fn telnet_bytes_do_not_hide_a_verb(content in proptest::collection::vec(
            prop_oneof![Just(0xffu8), 0xf0u8..=0xff, b'A'..=b'C', Just(b' ')], 0..20)) {
            let mut line = content;
            line.push(b'\n');
            if let Ok(command) = parse(&line) {
                prop_assert_eq!(parse(command.wire()).map(|again| again.verb), Ok(command.verb));
            }
        }
    }
}
