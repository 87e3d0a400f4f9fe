//! How single values are written: sizes, durations, networks, ports, paths, names.

use super::read::{Scalar, Wrong, kind};
use super::types::{Interface, Published, TableNumber};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;
use vscan_scan::glob::Glob;

/// A number of bytes, written as `"64 MiB"` or as a plain integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(pub(super) u64);

/// A word for `"none"` beside a value of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OrNone<T> {
    None,
    Some(T),
}

impl<T> OrNone<T> {
    pub(super) fn into_option(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::Some(value) => Some(value),
        }
    }
}

impl<T: Scalar> Scalar for OrNone<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        if value.as_str() == Some("none") {
            return Ok(Self::None);
        }
        T::read(value).map(Self::Some).map_err(|mut wrong| {
            let help = wrong.help.map_or_else(String::new, |h| format!("{h}; "));
            wrong.help = Some(format!("{help}\"none\" turns it off"));
            wrong
        })
    }
}

fn text<'a>(value: &'a DeValue<'_>, example: &str) -> Result<&'a str, Wrong> {
    value.as_str().ok_or_else(|| {
        Wrong::new(format!("must be a string, this is {}", kind(value)))
            .help(format!("write it as \"{example}\""))
    })
}

fn integer(value: &DeValue<'_>, what: &str) -> Result<u64, Wrong> {
    let Some(digits) = value.as_integer() else {
        return Err(Wrong::new(format!("must be {what}, this is {}", kind(value))));
    };
    u64::from_str_radix(digits.as_str(), digits.radix())
        .map_err(|_| Wrong::new(format!("must be {what}, this is {digits}")))
}

impl Scalar for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value
            .as_bool()
            .ok_or_else(|| Wrong::new(format!("must be true or false, this is {}", kind(value))))
    }
}

impl Scalar for String {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        text(value, "...").map(str::to_owned)
    }
}

impl Scalar for u32 {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        integer(value, "an integer from 0 to 4294967295")?
            .try_into()
            .map_err(|_| Wrong::new("must be an integer from 0 to 4294967295"))
    }
}

impl Scalar for NonZeroU32 {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        u32::read(value)?.try_into().map_err(|_| Wrong::new("must not be 0"))
    }
}

impl Scalar for NonZeroUsize {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        const WHAT: &str = "an integer from 1 to 1000000";
        let n = integer(value, WHAT)?;
        usize::try_from(n)
            .ok()
            .filter(|n| *n <= 1_000_000)
            .and_then(Self::new)
            .ok_or_else(|| Wrong::new(format!("must be {WHAT}, this is {n}")))
    }
}

impl Scalar for NonZeroU16 {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        const WHAT: &str = "a port from 1 to 65535";
        let n = integer(value, WHAT)?;
        u16::try_from(n)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| Wrong::new(format!("must be {WHAT}, this is {n}")))
    }
}

impl Scalar for TableNumber {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        Self::new(u32::read(value)?).ok_or_else(|| {
            Wrong::new("must be a routing table of its own: not 0, 253 (default), 254 (main) or 255 (local)")
        })
    }
}

impl Scalar for Size {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        if value.is_integer() {
            return integer(value, "a size").map(Self);
        }
        let text = text(value, "64 MiB")?;
        let (number, unit) = split_unit(text);
        let factor: u64 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => {
                return Err(Wrong::new(format!("{text:?} is not a size"))
                    .help("write a number and one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"));
            }
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor))
            .filter(|n| *n <= i64::MAX as u64)
            .map(Self)
            .ok_or_else(|| {
                Wrong::new(format!("{text:?} is not a size")).help("write it as \"64 MiB\"")
            })
    }
}

