use super::*;
use proptest::prelude::*;

/// What a decoder says about a stream: the message, what follows its end, and the two marks.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    message: Vec<u8>,
    /// What follows the end; none if it was not found.
    rest: Option<Vec<u8>>,
    stuffed: bool,
    look_alike: bool,
}

fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Said {
    let mut decoder = Decoder::new();
    let mut message = Vec::new();
    let mut rest: Option<Vec<u8>> = None;
    for chunk in chunks {
        if let Some(rest) = &mut rest {
            rest.extend_from_slice(chunk);
            continue;
        }
        let decoded = decoder.decode(chunk);
        message.extend_from_slice(decoded.carry);
        message.extend_from_slice(decoded.body);
        if decoded.end {
            rest = Some(chunk[decoded.consumed..].to_vec());
        } else {
            assert_eq!(decoded.consumed, chunk.len());
        }
    }
    Said { message, rest, stuffed: decoder.stuffed(), look_alike: decoder.look_alike() }
}

/// The same, from the definition: looking at the whole stream, byte by byte. `held` bytes at the
/// end may be the beginning of the end and are not counted as message.
fn model(stream: &[u8]) -> Said {
    let line_start = |at: usize| at == 0 || stream[..at].ends_with(b"\r\n");
    let end = (0..stream.len()).find(|&at| line_start(at) && stream[at..].starts_with(END));
    let text = &stream[..end.unwrap_or(stream.len())];
    let held = if end.is_some() {
        0
    } else {
        (1..=2)
            .filter(|&n| n <= text.len() && line_start(text.len() - n))
            .find(|&n| END.starts_with(&text[text.len() - n..]))
            .unwrap_or(0)
    };
    let message = &text[..text.len() - held];
    let mut stuffed = false;
    let mut look_alike = false;
    for at in (0..message.len()).filter(|&at| text[at] == b'.') {
        stuffed |= line_start(at);
        let before = text[..at].iter().rev().find(|&&byte| byte != 0);
        let starts = at == 0 || matches!(before, None | Some(b'\r' | b'\n'));
        // What follows is looked at in the whole stream: the end's dot is a neighbour as well.
        let after = text[at + 1..].iter().find(|&&byte| byte != 0);
        look_alike |= starts && matches!(after, Some(b'\r' | b'\n'));
    }
    Said {
        message: message.to_vec(),
        rest: end.map(|end| stream[end + END.len()..].to_vec()),
        stuffed,
        look_alike,
    }
}

/// Every split offset and byte by byte.
fn check(stream: &[u8]) -> Said {
    let expect = model(stream);
    for cut in 0..=stream.len() {
        let (head, tail) = stream.split_at(cut);
        assert_eq!(decode([head, tail]), expect, "cut at {cut} of {:?}", stream.escape_ascii());
    }
    assert_eq!(decode(stream.chunks(1)), expect, "byte by byte {:?}", stream.escape_ascii());
    expect
}

#[test]
fn an_ordinary_message() {
    let said = check(b"Subject: x\r\n\r\nA line. Another.\r\n.\r\nQUIT\r\n");
    assert_eq!(said.message, b"Subject: x\r\n\r\nA line. Another.\r\n");
    assert_eq!(said.rest.as_deref(), Some(&b"QUIT\r\n"[..]));
    assert!(!said.stuffed && !said.look_alike);
}

#[test]
fn an_immediate_dot_is_the_end() {
    let said = check(b".\r\nQUIT\r\n");
    assert_eq!(said.message, b"");
    assert_eq!(said.rest.as_deref(), Some(&b"QUIT\r\n"[..]));
}

#[test]
fn dot_stuffing_is_kept_and_reported() {
    let said = check(b"..\r\n.a\r\n...\r\nx..\r\n.\r\n");
    assert_eq!(said.message, b"..\r\n.a\r\n...\r\nx..\r\n");
    assert!(said.stuffed && !said.look_alike);
}

#[test]
fn binary_bytes_and_long_lines_are_text() {
    let mut stream: Vec<u8> = (0..=255).filter(|byte| !b"\r\n.".contains(byte)).collect();
    stream.extend(std::iter::repeat_n(b'x', 5000));
    stream.extend_from_slice(b"\r\n.\r\n");
    let said = check(&stream);
    assert_eq!(said.message.len(), stream.len() - 3);
    assert!(!said.look_alike);
}

/// What has been published as accepted by one server or another: SEC Consult, "SMTP Smuggling -
/// Spoofing E-Mails Worldwide" (2023), the tables of its scanners and later advisories.
const LOOK_ALIKES: &[&[u8]] = &[
    b"\n.\n",
    b"\n.\r\n",
    b"\n.\r",
    b"\n\n.\r\n",
    b"\r.\r",
    b"\r.\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n\0.\r",
    b"\r\n\0.\n",
    b"\r\n.\0\r\n",
    b"\r\n\0\0.\0\0\r\n",
    b"\0\n.\n",
];

