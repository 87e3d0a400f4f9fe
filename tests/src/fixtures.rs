//! What is sent: the EICAR test file, random bytes, archives, messages.

/// The EICAR test file (68 bytes), put together at run time so that no scanner stumbles over this source.
pub fn eicar() -> Vec<u8> {
    let mut file = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$".to_vec();
    file.extend_from_slice(b"EICAR-STANDARD-");
    file.extend_from_slice(b"ANTIVIRUS-TEST-FILE!$H+H*");
    file
}

/// `len` bytes that no compressor shortens, the same for the same `seed` (xorshift64*).
pub fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Base64 with line breaks as MIME wants them (76 columns, CRLF).
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len() / 3 * 4 + bytes.len() / 57 * 2 + 6);
    for line in bytes.chunks(57) {
        for group in line.chunks(3) {
            let word = group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte))
                << (8 * (3 - group.len()));
            for place in 0..4 {
                if place <= group.len() {
                    let index = (word >> (18 - 6 * place)) & 63;
                    out.push(char::from(ALPHABET[index as usize]));
                } else {
                    out.push('=');
                }
            }
        }
        out.push_str("\r\n");
    }
    out
}

/// A zip archive of these members, uncompressed.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let length = content.len() as u32;
        // Version 2.0, no flags, stored, 1980-01-01 (APPNOTE 4.3.7 and 4.3.12).
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        for word in [crc.sum(), length, length] {
            common.extend(word.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        directory.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 10]].concat());
        directory.extend((archive.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        archive.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), content].concat());
    }
    let (start, length) = (archive.len() as u32, directory.len() as u32);
    let count = (members.len() as u16).to_le_bytes();
    archive.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count, &count].concat());
    archive.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    archive.extend([0; 2]);
    archive
}

/// A plain message with CRLF line ends, ready for DATA except for dot-stuffing and the final dot.
pub fn message(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "From: Alice <alice@client.example>\r\nTo: Bob <bob@server.example>\r\nSubject: {subject}\r\n\
         Message-ID: <{}@client.example>\r\nDate: Sun, 22 Nov 2026 02:00:00 +0000\r\n\r\n{body}\r\n",
        subject.replace(' ', "-")
    )
    .into_bytes()
}

/// A MIME message with one text part and one base64 attachment.
pub fn message_with_attachment(subject: &str, name: &str, attachment: &[u8]) -> Vec<u8> {
    format!(
        "From: Alice <alice@client.example>\r\nTo: Bob <bob@server.example>\r\nSubject: {subject}\r\n\
         Date: Sun, 22 Nov 2026 02:00:00 +0000\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=\"=-part\"\r\n\r\n\
         --=-part\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nSee the attachment.\r\n\
         --=-part\r\nContent-Type: application/octet-stream; name=\"{name}\"\r\n\
         Content-Disposition: attachment; filename=\"{name}\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}--=-part--\r\n",
        base64(attachment)
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eicar_is_the_published_file() {
        assert_eq!(eicar().len(), 68);
        assert_eq!(eicar().iter().map(|&byte| u32::from(byte)).sum::<u32>(), 4_622);
    }

    #[test]
    fn base64_pads_and_breaks_lines() {
        assert_eq!(base64(b"M"), "TQ==\r\n");
        assert_eq!(base64(b"Ma"), "TWE=\r\n");
        assert_eq!(base64(b"Man"), "TWFu\r\n");
        assert_eq!(base64(&[0; 58]).lines().map(str::len).collect::<Vec<_>>(), [76, 4]);
    }

    #[test]
    fn random_is_repeatable() {
        assert_eq!(random(1000, 7), random(1000, 7));
        assert_ne!(random(1000, 7), random(1000, 8));
        assert_eq!(random(13, 1).len(), 13);
    }
}
