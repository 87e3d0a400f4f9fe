//! Conversions for the agent, and the marker that lets aya copy the types to and from maps.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{Address, Event, Flow, FlowKey, Settings};

// SAFETY: repr(C) of integers and arrays of them, without padding (asserted beside the types): any bytes are a value.
unsafe impl aya::Pod for Address {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Flow {}
// SAFETY: as above.
unsafe impl aya::Pod for Event {}
// SAFETY: as above.
unsafe impl aya::Pod for Settings {}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
        .octets();
        let word =
            |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = [0; 16];
        for (to, word) in bytes.chunks_exact_mut(4).zip(address.0) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    }
}

impl FlowKey {
    /// The direction from one end to the other.
    #[must_use]
    pub fn new(from: SocketAddr, to: SocketAddr) -> Self {
        Self { src: from.ip().into(), dst: to.ip().into(), sport: from.port(), dport: to.port() }
    }

    /// Where packets come from.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(self.src.into(), self.sport)
    }

    /// Where they go.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(self.dst.into(), self.dport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        for text in ["192.0.2.7:21", "[2001:db8::7]:25", "[::1]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            let key = FlowKey::new(address, address);
            assert_eq!((key.from(), key.to()), (address, address));
        }
        assert_eq!(
            Address::from(IpAddr::from([1, 2, 3, 4])),
            Address::v4(u32::from_ne_bytes([1, 2, 3, 4]))
        );
    }

    #[test]
    fn ports_are_bits() {
        let mut settings = Settings::NONE;
        settings.add_port(21);
        settings.add_port(65535);
        let ours: alloc::vec::Vec<u16> = (0..=u16::MAX).filter(|p| settings.is_ours(*p)).collect();
        assert_eq!(ours, [21, 65535]);
    }

    extern crate alloc;
}
