//! Commands on the wire: words, strings as atoms, quoted or literals, and where the writer has to wait for the
//! server's go-ahead.

use bytes::Bytes;

/// A command without its tag.
///
/// Made of pieces: behind each but the last a literal begins, and the server's continuation is waited for before the
/// next one is sent (RFC 9051 section 4.3).
#[derive(Clone)]
pub struct Command {
    pieces: Vec<Bytes>,
    line: Vec<u8>,
}

/// Only how much there is: a command may hold a password.
impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length: usize = self.pieces.iter().map(Bytes::len).sum();
        f.debug_struct("Command").field("bytes", &(length + self.line.len())).finish()
    }
}

impl Command {
    /// A command that begins with these words, which are sent as they are.
    #[must_use]
    pub fn new(words: &str) -> Self {
        Self { pieces: Vec::new(), line: words.as_bytes().to_vec() }
    }

    /// Adds text as it is; line ends in it are left out, so that nothing can begin another command.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.line.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
        self
    }

    /// Adds a space and a string: quoted where that can hold it, else a literal. With `utf8` the server takes UTF-8 in quotes
    /// (RFC 6855). `None`: it has a NUL, which only messages may have.
    #[must_use]
    pub fn string(mut self, string: &str, utf8: bool) -> Option<Self> {
        if string.contains('\0') {
            return None;
        }
        if string.contains(['\r', '\n']) || !(utf8 || string.is_ascii()) {
            return Some(self.literal(Bytes::copy_from_slice(string.as_bytes())));
        }
        self.line.push(b' ');
        self.quoted(string)
    }

    /// Adds a quoted string, without a space. `None`: quotes cannot hold a NUL or the end of a line.
    #[must_use]
    pub fn quoted(mut self, string: &str) -> Option<Self> {
        if string.contains(['\0', '\r', '\n']) {
            return None;
        }
        self.line.push(b'"');
        for byte in string.bytes() {
            if matches!(byte, b'"' | b'\\') {
                self.line.push(b'\\');
            }
            self.line.push(byte);
        }
        self.line.push(b'"');
        Some(self)
    }

    /// Adds a space and a literal.
    #[must_use]
    pub fn literal(self, bytes: Bytes) -> Self {
        self.literal_behind(" ", bytes)
    }

    /// Adds a message as UTF-8 data: `UTF8 (~{n}` ... `)` (RFC 6855 section 4).
    #[must_use]
    pub fn utf8_literal(self, bytes: Bytes) -> Self {
        let mut command = self.literal_behind(" UTF8 (~", bytes);
        command.line.push(b')');
        command
    }

    fn literal_behind(mut self, before: &str, bytes: Bytes) -> Self {
        self.line.extend(before.as_bytes());
        self.line.extend(format!("{{{}}}\r\n", bytes.len()).bytes());
        self.pieces.push(std::mem::take(&mut self.line).into());
        self.pieces.push(bytes);
        self
    }

    /// What is sent, in order. Behind the first, the third, ... the continuation is waited for if another one follows.
    #[must_use]
    pub fn pieces(self, tag: &str) -> Vec<Bytes> {
        let Self { pieces, mut line } = self;
        line.extend(b"\r\n");
        // A literal goes out with the line behind it.
        let mut all = pieces;
        all.push(line.into());
        let mut first = Vec::with_capacity(tag.len() + 1 + all[0].len());
        first.extend(tag.as_bytes());
        first.push(b' ');
        first.extend(&all[0]);
        all[0] = first.into();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(command: Command) -> Vec<String> {
        let pieces = command.pieces("t1");
        pieces.iter().map(|piece| piece.escape_ascii().to_string()).collect()
    }

    #[test]
    fn strings_are_quoted_or_literals() {
        let simple = Command::new("LOGIN").string("ann", false).unwrap().string("a \"b\\c", false);
        assert_eq!(wire(simple.unwrap()), [r#"t1 LOGIN \"ann\" \"a \\\"b\\\\c\"\r\n"#]);
        let umlaut = Command::new("EXAMINE").string("ä", false).unwrap().text(" (X)\r\nt9 DELETE");
        assert_eq!(wire(umlaut), [r"t1 EXAMINE {2}\r\n", r"\xc3\xa4", r" (X)t9 DELETE\r\n"]);
        let utf8 = Command::new("EXAMINE").string("ä", true).unwrap();
        assert_eq!(wire(utf8), [r#"t1 EXAMINE \"\xc3\xa4\"\r\n"#]);
        assert!(Command::new("X").string("a\0", false).is_none());
        let append = Command::new("APPEND").utf8_literal(Bytes::from_static(b"m"));
        assert_eq!(wire(append), [r"t1 APPEND UTF8 (~{1}\r\n", "m", r")\r\n"]);
    }
}
