use super::*;
use proptest::prelude::*;

fn read(input: &[u8]) -> Response {
    Response::parse(&Raw::Whole(Bytes::copy_from_slice(input)))
}

fn data_of(input: &[u8]) -> Data {
    match read(input) {
        Response::Data(data) => data,
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

fn code_of(input: &[u8]) -> (Option<Code>, String) {
    match read(input) {
        Response::Status(status) => (status.code, status.text),
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

fn one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[test]
fn statuses_and_their_codes() {
    for (input, code, text) in [
        (&b"* OK [UIDVALIDITY 7] valid"[..], Some(Code::UidValidity(one(7))), "valid"),
        (b"* OK [UIDNEXT 9]", Some(Code::UidNext(one(9))), ""),
        (
            b"* ok [HIGHESTMODSEQ 715194045007] x",
            NonZeroU64::new(715_194_045_007).map(Code::HighestModSeq),
            "x",
        ),
        (b"* NO [overquota] full {3}", Some(Code::OverQuota), "full {3}"),
        (b"* NO [BADCHARSET (\"a]b\" x)] no", Some(Code::Other("BADCHARSET".to_owned())), "no"),
        (b"* OK [UIDVALIDITY 0] x", None, "x"),
        (b"* OK [UNCLOSED x", None, "[UNCLOSED x"),
        (b"* OK \xe4\xff", None, "\u{fffd}\u{fffd}"),
        (b"* BYE", None, ""),
    ] {
        assert_eq!(code_of(input), (code, text.to_owned()), "{}", input.escape_ascii());
    }
    let (code, _) = code_of(b"* OK [PERMANENTFLAGS (\\Seen $Phishing \\*)] x");
    let flags = vec![Flag::seen(), Flag::new("$Phishing").unwrap()];
    assert_eq!(code, Some(Code::PermanentFlags { any: true, flags }));
    let (code, _) = code_of(b"* OK [COPYUID 38505 304,319:320 3956:3958] Done");
    let to = NumberSet::parse(b"3956:3958").unwrap();
    assert_eq!(code, Some(Code::CopyUid { validity: one(38505), to }));
    let status = Status {
        kind: Kind::Ok,
        code: Some(Code::AppendUid { validity: one(1), uid: one(5) }),
        text: "done".to_owned(),
    };
    let tag = Bytes::from_static(b"v1");
    assert_eq!(read(b"v1 OK [APPENDUID 1 5] done"), Response::Tagged { tag, status });
    assert_eq!(read(b"+ go {3}"), Response::Continue(Bytes::from_static(b"go {3}")));
    assert_eq!(read(b"+"), Response::Continue(Bytes::new()));
}

#[test]
fn messages() {
    let Data::Fetch(fetch) = data_of(
        b"* 12 FETCH (UID 7 FLAGS (\\Seen \\Recent $x) INTERNALDATE \" 1-Mar-2024 12:34:56 +0530\" \
          RFC822.SIZE 4294967296 MODSEQ (17) X-GM-LABELS (\"a b\" NIL) BODY[HEADER]<0> {4}\r\na: b \
          BODY[]<5> \"q\" BODYSTRUCTURE (\"text\" \"plain\" NIL NIL NIL \"7bit\" 1 1))",
    ) else {
        panic!("no FETCH");
    };
    let expect = Fetch {
        number: 12,
        uid: Some(one(7)),
        flags: Some(vec![Flag::seen(), Flag::new("$x").unwrap()]),
        recent: true,
        date: Some(" 1-Mar-2024 12:34:56 +0530".to_owned()),
        size: Some(1 << 32),
        modseq: Some(17),
        header: Some(Bytes::from_static(b"a: b")),
        body: Some((5, Bytes::from_static(b"q"))),
        plain: Some(true),
        envelope: None,
    };
    assert_eq!(fetch, expect);
    let Data::Fetch(fetch) = data_of(b"* 1 FETCH (BODY[] NIL INTERNALDATE \"a\\\"b\" FLAGS (a))")
    else {
        panic!("no FETCH");
    };
    assert_eq!((fetch.body, fetch.date), (Some((0, Bytes::new())), None));
    let Data::Fetch(fetch) = data_of(
        b"* 1 FETCH (ENVELOPE (NIL {2}\r\nhi ((\"A\" NIL \"a\" \"x.org\")) NIL NIL \
          ((NIL NIL \"team\" NIL)(NIL NIL \"b\" \"y.org\")(NIL NIL NIL NIL)) \
          ((\"C\" NIL {1}\r\nc \"z.org\")) NIL NIL \"<id@x.org>\"))",
    ) else {
        panic!("no FETCH");
    };
    let envelope = Envelope {
        from: b"a@x.org".to_vec(),
        to: vec![b"b@y.org".to_vec(), b"c@z.org".to_vec()],
        message_id: b"<id@x.org>".to_vec(),
    };
    assert_eq!(fetch.envelope, Some(envelope));
    let Data::Fetch(fetch) = data_of(b"* 1 FETCH (ENVELOPE (NIL x) UID 3)") else {
        panic!("no FETCH");
    };
    assert_eq!((fetch.envelope, fetch.uid), (None, Some(one(3))));
    for bad in [
        &b"* 1 FETCH"[..],
        b"* 1 FETCH (UID)",
        b"* 1 FETCH (UID x)",
        b"* 1 FETCH (UID 0)",
        b"* 1 FETCH (FLAGS x)",
        b"* 1 FETCH (BODY[] (x))",
        b"* 1 FETCH (UID 1",
        b"* 1 FETCH (BODY[] {5}\r\nabc)",
    ] {
        assert!(matches!(read(bad), Response::Unreadable(_)), "{}", bad.escape_ascii());
    }
}

#[test]
fn folders_and_searches() {
    let list = |name: &str, delimiter| Data::List {
        attributes: vec!["\\HasNoChildren".to_owned()],
        delimiter,
        name: name.to_owned(),
    };
    assert_eq!(data_of(b"* LIST (\\HasNoChildren) \"/\" INBOX"), list("INBOX", Some('/')));
    assert_eq!(data_of(b"* LIST (\\HasNoChildren) NIL {3}\r\na\"b"), list("a\"b", None));
    assert_eq!(data_of(b"* LIST (\\HasNoChildren) \"\\\\\" NIL"), list("NIL", Some('\\')));
    assert_eq!(data_of("* LIST (\\HasNoChildren) \".\" \"ä\"".as_bytes()), list("ä", Some('.')));
    assert_eq!(data_of(b"* SEARCH 2 84 882 (MODSEQ 9)"), Data::Search(vec![2, 84, 882]));
    assert_eq!(data_of(b"* SEARCH"), Data::Search(vec![]));
    let set = NumberSet::parse(b"1:3,9");
    let extended = b"* ESEARCH (TAG \"v1\") UID ALL 1:3,9 MODSEQ 7";
    assert_eq!(data_of(extended), Data::ExtendedSearch(set.clone()));
    assert_eq!(data_of(b"* ESEARCH (TAG \"ALL\") UID"), Data::ExtendedSearch(None));
    let uids = set.unwrap();
    assert_eq!(data_of(b"* VANISHED (EARLIER) 1:3,9"), Data::Vanished { earlier: true, uids });
    let figures = Figures { messages: Some(3), uid_next: Some(8), ..Figures::default() };
    let status = Data::Status { name: "a b".to_owned(), figures };
    assert_eq!(data_of(b"* STATUS \"a b\" (MESSAGES 3 UIDNEXT 8 X 1)"), status);
    let place = |prefix: &str| vec![Namespace { prefix: prefix.to_owned(), delimiter: Some('/') }];
    assert_eq!(
        data_of(b"* NAMESPACE ((\"\" \"/\")) NIL ((\"Shared/\" \"/\" \"X\" (\"y\")))"),
        Data::Namespace { personal: place(""), others: vec![], shared: place("Shared/") }
    );
    assert_eq!(data_of(b"* XYZ (\"unclosed"), Data::Other);
    for bad in [
        &b"* SEARCH 1 x"[..],
        b"* SEARCH 1 4294967296",
        b"* ESEARCH ALL *",
        b"* LIST x",
        b"* VANISHED 1:*",
        b"x y z",
        b"",
    ] {
        assert!(matches!(read(bad), Response::Unreadable(_)), "{}", bad.escape_ascii());
    }
}

#[test]
fn flags_are_atoms() {
    for good in ["\\Seen", "$Forwarded", "NonJunk", "a/b"] {
        assert_eq!(Flag::new(good).unwrap().as_str(), good);
    }
    for bad in ["", "\\", "a b", "a)", "\\*", "a\\b", "ä", "a\r\n", "a\"", "a]"] {
        assert_eq!(Flag::new(bad), None, "{bad}");
    }
    assert!(Flag::new("\\SEEN").unwrap().is("\\Seen"));
}

proptest! {
    /// Whatever a server sends is understood or not, but harms nobody.
    #[test]
    fn no_response_harms(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&input);
    }

    /// What is made of the pieces of real responses, in any order.
    #[test]
    fn no_sequence_of_words_harms(words in proptest::collection::vec(proptest::sample::select(vec![
        "*", "1", "FETCH", "(", ")", " ", "\"", "\\", "{3}\r\n", "abc", "UID", "FLAGS", "BODY[", "]",
        "<", ">", "LIST", "SEARCH", "OK", "[", "NIL", "STATUS", "NAMESPACE", "ESEARCH", "ALL", "1:9", "~",
    ]), 0..40)) {
        let input = words.concat();
        let _ = read(input.as_bytes());
        let _ = read(format!("* 1 FETCH ({input}").as_bytes());
        let _ = read(format!("* OK [{input}").as_bytes());
    }
}