impl Scalar for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        if value.is_integer() {
            return Err(Wrong::new("a duration needs a unit").help("write it as \"30s\""));
        }
        let whole = text(value, "30s")?;
        let wrong = || {
            Wrong::new(format!("{whole:?} is not a duration"))
                .help("write numbers with us, ms, s, m, h, d or w, as in \"90s\" or \"1h 30m\"")
        };
        let mut total = Duration::ZERO;
        let mut rest = whole.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let micros: u64 = match &rest[..letters] {
                "us" => 1,
                "ms" => 1_000,
                "s" => 1_000_000,
                "m" | "min" => 60_000_000,
                "h" => 3_600_000_000,
                "d" => 86_400_000_000,
                "w" => 604_800_000_000,
                _ => return Err(wrong()),
            };
            let part = number.checked_mul(micros).ok_or_else(wrong)?;
            total = total.checked_add(Duration::from_micros(part)).ok_or_else(wrong)?;
            rest = rest[letters..].trim_start();
        }
        // ten years: more is a slip of the keyboard, and would overflow deadlines
        if total > Duration::from_secs(10 * 365 * 86_400) {
            return Err(Wrong::new(format!("{whole:?} is more than ten years")));
        }
        Ok(total)
    }
}

/// Splits `"64 MiB"` into `("64", "MiB")`.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

fn network(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text.parse().map_err(|_| {
        Wrong::new(format!("{text:?} is not a network")).help(
            "write an address with its prefix length, as in \"192.168.0.0/16\" or \"fd00::/8\"",
        )
    })?;
    if net.trunc() != net {
        return Err(Wrong::new(format!("{text:?} has bits set behind its prefix")).help(format!(
            "write \"{}\" for the network, or \"{}\" for the host",
            net.trunc(),
            net.addr()
        )));
    }
    Ok(net)
}

impl Scalar for IpNet {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        network(text(value, "192.168.0.0/16")?)
    }
}

impl Scalar for Published {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "203.0.113.5:25")?;
        if let Ok(net) = network(text) {
            return Ok(Self { net, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
            _ => return network(text).map(|net| Self { net, port: None }),
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| {
            Wrong::new(format!("{text:?}: {port:?} is not a port from 1 to 65535"))
                .help("write \"203.0.113.5:25\", \"[2001:db8::5]:25\" or only the address")
        })?;
        Ok(Self { net: network(host)?, port: Some(port) })
    }
}

impl Scalar for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "127.0.0.1:9321")?;
        text.parse().map_err(|_| {
            Wrong::new(format!("{text:?} is not an address with a port"))
                .help("write it as \"127.0.0.1:9321\" or \"[::1]:9321\"")
        })
    }
}

impl Scalar for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let path = Self::from(text(value, "/var/lib/vscan")?);
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(Wrong::new("a path cannot contain a NUL"));
        }
        if !path.is_absolute() {
            return Err(Wrong::new(format!("{:?} is a relative path", path.display().to_string()))
                .help("write the whole path, from /"));
        }
        Ok(path)
    }
}

impl Scalar for Interface {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "eth0")?;
        Self::new(text).ok_or_else(|| {
            Wrong::new(format!("{text:?} cannot be the name of an interface"))
                .help("`ip link` lists them; a name has 1 to 15 bytes, no space and no slash")
        })
    }
}

impl Scalar for Glob {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "Win.Trojan.*")?;
        if text.is_empty() {
            return Err(Wrong::new("an empty pattern matches nothing").help("leave the key out"));
        }
        Ok(Self::new(text))
    }
}

/// A file name's extension without its dot, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extension(pub(super) String);

impl Scalar for Extension {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "txt")?;
        if text.is_empty() || text.contains(['.', '/', '*', ' ']) {
            return Err(Wrong::new(format!("{text:?} is not a file name's extension"))
                .help("write only what follows the last dot, as in \"txt\""));
        }
        Ok(Self(text.to_lowercase()))
    }
}

/// The keyword of an SMTP extension (RFC 5321 section 4.1.1.1, `ehlo-keyword`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EhloKeyword(pub(super) String);

impl Scalar for EhloKeyword {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value, "ETRN")?;
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(Wrong::new(format!("{text:?} is not an extension's keyword"))
                .help("write only the first word of its line in the EHLO reply, as in \"ETRN\""));
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}
