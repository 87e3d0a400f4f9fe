//! Encrypted members: the ciphers against their standards, and whole archives in messages that tell the password.

use super::*;
use crate::limits::Limits;
use crate::mail::encoding::to_base64;
use crate::object::tests::{MARK, Zip, reasons, scan_with};
use crate::report::Verdict;
use crate::wire::ObjectKind;

/// Encrypts by the traditional cipher.
fn traditional(password: &[u8], crc: u32, packed: &[u8]) -> Vec<u8> {
    let mut keys = Traditional::new(password);
    let header = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, (crc >> 24) as u8];
    let plain = [&header[..], packed].concat();
    plain
        .into_iter()
        .map(|b| {
            let out = b ^ keys.stream();
            keys.update(b);
            out
        })
        .collect()
}

/// Encrypts by WinZip's AES.
fn winzip(password: &[u8], strength: u8, packed: &[u8]) -> Vec<u8> {
    let len = 8 + 8 * usize::from(strength);
    let salt = vec![0x5a; len / 2];
    let keys = pbkdf2(password, &salt, 2 * len + 2);
    let data = counter(&keys[..len], packed).unwrap();
    let code = hmac(&keys[len..2 * len], &[&data]);
    [&salt, &keys[2 * len..], &data, &code[..10]].concat()
}

fn crc(data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(data);
    crc.sum()
}

fn mail(text: &str, zip: &[u8]) -> Vec<u8> {
    let body = to_base64(zip, 76, "\r\n");
    format!(
        "Subject: invoice\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n{body}\r\n--b\r\n\r\n{text}\r\n--b--\r\n"
    )
    .into_bytes()
}

#[test]
fn derived_keys_follow_their_standards() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    // RFC 2202 section 3, test cases 1 and 6.
    assert_eq!(hex(&hmac(&[0x0b; 20], &[b"Hi There"])), "b617318655057264e28bc0b6fb378c8ef146be00");
    assert_eq!(
        hex(&hmac(&[0xaa; 80], &[b"Test Using Larger Than Block-Size Key - Hash Key First"])),
        "aa4ae5e15272d00e95705637ce8a3b55ed402112"
    );
    // Python: hashlib.pbkdf2_hmac("sha1", b"password", b"ATHENA.MIT.EDUraeburn", 1000, 24)
    assert_eq!(hex(&pbkdf2(b"password", b"ATHENA.MIT.EDUraeburn", 24)), PBKDF2);
}

/// See the test above.
const PBKDF2: &str = "fa82d29d29254ba13a820965681845d7b569a4d07f657fde";

#[test]
fn archives_open_with_the_password_that_the_mail_tells() {
    let stored = traditional(b"Sesame42", crc(MARK), MARK);
    let zip = Zip::default().summed(MARK).member("m.com", 1, 0, &stored, MARK.len()).done();
    for (text, verdict) in [
        ("The password is Sesame42.", Verdict::Infected),
        ("The password is Sesame43.", Verdict::Unscannable),
    ] {
        let report = scan_with(&Limits::default(), ObjectKind::Message, &mail(text, &zip));
        assert_eq!(report.verdict, verdict, "{report:#?}");
    }
    for strength in 1..=3 {
        let packed = winzip("pä55".as_bytes(), strength, MARK);
        let extra = [&[0x01, 0x99, 7, 0, 2, 0][..], b"AE", &[strength, 0, 0]].concat();
        let zip = Zip::default().extra(&extra).member("m.com", 1, 99, &packed, MARK.len()).done();
        let report =
            scan_with(&Limits::default(), ObjectKind::Message, &mail("Kennwort: pä55", &zip));
        assert_eq!(report.verdict, Verdict::Infected, "{report:#?}");
        let report = scan_with(&Limits::default(), ObjectKind::Message, &mail("none", &zip));
        assert_eq!(reasons(&report), [Reason::Encrypted]);
    }
}

#[test]
fn a_wrong_password_never_opens_and_many_members_end() {
    let packed = traditional(b"right", crc(MARK), MARK);
    for wrong in 0..2000u32 {
        let sealed = Sealed {
            name: "m",
            flags: 1,
            method: 0,
            crc: crc(MARK),
            time: 0,
            size: Some(MARK.len() as u64),
            extra: &[],
            packed: &packed,
        };
        if let Some((method, plain)) = decrypted(&sealed, format!("w{wrong}").as_bytes()) {
            assert!(!fits(&sealed, method, &plain, 1 << 20), "{wrong}");
        }
    }
    let mut zip = Zip::default();
    let extra = [&[0x01, 0x99, 7, 0, 2, 0][..], b"AE", &[3, 0, 0]].concat();
    let packed = winzip(b"right", 3, MARK);
    for i in 0..3000 {
        zip = zip.extra(&extra).member(&format!("m{i}"), 1, 99, &packed, MARK.len());
    }
    let words: String = (0..200).map(|i| format!("word{i} ")).collect();
    let started = std::time::Instant::now();
    let report = scan_with(&Limits::default(), ObjectKind::Message, &mail(&words, &zip.done()));
    assert_eq!(report.verdict, Verdict::Unscannable);
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}
