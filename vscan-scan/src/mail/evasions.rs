//! Messages that mail readers read and scanners miss: one test for each trick. The mark has to be found in each.

use super::tests::{OCTETS, attached, base64, mime, qp};
use super::{binhex, tnef, uu, yenc};
use crate::limits::Limits;
use crate::object::tests::{MARK, scan_with};
use crate::report::Verdict;
use crate::wire::ObjectKind;

#[track_caller]
fn found(message: impl AsRef<[u8]>) {
    let message = message.as_ref();
    let report = scan_with(&Limits::default(), ObjectKind::Message, message);
    let text = String::from_utf8_lossy(message);
    assert_eq!(report.verdict, Verdict::Infected, "{report:#?}\n{text}");
}

fn whole() -> String {
    attached(OCTETS, &base64(MARK))
}

/// The mark quoted-printable in a part that is no text: nothing but the structure leads to it.
fn hidden() -> String {
    attached("Content-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable", &qp(MARK))
}

#[track_caller]
fn changed(from: &str, to: &str) -> String {
    let whole = hidden();
    assert!(whole.contains(from), "{from}");
    whole.replacen(from, to, 1)
}

macro_rules! evasions {
    ($($name:ident: $message:expr;)+) => { $(#[test] fn $name() { found($message); })+ };
}

evasions! {
    mismatched_boundary: changed("boundary=\"=_b\"", "boundary=\"=_other\"");
    missing_boundary: changed("; boundary=\"=_b\"", "");
    two_boundaries_the_first_false: changed("boundary=\"=_b\"", "boundary=\"x\"; boundary=\"=_b\"");
    two_boundaries_the_second_false: changed("boundary=\"=_b\"", "boundary=\"=_b\"; boundary=\"x\"");
    boundary_in_pieces: changed("boundary=\"=_b\"", "boundary*0=\"=\"; boundary*1=\"_b\"");
    boundary_in_pieces_out_of_sequence: changed("boundary=\"=_b\"", "boundary*1=\"_b\"; boundary*0=\"=\"");
    boundary_in_escapes: changed("boundary=\"=_b\"", "boundary*=us-ascii''%3D%5Fb");
    boundary_as_an_encoded_word: changed("boundary=\"=_b\"", "boundary=\"=?us-ascii?q?=3D=5Fb?=\"");
    boundary_with_blanks: changed("boundary=\"=_b\"", "boundary=\"=_b  \"");
    boundary_with_backslashes: changed("boundary=\"=_b\"", "boundary=\"\\=\\_b\"");
    boundary_with_a_nul: changed("boundary=\"=_b\"", "boundary=\"=_b\0x\"");
    boundary_behind_a_comment: changed("boundary=\"=_b\"", "(x) boundary (y) = (z) \"=_b\"");
    boundary_without_quotes_and_with_a_comment: changed("boundary=\"=_b\"", "boundary==_b(x)");
    boundary_folded: changed("boundary=\"=_b\"", "\r\n boundary\r\n\t=\r\n \"=_b\"");
    type_with_a_comment: changed("multipart/mixed", "multi(no)part/(yes)mixed");
    type_twice_multipart_first: changed("MIME-Version: 1.0\r\n", "Content-Type: multipart/mixed; boundary=\"=_b\"\r\nMIME-Version: 1.0\r\n").replacen("boundary=\"=_b\"\r\n\r\n", "boundary=q\r\n\r\n", 1);
    type_twice_text_first: changed("MIME-Version", "Content-Type: text/plain\r\nMIME-Version");
    type_twice_leaf_besides_multipart: mime("Content-Type: multipart/mixed; boundary=b\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64", &format!("{}--b\r\n\r\nx\r\n--b--\r\n", base64(MARK)));
    type_missing: changed("Content-Type: multipart/mixed; boundary=\"=_b\"\r\n", "");
    type_behind_a_blank_line: changed("Content-Type: multipart", "\r\nContent-Type: multipart");
    closing_delimiter_missing: hidden().replace("--=_b--\r\n", "");
    closing_delimiter_first: changed("Hello.\r\n--=_b\r\n", "Hello.\r\n--=_b--\r\n--=_b\r\n");
    delimiter_with_blanks: changed("Hello.\r\n--=_b\r\n", "Hello.\r\n--=_b \t \r\n");
    delimiter_with_a_tail: changed("Hello.\r\n--=_b\r\n", "Hello.\r\n--=_bx\r\n");
    delimiter_after_a_bare_lf: changed("Hello.\r\n--=_b\r\n", "Hello.\n--=_b\n");
    delimiter_after_a_bare_cr: changed("Hello.\r\n--=_b\r\n", "Hello.\r--=_b\r");
    a_true_delimiter_hides_one_with_a_tail: changed("Preamble.\r\n--=_b\r\nContent-Type: text/plain\r\n\r\nHello.\r\n--=_b\r\n", "--=_b\r\n\r\nx\r\n--=_bx\r\n");
    nested_boundary_is_a_prefix: mime("Content-Type: multipart/mixed; boundary=b", &format!("--b\r\nContent-Type: multipart/mixed; boundary=bb\r\n\r\n--bb\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{}\r\n--bb--\r\n--b--\r\n", qp(MARK)));
    nested_boundary_is_the_same: mime("Content-Type: multipart/mixed; boundary=b", &format!("--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{}\r\n--b--\r\n--b--\r\n", qp(MARK)));
    in_the_preamble: changed("Preamble.", &qp(MARK));
    in_the_epilogue: format!("{}{}", hidden().replace(&qp(MARK), "x"), base64(MARK));
    no_blank_line: changed(": quoted-printable\r\n\r\n", ": quoted-printable\r\n");
    blank_line_with_blanks: changed("Content-Type: a/b\r\n", "X-A: b\r\n \t\r\nContent-Type: a/b\r\n");
    blank_line_of_bare_cr: changed(": quoted-printable\r\n\r\n", ": quoted-printable\r\r");
    fields_ended_by_bare_cr: changed("Content-Type: a/b\r\n", "Content-Type: a/b\r");
    field_that_is_none: changed("Content-Type: a/b\r\n", "no field\r\nContent-Type: a/b\r\n");
    field_with_a_nul: changed("Content-Transfer-Encoding", "Content-Tra\0nsfer-Encoding");
    field_with_blanks_before_its_colon: changed("Encoding:", "Encoding \t:");
    field_folded_at_its_colon: changed("Encoding: quoted", "Encoding:\r\n quoted");
    lines_end_in_lf: hidden().replace("\r\n", "\n");
    lines_end_in_cr: hidden().replace("\r\n", "\r");
    encoding_twice_true_last: changed(": quoted-printable", ": 7bit\r\nContent-Transfer-Encoding: quoted-printable");
    encoding_twice_true_first: changed(": quoted-printable", ": quoted-printable\r\nContent-Transfer-Encoding: 7bit");
    encoding_with_a_comment: changed(": quoted-printable", ": (7bit) quoted(x)-printable");
    encoding_in_quotes: changed(": quoted-printable", ": \"quoted-printable\"");
    encoding_unknown_quoted_printable: changed(": quoted-printable", ": x-quoted");
    encoding_unknown_base64: whole().replace(": base64", ": base-64-really");
    encoding_called_7bit: whole().replace(": base64", ": 7bit");
    encoding_called_quoted_printable: whole().replace(": base64", ": quoted-printable");
    encoding_called_base64_uuencoded: whole().replace(&base64(MARK), &uu::encode("m", MARK, "\r\n"));
    base64_padded_in_mid_stream: attached(OCTETS, &format!("{}{}", base64(&MARK[..10]), base64(&MARK[10..])));
    base64_padded_within_a_quantum: attached(OCTETS, &{ let mut b = base64(MARK).into_bytes(); b.splice(9..9, *b"="); String::from_utf8(b).unwrap() });
    base64_with_junk: attached(OCTETS, &base64(MARK).chars().map(|c| if c == 'h' { "*h".to_owned() } else { c.into() }).collect::<String>());
    base64_with_nuls: attached(OCTETS, &base64(MARK).replace('G', "\0G"));
    base64_in_one_line: attached(OCTETS, &base64(MARK).replace("\r\n", ""));
    base64_a_letter_a_line: attached(OCTETS, &base64(MARK).chars().map(|c| format!("{c}\r\n")).collect::<String>());
    quoted_printable_in_lower_case_with_soft_breaks: attached("Content-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable", &MARK.iter().map(|b| format!("={b:02x}= \r\n")).collect::<String>());
    multipart_in_base64: mime("Content-Type: multipart/mixed; boundary=i\r\nContent-Transfer-Encoding: base64", &base64(hidden().as_bytes()));
    multipart_in_base64_with_a_decoy: mime("Content-Type: multipart/mixed; boundary=i\r\nContent-Transfer-Encoding: base64", &format!("--i\r\n\r\nx\r\n--i--\r\n{}", base64(format!("AB{}", hidden()).as_bytes())));
    message_in_base64: attached("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", &base64(hidden().as_bytes()));
    message_in_quoted_printable: attached("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable", &qp(hidden().as_bytes()));
    message_as_octets: attached("Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64", &base64(hidden().as_bytes()));
    message_in_a_text_in_base64: attached("Content-Type: text/plain\r\nContent-Transfer-Encoding: base64", &base64(hidden().as_bytes()));
    text_in_utf_16_little_endian: attached("Content-Type: text/plain; charset=utf-16le\r\nContent-Transfer-Encoding: base64", &base64(&MARK.iter().flat_map(|&b| [b, 0]).collect::<Vec<_>>()));
    text_in_utf_16_big_endian: attached("Content-Type: text/html; charset=\"UTF-16\"\r\nContent-Transfer-Encoding: base64", &base64(&MARK.iter().flat_map(|&b| [0, b]).collect::<Vec<_>>()));
    text_in_utf_32: attached("Content-Type: text/html; charset=utf-32\r\nContent-Transfer-Encoding: base64", &base64(&MARK.iter().flat_map(|&b| [0, 0, 0, b]).collect::<Vec<_>>()));
    text_in_utf_7: attached("Content-Type: text/html; charset=utf-7", &format!("+{}-", base64(&MARK.iter().flat_map(|&b| [0, b]).collect::<Vec<_>>()).replace(['\r', '\n', '='], "")));
    uuencoded_in_a_text: mime("Content-Type: text/plain", &format!("see\r\n{}bye", uu::encode("m", MARK, "\r\n")));
    uuencoded_without_an_end: mime("X-A: b", uu::encode("m", MARK, "\r\n").trim_end_matches("`\r\nend\r\n"));
    uuencoded_in_lf: mime("X-A: b", &uu::encode("m", MARK, "\n"));
    uuencoded_in_a_preamble: changed("Preamble.", &uu::encode("m", MARK, "\r\n"));
    yenc_in_a_text: [mime("Content-Type: text/plain", "see\r\n").as_bytes(), &yenc::tests::encode("m", MARK)].concat();
    binhex_as_a_part: attached("Content-Type: application/mac-binhex40", &binhex::tests::encode("m", MARK));
    binhex_in_a_text: mime("Content-Type: text/plain", &format!("see\r\n{}", binhex::tests::encode("m", MARK)));
    tnef_as_a_part: attached("Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64", &base64(&tnef::tests::winmail("m", MARK)));
    appledouble: mime("Content-Type: multipart/appledouble; boundary=b", &format!("--b\r\nContent-Type: application/applefile\r\n\r\nx\r\n--b\r\n{OCTETS}\r\n\r\n{}\r\n--b--\r\n", base64(MARK)));
    digest_without_types: mime("Content-Type: multipart/digest; boundary=d", &format!("--d\r\n\r\n{}\r\n--d--\r\n", hidden()));
    message_partial_with_content: mime("Content-Type: message/partial; id=a; number=1; total=2", &base64(MARK));
    a_decoy_of_many_parts: mime("Content-Type: multipart/mixed; boundary=b", &format!("{}--b\r\n{OCTETS}\r\n\r\n{}\r\n--b--\r\n", "--b\r\n\r\nx\r\n".repeat(500), base64(MARK)));
}
