//! Hostile bytes put where a decoder is that only a right wrapping leads to.

/// A zip archive of one member: the first byte chooses its method, the second its flags, the next its size where it has
/// one; the packed bytes follow.
pub(crate) fn zip_member(data: &[u8]) -> Option<Vec<u8>> {
    const METHODS: [u16; 16] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 20, 93, 95, 98, 99];
    let [method, flags, size @ .., _] = data.get(..4)? else { return None };
    let packed = &data[4..];
    let size = u32::from(u16::from_le_bytes([size[0], *data.get(3)?]));
    let mut out = b"PK\x03\x04\x14\0".to_vec();
    // Encrypted, bits of the method, a descriptor behind.
    out.extend([flags & 0x0f, 0]);
    out.extend(METHODS[usize::from(method % 16)].to_le_bytes());
    out.extend([0; 8]);
    out.extend((packed.len() as u32).to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend([1, 0, 11, 0]);
    out.push(b'm');
    // The extra field of AES (APPNOTE.TXT 7): AE-2, the strength, the method inside.
    out.extend([1, 0x99, 7, 0, 2, 0, b'A', b'E', 1 + flags % 3, 8, 0]);
    out.extend(packed);
    Some(out)
}

/// A PDF with one stream, whose filters the first two bytes choose.
pub(crate) fn pdf_stream(data: &[u8]) -> Option<Vec<u8>> {
    const FILTERS: [&str; 8] = [
        "/FlateDecode",
        "/LZWDecode",
        "/ASCIIHexDecode",
        "/ASCII85Decode",
        "/RunLengthDecode",
        "/Crypt",
        "/Fl /LZW",
        "/DCTDecode",
    ];
    let [one, two, packed @ ..] = data else { return None };
    let filter = |byte: u8| FILTERS[usize::from(byte % 8)];
    let second = if two & 0x80 == 0 { "" } else { filter(*two) };
    let head = format!(
        "%PDF-1.4\n1 0 obj\n<< /Type /EmbeddedFile /Filter [ {} {second} ] /DecodeParms [ << /Predictor {} /Columns {} \
         /Colors {} /EarlyChange {} >> ] /Length {} >>\nstream\n",
        filter(*one),
        one >> 3,
        two & 15,
        two >> 4 & 3,
        two >> 6 & 1,
        packed.len()
    );
    Some([head.as_bytes(), packed, b"\nendstream\nendobj\n%%EOF\n"].concat())
}

/// An OLE2 file (MS-CFB) with the streams `dir`, which begins at the start of the data and is as long as the first byte
/// says, and `Module1`, the rest: each in a compressed container (MS-OVBA 2.4.1) as it is.
pub(crate) fn vba(data: &[u8]) -> Option<Vec<u8>> {
    const END: u32 = 0xffff_fffe;
    let (&split, rest) = data.split_first()?;
    let (dir, module) = rest.split_at(usize::from(split).min(rest.len()));
    // Streams of 4096 bytes and more lie in sectors of their own: both are filled up with zeros.
    let mut sectors = Vec::new();
    let mut fat = vec![0xffff_fffd];
    let mut starts = Vec::new();
    for stream in [dir, module] {
        let len = stream.len().max(4096).next_multiple_of(512);
        starts.push((fat.len() as u32, len as u32));
        let last = (fat.len() + len / 512 - 1) as u32;
        fat.extend((fat.len() as u32 + 1..=last).chain([END]));
        sectors.extend_from_slice(stream);
        sectors.resize(sectors.len() + len - stream.len(), 0);
    }
    let first_directory = fat.len() as u32;
    fat.push(END);
    // One sector of the FAT has 128 numbers.
    if fat.len() > 128 {
        return None;
    }
    fat.resize(128, 0xffff_ffff);
    let mut directory = Vec::new();
    let names = ["Root Entry", "dir", "Module1"];
    for (i, name) in names.iter().enumerate() {
        let mut entry: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let name_len = entry.len() as u16 + 2;
        entry.resize(64, 0);
        entry.extend(name_len.to_le_bytes());
        entry.push(if i == 0 { 5 } else { 2 });
        entry.resize(116, 0);
        let (start, len) = if i == 0 { (END, 0) } else { starts[i - 1] };
        entry.extend(start.to_le_bytes());
        entry.extend(u64::from(len).to_le_bytes());
        directory.extend(entry);
    }
    directory.resize(512, 0);
    let mut out = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec();
    out.resize(24, 0);
    out.extend([0x3e, 0, 3, 0, 0xfe, 0xff, 9, 0, 6, 0]);
    out.resize(44, 0);
    for field in [1, first_directory, 0, 4096, END, 0, END, 0, 0] {
        out.extend(u32::to_le_bytes(field));
    }
    out.resize(512, 0xff);
    out.extend(fat.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(sectors);
    out.extend(directory);
    Some(out)
}

/// A UDF volume: the bytes in sectors of 2048, each of which has the checksum of a descriptor; the last one is where
/// readers look for the anchor.
pub(crate) fn udf(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    out.resize(out.len().max(1).next_multiple_of(2048), 0);
    for sector in out.chunks_mut(2048) {
        sector[4] = 0;
        sector[4] = sector[..16].iter().fold(0, |sum: u8, &b| sum.wrapping_add(b));
    }
    out
}

/// A message with the bytes where names are: in its subject, as a parameter, and in pieces of one.
pub(crate) fn names(data: &[u8]) -> Vec<u8> {
    let line: Vec<u8> = data.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    [
        b"From: a@b\r\nSubject: ",
        &line[..],
        b"\r\nMIME-Version: 1.0\r\nContent-Disposition: attachment; filename=",
        &line[..],
        b"\r\nContent-Type: application/x-a; name*0*=",
        &line[..],
        b"; name*1=\"",
        &line[..],
        b"\"\r\n\r\n",
        data,
    ]
    .concat()
}

/// A message of text in a character set that the first byte chooses.
pub(crate) fn charset(data: &[u8]) -> Option<Vec<u8>> {
    const SETS: [&str; 8] =
        ["utf-7", "utf-16", "utf-16le", "utf-16be", "utf-32", "iso-2022-jp", "gb18030", "koi8-r"];
    let (&set, body) = data.split_first()?;
    let head = format!("Content-Type: text/html; charset={}\r\n\r\n", SETS[usize::from(set % 8)]);
    Some([head.as_bytes(), body].concat())
}
