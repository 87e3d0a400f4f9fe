//! Addresses as FTP writes them: PORT and 227 (RFC 959), EPRT and 229 (RFC 2428).
//!
//! Only syntax; whether an address may be used is the session's business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why an address argument is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not the syntax of RFC 959 or RFC 2428.
    #[error("not an address")]
    Syntax,
    /// EPRT with a protocol number that is neither 1 (IPv4) nor 2 (IPv6).
    #[error("unknown network protocol")]
    Protocol,
}

/// Parses the argument of PORT, `h1,h2,h3,h4,p1,p2` (RFC 959 section 4.1.2).
///
/// # Errors
/// [`AddressError::Syntax`] for anything but six decimal numbers below 256.
pub fn parse_port(argument: &[u8]) -> Result<SocketAddr, AddressError> {
    let (address, rest) = six_numbers(trim(argument)).ok_or(AddressError::Syntax)?;
    if rest.is_empty() { Ok(address) } else { Err(AddressError::Syntax) }
}

/// Parses the argument of EPRT, `|2|::1|6446|` (RFC 2428 section 2); the delimiter is its first byte.
///
/// # Errors
/// [`AddressError::Protocol`] for an unknown protocol number, else [`AddressError::Syntax`].
pub fn parse_eprt(argument: &[u8]) -> Result<SocketAddr, AddressError> {
    let argument = trim(argument);
    let (&delimiter, rest) = argument.split_first().ok_or(AddressError::Syntax)?;
    if !(33..=126).contains(&delimiter) || delimiter.is_ascii_alphanumeric() {
        return Err(AddressError::Syntax);
    }
    let mut fields = rest.split(|&byte| byte == delimiter);
    let (Some(protocol), Some(host), Some(port), Some(b""), None) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(AddressError::Syntax);
    };
    let host = std::str::from_utf8(host).map_err(|_| AddressError::Syntax)?;
    let port = number(port, u16::MAX).ok_or(AddressError::Syntax)?;
    let host: IpAddr = match protocol {
        b"1" => host.parse::<Ipv4Addr>().map_err(|_| AddressError::Syntax)?.into(),
        b"2" => host.parse::<Ipv6Addr>().map_err(|_| AddressError::Syntax)?.into(),
        _ if number(protocol, u16::MAX).is_some() => return Err(AddressError::Protocol),
        _ => return Err(AddressError::Syntax),
    };
    Ok(SocketAddr::new(host, port))
}

/// Finds the address in a 227 reply. RFC 1123 section 4.1.2.6: the digits may stand anywhere.
pub fn parse_227(reply: &[u8]) -> Option<SocketAddr> {
    let text = reply.get(3..)?;
    (0..text.len())
        .filter(|&at| text[at].is_ascii_digit() && (at == 0 || !text[at - 1].is_ascii_digit()))
        .find_map(|at| six_numbers(&text[at..]))
        .map(|(address, _)| address)
}

/// Finds the port in a 229 reply, `(|||6446|)` with any delimiter (RFC 2428 section 3).
pub fn parse_229(reply: &[u8]) -> Option<u16> {
    let open = memchr::memchr(b'(', reply)?;
    let text = &reply[open + 1..];
    let (&delimiter, rest) = text.split_first()?;
    if !(33..=126).contains(&delimiter) || delimiter.is_ascii_digit() {
        return None;
    }
    // Some servers fill in the protocol and the address; RFC 2428 leaves both empty.
    let mut fields = rest.split(|&byte| byte == delimiter);
    let port = fields.nth(2)?;
    fields.next()?;
    number(port, u16::MAX).filter(|&port| port != 0)
}

/// The argument of PORT for `address`; `None` for IPv6.
pub fn format_port(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(host) = address.ip() else { return None };
    let [a, b, c, d] = host.octets();
    let [high, low] = address.port().to_be_bytes();
    Some(format!("{a},{b},{c},{d},{high},{low}"))
}

/// The argument of EPRT for `address`.
pub fn format_eprt(address: SocketAddr) -> String {
    let protocol = if address.is_ipv4() { 1 } else { 2 };
    format!("|{protocol}|{}|{}|", address.ip(), address.port())
}

fn trim(argument: &[u8]) -> &[u8] {
    argument.trim_ascii()
}

/// `a,b,c,d,p,q` at the front of `text`, and what follows it.
fn six_numbers(text: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let mut numbers = [0u8; 6];
    let mut rest = text;
    for (index, slot) in numbers.iter_mut().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(b",")?;
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        *slot = u8::try_from(number(&rest[..digits], 255)?).ok()?;
        rest = &rest[digits..];
    }
    let [a, b, c, d, high, low] = numbers;
    let port = u16::from_be_bytes([high, low]);
    Some((SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port), rest))
}

