use super::*;
use vscan_common::FlowKey;

impl Packet for Vec<u8> {
    fn load<T: Plain>(&self, at: usize) -> Option<T> {
        let bytes = self.get(at..at.checked_add(size_of::<T>())?)?;
        // SAFETY: as many bytes as T has, read without alignment; any bytes are a T.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

fn eth(kind: u16) -> Vec<u8> {
    let mut p = vec![0x02; 12];
    p.extend(kind.to_be_bytes());
    p
}

fn tcp(sport: u16, dport: u16, flags: u8) -> Vec<u8> {
    let mut t = Vec::new();
    t.extend(sport.to_be_bytes());
    t.extend(dport.to_be_bytes());
    t.extend(0x1122_3344_u32.to_be_bytes());
    t.extend(0x5566_7788_u32.to_be_bytes());
    t.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    t
}

fn v4(options: usize, fragment: u16, protocol: u8) -> Vec<u8> {
    let mut p = vec![0; 20 + options];
    p[0] = 0x40 | (5 + options / 4) as u8;
    p[6..8].copy_from_slice(&fragment.to_be_bytes());
    p[9] = protocol;
    p[12..16].copy_from_slice(&[192, 0, 2, 1]);
    p[16..20].copy_from_slice(&[198, 51, 100, 2]);
    p
}

fn v6(next: u8) -> Vec<u8> {
    let mut p = vec![0; 40];
    p[0] = 0x60;
    p[6] = next;
    p[8..24].copy_from_slice(&"2001:db8::1".parse::<std::net::Ipv6Addr>().expect("v6").octets());
    p[24..40].copy_from_slice(&"2001:db8::2".parse::<std::net::Ipv6Addr>().expect("v6").octets());
    p
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn read(packet: &Vec<u8>, start: Start) -> Segment {
    let Found::Tcp { v6, ip, tcp } = find(packet, start) else {
        panic!("{:?}", find(packet, start));
    };
    let ports = ports(packet, tcp).expect("ports");
    segment(packet, v6, ip, tcp, ports).expect("a segment")
}

fn key4(sport: u16, dport: u16) -> FlowKey {
    FlowKey {
        src: Address::v4(u32::from_ne_bytes([192, 0, 2, 1])),
        dst: Address::v4(u32::from_ne_bytes([198, 51, 100, 2])),
        sport,
        dport,
    }
}

#[test]
fn plain_ipv4() {
    let p = joined(&[eth(ETH_P_IP), v4(0, 0x4000, 6), tcp(40000, 21, SYN)]);
    let s = read(&p, Start::Ethernet);
    assert_eq!(s.key, key4(40000, 21));
    assert_eq!((s.seq, s.ack), (0x1122_3344, 0x5566_7788));
    assert!(s.opens() && !s.answers());
}

#[test]
fn ipv4_options_move_the_tcp_header() {
    for options in [4, 8, 40] {
        let p = joined(&[eth(ETH_P_IP), v4(options, 0, 6), tcp(1, 25, SYN | ACK)]);
        let s = read(&p, Start::Ethernet);
        assert_eq!(s.key, key4(1, 25));
        assert!(s.answers());
    }
}

#[test]
fn one_and_two_tags_are_walked_three_are_not() {
    let tag = |kind: u16| [vec![0, 10], kind.to_be_bytes().to_vec()].concat();
    let rest = joined(&[v4(0, 0, 6), tcp(2, 21, SYN)]);
    let one = joined(&[eth(ETH_P_8021Q), tag(ETH_P_IP), rest.clone()]);
    assert_eq!(read(&one, Start::Ethernet).key, key4(2, 21));
    let two = joined(&[eth(ETH_P_8021AD), tag(ETH_P_8021Q), tag(ETH_P_IP), rest.clone()]);
    assert_eq!(read(&two, Start::Ethernet).key, key4(2, 21));
    let three =
        joined(&[eth(ETH_P_8021AD), tag(ETH_P_8021Q), tag(ETH_P_8021Q), tag(ETH_P_IP), rest]);
    assert_eq!(find(&three, Start::Ethernet), Found::Deep);
}

#[test]
fn devices_without_ethernet_header() {
    let p = joined(&[v4(0, 0, 6), tcp(3, 21, SYN)]);
    assert_eq!(read(&p, Start::Ip).key, key4(3, 21));
    let p = joined(&[v6(6), tcp(3, 21, SYN)]);
    assert_eq!(read(&p, Start::Ip).key.dport, 21);
    assert_eq!(find(&vec![0x10, 0, 0], Start::Ip), Found::Other);
    assert_eq!(find(&Vec::new(), Start::Ip), Found::Short);
}

#[test]
fn ipv6_with_extension_headers() {
    let p = joined(&[eth(ETH_P_IPV6), v6(6), tcp(9, 25, SYN)]);
    let s = read(&p, Start::Ethernet);
    let mut one = [0_u8; 16];
    one[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    one[15] = 1;
    let bytes: Vec<u8> = s.key.src.0.iter().flat_map(|w| w.to_ne_bytes()).collect();
    assert_eq!(bytes, one);

    // hop-by-hop of 16 bytes, destination options of 8, AH of 24, then TCP
    let mut hop = vec![0; 16];
    hop[..2].copy_from_slice(&[IPPROTO_DSTOPTS, 1]);
    let mut dst = vec![0; 8];
    dst[..2].copy_from_slice(&[IPPROTO_AH, 0]);
    let mut ah = vec![0; 24];
    ah[..2].copy_from_slice(&[IPPROTO_TCP, 4]);
    let p = joined(&[eth(ETH_P_IPV6), v6(IPPROTO_HOPOPTS), hop, dst, ah, tcp(9, 25, SYN)]);
    assert_eq!(read(&p, Start::Ethernet).key.dport, 25);
}

#[test]
fn a_chain_of_headers_ends_somewhere() {
    let mut p = joined(&[eth(ETH_P_IPV6), v6(IPPROTO_DSTOPTS)]);
    for _ in 0..EXT_MAX {
        let mut header = vec![0; 8];
        header[0] = IPPROTO_DSTOPTS;
        p.extend(header);
    }
    let mut deep = p.clone();
    deep.extend([IPPROTO_TCP, 0, 0, 0, 0, 0, 0, 0]);
    deep.extend(tcp(1, 21, SYN));
    assert_eq!(find(&deep, Start::Ethernet), Found::Deep);
    let last = p.len() - 8;
    p[last] = IPPROTO_TCP;
    p.extend(tcp(1, 21, SYN));
    assert_eq!(read(&p, Start::Ethernet).key.dport, 21);
}

#[test]
fn fragments_are_left_alone() {
    for fragment in [0x2000, 0x2001, 0x0001, 0x1fff] {
        let p = joined(&[eth(ETH_P_IP), v4(0, fragment, 6), tcp(1, 21, SYN)]);
        assert_eq!(find(&p, Start::Ethernet), Found::Fragment);
    }
    let p = joined(&[eth(ETH_P_IPV6), v6(IPPROTO_FRAGMENT), vec![6, 0, 0, 1, 0, 0, 0, 0]]);
    assert_eq!(find(&p, Start::Ethernet), Found::Fragment);
}

#[test]
fn what_is_not_tcp_is_other() {
    assert_eq!(find(&joined(&[eth(0x0806), vec![0; 28]]), Start::Ethernet), Found::Other);
    assert_eq!(find(&joined(&[eth(ETH_P_IP), v4(0, 0, 17)]), Start::Ethernet), Found::Other);
    assert_eq!(find(&joined(&[eth(ETH_P_IPV6), v6(58)]), Start::Ethernet), Found::Other);
    // a header length below 20 is a lie
    let mut p = joined(&[eth(ETH_P_IP), v4(0, 0, 6), tcp(1, 21, SYN)]);
    p[14] = 0x44;
    assert_eq!(find(&p, Start::Ethernet), Found::Other);
}

#[test]
fn cut_at_every_byte_nothing_is_invented() {
    let mut hop = vec![0; 8];
    hop[0] = IPPROTO_TCP;
    for whole in [
        joined(&[eth(ETH_P_IP), v4(8, 0, 6), tcp(1, 21, SYN)]),
        joined(&[eth(ETH_P_IPV6), v6(IPPROTO_HOPOPTS), hop, tcp(1, 21, SYN)]),
    ] {
        for end in 0..whole.len() {
            let cut = whole[..end].to_vec();
            if let Found::Tcp { v6, ip, tcp } = find(&cut, Start::Ethernet) {
                let read = ports(&cut, tcp).and_then(|ports| segment(&cut, v6, ip, tcp, ports));
                assert_eq!(read, None, "cut at {end}");
            }
        }
    }
}