#[test]
fn look_alikes_end_nothing_and_are_reported() {
    for look_alike in LOOK_ALIKES {
        for start in [&b"text"[..], b"text\r\n", b""] {
            let smuggled =
                [start, look_alike, b"MAIL FROM:<a@b>\r\nDATA\r\nevil\r\n.\r\nQUIT\r\n"].concat();
            let said = check(&smuggled);
            assert!(said.look_alike, "{:?}", smuggled.escape_ascii());
            assert!(said.message.ends_with(b"evil\r\n"), "{:?}", smuggled.escape_ascii());
            assert_eq!(said.rest.as_deref(), Some(&b"QUIT\r\n"[..]));
        }
    }
}

#[test]
fn look_alikes_at_the_start() {
    for start in [&b".\n"[..], b".\rx", b".\0\r\n", b"\0.\r\n", b"\n.\n"] {
        let said = check(&[start, b"x\r\n.\r\n"].concat());
        assert!(said.look_alike, "{:?}", start.escape_ascii());
        assert_eq!(said.rest.as_deref(), Some(&b""[..]));
    }
}

#[test]
fn sentences_and_numbers_are_no_look_alikes() {
    for text in
        [&b"end.\r\n"[..], b"..\r\n", b"a.\n", b"\n.b", b"1.0\r\n", b"\0.x\r\n", b"a\0.\r\n"]
    {
        assert!(!check(&[b"x\r\n", text, b"x\r\n.\r\n"].concat()).look_alike);
    }
}

/// The dot behind a bare LF is text in RFC 5321 and stuffing for servers that are lenient.
#[test]
fn a_dot_behind_a_bare_lf_has_two_readings() {
    for (message, odd, lenient) in [
        (&b"a\n.b\r\n"[..], true, &b"a\nb\r\n"[..]),
        (b"a\n..b\r\n..c\r\n", true, b"a\n.b\r\n.c\r\n"),
        (b"\n.--x\n.--y\n", true, b"\n--x\n--y\n"),
        (b"a\r\n..b\r.c\n", false, b"a\r\n.b\r.c\n"),
        (b"a\nb.\n", false, b"a\nb.\n"),
    ] {
        for at in 0..=message.len() {
            let (mut decoder, mut unstuffer) = (Decoder::new(), Unstuffer::lenient());
            let mut out = Vec::new();
            for piece in [&message[..at], &message[at..]] {
                decoder.decode(piece);
                unstuffer.unstuff(piece, |piece| out.extend_from_slice(piece));
            }
            assert_eq!(decoder.odd_dot(), odd, "{}", message.escape_ascii());
            assert_eq!(out, lenient, "{} at {at}", message.escape_ascii());
        }
    }
}

fn bare(chunks: &[&[u8]]) -> bool {
    let mut scan = BareNewlines::default();
    chunks.iter().for_each(|chunk| scan.check(chunk));
    scan.found()
}

fn unstuff<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut unstuffer = Unstuffer::new();
    let mut out = Vec::new();
    for chunk in chunks {
        unstuffer.unstuff(chunk, |piece| out.extend_from_slice(piece));
    }
    out
}

#[test]
fn unstuffing_takes_the_dot_of_each_line() {
    let wire = b"..a\r\n.b\r\nc.\r\n\n.d\r\n...\r\n";
    for cut in 0..=wire.len() {
        let (head, tail) = wire.split_at(cut);
        assert_eq!(unstuff([head, tail]), b".a\r\nb\r\nc.\r\n\n.d\r\n..\r\n", "cut at {cut}");
    }
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        3 => Just(b".".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"\0".to_vec()),
        1 => Just(b"\r\n.\r\n".to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn decoder_equals_model(stream in soup(), size in 1usize..7) {
        let expect = model(&stream);
        prop_assert_eq!(&decode([&stream[..]]), &expect);
        prop_assert_eq!(&decode(stream.chunks(size)), &expect);
        prop_assert_eq!(&decode(stream.chunks(1)), &expect);
    }

    #[test]
    fn bare_newlines_equal_model(stream in soup(), size in 1usize..7) {
        // A CR at the very end cannot be judged; in a message CRLF stands there.
        let stream = [&stream[..], b"x"].concat();
        let expect = (0..stream.len()).any(|at| match stream[at] {
            b'\r' => stream.get(at + 1) != Some(&b'\n'),
            b'\n' => at == 0 || stream[at - 1] != b'\r',
            _ => false,
        });
        prop_assert_eq!(bare(&stream.chunks(size).collect::<Vec<_>>()), expect);
        prop_assert_eq!(bare(&[&stream]), expect);
    }

    #[test]
    fn unstuffing_equals_model(stream in soup(), size in 1usize..7) {
        let mut expect = Vec::new();
        for (at, &byte) in stream.iter().enumerate() {
            if byte != b'.' || !(at == 0 || stream[..at].ends_with(b"\r\n")) {
                expect.push(byte);
            }
        }
        prop_assert_eq!(unstuff(stream.chunks(size)), expect);
    }
}