/// A decimal number of one to five digits, at most `most`.
fn number(digits: &[u8], most: u16) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    u16::try_from(value).ok().filter(|&value| value <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn port_arguments() {
        let check = |argument: &str, expect: Result<&str, AddressError>| {
            let expect = expect.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(parse_port(argument.as_bytes()), expect, "{argument}");
        };
        check("10,0,0,1,4,1", Ok("10.0.0.1:1025"));
        check(" 10,0,0,1,4,1 ", Ok("10.0.0.1:1025"));
        check("10,0,0,1,0,20", Ok("10.0.0.1:20"));
        for bad in ["", "10,0,0,1,4", "10,0,0,1,4,1,2", "256,0,0,1,4,1", "10,0,0,1,4,x"] {
            check(bad, Err(AddressError::Syntax));
        }
        for bad in ["10.0.0.1,4,1", "10,0,0,-1,4,1", "10,,0,1,4,1", "000010,0,0,1,4,1"] {
            check(bad, Err(AddressError::Syntax));
        }
    }

    #[test]
    fn eprt_arguments() {
        let check = |argument: &str, expect: Result<&str, AddressError>| {
            let expect = expect.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(parse_eprt(argument.as_bytes()), expect, "{argument}");
        };
        check("|1|10.0.0.1|1025|", Ok("10.0.0.1:1025"));
        check("|2|2001:db8:0:0:0:0:0:1|1025|", Ok("[2001:db8::1]:1025"));
        check("!2!::1!65535!", Ok("[::1]:65535"));
        check("|3|10.0.0.1|1025|", Err(AddressError::Protocol));
        for bad in ["", "|", "|1|10.0.0.1|1025", "|1|::1|1025|", "|2|10.0.0.1|1025|"] {
            check(bad, Err(AddressError::Syntax));
        }
        for bad in ["|1|10.0.0.1|65536|", "|1|10.0.0.1|1025||", "11110.0.0.1110251", "|x|::1|1|"] {
            check(bad, Err(AddressError::Syntax));
        }
    }

    #[test]
    fn passive_replies() {
        let check = |reply: &str, expect: Option<&str>| {
            let expect = expect.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(parse_227(reply.as_bytes()), expect, "{reply}");
        };
        check("227 Entering Passive Mode (10,0,0,1,4,1).\r\n", Some("10.0.0.1:1025"));
        check("227 =10,0,0,1,4,1\r\n", Some("10.0.0.1:1025"));
        check("227 mode 2 (0,0,0,0,200,7)\r\n", Some("0.0.0.0:51207"));
        check("227 10,0,0,1\r\n", None);
        check("22", None);
        let check =
            |reply: &str, expect| assert_eq!(parse_229(reply.as_bytes()), expect, "{reply}");
        check("229 Entering Extended Passive Mode (|||6446|)\r\n", Some(6446));
        check("229 ok (!!!1!)", Some(1));
        check("229 ok (|1|10.0.0.1|6446|)", Some(6446));
        for bad in
            ["229 ok", "229 (|||0|)", "229 (|||65536|)", "229 (|||6446", "229 (", "229 (|||x|)"]
        {
            check(bad, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(host: [u8; 4], host6: [u8; 16], port in 1u16..) {
            let v4 = SocketAddr::new(Ipv4Addr::from(host).into(), port);
            let v6 = SocketAddr::new(Ipv6Addr::from(host6).into(), port);
            let text = format_port(v4).unwrap();
            prop_assert_eq!(parse_port(text.as_bytes()), Ok(v4));
            prop_assert_eq!(parse_227(format!("227 Passive ({text}).\r\n").as_bytes()), Some(v4));
            prop_assert_eq!(format_port(v6), None);
            for address in [v4, v6] {
                prop_assert_eq!(parse_eprt(format_eprt(address).as_bytes()), Ok(address));
            }
            prop_assert_eq!(parse_229(format!("229 ok (|||{port}|)").as_bytes()), Some(port));
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ = (parse_port(&bytes), parse_eprt(&bytes), parse_227(&bytes), parse_229(&bytes));
        }

        #[test]
        fn nearly_right_input_does_not_panic(text in "[0-9,|(). ]{0,40}") {
            let bytes = text.as_bytes();
            let _ = (parse_port(bytes), parse_eprt(bytes), parse_227(bytes), parse_229(bytes));
        }
    }
}
